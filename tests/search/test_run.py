"""Whole searches, small ones: what a user sees, and what a killed driver leaves."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from smskd import models
from tests.runs import ROOT, command, finished, marked, search, start, table, wait_for_stages


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("search")
    result = search(folder / "run", folder / "store")
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "run", folder / "store"


def test_a_search_leaves_its_files(done: tuple[Path, Path]) -> None:
    out, _ = done
    rows = table(out)
    assert set(rows.loc[rows["phase"] == "search", "recipe"]) == {"kd", "rkd", "kd>rkd", "rkd>kd"}
    assert (rows["phase"] == "search").sum() == 8
    assert rows.loc[rows["phase"] == "search", "test_accuracy"].isna().all()
    assert rows.loc[rows["phase"] == "confirm", "test_accuracy"].notna().all()
    front = pd.read_csv(out / "front.csv")
    assert set(front["recipe"]) | {"kd"} == set(rows.loc[rows["phase"] == "confirm", "recipe"]), "and the baseline"
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


def test_killed_driver_goes_on_and_ends_with_the_same_table(done: tuple[Path, Path], tmp_path: Path) -> None:
    out, store = tmp_path / "run", tmp_path / "store"
    victim = start(out, store)
    wait_for_stages(store, 4, victim)
    victim.kill()
    victim.communicate()
    before = finished(store)
    assert len(before) >= 4
    result = search(out, store)
    assert result.returncode == 0, result.stdout + result.stderr
    pd.testing.assert_frame_equal(table(out), table(done[0]))
    assert before.items() <= finished(store).items()
    # the teacher is one of the entries; the killed driver's workers may have finished one more stage each
    assert json.loads((out / "run.json").read_text())["stage_runs"] <= 8 - (len(before) - 1)


def exploding_teacher(path: Path) -> Path:
    """A teacher whose weights are finite and whose logits aren't: `kd` turns NaN, `rkd` doesn't look at them."""
    torch.manual_seed(0)
    weights = models.build("tiny_teacher", num_classes=10, in_channels=1).state_dict()
    weights["classifier.weight"] = torch.full_like(weights["classifier.weight"], 3e38)
    save_file(weights, path)
    return path


def test_a_trial_that_turns_nan_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["teacher_epochs=", f"teacher={exploding_teacher(tmp_path / 'teacher.safetensors')}"]
    result = search(out, tmp_path / "store", *words, "max_stages=1")
    assert result.returncode == 3, result.stdout + result.stderr
    assert "failed kd, seed 0: stage 1 of 1: Diverged: the loss is not finite in epoch 1 of 1" in result.stdout
    rows = pd.read_parquet(out / "results.parquet").set_index("recipe")
    assert set(rows.loc[["kd"], "status"]) == {"failed"} and rows.loc[["kd"], "val_accuracy"].isna().all()
    assert rows.loc[["kd"], "error"].str.contains("Diverged").all()
    assert set(rows.loc[["rkd"], "status"]) == {"complete"}
    assert set(pd.read_csv(out / "front.csv")["recipe"]) == {"rkd"}
    assert json.loads((out / "run.json").read_text())["failed"] == 2


def test_nothing_finished(tmp_path: Path) -> None:
    words = ["teacher_epochs=", f"teacher={exploding_teacher(tmp_path / 'teacher.safetensors')}"]
    result = search(tmp_path / "run", tmp_path / "store", *words, "methods=[kd]", "max_stages=1", "seeds=1")
    assert result.returncode == 4, result.stdout + result.stderr
    assert "nothing finished" in result.stdout + result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_search_keeps_what_it_has_and_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    out, store = tmp_path / "run", tmp_path / "store"
    mark = f"{tmp_path.name}-{os.getpid()}"
    running = start(out, store, mark=mark)
    wait_for_stages(store, 4, running)
    running.send_signal(number)
    told, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    told = told.replace("'", "")
    assert "interrupted; all finished stages are kept. To go on: python -m search.run methods=[kd,rkd]" in told
    deadline = time.monotonic() + 20
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == {}
    assert (out / "results.parquet").is_file() and (out / "report.html").is_file()
    assert len(list(store.glob("entries/*/*"))) >= 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "recipes"),
    [
        (["space=recipe", "trials=4", "cost=latency"], 4),
        (["space=stage_count", "cost=params", "max_stages=2", "trials=5"], 5),
        (["space=weighting", "cost=seconds", "trials=3"], 3),
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
    assert set(pd.read_parquet(tmp_path / "run" / "results.parquet")["recipe"]) >= {"kd", "kd>kd"}


def test_second_driver_of_a_folder_is_refused(tmp_path: Path) -> None:
    import filelock

    out = tmp_path / "run"
    out.mkdir()
    with filelock.FileLock(out / ".lock"):
        result = search(out, tmp_path / "store")
    assert result.returncode == 2
    assert "another search is at work" in result.stderr
    assert os.listdir(out) == [".lock"]  # noqa: PTH208
