"""Row 4: Ray's memory monitor kills a worker, which ends Tune's whole fit()."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import runs
from tests.faults.conftest import Score

ROW = 4
# More than other tests take meanwhile, and so little that one trial reaches it within seconds.
SPARE = 6 * 2**30
# In the second stage of one recipe, training takes more and more memory; names are of smskd.stage.
HUNGRY = """
import os, time

trained = train_stage

def train_stage(student, work, *given, **named):
    place = os.environ["HUNGRY"]
    if work.recipe.path == "kd>rkd":
        tries = sorted(os.listdir(place))
        open(os.path.join(place, f"{time.time_ns()}-{work.seed}"), "w").close()
        held = []
        while len(tries) < int(os.environ["HUNGRY_TRIES"]):
            held.append(bytearray(os.urandom(1)) * 2**27)
    return trained(student, work, *given, **named)
"""


def available() -> tuple[int, int]:
    """Memory of the machine, in bytes: what can be had, and all of it."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    found = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return found["MemAvailable"], found["MemTotal"]


def search_with_a_hungry_recipe(tmp_path: Path, tries: int) -> tuple[Path, str, int]:
    """A search on this machine with little memory to spare; its folder, what it printed, its exit code.

    tries: how often the recipe kd>rkd takes all memory that there is, before it is content.
    """
    free, total = available()
    if free < SPARE + 2**31:
        pytest.skip(f"needs {SPARE / 2**30 + 2:g} GiB of free memory, and there are {free / 2**30:.1f}")
    (tmp_path / "tries").mkdir()
    path = runs.sabotage(tmp_path / "site", "smskd.stage", HUNGRY)
    variables = {
        "PYTHONPATH": path, "HUNGRY": str(tmp_path / "tries"), "HUNGRY_TRIES": str(tries),
        "RAY_memory_monitor_refresh_ms": "50", "RAY_memory_usage_threshold": f"{1 - (free - SPARE) / total:.4f}",
    }  # fmt: skip
    done = runs.search(tmp_path / "run", tmp_path / "store", mark=str(tmp_path), **variables)
    return tmp_path / "run", done.stdout + done.stderr, done.returncode


@pytest.mark.slow
def test_a_trial_that_was_killed_for_memory_is_tried_again(
    tmp_path: Path, score: Score, undisturbed: tuple[Path, Path]
) -> None:
    with score.fault():
        run, told, code = search_with_a_hungry_recipe(tmp_path, 1)
        assert code == 0, told
        tries = sorted(path.name for path in (tmp_path / "tries").iterdir())
        assert len(tries) >= 3  # two seeds, and one of them again
        score.went_on((int(tries[1].partition("-")[0]) - int(tries[0].partition("-")[0])) / 1e9)
        score.same(run, runs.table(undisturbed[0]))
        score.no_orphans(str(tmp_path))


@pytest.mark.slow
def test_a_recipe_that_always_runs_out_of_memory_fails_alone(
    tmp_path: Path, score: Score, undisturbed: tuple[Path, Path]
) -> None:
    with score.fault():
        run, told, code = search_with_a_hungry_recipe(tmp_path, 1000)
        assert code == 3, told
        table = runs.table(run)
        assert {recipe.split()[0] for recipe in table.loc[table["status"] == "failed", "recipe"]} == {"kd>rkd"}
        score.no_orphans(str(tmp_path))
