"""Trials that hang: stopped, in C code that holds the interpreter, asleep."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from tests import runs
from tests.faults.conftest import AT_WORK, Score

ROW = 11
# names are of smskd.bench
HANGS = (
    AT_WORK
    + """
import ctypes, os, signal, time

def before(methods, seed):
    global now
    now = methods, seed

def halfway():
    if now == ("kd", 0) and once("stopped"):
        os.kill(os.getpid(), signal.SIGSTOP)
    if now == ("kd", 1) and once("in C code"):
        ctypes.PyDLL(None).pause()
    if now == ("rkd", 0):
        time.sleep(1000)

now = None
"""
)


@pytest.mark.slow
def test_is_ended_and_tried_again_and_given_up(score: Score, undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    mark = f"{tmp_path.name}-{os.getpid()}"
    path = runs.sabotage(tmp_path / "sabotage", "smskd.bench", HANGS)
    words = ["max_stages=1", "confirm=0", "hang_after=10"]
    ended = runs.search(out, tmp_path / "store", *words, mark=mark, PYTHONPATH=path)
    assert ended.returncode == 3, ended.stdout + ended.stderr
    rows, whole = (
        pd.read_parquet(run / "results.parquet").query("phase == 'search'").set_index(["methods", "seed"])
        for run in (out, undisturbed[0])
    )
    for trial, name in ((("kd", 0), "stopped"), (("kd", 1), "in C code")):
        with score.fault():
            assert (tmp_path / "sabotage" / name).exists()
            assert rows.loc[trial, "val_accuracy"] == whole.loc[trial, "val_accuracy"]
    with score.fault():
        assert rows.loc[("rkd", 0), "status"] == "failed"
        cause = "the worker died 3 times, 3 of them ended by hang_after=: no progress for 10 s"
        assert rows.loc[("rkd", 0), "error"] == cause
        assert f"failed rkd epochs=1, seed 0: {cause}" in ended.stdout
        assert rows.loc[("rkd", 1), "val_accuracy"] == whole.loc[("rkd", 1), "val_accuracy"]
    score.no_orphans(mark)
