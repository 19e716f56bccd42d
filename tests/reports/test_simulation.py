"""Simulated searches, through the functions that the report uses: what is claimed of its numbers holds.

Accuracies are normal: recipes differ with sd 0.2 points, and trainings of one recipe too. Tolerances stand
over three standard errors of the simulation from what is expected.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from reports import results
from reports.front import summarise, winner
from reports.statistics import holm, paired_gain

POINT = 0.01
SPREAD, NOISE = 0.2 * POINT, 0.2 * POINT


def rows(phase: str, names: np.ndarray, accuracies: np.ndarray) -> pd.DataFrame:
    """A table of results: names [n], accuracies [n, seeds]."""
    n, seeds = accuracies.shape
    base = {name: {"str": "x", "int64": 1, "float64": math.nan}[c.dtype] for name, c in results.COLUMNS.items()}
    table = pd.DataFrame(base, index=range(n * seeds)).assign(phase=phase, status="complete", train_flops=1e9)
    column = "val_accuracy" if phase == "search" else "test_accuracy"
    # a complete row has a validation accuracy; that of a confirm row is not read
    table = table.assign(val_accuracy=0.5, recipe_id=np.repeat(names, seeds), seed=np.tile(np.arange(seeds), n))
    return table.assign(**{column: accuracies.ravel()})


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_cover_95_per_cent(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    names = np.array([f"{i:012d}" for i in range(60)])
    covered: dict[str, list[bool]] = {"val": [], "test": []}
    for _ in range(40):
        truth = rng.normal(0.7, SPREAD, size=60)
        drawn = rng.normal(truth[:, None], NOISE, size=(2, 60, seeds))
        table = pd.concat([rows("search", names, drawn[0]), rows("confirm", names[:7], drawn[1, :7])])
        summary = summarise(table, ["flops"]).set_index("recipe_id").loc[names]
        for split, found in covered.items():
            told = summary[f"{split}_accuracy"].notna().to_numpy()
            off = (summary[f"{split}_accuracy"] - truth).abs()[told]
            found += (off < summary.loc[told, f"{split}_half_width"]).tolist()
    assert len(covered["val"]) == 2400 and 0.93 <= np.mean(covered["val"]) <= 0.97
    # seven recipes a search: a standard error of 1.3 % at most, so that only the rough value is tested
    assert len(covered["test"]) == 280 and 0.90 <= np.mean(covered["test"]) <= 0.99


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_of_gains_cover_95_per_cent(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    covered, wins = [], []
    for _ in range(6000):
        luck = rng.normal(0, NOISE, seeds)  # of the seed, which recipe and baseline share
        base, ours = luck + rng.normal(0, NOISE, seeds), luck + rng.normal(POINT / 10, NOISE, seeds)
        gain = paired_gain(dict(enumerate(ours)), dict(enumerate(base)))
        assert gain is not None and gain.half_width is not None
        covered.append(abs(gain.mean - POINT / 10) < gain.half_width)
        wins.append(gain.wins)
    assert 0.93 <= np.mean(covered) <= 0.97
    # P(A > B): the difference of two trainings is normal, with sd 0.2 sqrt(2) around 0.1
    assert np.mean(wins) == pytest.approx(0.638, abs=0.02)


def test_the_winner_is_flattered_by_the_search_and_not_by_fresh_seeds() -> None:
    rng = np.random.default_rng(0)
    searches, recipes = 2000, 60
    truth = rng.normal(0.7, SPREAD, size=(searches, recipes))
    names = np.array([f"{i:06d}{k:06d}" for i in range(searches) for k in range(recipes)])
    search = rows("search", names, rng.normal(truth.reshape(-1, 1), NOISE, size=(searches * recipes, 3)))
    # One table for all searches, since a recipe's mean is its own; each search's part chooses its winner.
    summary = summarise(search, ["flops"]).sort_values("recipe_id")
    parts = np.array_split(np.arange(searches * recipes), searches)
    chosen = [winner(summary.iloc[part]) for part in parts]
    assert None not in chosen
    at = [int(str(name)[:6]) * recipes + int(str(name)[6:]) for name in chosen]
    true = truth.ravel()[at]
    winners = np.array(chosen)
    fresh = rows("confirm", winners, rng.normal(true[:, None], NOISE, size=(searches, 5)))
    seen = summarise(pd.concat([search[search["recipe_id"].isin(winners)], fresh]), ["flops"])
    seen = seen.set_index("recipe_id").loc[winners]
    # standard error over the searches: 0.2 / sqrt(5) / sqrt(2000) = 0.002 points
    assert abs(np.mean(seen["test_accuracy"] - true)) < 0.02 * POINT
    assert np.mean(seen["val_accuracy"] - true) > 0.1 * POINT


@pytest.mark.parametrize("better", [0, 3])
def test_holm_keeps_the_family_wise_error(better: int) -> None:
    # seven recipes against one baseline: tests that depend on each other; `better` of them differ in truth
    rng = np.random.default_rng(better)
    experiments, recipes, seeds = 4000, 7, 5
    wrong, wrong_alone = 0, 0
    for _ in range(experiments):
        base = dict(enumerate(rng.normal(0, NOISE, seeds)))
        drawn = rng.normal(0, NOISE, size=(recipes, seeds))
        drawn[:better] += 3 * NOISE
        gains = [paired_gain(dict(enumerate(of)), base) for of in drawn]
        p = [gain.p for gain in gains if gain is not None and gain.p is not None]
        assert len(p) == recipes
        wrong += any(value < 0.05 for value in holm(p)[better:])
        wrong_alone += any(value < 0.05 for value in p[better:])
    # standard error 0.34 %; the tests share the baseline's noise, so that it stays somewhat below 5 %
    assert 0.02 < wrong / experiments < 0.05 + 0.0034
    assert wrong_alone / experiments > 0.1
