"""What every sampler keeps to: nothing is trained, the numbers of a recipe are made up from its id."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from search import config, draws
from search.study import Asked, Design, Goal, Limits, Study
from smskd.recipe import Recipe
from smskd.result import Result
from tests.search.made_up import result

SEEDS = 2
FEW = ["space=everything", "methods=[kd,rkd]", "max_stages=2"]


def record(recipe: Recipe, seed: int) -> Result:
    def told(prefix: Recipe) -> dict[str, Any]:
        noise = int(hashlib.sha256(f"{prefix.id}{seed}".encode()).hexdigest()[:8], 16) / 2**32
        return {
            "val_accuracy": 0.7 + 0.05 * len(prefix.stages) + 0.1 * noise,
            "train_flops": 1e9 * (1 + ("rkd" in prefix.stages[-1].methods)),
            "device_seconds": 1.0 + noise,
        }

    return result(recipe, seed, told=told)


OBJECTIVES: dict[str, Callable[[Result], float]] = {
    "flops": lambda record: record.train_flops,
    "seconds": lambda record: record.device_seconds,
}


def limits(**bounds: float) -> Limits:
    return Limits(
        bounds=bounds,
        measured=lambda record: {
            name: {"flops": record.train_flops, "params": float(record.params or 0)}[name] for name in bounds
        },
        foreseen=lambda recipe: {"flops": record(recipe, 0).train_flops},
    )


# No recipe of the default space costs more: kd and fitnets cost 1e9, rkd 2e9.
LIMITS = limits(flops=4e9, params=10)


def open_study(
    folder: Path | None,
    sampler: str,
    words: list[str],
    *,
    limits: Limits | None = None,
    margin: float | None = None,
) -> Study:
    settings = config.parse([f"sampler={sampler}", *words])
    costs = settings.cost
    return Study(
        draws.look(settings.search_space()),
        optuna.storages.InMemoryStorage() if folder is None else f"sqlite:///{folder / 'study.db'}",
        identity=settings.identity,
        goal=Goal(
            values=lambda record: (1 - record.val_accuracy, *(OBJECTIVES[cost](record) for cost in costs)),
            costs=costs,
            limits=limits,
        ),
        design=Design(
            seeds=range(SEEDS),
            sampler=settings.sampler,
            trials=settings.trials,
            seed=settings.seed,
            margin=margin,
        ),
    )


def drain(study: Study, most: int = 10_000) -> list[str]:
    """Run what the study asks for, two recipes at a time."""
    ran: list[str] = []
    running: list[Asked] = []
    while len(ran) < most:
        while len(running) < 2 and (asked := study.ask()) is not None:
            running.append(asked)
        if not running:
            break
        asked = running.pop(0)
        ran.append(str(asked.recipe))
        settled = False
        while not settled:
            settled = [study.tell(asked, record(asked.now, seed)) for seed in range(SEEDS)][-1]
    return ran


def trials(study: Study) -> list[optuna.trial.FrozenTrial]:
    return study._study.get_trials()


class Contract:
    """Inherited by a class for each sampler."""

    name: str
    finite_only = False
    some = 18  # recipes of an infinite space that go past the random draws at the beginning

    def test_a_finite_space_ends_without_a_duplicate(self) -> None:
        study = open_study(None, self.name, [])
        ran = drain(study)
        assert len(ran) == len(set(ran)) and len(study.settled) == 15 and study.complete()
        told = [trial.user_attrs["recipe"] for trial in trials(study) if trial.state.name == "COMPLETE"]
        assert len(told) == len(set(told)) == 15
        assert study.ask() is None and study.idle()

    def test_the_limit_is_kept(self) -> None:
        study = open_study(None, self.name, ["trials=7"])
        drain(study)
        assert len(study.settled) == 7 and study.complete() and study.room() == 0

    def test_seeded(self) -> None:
        words = ["trials=14"] if self.finite_only else [*FEW, f"trials={self.some}"]
        orders = [drain(open_study(None, self.name, [*words, f"seed={seed}"])) for seed in (3, 3, 4)]
        assert orders[0] == orders[1]
        assert self.finite_only or orders[0] != orders[2]

    def test_it_goes_on_where_a_dead_driver_stood(self, tmp_path: Path) -> None:
        count = 14 if self.finite_only else self.some
        words = [*([] if self.finite_only else FEW), f"trials={count}"]
        study = open_study(tmp_path, self.name, words)
        drain(study, most=3)
        orphan = study.ask()
        assert orphan is not None
        study.tell(orphan, record(orphan.now, 0))
        before = {key: recipe for key, (recipe, _) in study.settled.items()}
        after = open_study(tmp_path, self.name, words)
        assert {key: recipe for key, (recipe, _) in after.settled.items()} == before
        assert list(after.settled) == list(before)
        drain(after)
        assert len(after.settled) == count and orphan.recipe.id in after.settled
        assert "RUNNING" not in {trial.state.name for trial in trials(after)}

    @pytest.mark.parametrize("costs", ["flops", "[flops,seconds]"])
    def test_what_breaks_a_limit_beforehand_is_told_and_not_run(self, costs: str) -> None:
        study = open_study(None, self.name, [f"cost={costs}"], limits=LIMITS)
        ran = drain(study)
        assert study.complete() and len(ran) == len(set(ran))
        allowed = {key for key, (_, records) in study.settled.items() if records[0].status == "complete"}
        assert len(allowed) == 15
        study = open_study(None, self.name, [f"cost={costs}"], limits=limits(flops=2.5e9))
        ran = drain(study)
        assert study.complete() and study.idle() and study.ask() is None
        finished = {str(recipe) for recipe, records in study.settled.values() if records[0].status == "complete"}
        assert finished == {"kd", "fitnets", "rkd", "kd>fitnets", "fitnets>kd"}
        for trial in trials(study):
            assert len(trial.values or [1, 2]) >= 2
            if trial.state.name == "COMPLETE":
                assert trial.constraints["flops"] <= 0
            elif trial.state.name == "PRUNED":
                assert trial.constraints["flops"] > 0
                assert "flops 3e+09 is more than 2.5e+09" in trial.user_attrs["error"] or "4e+09" in str(
                    trial.user_attrs
                )
        again = {trial.user_attrs["recipe"] for trial in trials(study) if trial.state.name in ("COMPLETE", "PRUNED")}
        assert len(again) == sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in trials(study))

    def test_two_and_three_objectives_past_the_first_random_draws(self) -> None:
        for costs, count in (("flops", 2), ("[flops,seconds]", 3)):
            words = [f"cost={costs}"] if self.finite_only else [*FEW, f"cost={costs}", f"trials={self.some}"]
            study = open_study(None, self.name, words, limits=LIMITS)
            drain(study)
            assert study.complete()
            assert study._study.metric_names == ["error", *config.parse([f"cost={costs}"]).cost]
            assert all(len(trial.values) == count for trial in trials(study) if trial.state.name == "COMPLETE")

    def test_settings_are_searched_as_all_else(self) -> None:
        """A space times a range, where no setting is drawn that would be idle."""
        words = ["methods=[kd,rkd]", "max_stages=2", "kd.temperature=choice(1,2)", "learning_rate=choice(0.1,0.3)"]
        study = open_study(None, self.name, words)
        ran = drain(study)
        # rkd at two rates; kd and both orders at two rates and temperatures
        assert len(ran) == len(set(ran)) and len(study.settled) == 2 + 3 * 4 and study.complete()
        told = [trial for trial in trials(study) if trial.state.name == "COMPLETE"]
        assert len({trial.user_attrs["recipe"] for trial in told}) == len(told) == 14
        for trial in told:
            named = set(trial.params) & {"kd.temperature", "learning_rate"}
            assert named == {"learning_rate"} | ({"kd.temperature"} if "kd(" in trial.user_attrs["recipe"] else set())

    def test_given_up_recipes_keep_their_beginnings(self) -> None:
        study = open_study(None, self.name, [], margin=0.02)
        drain(study)
        assert study.complete() and len(study.settled) == 15
        statuses: Mapping[str, str] = {str(recipe): r[0].status for recipe, r in study.settled.values()}
        assert {statuses[name] for name in ("kd", "fitnets", "rkd")} == {"complete"}
        assert {trial.state.name for trial in trials(study) if "given up" in trial.user_attrs.get("error", "")} == {
            "PRUNED"
        }


class TestExhaustive(Contract):
    name, finite_only = "exhaustive", True

    def test_all_that_break_a_limit_are_listed(self) -> None:
        tight = limits(flops=2.5e9)
        study = open_study(None, self.name, [], limits=tight)
        drain(study)
        assert len(study.settled) == 15 and study.complete()
        few = open_study(None, self.name, ["trials=2"], limits=tight)
        drain(few)
        assert [str(recipe) for recipe, _ in few.settled.values()] == ["kd", "fitnets"]


class TestTPE(Contract):
    name = "tpe"


class TestNSGA2(Contract):
    name = "nsga2"


@pytest.mark.slow  # minutes: it fits a model for each suggestion
class TestGP(Contract):
    name, some = "gp", 11


class TestRandom(Contract):
    name = "random"


def test_every_sampler_is_here() -> None:
    assert {one.name for one in Contract.__subclasses__()} == set(config.SAMPLERS)
