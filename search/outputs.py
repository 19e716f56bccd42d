"""The files of a run, written from the study and the store. No torch, no Ray."""

from __future__ import annotations

import dataclasses
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
from reports.recipe_file import recipe_yaml
from search import export, storages
from search.config import Config, cores, cpu
from search.study import Record
from smskd.recipe import Recipe
from smskd.store import open_store

Settled = Mapping[str, tuple[Recipe, list[Record]]]
# of the data set, what it takes to give the student an image; studies of before have no moments
_OF_IMAGES = ("classes", "channels", "height", "width", "mean", "std", "pixels")
_PACKAGES = ("torch", "torchvision", "ray", "optuna", "pandas")


def rows(config: Config, bench: Mapping[str, Any], search: Settled, confirm: Settled) -> list[dict[str, Any]]:
    """One row per recipe, seed and phase.

    search: in the order in which recipes were finished. A stage is paid for by the row of the earliest place that has
    it: the sums of spent_flops and spent_seconds are what all stages cost, each once.
    """
    paid: set[str] = set()
    table: list[dict[str, Any]] = []
    in_search = [(recipe, record) for recipe, records in search.values() for record in records]
    for phase, ended in (("search", in_search), ("confirm", _ordered(confirm))):
        for recipe, record in ended:
            stages = record["stages"] if record["status"] == "complete" else []
            epochs = config.stage_epochs(len(recipe.stages))
            new = {s["key"]: s for s in record["stages"] if s["key"] not in paid}
            paid.update(new)
            table.append(
                {
                    "recipe": recipe.notation,
                    "recipe_id": recipe.id,
                    "pair": config.pair,
                    "data": config.data,
                    "seed": record["seed"],
                    "phase": phase,
                    "place": len(table),
                    "status": record["status"],
                    "error": record["error"],
                    "val_accuracy": stages[-1]["val_accuracy"] if stages else None,
                    "test_accuracy": record["test_accuracy"],
                    "test_best_accuracy": record.get("test_best_accuracy") if config.protocol == "paper" else None,
                    "train_flops": sum(s["train_flops"] for s in stages) if stages else None,
                    "device_seconds": sum(s["device_seconds"] for s in stages) if stages else None,
                    "spent_flops": sum(s["train_flops"] for s in new.values()),
                    "spent_seconds": sum(s["device_seconds"] for s in new.values()),
                    "params": bench["student"]["params"],
                    "latency_ms": bench["latency_ms"],
                    "epochs": max(epochs),
                    "total_epochs": sum(epochs),
                    "n_stages": len(recipe.stages),
                    "weighting": recipe.weighting,
                    "lambda_base": recipe.lambda_base,
                    "anchor": recipe.anchor,
                    "teachers": recipe.teachers,
                    "extra_teacher_flops": record.get("extra_teacher_flops") if stages else None,
                }
            )
    return table


def stage_rows(config: Config, search: Settled, confirm: Settled) -> list[dict[str, Any]]:
    """One row per stage of each finished training: what it kept of the teacher and of the stages before it."""
    table = []
    for phase, settled in (("search", search), ("confirm", confirm)):
        for recipe, record in _ordered(settled):
            if record["status"] != "complete":
                continue
            for number, (stage, told) in enumerate(zip(recipe.stages, record["stages"], strict=True), 1):
                spread = {f"lambda_{name}": value for name, value in told["anchor_weights"].items()}
                if spread and recipe.weighting != "fixed":  # lambda = (1 - TCP) * lambda_base, so quantiles swap ends
                    for name, value in told["anchor_weights"].items():
                        mirrored = f"q{100 - int(name[1:]):02d}" if name.startswith("q") else name
                        spread[f"tcp_{mirrored}"] = 1 - value / recipe.lambda_base
                table.append(
                    {
                        "recipe": recipe.notation,
                        "recipe_id": recipe.id,
                        "anchor": recipe.anchor,
                        "weighting": recipe.weighting,
                        "pair": config.pair,
                        "data": config.data,
                        "seed": record["seed"],
                        "phase": phase,
                        "stage": number,
                        "methods": str(stage),
                        "val_accuracy": told["val_accuracy"],
                        "agreement_teacher": told["agreement_teacher"],
                        "agreement_previous": told["agreement_previous"],
                        **spread,
                        **{f"loss_of_stage_{k}": loss for k, loss in enumerate(told["stage_losses"], 1)},
                    }
                )
    return table


def summary(config: Config, bench: Mapping[str, Any], search: Settled) -> pd.DataFrame:
    """One row per finished recipe, on validation alone, with the front marked; empty if there is none."""
    table = pd.DataFrame(rows(config, bench, search, {}), columns=list(results.COLUMNS))
    table = table.astype({"test_accuracy": "float64", "val_accuracy": "float64"})
    return front.summarise(table, config.costs, config.limits)


def write(
    config: Config, bench: Mapping[str, Any], search: Settled, confirm: Settled, facts: Mapping[str, Any]
) -> pd.DataFrame:
    """Write all files of the run, and return the summary. `facts` go into run.json as they are."""
    from reports import build  # draws figures, which takes long to import; here a search has long begun

    folder = config.folder
    results.write(rows(config, bench, search, confirm), folder)
    by_stage = pd.DataFrame(stage_rows(config, search, confirm))
    results.write_atomically(folder / "stages.csv", by_stage.to_csv(index=False, lineterminator="\n").encode())
    table = front.summarise(results.read(folder), config.costs, config.limits)
    front.write_front(table, folder / "front.csv")
    winner = front.winner(table)
    settings = dataclasses.asdict(config) | {
        "cost": config.costs[0],  # all of them are in `objectives`
        "storage": config.storage and storages.hidden(config.storage),
        "warm_start": config.warm_start and [storages.hidden(name) for name in config.warm_start],
    }
    if config.epochs_total is None:
        settings["epochs"] = config.stage_epochs(1)[0]
    if winner is not None:
        recipe, records = search[winner]
        best = max(records, key=lambda record: record["stages"][-1]["val_accuracy"])
        chosen = {str(k): v for k, v in table[table["recipe_id"] == winner].iloc[0].items()}
        text = recipe_yaml(chosen, settings, best["seed"])
        results.write_atomically(folder / "best.yaml", text.encode())
        _write_student(config, bench, recipe, best)
    run = {
        "schema": build.SCHEMA,
        "config": settings,
        "objectives": ["error", *config.costs],
        "limits": config.limits,
        "recipes": len(search),
        "seeds": config.seeds,
        "failed": sum(record["status"] == "failed" for s in (search, confirm) for _, rs in s.values() for record in rs),
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


def _ordered(settled: Settled) -> Iterable[tuple[Recipe, Record]]:
    every = [(recipe, record) for recipe, records in settled.values() for record in records]
    return sorted(every, key=lambda e: (len(e[0].stages), e[0].notation, e[0].id, e[1]["seed"]))


def _write_student(config: Config, bench: Mapping[str, Any], recipe: Recipe, record: Record) -> None:
    """The winner's student, of the seed that does best on validation, and what it takes to load it."""
    key = record["stages"][-1]["key"]
    place, note = config.folder / export.WEIGHTS, config.folder / export.NOTE
    if _is_there(place, note, key):
        return
    verified = open_store(config.store, config.store_key).verified(key)
    if verified is None:
        return  # somebody emptied the store: the student of an earlier writing stays, if there is one
    for of_another in (export.PT2, export.ONNX):
        (config.folder / of_another).unlink(missing_ok=True)
    results.write_atomically(place, verified[1])
    told = {
        "network": bench["student"]["name"],
        "recipe": str(recipe),
        "seed": record["seed"],
        "val_accuracy": record["stages"][-1]["val_accuracy"],
        "key": key,
        "sha256": verified[0]["weights"],
        **{k: v for k in _OF_IMAGES if (v := bench["dataset"].get(k)) is not None},
        "data": config.data,
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
