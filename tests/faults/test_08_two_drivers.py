"""Two runs on one folder: the second refuses, and changes nothing."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import pytest

from tests import runs
from tests.faults.conftest import Score

ROW = 8


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_second_driver_of_a_folder_is_refused(score: Score, tmp_path: Path) -> None:
    import filelock

    out = tmp_path / "run"
    out.mkdir()
    with score.fault(), filelock.FileLock(out / ".lock"):
        result = runs.search(out, tmp_path / "store")
        assert result.returncode == 2
        assert "another search is at work" in result.stderr
        assert os.listdir(out) == [".lock"]  # noqa: PTH208


@pytest.mark.slow
def test_in_mid_search(score: Score, undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    out, store = tmp_path / "run", tmp_path / "store"
    first = runs.start(out, store)
    runs.wait_for_stages(store, 3, first)
    first.send_signal(signal.SIGSTOP)  # so that whatever changes was changed by the second
    (tmp_path / "another name").symlink_to(out)
    before = content(out)
    assert "study.db" in before
    for name, words in (("run", []), ("another name", []), ("run", ["methods=[kd,fitnets]"])):
        with score.fault():
            second = runs.search(tmp_path / name, store, *words)
            assert second.returncode == 2, second.stdout + second.stderr
            assert "another search is at work" in second.stderr
            assert content(out) == before
    first.send_signal(signal.SIGCONT)
    told, _ = first.communicate(timeout=120)
    assert first.returncode == 0, told
    score.same(out, runs.table(undisturbed[0]))
