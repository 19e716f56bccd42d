"""The front and what its members gain over the baseline, as tables.md and tables.tex of a run have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from reports.front import COSTS, objectives, summarise, winner
from reports.load import Run
from reports.naming import display, named
from reports.results import write_atomically
from reports.statistics import Gain, front_probability, holm, paired_gain, pooled_sd
from reports.tables import Grid, Table, latex, markdown
from reports.text import NONE, cost_text, known, percent, plural, points

SPLITS = {"test": ("confirm", "test_accuracy"), "validation": ("search", "val_accuracy")}
LEVEL = 0.05
_COST_NAMES = {"flops": "training cost", "seconds": "training time", "params": "size", "latency": "inference time"}


@dataclass(frozen=True, kw_only=True)
class Over:
    """A front member's gain over the baseline on one split.

    adjusted: Holm's p value, None with one pair of seeds. family: over how many recipes that was. verdict: `above` or
    `below` where it is under LEVEL, else `unclear`.
    """

    recipe_id: str
    split: str
    gain: Gain
    adjusted: float | None
    family: int
    verdict: str


def baseline(summary: pd.DataFrame) -> str | None:
    """The id of what gains are over: of the recipes of one stage of `kd` the one with the shortest line, so with the
    fewest settings, then the cheapest; without them the cheapest of one stage. None if there is none of one stage."""
    single = summary[summary["n_stages"] == 1].sort_values(["cost", "recipe_id"])
    of_kd = single[single["methods"] == "kd"]
    shortest = of_kd.sort_values("recipe", key=lambda lines: lines.str.len(), kind="stable")
    ids = (shortest if len(of_kd) else single)["recipe_id"].tolist()
    return str(ids[0]) if ids else None


def gains(results: pd.DataFrame, summary: pd.DataFrame) -> list[Over]:
    """Gains of the front's members over the baseline, paired by seed: on test, then on validation.

    Holm's correction is over the recipes that could have been shown: on validation all that were searched, since the
    front was chosen from them, on test the front's members. summary: as reports.front.summarise makes it of the same
    results.
    """
    base = baseline(summary)
    members = summary.loc[summary["front"], "recipe_id"].tolist()
    out: list[Over] = []
    for split, (phase, column) in SPLITS.items():
        rows = results[(results["phase"] == phase) & (results["status"] == "complete") & results[column].notna()]
        seeds: dict[str, dict[int, float]] = {}
        for of, seed, value in zip(rows["recipe_id"], rows["seed"], rows[column], strict=True):
            seeds.setdefault(of, {})[seed] = value
        family = members if split == "test" else summary["recipe_id"].tolist()
        found = {of: paired_gain(seeds.get(of, {}), seeds.get(base or "", {})) for of in family if of != base}
        p_values: dict[str, float] = {
            of: gain.p for of, gain in found.items() if gain is not None and gain.p is not None
        }
        adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
        for of in members:
            gain, p = found.get(of), adjusted.get(of)
            if gain is None:
                continue
            verdict = ("above" if gain.mean > 0 else "below") if p is not None and p < LEVEL else "unclear"
            out.append(Over(recipe_id=of, split=split, gain=gain, adjusted=p, family=len(adjusted), verdict=verdict))
    return out


def on_front(results: pd.DataFrame, summary: pd.DataFrame, costs: Sequence[str]) -> dict[str, float]:
    """P(front) of each recipe that keeps to the limits, by id; empty where no recipe has two seeds."""
    allowed = summary[summary["feasible"]]
    search = results[(results["phase"] == "search") & results["recipe_id"].isin(summary["recipe_id"])]
    spread = pooled_sd(values.tolist() for _, values in search.groupby("recipe_id")["val_accuracy"])
    if spread.sd is None or allowed.empty:
        return {}
    columns = [COSTS[cost] for cost in costs]
    found = front_probability(
        allowed["val_accuracy"].to_numpy(), allowed[columns].to_numpy(float), spread, allowed["seeds"].tolist()
    )
    return dict(zip(allowed["recipe_id"], found.tolist(), strict=True))


def table(run: Run) -> Table:
    """The front with the baseline, and the gains.

    Raises:
        ValueError: as reports.front.summarise.
    """
    results, info = run.table, run.info
    costs, limits = objectives(info)
    summary = named(summarise(results, costs, limits), results)
    told = bool((summary["settings"] != "").any())
    by_id = summary.set_index("recipe_id", drop=False)
    base, best = baseline(summary), winner(summary)
    chances = on_front(results, summary, costs)
    shown = summary[summary["front"] | (summary["recipe_id"] == base)]
    rows = []
    for row in shown.to_dict("records"):
        of = row["recipe_id"]
        marks = [name for name, which in (("winner", best), ("baseline", base)) if of == which]
        test = (
            percent(row["test_accuracy"], row["test_half_width"]),
            str(row["confirm_seeds"]),
            "yes" if row["holds"] is True else "no",
        )
        rows.append(
            (
                row["letter"] or NONE,
                display(row["methods"]) + (f" ({', '.join(marks)})" if marks else ""),
                *((row["settings"] or NONE,) * told),
                row["anchoring"],
                percent(row["val_accuracy"], row["val_half_width"]),
                str(row["seeds"]),
                f"{chances[of]:.2f}" if of in chances else NONE,
                *(test if known(row["test_accuracy"]) else (NONE, NONE, NONE)),
                *(cost_text(cost, row[COSTS[cost]]) for cost in costs),
            )
        )
    judged = gains(results, summary)
    compared = [
        (
            str(by_id.loc[one.recipe_id, "letter"]),
            str(by_id.loc[one.recipe_id, "name"]),
            one.split,
            points(one.gain),
            str(one.gain.pairs),
            f"{one.gain.wins:.2f}",
            p_text(one.gain.p),
            p_text(one.adjusted),
            one.verdict,
        )
        for one in judged
    ]
    over = "" if base is None else f" over {by_id['name'][base]}, in points"
    return Table(
        title=f"{info['teacher'].get('name', NONE)} → {info['student'].get('name', NONE)} on "
        f"{info['dataset'].get('name', NONE)}: the front",
        head=_head(results, summary, info),
        measured=Grid(
            header=(
                *("", "recipe", *(("settings",) * told), "anchor", "validation, %", "seeds", "P(front)"),
                *("test, %", "fresh seeds", "held"),
                *(_COST_NAMES[cost] for cost in costs),
            ),
            align="lp" + "p" * told + "pr" + "rrrrl" + "r" * len(costs),
            rows=tuple(rows),
        ),
        claims=Grid(
            header=("", "recipe", "split", f"gain{over}", "seeds", "P(A > B)", "p", "p, Holm", "verdict"),
            align="lplrrrrrl",
            rows=tuple(compared),
        ),
        remarks=_remarks(judged, bool(chances)),
        judged=len(judged),
    )


def p_text(value: float | None) -> str:
    """A p value as printed."""
    return NONE if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _head(results: pd.DataFrame, summary: pd.DataFrame, info: Mapping[str, Any]) -> str:
    if summary.empty:
        return "No recipe has finished."
    text = (
        f"{plural(len(summary), 'recipe')}, chosen on validation. Accuracies are means with their 95 % t interval, the "
        "standard deviation pooled over recipes."
    )
    if summary["val_half_width"].isna().all():
        text += " One seed a recipe: there are no intervals on validation."
    if summary["test_accuracy"].isna().all():
        return f"{text} The test split was not opened."
    text += " Test: the last epoch of trainings with fresh seeds, after the front was frozen."
    if info["confirm"].get("reopened") is True:
        text += " The test split was opened more than once, for a front that had changed, which flatters."
    return text


def _remarks(judged: Sequence[Over], chances: bool) -> tuple[str, ...]:
    marks = []
    if chances:
        marks.append(
            "P(front): how often a recipe is on the front when all means on validation are redrawn with the pooled "
            "standard deviation (parametric bootstrap)."
        )
    if judged:
        marks.append(
            "Gains are differences paired by seed, with a 95 % t interval of their own; P(A > B) is the share of seeds "
            "that the recipe wins. The verdict goes by Holm's p value (over the members on test, all recipes on "
            "validation) at "
            f"{LEVEL:g}. Recipes of more stages are trained for longer."
        )
    return tuple(marks)


def write(folder: Path, run: Run) -> None:
    """Write tables.md and tables.tex into the run's folder, each whole or not at all."""
    made = table(run)
    for name, text in (("tables.md", markdown("Tables of a run", [made])), ("tables.tex", latex([made]))):
        write_atomically(folder / name, text.encode("utf-8", errors="replace"))
