"""What each stage kept of the teacher and of the stages before it, from stages.csv."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

NAME = "stages.csv"
_NEEDED = ("recipe", "recipe_id", "seed", "phase", "stage", "methods", "val_accuracy", "agreement_teacher")
# Recipes of one sequence of stages, side by side: with and without an anchor, by weighting.
_SHOWN = 6


def read(run: Path) -> pd.DataFrame | None:
    """The table, or None where a run has none.

    Raises:
        ValueError: the file is no such table.
    """
    path = run / NAME
    if not path.is_file() or not path.read_text(encoding="utf-8", errors="replace").strip():
        return None
    again = "run the same search command again: it writes the file anew"
    try:
        table = pd.read_csv(path)
    except (ValueError, OSError) as cause:
        raise ValueError(f"{path} is damaged or half-written ({cause}); {again}") from cause
    missing = [name for name in _NEEDED if name not in table.columns]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; {again}")
    return table


def groups(table: pd.DataFrame, labels: Mapping[str, str], best: str) -> list[dict[str, Any]]:
    """For the best recipe of several stages and those of the same stages with other anchors: one row per stage.

    Means over the seeds of the search. A stage's own loss is followed through the later stages: as it was when the
    stage ended, and after each later one, with the change in per cent.

    Args:
        table: as read() gives it.
        labels: how finished recipes are called, by id, best first.
        best: id of the recipe to show; if it has one stage, the first of `labels` that has several.
    """
    search = table[(table["phase"] == "search") & table["recipe_id"].isin(list(labels))]
    several = set(search.loc[search["stage"] > 1, "recipe_id"])
    chosen = best if best in several else next((name for name in labels if name in several), None)
    if chosen is None:
        return []
    notation = search.loc[search["recipe_id"] == chosen, "recipe"].iloc[0]
    alike = set(search.loc[search["recipe"] == notation, "recipe_id"])
    ordered = [chosen, *(name for name in labels if name in alike - {chosen})][:_SHOWN]
    return [{"label": labels[name], "rows": _rows(search[search["recipe_id"] == name])} for name in ordered]


def _rows(mine: pd.DataFrame) -> list[dict[str, Any]]:
    means: dict[int, dict[str, float]] = mine.groupby("stage").mean(numeric_only=True).to_dict("index")  # type: ignore[assignment]
    names: dict[int, str] = mine.groupby("stage")["methods"].first().to_dict()  # type: ignore[assignment]
    rows = []
    for stage, mean in sorted(means.items()):
        losses = []
        for earlier in sorted(means):
            now, own = (means[at][f"loss_of_stage_{earlier}"] for at in (stage, earlier))
            text = f"{now:.3g}" if earlier == stage else f"{now:.3g} ({100 * (now / own - 1):+.0f} %)"
            losses.append(text if earlier <= stage else "")
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
