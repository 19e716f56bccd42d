"""Hypervolume in a fixed box, and how it grew over what a search has spent. Two objectives: error and one cost.

The box is decided when a run begins, so that its hypervolumes of all times, and those of runs with the same box, can be
compared. The first cost is the one shown; a front of three objectives is compared by its first two.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import moocore
import numpy as np
import pandas as pd

from reports.front import COSTS
from reports.statistics import bootstrap_interval, pooled_sd

_DRAWS = 200


@dataclass(frozen=True, kw_only=True)
class Box:
    """What hypervolume is measured in. error: low and high, as fractions. cost: low and high, above 0.

    Raises:
        ValueError: an end isn't finite, low isn't below high, or a cost isn't above 0.
    """

    error: tuple[float, float]
    cost: tuple[float, float]

    def __post_init__(self) -> None:
        for name in ("error", "cost"):
            low, high = map(float, getattr(self, name))
            object.__setattr__(self, name, (low, high))
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"finite low < high must hold for the box, but its {name} is from {low:g} to {high:g}")
        if self.cost[0] <= 0:
            raise ValueError(f"cost low > 0 must hold for the box, since its axis is log10, but got {self.cost[0]:g}")

    def scaled(self, points: np.ndarray) -> np.ndarray:
        """Points [n, 2] of (error, cost) with the box from 0 (best) to 1 (worst): error linear, cost by its log10.

        Raises:
            ValueError: the shape is wrong, a value isn't finite, or a cost isn't above 0.
        """
        points = np.asarray(points, dtype=np.float64).reshape(len(points), -1 if len(points) else 2)
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"points must have shape [n, 2], of error and cost, but have shape {list(points.shape)}")
        bad = ~(np.isfinite(points).all(axis=1) & (points[:, 1] > 0))
        if bad.any():
            raise ValueError(
                f"points must be finite with a cost above 0, but {int(bad.sum())} of {len(points)} are not, the first "
                f"at row {int(bad.argmax())}: {points[bad.argmax()].tolist()}; leave failed recipes out"
            )
        low, high = (np.array([end[k] for end in (self.error, self.cost)]) for k in (0, 1))
        low[1], high[1] = np.log10(low[1]), np.log10(high[1])
        scaled: np.ndarray = (np.column_stack([points[:, 0], np.log10(points[:, 1])]) - low) / (high - low)
        return scaled


def hypervolume(points: np.ndarray, box: Box) -> float:
    """The share of the box, 0 to 1, that points [n, 2] of (error, cost) dominate; its worst corner is the reference.

    A point beyond the worst corner in either axis counts for nothing; one better than the best corner counts as if it
    stood on the box's edge.

    Raises:
        ValueError: as Box.scaled. NaN is refused, since moocore would take it.
    """
    return _volume(box.scaled(points))


def share_outside(points: np.ndarray, box: Box) -> float:
    """The share of points [n, 2] that lie outside the box, on any side; 0 without points.

    Raises:
        ValueError: as Box.scaled.
    """
    scaled = box.scaled(points)
    return float(((scaled < 0) | (scaled > 1)).any(axis=1).mean()) if len(scaled) else 0.0


def over_budget(
    results: pd.DataFrame, cost_name: str, box: Box, *, infeasible: Collection[str] = (), seed: int = 0
) -> pd.DataFrame:
    """How the hypervolume of one pair's search grew: one row per recipe told, in order of `position`.

    results: a table of results; its search rows are read. cost_name: `flops`, `seconds`, `params` or `latency`, the
    cost of the box. infeasible: ids of recipes that cost but don't count. seed: of the redrawn means.

    Columns: `recipes`, how many were told so far, whatever came of them; `spent`, what all of them cost together,
    shared stages paid once (FLOPs where the cost is flops, else seconds); `hypervolume` of the means of those that are
    complete; `low` and `high`, its 95 % band when the means are redrawn with the standard deviation pooled over
    recipes (statistics.bootstrap_interval), NaN where no recipe has two seeds.

    Raises:
        ValueError: several pairs, or as Box.scaled.
    """
    if results["pair"].nunique() > 1:
        raise ValueError(f"one pair must be given, but there are {', '.join(sorted(results['pair'].unique()))}")
    search = results[results["phase"] == "search"]
    spent = "spent_flops" if cost_name == "flops" else "spent_seconds"
    told = search.groupby("recipe_id").agg(position=("position", "max"), spent=(spent, "sum")).sort_values("position")
    finished = ((search["status"] == "complete") & search["val_accuracy"].notna()).groupby(search["recipe_id"])
    counts = finished.transform("all").astype("bool") & ~search["recipe_id"].isin(infeasible)
    by_recipe = search[counts].groupby("recipe_id")
    mean = by_recipe.agg(accuracy=("val_accuracy", "mean"), cost=(COSTS[cost_name], "mean"), seeds=("seed", "size"))
    spread = pooled_sd(values.tolist() for _, values in by_recipe["val_accuracy"])
    rows = told.join(mean)
    there = rows["accuracy"].notna().to_numpy()
    points = np.column_stack([1 - rows.loc[there, "accuracy"], rows.loc[there, "cost"]])
    # before the first complete recipe there is nothing; the k-th value holds until the next complete one
    known = np.concatenate([[0.0], _running(box.scaled(points))])[np.cumsum(there)]
    low = high = np.full(len(rows), np.nan)
    if spread.sd is not None:
        error = spread.sd / np.sqrt(rows.loc[there, "seeds"].to_numpy(dtype=np.float64))
        drawn = np.random.default_rng(seed).normal(points[:, 0], error, size=(_DRAWS, len(points)))
        redrawn = np.column_stack([np.zeros(_DRAWS), _redrawn(drawn, points[:, 1], box)])[:, np.cumsum(there)]
        low, high = bootstrap_interval(known, redrawn)
    return pd.DataFrame(
        {
            "recipes": np.arange(1, len(rows) + 1),
            "spent": rows["spent"].cumsum().to_numpy(dtype=np.float64),
            "hypervolume": known,
            "low": low,
            "high": high,
        }
    )


def _volume(scaled: np.ndarray) -> float:
    inside = np.clip(scaled[(scaled < 1).all(axis=1)], 0, None)
    return float(moocore.hypervolume(inside, ref=np.ones(2))) if len(inside) else 0.0


def _running(scaled: np.ndarray) -> np.ndarray:
    """The hypervolume [n] of the first 1, 2, ..., n points."""
    front, volume = np.zeros((0, 2)), 0.0
    out = np.zeros(len(scaled))
    for k, point in enumerate(scaled):
        if not (front <= point).all(axis=1).any():
            front = np.vstack([front[~(front >= point).all(axis=1)], point])
            volume = _volume(front)
        out[k] = volume
    return out


def _redrawn(errors: np.ndarray, costs: np.ndarray, box: Box) -> np.ndarray:
    """As `_running`, of many draws at once: errors [draws, n] at the same costs [n] -> [draws, n].

    moocore takes one set at a time, which would be draws x n calls. Costs are few values, and a draw's front is the
    least error so far at each cost or below it: a row of steps, whose area is summed.
    """
    draws, n = errors.shape
    scaled = box.scaled(np.column_stack([errors.ravel(), np.tile(costs, draws)])).reshape(draws, n, 2)
    height = np.clip(1 - scaled[:, :, 0], 0, 1)
    at, column = np.unique(np.clip(scaled[0, :, 1] if draws else costs, 0, 1), return_inverse=True)
    width = np.diff(np.append(at, 1.0))
    steps = np.zeros((draws, len(at)))
    volume, out = np.zeros(draws), np.zeros((draws, n))
    for k in range(n):
        higher = np.flatnonzero(height[:, k] > steps[:, column[k]])
        if len(higher):
            right = steps[higher, column[k] :]
            raised = np.maximum(right, height[higher, k, None])
            volume[higher] += (raised - right) @ width[column[k] :]
            steps[higher, column[k] :] = raised
        out[:, k] = volume
    return out
