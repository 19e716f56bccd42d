"""The scoreboard of faults counts what failed as lost: a row survives only if all of its faults did."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.faults.conftest import ROWS, Board, Score
from tests.runs import ROOT

TESTS = """
import pytest

ROW = {row}


def test_one(score):
    with score.fault():
        pass
    with score.fault():
        {body}


{more}
"""


def board(folder: Path, row: int, body: str, more: str = "") -> str:
    """What the scoreboard prints of a test file of a row."""
    for name in ("conftest.py", "writes.py"):
        (folder / name).write_bytes((ROOT / "tests" / "faults" / name).read_bytes())
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n  faults: of the scoreboard\n")
    (folder / f"test_{row:02}_some.py").write_text(TESTS.format(row=row, body=body, more=more))
    words = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-c", folder / "pytest.ini", folder]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "| # | fault |" in done.stdout, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("body", "more", "counted", "survivors"),
    [
        ("pass", "", "| 2 | 2 | 0 |", 1),
        ("assert False", "", "| 2 | 1 | 0 |", 0),
        ("pass", "def test_without_a_score():\n    assert False", "| 2 | 2 | 0 |", 0),
        ("score.kept({'key': 1}, __import__('pathlib').Path('/nowhere'))", "", "| 2 | 1 | 1 |", 0),
        ("pass", "@pytest.fixture\ndef broken():\n    yield\n    assert False\n\ndef test_two(broken): pass",
         "| 2 | 2 | 0 |", 0),
        ("pytest.skip('no such device')", "", "| 2 | 1 | 0 |", 0),
    ],
)  # fmt: skip
def test_a_fault_that_failed_is_not_survived(
    tmp_path: Path, body: str, more: str, counted: str, survivors: int
) -> None:
    told = board(tmp_path, 9, body, more)
    assert f"**{survivors} of {len(ROWS)} survived.**" in told
    assert f"| 9 | {ROWS[9]} {counted}" in told


def score(**counts: int) -> dict[str, int | list[float]]:
    return {"row": 3, "injected": 1, "survived": 1, "lost": 0, "wrong": 0, "orphans": 0, "seconds": [1.0]} | counts


@pytest.mark.parametrize("counter", ["lost", "wrong", "orphans"])
def test_a_counter_above_zero_is_no_survival(counter: str) -> None:
    board = Board()
    board.scores[3] = [score(), score()]
    assert board.survives(3)
    board.scores[3].append(score(**{counter: 1}))
    assert not board.survives(3)
    assert "1." in board.lines()[0]


def test_wrong_rows_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = pd.DataFrame({"recipe": ["kd", "rkd"], "val_accuracy": [0.5, float("nan")]})
    for found, wrong in (
        (undisturbed, 0),
        (undisturbed.assign(val_accuracy=[0.25, float("nan")]), 1),
        (undisturbed.head(1), 0),  # missing, which fails, but nothing wrong was found in the store
        (pd.concat([undisturbed, undisturbed.tail(1)], ignore_index=True), 1),
    ):
        monkeypatch.setattr("tests.runs.table", lambda out, found=found: found)
        told = Score(row=3)
        try:
            told.same(tmp_path, undisturbed)
        except AssertionError:
            assert not found.equals(undisturbed)
        else:
            assert found is undisturbed
        assert told.wrong == wrong, found
