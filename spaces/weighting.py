"""How to weigh the anchor: fixed against tcp against tcp_true, with lambda_base on a grid, for one order of stages."""

from __future__ import annotations

from itertools import cycle, islice

from smskd.recipe import WEIGHTINGS, Recipe
from spaces import Menu, Trial

LAMBDA_LOW, LAMBDA_HIGH, LAMBDA_STEP = 0.25, 1.25, 0.25


def suggest(trial: Trial, menu: Menu) -> Recipe:
    """One weighting and one lambda_base, for max_stages stages of the methods in the order given.

    Raises:
        ValueError: max_stages is 1: there is nothing to anchor.
    """
    if menu.max_stages < 2:
        raise ValueError("space=weighting compares anchors of later stages, so max_stages >= 2 must hold, but got 1")
    if menu.fixed.get("anchor") == "none":
        raise ValueError(
            "space=weighting compares anchors, so anchor=none leaves nothing to search; use anchor=reference"
        )
    weighting = trial.suggest_categorical("weighting", WEIGHTINGS)
    lambda_base = trial.suggest_float("lambda_base", LAMBDA_LOW, LAMBDA_HIGH, step=LAMBDA_STEP)
    stages = ">".join(islice(cycle(menu.methods), menu.max_stages))
    return menu.recipe(stages, weighting=weighting, lambda_base=lambda_base)
