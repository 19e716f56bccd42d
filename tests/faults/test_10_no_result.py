"""Trials that bring no result: a loss that isn't finite, an outcome that never comes."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from smskd import models
from tests import runs
from tests.faults.conftest import Score

ROW = 10
# names are of search.trainable
SILENT = """
from smskd import pipeline

def run(recipe, run=pipeline.run, **settings):
    global now
    now = str(recipe)
    return run(recipe, **settings)

def _report(outcome, scalars={}, report=_report):
    if not now.startswith("rkd"):
        report(outcome, scalars)

now = ""
pipeline.run = run
"""


def exploding_teacher(path: Path) -> Path:
    """A teacher whose weights are finite and whose logits aren't: `kd` turns NaN, `rkd` doesn't look at them."""
    torch.manual_seed(0)
    weights = models.build("tiny_teacher", num_classes=10, in_channels=1).state_dict()
    weights["classifier.weight"] = torch.full_like(weights["classifier.weight"], 3e38)
    save_file(weights, path)
    return path


def failed_alone(out: Path, recipe: str) -> set[str]:
    """Asserts that all trials of one recipe failed, and those of the other didn't; the causes."""
    rows = pd.read_parquet(out / "results.parquet").query("phase == 'search'").set_index("recipe")
    other = {"kd": "rkd", "rkd": "kd"}[recipe]
    assert set(rows.loc[[recipe], "status"]) == {"failed"} and rows.loc[[recipe], "val_accuracy"].isna().all()
    assert set(rows.loc[[other], "status"]) == {"complete"}
    assert set(pd.read_csv(out / "front.csv")["recipe"]) == {other}
    assert json.loads((out / "run.json").read_text())["failed"] == len(rows.loc[[recipe]])
    study = optuna.load_study(study_name="smskd", storage=f"sqlite:///{out / 'study.db'}")
    assert {trial.state.name for trial in study.trials} == {"COMPLETE", "FAIL"}
    return set(rows.loc[[recipe], "error"])


@pytest.mark.slow
def test_a_trial_that_turns_nan_is_recorded_and_the_others_go_on(score: Score, tmp_path: Path) -> None:
    words = ["teacher_epochs=", f"teacher={exploding_teacher(tmp_path / 'teacher.safetensors')}"]
    with score.fault():
        result = runs.search(tmp_path / "run", tmp_path / "store", *words, "max_stages=1")
        assert result.returncode == 3, result.stdout + result.stderr
        assert "failed kd, seed 0: stage 1 of 1: Diverged: the loss is not finite in epoch 1 of 1" in result.stdout
        assert all("Diverged" in cause for cause in failed_alone(tmp_path / "run", "kd"))


@pytest.mark.slow
def test_nothing_finished(score: Score, tmp_path: Path) -> None:
    words = ["teacher_epochs=", f"teacher={exploding_teacher(tmp_path / 'teacher.safetensors')}"]
    with score.fault():
        result = runs.search(tmp_path / "run", tmp_path / "store", *words, "methods=[kd]", "max_stages=1", "seeds=1")
        assert result.returncode == 4, result.stdout + result.stderr
        assert "nothing finished" in result.stdout + result.stderr


@pytest.mark.slow
def test_a_trial_without_an_outcome(score: Score, tmp_path: Path) -> None:
    path = runs.sabotage(tmp_path / "sabotage", "search.trainable", SILENT)
    with score.fault():
        result = runs.search(tmp_path / "run", tmp_path / "store", "max_stages=1", PYTHONPATH=path)
        assert result.returncode == 3, result.stdout + result.stderr
        assert failed_alone(tmp_path / "run", "rkd") == {"the worker ended without an outcome"}
