"""What each stage kept of the teacher and of the stages before it, from stages.csv: the page stages.html.

It is a page of its own, since all numbers of report.html are of results.parquet.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from reports.front import objectives, summarise, winner
from reports.load import Run
from reports.naming import named

NAME = "stages.csv"
_NEEDED = ("methods", "recipe_id", "seed", "phase", "stage", "stage_methods", "val_accuracy", "agreement_teacher")
_NUMBERS = ("seed", "val_accuracy", "agreement_teacher")
# What is read at most, in bytes and in stages of a recipe.
_BYTES, _STAGES = 2**28, 1000
# Recipes of one sequence of stages, side by side: with and without an anchor, by weighting.
_SHOWN = 6


def read(run: Path) -> pd.DataFrame | None:
    """The table, or None where a run has none.

    Raises:
        ValueError: the file is no such table.
    """
    path = run / NAME
    again = "run the same search command again: it writes the file anew"
    if path.is_file() and path.stat().st_size > _BYTES:
        raise ValueError(f"{path} must have at most {_BYTES} bytes; {again}")
    if not path.is_file() or not path.read_text(encoding="utf-8", errors="replace").strip():
        return None
    try:
        table = pd.read_csv(path)
    except (ValueError, OSError) as cause:
        raise ValueError(f"{path} is damaged or half-written ({cause}); {again}") from cause
    missing = [name for name in _NEEDED if name not in table.columns]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; {again}")
    if len(table) and not (table["stage"].isin(range(1, _STAGES + 1)).all()):
        raise ValueError(f"stage must be a number from 1 to {_STAGES} in {path}; {again}")
    losses = [f"loss_of_stage_{stage}" for stage in sorted(set(table["stage"]))]
    for name in (*_NUMBERS, *losses):
        if name not in table.columns or not pd.api.types.is_numeric_dtype(table[name]):
            raise ValueError(f"{path} must have numbers in its column {name}; {again}")
    return table


def contents(by_stage: pd.DataFrame | None, run: Run) -> dict[str, Any] | None:
    """Everything that the page shows; None if there is nothing."""
    if by_stage is None:
        return None
    summary = summarise(run.table, *objectives(run.info))
    best = winner(summary)
    ordered = named(summary, run.table).sort_values("val_accuracy", ascending=False, kind="stable")
    labels = {row["recipe_id"]: f"{row['name']}, {row['anchoring']}" for row in ordered.to_dict("records")}
    kept = groups(by_stage, labels, best or "")
    if not kept:
        return None
    return {
        "title": f"What each stage kept: {', '.join(sorted(run.table['pair'].unique()))}",
        "badges": [],
        "counts": "Means over the seeds of the search, on validation, from stages.csv.",
        "best": None,
        "kept": kept,
    }


def groups(table: pd.DataFrame, labels: Mapping[str, str], best: str) -> list[dict[str, Any]]:
    """One row per stage, for the best recipe of several stages and for the sequence that ran with the most anchors.

    Each with all recipes of the same sequence. Means over the seeds of the search. A stage's own loss is followed
    through the later stages: as it was when the stage ended, and after each later one, with the change in per cent.

    Args:
        table: as read() gives it.
        labels: how finished recipes are called, by id, best first.
        best: id of the recipe to show; if it has one stage, the first of `labels` that has several.
    """
    search = table[(table["phase"] == "search") & table["recipe_id"].isin(list(labels))]
    several = search[search["stage"] > 1]
    by_id: dict[str, str] = several.groupby("recipe_id")["methods"].first().to_dict()  # type: ignore[assignment]
    ordered = [name for name in (best, *labels) if name in by_id]
    if not ordered:
        return []
    counts = Counter(by_id.values())
    varied = max(ordered, key=lambda name: counts[by_id[name]])  # the first of those, so the best
    shown: list[str] = []
    for chosen in (ordered[0], varied):
        alike = [name for name in ordered if by_id[name] == by_id[chosen] and name not in shown]
        shown += list(dict.fromkeys(alike))[:_SHOWN]
    return [{"label": labels[name], "rows": _rows(search[search["recipe_id"] == name])} for name in shown]


def _rows(mine: pd.DataFrame) -> list[dict[str, Any]]:
    means: dict[int, dict[str, float]] = mine.groupby("stage").mean(numeric_only=True).to_dict("index")  # type: ignore[assignment]
    names: dict[int, str] = mine.groupby("stage")["stage_methods"].first().to_dict()  # type: ignore[assignment]
    rows = []
    for stage, mean in sorted(means.items()):
        losses = []
        for earlier in sorted(means):
            if earlier > stage:
                losses.append("")
                continue
            now, own = (means[at][f"loss_of_stage_{earlier}"] for at in (stage, earlier))
            change = f"{100 * (now / own - 1):+.0f}" if own else "+0"
            shown = "+0" if change == "-0" else change.replace("-", "\N{MINUS SIGN}")
            losses.append(f"{now:.3g}" if earlier == stage else f"{now:.3g} ({shown} %)")
        previous = mean.get("agreement_previous", math.nan)
        rows.append(
            {
                "stage": stage,
                "methods": names[stage],
                "validation": f"{100 * mean['val_accuracy']:.2f}",
                "teacher": f"{100 * mean['agreement_teacher']:.1f}",
                "previous": "" if math.isnan(previous) else f"{100 * previous:.1f}",
                "losses": losses,
            }
        )
    return rows
