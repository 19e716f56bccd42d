"""Whole searches, small ones: what a user sees, and what a killed driver leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
SMALL = ["methods=[kd,rkd]", "train_size=100", "epochs=1", "seeds=2", "confirm=1", "teacher_epochs=1"]
SAME = ["recipe", "recipe_id", "seed", "phase", "status", "val_accuracy", "test_accuracy", "train_flops", "n_stages"]


def command(out: Path, store: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "search.run", *SMALL, f"out={out}", f"store={store}", *more]


def search(out: Path, store: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(out, store, *more), cwd=ROOT, capture_output=True, text=True, timeout=240)


def table(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "results.parquet")[SAME]


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
    assert set(front["recipe"]) == set(rows.loc[rows["phase"] == "confirm", "recipe"])
    run = json.loads((out / "run.json").read_text())
    assert (run["recipes"], run["seeds"], run["stage_runs"], run["stage_runs_unshared"]) == (4, 2, 8, 12)
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
    victim = subprocess.Popen(
        command(out, store), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(list(store.glob("entries/*/*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    finished = {path.name: (path / "manifest.json").stat().st_mtime_ns for path in store.glob("entries/*/*")}
    assert len(finished) >= 4
    result = search(out, store)
    assert result.returncode == 0, result.stdout + result.stderr
    pd.testing.assert_frame_equal(table(out), table(done[0]))
    for name, written in finished.items():
        assert (store / "entries" / name[:2] / name / "manifest.json").stat().st_mtime_ns == written
    # the teacher is one of the entries; the killed driver's workers may have finished one more stage each
    assert json.loads((out / "run.json").read_text())["stage_runs"] <= 8 - (len(finished) - 1)


def test_second_driver_of_a_folder_is_refused(tmp_path: Path) -> None:
    import filelock

    out = tmp_path / "run"
    out.mkdir()
    with filelock.FileLock(out / ".lock"):
        result = search(out, tmp_path / "store")
    assert result.returncode == 2
    assert "another search is at work" in result.stderr
    assert os.listdir(out) == [".lock"]  # noqa: PTH208
