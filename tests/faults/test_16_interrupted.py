"""Ctrl-C and SIGTERM, at several moments and more than once: saved, exit 130, no process left."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests import runs
from tests.faults.conftest import Score

ROW = 16
# in the order in which a driver comes to them; names are of search.several
MOMENTS = """
import signal
import ray
from ray._private import node
from reports import build

Session.__init__ = struck(Session.__init__, "begins", "the study is opened", signal.SIGINT)
heads = node.Node.start_head_processes
node.Node.start_head_processes = struck(heads, "ends", "Ray has half started", signal.SIGTERM)
ray.init = struck(ray.init, "ends", "Ray has started", signal.SIGINT)
ray.shutdown = struck(ray.shutdown, "begins", "Ray ends", signal.SIGINT)
Session._meet = struck(Session._meet, "ends", "the teacher is met", signal.SIGTERM)
Session._to_confirm = struck(Session._to_confirm, "ends", "the front is looked at", signal.SIGINT)

def write(self, *, finished, write=Search.write):
    if finished:
        build.build = struck(build.build, "begins", "the report is made", signal.SIGINT)
    write(self, finished=finished)

Search.write = write
"""
MOMENTS_IN_ALL = 6


def interrupted(told: str) -> bool:
    return "interrupted; all finished stages are kept. To go on: python -m search.run" in told


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_keeps_what_it_has_and_leaves_no_process(score: Score, tmp_path: Path, number: signal.Signals) -> None:
    out, store = tmp_path / "run", tmp_path / "store"
    mark = f"{tmp_path.name}-{os.getpid()}"
    with score.fault():
        running = runs.start(out, store, mark=mark)
        runs.wait_for_stages(store, 4, running)
        before = runs.finished(store)
        # a terminal tells all of its processes; who is impatient, twice
        os.killpg(running.pid, number) if number == signal.SIGINT else running.send_signal(number)
        time.sleep(0.2)
        running.send_signal(number)
        told, _ = running.communicate(timeout=60)
        assert running.returncode == 130, told
        told = told.replace("'", "")
        assert "interrupted; all finished stages are kept. To go on: python -m search.run methods=[kd,rkd]" in told
        score.no_orphans(mark)
        score.kept(before, store)
        assert (out / "results.parquet").is_file() and (out / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)  # many searches one after another; the cores may be busy
def test_at_every_moment(score: Score, undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    out, store = tmp_path / "run", tmp_path / "store"
    mark = f"{tmp_path.name}-{os.getpid()}"
    path = runs.sabotage(tmp_path / "sabotage", "search.several", MOMENTS)
    for _ in range(MOMENTS_IN_ALL):
        with score.fault():
            before = runs.finished(store)
            ended = runs.search(out, store, mark=mark, PYTHONPATH=path)
            assert ended.returncode == 130, ended.stdout + ended.stderr
            assert interrupted(ended.stdout)
            score.no_orphans(mark)
            score.kept(before, store)
    ended = runs.search(out, store, mark=mark, PYTHONPATH=path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    score.same(out, runs.table(undisturbed[0]))
    score.no_orphans(mark)
