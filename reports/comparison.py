"""What the page says of the gains over the baseline, and of what its run could have shown. No HTML here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports.gains import LEVEL, SPLITS, Over, gains, p_text
from reports.naming import Row, display
from reports.recipes import label_of
from reports.statistics import Pooled, detectable_difference, pooled_sd
from reports.text import known, plural, points

# Points within which a gain makes no difference in practice: about what another seed does to one training of a ResNet
# on CIFAR-100. Our choice, the same for every run, so that a noisy run can't widen it.
INDIFFERENCE = 0.2


@dataclass(frozen=True, kw_only=True)
class Detectable:
    """The smallest true difference of two recipes seen with 80 % power, in points. sd: of one training, in points."""

    split: str
    points: float
    sd: float
    seeds: int

    def __str__(self) -> str:
        seeds = plural(self.seeds, "seed" if self.split == "validation" else "fresh seed")
        return f"{self.points:.2f} points on {self.split} ({seeds} each, sd {self.sd:.2f})"


def entries(results: pd.DataFrame, summary: pd.DataFrame, rows: Mapping[str, Row]) -> list[dict[str, Any]]:
    """The gain of each front member over the baseline, the most expensive first, on test and on validation.

    rows: of the summary, by id.
    """
    order = {recipe_id: index for index, recipe_id in enumerate(rows)}
    found = gains(results, summary)
    return [_entry(rows[one.recipe_id], one) for one in sorted(found, key=lambda one: -order[one.recipe_id])]


def table(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The gains with one row per recipe, its splits side by side."""
    by_id: dict[str, dict[str, Any]] = {}
    for gain in found:
        row = by_id.setdefault(gain["id"], {key: gain[key] for key in ("id", "letter", "name")} | {"splits": {}})
        row["splits"][gain["split"]] = gain
    return list(by_id.values())


def spreads(summary: pd.DataFrame, results: pd.DataFrame) -> dict[str, tuple[Pooled, int]]:
    """The standard deviation pooled over recipes, and the least seeds of a recipe, by split, where two seeds are."""
    out = {}
    for split, (phase, column) in SPLITS.items():
        ids = summary.loc[summary["test_accuracy"].notna(), "recipe_id"] if split == "test" else summary["recipe_id"]
        rows = results[(results["phase"] == phase) & results["recipe_id"].isin(ids)]
        groups = [values.tolist() for _, values in rows.groupby("recipe_id")[column]]
        spread = pooled_sd(groups)
        if spread.sd is not None:
            out[split] = spread, min(map(len, groups))
    return out


def detectable(found: Mapping[str, tuple[Pooled, int]]) -> list[Detectable]:
    """What spreads and seeds could show between two recipes' means, each with that standard deviation."""
    out = []
    for split, (spread, seeds) in found.items():
        sd = spread.sd or 0.0
        seen = detectable_difference(Pooled(math.sqrt(2) * sd, spread.degrees), seeds)
        out.append(Detectable(split=split, points=100 * (seen or 0.0), sd=100 * sd, seeds=seeds))
    return out


def notes(
    found: Sequence[Mapping[str, Any]], rows: Sequence[Row], base: Row | None, seen: Sequence[Detectable]
) -> dict[str, str]:
    """The sentences around the figure and the table of gains; missing: why there are none."""
    out = {"name": "the baseline", "missing": "", "figure": "", "table": ""}
    if base is None:
        return out | {"missing": "No recipe of one stage has finished, so there is no baseline to take gains over."}
    name = f"1-stage {display(base['methods'])}"
    if not found:
        alone = "The baseline is the front by itself" if sum(bool(r["letter"]) for r in rows) else "There is no front"
        others = any(row["letter"] and row["recipe_id"] != base["recipe_id"] for row in rows)
        why = "No front member shares a seed with the baseline" if others else alone
        return out | {"name": name, "missing": f"{why}, so there is no gain over {name} to show."}
    set_so = f"Baseline: {base['settings']}. " if base["settings"] else ""
    splits = {gain["split"] for gain in found}
    bars = (
        "bars: 95 % t intervals of the differences"
        if any(gain["low"] is not None for gain in found)
        else "one seed each: no interval can be given"
    )
    kinds = "Filled: test, hollow: validation; " if len(splits) == 2 else f"On {next(iter(splits))}; "
    families = " and ".join(
        f"{gain['family']} on {split}"
        for split in SPLITS
        if (gain := next((g for g in found if g["split"] == split and g["family"]), None))
    )
    holm_over = f"p: paired t test, by Holm over the recipes compared ({families}). " if families else ""
    lengths = sorted({int(row["epochs_total"]) for row in rows if row["letter"]})
    budget = ""
    if lengths != [int(base["epochs_total"])]:
        budget = (
            f"The baseline trains for {plural(base['epochs_total'], 'epoch')}, the front for "
            f"{', '.join(map(str, lengths))}: a gain may come from longer training as well as from the stages. "
        )
    untested = ""
    if "test" not in splits and any(row["letter"] and known(row["test_accuracy"]) for row in rows):
        untested = "The baseline wasn't confirmed, so there is no gain on test. "
    power = f"Smallest difference of two recipes seen with 80 % power: {'; '.join(map(str, seen))}." if seen else ""
    return out | {
        "name": name,
        "figure": f"{set_so}{kinds}{bars}. Green: above 0 with Holm's p < {LEVEL:g}. Grey: ±{INDIFFERENCE:g} points, "
        "which make no difference in practice (our choice, the same for every run).",
        "table": f"Differences seed by seed. {holm_over}P(A > B): share of the seeds on which the recipe is better, "
        f"ties half. {budget}{untested}{power}",
    }


def _entry(row: Row, one: Over) -> dict[str, Any]:
    gain, half, p = one.gain, one.gain.half_width, one.adjusted
    text = f"{points(gain)} points on {one.split} ({plural(gain.pairs, 'seed')})"
    if p is not None:
        text += f" · Holm's p {p_text(p)} · P(A > B) {gain.wins:.2f}"
    return {
        "id": row["recipe_id"],
        "letter": row["letter"],
        "name": row["name"],
        "label": label_of(row),
        "split": one.split,
        "gain": 100 * gain.mean,
        "low": None if half is None else 100 * (gain.mean - half),
        "high": None if half is None else 100 * (gain.mean + half),
        "pairs": gain.pairs,
        "p": p,
        "wins": gain.wins,
        "family": one.family,
        "verdict": one.verdict,
        "short": points(gain),
        "p_text": p_text(p),
        "wins_text": f"{gain.wins:.2f}",
        "text": text,
    }
