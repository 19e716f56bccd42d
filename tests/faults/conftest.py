"""The scoreboard of faults: each test injects real ones and counts them, and FAULTS.md says what came of all.

A test file has `ROW = n`, its row of `ROWS`; its tests take `score`, and put each fault, with what is asserted of what
came of it, into `with score.fault():`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests import runs

ROWS = {
    1: "driver killed (SIGKILL) at any moment",
    2: "worker killed in mid-stage",
    3: "node lost",
    4: "out-of-memory kill by Ray's monitor",
    5: "power cut: torn or missing last write",
    6: "disk full at the n-th write",
    7: "a bit flipped in a stored stage",
    8: "two runs on one folder",
    9: "two trials want one prefix, and its owner is killed",
    10: "NaN loss, missing metric",
    11: "a trial hangs",
    12: "CUDA out of memory",
    13: "upgrade of code or library",
    14: "bad input",
    15: "hostile files",
    16: "SIGINT",
}
_KEPT = "faults"
# For runs.sabotage of smskd.bench, which workers import first: before(methods, seed) is called when a recipe's training
# begins, and halfway() at each step past the middle of a stage, or of the teacher's training.
AT_WORK = """
from smskd import pipeline, stage

def distil(recipe, *given, seed, distil=pipeline.distil, **more):
    before(recipe.path, seed)
    return distil(recipe, *given, seed=seed, **more)

def schedule_of(optimizer, training, steps, schedule_of=stage.schedule_of):
    made, taken = schedule_of(optimizer, training, steps), 0
    def step(step=made.step):
        nonlocal taken
        step()
        taken += 1
        if 2 * taken >= training.epochs * steps:
            halfway()
    made.step = step
    return made

pipeline.distil = distil
stage.schedule_of = schedule_of
"""


@dataclass
class Score:
    """What the faults of one test came to. lost: finished stages. wrong: results that an undisturbed run doesn't have.
    orphans: processes left. seconds: from the fault, or the start of the same command after it, to going on.
    """

    row: int
    injected: int = 0
    survived: int = 0
    lost: int = 0
    wrong: int = 0
    orphans: int = 0
    seconds: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def fault(self) -> Iterator[None]:
        """One fault, and everything that is asserted of it."""
        self.injected += 1
        yield
        self.survived += 1

    def went_on(self, seconds: float) -> None:
        """How long it took to go on."""
        self.seconds.append(seconds)

    def kept(self, before: Mapping[str, int], store: Path) -> None:
        """Of the finished stages that a store had (runs.finished), none is gone or was written again."""
        now = runs.finished(store)
        lost = [key for key, written in before.items() if now.get(key) != written]
        self.lost += len(lost)
        assert not lost

    def same(self, out: Path, undisturbed: pd.DataFrame) -> None:
        """A run's table is that of an undisturbed run (runs.table)."""
        found = runs.table(out)
        self.wrong += (_rows(found) - _rows(undisturbed)).total()
        pd.testing.assert_frame_equal(found, undisturbed)

    def no_orphans(self, mark: str, timeout: float = 20) -> None:
        """No process of a search with this mark is left, or will be in a few seconds."""
        deadline = time.monotonic() + timeout
        while (left := runs.marked(mark)) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.orphans += len(left)
        assert left == {}


def _rows(table: pd.DataFrame) -> Counter[tuple[Any, ...]]:
    return Counter(table.astype(object).where(table.notna(), None).itertuples(index=False, name=None))


@pytest.fixture
def score(request: pytest.FixtureRequest) -> Iterator[Score]:
    """Where a test counts its faults; FAULTS.md has the sums."""
    told = Score(row=request.module.ROW)
    yield told
    request.node.user_properties.append((_KEPT, json.dumps(asdict(told))))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run and the store of the small search that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = runs.search(folder / "run", folder / "store")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run", folder / "store"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the program, to be changed."""
    for package in ("search", "smskd", "spaces", "reports"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(runs.ROOT / package, tmp_path / "checkout" / package, ignore=ignored)
    return tmp_path / "checkout"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("faults")


class Board:
    """Collects what the tests told, in the process that reports; with several workers they tell it through pytest."""

    def __init__(self) -> None:
        self.scores: dict[int, list[dict[str, Any]]] = {}
        self.failed: set[int] = set()
        self.started = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = Path(report.location[0]).name
        row = int(name[5:7]) if name.startswith("test_") and name[5:7].isdigit() else None
        if report.failed and row is not None:
            self.failed.add(row)
        if report.when == "teardown":
            for key, told in report.user_properties:
                if key == _KEPT:
                    score = json.loads(str(told))
                    self.scores.setdefault(score["row"], []).append(score)

    def lines(self) -> list[str]:
        """The table and the counters, as FAULTS.md has them."""
        table = [
            "| # | fault | injected | survived | stages lost | seconds to go on, median |",
            "|---|---|---|---|---|---|",
        ]
        for row, what in ROWS.items():
            scores = self.scores.get(row, [])
            injected, survived, lost = (sum(s[k] for s in scores) for k in ("injected", "survived", "lost"))
            seconds = [second for s in scores for second in s["seconds"]]
            shown = f"{statistics.median(seconds):.1f}" if seconds else ""
            table.append(f"| {row} | {what} | {injected} | {survived} | {lost} | {shown} |")
        every = [score for told in self.scores.values() for score in told]
        lost, wrong, orphans = (sum(score[key] for score in every) for key in ("lost", "wrong", "orphans"))
        return [
            f"**{sum(map(self.survives, ROWS))} of {len(ROWS)} survived.** "
            f"Finished stages lost: {lost}. Wrong store hits: {wrong}. Orphan processes: {orphans}.",
            "",
            *table,
        ]

    def survives(self, row: int) -> bool:
        """Whether faults of this row were injected, nothing failed, and the counters are 0."""
        scores = self.scores.get(row, [])
        injected, survived = (sum(s[k] for s in scores) for k in ("injected", "survived"))
        harmed = any(score[key] for score in scores for key in ("lost", "wrong", "orphans"))
        return row not in self.failed and injected == survived > 0 and not harmed

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """FAULTS.md is of all rows: one that was skipped, or isn't there, is a failure."""
        if "FAULTS_MD" in os.environ and not exitstatus and not all(map(self.survives, ROWS)):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.scores:
            return
        terminalreporter.section("faults")
        for line in self.lines():
            terminalreporter.line(line)
        if (place := os.environ.get("FAULTS_MD")) is not None:
            Path(place).write_text(self.page(), encoding="utf-8")

    def page(self) -> str:
        """FAULTS.md."""
        import optuna
        import ray
        import torch

        versions = f"torch {torch.__version__}, ray {ray.__version__}, optuna {optuna.__version__}"
        where = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {versions}"
        head = [
            "# Faults",
            "",
            "Written by `make test-faults`, which injects each of these faults for real, and counts. A row survives if",
            "all its faults did: nothing finished is lost, no result differs from an undisturbed run's, no process is",
            "left.",
            "",
            f"{time.strftime('%Y-%m-%d')}, {where}.",
            f"{time.monotonic() - self.started:.0f} s in all.",
            "",
        ]
        return "\n".join([*head, *self.lines(), ""])


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Board(), "faults-board")
