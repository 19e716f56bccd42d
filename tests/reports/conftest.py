"""Run folders with made-up accuracies, as a finished search leaves them; the same each time."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from reports import results
from reports.front import objectives, summarise, winner, write_front
from reports.naming import recipe_yaml

METHODS = ("kd", "fitnets", "rkd")
EFFECT = {"kd": 0.022, "fitnets": 0.008, "rkd": 0.013}


def recipes_of_three() -> list[dict[str, Any]]:
    """All orders of one to three methods, stages after the first weighted in three ways, and two joint recipes."""
    names = [">".join(order) for n in (1, 2, 3) for order in itertools.permutations(METHODS, n)]
    out = []
    for name in [*names, "kd+rkd", "kd+fitnets+rkd", "kd>kd>kd"]:
        several = ">" in name
        for weighting in ("fixed", "tcp", "tcp_true") if several else ("fixed",):
            out.append(
                {"methods": name, "weighting": weighting, "lambda_base": 0.5, "anchor": "reference", "teachers": 1}
            )
    out.append({"methods": "kd>fitnets>rkd", "weighting": "fixed", "lambda_base": 0.5, "anchor": "none", "teachers": 1})
    return out


def line(recipe: dict[str, Any]) -> str:
    """A whole recipe in one line, as far as a made-up one has settings."""
    said = {key: value for key, value in recipe.items() if key not in ("methods", "recipe_id") and value is not None}
    return " ".join([recipe["methods"], *(f"{key}={value}" for key, value in sorted(said.items()))])


def without_idle(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with null for the anchor's settings where these are idle."""
    anchor = recipe["anchor"] if ">" in recipe["methods"] else None
    weighed = {key: recipe[key] if anchor not in (None, "none") else None for key in ("weighting", "lambda_base")}
    return recipe | weighed | {"anchor": anchor, "anchor_temperature": 4.0 if anchor == "reference" else None}


def row(recipe: dict[str, Any], seed: int, phase: str, rng: np.random.Generator, **changes: Any) -> dict[str, Any]:
    """One row of results; accuracy grows with methods and stages, with diminishing returns.

    recipe: methods, the anchor's settings, idle ones too, and any settings beside them.
    """
    recipe = {"teachers": 1} | recipe
    stages = recipe["methods"].split(">")
    seen: dict[str, int] = {}
    accuracy = 0.89
    for method in (m for stage in stages for m in stage.split("+")):
        accuracy += EFFECT.get(method, 0.004) * 0.45 ** seen.get(method, 0) * 0.8 ** len(seen)
        seen[method] = seen.get(method, 0) + 1
    if len(stages) > 1:
        accuracy += {"fixed": 0.0, "tcp": 0.004, "tcp_true": 0.001}[recipe["weighting"]]
        accuracy -= 0.012 if recipe["anchor"] == "none" else 0.0
    cost = sum(
        1 + 0.22 * (len(stage.split("+")) - 1) + 0.3 * ("fitnets" in stage) + 0.12 * ("rkd" in stage)
        for stage in stages
    )
    cost += 0.3 * (len(stages) - 1) * (recipe["anchor"] != "none")
    told = without_idle(recipe)
    return {
        **told,
        "recipe": line(told),
        "recipe_id": hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12],
        "pair": "tiny",
        "data": "digits",
        "seed": seed,
        "phase": phase,
        "status": "complete",
        "val_accuracy": float(accuracy + rng.normal(0, 0.004)),
        "test_accuracy": float(accuracy - 0.004 + rng.normal(0, 0.004)) if phase == "confirm" else None,
        "train_flops": cost * 8.1e9,
        "device_seconds": float(cost * 1.4 * rng.uniform(0.95, 1.1)),
        "spent_flops": cost * 4e9,
        "spent_seconds": float(cost * 0.5),
        "params": 5370,
        "epochs_total": 12 * len(stages),
        "n_stages": len(stages),
    } | changes


def write(rows: list[dict[str, Any]], folder: Path) -> None:
    """Write the table, with positions in the order given."""
    results.write([row | {"position": position} for position, row in enumerate(rows)], folder)


def run_info(**changes: Any) -> dict[str, Any]:
    """run.json of a finished search on digits."""
    config = {"space": "smskd", "methods": list(METHODS), "seeds": 3, "confirm": 5}
    config |= {"cost": "flops", "seed": 0, "trials": None}
    return {
        "schema": 2,
        "config": config,
        "experiment": {"pair": "tiny", "data": "digits", "train_size": 1000},
        "settings": {},
        "objectives": ["error", config["cost"]],
        "limits": {"params": None, "latency_ms": None, "flops": None},
        "box": {"error": [0.02, 0.12], "cost": [5e9, 1e11], "cost_name": "flops"},
        "recipes": 42,
        "seeds": 3,
        "stage_runs": 183,
        "stage_runs_unshared": 318,
        "seconds": 312.4,
        "failed": 0,
        "teacher": {
            "name": "tiny_teacher",
            "params": 66890,
            "val_accuracy": 0.956,
            "source": "trained here",
            "digest": "9f2c" * 16,
        },
        "student": {"name": "tiny_student", "params": 5370},
        "dataset": {
            **{"name": "digits", "fingerprint": "4e07" * 16, "train": 1000, "validation": 398, "test": 399},
            **{"height": 8, "width": 8, "channels": 1, "classes": 10},
        },
        "front": [],
        "winner": None,
        "confirm": {"seeds": [100, 101, 102, 103, 104], "opened": "2026-11-24T05:40:00+00:00", "reopened": False},
        "versions": {"python": "3.12.3", "torch": "2.14.1", "optuna": "5.0.0", "ray": "2.60.0"},
        "machine": {"cpu": "2-core test machine", "cores": 2, "gpus": []},
        "commit": "abc1234def5678",
        "finished": "2026-11-24T05:41:07+00:00",
    } | changes


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make_run(recipes=..., seeds=..., confirm=..., change=..., **run_json) writes a run folder and returns it."""

    def make(
        *,
        recipes: list[dict[str, Any]] | None = None,
        seeds: int = 3,
        confirm: int = 5,
        change: Callable[[list[dict[str, Any]]], None] | None = None,
        **info_changes: Any,
    ) -> Path:
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        rng = np.random.default_rng(0)
        recipes = recipes_of_three() if recipes is None else recipes
        rows = [row(recipe, seed, "search", rng) for recipe in recipes for seed in range(seeds)]
        if change:
            change(rows)
        write(rows, folder)
        info = run_info(recipes=len(recipes), **info_changes)
        summary = summarise(results.read(folder), *objectives(info))
        best = winner(summary)
        ids = set(summary.loc[summary["front"] | (summary["methods"] == "kd"), "recipe_id"])
        by_id = {row(recipe, 0, "search", rng)["recipe_id"]: recipe for recipe in recipes}
        for recipe_id in summary.loc[summary["recipe_id"].isin(ids), "recipe_id"]:
            rows += [row(by_id[recipe_id], 100 + seed, "confirm", rng) for seed in range(confirm)]
            if recipe_id == best:
                told = line(without_idle(by_id[recipe_id]))
                (folder / "best.yaml").write_text(recipe_yaml(told, info["experiment"], 0))
        info |= {"front": summary.loc[summary["front"], "recipe_id"].tolist(), "winner": best}
        if not confirm:
            info["confirm"] = {"seeds": [], "opened": None, "reopened": False}
        write(rows, folder)
        write_front(summarise(results.read(folder), *objectives(info)), folder / "front.csv")
        (folder / "run.json").write_text(json.dumps(info))
        return folder

    return make


@pytest.fixture
def table(make_run: Callable[..., Path]) -> pd.DataFrame:
    """The table of results of the default run."""
    return results.read(make_run())
