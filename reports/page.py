"""What the report says: the numbers of a run as texts and rows for the page. No HTML here, and nothing is written."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reports import figures, paper, stages
from reports.front import COSTS, nondominated, objectives, summarise, winner
from reports.recipe_file import recipe_yaml
from reports.results import STATUSES
from reports.statistics import Gain, paired_gain, sampling_half_width
from reports.text import (
    NONE,
    TIMES,
    WEIGHTINGS,
    display,
    duration,
    known,
    number,
    percent,
    plural,
    points,
    settings,
    when,
)

_QUANTITIES: dict[
    str, tuple[str, str, dict[float, str]]
] = {  # field of the axis: what it is, its short name, steps of its unit
    "flops": ("training cost, {} per student", "FLOPs", {1e6: "MFLOP", 1e9: "GFLOP", 1e12: "TFLOP", 1e15: "PFLOP"}),
    "seconds": ("training time, device {} per student", "device time", {1: "s", 60: "min", 3600: "h"}),
    "params": ("student size, {}", "parameters", {1: "parameters", 1e3: "k parameters", 1e6: "M parameters"}),
    "latency": ("inference time, {}", "latency", {1: "ms"}),
}
_TABLES_ONLY = {"name", "lambda", "weighting", "anchor", "stages", "epochs", "seeds", "costs", "val"} | {
    *("test_mean", "test_bar", "shrink", "holds")
}
Row = Mapping[Any, Any]


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


def contents(
    results: pd.DataFrame,
    info: Mapping[str, Any],
    files: Mapping[str, str | None],
    by_stage: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Everything the template shows.

    info: run.json. files: names of the run folder's files, best.yaml's with its text. by_stage: as reports.stages reads
    it.

    Raises:
        ValueError: the config names no known cost, or one that wasn't measured.
    """
    config = info["config"]
    summary = summarise(results, *objectives(info))
    rows: Sequence[Row] = summary.to_dict("records")
    page: dict[str, Any] = {
        "title": f"{_get(info, 'teacher', 'name')} → {_get(info, 'student', 'name')}, {_get(info, 'dataset', 'name')}",
        "badges": _badges(results, info),
        "counts": _counts(rows, info),
        "failures": results[results["status"] == "failed"].to_dict("records"),
        "provenance": _provenance(results, info, rows, files),
        "best": None,
        "palette": figures.PALETTE,
        "font": figures.FONT,
    }
    if not rows:
        return page
    winner_id = winner(summary)
    best = next(row for row in rows if row["recipe_id"] == winner_id)
    base = next((row for row in rows if row["n_stages"] == 1 and row["recipe"] == "kd"), None)
    base = base or next((row for row in rows if row["n_stages"] == 1), None)
    baseline = f"1-stage {base['recipe']}" if base else ""
    costs = _costs(summary, str(config.get("cost", "flops")))
    gains = _gains(results, rows, base)
    low, high, teacher = _accuracy_ends(summary, info)
    yamls = _yamls(results, rows, config)
    if files.get("best.yaml") and info.get("winner") == best["recipe_id"]:
        yamls[best["recipe_id"]] = str(files["best.yaml"])
    entries = [_entry(row, costs, base, low, yamls[row["recipe_id"]]) for row in rows]
    tested = any(known(row["test_accuracy"]) for row in rows)
    panels = {"validation": teacher} | ({"test": None} if tested else {})  # the teacher isn't measured on test
    drawn: dict[str, Any] = {
        cost.name: {
            panel: figures.accuracy(panel=panel, axis=cost.axis, low=low, high=high, teacher=line)
            for panel, line in panels.items()
        }
        for cost in costs
    }
    if gains:
        ends = [0.0, *(gain.get(end, gain["gain"]) for gain in gains for end in ("low", "high"))]
        splits = [split for split in ("test", "validation") if any(gain["split"] == split for gain in gains)]
        rows_drawn = len({gain["id"] for gain in gains})
        drawn["gains"] = figures.gains(rows=rows_drawn, splits=splits, low=min(ends), high=max(ends), baseline=baseline)
    return page | {
        "best": next(entry for entry in entries if entry["id"] == best["recipe_id"]),
        "tiles": _tiles(best, base, rows, costs[0], gains),
        "costs": costs,
        "panels": list(panels),
        "notes": _notes(summary, info, teacher, sum(entry["validation_below"] for entry in entries), tested),
        "letters": [entry for entry in entries if entry["letter"]],
        "legend": [name for name in figures.SHAPES if any(entry["shape"] == name for entry in entries)],
        "stages": [stage for stage in figures.STAGES if any(entry["stage"] == stage for entry in entries)],
        "front": sorted((e for e in entries if e["letter"] or e["test_mean"]), key=lambda entry: not entry["letter"]),
        "tested": tested,
        "entries": entries,
        "gains": gains,
        "baseline": baseline,
        "budget": _budget_note(rows, base),
        "kept": [] if by_stage is None else stages.groups(by_stage, _labels(rows), best["recipe_id"]),
        "paper": [table for table in paper.tables([paper.Run(table=results, info=info)]) if table.judged],
        "data": {
            "recipes": [{key: value for key, value in entry.items() if key not in _TABLES_ONLY} for entry in entries],
            "lines": _lines(summary, costs, list(panels), low),
            "gains": gains,
            "figures": drawn,
            "cost": costs[0].name,
            "pinned": best["recipe_id"],
        },
    }


def _get(info: Mapping[str, Any], *path: str) -> Any:
    """A value of run.json, or `not recorded`."""
    value: Any = info
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return "not recorded" if value is None else value


def _anchored(row: Row) -> bool:
    return int(row["n_stages"]) > 1 and row["anchor"] != "none"


def _label(row: Row) -> str:
    return (f"{row['letter']} · " if row["letter"] else "") + _name(row)


def _labels(rows: Sequence[Row]) -> dict[str, str]:
    """Recipes by id, best on validation first: stages, and the anchor's settings in words."""
    ordered = sorted(rows, key=lambda row: -row["val_accuracy"])
    return {row["recipe_id"]: f"{_name(row)}, {settings(row)}" for row in ordered}


def _weight(row: Row) -> str:
    """How a recipe's anchor is weighed, and what the anchor is where it isn't the usual one."""
    weight = str(WEIGHTINGS.get(row["weighting"], row["weighting"]))
    return weight if row["anchor"] == "reference" else f"{weight}, {row['anchor']}"


def _name(row: Row) -> str:
    """The stages as shown, and how many teachers they had if that was more than one."""
    several = f" · {row['teachers']} teachers" if row["teachers"] > 1 else ""
    return display(row["recipe"]) + several


def _costs(summary: pd.DataFrame, chosen: str) -> list[Cost]:
    """The chosen cost, then the others that were measured for every recipe and tell recipes apart."""
    costs = []
    for name in (chosen, *(name for name in COSTS if name != chosen)):
        values = summary[COSTS[name]]
        if values.empty or values.isna().any() or (name != chosen and values.nunique() < 2):
            continue
        title, _, units = _QUANTITIES[name]
        scale = max((step for step in units if values.median() >= step), default=min(units))
        axis = figures.cost_axis(name, title.format(units[scale]), (values / scale).tolist())
        costs.append(Cost(name=name, scale=scale, unit=units[scale], axis=axis))
    return costs


def _accuracy_ends(summary: pd.DataFrame, info: Mapping[str, Any]) -> tuple[float, float, float | None]:
    """Ends of the accuracy axis in per cent, and the teacher's accuracy where it fits.

    All front members and confirmed recipes fit with their bars; a poor tail of the rest may lie below.
    """
    front = summary[summary["front"]]
    ends = []
    for sign in (-1, 1):
        ends += (100 * (front["val_accuracy"] + sign * front["val_half_width"].fillna(0))).tolist()
        ends += (100 * (summary["test_accuracy"] + sign * summary["test_half_width"].fillna(0))).dropna().tolist()
    low, high = min(ends), max(ends)
    values = 100 * summary["val_accuracy"]
    middle = float(values.median())
    low = min(low, max(float(values.min()), middle - 2 * (high - middle)))
    measured = _get(info, "teacher", "val_accuracy")
    teacher = 100 * measured if isinstance(measured, float) else math.inf
    if low < teacher <= high + 0.6 * max(high - low, 1):
        high = max(high, teacher)
    pad = 0.06 * (high - low) or 0.5
    return low - pad, high + pad, teacher if low < teacher <= high else None


def _entry(row: Row, costs: list[Cost], base: Row | None, low: float, yaml: str) -> dict[str, Any]:
    """One recipe as the page's tables, card and figures show it."""
    cost = costs[0]
    validation = f"{percent(row['val_accuracy'], row['val_half_width'])} % ({plural(row['seeds'], 'seed')})"
    is_base = base is not None and row["recipe_id"] == base["recipe_id"]
    entry: dict[str, Any] = {
        "id": row["recipe_id"],
        "letter": row["letter"],
        "name": _name(row),
        "label": _label(row),
        "settings": settings(row),
        "lambda": f"{row['lambda_base']:g}" if _anchored(row) else NONE,
        "weighting": _weight(row) if _anchored(row) else NONE,
        "anchor": row["anchor"] if int(row["n_stages"]) > 1 else NONE,
        "shape": row["weighting"] if _anchored(row) and row["weighting"] in figures.SHAPES else "none",
        "stages": row["n_stages"],
        "stage": figures.STAGES[min(row["n_stages"], len(figures.STAGES)) - 1],
        "epochs": row["total_epochs"],
        "seeds": row["seeds"],
        "baseline": "baseline" if is_base else "",
        "cost": number(cost.of(row)),
        "costs": [number(each.of(row)) for each in costs],
        "val": percent(row["val_accuracy"], row["val_half_width"]),
        "validation_text": validation,
        "test_text": NONE,
        "test_mean": "",
        "test_bar": "",
        "shrink": "",
        "holds": None,
        "yaml": yaml,
    }
    for each in costs:
        entry |= {each.name: each.of(row), f"{each.name}_text": each.text(row)}
    entry |= _drawn("validation", row["val_accuracy"], row["val_half_width"] if row["letter"] else None, low)
    if known(row["test_accuracy"]):
        entry |= _drawn("test", row["test_accuracy"], row["test_half_width"], low) | {
            "test_mean": percent(row["test_accuracy"]),
            "test_bar": percent(row["test_half_width"]) if known(row["test_half_width"]) else "",
            "test_text": f"{percent(row['test_accuracy'], row['test_half_width'])} % "
            f"({plural(row['confirm_seeds'], 'fresh seed')})",
            "shrink": points(Gain(row["val_accuracy"] - row["test_accuracy"], None, 0)),
            "holds": bool(row["holds"]),
        }
    tested = f" · test {entry['test_text']}" if entry["test_text"] != NONE else ""
    entry["detail"] = f"{entry['settings']} · {cost.text(row)} · validation {validation}{tested}"
    return entry


def _drawn(panel: str, mean: float, half_width: float | None, low: float) -> dict[str, Any]:
    value = 100 * mean
    out = {panel: value, f"{panel}_drawn": max(value, low), f"{panel}_below": value < low}
    if known(half_width):
        out |= {
            f"{panel}_low": value - 100 * float(half_width or 0),
            f"{panel}_high": value + 100 * float(half_width or 0),
        }
    return out


def _lines(summary: pd.DataFrame, costs: list[Cost], panels: list[str], low: float) -> list[dict[str, Any]]:
    """Corners of the front's step line, per cost axis and panel: up at its cheapest member, on to the right edge."""
    lines = []
    for cost in costs:
        for panel in panels:
            accuracy = "val_accuracy" if panel == "validation" else "test_accuracy"
            known = summary[summary[accuracy].notna()]
            on = known[nondominated(np.column_stack([1 - known[accuracy], known[COSTS[cost.name]]]))]
            rows = on.sort_values([COSTS[cost.name], accuracy]).to_dict("records")
            corners = [(cost.of(row), 100 * row[accuracy]) for row in rows]
            corners = [(corners[0][0], low), *corners, (cost.axis.high, corners[-1][1])]
            lines += [
                {"axis": cost.name, "panel": panel, "order": i, "cost": x, "accuracy": y}
                for i, (x, y) in enumerate(corners)
            ]
    return lines


def _by_seed(results: pd.DataFrame, phase: str, column: str) -> dict[str, dict[int, float]]:
    rows = results[(results["phase"] == phase) & (results["status"] == "complete") & results[column].notna()]
    out: dict[str, dict[int, float]] = {}
    for recipe_id, seed, value in zip(rows["recipe_id"], rows["seed"], rows[column], strict=True):
        out.setdefault(recipe_id, {})[seed] = value
    return out


def _gains(results: pd.DataFrame, rows: Sequence[Row], base: Row | None) -> list[dict[str, Any]]:
    """Gain of each front member over the baseline, paired by seed, on validation and, where both have it, on test."""
    if base is None:
        return []
    splits = {
        "test": _by_seed(results, "confirm", "test_accuracy"),
        "validation": _by_seed(results, "search", "val_accuracy"),
    }
    out = []
    for row, (split, values) in itertools.product(reversed(rows), splits.items()):
        of = row["recipe_id"]
        gain = paired_gain(values.get(of, {}), values.get(base["recipe_id"], {}))
        if gain is None or not row["letter"] or of == base["recipe_id"]:
            continue
        entry: dict[str, Any] = {
            "id": of,
            "letter": row["letter"],
            "name": _name(row),
            "label": _label(row),
        }
        entry |= {"split": split, "gain": 100 * gain.mean, "short": points(gain), "pairs": gain.pairs}
        entry |= {"text": f"{points(gain)} points on {split} ({plural(gain.pairs, 'seed')})", "verdict": "unclear"}
        if gain.half_width is not None:
            entry |= {"low": 100 * (gain.mean - gain.half_width), "high": 100 * (gain.mean + gain.half_width)}
            if abs(gain.mean) > gain.half_width:
                entry["verdict"] = "above" if gain.mean > 0 else "below"
        out.append(entry)
    return out


def _yamls(results: pd.DataFrame, rows: Sequence[Row], config: Mapping[str, Any]) -> dict[str, str]:
    """The YAML of each recipe, with its first search seed, so that training it again gives a number of the table."""
    seeds = results[results["phase"] == "search"].groupby("recipe_id")["seed"].min()
    return {row["recipe_id"]: recipe_yaml(row, config, int(seeds[row["recipe_id"]])) for row in rows}


def _badges(results: pd.DataFrame, info: Mapping[str, Any]) -> list[str]:
    failed = int((results["status"] == "failed").sum())
    badges = [] if info.get("finished") else ["unfinished"]
    badges += [f"{failed} failed"] if failed else []
    return badges + (["test opened again"] if _get(info, "confirm", "reopened") is True else [])


def _counts(rows: Sequence[Row], info: Mapping[str, Any]) -> str:
    """One sentence: how many recipes and seeds, how many confirmed, and when the test split was opened."""
    planned = info.get("recipes")
    count = plural(len(rows), "recipe")
    if isinstance(planned, int) and planned > len(rows):
        count = f"{len(rows):,} of {plural(planned, 'recipe')} complete"
    text = f"{count} {TIMES} {_seeds_text([row['seeds'] for row in rows], 'search seed')}" if rows else f"{count}"
    confirmed = [row for row in rows if known(row["test_accuracy"])]
    if not confirmed:
        return text + "; not confirmed on the test split."
    front = sum(bool(row["letter"]) for row in confirmed)
    others = f" and {plural(len(confirmed) - front, 'other recipe')}" if len(confirmed) > front else ""
    seeds = _seeds_text([row["confirm_seeds"] for row in confirmed], "fresh seed")
    opened = _get(info, "confirm", "opened")
    once = "opened more than once, last" if _get(info, "confirm", "reopened") is True else "opened once"
    members = plural(front, "front member")
    return f"{text}; {members}{others} confirmed with {seeds} on the test split, {once} ({when(opened)})."


def _seeds_text(counts: Iterable[int], noun: str) -> str:
    least, most = min(counts := [int(n) for n in counts]), max(counts)
    return plural(most, noun) if least == most else f"{least} to {plural(most, noun)}"


def _tiles(
    best: Row, base: Row | None, rows: Sequence[Row], cost: Cost, gains: list[dict[str, Any]]
) -> list[dict[str, str]]:
    tested = known(best["test_accuracy"])
    split, mean, width = (
        ("test", "test_accuracy", "test_half_width") if tested else ("validation", "val_accuracy", "val_half_width")
    )
    interval = known(best[width])
    gain = next((g for g in gains if g["id"] == best["recipe_id"] and g["split"] == split), None)
    remarks = [f"{gain['short']} points over 1-stage {base['recipe']}, same seeds" if gain and base else ""]
    remarks += [
        "" if interval else "one seed: no interval",
        "" if tested else "it was chosen on these images, which flatters",
    ]
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
    compared = ""
    if base is not None and base["recipe_id"] != best["recipe_id"] and cost.of(base) > 0:
        compared = f"{number(cost.of(best) / cost.of(base))} {TIMES} 1-stage {base['recipe']}; "
    return [
        {"label": "Best recipe, chosen on validation", "value": _label(best), "sub": settings(best)},
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
    summary: pd.DataFrame, info: Mapping[str, Any], teacher: float | None, below: int, tested: bool
) -> dict[str, str]:
    """The sentences around the two panels."""
    several = bool(summary["val_half_width"].notna().any())
    bars = (
        "Bars are 95 % t intervals with one standard deviation pooled over recipes."
        if several
        else ("One seed a recipe: no interval can be given, and differences may be chance.")
    )
    lead = (
        "Left is what the search saw, and it flatters its winners. Right is what holds: new seeds, test split."
        if tested
        else ("This is what the search saw, and it flatters its winners; nothing was confirmed on the test split yet.")
    )
    extra = []
    if summary["cost"].nunique() == 1 and len(summary) > 1:
        extra.append("All recipes cost the same, so the front is the most accurate one alone.")
    if below:
        extra.append(
            f"{plural(below, 'recipe')} below the axis (▾), down to {percent(summary['val_accuracy'].min())} %."
        )
    measured = _get(info, "teacher", "val_accuracy")
    if teacher is None and isinstance(measured, float):
        extra.append(f"The teacher, {percent(measured)} % on validation, is off the axis.")
    if summary["seeds"].nunique() > 1:
        extra.append("Recipes differ in how many seeds have finished.")
    seeds = _seeds_text(summary["seeds"], "seed")
    mean, front = ("one seed", "front") if summary["seeds"].max() == 1 else (f"mean of {seeds}", "front of the means")
    out = {"lead": f"{lead} {bars}", "extra": " ".join(extra)}
    out["validation"] = f"validation split, {mean}, {plural(len(summary), 'recipe')}; dashed: {front}"
    if tested:
        confirmed = summary[summary["confirm_seeds"].notna()]
        fresh = _seeds_text(confirmed["confirm_seeds"], "fresh seed")
        bar = "" if confirmed["test_half_width"].notna().any() else ", so no intervals"
        out["test"] = (
            f"test split, {'mean of ' if fresh != '1 fresh seed' else ''}{fresh}{bar}; front members and baselines"
        )
    return out


def _budget_note(rows: Sequence[Row], base: Row | None) -> str:
    """A warning where the baseline trained for fewer epochs than what is compared with it."""
    lengths = sorted({int(row["total_epochs"]) for row in rows if row["letter"]})
    if base is None or lengths == [int(base["total_epochs"])]:
        return ""
    front = ", ".join(map(str, lengths))
    return (
        f"The baseline trains for {plural(base['total_epochs'], 'epoch')}, the front for {front}: "
        "a gain may come from longer training as well as from the stages."
    )


def _provenance(
    results: pd.DataFrame, info: Mapping[str, Any], rows: Sequence[Row], files: Mapping[str, str | None]
) -> list[tuple[str, str]]:
    """How the numbers came to be, as terms and sentences."""
    data, teacher, student, confirm, machine = (
        info[key] for key in ("dataset", "teacher", "student", "confirm", "machine")
    )
    train, validation, test = (_whole(data.get(key)) for key in ("train", "validation", "test"))
    measured = percent(teacher.get("val_accuracy"))
    trained, whole = duration(results["spent_seconds"].sum()), duration(info.get("seconds"))
    shape = " x ".join(str(data.get(key, "?")) for key in ("height", "width", "channels"))
    seeds = sorted({int(seed) for seed in results.loc[results["phase"] == "search", "seed"]})
    fresh = ", ".join(map(str, confirm.get("seeds") or [])) or "none"
    opened = "Not opened."
    if confirm.get("opened"):
        once = "Opened once, after the front was frozen"
        again = "Opened more than once (reopen_test), so its numbers flatter; last"
        opened = f"{again if confirm.get('reopened') else once}: {when(confirm['opened'])}."
    tested = [float(row["test_accuracy"]) for row in rows if known(row["test_accuracy"])]
    if tested and isinstance(data.get("test"), int) and data["test"] > 0:
        error = 100 * sampling_half_width(max(tested), data["test"])
        opened += f" Beside the seeds' spread, the choice of images alone makes ±{error:.2f} points (95 %)."
    front, frozen = {row["recipe_id"] for row in rows if row["letter"]}, set(info.get("front") or [])
    moved = " The frozen front differs from the table's, which is shown here." if frozen and frozen != front else ""
    statuses = ", ".join(f"{int((results['status'] == name).sum())} {name}" for name in STATUSES)
    gpus = ", ".join(map(str, machine.get("gpus") or [])) or "no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in sorted((info.get("versions") or {}).items()))
    return [
        (
            "Data",
            f"{_get(data, 'name')}: {train} training, {validation} validation, {test} test images of {shape}, "
            f"{data.get('classes', '?')} classes; fingerprint {str(_get(data, 'fingerprint'))[:16]}.",
        ),
        ("Selection", f"On the validation split, carved from the training data, by the last epoch's accuracy.{moved}"),
        ("Test split", opened),
        ("Seeds", f"Search: {', '.join(map(str, seeds)) or 'none'}. Confirmation: {fresh}. Rows: {statuses}."),
        (
            "Intervals",
            "Means: 95 % t, with the standard deviation pooled over recipes. Gains: plain 95 % t of the differences "
            "seed by seed, not corrected for their number.",
        ),
        ("Cost", "Of a recipe on its own, as if no other had paid for its first stages; the mean over seeds."),
        (
            "Sharing",
            f"{_whole(info.get('stage_runs'))} stage runs trained, {_whole(info.get('stage_runs_unshared'))} without "
            f"sharing first stages; {trained} of training, {whole} in all.",
        ),
        (
            "Teacher",
            f"{_get(teacher, 'name')}, {_whole(teacher.get('params'))} parameters, {measured} % on validation; "
            f"{_get(teacher, 'source')}; digest {str(_get(teacher, 'digest'))[:16]}.",
        ),
        ("Student", f"{_get(student, 'name')}, {_whole(student.get('params'))} parameters."),
        ("Machine", f"{_get(machine, 'cpu')}, {machine.get('cores', '?')} cores, {gpus}."),
        ("Versions", versions or "not recorded"),
        ("Commit", str(_get(info, "commit"))[:12]),
        ("Finished", when(info["finished"]) if info.get("finished") else "not yet: this is what there is so far"),
        ("Files", ", ".join(sorted(files))),
    ]


def _whole(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "?"
