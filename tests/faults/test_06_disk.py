"""A disk that is full from any write on: a clean stop with the cause, nothing lost, and the same command goes on."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from search import run
from smskd.store import Store
from tests import runs
from tests.faults.conftest import Score
from tests.faults.test_05_power import KEY, put, settle_one, settled, whole
from tests.faults.writes import FULL, Writes, at_every_change, forked, in_process, tell

ROW = 6


def puts(root: str, state: str) -> None:
    """In a process of its own: put an entry on a disk that is full from each change on, in turn."""
    place, writes = Path(root), Writes(Path(state))
    for number in at_every_change(writes, FULL, lambda: put(Store(place))):
        store = Store(place)
        left = whole(store.get(KEY))
        litter = [path.name for name in ("partial", "aside") for path in place.glob(f"{name}/*")]
        tell({"at": number, "left": left, "litter": litter, "again": whole(put(store))})
        shutil.rmtree(place)


def test_full_at_every_change_of_a_commit(score: Score, tmp_path: Path) -> None:
    root = tmp_path / "store"
    told = in_process(puts, root, tmp_path / "state", writes=Writes(tmp_path / "state", root))
    assert len(told) >= 18
    for one in told:
        with score.fault():
            assert one["again"] and not one["left"] and not one["litter"], one


def tells(folder: str, state: str) -> None:
    """In a process of its own: a study of one recipe is told of a second, on a disk that is full from a change on."""
    begun, place = Path(folder) / "begun", Path(folder) / "full"
    shutil.copytree(begun, place)
    for number in at_every_change(Writes(Path(state)), FULL, lambda: settle_one(place), every=13):
        left = forked(settled, place)
        forked(settle_one, place)
        tell({"at": number, "left": left, "again": forked(settled, place)})
        shutil.rmtree(place)
        shutil.copytree(begun, place)


@pytest.mark.slow
def test_full_at_a_change_of_a_study(score: Score, tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    settle_one(tmp_path / "begun")
    told = in_process(tells, tmp_path, tmp_path / "state", writes=Writes(tmp_path / "state", tmp_path / "full"))
    assert len(told) >= 150 // 13
    for one in told:
        with score.fault():
            assert (one["left"], one["again"]) in ((1, 2), (2, 2)), one


def stopped(done: subprocess.CompletedProcess[str], cause: str) -> None:
    assert done.returncode == 4, done.stdout + done.stderr
    assert cause in done.stderr and "To try again: python -m search.run" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


SPACE = "No space left on device"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("under", "at", "cause"), [("store", 1, SPACE), ("run/study.db", 600, "the study can't be read or written")]
)
def test_a_search_on_a_disk_that_gets_full(
    score: Score, undisturbed: tuple[Path, Path], tmp_path: Path, under: str, at: int, cause: str
) -> None:
    writes = Writes(tmp_path / "state", tmp_path / under)
    writes.arm(at, FULL)
    out, store, mark = tmp_path / "run", tmp_path / "store", tmp_path.name
    with score.fault():
        stopped(runs.search(out, store, mark=mark, **writes.variables), cause)
        assert writes.count >= at
        score.no_orphans(mark)
        _goes_on(score, out, store, mark, undisturbed)


def _goes_on(score: Score, out: Path, store: Path, mark: str, undisturbed: tuple[Path, Path]) -> None:
    before = runs.finished(store)
    started = time.monotonic()
    again = runs.search(out, store, mark=mark)
    score.went_on(time.monotonic() - started)
    assert again.returncode == 0, again.stdout + again.stderr
    score.kept(before, store)
    score.same(out, runs.table(undisturbed[0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["results.parquet", "report.html"])
def test_no_room_for_the_files_of_a_run(
    score: Score, undisturbed: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    out, store = tmp_path / "run", tmp_path / "store"
    for whole_one, copy in zip(undisturbed, (out, store), strict=True):
        shutil.copytree(whole_one, copy)
    before = (out / name).read_bytes()
    writes = Writes(tmp_path / "state", out / f".{name}")
    writes.arm(1, FULL)
    with score.fault():
        stopped(runs.search(out, store, **writes.variables), f"{SPACE} for {out / name}")
        assert (out / name).read_bytes() == before and not list(out.glob(".*.tmp"))
        assert run.main(runs.command(out, store)[3:]) == 0
        score.same(out, runs.table(undisturbed[0]))


@contextlib.contextmanager
def _disk(place: Path) -> Iterator[None]:
    """A small disk of its own."""
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", place], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.slow
def test_a_search_on_a_real_disk_that_something_else_fills(
    score: Score, undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    disk, mark = tmp_path / "disk", tmp_path.name
    out, store = disk / "run", disk / "store"
    with _disk(disk), score.fault():
        running = runs.start(out, store, mark=mark)
        runs.wait_for_stages(store, 3, running)
        free = os.statvfs(disk)
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
        with contextlib.suppress(OSError), (disk / "rest").open("wb") as file:
            while True:
                file.write(bytes(4096))
        told, _ = running.communicate(timeout=120)
        assert running.returncode == 4 and "Traceback" not in told, told
        assert SPACE in told or "the study can't be read or written" in told
        score.no_orphans(mark)
        assert len(runs.finished(store)) >= 3
        filler.unlink()
        _goes_on(score, out, store, mark, undisturbed)
