"""How the numbers of a run came to be, as terms and sentences for the page: facts of run.json, totals of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from reports.comparison import Detectable
from reports.load import Run, get
from reports.naming import Row, alike, own_code, settings_text
from reports.results import STATUSES, differing
from reports.statistics import sampling_half_width
from reports.text import NOT, accuracies, cost_text, duration, known, number, plural, when


def test_sampling(rows: Sequence[Row], info: Mapping[str, Any]) -> tuple[float, int] | None:
    """What the choice of test images alone does to the best accuracy: half of its 95 % interval in points; images."""
    tested = [float(row["test_accuracy"]) for row in rows if known(row["test_accuracy"])]
    images = get(info, "dataset", "test")
    if not tested or images is None or images < 1:
        return None
    return 100 * sampling_half_width(max(tested), images), images


def limits_text(limits: Mapping[str, float | None]) -> str:
    """The limits that were set, in words; "" if none was."""
    shown = {
        "params": lambda bound: plural(int(bound), "parameter"),
        "latency_ms": lambda bound: f"{number(bound)} ms of latency",
        "flops": lambda bound: cost_text("flops", bound),
    }
    return ", ".join(f"{shown[name](bound)} at most" for name, bound in limits.items() if bound is not None)


def provenance(
    run: Run, rows: Sequence[Row], files: Mapping[str, str | None], seen: Sequence[Detectable]
) -> list[tuple[str, str]]:
    """Terms and sentences, in order. rows: of the summary. files: names of the run folder's files."""
    results, info = run.table, run.info
    data, teacher, student, machine = (info[key] for key in ("dataset", "teacher", "student", "machine"))
    train, validation, test = (_whole(data.get(key)) for key in ("train", "validation", "test"))
    shape = " x ".join(str(data.get(key, "?")) for key in ("height", "width", "channels"))
    front, frozen = {row["recipe_id"] for row in rows if row["letter"]}, set(info.get("front") or [])
    moved = " The frozen front differs from the table's, which is shown here." if frozen and frozen != front else ""
    limits = limits_text(info.get("limits") or {})
    bounds = f" Recipes over a limit ({limits}) are on no front." if limits else ""
    gpus = ", ".join(map(str, machine.get("gpus") or [])) or "no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in sorted((info.get("versions") or {}).items()))
    own = [f"{file} {digest[:12]}" for file, _, digest in (stamp.partition("@") for stamp in own_code(info))]
    searched = {name: text for name, text in info["settings"].items() if name in differing(results)}
    return [
        *(("Warning", _sentence(warning)) for warning in teacher.get("warnings") or ()),
        (
            "Numbers",
            "Computed from results.parquet alone. Of run.json: settings, sizes of the splits, the teacher's accuracy, "
            "and what stands below.",
        ),
        ("Settings", f"The same for all recipes: {settings_text(alike(results, info))}. The others are at defaults."),
        *(
            [("Own code", f"{', '.join(own)}: SHA-256 of each file and what it imports from its folder.")]
            if own
            else []
        ),
        *([("Searched", "; ".join(f"{name}: {text}" for name, text in searched.items()))] if searched else []),
        (
            "Data",
            f"{data.get('name') or NOT}: {train} training, {validation} validation, {test} test images of {shape}, "
            f"{data.get('classes', '?')} classes; fingerprint {str(data.get('fingerprint') or NOT)[:16]}.",
        ),
        (
            "Selection",
            f"On the validation split, carved from the training data, by the last epoch's accuracy.{bounds}{moved}"
            f"{_warm_start(info)}",
        ),
        ("Test split", " ".join(filter(None, [_opened(rows, info), trained_on_more(info)]))),
        ("Seeds", _seeds(results, info)),
        (
            "Intervals",
            "Means: 95 % t, with the standard deviation pooled over recipes. Gains: plain 95 % t of the differences "
            "seed by seed; verdicts by Holm. P(front): how often a recipe is on the front when all means are redrawn "
            "with the pooled standard deviation, 2,000 times.",
        ),
        (
            "Power",
            f"Seen with 80 % power between two recipes: {'; '.join(map(str, seen)) or 'not known with one seed'}.",
        ),
        ("Cost", "Of a recipe on its own, as if no other had paid for its first stages; the mean over seeds."),
        ("Sharing", _sharing(results, info)),
        (
            "Teacher",
            f"{teacher.get('name') or NOT}, {_whole(teacher.get('params'))} parameters, "
            f"{accuracies(teacher)}; "
            f"{teacher.get('source') or NOT}; digest {str(teacher.get('digest') or NOT)[:16]}.",
        ),
        ("Student", f"{student.get('name') or NOT}, {_whole(student.get('params'))} parameters."),
        ("Machine", f"{machine.get('cpu') or NOT}, {machine.get('cores', '?')} cores, {gpus}."),
        ("Versions", versions or NOT),
        ("Commit", str(info.get("commit") or NOT)[:12]),
        ("Finished", when(info["finished"]) if info.get("finished") else "not yet: this is what there is so far"),
        ("Files", ", ".join(sorted(files))),
    ]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(("?", ".")) else ".")


def _opened(rows: Sequence[Row], info: Mapping[str, Any]) -> str:
    confirm = info["confirm"]
    if not confirm.get("opened"):
        return "Not opened."
    once = "Opened once, after the front was frozen"
    again = "Opened more than once (reopen_test), so its numbers flatter; last"
    text = f"{again if confirm.get('reopened') else once}: {when(confirm['opened'])}."
    sampling = test_sampling(rows, info)
    if sampling is None:
        return text
    return (
        f"{text} Beside the seeds' spread, the choice of {sampling[1]:,} images alone makes ±{sampling[0]:.2f} points."
    )


def trained_on_more(info: Mapping[str, Any]) -> str:
    """One sentence, where the confirmation trained on validation images, too; else "". info: of one pair."""
    if get(info, "confirm", "train_on") != "all" or get(info, "confirm", "opened") is None:
        return ""
    train, validation = (get(info, "dataset", split) for split in ("train", "validation"))
    images = f", {train + validation:,} of them" if isinstance(train, int) and isinstance(validation, int) else ""
    return (
        f"What was confirmed, and its teacher, was trained on training and validation images together{images}; the "
        "search, on training images alone."
    )


def _seeds(results: pd.DataFrame, info: Mapping[str, Any]) -> str:
    seeds = sorted({int(seed) for seed in results.loc[results["phase"] == "search", "seed"]})
    fresh = ", ".join(map(str, info["confirm"].get("seeds") or [])) or "none"
    statuses = ", ".join(f"{int((results['status'] == name).sum())} {name}" for name in STATUSES)
    return f"Search: {', '.join(map(str, seeds)) or 'none'}. Confirmation: {fresh}. Rows: {statuses}."


def _warm_start(info: Mapping[str, Any]) -> str:
    begun = info["config"].get("warm_start")
    runs = [begun] if isinstance(begun, str) else list(begun or [])
    return (
        f" The sampler began with what other runs had found (warm_start): {', '.join(map(str, runs))}." if runs else ""
    )


def _sharing(results: pd.DataFrame, info: Mapping[str, Any]) -> str:
    """What was spent, and what the same trainings would have cost each on its own."""
    complete = results[results["status"] == "complete"]
    spent, alone = results["spent_flops"].sum(), complete["train_flops"].sum()
    seconds, alone_seconds = results["spent_seconds"].sum(), complete["device_seconds"].sum()
    whole = duration(info.get("seconds"))
    return (
        f"{cost_text('flops', spent)} and {duration(seconds)} of training were spent, with first stages trained once; "
        f"each recipe on its own, {cost_text('flops', alone)} and {duration(alone_seconds)}. Start to end: {whole}."
    )


def _whole(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "?"
