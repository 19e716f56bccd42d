"""A worker that is killed, at each point of a trial's life: the trial is tried again, so often and no more."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from tests import runs
from tests.faults.conftest import AT_WORK, Score

ROW = 2
# names are of smskd.bench. A trial survives two deaths; what comes before a trial meets the first of them alone.
MOMENTS = (
    AT_WORK
    + """
import os, signal
from smskd.store import Store
from smskd.store import local as shelf

def at(moment, what, when):
    hit = struck(what, when, moment)
    return lambda *args, **kwargs: (hit if moment == now else what)(*args, **kwargs)

def before(methods, seed):
    global now
    now = {
        ("rkd", seed): ["in mid-stage", "a file is written"][seed % 50_000 % 2],
        ("kd>rkd", seed): ["an entry is synced", "an entry is there"][seed % 50_000 % 2],
        ("rkd>kd", seed): ["a stage begins", "a stage ends"][seed % 50_000 % 2],
    }.get((methods, seed))

def halfway():
    if now == "in mid-stage" and once(now):
        os.kill(os.getpid(), signal.SIGKILL)

now = None
load_data = struck(load_data, "begins", "data are loaded")
stage.accuracy = struck(stage.accuracy, "begins", "the teacher is trained")
stage.train_stage = at("a stage begins", at("a stage ends", stage.train_stage, "ends"), "begins")
shelf._write_synced = at("a file is written", shelf._write_synced, "ends")
shelf._sync_folder = at("an entry is synced", shelf._sync_folder, "ends")
Store.put = at("an entry is there", Store.put, "ends")
"""
)
NAMES = [
    "data are loaded", "the teacher is trained", "in mid-stage", "a file is written", "an entry is synced",
    "an entry is there", "a stage begins", "a stage ends",
]  # fmt: skip
ALWAYS = (
    AT_WORK
    + """
import os, signal

def before(methods, seed):
    if methods == "rkd":
        os.kill(os.getpid(), signal.SIGKILL)

def halfway():
    pass
"""
)


@pytest.mark.slow
def test_is_tried_again_with_the_same_result(score: Score, undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    out, store = tmp_path / "run", tmp_path / "store"
    mark = f"{tmp_path.name}-{os.getpid()}"
    path = runs.sabotage(tmp_path / "sabotage", "smskd.bench", MOMENTS)
    ended = runs.search(out, store, mark=mark, PYTHONPATH=path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for name in NAMES:
        with score.fault():
            assert (tmp_path / "sabotage" / name).exists(), f"nobody was killed when {name}"
    score.same(out, runs.table(undisturbed[0]))
    score.no_orphans(mark)
    assert list((store / "partial").iterdir()) == []


@pytest.mark.slow
def test_again_and_again_is_a_failed_trial(score: Score, tmp_path: Path) -> None:
    out = tmp_path / "run"
    mark = f"{tmp_path.name}-{os.getpid()}"
    path = runs.sabotage(tmp_path / "sabotage", "smskd.bench", ALWAYS)
    with score.fault():
        ended = runs.search(out, tmp_path / "store", "max_stages=1", "seeds=1", mark=mark, PYTHONPATH=path)
        assert ended.returncode == 3, ended.stdout + ended.stderr
        rows = pd.read_parquet(out / "results.parquet").query("phase == 'search'").set_index("methods")
        assert rows["status"].to_dict() == {"kd": "complete", "rkd": "failed"}
        assert "the worker died 3 times" in rows.loc["rkd", "error"]
        score.no_orphans(mark)
