"""A driver that is killed, at any moment of its life: the same command goes on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests import runs
from tests.faults.conftest import Score

ROW = 1
# in the order in which a driver comes to them; names are of search.several
MOMENTS = """
import ray
from reports import build
from search import outputs, session, study

ray.init = struck(ray.init, "ends", "Ray has started")
session.Session._meet = struck(session.Session._meet, "begins", "the teacher is met")
study.Study.tell = struck(study.Study.tell, "begins", "a trial has ended")
Session._to_confirm = struck(Session._to_confirm, "ends", "the front is looked at")
Session._keep = struck(Session._keep, "ends", "a training is confirmed")
outputs.results.write_atomically = struck(outputs.results.write_atomically, "ends", "a file is written")
build.build = struck(build.build, "begins", "the report is made")
"""
MOMENTS_IN_ALL = 7


@pytest.mark.slow
def test_goes_on_with_the_same_table(score: Score, undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    out, store = tmp_path / "run", tmp_path / "store"
    mark = f"{tmp_path.name}-{os.getpid()}"
    with score.fault():
        victim = runs.start(out, store, mark=mark)
        runs.wait_for_stages(store, 4, victim)
        victim.kill()
        victim.communicate()
        score.no_orphans(mark)
        before = runs.finished(store)
        assert len(before) >= 4
        started = time.monotonic()
        again = runs.start(out, store)
        runs.wait_for_stages(store, len(before) + 1, again)
        score.went_on(time.monotonic() - started)
        told, _ = again.communicate(timeout=120)
        assert again.returncode == 0, told
        score.same(out, runs.table(undisturbed[0]))
        score.kept(before, store)
        assert f"{len(runs.finished(store)) - len(before)} stages trained now" in told


@pytest.mark.slow
@pytest.mark.timeout(900)  # many searches one after another; the cores may be busy
def test_at_every_moment(score: Score, undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    out, store = tmp_path / "run", tmp_path / "store"
    mark = f"{tmp_path.name}-{os.getpid()}"
    with score.fault():
        victim = runs.start(out, store, mark=mark)
        while not list(store.glob("locks/*")) and victim.poll() is None:  # nothing but the teacher can be at work
            time.sleep(0.02)
        victim.kill()
        victim.communicate()
        assert runs.finished(store) == {}
        score.no_orphans(mark)
    path = runs.sabotage(tmp_path / "sabotage", "search.several", MOMENTS)
    before: dict[str, int] = {}
    for _ in range(MOMENTS_IN_ALL):
        with score.fault():
            died = runs.search(out, store, mark=mark, PYTHONPATH=path)
            assert died.returncode == -9, died.stdout + died.stderr
            score.no_orphans(mark)
            score.kept(before, store)
            before = runs.finished(store)
    ended = runs.search(out, store, mark=mark, PYTHONPATH=path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    score.same(out, runs.table(undisturbed[0]))
    score.kept(before, store)
    score.no_orphans(mark)
