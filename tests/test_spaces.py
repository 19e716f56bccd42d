"""Search spaces: all are found, keep to the contract, and a trial's parameters give the recipe that they name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FixedTrial

import spaces
from search.draws import enumerate_space
from search.testing import SpaceContract
from smskd.experiment import Experiment
from smskd.methods import declaration
from smskd.notation import parse
from smskd.recipe import ANCHORS, WEIGHTINGS, Recipe
from spaces import Menu

TINY = Experiment().defaults
MENU = Menu(methods=("kd", "fitnets", "rkd"), max_stages=3, defaults=TINY)


def _suggest(space: str, params: Mapping[str, Any], menu: Menu = MENU) -> Recipe:
    recipe = spaces.load(space).suggest(FixedTrial(dict(params)), menu)
    assert isinstance(recipe, Recipe)
    return recipe


def _all(space: str, menu: Menu = MENU) -> list[Recipe]:
    """Every recipe of a finite space."""
    points = enumerate_space(lambda trial: spaces.load(space).suggest(trial, menu))
    assert points is not None
    return [recipe for _, recipe in points.values()]


@pytest.mark.parametrize("name", spaces.available(), scope="class")
class TestSpaces(SpaceContract):
    @pytest.fixture(autouse=True)
    def _one(self, name: str) -> None:
        self.space = name


def test_every_file_is_a_space() -> None:
    assert spaces.__file__ is not None
    files = {p.stem for p in Path(spaces.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(spaces.available()) == files
    assert {"stage_order", "stage_count", "weighting", "systems", "everything", "weights", "budget"} <= files
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
        ("stage_order", {"n_stages": 2, "stage_1": "kd", "stage_2": "rkd"}, "kd>rkd"),
        ("stage_order", {"n_stages": 3, "stage_1": "rkd", "stage_2": "kd", "stage_3": "fitnets"}, "rkd>kd>fitnets"),
        ("stage_count", {"sequence": "in order", "n_stages": 2}, "kd>fitnets"),
        ("stage_count", {"sequence": "rkd", "n_stages": 3}, "rkd>rkd>rkd"),
        ("weighting", {"weighting": "tcp", "lambda_base": 0.75}, "kd>fitnets>rkd weighting=tcp lambda_base=0.75"),
        (
            "everything",
            {
                "n_stages": 2, "stage_1": "rkd", "stage_2": "kd", "anchor": "reference", "weighting": "tcp_true",
                "lambda_base": 1.5,
            },
            "rkd>kd weighting=tcp_true lambda_base=1.5",
        ),
        ("everything", {"n_stages": 1, "stage_1": "kd"}, "kd"),
        ("everything", {"n_stages": 2, "stage_1": "kd", "stage_2": "kd", "anchor": "none"}, "kd>kd anchor=none"),
        ("systems", {"system": "ensemble"}, "kd+fitnets+rkd teachers=3"),
        ("budget", {"n_stages": 1}, "kd epochs=36"),
        ("budget", {"n_stages": 3, "share_1": 5, "share_2": 4}, "kd@epochs=18>fitnets@epochs=14>rkd@epochs=4"),
        (
            "weights",
            {
                "kd.weight": 2.0, "kd.temperature": 8.0, "fitnets.weight": 300.0, "rkd.weight": 0.1,
                "learning_rate": 0.05,
            },
            "kd(weight=2,temperature=8)>fitnets(weight=300)>rkd(weight=0.1) learning_rate=0.05",
        ),
    ],
)  # fmt: skip
def test_parameters_give_the_recipe(space: str, params: dict[str, Any], recipe: str) -> None:
    """These are all that it draws, too: a FixedTrial lets more be given, but not used."""
    trial = FixedTrial(dict(params))
    assert spaces.load(space).suggest(trial, MENU) == parse(recipe)
    assert set(trial.distributions) == set(params)


def test_what_is_not_searched_is_the_menus() -> None:
    fixed = {"anchor": "none", "weighting": "tcp", "lambda_base": 1.0}
    menu = Menu(methods=("kd+rkd", "fitnets(weight=2)"), max_stages=2, fixed=fixed, taken=frozenset(fixed))
    got = _suggest("stage_order", {"n_stages": 2, "stage_1": "fitnets(weight=2)", "stage_2": "kd+rkd"}, menu)
    assert got == parse("fitnets(weight=2)>kd+rkd anchor=none weighting=tcp lambda_base=1")


def test_what_is_taken_cannot_be_chosen_by_a_space() -> None:
    menu = Menu(methods=("kd", "rkd"), max_stages=2, taken=frozenset({"lambda_base"}))
    with pytest.raises(ValueError, match="lambda_base= is chosen by the space itself"):
        menu.recipe("kd>rkd", lambda_base=0.25)
    assert menu.recipe("kd>rkd", weighting="tcp") == parse("kd>rkd weighting=tcp")


def test_a_default_is_the_pairs_or_else_the_declared_one() -> None:
    menu = Menu(methods=("kd",), max_stages=1, defaults={"fitnets.weight": 10.0})
    assert menu.default("fitnets.weight") == 10.0
    assert menu.default("kd.weight") == declaration("kd").settings["weight"].default


def test_stage_order_has_fifteen_recipes() -> None:
    recipes = list({recipe.id: recipe for recipe in _all("stage_order")}.values())
    assert len(recipes) == 15
    assert [sum(len(r.stages) == k for r in recipes) for k in (1, 2, 3)] == [3, 6, 6]
    assert all(len(set(r.stages)) == len(r.stages) for r in recipes)


def test_stage_count() -> None:
    menu = Menu(methods=MENU.methods, max_stages=4)
    recipes = _all("stage_count", menu)
    # 16 points; a single stage in order is that of the first method
    assert len({r.id for r in recipes}) == len(recipes) == 15
    assert {len(r.stages) for r in recipes} == {1, 2, 3, 4}
    assert {r.path for r in recipes if len(r.stages) == 4} == {
        "kd>fitnets>rkd>kd", "kd>kd>kd>kd", "fitnets>fitnets>fitnets>fitnets", "rkd>rkd>rkd>rkd",
    }  # fmt: skip


def test_weighting_has_fifteen_recipes() -> None:
    recipes = _all("weighting")
    assert len({r.id for r in recipes}) == len(recipes) == 15
    assert {r.path for r in recipes} == {"kd>fitnets>rkd"}
    assert {r.lambda_base for r in recipes} == {0.25, 0.5, 0.75, 1.0, 1.25}
    assert {r.weighting for r in recipes} == set(WEIGHTINGS)


@pytest.mark.parametrize(
    ("change", "says"), [({"max_stages": 1}, "max_stages >= 2"), ({"fixed": {"anchor": "none"}}, "anchor=none")]
)
def test_weighting_without_an_anchor_is_refused(change: dict[str, Any], says: str) -> None:
    menu = Menu(**({"methods": MENU.methods, "max_stages": 3} | change))
    with pytest.raises(ValueError, match=says):
        _suggest("weighting", {"weighting": "tcp", "lambda_base": 0.5}, menu)


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("count", [1, 3])
def test_everything_draws_what_counts_and_no_more(count: int, anchor: str) -> None:
    given = {"n_stages": count, "stage_1": "kd", "stage_2": "rkd", "stage_3": "kd", "anchor": anchor}
    trial = FixedTrial(given | {"weighting": "tcp", "lambda_base": 1.0})
    assert len(spaces.load("everything").suggest(trial, MENU).stages) == count
    expected = {"n_stages", *(f"stage_{k}" for k in range(1, count + 1))}
    if count > 1:
        expected |= {"anchor"} | ({"weighting", "lambda_base"} if anchor != "none" else set())
    assert set(trial.distributions) == expected


# --- weights


def test_weights_lie_around_what_the_pair_has() -> None:
    trial = FixedTrial({"fitnets.weight": 10.0, "kd.weight": 1.0, "kd.temperature": 4.0, "learning_rate": 0.2})
    menu = Menu(methods=("fitnets", "kd"), max_stages=2, defaults=TINY)
    spaces.load("weights").suggest(trial, menu)
    bounds = {name: (one.low, one.high) for name, one in trial.distributions.items()}  # type: ignore[attr-defined]
    kd = declaration("kd").settings
    assert bounds["fitnets.weight"] == pytest.approx((10 / 30, 300))  # tiny's own
    assert bounds["kd.weight"] == pytest.approx((kd["weight"].default / 30, 30 * kd["weight"].default))
    assert bounds["kd.temperature"] == pytest.approx((kd["temperature"].default / 4, 4 * kd["temperature"].default))
    assert bounds["learning_rate"] == pytest.approx((0.02, 0.6))
    assert all(one.log for one in trial.distributions.values())  # type: ignore[attr-defined]


def test_weights_that_are_said_are_left_alone() -> None:
    trial = FixedTrial({"kd.temperature": 4.0})
    taken = frozenset({"learning_rate", "rkd.weight"})
    menu = Menu(methods=("kd(weight=3)", "rkd"), max_stages=2, taken=taken, defaults=TINY)
    assert spaces.load("weights").suggest(trial, menu) == parse("kd(weight=3,temperature=4)>rkd")
    assert set(trial.distributions) == {"kd.temperature"}


def test_weights_have_a_stage_for_each_method() -> None:
    with pytest.raises(ValueError, match="max_stages <= 2 must hold, but got 3"):
        _suggest("weights", {}, Menu(methods=("kd", "rkd"), max_stages=3))


# --- budget


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_a_budget_is_spent_whole_in_every_way(stages: int) -> None:
    menu = Menu(methods=("kd", "rkd"), max_stages=stages, defaults=TINY, epochs_total=40)
    recipes = _all("budget", menu)
    # the ways to write 10 as a sum of so many parts
    ways = [1, 9, 36, 84][:stages]
    assert [sum(len(r.stages) == k for r in recipes) for k in range(1, stages + 1)] == ways
    for recipe in recipes:
        epochs = [stage.training(TINY).epochs for stage in recipe.stages]
        assert sum(epochs) == 40 and min(epochs) >= 4
        assert recipe.path == ">".join(["kd", "rkd", "kd", "rkd"][: len(epochs)])


@pytest.mark.parametrize(
    ("menu", "says"),
    [
        (Menu(methods=("kd",), max_stages=11), "max_stages <= 10 must hold"),
        (Menu(methods=("kd",), max_stages=3, epochs_total=1), "at least 1 epoch"),
    ],
)
def test_a_budget_that_cannot_be_shared_out(menu: Menu, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        _suggest("budget", {"n_stages": menu.max_stages, **{f"share_{k}": 1 for k in range(1, 12)}}, menu)


# --- what the contract finds


@pytest.mark.parametrize(
    ("body", "test"),
    [
        ('trial.suggest_float("lambda_base", 0, 1); return menu.recipe("kd")', "test_every_parameter_counts"),
        ('return menu.recipe(">".join([menu.methods[0]] * (menu.max_stages + 1)))', "test_methods_and_max_stages"),
        ('menu.methods, menu.max_stages; return menu.recipe("fitnets")', "test_methods_and_max_stages"),
        ('return menu.recipe("kd") if random.random() < 0.5 else menu.recipe("rkd")', "test_its_parameters_give"),
        ('return menu.recipe(trial.suggest_categorical("a", menu.methods))', ""),
    ],
)
def test_the_contract_finds_a_space_that_breaks_it(
    body: str, test: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crooked.py").write_text(f'"""Crooked."""\nimport random\ndef suggest(trial, menu):\n    {body}\n')
    monkeypatch.setattr(spaces, "__path__", [*spaces.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    contract = SpaceContract()
    contract.space = "crooked"
    failed = []
    try:
        for name in (name for name in dir(SpaceContract) if name.startswith("test_")):
            try:
                getattr(contract, name)()
            except AssertionError:
                failed.append(name)
    finally:
        sys.modules.pop("spaces.crooked", None)
        vars(spaces).pop("crooked", None)
    assert bool(failed) == bool(test) and (not test or any(name.startswith(test) for name in failed)), failed
