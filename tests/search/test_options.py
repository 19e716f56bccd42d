"""Objectives, limits, early stopping, learning from other runs, more trials: through the command line, on digits."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest

from search.config import cores
from search.stopping import dominated_by
from tests.runs import search


def rows(out: Path, phase: str = "search") -> pd.DataFrame:
    table = pd.read_parquet(out / "results.parquet")
    return table[table["phase"] == phase]


def info(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "run.json").read_text()))


def well(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("options")


@pytest.fixture(scope="module")
def three(folder: Path) -> Path:
    """A run with three objectives, of three recipes at first, and then of all four."""
    words = ["cost=[flops,seconds]", "sampler=nsga2", "reopen_test=true"]
    out = folder / "three"
    well(search(out, folder / "store", *words, "trials=3"))
    assert rows(out)["recipe_id"].nunique() == 3
    first = rows(out).set_index(["recipe", "seed"])
    well(search(out, folder / "store", *words, "trials=4"))
    second = rows(out).set_index(["recipe", "seed"])
    pd.testing.assert_frame_equal(second.loc[first.index], first)  # positions, too
    return out


@pytest.fixture(scope="module")
def limited(folder: Path, three: Path) -> Path:
    """A run that recipes of two stages are too costly for."""
    out = folder / "limited"
    well(search(out, folder / "store", f"max_flops={bound(three)}"))
    return out


def bound(three: Path) -> float:
    return 1.5 * float(rows(three).query("n_stages == 1")["train_flops"].max())


@pytest.mark.slow
def test_three_objectives_and_more_trials_for_a_finished_run(three: Path) -> None:
    told, table = info(three), rows(three)
    assert told["objectives"] == ["error", "flops", "seconds"] and told["recipes"] == 4
    assert table["recipe_id"].nunique() == 4 and (table["status"] == "complete").all()
    means = table.groupby("recipe_id")[["val_accuracy", "train_flops", "device_seconds"]].mean()
    points = {name: (1 - row.val_accuracy, row.train_flops, row.device_seconds) for name, row in means.iterrows()}
    front = {
        name
        for name, mine in points.items()
        if not any(o != mine and all(a <= b for a, b in zip(o, mine, strict=True)) for o in points.values())
    }
    assert front == set(told["front"]) == set(pd.read_csv(three / "front.csv")["recipe_id"])
    assert front <= set(rows(three, "confirm")["recipe_id"])
    study = optuna.load_study(study_name="smskd", storage=f"sqlite:///{three / 'study.db'}")
    assert study.metric_names == ["error", "flops", "seconds"]
    assert {t.user_attrs["recipe"] for t in study.trials if t.state.name == "COMPLETE"} == set(table["recipe"])


@pytest.mark.slow
def test_every_position_is_taken_once_and_every_stage_paid_once(three: Path) -> None:
    table = pd.read_parquet(three / "results.parquet").sort_values("position")
    assert table["position"].tolist() == list(range(len(table)))
    assert table["phase"].tolist() == sorted(table["phase"], reverse=True)
    for _, group in table.groupby(["recipe_id", "phase"]):
        assert group["position"].max() - group["position"].min() == len(group) - 1
    stages = pd.read_csv(three / "stages.csv")
    # kd and rkd, once a seed; each second stage is another
    paid = table[table["phase"] == "search"]["spent_flops"].sum()
    alone = table[(table["phase"] == "search")].groupby("n_stages")["train_flops"].sum()
    assert paid == pytest.approx(alone[2])
    assert len(stages) == table["n_stages"].sum()
    box = info(three)["box"]
    assert box["cost_name"] == "flops" and box["cost"][0] < table["train_flops"].min()
    assert box["cost"][1] > table["train_flops"].max()


@pytest.mark.slow
def test_what_costs_more_than_the_limit_is_listed_and_not_trained(limited: Path, three: Path) -> None:
    out, most = limited, bound(three)
    table, told = rows(out), info(out)
    assert told["limits"] == {"params": None, "latency_ms": None, "flops": most}
    assert set(table.loc[table["status"] == "complete", "methods"]) == {"kd", "rkd"}
    left_out = table[table["status"] == "pruned"]
    assert set(left_out["methods"]) == {"kd>rkd", "rkd>kd"} and left_out["val_accuracy"].isna().all()
    assert (left_out[["spent_flops", "spent_seconds"]] == 0).all(axis=None)
    # what was counted is what training them recorded
    for recipe, group in left_out.groupby("recipe"):
        (cost,) = rows(three).loc[rows(three)["recipe"] == recipe, "train_flops"].unique()
        assert group["error"].str.contains(f"flops {cost:.6g} is more than {most:.6g}", regex=False).all()
    front = set(told["front"])
    assert told["winner"] in front and not front & set(left_out["recipe_id"])
    assert not set(rows(out, "confirm")["recipe_id"]) & set(left_out["recipe_id"])
    assert told["stage_runs"] == 0  # the other run had trained these
    study = optuna.load_study(study_name="smskd", storage=f"sqlite:///{out / 'study.db'}")
    for trial in study.trials:
        assert (trial.constraints["flops"] > 0) == (trial.state.name == "PRUNED")
    again = search(out, out.parent / "store", f"max_flops={most}")
    assert "0 stages trained now" in " ".join(well(again).split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["max_params=10"], "max_params=10 can't hold for any recipe: the student of pair=tiny has 1442 parameters"),
        (["max_flops=1e3"], "max_flops=1000 can't hold for any recipe: the cheapest, kd epochs=1, takes"),
        (["max_latency_ms=1e-6"], "max_latency_ms=1e-06 can't hold for any recipe: the student takes"),
        (["warm_start=[nowhere]", "sampler=tpe"], "warm_start=nowhere: there is no study.db"),
        (["warm_start=.", "sampler=tpe"], "there is no study.db"),
        (["stop=dominated", "epochs=", "epochs_total=4"], "leave stop= out"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    folder: Path, three: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    out = tmp_path / "run"
    before = set((folder / "store" / "entries").glob("*/*"))
    result = search(out, folder / "store", *words)
    assert result.returncode == 2, result.stdout + result.stderr
    assert said in result.stderr and len(result.stderr.splitlines()) == 1
    assert set((folder / "store" / "entries").glob("*/*")) == before
    assert not (out / "results.parquet").exists()


@pytest.mark.slow
def test_another_runs_recipes_are_known_and_are_no_results(folder: Path, three: Path, limited: Path) -> None:
    out = folder / "warm"
    words = ["space=everything", "max_stages=2", "trials=3", "sampler=tpe", f"warm_start={limited}"]
    well(search(out, folder / "store", *words))
    assert rows(out)["recipe_id"].nunique() == 3 and info(out)["recipes"] == 3
    assert set(pd.read_csv(out / "front.csv")["recipe_id"]) <= set(rows(out)["recipe_id"])
    study = optuna.load_study(study_name="smskd", storage=f"sqlite:///{out / 'study.db'}")
    assert study.user_attrs["learnt"] == {str(limited): 2}
    known = [t for t in study.trials if t.user_attrs.get("from") == str(limited)]
    assert {t.user_attrs["recipe"] for t in known} == {"kd epochs=1", "rkd epochs=1"}
    result = search(folder / "other", folder / "store", "sampler=tpe", f"warm_start={three}")
    assert result.returncode == 2 and "has cost=flops,seconds and this run cost=flops" in result.stderr


@pytest.mark.slow
def test_what_begins_with_a_dominated_stage_is_given_up(folder: Path) -> None:
    out = folder / "stopped"
    # a teacher of one epoch knows nothing: the student does better alone, and for less
    # one trial at a time, so that `ce` has ended when `kd` is weighed
    words = ["methods=[ce,kd]", "train_size=500", "epochs=5", "stop=dominated", "stop_margin=2", f"cpus={cores()}"]
    well(search(out, folder / "store", *words))
    table = rows(out)
    means = table[table["n_stages"] == 1].groupby("methods")[["val_accuracy", "train_flops"]].mean()
    point = {name: (1 - row.val_accuracy, row.train_flops) for name, row in means.iterrows()}
    assert dominated_by(point["kd"], {"ce": point["ce"]}, 0.02) == "ce", point
    assert set(table.loc[table["status"] == "complete", "methods"]) == {"ce", "kd", "ce>kd"}
    given_up = table[table["status"] == "pruned"]
    assert set(given_up["methods"]) == {"kd>ce"} and len(given_up) == 2
    assert given_up["error"].str.contains("given up after stage 1 of 2: kd epochs=5 has").all()
    assert (given_up["spent_flops"] == 0).all()  # its one stage is that of `kd`, which stands before it
    assert info(out)["stage_runs"] == 6 and not set(info(out)["front"]) & set(given_up["recipe_id"])
    study = optuna.load_study(study_name="smskd", storage=f"sqlite:///{out / 'study.db'}")
    assert sorted(t.state.name for t in study.trials) == ["COMPLETE"] * 3 + ["PRUNED"]
    assert "0 stages trained now" in " ".join(well(search(out, folder / "store", *words)).split())


def test_a_study_that_is_none_is_named_and_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "study.db").write_bytes(b"garbage " * 1000)
    result = search(out, tmp_path / "store")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert f"{out / 'study.db'} is no study" in result.stderr and "use another out=" in result.stderr
    assert (out / "study.db").read_bytes() == b"garbage " * 1000
