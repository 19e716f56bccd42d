"""The sampler benchmark on a small made-up table; nothing is trained."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.samplers import __main__ as command
from benchmarks.samplers import record, show, table
from benchmarks.samplers.replay import (
    STOCK,
    TOLD,
    Job,
    Recorded,
    attainment,
    front,
    growth,
    recorded,
    replay,
    replay_stock,
    run,
    smallest_box,
)
from reports.budget import hypervolume
from search.draws import enumerate_space
from smskd import pipeline
from smskd.experiment import Experiment
from smskd.recipe import Recipe

RECIPES = {prefix.id: prefix for whole in table.longest() for prefix in whole.prefixes()}


@pytest.fixture(scope="module")
def world() -> Recorded:
    """Accuracy grows with the stages; orders that begin with kd are better, and cost more."""
    rng = np.random.default_rng(0)
    accuracy = {
        key: 0.8 + 0.02 * len(recipe.stages) + 0.03 * str(recipe).startswith("kd") + float(rng.normal(0, 0.004))
        for key, recipe in RECIPES.items()
    }
    flops = {key: 10.0 if str(recipe.stages[-1]) == "kd" else 6.0 for key, recipe in RECIPES.items()}
    return Recorded(accuracy=accuracy, stage_flops=flops)


def test_the_space_is_the_table() -> None:
    points = enumerate_space(table.suggest)
    assert points is not None and len(table.longest()) == 96
    assert set(points) == set(RECIPES) and len(RECIPES) == 4 + (12 + 24 + 24) * 4
    assert {len(params) for params, _ in points.values()} == {6}, "padded: every parameter is drawn always"


def test_the_recorded_file_is_whole() -> None:
    rows = table.read()
    assert set(rows["recipe_id"]) == set(RECIPES) and len(rows) == 244 * rows["seed"].nunique()
    assert rows["seed"].nunique() >= 3
    assert rows["val_accuracy"].between(0.7, 0.96).all() and (rows["stage_flops"] > 1e9).all()


def test_recording_writes_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(recipe: Recipe, experiment: Experiment, **settings: Any) -> Any:
        assert settings["seed"] in (0, 1) and experiment == Experiment()
        assert {dict(stage.settings)["epochs"] for stage in recipe.stages} == {record.EPOCHS}
        stages = [
            SimpleNamespace(val_accuracy=0.5 + k / 100 + settings["seed"] / 10, train_flops=1e9 * (k + 1))
            for k in range(len(recipe.stages))
        ]
        return SimpleNamespace(stages=stages)

    monkeypatch.setattr(pipeline, "run", trained)
    rows = [row for seed in (0, 1) for row in record.one_seed(seed, "nowhere")]
    record.write(rows, tmp_path / "table.csv")
    found = table.read(tmp_path / "table.csv")
    assert len(found) == 2 * 244 and set(found["recipe_id"]) == set(RECIPES)
    world = recorded(found)
    for key, recipe in RECIPES.items():
        n = len(recipe.stages)
        assert world.accuracy[key] == pytest.approx(0.55 + (n - 1) / 100)
        assert world.train_flops(recipe) == 1e9 * n * (n + 1) / 2
    record.write(rows[:-1], tmp_path / "table.csv")
    with pytest.raises(ValueError, match="every recipe must have every seed once"):
        table.read(tmp_path / "table.csv")


def test_a_whole_replay_pays_each_stage_once(world: Recorded) -> None:
    told = replay(world, "exhaustive", seed=0)
    assert list(told.columns) == TOLD and set(told["recipe_id"]) == set(RECIPES) and len(told) == 244
    assert told["spent_flops"].tolist() == [world.stage_flops[key] for key in told["recipe_id"]]
    assert told["trial"].tolist() == list(range(244))  # shortest first: each trial has one stage to train


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_a_replay_settles_beginnings_and_repeats_nothing(world: Recorded, sampler: str) -> None:
    told = replay(world, sampler, seed=3, trials=12)
    assert told["recipe_id"].is_unique and told["trial"].nunique() == 12 < len(told)
    assert told["spent_flops"].tolist() == [world.stage_flops[key] for key in told["recipe_id"]]
    for key, place in zip(told["recipe_id"], told["position"], strict=True):
        assert {prefix.id for prefix in RECIPES[key].prefixes()} <= set(told["recipe_id"][: place + 1])
    assert told.equals(replay(world, sampler, seed=3, trials=12))
    assert not told.equals(replay(world, sampler, seed=4, trials=12))
    assert len(replay(world, sampler, seed=3, recipes=15)) == 15


def test_early_stopping_saves_and_says_what_it_gave_up(world: Recorded) -> None:
    free = replay(world, "exhaustive", seed=0)
    stopped = replay(world, "exhaustive", seed=0, margin=0.01)
    assert free.equals(replay(world, "exhaustive", seed=0, margin=1.0))
    given_up = stopped[stopped["status"] == "pruned"]
    assert 0 < len(given_up) < 244 and given_up["val_accuracy"].isna().all()
    assert stopped["spent_flops"].sum() < free["spent_flops"].sum()
    # `at` alone is as dear as `fitnets` and now two points behind it: nothing that begins with it is trained
    alone = {recipe.path: key for key, recipe in RECIPES.items() if len(recipe.stages) == 1}
    behind = replace(world, accuracy=world.accuracy | {alone["at"]: world.accuracy[alone["fitnets"]] - 0.02})
    given_up = replay(behind, "exhaustive", seed=0, margin=0.01).query("status == 'pruned'")
    ended = {key for key in given_up["recipe_id"] if RECIPES[key].path.startswith("at>")}
    assert ended == {key for key, recipe in RECIPES.items() if recipe.path.startswith("at>")}
    assert given_up.loc[given_up["recipe_id"].isin(ended), "spent_flops"].sum() == 0


def test_stock_search_pays_in_full_and_repeats(world: Recorded) -> None:
    told = replay_stock(world, seed=0, trials=30)
    ids = told["recipe_id"].str[:12]
    assert len(told) == 30 and told["recipe_id"].is_unique and ids.nunique() < 30
    assert told["spent_flops"].tolist() == [world.train_flops(RECIPES[key]) for key in ids]
    assert told["val_accuracy"].tolist() == [world.accuracy[key] for key in ids]


def test_growth_by_trial(world: Recorded) -> None:
    box = smallest_box(world, list(RECIPES.values()))
    told = replay(world, "random", seed=0, trials=6)
    grown = growth(told, box)
    assert grown["trial"].tolist() == [1, 2, 3, 4, 5, 6]
    for trial, spent, volume in grown.itertuples(index=False):
        until = told[told["trial"] < trial]
        assert spent == until["spent_flops"].sum()
        assert volume == pytest.approx(hypervolume(front(until), box))
    everything = np.array([[1 - world.accuracy[key], world.train_flops(recipe)] for key, recipe in RECIPES.items()])
    assert (everything.min(axis=0) == [box.error[0], box.cost[0]]).all()
    assert (everything.max(axis=0) == [box.error[1], box.cost[1]]).all()


POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.lists(POINTS, min_size=1, max_size=5), st.sampled_from([25, 50, 75, 100]))
def test_attainment_against_the_definition(runs: list[list[tuple[int, int]]], percent: int) -> None:
    arrays = [np.array(run, dtype=np.float64) for run in runs]
    corners = attainment(arrays, percent)
    assert (np.diff(corners[:, 1]) >= 0).all()
    for place in itertools.product(range(6), repeat=2):
        by = sum(any((point <= place).all() for point in run) for run in arrays)
        assert any((corner <= place).all() for corner in corners) == (by >= math.ceil(percent / 100 * len(runs)))


def test_attainment_refuses_what_moocore_takes() -> None:
    for bad in (np.zeros((0, 2)), np.array([[0.1, math.nan]])):
        with pytest.raises(ValueError, match="every run needs finite points, but run 1"):
            attainment([np.array([[0.1, 1.0]]), bad], 50)
    with pytest.raises(ValueError, match="0 < percent <= 100"):
        attainment([np.array([[0.1, 1.0]])], 0)


def test_curves_by_hand() -> None:
    runs = [
        pd.DataFrame({"trial": [1, 2, 3], "spent": [2.0, 4.0, 6.0], "hypervolume": [0.1, 0.2, 0.5]}),
        pd.DataFrame({"trial": [1, 2], "spent": [3.0, 5.0], "hypervolume": [0.3, 0.4]}),
    ]
    by_trial = show.by_trial(runs)
    assert by_trial["x"].tolist() == [1, 2] and by_trial["middle"].tolist() == pytest.approx([0.2, 0.3])
    by_spent = show.by_spent(runs, np.array([1.0, 2.0, 3.0, 4.5, 6.0]))
    assert by_spent["x"].tolist() == [1, 2, 3, 4.5]  # the second run ended at 5
    assert by_spent["middle"].tolist() == pytest.approx([0, 0.05, 0.2, 0.25])
    assert by_spent["low"].tolist() == pytest.approx([0, 0.025, 0.15, 0.225])
    assert show.quartile_text(by_trial, 2) == "0.300 (0.250 to 0.350)" and show.quartile_text(by_trial, 9) == "-"


def test_tables_and_figure(world: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "FIGURE", tmp_path / "figure.svg")
    box = smallest_box(world, list(RECIPES.values()))
    told = {name: [replay(world, name, seed=s, trials=6) for s in (0, 1)] for name in ("tpe", "random")}
    told[STOCK] = [replay_stock(world, seed=s, trials=6) for s in (0, 1)]
    lines = command.compare(told, box, sum(world.stage_flops.values())).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["`tpe`", "`random`", f"`{STOCK}`"]
    assert len({line.count("|") for line in lines}) == 1
    drawn = (tmp_path / "figure.svg").read_text()
    assert "against trials" in drawn and all(name in drawn for name in told)
    early = {("random", margin): [replay(world, "random", seed=0, recipes=40, margin=margin)] for margin in (None, 0.0)}
    row = command.stopping(early, box).splitlines()[2].split("|")
    spent = [runs[0]["spent_flops"].sum() for runs in early.values()]
    assert row[2].strip() == "0" and row[4].strip() == f"{100 * (1 - spent[1] / spent[0]):.0f} %"


def test_jobs_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = command.comparison()
    assert {job.sampler: sum(one.sampler == job.sampler for one in jobs) for job in jobs} == {
        "exhaustive": 1, **dict.fromkeys(["tpe", "nsga2", "gp", "random", STOCK], command.REPEATS),
    }  # fmt: skip
    assert len(command.stopped()) == (1 + len(command.MARGINS)) * (1 + 2 * command.REPEATS)
    assert len(run(Job(sampler="random", seed=0, trials=1))) >= 1
    assert len(run(Job(sampler=STOCK, seed=0, trials=2))) == 2
    with pytest.raises(SystemExit, match="no argument, or the word record, is expected, but got recrod"):
        command.main(["recrod"])
