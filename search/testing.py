"""SpaceContract: the tests that every space passes. Inherit it, name the space, and pytest runs them:

from search.testing import SpaceContract

class TestMine(SpaceContract):
    space = "mine"
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FixedTrial

import spaces
from search import config
from search.draws import Draw, Given, Random, enumerate_space, values_of
from smskd.notation import parse
from smskd.recipe import Recipe

_DRAWS = 30
# What is tried of a parameter that has no finite number of values.
_OTHERS = 3


class SpaceContract:
    """Tests of the space of this name. words: what of the command line it can't do without."""

    space: str
    words: Sequence[str] = ()

    def _config(self, *words: str) -> config.Config:
        return config.parse([f"space={self.space}", *self.words, *words])

    def test_it_is_found_and_says_what_it_is(self) -> None:
        assert spaces.available()[self.space].strip(), "its first line must say what is searched"
        own = vars(spaces.load(self.space))
        assert isinstance(own.get("MAX_STAGES", 1), int) and own.get("MAX_STAGES", 1) >= 1
        assert isinstance(own.get("COMPARISON", False), bool)

    def test_it_needs_no_torch(self) -> None:
        code = (
            f"import sys; sys.path = {sys.path!r}; import spaces; spaces.__path__ = {list(spaces.__path__)!r}; "
            f"spaces.load({self.space!r}); print(sorted({{'torch', 'ray'}} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stdout + done.stderr

    def test_its_parameters_give_its_recipe(self) -> None:
        """suggest(FixedTrial(params)) == recipe: nothing else decides it."""
        suggest, menu = spaces.load(self.space).suggest, self._config().menu
        for trial in _random():
            recipe = suggest(trial, menu)
            assert isinstance(recipe, Recipe)
            assert suggest(FixedTrial(trial.params), menu) == recipe, trial.params

    def test_its_recipes_are_lines_that_parse_back(self) -> None:
        space = self._config().search_space()
        for trial in _random():
            recipe = space(trial)
            assert parse(str(recipe)) == recipe

    def test_methods_and_max_stages_are_kept_to_or_refused(self) -> None:
        given = {"methods": "methods=[kd,rkd]", "max_stages": "max_stages=2"}
        for keys in (["methods"], ["max_stages"], ["methods", "max_stages"]):
            try:
                space = self._config(*(given[key] for key in keys)).search_space()
            except ValueError as error:
                assert any(key in str(error) for key in given), f"{error}: it must say which word is wrong"
                continue
            for recipe in map(space, _random()):
                assert "max_stages" not in keys or len(recipe.stages) <= 2, recipe
                used = {name for stage in recipe.stages for name in stage.distils} - {"ce"}
                assert "methods" not in keys or used <= {"kd", "rkd"}, recipe

    def test_what_the_command_line_sets_is_in_every_recipe_or_refused(self) -> None:
        try:
            settings = self._config("learning_rate=0.0123")
            recipes = [settings.search_space()(trial) for trial in _random()]
        except ValueError as error:
            assert "learning_rate" in str(error)
            return
        for recipe in recipes:
            assert {stage.training(settings.menu.defaults).learning_rate for stage in recipe.stages} == {0.0123}

    def test_every_parameter_counts(self) -> None:
        """Another value of it is another recipe; what would be idle isn't drawn."""
        space, generator = self._config().search_space(), random.Random(1)
        for trial in _random():
            recipe = space(trial)
            for name, distribution in trial.distributions.items():
                others = [value for value in _values(distribution, generator) if value != trial.params[name]]
                changed = (space(_Kept(trial.params | {name: value})).id != recipe.id for value in others)
                assert not others or any(changed), f"{name} changes nothing in {recipe}: draw it only where it counts"

    def test_a_finite_space_ends_and_an_infinite_one_has_no_end(self) -> None:
        space = self._config().search_space()
        points = enumerate_space(space)
        drawn = [space(trial).id for trial in _random()]
        if points is None:
            assert len(set(drawn)) > _DRAWS / 2
            return
        assert set(drawn) <= set(points)
        for key, (params, recipe) in points.items():
            given = Given(params)
            assert space(given) == recipe and recipe.id == key
            assert given.params == params, "its parameters are all that it asks for"


def _random() -> Iterator[Draw]:
    """The same draws each time."""
    generator = random.Random(0)
    for _ in range(_DRAWS):
        yield Random(generator)


def _values(distribution: BaseDistribution, generator: random.Random) -> Sequence[Any]:
    finite = values_of(distribution)
    if finite is not None:
        return finite
    return [Random(generator).choose("", distribution) for _ in range(_OTHERS)]


class _Kept(Random):
    """Takes what is given as far as it can be, and draws the rest."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__(random.Random(2))
        self._given = given

    def choose(self, name: str, distribution: BaseDistribution) -> Any:
        if name in self._given and distribution._contains(distribution.to_internal_repr(self._given[name])):
            return self._given[name]
        return super().choose(name, distribution)
