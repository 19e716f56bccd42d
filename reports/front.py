"""One row per recipe, and which recipes are on the front of accuracy against cost. Reads the results table only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import moocore
import numpy as np
import pandas as pd

from reports import results as results_module
from reports.statistics import half_width, pooled_sd

COSTS = {"flops": "train_flops", "seconds": "device_seconds", "params": "params", "latency": "latency_ms"}
# Names of the limits that a run may set, and the columns that they bound.
LIMITS = {"params": "params", "latency_ms": "latency_ms", "flops": "train_flops"}
Limits = Mapping[str, float | None]
NO_LIMITS: Limits = MappingProxyType({})
_MEANS = ["train_flops", "device_seconds", "params", "latency_ms"]
_SAME = ["recipe", "methods", "pair", "epochs_total", "n_stages"]
_SAME += ["anchor", "weighting", "lambda_base", "anchor_temperature", "teachers"]
SUMMARY = [
    *("recipe", "recipe_id", *_SAME[1:]),
    *("seeds", "val_accuracy", "val_half_width", "val_sd", *_MEANS, "cost", "feasible", "front", "letter"),
    *("test_accuracy", "test_half_width", "test_sd", "confirm_seeds", "holds"),
]


def nondominated(points: np.ndarray) -> np.ndarray:
    """Which of the points [n, m] no other point dominates, all m objectives minimised; equal points stand together.

    Raises:
        ValueError: points is not two-dimensional, or has NaN or infinity (which would evict valid points unseen).
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2:
        raise ValueError(f"points must have shape [n, m], but have shape {list(points.shape)}")
    bad = ~np.isfinite(points).all(axis=1)
    if bad.any():
        raise ValueError(
            f"points must be finite, but {int(bad.sum())} of {len(points)} are not, the first at row "
            f"{int(bad.argmax())}: {points[bad.argmax()].tolist()}; leave failed recipes out"
        )
    if not len(points):
        return np.zeros(0, dtype=np.bool_)
    return np.asarray(moocore.is_nondominated(points, keep_weakly=True), dtype=np.bool_)


def objectives(info: Mapping[str, Any]) -> tuple[list[str], dict[str, float | None]]:
    """The costs of a run.json, the first one first, and its limits; as `summarise` takes them."""
    return info["objectives"][1:], info.get("limits", {})


def summarise(results: pd.DataFrame, costs: Sequence[str], limits: Limits = NO_LIMITS) -> pd.DataFrame:
    """One row per recipe whose search rows are all complete, sorted by cost, then recipe_id; columns as in SUMMARY.

    After them come the settings of the table.
    Accuracies are means over seeds, as fractions. *_half_width: of the 95 % t interval with the standard deviation
    pooled over recipes, null where no recipe has two seeds. *_sd: the recipe's own. cost: the mean of the first cost.
    feasible: no mean is above its limit. front: feasible, and non-dominated among these in 1 - val_accuracy and every
    cost. letter: A, B, ... on the front in order of cost, "" elsewhere. holds: still non-dominated in 1 - test_accuracy
    and every cost among the confirmed; null where not confirmed.

    Args:
        results: the table of results, of one pair.
        costs: one or more of COSTS; the front is in all of them.
        limits: of LIMITS, the largest value that a recipe may have; None is no limit.

    Raises:
        ValueError: a cost or a limit is unknown, or wasn't measured for a recipe.
    """
    for cost in costs:
        if cost not in COSTS:
            raise ValueError(f"cost must be one of {', '.join(COSTS)}, but got {cost!r}")
    bounds = {LIMITS[name]: bound for name, bound in limits.items() if bound is not None}
    search = _complete(results[results["phase"] == "search"])
    by_recipe = search.groupby("recipe_id", sort=True)
    accuracy = _accuracy(search, "val_accuracy", "val", "seeds")
    settings = results_module.setting_columns(results)
    out = by_recipe[[*_SAME, *settings]].first().join(accuracy).join(by_recipe[_MEANS].mean())
    columns = [COSTS[cost] for cost in costs]
    needed = {COSTS[cost]: f"cost={cost}" for cost in reversed(costs)}
    needed |= {column: f"max_{name}=" for name, column in LIMITS.items() if column in bounds}
    for column, asked in needed.items():
        if out[column].isna().any():
            missing = out[out[column].isna()].iloc[0]
            known = [name for name, column in COSTS.items() if out[column].notna().all()]
            raise ValueError(
                f"{asked} needs {column} for every complete recipe, but {missing['recipe']} ({missing.name}) has none; "
                f"costs measured for all are {', '.join(known)}"
            )
    out["cost"] = out[columns[0]]
    out["feasible"] = (out[list(bounds)] <= list(bounds.values())).all(axis=1)
    out = out.reset_index().sort_values(["cost", "recipe_id"], ignore_index=True)
    out["front"] = out["feasible"]
    allowed = out[out["feasible"]]
    out.loc[out["feasible"], "front"] = nondominated(_points(allowed, "val_accuracy", columns))
    out["letter"] = pd.Series("", index=out.index, dtype="str")
    out.loc[out["front"], "letter"] = [letter(i) for i in range(int(out["front"].sum()))]

    confirmed = _complete(results[results["phase"] == "confirm"], also="test_accuracy")
    out = out.merge(_accuracy(confirmed, "test_accuracy", "test", "confirm_seeds").reset_index(), "left", "recipe_id")
    out["confirm_seeds"] = out["confirm_seeds"].astype("Int64")
    tested = out["test_accuracy"].notna()
    out["holds"] = pd.Series(pd.NA, index=out.index, dtype="boolean")
    out.loc[tested, "holds"] = nondominated(_points(out[tested], "test_accuracy", columns))
    return out.astype({"seeds": "int64", "feasible": "bool", "front": "bool", "letter": "str"})[[*SUMMARY, *settings]]


def winner(summary: pd.DataFrame) -> str | None:
    """The recipe_id of the highest mean validation accuracy; ties go to the lower cost, then the lower id.

    None: no recipe has finished that keeps to the limits.
    """
    allowed = summary[summary["feasible"]]
    if allowed.empty:
        return None
    order = allowed.sort_values(["val_accuracy", "cost", "recipe_id"], ascending=[False, True, True])
    return str(order["recipe_id"].iloc[0])


def write_front(summary: pd.DataFrame, path: Path) -> None:
    """Write the front members, in order of cost, as CSV; the letter and the recipe come first."""
    first = ["letter", "recipe", "recipe_id"]
    members = summary.loc[summary["front"], first + [name for name in summary.columns if name not in first]]
    results_module.write_atomically(path, members.to_csv(index=False, lineterminator="\n").encode())


def letter(index: int) -> str:
    """0 -> A, 25 -> Z, 26 -> AA, as spreadsheets do."""
    text = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        text = chr(ord("A") + rest) + text
    return text


def _points(summary: pd.DataFrame, accuracy: str, costs: Sequence[str]) -> np.ndarray:
    """[n, 1 + m]: what is minimised, with m costs."""
    return np.column_stack([1 - summary[accuracy], *(summary[column] for column in costs)]).reshape(-1, 1 + len(costs))


def _complete(rows: pd.DataFrame, also: str = "val_accuracy") -> pd.DataFrame:
    """The rows of recipes of which every row is complete and has `also`."""
    good = (rows["status"] == "complete") & rows[also].notna()
    return rows[good.groupby(rows["recipe_id"]).transform("all").astype("bool")]


def _accuracy(rows: pd.DataFrame, column: str, prefix: str, count: str) -> pd.DataFrame:
    groups = rows.groupby("recipe_id", sort=True)[column]
    out = pd.DataFrame({column: groups.mean(), f"{prefix}_sd": groups.std(ddof=1), count: groups.size()})
    spread = pooled_sd(values.tolist() for _, values in groups)
    widths = {n: half_width(spread, n) for n in set(out[count])}
    out[f"{prefix}_half_width"] = out[count].map(widths).astype("float64")
    return out
