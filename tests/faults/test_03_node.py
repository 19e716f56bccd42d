"""Row 3: a node of a Ray cluster is lost, with the trials on it; or its head, with everything."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests import runs
from tests.faults.conftest import Score
from tests.search.ray_nodes import RayNodes

ROW = 3
# Stages of seconds, so that a trial is at work whenever a node is killed.
LONG = ["epochs=60", "seeds=1", "confirm=0"]


@pytest.fixture(scope="module")
def undisturbed_long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the longer search that nothing happened to."""
    folder = tmp_path_factory.mktemp("long")
    done = runs.search(folder / "run", folder / "store", *LONG)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trials_of_a_lost_node_run_elsewhere(tmp_path: Path, score: Score, undisturbed_long: Path) -> None:
    run, store = tmp_path / "run", tmp_path / "store"
    with score.fault(), RayNodes() as nodes:
        nodes.start("head", cpus=0)
        nodes.start("first", cpus=1)
        running = runs.start(run, store, *LONG, f"address={nodes.address}", mark=str(tmp_path), **nodes.variables)
        runs.wait_for_stages(store, 2, running)
        before = runs.finished(store)
        nodes.kill("first")
        lost = time.monotonic()
        nodes.start("second", cpus=1)
        runs.wait_for_stages(store, len(before) + 1, running)
        score.went_on(time.monotonic() - lost)
        told, _ = running.communicate(timeout=200)
        assert running.returncode == 0, told
        score.kept(before, store)
        score.same(run, runs.table(undisturbed_long))
    score.no_orphans(str(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_search_whose_head_was_lost_goes_on_when_there_is_one_again(
    tmp_path: Path, score: Score, undisturbed_long: Path
) -> None:
    run, store = tmp_path / "run", tmp_path / "store"
    with score.fault(), RayNodes(RAY_gcs_rpc_server_reconnect_timeout_s="5") as nodes:
        nodes.start("head", cpus=0)
        nodes.start("first", cpus=1)
        words = [*LONG, f"address={nodes.address}"]
        running = runs.start(run, store, *words, mark=str(tmp_path), **nodes.variables)
        runs.wait_for_stages(store, 2, running)
        before = runs.finished(store)
        nodes.kill("head")
        told, _ = running.communicate(timeout=120)
        assert running.returncode != 0, told
        nodes.kill("first")  # it ends by itself, but later
        again = time.monotonic()
        nodes.start("head", cpus=1)
        done = runs.search(run, store, *words, mark=str(tmp_path), **nodes.variables)
        score.went_on(time.monotonic() - again)
        assert done.returncode == 0, done.stdout + done.stderr
        score.kept(before, store)
        score.same(run, runs.table(undisturbed_long))
    score.no_orphans(str(tmp_path))
