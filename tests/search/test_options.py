"""Settings of a search through the command line, by what they leave in its files. One store, so little is trained."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest

from smskd import data, pairs, pipeline
from smskd.recipe import parse

ROOT = Path(__file__).parents[2]
SMALL = ["methods=[kd,rkd]", "train_size=100", "epochs=1", "seeds=2", "confirm=0", "teacher_epochs=1", "log=[]"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("options") / "store"


def search(out: Path, store: Path, *words: str, code: int = 0) -> str:
    given = {word.partition("=")[0] for word in words}
    small = [word for word in SMALL if word.partition("=")[0] not in given]
    command = [sys.executable, "-m", "search.run", *small, f"out={out}", f"store={store}", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def rows(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "results.parquet")


def run_json(out: Path) -> Any:
    return json.loads((out / "run.json").read_text())


@pytest.mark.slow
def test_more_trials_go_on_from_a_finished_run(tmp_path: Path, store: Path) -> None:
    out = tmp_path / "run"
    search(out, store, "trials=2", "confirm=1")
    first = rows(out)
    assert first.loc[first["phase"] == "search", "recipe"].nunique() == 2
    told = search(out, store, "trials=4", "confirm=1", "reopen_test=true")
    after = rows(out)
    assert after.loc[after["phase"] == "search", "recipe"].nunique() == 4
    same = ["recipe_id", "seed", "phase", "val_accuracy", "test_accuracy", "train_flops"]
    kept = after.merge(first[same], on=["recipe_id", "seed", "phase"], suffixes=("", "_before"))
    assert len(kept) == len(first) and (kept["val_accuracy"] == kept["val_accuracy_before"]).all()
    assert "] kd, seed 0" not in told, "what was there is not run again"


def test_two_costs_and_a_limit(tmp_path: Path, store: Path) -> None:
    out = tmp_path / "run"
    counter = pipeline.Counter(pairs.get("tiny"), data.load("digits", train_size=100))
    two = min(sum(counter.stages(parse(recipe), [1, 1])) for recipe in ("kd>rkd", "rkd>kd"))
    search(out, store, "cost=[flops,seconds]", f"max_flops={0.99 * two}")
    kept = rows(out)
    assert set(kept.loc[kept["status"] == "complete", "recipe"]) == {"kd", "rkd"}
    run = run_json(out)
    assert run["objectives"] == ["error", "flops", "seconds"]
    assert run["limits"]["flops"] == pytest.approx(0.99 * two)
    assert set(pd.read_csv(out / "front.csv")["recipe"]) <= {"kd", "rkd"}
    told = search(tmp_path / "none", store, "max_flops=10", code=2)
    assert "max_flops=10 can't hold for any recipe" in told
    told = search(tmp_path / "small", store, "max_params=10", code=2)
    assert "1442 parameters" in told


@pytest.mark.slow
def test_knowledge_of_another_run_is_no_result_of_this_one(tmp_path: Path, store: Path) -> None:
    other, out = tmp_path / "other", tmp_path / "run"
    search(other, store)
    search(out, store, "sampler=tpe", "trials=2", "seeds=1", f"warm_start={other}")
    assert rows(out)["recipe"].nunique() == 2 and (rows(out)["seed"] == 0).all()
    study = optuna.load_study(study_name="smskd", storage=f"sqlite:///{out / 'study.db'}")
    learnt = [trial for trial in study.get_trials() if "from" in trial.user_attrs]
    assert {trial.user_attrs["recipe"] for trial in learnt} == {"kd", "rkd", "kd>rkd", "rkd>kd"}
    told = search(tmp_path / "else", store, "sampler=tpe", "cost=seconds", f"warm_start={other}", code=2)
    assert "needs runs of the same pair, data, cost" in told
    assert "there is no study.db" in search(out, store, "sampler=tpe", f"warm_start={tmp_path}", code=2)


@pytest.mark.slow
def test_a_recipe_that_is_dominated_gives_up_its_later_stages(tmp_path: Path, store: Path) -> None:
    out = tmp_path / "run"
    # of two equally cheap first stages the worse is dominated by any difference; both stay recipes of their own
    search(out, store, "methods=[kd,rkd,at]", "max_stages=2", "stop=dominated", "stop_margin=0")
    found = rows(out)
    single = found[found["n_stages"] == 1].groupby("recipe").agg({"val_accuracy": "mean", "train_flops": "mean"})
    assert set(found.loc[found["n_stages"] == 1, "status"]) == {"complete"}
    pruned = found[found["status"] == "pruned"]
    for recipe in pruned["recipe"].unique():
        prefix = single.loc[recipe.partition(">")[0]]
        better = single[(single["train_flops"] <= prefix["train_flops"])]["val_accuracy"].max()
        assert better > prefix["val_accuracy"], f"{recipe} was given up, and nothing dominates its first stage"
    assert len(pruned) and not set(pruned["recipe"]) & set(pd.read_csv(out / "front.csv")["recipe"])
    study = optuna.load_study(study_name="smskd", storage=f"sqlite:///{out / 'study.db'}")
    states = {t.user_attrs["recipe"]: t.state.name for t in study.get_trials() if "recipe" in t.user_attrs}
    assert {states[recipe] for recipe in pruned["recipe"]} == {"PRUNED"}
    assert run_json(out)["stage_runs"] <= 2 * 9, "first stages once, second ones of those that went on"


@pytest.mark.parametrize("content", ["garbage", "another database", "half a study"])
def test_a_study_that_is_none_is_named(tmp_path: Path, store: Path, content: str) -> None:
    out = tmp_path / "run"
    out.mkdir()
    if content == "garbage":
        (out / "study.db").write_bytes(b"no database at all" * 100)
    else:
        with sqlite3.connect(out / "study.db") as database:
            database.execute(
                "CREATE TABLE " + ("recipes (a INT)" if content == "another database" else "trials (a INT)")
            )
    told = search(out, store, code=2)
    assert "study.db" in told and "use another out=" in told
    assert "Traceback" not in told
