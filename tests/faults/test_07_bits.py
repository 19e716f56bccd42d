"""A flipped bit in a stored stage: found when it is read, set aside, computed again."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from smskd.store import MANIFEST, METHODS, WEIGHTS, Store
from tests import runs
from tests.faults.conftest import Score
from tests.faults.test_05_power import KEY, put, whole

ROW = 7


def flip(path: Path, place: int) -> None:
    """One bit of a byte; which one depends on the place."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << place % 8]))


@pytest.mark.parametrize("file", [MANIFEST, WEIGHTS, METHODS])
def test_a_flipped_bit_of_any_byte(score: Score, tmp_path: Path, file: str) -> None:
    store = Store(tmp_path)
    digest = put(store).digest
    entry = store.path(KEY)
    place = 0
    while place < (entry / file).stat().st_size:  # a manifest has the time, in more or fewer digits, when put again
        with score.fault():
            flip(entry / file, place)
            assert store.get(KEY) is None and not entry.exists()
            (aside,) = (tmp_path / "aside").iterdir()
            if place % 20:
                flip(aside / file, place)  # as it was
                aside.rename(entry)
            else:
                assert put(store).digest == digest
                shutil.rmtree(aside)
            assert whole(store.get(KEY))
        place += 1
    assert place > 50


@pytest.mark.slow
@pytest.mark.parametrize("which", [slice(3, 4), slice(None)])
def test_a_search_computes_damaged_stages_again(
    score: Score, undisturbed: tuple[Path, Path], tmp_path: Path, which: slice
) -> None:
    store, out, mark = tmp_path / "store", tmp_path / "run", tmp_path.name
    shutil.copytree(undisturbed[1], store)
    opened = Store(store)
    before = runs.finished(store)
    digests = {key: opened.digest(key) for key in before}
    damaged = sorted(before)[which]
    for key in damaged:
        file = opened.path(key) / WEIGHTS
        flip(file, file.stat().st_size // 2)
    with score.fault():
        started = time.monotonic()
        done = runs.search(out, store, mark=mark)
        score.went_on(time.monotonic() - started)
        assert done.returncode == 0, done.stdout + done.stderr
        score.same(out, runs.table(undisturbed[0]))
        score.kept({key: written for key, written in before.items() if key not in damaged}, store)
        assert sorted(path.name.partition(".")[0] for path in (store / "aside").iterdir()) == damaged
        assert {key: opened.digest(key) for key in before} == digests, "made again, bit for bit"
        score.no_orphans(mark)
