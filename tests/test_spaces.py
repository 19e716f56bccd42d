"""Search spaces: all are found, and a trial's parameters give the recipe that they name."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

import spaces
from search.study import enumerate_space
from smskd.recipe import Recipe, parse
from spaces import Menu

MENU = Menu(methods=("kd", "fitnets", "rkd"), max_stages=3, anchor="reference", weighting="fixed", lambda_base=0.5)


def _suggest(space: str, params: Mapping[str, Any], menu: Menu = MENU) -> Recipe:
    recipe = spaces.load(space).suggest(FixedTrial(dict(params)), menu)
    assert isinstance(recipe, Recipe)
    return recipe


class _Recording:
    """Takes the first choice of everything and remembers all there were."""

    def __init__(self) -> None:
        self.choices: dict[str, list[Any]] = {}

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.choices[name] = list(choices)
        return choices[0]

    def suggest_int(self, name: str, low: int, high: int) -> int:
        self.choices[name] = list(range(low, high + 1))
        return low

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> Any:
        if step is not None:
            self.choices[name] = [low + k * step for k in range(round((high - low) / step) + 1)]
        return low


def _all(space: str, menu: Menu = MENU) -> list[Recipe]:
    """Every recipe of a finite space, one per combination of parameters."""
    recording = _Recording()
    spaces.load(space).suggest(recording, menu)
    names = list(recording.choices)
    return [
        _suggest(space, dict(zip(names, values, strict=True)), menu) for values in product(*recording.choices.values())
    ]


def test_every_file_is_a_space() -> None:
    assert spaces.__file__ is not None
    files = {p.stem for p in Path(spaces.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(spaces.available()) == files
    assert len(files) == 5
    for name, summary in spaces.available().items():
        assert summary
        assert callable(spaces.load(name).suggest)


def test_unknown_space() -> None:
    with pytest.raises(ValueError, match=r"stage_order.*stage_order") as caught:
        spaces.load("stage_ordr")
    assert all(name in str(caught.value) for name in spaces.available())


@pytest.mark.parametrize(
    ("space", "params", "recipe"),
    [
        ("stage_order", {"n_stages": 2, "stage_1": "kd", "stage_2": "rkd", "stage_3": "kd"}, "kd>rkd"),
        # a method that has had its stage gives way to the next
        ("stage_order", {"n_stages": 3, "stage_1": "rkd", "stage_2": "rkd", "stage_3": "kd"}, "rkd>kd>fitnets"),
        ("stage_count", {"sequence": "in order", "n_stages": 2}, "kd>fitnets"),
        ("stage_count", {"sequence": "rkd", "n_stages": 3}, "rkd>rkd>rkd"),
        ("weighting", {"weighting": "tcp", "lambda_base": 0.75}, "kd>fitnets>rkd weighting=tcp lambda_base=0.75"),
        (
            "recipe",
            {
                "n_stages": 2, "stage_1": "rkd", "stage_2": "kd", "stage_3": "kd",
                "anchor": "reference", "weighting": "tcp_true", "lambda_base": 1.5,
            },
            "rkd>kd weighting=tcp_true lambda_base=1.5",
        ),
        (
            "recipe",
            {
                "n_stages": 1, "stage_1": "kd", "stage_2": "kd", "stage_3": "rkd",
                "anchor": "none", "weighting": "fixed", "lambda_base": 0.5,
            },
            "kd anchor=none",
        ),
    ],
)  # fmt: skip
def test_parameters_give_the_recipe(space: str, params: dict[str, Any], recipe: str) -> None:
    assert _suggest(space, params) == parse(recipe)


def test_what_is_not_searched_is_the_menus() -> None:
    menu = Menu(methods=("kd+rkd", "fitnets"), max_stages=2, anchor="none", weighting="tcp", lambda_base=1.0)
    got = _suggest("stage_order", {"n_stages": 2, "stage_1": "fitnets", "stage_2": "fitnets"}, menu)
    assert got == parse("fitnets>kd+rkd anchor=none weighting=tcp lambda_base=1")


def test_stage_order_has_fifteen_recipes() -> None:
    recipes = list({recipe.id: recipe for recipe in _all("stage_order")}.values())
    assert len(recipes) == 15
    assert [sum(len(r.stages) == k for r in recipes) for k in (1, 2, 3)] == [3, 6, 6]
    assert all(len(set(r.stages)) == len(r.stages) for r in recipes)


@pytest.mark.parametrize("space", ["stage_order", "stage_count", "weighting", "systems"])
def test_a_walk_over_a_finite_space_finds_what_all_combinations_give(space: str) -> None:
    found = enumerate_space(lambda trial: spaces.load(space).suggest(trial, MENU))
    assert found is not None
    assert set(found) == {recipe.id for recipe in _all(space)}
    for params, recipe in found.values():
        assert _suggest(space, params) == recipe


@pytest.mark.parametrize("space", sorted(spaces.available()))
def test_samplers_see_vectors_of_one_length(space: str) -> None:
    drawn = []
    for seed in range(30):
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
        spaces.load(space).suggest(trial, MENU)
        drawn.append(trial.distributions)
    assert all(one == drawn[0] for one in drawn)


def test_stage_count() -> None:
    menu = Menu(methods=MENU.methods, max_stages=4, anchor="reference", weighting="fixed", lambda_base=0.5)
    recipes = _all("stage_count", menu)
    assert len(recipes) == 16
    # a single stage in order is that of the first method
    assert len({r.id for r in recipes}) == 15
    assert {len(r.stages) for r in recipes} == {1, 2, 3, 4}
    assert {r.notation for r in recipes if len(r.stages) == 4} == {
        "kd>fitnets>rkd>kd", "kd>kd>kd>kd", "fitnets>fitnets>fitnets>fitnets", "rkd>rkd>rkd>rkd",
    }  # fmt: skip


def test_weighting_has_fifteen_recipes() -> None:
    recipes = _all("weighting")
    assert len({r.id for r in recipes}) == len(recipes) == 15
    assert {r.notation for r in recipes} == {"kd>fitnets>rkd"}
    assert {r.lambda_base for r in recipes} == {0.25, 0.5, 0.75, 1.0, 1.25}
    assert {r.weighting for r in recipes} == {"fixed", "tcp", "tcp_true"}


@pytest.mark.parametrize(("change", "says"), [({"max_stages": 1}, "max_stages >= 2"), ({"anchor": "none"}, "anchor=")])
def test_weighting_without_an_anchor_is_refused(change: dict[str, Any], says: str) -> None:
    fields = {"methods": MENU.methods, "max_stages": 3, "anchor": "reference", "weighting": "fixed", "lambda_base": 0.5}
    with pytest.raises(ValueError, match=says):
        _suggest("weighting", {"weighting": "tcp", "lambda_base": 0.5}, Menu(**(fields | change)))


def test_recipe_space_draws_all_parameters_always() -> None:
    drawn = []
    for count in (1, 3):
        trial = FixedTrial(
            {"n_stages": count, "stage_1": "kd", "stage_2": "rkd", "stage_3": "kd", "anchor": "none"}
            | {"weighting": "tcp", "lambda_base": 1.0}
        )
        assert len(spaces.load("recipe").suggest(trial, MENU).stages) == count
        drawn.append(trial.distributions)
    assert drawn[0] == drawn[1]
    kinds = {name: type(d) for name, d in drawn[0].items()}
    assert kinds == {
        "n_stages": IntDistribution,
        **{f"stage_{k}": CategoricalDistribution for k in (1, 2, 3)},
        "anchor": CategoricalDistribution,
        "weighting": CategoricalDistribution,
        "lambda_base": FloatDistribution,
    }
