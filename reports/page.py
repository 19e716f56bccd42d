"""What the report says: the numbers of a run as texts and rows for the page. No HTML here, and nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reports import comparison, figures, gains, paper, recipes
from reports.budget import Box, over_budget, share_outside
from reports.front import COSTS, objectives, summarise, winner
from reports.importance import importance
from reports.load import Run, get
from reports.naming import Row, code_words, display, named
from reports.provenance import limits_text, provenance, test_sampling, trained_on_more
from reports.recipes import Cost, label_of
from reports.text import NOT, TIMES, duration, known, number, percent, plural, span, unit_of, when


def contents(run: Run, files: Mapping[str, str | None]) -> dict[str, Any]:
    """Everything the template shows. files: names of the run folder's files, best.yaml's with its text.

    Raises:
        ValueError: run.json names a cost that wasn't measured, or a box that is none.
    """
    results, info = run.table, run.info
    chosen, limits = objectives(info)
    summary = named(summarise(results, chosen, limits), results)
    stopped = {status: named(results[results["status"] == status], results) for status in ("failed", "pruned")}
    rows: Sequence[Row] = summary.to_dict("records")
    spreads = comparison.spreads(summary, results)
    seen = comparison.detectable(spreads)
    page: dict[str, Any] = {
        "title": "{} → {}, {}".format(*(info[part].get("name") or NOT for part in ("teacher", "student", "dataset"))),
        "badges": _badges(results, info),
        "counts": _counts(rows, results, info, limits),
        "failures": stopped["failed"].to_dict("records"),
        "pruned": stopped["pruned"].drop_duplicates("recipe_id").to_dict("records"),
        "provenance": provenance(run, rows, files, seen),
        "warnings": get(info, "teacher", "warnings") or (),
        "stages_page": "stages.html" in files,
        "best": None,
        "code_words": code_words(info),
    }
    if not rows:
        return page
    by_id = {row["recipe_id"]: row for row in rows}
    best, base = (by_id.get(of) if of else None for of in (winner(summary), gains.baseline(summary)))
    pinned = best or max(rows, key=lambda row: row["val_accuracy"])
    found = comparison.entries(results, summary, by_id)
    gain_notes = comparison.notes(found, rows, base, seen)
    costs = recipes.costs_of(summary, chosen)
    low, high, teacher = recipes.accuracy_ends(summary, get(info, "teacher", "val_accuracy"))
    yamls = recipes.yamls(results, rows, info["experiment"])
    if files.get("best.yaml") and info.get("winner") == pinned["recipe_id"]:
        yamls[pinned["recipe_id"]] = str(files["best.yaml"])
    shares = gains.on_front(results, summary, chosen)
    entries = [
        recipes.entry(row, costs, base=base, low=low, yaml=yamls[of], front_share=shares.get(of))
        for of, row in by_id.items()
    ]
    tested = any(known(row["test_accuracy"]) for row in rows)
    panels = {"validation": teacher} | ({"test": None} if tested else {})  # the teacher isn't measured on test
    first = {
        panel: figures.accuracy(panel=panel, axis=costs[0].axis, low=low, high=high, teacher=line, recipes=len(rows))
        for panel, line in panels.items()
    }
    drawn: dict[str, Any] = {
        cost.name: {panel: figures.on_axis(spec, costs[0].axis, cost.axis) for panel, spec in first.items()}
        for cost in costs
    }
    if found:
        ends = [0.0, *(gain[end] for gain in found for end in ("gain", "low", "high") if gain[end] is not None)]
        drawn["gains"] = figures.gains(
            rows=len({gain["id"] for gain in found}),
            splits=[split for split in gains.SPLITS if any(gain["split"] == split for gain in found)],
            low=min(*ends, -comparison.INDIFFERENCE),
            high=max(*ends, comparison.INDIFFERENCE),
            baseline=gain_notes["name"],
            indifference=comparison.INDIFFERENCE,
        )
    growth, growth_figure, growth_note = _growth(results, summary, info, chosen[0])
    mattered, mattered_figure, mattered_note = _mattered(summary, costs[: len(chosen)])
    drawn |= {"hypervolume": growth_figure} if growth_figure else {}
    drawn |= {"importance": mattered_figure} if mattered_figure else {}
    sampling = test_sampling(rows, info)
    return page | {
        "best": next(entry for entry in entries if entry["id"] == pinned["recipe_id"]),
        "tiles": _tiles(best, base, rows, costs[0], found, sampling),
        "costs": costs,
        "panels": list(panels),
        "notes": _notes(summary, teacher, get(info, "teacher", "val_accuracy"), costs, chosen, low, tested),
        "legend": [name for name in figures.SHAPES if any(entry["shape"] == name for entry in entries)],
        "stages": [stage for stage in figures.STAGES if any(entry["stage"] == stage for entry in entries)],
        "over_limit": not summary["feasible"].all(),
        "told": any(entry["settings"] for entry in entries),
        "front": sorted((e for e in entries if e["letter"] or e["test_mean"]), key=lambda entry: not entry["letter"]),
        "front_note": " ".join(filter(None, [_front_note(rows, sampling, bool(shares)), trained_on_more(info)])),
        "tested": tested,
        "entries": entries,
        "gains": comparison.table(found),
        "gain_splits": [split for split in gains.SPLITS if any(gain["split"] == split for gain in found)],
        "gain_notes": gain_notes,
        "growth_note": growth_note,
        "mattered": mattered,
        "mattered_note": mattered_note,
        "paper": [table for table in paper.tables([run]) if table.judged],
        "figures": [name for name in ("gains", "hypervolume", "importance") if name in drawn],
        "data": {
            **recipes.columns(entries),
            "lines": recipes.front_lines(summary, costs, list(panels), low),
            "gains": found,
            "hypervolume": growth,
            "importance": mattered,
            "figures": drawn,
            "cost": costs[0].name,
            "pinned": pinned["recipe_id"],
        },
    }


def _badges(results: pd.DataFrame, info: Mapping[str, Any]) -> list[str]:
    failed = int((results["status"] == "failed").sum())
    badges = [] if info.get("finished") else ["unfinished"]
    badges += [f"{failed} failed"] if failed else []
    return badges + (["test opened again"] if get(info, "confirm", "reopened") is True else [])


def _counts(
    rows: Sequence[Row], results: pd.DataFrame, info: Mapping[str, Any], limits: Mapping[str, float | None]
) -> str:
    """One sentence: how many recipes and seeds, what came of the rest, how many confirmed, and when test was opened."""
    planned = info.get("recipes")
    count = plural(len(rows), "recipe")
    if isinstance(planned, int) and planned > len(rows):
        count = f"{len(rows):,} of {plural(planned, 'recipe')} complete"
    text = f"{count} {TIMES} {span([row['seeds'] for row in rows], 'search seed')}" if rows else f"{count}"
    pruned = results.loc[(results["phase"] == "search") & (results["status"] == "pruned"), "recipe_id"].nunique()
    over = sum(not row["feasible"] for row in rows)
    text += f"; {plural(pruned, 'recipe')} given up or not begun (pruned)" if pruned else ""
    text += f"; {plural(over, 'recipe')} over a limit ({limits_text(limits)})" if over else ""
    confirmed = [row for row in rows if known(row["test_accuracy"])]
    if not confirmed:
        return text + "; not confirmed on the test split."
    front = sum(bool(row["letter"]) for row in confirmed)
    others = f" and {plural(len(confirmed) - front, 'other recipe')}" if len(confirmed) > front else ""
    seeds = span([row["confirm_seeds"] for row in confirmed], "fresh seed")
    opened = get(info, "confirm", "opened")
    once = "opened more than once, last" if get(info, "confirm", "reopened") is True else "opened once"
    members = plural(front, "front member")
    return f"{text}; {members}{others} confirmed with {seeds} on the test split, {once} ({when(opened)})."


def _tiles(
    best: Row | None,
    base: Row | None,
    rows: Sequence[Row],
    cost: Cost,
    found: Sequence[Mapping[str, Any]],
    sampling: tuple[float, int] | None,
) -> list[dict[str, str]]:
    front = [row for row in rows if row["letter"]]
    confirmed = [row for row in front if known(row["test_accuracy"])]
    held = sum(bool(row["holds"]) for row in confirmed)
    fourth = {
        "label": "Front",
        "value": f"{len(front)} of {len(rows)}",
        "sub": "non-dominated on validation; not confirmed on test",
    }
    if confirmed:
        rest = f"; {len(front) - len(confirmed)} not confirmed" if len(confirmed) < len(front) else ""
        sub = "still non-dominated on test with fresh seeds" + rest
        fourth = {"label": "Front that held up", "value": f"{held} of {len(confirmed)}", "sub": sub}
    if best is None:
        none = {"label": "Best recipe", "value": "none", "sub": "no finished recipe keeps to the limits"}
        return [none, fourth]
    tested = known(best["test_accuracy"])
    split, mean, width = (
        ("test", "test_accuracy", "test_half_width") if tested else ("validation", "val_accuracy", "val_half_width")
    )
    interval = known(best[width])
    gain = next((g for g in found if g["id"] == best["recipe_id"] and g["split"] == split), None)
    remarks = [f"{gain['short']} points over 1-stage {display(base['methods'])}, same seeds" if gain and base else ""]
    remarks += [
        "" if interval else "one seed: no interval",
        "" if tested else "it was chosen on these images, which flatters",
        f"the choice of {sampling[1]:,} images: ±{sampling[0]:.2f} more" if tested and sampling else "",
    ]
    compared = ""
    if base is not None and base["recipe_id"] != best["recipe_id"] and cost.of(base) > 0:
        compared = f"{number(cost.of(best) / cost.of(base))} {TIMES} 1-stage {display(base['methods'])}; "
    return [
        {"label": "Best recipe, chosen on validation", "value": label_of(best), "sub": best["anchoring"]},
        {
            "label": f"Its {split} accuracy" + (", 95 % interval" if interval else ""),
            "value": f"{percent(best[mean], best[width])} %",
            "sub": "; ".join(filter(None, remarks)),
        },
        {
            "label": f"Its cost, {cost.short}",
            "value": cost.text(best),
            "sub": f"{compared}{duration(best['device_seconds'])} of training, nothing shared",
        },
        fourth,
    ]


def _notes(
    summary: pd.DataFrame,
    line: float | None,
    teacher: float | None,
    costs: Sequence[Cost],
    chosen: Sequence[str],
    low: float,
    tested: bool,
) -> dict[str, str]:
    """The sentences around the two panels. line: the teacher's accuracy where it is drawn. low: the axis' end."""
    bars = "One seed a recipe: no interval can be given, and differences may be chance."
    if summary["val_half_width"].notna().any():
        bars = "Bars are 95 % t intervals with one standard deviation pooled over recipes."
    lead = "This is what the search saw, and it flatters its winners; nothing was confirmed on the test split yet."
    if tested:
        lead = "Left is what the search saw, and it flatters its winners. Right is what holds: new seeds, test split."
    extra = []
    if len(chosen) > 1:
        names = [cost.short for cost in costs[: len(chosen)]]
        extra.append(
            f"The front is non-dominated in error, {', '.join(names[:-1])} and {names[-1]} together, so some of its "
            "members lie off the line, which is the front on the axis shown alone."
        )
    if summary["cost"].nunique() == 1 and len(summary) > 1:
        extra.append("All recipes cost the same, so the front is the most accurate one alone.")
    below = int((100 * summary["val_accuracy"] < low).sum())
    if below:
        extra.append(
            f"{plural(below, 'recipe')} below the axis (▾), down to {percent(summary['val_accuracy'].min())} %."
        )
    if line is None and teacher is not None:
        extra.append(f"The teacher, {percent(teacher)} % on validation, is off the axis.")
    if summary["seeds"].nunique() > 1:
        extra.append("Recipes differ in how many seeds have finished.")
    seeds = span(summary["seeds"], "seed")
    mean, front = ("one seed", "front") if summary["seeds"].max() == 1 else (f"mean of {seeds}", "front of the means")
    out = {"lead": f"{lead} {bars}", "extra": " ".join(extra)}
    out["validation"] = f"validation split, {mean}, {plural(len(summary), 'recipe')}; dashed: {front}"
    if tested:
        confirmed = summary[summary["confirm_seeds"].notna()]
        fresh = span(confirmed["confirm_seeds"], "fresh seed")
        bar = "" if confirmed["test_half_width"].notna().any() else ", so no intervals"
        mean = fresh if fresh == "1 fresh seed" else f"mean of {fresh}"
        out["test"] = f"test split, {mean}{bar}; front members and baselines"
    return out


def _front_note(rows: Sequence[Row], sampling: tuple[float, int] | None, shares: bool) -> str:
    confirmed = [row for row in rows if row["letter"] and known(row["test_accuracy"])]
    share = (
        "P(front): probability of being non-dominated on validation given the seeds' noise."
        if shares
        else "With one seed a recipe there is no P(front)."
    )
    if not confirmed:
        return f"In order of cost. {share} Not confirmed on test yet."
    held = sum(bool(row["holds"]) for row in confirmed)
    images = (
        f"; the choice of {sampling[1]:,} test images alone makes ±{sampling[0]:.2f} points more" if sampling else ""
    )
    return (
        f"In order of cost; ± is of the seeds{images}. {share} Shrink: validation minus test, in points; it holds the "
        f"winner's curse and the change of split together, which can't be told apart here. On test, {held} of "
        f"{len(confirmed)} hold: non-dominated among the confirmed."
    )


def _growth(
    results: pd.DataFrame, summary: pd.DataFrame, info: Mapping[str, Any], cost_name: str
) -> tuple[dict[str, list[Any]], dict[str, Any] | None, str]:
    """Hypervolume over spent budget: columns of data, the figure, and the sentences under it."""
    recorded = info.get("box")
    if recorded is None:
        return {}, None, "run.json holds no box to measure the hypervolume in."
    box = Box(error=tuple(recorded["error"]), cost=tuple(recorded["cost"]))
    name = recorded["cost_name"]
    allowed = summary[summary["feasible"]]
    points = np.column_stack([1 - allowed["val_accuracy"], allowed[COSTS[name]]])
    if not len(points):
        return {}, None, "No finished recipe keeps to the limits."
    if not (points[:, 1] > 0).all():
        return {}, None, "A finished recipe has no cost above 0, which a logarithmic axis needs."
    over = summary.loc[~summary["feasible"], "recipe_id"].tolist()
    steps = over_budget(results, name, box, infeasible=over)
    spent_in = "flops" if name == "flops" else "seconds"
    scale, unit = unit_of(spent_in, float(steps["spent"].iloc[-1]))
    shown = steps.assign(spent=steps["spent"] / scale).round({"hypervolume": 6, "low": 6, "high": 6})
    spent = [float(f"{value:.7g}") for value in shown["spent"]]
    ends = [[None if pd.isna(value) else float(value) for value in shown[end]] for end in ("low", "high")]
    grew = shown["hypervolume"].diff().fillna(1.0) > 0
    marked = [bool(up) or index == len(spent) - 1 for index, up in enumerate(grew)]
    texts = [
        f"{_share(value, lower, upper)} · {number(cost)} {unit} spent" if mark else None
        for value, lower, upper, cost, mark in zip(shown["hypervolume"], *ends, spent, marked, strict=True)
    ]
    labels = [
        f"after {plural(int(n), 'recipe')}" if mark else None for n, mark in zip(shown["recipes"], marked, strict=True)
    ]
    values = shown["hypervolume"].tolist()
    data: dict[str, list[Any]] = {
        **{"recipes": [int(n) for n in shown["recipes"]], "spent": spent, "hypervolume": values},
        **{"low": ends[0], "high": ends[1], "marked": marked, "label": labels, "text": texts},
    }
    numbers = [value for column in (values, *ends) for value in column if value is not None]
    figure = figures.hypervolume(unit=unit, low=min(numbers), high=max(numbers), band=ends[0][-1] is not None)
    outside = share_outside(points, box)
    ends_of_cost = []
    for end in box.cost:
        size, unit = unit_of(name, end)
        ends_of_cost.append(f"{number(end / size)} {unit}")
    last = _share(values[-1], ends[0][-1], ends[1][-1])
    band = "band: 95 %, means redrawn. " if ends[0][-1] is not None else "one seed: no band. "
    note = (
        f"{last} at the end; {band}Spent: shared stages once. Box, fixed: error {100 * box.error[0]:.3g} to "
        f"{100 * box.error[1]:.3g} %, log10 of {' to '.join(ends_of_cost)}; reference: its worst corner. "
        f"Outside: {round(outside * len(points))} of {plural(len(points), 'recipe')} ({100 * outside:.0f} %)."
    )
    return data, figure, note


def _share(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else "")


def _mattered(summary: pd.DataFrame, costs: Sequence[Cost]) -> tuple[list[dict[str, Any]], dict[str, Any] | None, str]:
    """What mattered: rows of data, the figure, and the sentences under it."""
    names = {"error": "accuracy"} | {COSTS[cost.name]: cost.short for cost in costs}
    found = importance(summary, cost_columns=[COSTS[cost.name] for cost in costs])
    if not found:
        return [], None, "No searched factor varied between finished recipes, or nothing came of it."
    rows: list[dict[str, Any]] = [
        {
            "factor": one.factor,
            "objective": names[one.objective],
            "share": round(one.share, 6),
            "low": None if one.low is None else round(one.low, 6),
            "high": None if one.high is None else round(one.high, 6),
            "end": max(one.share, one.high or 0.0),
            "share_text": f"{one.share:.2f}",
            "text": f"{_share(one.share, one.low, one.high)} of the variance of {names[one.objective]}",
        }
        for one in found
    ]
    factors = list(dict.fromkeys(one.factor for one in found))
    shown = list(dict.fromkeys(names[one.objective] for one in found))
    figure = figures.importance(factors=factors, objectives=shown)
    one = found[0]
    how = "ANOVA of the full grid" if one.method == "ANOVA" else "fANOVA"
    drawn = f", {one.recipes} recipes drawn at random" if one.recipes < len(summary) else ""
    bars = "bars: 95 %, means redrawn" if any(row["low"] is not None for row in rows) else "no bars: one seed"
    note = f"Share of variance ({how}{drawn}), main effects; {bars}. Of the error, the rest is interplay and noise."
    return rows, figure, note
