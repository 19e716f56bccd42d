"""Two trainings want one prefix: one computes it, the other uses it; whoever computes it may be killed or paused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from smskd.store.remote import Files
from tests import runs
from tests.faults.conftest import Score
from tests.s3 import s3

__all__ = ["s3"]
ROW = 9
# A claim that isn't renewed holds for four seconds here, not sixty. `slow` is what each epoch takes longer.
_CODE = """
import json, sys, time
from pathlib import Path
import torch
from smskd import pipeline
from smskd.experiment import Experiment
from smskd.store import remote
remote.CLAIM_S = 4
torch.set_num_threads(1)
recipes, store, mark, slow = sys.argv[1:]
Path(mark + ".ready").touch()
def on_epoch(stage, epoch, epochs):
    Path(mark).touch()
    time.sleep(float(slow))
ended = []
for recipe in recipes.split():
    small = Experiment(train_size=100, teacher_epochs=1)
    result = pipeline.run(recipe + " epochs=2", small, store=store, on_epoch=on_epoch)
    ended += [[stage.key, stage.digest, stage.trained] for stage in result.stages]
print(json.dumps(ended))
"""
Stages = list[tuple[str, str, bool]]


@dataclass
class Place:
    """A store, and trainings that use it, on machines that differ in their cache."""

    store: str
    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, recipes: str, *, slow: float = 0, machine: int = 0) -> subprocess.Popen[str]:
        mark = str(self.folder / f"mark{len(self.started)}")
        environment = os.environ | {"XDG_CACHE_HOME": str(self.folder / f"machine{machine}")}
        process = subprocess.Popen(
            [sys.executable, "-c", _CODE, recipes, self.store, mark, str(slow)], cwd=runs.ROOT, env=environment,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def wait_for_stage(self, process: subprocess.Popen[str]) -> None:
        """Until it has trained an epoch of a stage."""
        mark = self.folder / f"mark{self.started.index(process)}"
        while not mark.exists():
            assert process.poll() is None
            time.sleep(0.05)

    def waits(self, process: subprocess.Popen[str]) -> None:
        """It has started, and doesn't come to an end."""
        while not (self.folder / f"mark{self.started.index(process)}.ready").exists():
            assert process.poll() is None
            time.sleep(0.05)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3)

    def finished(self) -> dict[str, object]:
        """Finished stages: key -> when written."""
        if "://" not in self.store:
            return dict(runs.finished(Path(self.store)))
        listed = Files(self.store).list("entries")
        return {name.split("/")[2]: when for name, (_, when) in listed.items() if name.endswith("manifest.json")}


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    kind = request.param
    store = request.getfixturevalue("s3").url(tmp_path.name) if kind == "s3" else str(tmp_path / "store")
    there = Place(store=store, folder=tmp_path)
    yield there
    for process in there.started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digest of each stage, by key, where nothing happens."""
    folder = tmp_path_factory.mktemp("alone")
    there = Place(store=str(folder / "store"), folder=folder)
    return {key: digest for key, digest, _ in _end(there.start("kd>rkd kd>kd"))}


def _end(process: subprocess.Popen[str]) -> Stages:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return [(key, digest, trained) for key, digest, trained in json.loads(out)]


def _count_wrong(score: Score, alone: dict[str, str], *ended: Stages) -> None:
    wrong = [key for stages in ended for key, digest, _ in stages if alone[key] != digest]
    score.wrong += len(wrong)
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder", "s3"], indirect=True)
def test_one_computes_and_the_other_uses_it(place: Place, score: Score, alone: dict[str, str]) -> None:
    with score.fault():
        both = [place.start("kd>rkd", slow=0.5, machine=0), place.start("kd>kd", slow=0.5, machine=1)]
        ended = [_end(process) for process in both]
        _count_wrong(score, alone, *ended)
        assert ended[0][0][0] == ended[1][0][0]  # they share their first stage
        assert sum(trained for stages in ended for *_, trained in stages) == 3
        assert len(place.finished()) == 4  # and the teacher


@pytest.mark.parametrize(
    ("place", "machine"),
    [("folder", 0), *(pytest.param("s3", machine, marks=pytest.mark.slow) for machine in (0, 1))],
    indirect=["place"],
)
def test_the_next_takes_over_from_one_that_is_killed(
    place: Place, score: Score, alone: dict[str, str], machine: int
) -> None:
    with score.fault():
        owner = place.start("kd>rkd", slow=600)
        place.wait_for_stage(owner)
        before = place.finished()
        following = place.start("kd>kd", machine=machine)
        place.waits(following)
        owner.kill()
        killed = time.monotonic()
        stages = _end(following)
        score.went_on(time.monotonic() - killed)
        _count_wrong(score, alone, stages)
        assert [trained for *_, trained in stages] == [True, True]
        _count_lost(score, before, place)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder", "s3"], indirect=True)
def test_one_that_was_paused_comes_back(place: Place, score: Score, alone: dict[str, str]) -> None:
    """To a folder's lock, which it holds all the time; or to find its claim expired, and its work done by another."""
    with score.fault():
        owner = place.start("kd>rkd", slow=4)
        place.wait_for_stage(owner)
        owner.send_signal(signal.SIGSTOP)
        following = place.start("kd>kd", machine=1)
        if "://" in place.store:
            stopped = time.monotonic()
            stages = _end(following)
            score.went_on(time.monotonic() - stopped)
            owner.send_signal(signal.SIGCONT)
        else:
            place.waits(following)
            owner.send_signal(signal.SIGCONT)
            stages = _end(following)
        before = place.finished()
        of_owner = _end(owner)
        _count_wrong(score, alone, stages, of_owner)
        assert stages[0][2] == ("://" in place.store)
        _count_lost(score, before, place)
        assert len(place.finished()) == 4


def _count_lost(score: Score, before: dict[str, object], place: Place) -> None:
    now = place.finished()
    lost = [key for key, written in before.items() if now.get(key) != written]
    score.lost += len(lost)
    assert lost == []
