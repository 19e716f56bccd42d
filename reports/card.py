"""MODEL_CARD.md: what the best student is, how it was chosen, what its numbers don't say; from a run's files alone.

The sections are those of Mitchell et al. 2019 (arXiv 1810.03993), the block on top is what model hubs read. What isn't
known is left out: there is no licence, since that depends on the data, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from reports.front import COSTS, objectives, summarise, winner
from reports.gains import baseline, gains
from reports.load import Run, get
from reports.naming import alike, code_words, display, named, own_code, settings_text
from reports.provenance import trained_on_more
from reports.results import read_json, write_atomically
from reports.statistics import pooled_sd, sampling_half_width
from reports.tables import Grid, markdown_grid, markdown_text
from reports.text import NONE, NOT, accuracies, cost_text, duration, known, number, percent, plural, points, span, when

NAME = "MODEL_CARD.md"
_FILES = {
    "student.safetensors": "the weights",
    "student.json": "what it takes to load them",
    "best.yaml": "the recipe; `python -m smskd.train recipe=best.yaml` trains it again",
    "student.pt2": "the same student by `torch.export`: raw pixels in, logits out",
    "student.onnx": "the same as ONNX: `images` (raw pixels, float32, any batch size) in, `logits` out",
}
_LOAD = """import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from smskd import models

run = Path(".")  # the folder of this card
told = json.loads((run / "student.json").read_text())
image = told["channels"], told["height"], told["width"]
{use}network = models.build(told["network"], num_classes=told["classes"], image=image)
network.load_state_dict(load_file(run / "student.safetensors"))
network.eval()

mean, std = (torch.tensor(told[name]).view(-1, 1, 1) for name in ("mean", "std"))
images = torch.zeros(1, told["channels"], told["height"], told["width"])  # pixels, as the data set has them
with torch.inference_mode():
    logits = network((images - mean) / std).logits
print(logits.argmax(dim=1))
"""


def card(run: Run, student: Mapping[str, Any] | None, files: Mapping[str, str | None]) -> str | None:
    """The card of a run's winner as Markdown, every text escaped; None where no recipe has finished.

    Args:
        run: its table and run.json.
        student: student.json; None if there is none.
        files: names of the run folder's files, best.yaml's with its text.

    Raises:
        ValueError: as reports.front.summarise.
    """
    results, info = run.table, run.info
    summary = named(summarise(results, *objectives(info)), results)
    best = winner(summary)
    if best is None:
        return None
    row = _by_id(summary)[best]
    name = _get(info, "student", "name")
    parts = [
        _front_matter(info, row),
        f"# {_md(name)}, distilled on {_md(_get(info, 'dataset', 'name'))}",
        f"A classifier of images: {_md(name)} ({_count(info, 'student', 'params')} parameters), distilled from "
        f"{_md(_get(info, 'teacher', 'name'))} ({_count(info, 'teacher', 'params')} parameters) by the recipe "
        f"{_md(display(row['methods']))}, the best on validation of {plural(len(summary), 'recipe')}."
        + ("" if info.get("finished") else " **The search hasn't finished: this card is of what it had.**"),
        *_details(info, row, student, files),
        *_use(info, student),
        *_training(results, info, row, files),
        *_evaluation(results, info, summary, row, student),
        *_chosen(results, info, summary, row),
        *_limitations(info, row),
        *_provenance(info, student),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(info: Mapping[str, Any], row: Any) -> str:
    """The YAML block that model hubs read, with what is known alone."""
    split = "test" if known(row["test_accuracy"]) else "validation"
    seeds = int(row["confirm_seeds"] if split == "test" else row["seeds"])
    data = str(_get(info, "dataset", "name"))
    metric = {
        "type": "accuracy",
        "value": round(float(row["test_accuracy" if split == "test" else "val_accuracy"]), 6),
        "name": f"accuracy on {split}, mean of {plural(seeds, 'training')} by this recipe",
    }
    block = {
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "knowledge-distillation", "smskd"],
        "model-index": [
            {
                "name": f"{_get(info, 'student', 'name')} ({row['recipe']})",
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": data, "type": data, "split": split},
                        "metrics": [metric],
                    }
                ],
            }
        ],
    }
    return f"---\n{yaml.safe_dump(block, sort_keys=False, allow_unicode=True, width=10_000).strip()}\n---"


def _details(
    info: Mapping[str, Any], row: Any, student: Mapping[str, Any] | None, files: Mapping[str, str | None]
) -> list[str]:
    lines = [
        f"- student: {_md(_get(info, 'student', 'name'))}, {_count(info, 'student', 'params')} parameters",
        f"- teacher: {_md(_get(info, 'teacher', 'name'))}, {_count(info, 'teacher', 'params')} parameters, "
        f"{_md(_get(info, 'teacher', 'source'))}, {accuracies(info['teacher'])}",
        *(f"- warning: {_md(warning)}" for warning in get(info, "teacher", "warnings") or ()),
        f"- images: {_md(_shape(info))}",
        f"- method: sequential multi-stage knowledge distillation (arXiv 2601.15657), {_md(row['anchoring'])}",
        "- licence: none is stated here; the program's is MIT, the weights also depend on the data's terms",
    ]
    if student is None:
        lines.append("- weights: none are in this folder, since the store of stages doesn't hold them any more")
    else:
        seed, accuracy = student.get("seed", NOT), percent(student.get("val_accuracy"))
        lines.append(
            f"- weights: of the training with seed {_md(str(seed))}, the best of this recipe's on validation "
            f"({accuracy} %): that number flatters"
        )
    held = [f"- `{name}`: {what}" for name, what in _FILES.items() if name in files]
    return ["## Model details", "\n".join(lines), *(["Files:", "\n".join(held)] if held else [])]


def _use(info: Mapping[str, Any], student: Mapping[str, Any] | None) -> list[str]:
    parts = [
        "## Intended use",
        "Research on distillation: the best recipe of one search, for comparison with others and for use on images of "
        f"the kind of {_md(_get(info, 'dataset', 'name'))}. Nothing was measured on other images, on changes of light, "
        "noise or subject, or by groups of people.",
    ]
    if student is None or not {"mean", "std"} <= student.keys():
        return parts
    return [
        *parts,
        "## How to use it",
        "In a checkout of this program:",
        _fenced(_LOAD.format(use=_uses(info)), "python"),
        "Pixels go in as the data set has them ("
        + ("0 to 255" if student.get("pixels") == "uint8" else "floating point")
        + "); mean and standard deviation of each channel, in these units, are in `student.json`. "
        f"`python -m search.export run=FOLDER{_code(code_words(info))}` writes `student.pt2` (torch.export) and "
        "`student.onnx`, which normalise by themselves.",
    ]


def _uses(info: Mapping[str, Any]) -> str:
    """Python that lets the files run that a student's network is of."""
    file = str(_get(info, "student", "name")).partition(":")[0]
    own = [stamp.partition("@")[0] for stamp in own_code(info)]
    return f"from smskd import code\n\ncode.use({file!r})  # where you have it\n" if file in own else ""


def _training(results: pd.DataFrame, info: Mapping[str, Any], row: Any, files: Mapping[str, str | None]) -> list[str]:
    data = info["dataset"]
    text = files.get("best.yaml")
    parts = [
        "## Training data",
        f"{_md(_get(info, 'dataset', 'name'))}: {_count(info, 'dataset', 'train')} training, "
        f"{_count(info, 'dataset', 'validation')} validation and {_count(info, 'dataset', 'test')} test images of "
        f"{_md(str(data.get('classes', NOT)))} classes. Validation is carved from the training part, stratified, "
        f"always in the same way; fingerprint `{_code(data.get('fingerprint', NOT))}`.",
        "## Training procedure",
        f"{plural(int(row['n_stages']), 'stage')}, {plural(int(row['epochs_total']), 'epoch')} in all: "
        f"{_md('; '.join(filter(None, (display(row['methods']), row['anchoring'], row['settings']))))}. "
        f"All recipes of the run have: {_md(settings_text(alike(results, info)))}; what isn't told is at its default. "
        "Accuracy is the last epoch's, never the best one's.",
    ]
    if text:
        parts.append(_fenced(text, "yaml"))
    spent = results[["spent_flops", "spent_seconds"]].sum()
    measured = [cost_text(cost, row[COSTS[cost]]) for cost in COSTS if known(row[COSTS[cost]])]
    return [
        *parts,
        f"Cost of one such training, as if no stage were shared: {_md(', '.join(measured))}. All trainings of this "
        f"run, each stage counted once: {_md(cost_text('flops', spent['spent_flops']))}, "
        f"{_md(duration(spent['spent_seconds']))} on the device, the teacher's own training left out.",
    ]


def _evaluation(
    results: pd.DataFrame, info: Mapping[str, Any], summary: pd.DataFrame, row: Any, student: Mapping[str, Any] | None
) -> list[str]:
    validation = ("validation", percent(row["val_accuracy"], row["val_half_width"]), str(row["seeds"]))
    rows = [(*validation, "the recipe was chosen by it")]
    tested = known(row["test_accuracy"])
    if tested:
        test = ("test", percent(row["test_accuracy"], row["test_half_width"]), str(row["confirm_seeds"]))
        rows.append((*test, "fresh seeds, after the choice"))
    best = results[(results["recipe_id"] == row["recipe_id"]) & results["test_best_accuracy"].notna()]
    if len(best):
        mean = best["test_best_accuracy"].mean()
        rows.append(("test, best epoch", percent(mean), str(len(best)), "the paper's protocol; flatters"))
    table = Grid(header=("split", "accuracy, %", "seeds", "what it is"), align="lrrl", rows=tuple(rows))
    notes = [
        "Accuracies are means over trainings by this recipe, not of the one in this folder, with a 95 % t interval."
    ]
    if not known(row["val_half_width"]):
        notes.append("The search had one seed a recipe, so that there is no interval on validation.")
    if tested and not known(row["test_half_width"]):
        notes.append("There was one fresh seed, so that there is no interval on test.")
    images = get(info, "dataset", "test")
    if tested and images:
        half = 100 * sampling_half_width(float(row["test_accuracy"]), int(images))
        notes.append(
            f"Another test split of {int(images):,} images would move the test accuracy by ± {half:.2f} points "
            "(95 %), beside the seeds' spread."
        )
    confirm = info["confirm"]
    if not tested:
        notes.append("**The test split was not opened: the accuracy on validation flatters its winner.**")
    elif confirm.get("reopened") is True:
        notes.append(
            f"**The test split was opened more than once**, last on {_md(when(confirm.get('opened')))}, for a front "
            "that had changed: the test has become a part of the choice."
        )
    else:
        notes.append(f"The test split was opened once, on {_md(when(confirm.get('opened')))}, for the frozen front.")
    if more := trained_on_more(info):
        notes.append(f"{more} The weights here are of the search.")
    out = ["## Evaluation", markdown_grid(table), " ".join(notes)]
    over = {one.split: one for one in gains(results, summary) if one.recipe_id == row["recipe_id"]}
    base = baseline(summary)
    one = over.get("test") or over.get("validation")
    if one is not None and base is not None:
        by_id = _by_id(summary)
        p = "" if one.adjusted is None else f", Holm's p {one.adjusted:.3f}"
        longer = int(row["epochs_total"]) - int(by_id[base]["epochs_total"])
        more = f" It was trained for {plural(longer, 'epoch')} more." if longer > 0 else ""
        out.append(
            f"Gain over {_md(by_id[base]['name'])} on {one.split}: {_md(points(one.gain))} points "
            f"({plural(one.gain.pairs, 'seed')} in pairs{p}): {one.verdict}.{more}"
        )
    return out


def _chosen(results: pd.DataFrame, info: Mapping[str, Any], summary: pd.DataFrame, row: Any) -> list[str]:
    config = info["config"]
    failed = int((results["status"] == "failed").sum())
    pruned = int((results["status"] == "pruned").sum())
    allowed = int(summary["feasible"].sum())
    text = (
        f"By the highest mean accuracy on validation, of {plural(allowed, 'candidate')}, each trained with "
        f"{span(summary['seeds'], 'seed')}: the space `{_code(config.get('space', NOT))}`, sampler "
        f"`{_code(info.get('sampler') or config.get('sampler') or NOT)}`."
    )
    if allowed < len(summary):
        text += f" {plural(len(summary) - allowed, 'other recipe')} broke a limit of the run."
    for count, what in ((failed, "failed"), (pruned, "given up or not begun")):
        text += f" Trainings {what}: {count}." if count else ""
    spread = pooled_sd(
        values.tolist()
        for _, values in results[(results["phase"] == "search") & results["val_accuracy"].notna()].groupby("recipe_id")[
            "val_accuracy"
        ]
    )
    if spread.sd is not None:
        text += (
            f" Trainings of one recipe differ by a standard deviation of {100 * spread.sd:.2f} points on validation."
        )
    front = int(summary["front"].sum())
    member = f" and is {row['letter']} of {plural(front, 'member')} of the front" if row["letter"] else ""
    return [
        "## How it was chosen",
        f"{text} The winner costs {_md(cost_text(objectives(info)[0][0], row['cost']))}{member}.",
    ]


def _limitations(info: Mapping[str, Any], row: Any) -> list[str]:
    tested = known(row["test_accuracy"])
    lines = [
        "- The weights here are one training; the accuracies above are of its recipe.",
        "- Chosen on one validation split: the best of several candidates looks better there than it is.",
        "- One data set, one teacher, and the schedule of one pair: whether the recipe is best elsewhere is not known.",
        "- Seeds vary initial weights and the order of images; the data and the teacher are the same in all trainings.",
    ]
    if not tested:
        lines.insert(1, "- It was not confirmed: no number above is free of the choice.")
    elif info["confirm"].get("reopened") is True:
        lines.insert(1, "- The test split was looked at again, so that its numbers are not free of the choice.")
    return ["## Limitations", "\n".join(lines)]


def _provenance(info: Mapping[str, Any], student: Mapping[str, Any] | None) -> list[str]:
    machine = info["machine"]
    listed = ", ".join(f"{name} {version}" for name, version in (info.get("versions") or {}).items())
    lines = [
        f"- program: commit `{_code(info.get('commit') or NOT)}` (a plus: with changes)",
        f"- versions: {_md(listed or NOT)}",
        f"- machine: {_md(machine.get('cpu', NOT))}, {_md(machine.get('cores', NOT))} cores, "
        f"GPUs: {_md(', '.join(map(str, machine.get('gpus') or [])) or 'none')}",
        f"- teacher's digest: `{_code(info['teacher'].get('digest', NOT))}`",
        f"- finished: {_md(when(info['finished']) if info.get('finished') else 'not yet')}",
    ]
    if student is not None:
        lines.insert(1, f"- stage in the store: `{_code(student.get('key', NOT))}`")
    return ["## Provenance", "\n".join(lines)]


def _by_id(summary: pd.DataFrame) -> dict[str, dict[Any, Any]]:
    return {str(row["recipe_id"]): row for row in summary.to_dict("records")}


def _get(info: Mapping[str, Any], part: str, key: str) -> str:
    return str(info[part].get(key) or NOT)


def _count(info: Mapping[str, Any], part: str, key: str) -> str:
    value = get(info, part, key)
    return NONE if value is None else f"{int(value):,}" if value < 1e6 else f"{number(value / 1e6)} M"


def _shape(info: Mapping[str, Any]) -> str:
    data = info["dataset"]
    shape = [data.get(name) for name in ("channels", "height", "width")]
    return NOT if None in shape else f"{shape[0]} x {shape[1]} x {shape[2]} (channels, height, width)"


def _md(text: object) -> str:
    return markdown_text(str(text))


def _code(text: object) -> str:
    """A text between single backticks, of which it has none."""
    return re.sub(r"[`\s\x00-\x1f\x7f]+", " ", str(text)).strip() or NOT


def _fenced(text: str, language: str) -> str:
    """A block of code that its text can't end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def write(folder: Path, run: Run) -> None:
    """Write the card into the run's folder, whole or not at all; where nothing has finished there is none.

    Raises:
        ValueError: student.json is damaged.
    """
    files: dict[str, str | None] = {path.name: None for path in folder.iterdir() if path.is_file()}
    student = None
    if "best.yaml" in files:
        files["best.yaml"] = (folder / "best.yaml").read_text(encoding="utf-8", errors="replace")
    if {"student.json", "student.safetensors"} <= files.keys():
        try:
            student = read_json(folder / "student.json")
        except ValueError as error:
            raise ValueError(
                f"{folder / 'student.json'} is damaged ({error}); run the same search command again: it writes it anew"
            ) from None
    text = card(run, student if isinstance(student, Mapping) else None, files)
    if text is None:
        (folder / NAME).unlink(missing_ok=True)
    else:
        write_atomically(folder / NAME, text.encode("utf-8", errors="replace"))
