"""Several pairs side by side: the best recipe of each and its gain, and the mean of the gains. No ranks.

Reads the table of results and run.json of the whole search only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from reports.front import NO_LIMITS, Limits, objectives, summarise, winner
from reports.gains import SPLITS
from reports.load import get
from reports.naming import Row, alike, named, settings_text
from reports.statistics import Gain, half_width, paired_gain, pooled_sd
from reports.text import MINUS, NONE, NOT, TIMES, duration, known, percent, plural, points, when

# In the column `pair` of the last row.
MEAN = "mean over pairs"
# recipe, baseline: as they are shown. epochs: of all stages together. gain: of the best recipe (chosen on validation)
# over the baseline, on `split`, with its 95 % t interval. differences: what the gain is a mean of, seeds or pairs.
COLUMNS = {
    **{"pair": "str", "recipe": "str", "recipe_id": "str", "epochs": "Int64"},
    **{"baseline": "str", "baseline_id": "str", "baseline_epochs": "Int64"},
    **{"seeds": "Int64", "val_accuracy": "float64", "val_half_width": "float64"},
    **{"confirm_seeds": "Int64", "test_accuracy": "float64", "test_half_width": "float64"},
    **{"split": "str", "gain": "float64", "gain_half_width": "float64", "differences": "Int64"},
}
# Of the forest, in units of its drawing.
_LEFT, _RIGHT, _ROW = 210.0, 700.0, 34.0


def table(
    results: pd.DataFrame, pairs: Sequence[str], costs: Sequence[str], limits: Limits = NO_LIMITS
) -> pd.DataFrame:
    """One row a pair, in the order given, and a last one with the mean of their gains; columns as in COLUMNS.

    The baseline is `ce`, the student alone, where it was searched, else the best recipe of one stage on validation. A
    gain is paired by seed, and plain t; of a best recipe that is the baseline itself it is 0, without an interval. All
    gains are on one split: on test if every pair has its gain there, else on validation, where the best recipe was
    chosen. The interval of the mean takes the pairs as the sample.

    Raises:
        ValueError: as summarise, which says what costs and limits are.
    """
    rows, gains = [], []
    for pair in pairs:
        own = results[results["pair"] == pair]
        summary = named(summarise(own, costs, limits), own)
        row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"pair": pair}
        found: dict[str, Gain] = {}
        chosen = winner(summary)
        if chosen is not None:
            by_id = summary.set_index("recipe_id", drop=False)
            best = by_id.loc[chosen]
            row |= {key: best[key] for key in COLUMNS.keys() & set(summary.columns)}
            row |= {"recipe": best["name"], "epochs": best["epochs_total"]}
            base = _baseline(summary)
            if base is not None:
                row |= {"baseline": by_id.loc[base, "name"], "baseline_id": base}
                row |= {"baseline_epochs": by_id.loc[base, "epochs_total"]}
                found = _gains(own, str(best["recipe_id"]), base)
        rows.append(row)
        gains.append(found)
    split = "test" if any(gains) and all("test" in found for found in gains if found) else "validation"
    means = []
    for row, found in zip(rows, gains, strict=True):
        if (gain := found.get(split)) is not None:
            means.append(gain.mean)
            row |= {"split": split, "gain": gain.mean, "gain_half_width": gain.half_width, "differences": gain.pairs}
    last: dict[str, Any] = dict.fromkeys(COLUMNS) | {"pair": MEAN, "differences": len(means)}
    if means:
        last |= {"split": split, "gain": math.fsum(means) / len(means)}
        if any(means):  # where every best recipe is the baseline, there is nothing to be sure of
            last["gain_half_width"] = half_width(pooled_sd([means]), len(means))
    return pd.DataFrame([*rows, last], columns=list(COLUMNS)).astype(COLUMNS)


def gain_text(row: Row) -> str:
    """The gain of a row of `table`, in words; "" if there is none."""
    if not known(row["gain"]):
        return ""
    if row["pair"] == MEAN:
        return f"{_points(row)} points on {row['split']} ({plural(int(row['differences']), 'pair')})"
    if row["recipe_id"] == row["baseline_id"]:
        return "it is the baseline itself"
    seeds = plural(int(row["differences"]), "seed")
    return f"{_points(row)} points over {row['baseline']} on {row['split']} ({seeds})"


def contents(results: pd.DataFrame, info: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the index page shows. info: run.json of the whole.

    Raises:
        ValueError: as `table`.
    """
    config, names = info["config"], info["experiment"]["pair"]
    costs, limits = objectives(info)
    rows: Sequence[Row] = table(results, names, costs, limits).to_dict("records")
    failed = int((results["status"] == "failed").sum())
    opened_again = any(get(info, "pairs", name, "confirm", "reopened") is True for name in names)
    badges = [] if info.get("finished") else ["unfinished"]
    badges += [f"{failed} failed"] if failed else []
    badges += ["test opened again"] if opened_again else []
    complete = results[results["status"] == "complete"]
    spent, alone = duration(results["spent_seconds"].sum()), duration(complete["device_seconds"].sum())
    return {
        "title": f"{plural(len(names), 'pair')}, {info['experiment'].get('data')}, {config.get('space')}",
        "badges": badges,
        "counts": f"{info.get('recipes')} recipes over {plural(len(names), 'pair')} {TIMES} {info.get('seeds')} search "
        f"seeds; {spent} of training spent, {alone} without sharing first stages.",
        "best": None,  # the page draws without Vega
        "pairs": [_pair(row, info) for row in rows[:-1]],
        "mean": {"name": MEAN, "gain": _points(rows[-1]), "differences": str(rows[-1]["differences"])},
        "longer": any(known(row["gain"]) and row["epochs"] > row["baseline_epochs"] for row in rows[:-1]),
        "split": rows[-1]["split"] if known(rows[-1]["split"]) else "",
        "forest": forest(rows),
        "names": names,
        "recipes": _recipes(results, names, costs),
        "provenance": _provenance(results, info),
    }


def forest(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Where the gains of the rows of `table` are drawn, in units of the drawing; None if there are none.

    An interval that goes far beyond the gains (of two pairs it is thirteen standard errors wide) is cut, and marked so.
    """
    drawn = [row for row in rows if known(row["gain"])]
    if not drawn:
        return None
    gains = [100 * row["gain"] for row in drawn]
    widths = [100 * row["gain_half_width"] if known(row["gain_half_width"]) else 0.0 for row in drawn]
    ends = [0.0, *gains]
    for row, gain, width in zip(drawn, gains, widths, strict=True):
        ends += [gain - width, gain + width] if row["pair"] != MEAN else []
    low, high = min(ends), max(ends)
    pad = 0.08 * (high - low) or 0.5
    low, high = low - pad, high + pad

    def x(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return float(round(_LEFT + share * (_RIGHT - _LEFT), 1))

    marks = []
    for index, (row, gain, width) in enumerate(zip(drawn, gains, widths, strict=True)):
        verdict = "unclear" if not width or abs(gain) <= width else "above" if gain > 0 else "below"
        marks.append(
            {
                "name": row["pair"],
                "mean": row["pair"] == MEAN,
                "y": _ROW * (index + 0.5),
                "x": x(gain),
                "low": x(gain - width),
                "high": x(gain + width),
                "cut_low": gain - width < low,
                "cut_high": gain + width > high,
                "verdict": verdict,
                "text": f"{row['pair']}: {gain_text(row)}",
            }
        )
    ticks = [
        {"x": x(value), "text": f"{value:+g}".replace("-", MINUS) if value else "0"} for value in _ticks(low, high)
    ]
    return {"rows": marks, "ticks": ticks, "zero": x(0.0), "bottom": _ROW * len(marks), "right": _RIGHT}


def _baseline(summary: pd.DataFrame) -> str | None:
    alone = summary[summary["methods"] == "ce"]
    # a limit is no bar to being compared with
    return winner((alone if len(alone) else summary[summary["n_stages"] == 1]).assign(feasible=True))


def _gains(results: pd.DataFrame, best: str, base: str) -> dict[str, Gain]:
    found = {}
    for split, (phase, column) in SPLITS.items():
        rows = results[(results["phase"] == phase) & (results["status"] == "complete") & results[column].notna()]
        ours, theirs = (
            dict(zip(own["seed"], own[column], strict=True))
            for own in (rows[rows["recipe_id"] == best], rows[rows["recipe_id"] == base])
        )
        gain = paired_gain(ours, theirs)
        if gain is not None:
            found[split] = Gain(0.0, None, gain.pairs) if best == base else gain
    return found


def _points(row: Row) -> str:
    if not known(row["gain"]):
        return NONE
    half = float(row["gain_half_width"]) if known(row["gain_half_width"]) else None
    return points(Gain(float(row["gain"]), half, 0))


def _pair(row: Row, info: Mapping[str, Any]) -> dict[str, str]:
    """One pair as the page's table shows it."""
    name = row["pair"]
    networks = [get(info, "pairs", name, part, "name") for part in ("teacher", "student")]
    return {
        "name": name,
        "networks": " → ".join(map(str, networks)) if all(networks) else "",
        "teacher": percent(get(info, "pairs", name, "teacher", "val_accuracy")),
        "recipe": row["recipe"] if known(row["recipe"]) else "nothing finished",
        "val": percent(row["val_accuracy"], row["val_half_width"]),
        "test": percent(row["test_accuracy"], row["test_half_width"]),
        "baseline": row["baseline"] if known(row["baseline"]) else NONE,
        "gain": _points(row),
        "differences": str(row["differences"]) if known(row["differences"]) else NONE,
    }


def _recipes(results: pd.DataFrame, pairs: Sequence[str], costs: Sequence[str]) -> list[dict[str, Any]]:
    """Recipes that finished for all pairs, shortest first: accuracy for each pair, and the mean over pairs."""
    parts = [results[results["pair"] == pair] for pair in pairs]
    summaries = [named(summarise(part, costs), results) for part in parts]
    finished: list[dict[str, Row]] = [{row["recipe_id"]: row for row in s.to_dict("records")} for s in summaries]
    rows = sorted(finished[0].values(), key=lambda row: (row["n_stages"], row["recipe"], row["recipe_id"]))
    out = []
    for row in rows:
        if not all(row["recipe_id"] in of_pair for of_pair in finished):
            continue
        val = [float(of_pair[row["recipe_id"]]["val_accuracy"]) for of_pair in finished]
        test = [float(of_pair[row["recipe_id"]]["test_accuracy"]) for of_pair in finished]
        out.append(
            {
                "name": row["name"],
                "anchoring": row["anchoring"],
                "each": [percent(value) for value in val],
                "val": percent(math.fsum(val) / len(val)),
                "test": percent(math.fsum(test) / len(test)),  # NaN, a dash, where a pair hasn't confirmed it
            }
        )
    return out


def _provenance(results: pd.DataFrame, info: Mapping[str, Any]) -> list[tuple[str, str]]:
    machine = info["machine"]
    same = {name: value for name, value in alike(results, info).items() if name != "pair"}
    versions = info.get("versions") or {}
    return [
        ("Best recipe", "Of each pair by itself: the highest mean accuracy on validation."),
        (
            "Gain",
            "Best recipe minus baseline, seed by seed, plain 95 % t. The baseline is ce, the student alone, where it "
            "was searched, else the best recipe of one stage on validation. Where that is the best recipe: 0.",
        ),
        (
            "Mean",
            "Of the pairs' gains, each counting once; its 95 % t interval takes the pairs as the sample, so with two "
            "or three of them it is wide. Pairs are few and were chosen by hand: it speaks for such pairs only.",
        ),
        ("Settings", f"The same for all pairs and recipes: {settings_text(same) or 'none'}; beside them, defaults."),
        ("Details", "Data, seeds, costs and the opening of the test split stand in each pair's own report."),
        ("Machine", f"{machine.get('cpu')}, {machine.get('cores')} cores; {duration(info.get('seconds'))} in all."),
        ("Versions", ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) or NOT),
        ("Commit", str(info.get("commit") or NOT)[:12]),
        ("Finished", when(info["finished"]) if info.get("finished") else "not yet: this is what there is so far"),
    ]


def _ticks(low: float, high: float) -> list[float]:
    """At most seven round values from low to high."""
    rough = (high - low) / 6
    size = 10.0 ** math.floor(math.log10(rough))
    step = size * next(factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    return [float(f"{k * step:.6g}") for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
