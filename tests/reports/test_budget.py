"""Hypervolume against areas worked out by hand and by brute force; its growth against plain loops over the rows."""

from __future__ import annotations

import math
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.budget import Box, hypervolume, over_budget, share_outside

BOX = Box(error=(0.1, 0.5), cost=(1e3, 1e5))


def test_hypervolume_by_hand() -> None:
    # the middle of both axes: error 0.3, cost 1e4
    assert hypervolume(np.array([[0.3, 1e4]]), BOX) == pytest.approx(0.25)
    assert hypervolume(np.array([[0.3, 1e3], [0.1, 1e4]]), BOX) == pytest.approx(0.75)
    assert hypervolume(np.array([[0.1, 1e3]]), BOX) == 1
    assert hypervolume(np.zeros((0, 2)), BOX) == 0


def test_points_outside_the_box() -> None:
    beyond = np.array([[0.5, 2e3], [0.6, 2e3], [0.2, 1e5], [0.2, 2e5]])
    assert hypervolume(beyond, BOX) == 0
    # better than the best corner: as if on the edge
    assert hypervolume(np.array([[0.0, 1e4]]), BOX) == pytest.approx(hypervolume(np.array([[0.1, 1e4]]), BOX))
    assert hypervolume(np.array([[0.0, 1.0]]), BOX) == 1
    assert share_outside(np.array([[0.3, 1e4], [0.0, 1e4], [0.3, 2e5], [0.1, 1e3]]), BOX) == 0.5
    assert share_outside(np.zeros((0, 2)), BOX) == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 10), st.integers(-2, 10)), max_size=9))
def test_hypervolume_equals_counted_cells(cells: list[tuple[int, int]]) -> None:
    # a box of 8 x 8 cells; a point dominates the cells above and to the right of it
    box = Box(error=(0.0, 8.0), cost=(1.0, 10.0**8))
    points = np.array([(e, 10.0**c) for e, c in cells]).reshape(-1, 2)
    counted = sum(any(e <= i and c <= j for e, c in cells) for i in range(8) for j in range(8))
    assert hypervolume(points, box) == pytest.approx(counted / 64)


def test_what_is_no_point_or_no_box_is_refused() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="the first at row 1"):
            hypervolume(np.array([[0.2, 1e4], [bad, 1e4]]), BOX)
    with pytest.raises(ValueError, match="with a cost above 0"):
        share_outside(np.array([[0.2, 0.0]]), BOX)
    with pytest.raises(ValueError, match=r"shape \[n, 2\]"):
        hypervolume(np.zeros((2, 3)), BOX)
    with pytest.raises(ValueError, match="cost low > 0 must hold"):
        Box(error=(0, 1), cost=(0, 1))
    with pytest.raises(ValueError, match="its error is from 1 to 1"):
        Box(error=(1, 1), cost=(1, 2))
    with pytest.raises(ValueError, match="finite low < high"):
        Box(error=(0, math.nan), cost=(1, 2))


def search(recipes: list[dict[str, object]], seeds: int = 3, sd: float = 0.0) -> pd.DataFrame:
    """Rows of a search, in another order than that of `position`; each training costs a tenth of its recipe's FLOPs."""
    rng = np.random.default_rng(0)
    rows = []
    for recipe in recipes:
        for seed in range(seeds):
            rows.append(
                {
                    "phase": "search",
                    "status": "complete",
                    "pair": "tiny",
                    "seed": seed,
                    "spent_flops": float(recipe["train_flops"]) / 10,  # type: ignore[arg-type]
                    "spent_seconds": 2.0,
                    "position": len(rows),
                    **recipe,
                    "val_accuracy": float(recipe["accuracy"]) + sd * rng.normal(),  # type: ignore[arg-type]
                }
            )
    return pd.DataFrame(rows[::-1])


def test_over_budget_equals_plain_loops() -> None:
    rng = np.random.default_rng(1)
    recipes: list[dict[str, object]] = [
        {"recipe_id": f"r{i}", "accuracy": rng.uniform(0.4, 0.95), "train_flops": 10 ** rng.uniform(2.8, 5.2)}
        for i in range(30)
    ]
    recipes[4]["status"] = "failed"
    table = search(recipes, sd=0.01)
    found = over_budget(table, "flops", BOX, infeasible=["r7"])
    assert list(found.columns) == ["recipes", "spent", "hypervolume", "low", "high"]
    assert found["recipes"].tolist() == list(range(1, 31))
    spent, points = 0.0, []
    for i in range(30):
        rows = table[table["recipe_id"] == f"r{i}"]
        spent += rows["spent_flops"].sum()
        if i not in (4, 7):
            points.append([1 - rows["val_accuracy"].mean(), rows["train_flops"].iloc[0]])
        assert found["spent"][i] == pytest.approx(spent)
        assert found["hypervolume"][i] == pytest.approx(hypervolume(np.array(points), BOX))
    assert (found["low"] <= found["hypervolume"]).all() and (found["hypervolume"] <= found["high"]).all()
    assert (found["high"] - found["low"])[10:].max() < 0.1


def test_the_band_narrows_with_seeds_and_is_unknown_with_one() -> None:
    recipes: list[dict[str, object]] = [
        {"recipe_id": f"r{i}", "accuracy": 0.6 + 0.05 * i, "train_flops": 2e3 * 2**i} for i in range(5)
    ]

    def width(seeds: int) -> float:
        last = over_budget(search(recipes, seeds, sd=0.02), "flops", BOX).iloc[-1]
        return float(last["high"] - last["low"])

    assert 0 < width(20) < width(3)
    once = over_budget(search(recipes, 1), "flops", BOX)
    assert once["low"].isna().all() and once["high"].isna().all()


def test_the_band_covers_the_hypervolume_of_the_true_means() -> None:
    rng = np.random.default_rng(0)
    recipes: list[dict[str, object]] = [
        {"recipe_id": f"r{i}", "accuracy": 0.6 + 0.02 * i, "train_flops": 2e3 * 1.3**i} for i in range(10)
    ]
    truth = over_budget(search(recipes), "flops", BOX).iloc[-1]["hypervolume"]
    covered = []
    for _ in range(60):
        noisy = search(recipes)
        noisy["val_accuracy"] += rng.normal(0, 0.02, len(noisy))
        last = over_budget(noisy, "flops", BOX).iloc[-1]
        covered.append(last["low"] <= truth <= last["high"])
    assert np.mean(covered) > 0.9


def test_seconds_are_spent_where_the_cost_is_not_flops() -> None:
    recipes: list[dict[str, object]] = [{"recipe_id": "a", "accuracy": 0.7, "train_flops": 1e4, "device_seconds": 1e4}]
    found = over_budget(search(recipes), "seconds", BOX)
    assert found["spent"].tolist() == [6.0] and found["hypervolume"].tolist() == pytest.approx([0.25])


def test_nothing_complete_and_several_pairs() -> None:
    failed: list[dict[str, object]] = [
        {"recipe_id": "a", "accuracy": math.nan, "train_flops": 1e4, "status": "failed"},
        {"recipe_id": "b", "accuracy": math.nan, "train_flops": 1e4, "status": "pruned"},
    ]
    found = over_budget(search(failed), "flops", BOX)
    assert found["hypervolume"].tolist() == [0, 0] and found["spent"].tolist() == [3e3, 6e3]
    table = search(failed)
    assert over_budget(table[table["phase"] == "confirm"], "flops", BOX).empty
    table.loc[0, "pair"] = "other"
    with pytest.raises(ValueError, match="one pair must be given, but there are other, tiny"):
        over_budget(table, "flops", BOX)


def test_two_thousand_recipes_are_quick() -> None:
    rng = np.random.default_rng(0)
    recipes: list[dict[str, object]] = [
        {"recipe_id": f"r{i}", "accuracy": rng.uniform(0.6, 0.8), "train_flops": 10 ** rng.uniform(3, 5)}
        for i in range(2000)
    ]
    table = search(recipes, sd=0.005)
    started = time.process_time()
    over_budget(table, "flops", BOX)
    assert time.process_time() - started < 2
