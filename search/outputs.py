"""The files of a run, written from the study and the store. No torch, no Ray."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from reports import front, results
from reports.naming import recipe_yaml
from search import export, storages
from search.config import Config, cores, cpu
from smskd.notation import parse
from smskd.recipe import Recipe, columns
from smskd.result import COMPLETE, FAILED, Result, StageResult
from smskd.settings import Value, text_of
from smskd.store import open_store

Settled = Mapping[str, tuple[Recipe, list[Result]]]
# of the data set, what it takes to give the student an image and to understand its answer
_OF_IMAGES = ("classes", "class_names", "channels", "height", "width", "mean", "std", "pixels")
_PACKAGES = ("torch", "torchvision", "ray", "optuna", "pandas")
_ERRORS = "errors"  # the folder of tracebacks


def rows(config: Config, bench: Mapping[str, Any], search: Settled, confirm: Settled) -> list[dict[str, Any]]:
    """One row per recipe, seed and phase.

    search: in the order in which recipes were finished. A stage is paid for by the row of the earliest position that
    has it: the sums of spent_flops and spent_seconds are what all stages cost, each once.
    """
    paid: set[str] = set()
    table: list[dict[str, Any]] = []
    in_search = [(recipe, record) for recipe, records in search.values() for record in records]
    settings = _setting_columns(config, [*search.values(), *confirm.values()])
    for phase, ended in (("search", in_search), ("confirm", _ordered(confirm))):
        for recipe, record in ended:
            done = record.status == COMPLETE
            new = {stage.key: stage for stage in record.stages if stage.key not in paid}
            paid.update(new)
            table.append(
                {
                    **_naming(config, recipe, record, phase),
                    "position": len(table),
                    "status": record.status,
                    "error": record.error,
                    "val_accuracy": record.val_accuracy if done and not _seen(config, phase) else None,
                    "test_accuracy": record.test_accuracy,
                    "test_best_accuracy": record.test_best_accuracy if config.protocol == "paper" else None,
                    "train_flops": record.train_flops if done else None,
                    "device_seconds": record.device_seconds if done else None,
                    "spent_flops": sum(stage.train_flops for stage in new.values()),
                    "spent_seconds": sum(stage.device_seconds for stage in new.values()),
                    "params": bench["student"]["params"],
                    "latency_ms": bench["latency_ms"],
                    "epochs_total": sum(config.epochs(recipe)),
                    "n_stages": len(recipe.stages),
                    **{name: recipe.anchoring.get(name) for name in _ANCHORING},
                    "teachers": recipe.teachers,
                    "extra_teacher_flops": record.extra_teacher_flops if done else None,
                    **settings[recipe.id],
                }
            )
    return table


def _seen(config: Config, phase: str) -> bool:
    """Whether a phase trains on the validation images, so that what is measured there says nothing."""
    return config.experiment_of(phase).train_on == "all"


_NO_COLUMNS = ("pair", "data", "code")  # of the experiment: with names of their own, or the same for all rows
_ANCHORING = ("anchor", "weighting", "lambda_base", "anchor_temperature")


def _naming(config: Config, recipe: Recipe, record: Result, phase: str) -> dict[str, Any]:
    """What tells which training a row is of."""
    return {
        **{"recipe": str(recipe), "recipe_id": recipe.id, "methods": recipe.path},
        **{"pair": config.pair, "data": config.experiment.data, "seed": record.seed, "phase": phase},
    }


def _setting_columns(config: Config, every: Iterable[tuple[Recipe, list[Result]]]) -> dict[str, dict[str, Value]]:
    """Recipe id -> the columns of its settings, and the experiment's; those that are default everywhere have none."""
    recipes = {recipe.id: recipe for recipe, _ in every}
    own = columns(recipes.values(), config.experiment.defaults)
    fixed = {key: value for key, value in config.experiment.to_dict().items() if key not in _NO_COLUMNS}
    return {
        of: {key: text_of(v) if isinstance(v, list | tuple) else v for key, v in {**fixed, **found}.items()}
        for of, found in zip(recipes, own, strict=True)
    }


def stage_rows(config: Config, search: Settled, confirm: Settled) -> list[dict[str, Any]]:
    """One row per stage of each finished training: what it kept of the teacher and of the stages before it."""
    table = []
    for phase, settled in (("search", search), ("confirm", confirm)):
        for recipe, record in _ordered(settled):
            if record.status != COMPLETE:
                continue
            for number, (stage, told) in enumerate(zip(recipe.stages, record.stages, strict=True), 1):
                spread = {f"lambda_{name}": value for name, value in told.anchor_weights.items()}
                if spread and recipe.weighting != "fixed":  # lambda = (1 - TCP) * lambda_base, so quantiles swap ends
                    for name, value in told.anchor_weights.items():
                        mirrored = f"q{100 - int(name[1:]):02d}" if name.startswith("q") else name
                        spread[f"tcp_{mirrored}"] = 1 - value / recipe.lambda_base
                table.append(
                    {
                        **_naming(config, recipe, record, phase),
                        **{name: recipe.anchoring.get(name) for name in ("anchor", "weighting")},
                        "stage": number,
                        "stage_methods": stage.path,
                        **({} if _seen(config, phase) else _on_validation(told)),
                        **spread,
                    }
                )
    return table


def _on_validation(told: StageResult) -> dict[str, float | None]:
    return {
        "val_accuracy": told.val_accuracy,
        "agreement_teacher": told.agreement_teacher,
        "agreement_previous": told.agreement_previous,
        **{f"loss_of_stage_{k}": loss for k, loss in enumerate(told.stage_losses, 1)},
    }


def summary(config: Config, bench: Mapping[str, Any], search: Settled) -> pd.DataFrame:
    """One row per finished recipe, on validation alone, with the front marked; empty if there is none."""
    found = rows(config, bench, search, {})
    names = dict.fromkeys([*results.COLUMNS, *(name for row in found for name in row)])
    table = pd.DataFrame(found, columns=list(names)).astype({"test_accuracy": "float64", "val_accuracy": "float64"})
    return front.summarise(table, config.cost, config.limits)


def write(
    config: Config, bench: Mapping[str, Any], search: Settled, confirm: Settled, facts: Mapping[str, Any]
) -> pd.DataFrame:
    """Write all files of the run, and return the summary. `facts` go into run.json as they are."""
    from reports import build, load  # draws figures, which takes long to import; here a search has long begun

    folder = config.folder
    results.write(rows(config, bench, search, confirm), folder)
    by_stage = pd.DataFrame(stage_rows(config, search, confirm))
    results.write_atomically(folder / "stages.csv", by_stage.to_csv(index=False, lineterminator="\n").encode())
    table = front.summarise(results.read(folder), config.cost, config.limits)
    front.write_front(table, folder / "front.csv")
    winner = front.winner(table)
    made = config.experiment.to_dict()
    if winner is not None:
        recipe, records = search[winner]
        best = max(records, key=lambda record: record.val_accuracy)
        results.write_atomically(folder / "best.yaml", recipe_yaml(str(recipe), made, best.seed).encode())
        _write_student(config, bench, best)
    every = [record for settled in (search, confirm) for _, records in settled.values() for record in records]
    _write_tracebacks(folder / _ERRORS, every)
    run = {
        "schema": load.SCHEMA,
        "config": config.to_dict()
        | {
            "cost": config.cost[0],  # all of them are in `objectives`
            "storage": config.storage and storages.hidden(config.storage),
            "warm_start": config.warm_start and [storages.hidden(name) for name in config.warm_start],
        },
        "experiment": made,
        "settings": config.told,
        "objectives": ["error", *config.cost],
        "limits": config.limits,
        "recipes": len(search),
        "seeds": config.seeds,
        "failed": sum(record.status == FAILED for record in every),
        **{key: bench[key] for key in ("teacher", "student", "dataset", "environment")},
        "front": table.loc[table["front"], "recipe_id"].tolist(),
        "winner": winner,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "machine": {
            "cpu": cpu(),
            "cores": cores(),
            "gpus": [bench["environment"]["device"]] if "cuda" in bench["environment"] else [],
        },
        "commit": _commit(),
        **facts,
    }
    results.write_atomically(folder / "run.json", json.dumps(run, indent=1, allow_nan=False).encode())
    build.build(folder)
    return table


def _write_tracebacks(folder: Path, records: Iterable[Result]) -> None:
    """A file a recipe and seed that failed by a mistake in the code, for whoever made it."""
    kept = {f"{parse(one.recipe).id}-{one.seed}.txt": one for one in records if one.traceback is not None}
    if folder.is_dir():
        for file in folder.glob("*.txt"):
            if file.name not in kept:
                file.unlink()
    for name, one in kept.items():
        folder.mkdir(exist_ok=True)
        results.write_atomically(folder / name, f"{one.recipe}, seed {one.seed}\n\n{one.traceback}".encode())


def _ordered(settled: Settled) -> Iterable[tuple[Recipe, Result]]:
    every = [(recipe, record) for recipe, records in settled.values() for record in records]
    return sorted(every, key=lambda e: (len(e[0].stages), str(e[0]), e[1].seed))


def _write_student(config: Config, bench: Mapping[str, Any], best: Result) -> None:
    """The winner's student, of the seed that does best on validation, and what it takes to load it."""
    key = best.stages[-1].key
    weights, note = config.folder / export.WEIGHTS, config.folder / export.NOTE
    if _is_there(weights, note, key):
        return
    verified = open_store(config.store, config.store_key).verified(key)
    if verified is None:
        return  # somebody emptied the store: the student of an earlier writing stays, if there is one
    for of_another in (export.PT2, export.ONNX):
        (config.folder / of_another).unlink(missing_ok=True)
    results.write_atomically(weights, verified[1])
    told = {
        "network": bench["student"]["name"],
        "layers": config.experiment.student_layers and list(config.experiment.student_layers),
        "code": list(config.experiment.code or ()),
        "recipe": best.recipe,
        "seed": best.seed,
        "val_accuracy": best.val_accuracy,
        "key": key,
        "sha256": verified[0]["weights"],
        **{k: v for k in _OF_IMAGES if (v := bench["dataset"].get(k)) is not None},
        "data": config.experiment.data,
        "data_fingerprint": bench["dataset"]["fingerprint"],
    }
    results.write_atomically(note, json.dumps(told, indent=1).encode())


def _is_there(weights: Path, note: Path, key: str) -> bool:
    """Whether the files of this student are there, and whole."""
    try:
        told = results.read_json(note)
        return bool(told["key"] == key and told["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _commit() -> str | None:
    """The commit of this program, with a plus where files were changed since; None outside a checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else None
