"""Whole searches, small ones: what a user sees."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pandas as pd
import pytest

from reports import front, results
from reports.importance import importance
from tests.runs import ROOT, command, finished, search, start, table, wait_for_stages


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("search")
    result = search(folder / "run", folder / "store")
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "run", folder / "store"


def test_a_search_leaves_its_files(done: tuple[Path, Path]) -> None:
    out, _ = done
    rows = table(out)
    assert set(rows.loc[rows["phase"] == "search", "methods"]) == {"kd", "rkd", "kd>rkd", "rkd>kd"}
    assert set(rows["recipe"]) == {f"{methods} epochs=1" for methods in set(rows["methods"])}
    assert (rows["phase"] == "search").sum() == 8
    assert rows.loc[rows["phase"] == "search", "test_accuracy"].isna().all()
    assert rows.loc[rows["phase"] == "confirm", "test_accuracy"].notna().all()
    front = pd.read_csv(out / "front.csv")
    searched = rows[(rows["phase"] == "search") & (rows["n_stages"] == 1)]
    baseline = searched.groupby("recipe_id")["val_accuracy"].mean().sort_index().idxmax()
    confirmed = set(rows.loc[rows["phase"] == "confirm", "recipe_id"])
    assert set(front["recipe_id"]) <= confirmed <= {*front["recipe_id"], baseline}, "and the baseline"
    run = json.loads((out / "run.json").read_text())
    assert (run["recipes"], run["seeds"], run["stage_runs"], run["stage_runs_unshared"]) == (4, 2, 8, 12)
    stages = pd.read_csv(out / "stages.csv")
    assert len(stages) == rows["n_stages"].sum()
    last = stages[stages["stage"] == 2].set_index(["recipe", "seed", "phase"])
    assert last["agreement_previous"].between(0, 1).all() and last["loss_of_stage_1"].gt(0).all()
    assert (last["lambda_mean"] == 0.5).all()
    for name in ("best.yaml", "report.html", "student.safetensors", "study.db", "results.csv"):
        assert (out / name).stat().st_size > 0


def test_the_same_command_again_trains_nothing(done: tuple[Path, Path]) -> None:
    out, store = done
    before = table(out)
    result = search(out, store)
    assert result.returncode == 0, result.stderr
    assert json.loads((out / "run.json").read_text())["stage_runs"] == 0
    pd.testing.assert_frame_equal(table(out), before)


def test_another_search_in_the_same_folder_is_refused(done: tuple[Path, Path]) -> None:
    out, store = done
    result = search(out, store, "cost=params")
    assert result.returncode == 2
    assert "another search" in result.stderr


def test_best_recipe_trains_alone_from_the_store(done: tuple[Path, Path], tmp_path: Path) -> None:
    out, store = done
    words = [f"recipe={out / 'best.yaml'}", f"store={store}", f"out={tmp_path / 'student.safetensors'}"]
    result = subprocess.run(
        [sys.executable, "-m", "smskd.train", *words], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert "from the store" in result.stdout
    assert (tmp_path / "student.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "recipes"),
    [
        (["space=everything", "trials=4", "cost=latency"], 4),
        (["space=stage_count", "cost=params", "max_stages=2", "trials=5"], 5),
        (["space=weighting", "cost=seconds", "trials=3"], 3),
        (["space=weights", "trials=3"], 3),
        (["space=budget", "epochs=", "epochs_total=10", "max_stages=2", "trials=4"], 4),
    ],
)
def test_other_spaces_and_costs(words: list[str], recipes: int, done: tuple[Path, Path], tmp_path: Path) -> None:
    words = ["methods=", "seeds=1", *words]
    result = search(tmp_path, done[1], *words)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = pd.read_parquet(tmp_path / "results.parquet").query("phase == 'search'")
    assert rows["recipe_id"].nunique() == len(rows) == recipes
    assert (rows["status"] == "complete").all()
    assert rows["latency_ms"].gt(0).all() == ("cost=latency" in words)
    again = search(tmp_path, done[1], *words)
    assert again.returncode == 0 and json.loads((tmp_path / "run.json").read_text())["stage_runs"] == 0


NEW_SPACE = '''"""KD once and twice."""

from smskd.recipe import Recipe
from spaces import Menu, Trial


def suggest(trial: Trial, menu: Menu) -> Recipe:
    return menu.recipe(trial.suggest_categorical("stages", ["kd", "kd>kd"]))
'''


@pytest.mark.slow
def test_a_new_file_is_a_new_space(done: tuple[Path, Path], tmp_path: Path) -> None:
    for package in ("search", "smskd", "spaces", "reports"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "spaces" / "twice.py").write_text(NEW_SPACE)
    told = subprocess.run(
        [sys.executable, "-m", "search.run", "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert re.search(r"twice +KD once and twice", told.stdout)
    words = command(tmp_path / "run", done[1], "methods=", "space=twice")
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    assert set(pd.read_parquet(tmp_path / "run" / "results.parquet")["methods"]) >= {"kd", "kd>kd"}


# --- settings in recipes


@pytest.mark.slow
def test_settings_are_searched_and_ranked(done: tuple[Path, Path], tmp_path: Path) -> None:
    words = ["methods=[kd]", "max_stages=1", "learning_rate=tag(log,interval(0.02,0.6))"]
    words += ["kd.temperature=choice(1,2,4,8)", "trials=12", "confirm=0"]
    result = search(tmp_path, done[1], *words)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = results.read(tmp_path)
    assert rows["recipe_id"].nunique() == 12 and len(rows) == 24
    assert rows["learning_rate"].between(0.02, 0.6).all() and rows["learning_rate"].nunique() > 6
    assert set(rows["kd.temperature"]) <= {1, 2, 4, 8}
    ranked = {one.factor for one in importance(front.summarise(rows, ["flops"]), cost_columns=[])}
    assert {"learning_rate", "kd.temperature"} <= ranked
    study = optuna.load_study(study_name="smskd", storage=f"sqlite:///{tmp_path / 'study.db'}")
    for trial in study.trials:
        assert set(trial.params) <= {"n_stages", "stage_1", "learning_rate", "kd.temperature"}


@pytest.mark.slow
def test_a_killed_search_with_settings_goes_on_to_the_same_table(tmp_path: Path) -> None:
    words = ["methods=[kd,rkd]", "max_stages=2", "kd.temperature=choice(2,8)", "stage_2.epochs=3", "seeds=1"]
    words += ["confirm=0"]
    whole = search(tmp_path / "whole", tmp_path / "store of its own", *words)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    running = start(tmp_path / "run", tmp_path / "store", *words)
    wait_for_stages(tmp_path / "store", 4, running)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate(timeout=30)
    kept = finished(tmp_path / "store")
    result = search(tmp_path / "run", tmp_path / "store", *words)
    assert result.returncode == 0, result.stdout + result.stderr
    pd.testing.assert_frame_equal(table(tmp_path / "run"), table(tmp_path / "whole"))
    after = finished(tmp_path / "store")
    assert {key: after.get(key) for key in kept} == kept and len(after) == 1 + 3 + 2 * 2
