"""The recipes of a run as the page's tables, card and figures show them, and the units of their costs. No HTML here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reports import figures
from reports.front import COSTS, nondominated
from reports.naming import Row, anchor_weight, anchored, display, recipe_yaml
from reports.statistics import Gain
from reports.text import NONE, known, number, percent, plural, points, unit_of

# Of a cost: what it is, and its short name.
_QUANTITIES = {
    "flops": ("training cost, {} per student", "FLOPs"),
    "seconds": ("training time, device {} per student", "device time"),
    "params": ("student size, {}", "parameters"),
    "latency": ("inference time, {}", "latency"),
}
# What figures, card and tooltips need of an entry; the tables need the rest.
DRAWN = (
    *("id", "letter", "label", "detail", "stage", "shape", "baseline", "feasible", "yaml", *COSTS),
    *(panel + end for panel in ("validation", "test") for end in ("", "_drawn", "_below", "_low", "_high")),
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One way of counting cost, in the unit that suits the run. name: a key of COSTS."""

    name: str
    scale: float
    unit: str
    axis: figures.Axis

    @property
    def short(self) -> str:
        """What is counted, in a word or two."""
        return _QUANTITIES[self.name][1]

    def of(self, row: Row) -> float:
        """The recipe's cost in `unit`."""
        return float(row[COSTS[self.name]]) / self.scale

    def text(self, row: Row) -> str:
        """The recipe's cost with its unit."""
        return f"{number(self.of(row))} {self.unit}"


def costs_of(summary: pd.DataFrame, chosen: Sequence[str]) -> list[Cost]:
    """The chosen costs, then the others that were measured for every recipe and tell recipes apart."""
    costs = []
    for name in dict.fromkeys((*chosen, *COSTS)):
        values = summary[COSTS[name]]
        if values.isna().any() or (name not in chosen and values.nunique() < 2):
            continue
        scale, unit = unit_of(name, float(values.median()))
        axis = figures.cost_axis(name, _QUANTITIES[name][0].format(unit), (values / scale).tolist())
        costs.append(Cost(name=name, scale=scale, unit=unit, axis=axis))
    return costs


def label_of(row: Row) -> str:
    """The name, after the letter where it has one."""
    return (f"{row['letter']} · " if row["letter"] else "") + str(row["name"])


def yamls(results: pd.DataFrame, rows: Sequence[Row], experiment: Mapping[str, Any]) -> dict[str, str]:
    """The YAML of each recipe, with its first search seed, so that training it again gives a number of the table."""
    seeds = results[results["phase"] == "search"].groupby("recipe_id")["seed"].min()
    return {row["recipe_id"]: recipe_yaml(row["recipe"], experiment, int(seeds[row["recipe_id"]])) for row in rows}


def accuracy_ends(summary: pd.DataFrame, teacher: float | None) -> tuple[float, float, float | None]:
    """Ends of the accuracy axis in per cent, and the teacher's accuracy (a fraction) in per cent where it fits.

    All front members and confirmed recipes fit with their bars; a poor tail of the rest may lie below.
    """
    front = summary[summary["front"]]
    ends = []
    for sign in (-1, 1):
        ends += (100 * (front["val_accuracy"] + sign * front["val_half_width"].fillna(0))).tolist()
        ends += (100 * (summary["test_accuracy"] + sign * summary["test_half_width"].fillna(0))).dropna().tolist()
    values = 100 * summary["val_accuracy"]
    ends = ends or values.tolist()
    low, high = min(ends), max(*ends, float(values.max()))
    middle = float(values.median())
    low = min(low, max(float(values.min()), middle - 2 * (high - middle)))
    line = math.inf if teacher is None else 100 * teacher
    if low < line <= high + 0.6 * max(high - low, 1):
        high = max(high, line)
    pad = 0.06 * (high - low) or 0.5
    return low - pad, high + pad, line if low < line <= high else None


def entry(
    row: Row, costs: Sequence[Cost], *, base: Row | None, low: float, yaml: str, front_share: float | None
) -> dict[str, Any]:
    """One recipe. row: of a summary with reports.naming's columns. base: the baseline's row. low: end of the accuracy
    axis. front_share: its P(front), if known."""
    held = anchored(row)
    is_base = base is not None and row["recipe_id"] == base["recipe_id"]
    out: dict[str, Any] = {
        "id": row["recipe_id"],
        "letter": row["letter"],
        "name": display(row["methods"]),
        "label": label_of(row),
        "anchoring": row["anchoring"],
        "settings": row["settings"],
        "lambda": f"{row['lambda_base']:g}" if held else NONE,
        "weighting": anchor_weight(row) if held else NONE,
        "anchor": row["anchor"] if known(row["anchor"]) else NONE,
        "shape": row["weighting"] if held and row["weighting"] in figures.SHAPES else "none",
        "stages": row["n_stages"],
        "stage": figures.STAGES[min(row["n_stages"], len(figures.STAGES)) - 1],
        "epochs": row["epochs_total"],
        "seeds": row["seeds"],
        "baseline": display(row["methods"]) if is_base else "",
        "feasible": row["feasible"],
        "cost": number(costs[0].of(row)),
        "costs": [number(each.of(row)) for each in costs],
        "val": percent(row["val_accuracy"], row["val_half_width"]),
        "test_mean": "",
        "test_bar": "",
        "shrink": "",
        "holds": None,
        "p_front": NONE if front_share is None else f"{front_share:.2f}",
        "yaml": yaml,
    }
    out |= {each.name: float(f"{each.of(row):.7g}") for each in costs}
    out |= _drawn("validation", row["val_accuracy"], row["val_half_width"] if row["letter"] else None, low)
    detail = [*filter(None, (row["anchoring"], row["settings"])), *(each.text(row) for each in costs)]
    detail.append(f"validation {out['val']} % ({plural(row['seeds'], 'seed')})")
    if known(row["test_accuracy"]):
        out |= _drawn("test", row["test_accuracy"], row["test_half_width"], low) | {
            "test_mean": percent(row["test_accuracy"]),
            "test_bar": percent(row["test_half_width"]) if known(row["test_half_width"]) else "",
            "shrink": points(Gain(row["val_accuracy"] - row["test_accuracy"], None, 0)),
            "holds": bool(row["holds"]),
        }
        test = percent(row["test_accuracy"], row["test_half_width"])
        detail.append(f"test {test} % ({plural(row['confirm_seeds'], 'fresh seed')})")
    detail += [] if row["feasible"] else ["over a limit"]
    detail += [f"P(front)\N{NO-BREAK SPACE}{out['p_front']}"] if row["letter"] and front_share is not None else []
    return out | {"detail": " · ".join(detail)}


def columns(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is drawn of the entries, column by column, so that the names of the fields are in the page once.

    The end that all YAMLs share is cut off and given as `yaml_end`.
    """
    out: dict[str, Any] = {}
    for field in DRAWN:
        values = [each.get(field) for each in entries]
        if any(value is not None for value in values):
            out[field] = values
    lines = [text.splitlines(keepends=True)[::-1] for text in out["yaml"]]
    same = 0
    while all(len(each) > same and each[same] == lines[0][same] for each in lines):
        same += 1
    out["yaml"] = ["".join(each[same:][::-1]) for each in lines]
    return {"columns": out, "yaml_end": "".join(lines[0][:same][::-1])}


def front_lines(
    summary: pd.DataFrame, costs: Sequence[Cost], panels: Sequence[str], low: float
) -> list[dict[str, Any]]:
    """Corners of the front's step line, per cost axis and panel: up at its cheapest member, on to the right edge.

    On validation of all recipes within the limits, on test of the confirmed ones.
    """
    lines = []
    for cost in costs:
        for panel in panels:
            accuracy = "val_accuracy" if panel == "validation" else "test_accuracy"
            there = summary[summary[accuracy].notna() & summary["feasible"]]
            if there.empty:
                continue
            on = there[nondominated(np.column_stack([1 - there[accuracy], there[COSTS[cost.name]]]))]
            rows = on.sort_values([COSTS[cost.name], accuracy]).to_dict("records")
            corners = [(cost.of(row), 100 * row[accuracy]) for row in rows]
            corners = [(corners[0][0], low), *corners, (cost.axis.high, corners[-1][1])]
            lines += [
                {"axis": cost.name, "panel": panel, "order": i, "cost": x, "accuracy": y}
                for i, (x, y) in enumerate(corners)
            ]
    return lines


def _drawn(panel: str, mean: float, half_width: float | None, low: float) -> dict[str, Any]:
    """Where a mean is drawn, in per cent: at the axis' edge if it lies below, with its bar if it has one."""
    value, half = 100 * mean, 100 * float(half_width) if known(half_width) and half_width is not None else None
    out: dict[str, Any] = {panel: round(value, 4), f"{panel}_drawn": round(max(value, low), 4)}
    out[f"{panel}_below"] = value < low
    if half is not None:
        out |= {f"{panel}_low": round(value - half, 4), f"{panel}_high": round(value + half, 4)}
    return out
