from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from search import config, draws
from search.study import Asked, Design, Goal, Study
from smskd.recipe import Recipe
from smskd.result import Result
from tests.search.made_up import result


def values(told: Result) -> tuple[float, ...]:
    return 1 - told.val_accuracy, float(len(told.stages))


def open_study(
    folder: Path, words: list[str], *, margin: float | None = None, sources: Mapping[str, str] | None = None
) -> Study:
    settings = config.parse(words)
    return Study(
        draws.look(settings.search_space()),
        f"sqlite:///{folder / 'study.db'}",
        identity=settings.identity,
        goal=Goal(values=values),
        design=Design(
            seeds=settings.search_seeds,
            sampler=settings.sampler,
            trials=settings.trials,
            seed=settings.seed,
            margin=margin,
        ),
        sources=sources or {},
    )


def finish(study: Study, asked: Asked, **kind: Any) -> None:
    for seed in range(3):
        study.tell(asked, result(asked.recipe, seed, **kind))


def drain(study: Study) -> list[str]:
    ran = []
    while (asked := study.ask()) is not None:
        ran.append(asked.recipe.id)
        finish(study, asked)
    return ran


def states(folder: Path) -> list[str]:
    study = optuna.load_study(study_name="smskd", storage=f"sqlite:///{folder / 'study.db'}")
    return [trial.state.name for trial in study.trials]


def attributes(folder: Path) -> list[dict[str, Any]]:
    study = optuna.load_study(study_name="smskd", storage=f"sqlite:///{folder / 'study.db'}")
    return [trial.user_attrs for trial in study.trials]


def test_exhaustive_asks_for_the_shortest_first(tmp_path: Path) -> None:
    study = open_study(tmp_path, [])
    lengths = []
    while (asked := study.ask()) is not None:
        lengths.append(len(asked.recipe.stages))
        finish(study, asked)
    assert lengths == sorted(lengths)
    assert lengths == [1] * 3 + [2] * 6 + [3] * 6


def test_sampled_space_settles_exactly_as_many_recipes_as_asked(tmp_path: Path) -> None:
    study = open_study(tmp_path, ["space=everything", "trials=17"])
    drain(study)
    assert len(study.settled) == 17
    assert states(tmp_path).count("COMPLETE") == 17
    again = open_study(tmp_path, ["space=everything", "trials=20"])
    assert len(again.settled) == 17
    drain(again)
    assert len(again.settled) == 20


def test_study_of_a_dead_driver_goes_on(tmp_path: Path) -> None:
    study = open_study(tmp_path, [])
    finish(study, study.ask())  # type: ignore[arg-type]
    orphan = study.ask()
    assert orphan is not None
    study.tell(orphan, result(orphan.recipe, 0))  # one of three seeds
    after = open_study(tmp_path, [])
    assert len(after.settled) == 1
    ran = drain(after)
    assert orphan.recipe.id in ran
    assert len(after.settled) == 15
    assert "RUNNING" not in states(tmp_path)


@pytest.mark.parametrize("kind", [{"status": "failed"}, {"accuracy": float("nan")}])
def test_failure_and_nan_are_failed_never_complete(tmp_path: Path, kind: dict[str, object]) -> None:
    study = open_study(tmp_path, [])
    asked = study.ask()
    assert asked is not None
    finish(study, asked, **kind)
    assert states(tmp_path) == ["FAIL"]
    assert not study.complete()
    assert asked.recipe.id in {r.id for r, _ in study.settled.values()}
    assert open_study(tmp_path, []).settled == {}  # the same command tries again


def test_study_of_another_search_is_refused(tmp_path: Path) -> None:
    open_study(tmp_path, []).ask()
    with pytest.raises(ValueError, match="epochs: None there, 3 here"):
        open_study(tmp_path, ["epochs=3"])


def test_the_order_of_finishing_outlasts_the_driver(tmp_path: Path) -> None:
    words = ["space=everything", "trials=12"]
    study = open_study(tmp_path, words)
    running = [asked for _ in range(4) if (asked := study.ask())]
    for asked in reversed(running):
        finish(study, asked)
    order = list(study.settled)
    assert order[-1] == running[0].recipe.id
    assert list(open_study(tmp_path, words).settled) == order
    for attribute in attributes(tmp_path):
        begins = attribute.get("begins")
        if begins is not None:  # right before the recipe that it begins, or another beginning of that
            following = next(a for a in attributes(tmp_path) if a.get("order") == attribute["order"] + 1)
            assert begins in (following["recipe"], following.get("begins"))


# --- giving up at the end of a stage: `kd` is good, `rkd` is bad, and each further stage adds little

FIRST = {"kd": 0.9, "fitnets": 0.88, "rkd": 0.8}


def told(recipe: Recipe, seed: int) -> Result:
    def accuracy(prefix: Recipe) -> float:
        return FIRST[recipe.stages[0].path] + 0.01 * (len(prefix.stages) - 1) + 0.001 * seed

    return result(recipe, seed, accuracy)


def run(study: Study, most: int = 1000, seeds: int = 3) -> list[str]:
    """What is trained, one recipe after the other."""
    trained = []
    while len(trained) < most and (asked := study.ask()) is not None:
        settled = False
        while not settled:
            trained.append(str(asked.now))
            settled = [study.tell(asked, told(asked.now, seed)) for seed in range(seeds)][-1]
    return trained


def test_what_begins_with_a_dominated_recipe_is_given_up(tmp_path: Path) -> None:
    study = open_study(tmp_path, ["stop=dominated", "stop_margin=5"], margin=0.05)
    trained = run(study)
    assert trained[:3] == ["kd", "fitnets", "rkd"] and len(trained) == 11
    assert not [name for name in trained if name.startswith("rkd>")]
    given_up = {str(recipe): records for recipe, records in study.settled.values() if records[0].status == "pruned"}
    assert set(given_up) == {"rkd>kd", "rkd>fitnets", "rkd>kd>fitnets", "rkd>fitnets>kd"}
    for records in given_up.values():
        assert [record.seed for record in records] == [0, 1, 2]
        assert [len(record.stages) for record in records] == [1, 1, 1]
        why = "given up after stage 1 of . : rkd has 80.10 % on validation, kd costs no more and has 90.10 %"
        assert why.replace(". :", f"{records[0].error.split(' of ')[1][0]}:") in str(records[0].error)
    assert study.complete() and len(study.settled) == 15
    assert states(tmp_path).count("PRUNED") == 4 and states(tmp_path).count("COMPLETE") == 11
    again = open_study(tmp_path, ["stop=dominated", "stop_margin=5"], margin=0.05)
    assert again.complete() and again.settled == study.settled and again.ask() is None


def test_a_margin_that_nothing_exceeds_gives_nothing_up(tmp_path: Path) -> None:
    study = open_study(tmp_path, [], margin=0.11)
    run(study)
    assert {records[0].status for _, records in study.settled.values()} == {"complete"}
    assert len(study.settled) == 15


def test_a_long_recipe_asked_first_leaves_its_beginnings_and_tells_them_at_once(tmp_path: Path) -> None:
    study = open_study(tmp_path, ["space=everything", "methods=[kd,rkd]", "max_stages=3", "trials=30"], margin=0.05)
    beginnings = 0
    while (asked := study.ask()) is not None:
        settled = False
        while not settled:
            now = asked.now
            settled = [study.tell(asked, told(now, seed)) for seed in range(3)][-1]
            if now != asked.recipe:
                beginnings += 1
                assert study.settled[now.id][1][0].status == "complete"
    assert beginnings and len(study.settled) == 30 and study.complete()
    statuses = [(str(r.stages[0]), len(r.stages), rs[0].status) for r, rs in study.settled.values()]
    assert all(status == "complete" for first, count, status in statuses if count == 1 or first == "kd")
    since_kd = statuses[[recipe.path for recipe, _ in study.settled.values()].index("kd") :]
    bad = {status for first, count, status in since_kd if first == "rkd" and count > 1}
    assert bad == {"pruned"}


def test_after_a_kill_the_same_are_given_up(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = open_study(tmp_path / "whole", [], margin=0.05)
    run(whole)
    killed = open_study(tmp_path, [], margin=0.05)
    run(killed, most=5)
    orphan = killed.ask()
    assert orphan is not None
    killed.tell(orphan, told(orphan.now, 0))
    after = open_study(tmp_path, [], margin=0.05)
    run(after)
    assert after.settled == whole.settled


# --- other runs' studies


def finished_run(folder: Path, words: list[str], most: int = 1000, seeds: int = 3) -> str:
    folder.mkdir(exist_ok=True)
    run(open_study(folder, words), most, seeds)
    return f"sqlite:///{folder / 'study.db'}"


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp"])
def test_a_sampler_learns_from_another_run_and_takes_no_result_from_it(tmp_path: Path, sampler: str) -> None:
    url = finished_run(tmp_path / "other", ["seeds=1", "epochs=1"], seeds=1)
    words = ["space=everything", "methods=[kd,fitnets,rkd]", "trials=4", f"sampler={sampler}"]
    study = open_study(tmp_path, words, sources={"other": url})
    assert study.settled == {} and not study.complete() and study.room() == 4
    assert study.attributes["learnt"] == {"other": 15}  # all orders of three methods are in this space, too
    known = [a for a in attributes(tmp_path) if a.get("from") == "other"]
    assert len(known) == 15
    run(study)
    assert len(study.settled) == 4 and study.complete()
    again = open_study(tmp_path, words, sources={"other": url})
    assert list(again.settled) == list(study.settled) and len(attributes(tmp_path)) < 30


def test_what_was_learnt_is_used(tmp_path: Path) -> None:
    url = finished_run(tmp_path / "other", ["space=everything", "methods=[kd,rkd]", "max_stages=2", "trials=40"])
    words = ["space=everything", "methods=[kd,rkd]", "max_stages=2", "trials=8", "sampler=nsga2", "seed=3"]
    study = open_study(tmp_path, words, sources={"other": url})
    assert study.ask() is not None
    loaded = optuna.load_study(study_name="smskd", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert loaded.trials[-1].system_attrs["NSGAIISampler:generation"] == 1  # children of the other run's recipes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cost=params", "sampler=tpe"], "has cost=flops and this run cost=params: leave it out"),
        (["pair=resnet56_resnet20", "sampler=tpe"], "has pair=tiny and this run pair=resnet56_resnet20"),
        (["data=cifar10", "sampler=tpe"], "has data=digits and this run data=cifar10"),
        ([], "not for exhaustive"),
        (["sampler=random"], "not for random"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_before_anything_is_made(
    tmp_path: Path, words: list[str], said: str
) -> None:
    url = finished_run(tmp_path / "other", [], most=1)
    with pytest.raises(ValueError, match=said):
        open_study(tmp_path, words, sources={"other": url})
    assert not (tmp_path / "study.db").exists()


# --- files that are no study, or one of another program


def spoil(file: Path, how: str) -> None:
    whole = file.read_bytes()
    match how:
        case "garbage":
            file.write_bytes(b"not a database, but long enough to be looked at as one " * 40)
        case "half":
            file.write_bytes(whole[: len(whole) // 2])
        case "something else":
            file.unlink()
            with sqlite3.connect(file) as database:
                database.execute("CREATE TABLE birds (name TEXT)")
            database.close()
        case "newer":
            with sqlite3.connect(file) as database:
                database.execute("UPDATE study_user_attributes SET value_json = '9' WHERE key = 'schema'")
            database.close()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("garbage", "is no study, or a damaged one .*use another out="),
        ("half", "use another out="),
        ("something else", "is a database of something else.*use another out="),
        ("newer", "holds a study of schema 9, but this program reads 2: use another out="),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_left_alone(tmp_path: Path, how: str, said: str) -> None:
    finished_run(tmp_path / "run", [], most=3)
    file = tmp_path / "run" / "study.db"
    spoil(file, how)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=said) as error:
        open_study(tmp_path / "run", [])
    assert "study.db" in str(error.value) and "\n" not in str(error.value)
    assert file.read_bytes() == before
    (tmp_path / "new").mkdir()
    with pytest.raises(ValueError, match=r"use another|leave"):
        open_study(tmp_path / "new", ["sampler=tpe"], sources={"x": f"sqlite:///{file}"})


def test_a_study_that_was_made_halfway_is_made_anew(tmp_path: Path) -> None:
    optuna.create_study(
        study_name="smskd", storage=f"sqlite:///{tmp_path / 'study.db'}", directions=["minimize", "minimize"]
    )
    assert len(run(open_study(tmp_path, []))) == 15


def test_a_write_that_a_kill_cut_off_is_rolled_back(tmp_path: Path) -> None:
    first = open_study(tmp_path, [])
    asked = first.ask()
    assert asked is not None
    finish(first, asked)
    file = tmp_path / "study.db"
    cut_off = f"""
import os, signal, sqlite3
database = sqlite3.connect({str(file)!r}, isolation_level=None)
database.execute("PRAGMA cache_size = 1")  # pages go to the file before the transaction ends
database.execute("BEGIN")
for number in range(200):
    values = str(number), "1" * 2000
    database.execute("INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (1, ?, ?)", values)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", cut_off], check=False)
    assert (tmp_path / "study.db-journal").stat().st_size > 0, "the journal is what rolls back"
    again = open_study(tmp_path, [])
    assert again.settled.keys() == first.settled.keys()
    assert len(drain(again)) > 0


def test_a_study_that_nothing_was_asked_of_takes_other_settings(tmp_path: Path) -> None:
    open_study(tmp_path, ["teacher=/mistyped"])  # the command was refused after that
    study = open_study(tmp_path, [])
    assert study.ask() is not None
    with pytest.raises(ValueError, match="holds another search"):
        open_study(tmp_path, ["teacher=/another"])
