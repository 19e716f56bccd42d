"""The recorded table: its space, its file, and what a search would have seen of it. Nothing is trained here.

Four methods, one of each kind of knowledge (logits, hidden layer, relations between images, attention maps), in every
order without repeats, with four values of lambda where there is an anchor: 4 + 60 x 4 = 244 recipes, each of which is
the beginning of others or ends there, so that 244 stages a seed hold them all. Weighting is fixed: on digits the
teacher is sure of its training images, and TCP hardly anchors (LOG.md).
"""

from __future__ import annotations

import functools
from itertools import permutations
from pathlib import Path

import pandas as pd

from smskd.notation import make
from smskd.recipe import Recipe
from spaces import Trial

METHODS = ("kd", "fitnets", "rkd", "at")
LAMBDAS = (0.05, 0.2, 0.5, 2.0)
FILE = Path(__file__).with_name("digits.csv")
COLUMNS = ["seed", "methods", "lambda_base", "val_accuracy", "stage_flops"]


def suggest(trial: Trial) -> Recipe:
    """The recorded space, padded: every parameter is drawn always. A method that is taken gives way to the next."""
    count = trial.suggest_int("n_stages", 1, len(METHODS))
    order: list[str] = []
    for k in range(1, len(METHODS) + 1):
        drawn = METHODS.index(trial.suggest_categorical(f"stage_{k}", METHODS))
        free = [name for name in METHODS[drawn:] + METHODS[:drawn] if name not in order]
        order.append(free[0])
    return recipe(tuple(order[:count]), LAMBDAS[trial.suggest_int("lambda_place", 0, len(LAMBDAS) - 1)])


@functools.cache  # a search walks through the whole space when it begins
def recipe(order: tuple[str, ...], lambda_base: float) -> Recipe:
    """A recipe of the table."""
    return make(">".join(order), {"lambda_base": lambda_base})


def longest() -> list[Recipe]:
    """The 96 recipes whose beginnings are all recipes of the table."""
    return [recipe(order, lam) for order in permutations(METHODS) for lam in LAMBDAS]


def read(path: Path = FILE) -> pd.DataFrame:
    """The table: one row per recipe and seed; columns as in COLUMNS, and `recipe_id`.

    val_accuracy: after the recipe's last stage, a fraction. stage_flops: of its last stage alone.

    Raises:
        ValueError: a recipe lacks a seed, or occurs twice.
    """
    table = pd.read_csv(path, comment="#")
    table["recipe_id"] = [
        recipe(tuple(str(name).split(">")), lam).id
        for name, lam in zip(table["methods"], table["lambda_base"], strict=True)
    ]
    seeds = table.groupby("recipe_id")["seed"].agg(["size", "nunique"])
    if (seeds["size"] != table["seed"].nunique()).any() or (seeds["size"] != seeds["nunique"]).any():
        raise ValueError(f"every recipe must have every seed once, but {path} has others; record it anew")
    return table
