from __future__ import annotations

from pathlib import Path

import optuna
import pytest

import spaces
from search import config
from search.study import Asked, Record, Study
from smskd.recipe import Recipe


def open_study(folder: Path, words: list[str]) -> Study:
    settings = config.parse(words)
    space, menu = spaces.load(settings.space), settings.menu
    return Study(
        space=lambda trial: space.suggest(trial, menu),
        storage=f"sqlite:///{folder / 'study.db'}",
        identity=settings.identity,
        seeds=settings.search_seeds,
        sampler=settings.sampler,
        trials=settings.trials,
        seed=settings.seed,
        objective=lambda record: (1 - record["stages"][-1]["val_accuracy"], float(len(record["stages"]))),
    )


def record(recipe: Recipe, seed: int, accuracy: float = 0.5, status: str = "complete") -> Record:
    stages = [
        {"key": p.id, "val_accuracy": accuracy, "train_flops": 1.0, "device_seconds": 1.0} for p in recipe.prefixes()
    ]
    error = None if status == "complete" else "broken"
    return {"seed": seed, "status": status, "error": error, "params": 1, "stages": stages, "test_accuracy": None}  # type: ignore[typeddict-item]


def finish(study: Study, asked: Asked, **kind: object) -> None:
    for seed in range(3):
        study.tell(asked, record(asked.recipe, seed, **kind))  # type: ignore[arg-type]


def drain(study: Study) -> list[str]:
    ran = []
    while (asked := study.ask()) is not None:
        ran.append(asked.recipe.id)
        finish(study, asked)
    return ran


def states(folder: Path) -> list[str]:
    study = optuna.load_study(study_name="smskd", storage=f"sqlite:///{folder / 'study.db'}")
    return [trial.state.name for trial in study.trials]


@pytest.mark.parametrize("sampler", ["exhaustive", "tpe", "nsga2", "random"])
def test_finite_space_runs_each_recipe_once_and_ends(tmp_path: Path, sampler: str) -> None:
    study = open_study(tmp_path, [f"sampler={sampler}"])
    ran = drain(study)
    assert len(set(ran)) == len(ran)
    assert len(study.settled) == 15
    assert study.complete()
    assert states(tmp_path).count("COMPLETE") == 15
    assert "RUNNING" not in states(tmp_path)


def test_exhaustive_asks_for_the_shortest_first(tmp_path: Path) -> None:
    study = open_study(tmp_path, [])
    lengths = []
    while (asked := study.ask()) is not None:
        lengths.append(len(asked.recipe.stages))
        finish(study, asked)
    assert lengths == sorted(lengths)
    assert lengths == [1] * 3 + [2] * 6 + [3] * 6


def test_sampled_space_settles_exactly_as_many_recipes_as_asked(tmp_path: Path) -> None:
    study = open_study(tmp_path, ["space=recipe", "trials=17"])
    drain(study)
    assert len(study.settled) == 17
    assert states(tmp_path).count("COMPLETE") == 17
    again = open_study(tmp_path, ["space=recipe", "trials=20"])
    assert len(again.settled) == 17
    drain(again)
    assert len(again.settled) == 20


def test_study_of_a_dead_driver_goes_on(tmp_path: Path) -> None:
    study = open_study(tmp_path, [])
    finish(study, study.ask())  # type: ignore[arg-type]
    orphan = study.ask()
    assert orphan is not None
    study.tell(orphan, record(orphan.recipe, 0))  # one of three seeds
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
    open_study(tmp_path, [])
    with pytest.raises(ValueError, match="epochs: None there, 3 here"):
        open_study(tmp_path, ["epochs=3"])
