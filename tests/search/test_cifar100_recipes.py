"""The README's recipes for CIFAR-100, run as they stand there but for lengths, on files of the set's layout."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import cifar100_cost
from search import config
from smskd import bench

ROOT = Path(__file__).parents[2]
SECTION = re.search(
    r"^## Recipes for CIFAR-100\n(.*?)^## ", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M | re.S
)
assert SECTION, "README.md must have a section Recipes for CIFAR-100"
BLOCK = re.search(r"^```sh\n(.*?)^```$", SECTION[1], flags=re.M | re.S)
assert BLOCK, "the section must have its commands in a block of sh"
*SEARCHES, REPORT = [shlex.split(line) for line in BLOCK[1].replace("\\\n", "").splitlines()]
# one step an epoch; four stages need four epochs
SMALL = ["epochs_total=4", "seeds=1", "confirm=1", "teacher_epochs=1"]
TRAIN_IMAGES, TEST_IMAGES, CLASSES_SEEN = 20, 4, 2
SECONDS = 3600


def small(command: list[str]) -> list[str]:
    """The command's words after `python -m search.run`, at the lengths of a test."""
    replaced = {word.partition("=")[0] for word in SMALL}
    return [word for word in command[3:] if word.partition("=")[0] not in replaced] + SMALL


def pair_of(command: list[str]) -> str:
    return next(word.removeprefix("pair=") for word in command if word.startswith("pair="))


def execute(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """`python -m ...` with this project's code, in a folder of its own: relative paths lead there."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a very small CIFAR-100 where a download would have put it."""
    folder = tmp_path_factory.mktemp("home")
    place = folder / "runs" / "data" / "cifar-100-python"
    place.mkdir(parents=True)
    for name, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        images = np.random.default_rng(count).integers(0, 256, (count, 3072), dtype=np.uint8)
        entry = {
            "filenames": [f"{k}.png" for k in range(count)],
            "batch_label": "training batch 1 of 1",
            "fine_labels": [k % CLASSES_SEEN for k in range(count)],
            "coarse_labels": [0] * count,
            "data": images,
        }
        (place / name).write_bytes(pickle.dumps(entry, protocol=2))
    return folder


@pytest.fixture(scope="module")
def searched(home: Path) -> Callable[[list[str]], Path]:
    """Runs a command of a search, once, and says where its folder is."""
    done: dict[str, Path] = {}

    def search(command: list[str]) -> Path:
        pair = pair_of(command)
        if pair not in done:
            result = execute(["-m", "search.run", *small(command)], home)
            assert result.returncode == 0, result.stdout + result.stderr
            done[pair] = home / next(word.removeprefix("out=") for word in command if word.startswith("out="))
        return done[pair]

    return search


def test_the_commands_are_those_that_are_counted() -> None:
    assert [command[:3] for command in SEARCHES] == [["python", "-m", "search.run"]] * 3
    assert REPORT[:3] == ["python", "-m", "reports.paper"]
    assert tuple(map(pair_of, SEARCHES)) == cifar100_cost.PAIRS
    for command in SEARCHES:
        given = config.parse(command[3:])
        counted = config.parse([*cifar100_cost.SETTINGS, f"pair={given.pair}"])
        assert given.identity == counted.identity
        assert given.confirm == counted.confirm == given.seeds == 5
        assert f"run={given.out}" in REPORT


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
def test_the_table_of_costs_is_what_the_script_prints() -> None:
    assert cifar100_cost.table() in SECTION[1]


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("command", SEARCHES, ids=pair_of)
def test_a_pairs_search(command: list[str], searched: Callable[[list[str]], Path], home: Path) -> None:
    out = searched(command)
    rows = pd.read_parquet(out / "results.parquet")
    assert set(rows["status"]) == {"complete"}
    assert set(rows["epochs_total"]) == {4}
    assert set(rows["pair"]) == {pair_of(command)}
    for phase in ("search", "confirm"):
        assert rows.loc[rows["phase"] == phase, "recipe_id"].nunique() == 20
    assert rows.loc[rows["phase"] == "confirm", "test_accuracy"].notna().all()
    # what the README's table says of the whole is counted as this run counted itself
    settings = config.parse(small(command))
    data = bench.load_data(replace(settings.experiment, data_dir=str(home / "runs" / "data")))
    cost, told = cifar100_cost.count(settings, data), json.loads((out / "run.json").read_text())
    assert (cost.stage_runs, cost.stage_runs_unshared) == (told["stage_runs"], told["stage_runs_unshared"])
    assert rows.loc[rows["phase"] == "search", "train_flops"].sum() == pytest.approx(cost.flops_unshared)
    assert rows["extra_teacher_flops"].max() == pytest.approx(cost.more_teachers_flops)


@pytest.mark.slow
@pytest.mark.timeout(3 * SECONDS)
def test_the_paper_report_of_all_pairs(searched: Callable[[list[str]], Path], home: Path) -> None:
    for command in SEARCHES:
        searched(command)
    result = execute(REPORT[1:], home)
    assert result.returncode == 0, result.stderr
    text = (home / "runs" / "paper" / "paper.md").read_text(encoding="utf-8")
    assert "cifar100" in text
    assert all(pair.replace("_", r"\_") in text for pair in cifar100_cost.PAIRS)
    for missing in ("not run", "not complete", "unequal"):
        assert missing not in text
