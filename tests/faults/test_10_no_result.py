"""Trials that bring no result: a loss that isn't finite, an outcome that never comes."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pandas as pd
import pytest

from tests import runs
from tests.faults.conftest import Score

ROW = 10
DIVERGES = "kd@learning_rate=1e30"
# names are of search.trainable
SILENT = """
from smskd import pipeline

def distil(recipe, *given, distil=pipeline.distil, **more):
    global now
    now = recipe.path
    return distil(recipe, *given, **more)

def _report(outcome, scalars={}, report=_report):
    if now != "rkd":
        report(outcome, scalars)

now = ""
pipeline.distil = distil
"""


def failed_alone(out: Path, method: str) -> set[str]:
    """Asserts that all trials of one method failed, and those of the other didn't; the causes."""
    rows = pd.read_parquet(out / "results.parquet").query("phase == 'search'").set_index("methods")
    other = {"kd": "rkd", "rkd": "kd"}[method]
    assert set(rows.loc[[method], "status"]) == {"failed"} and rows.loc[[method], "val_accuracy"].isna().all()
    assert set(rows.loc[[other], "status"]) == {"complete"}
    assert set(pd.read_csv(out / "front.csv")["methods"]) == {other}
    assert json.loads((out / "run.json").read_text())["failed"] == len(rows.loc[[method]])
    study = optuna.load_study(study_name="smskd", storage=f"sqlite:///{out / 'study.db'}")
    assert {trial.state.name for trial in study.trials} == {"COMPLETE", "FAIL"}
    return set(rows.loc[[method], "error"])


@pytest.mark.slow
def test_a_trial_that_turns_nan_is_recorded_and_the_others_go_on(score: Score, tmp_path: Path) -> None:
    with score.fault():
        result = runs.search(tmp_path / "run", tmp_path / "store", f"methods=[{DIVERGES},rkd]", "max_stages=1")
        assert result.returncode == 3, result.stdout + result.stderr
        told = "seed 0: stage 1 of 1: Diverged: the loss is not finite in epoch 1 of 1"
        assert f"failed kd epochs=1 learning_rate=1e+30, {told}" in result.stdout
        assert all("Diverged" in cause for cause in failed_alone(tmp_path / "run", "kd"))


@pytest.mark.slow
def test_nothing_finished(score: Score, tmp_path: Path) -> None:
    with score.fault():
        result = runs.search(tmp_path / "run", tmp_path / "store", f"methods=[{DIVERGES}]", "max_stages=1", "seeds=1")
        assert result.returncode == 4, result.stdout + result.stderr
        assert "nothing finished" in result.stdout + result.stderr


@pytest.mark.slow
def test_a_trial_without_an_outcome(score: Score, tmp_path: Path) -> None:
    path = runs.sabotage(tmp_path / "sabotage", "search.trainable", SILENT)
    with score.fault():
        result = runs.search(tmp_path / "run", tmp_path / "store", "max_stages=1", PYTHONPATH=path)
        assert result.returncode == 3, result.stdout + result.stderr
        assert failed_alone(tmp_path / "run", "rkd") == {"the worker ended without an outcome"}
