"""The space of a search: a space's recipes times the ranges of the command line, without what is idle. No Optuna."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import spaces
from search.ranges import Range, is_range
from smskd.blame import where_raised
from smskd.experiment import Experiment
from smskd.recipe import SETTINGS, SHORTHANDS, Recipe, declaration, split_total, stage_number
from smskd.settings import Value
from smskd.training import SETTINGS as TRAINING
from spaces import Menu

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

# What is felt only beside others is drawn after them.
_LATE = ("weighting", "anchor_temperature", "teachers", *TRAINING, *SHORTHANDS)
_DIGITS = 6  # of a number that is drawn: a recipe stays a line that a person can read


class Elsewhere(Exception):
    """Raised by a trial that is no real one: the space asks for something that it can't give."""


class SpaceError(ValueError):
    """A space misbehaves: told as its fault, with file and line. `details` has the traceback."""

    def __init__(self, text: str, details: str) -> None:
        super().__init__(text)
        self.details = details


class SearchSpace:
    """Trial -> effective recipe. The same draws give the same recipe."""

    def __init__(
        self, name: str, menu: Menu, fixed: Mapping[str, Value], ranges: Mapping[str, Range], experiment: Experiment
    ) -> None:
        """fixed, ranges: settings of recipes by key; those of the whole are fixed by the menu, too."""
        self._module, self._name, self._menu, self._experiment = spaces.load(name), name, menu, experiment
        order = [*(name for name in SETTINGS if name not in _LATE), *_LATE]
        self._given: dict[str, Value | Range] = {}  # what is of one stage, after what is of all
        given: Mapping[str, Value | Range] = {**fixed, **ranges}
        for of_one_stage in (False, True):
            keys = [key for key in given if (stage_number(key)[0] is not None) is of_one_stage]
            for key in sorted(keys, key=lambda key: order.index(key) if key in order else -1):
                self._given[key] = given[key]
        self._choices: dict[str, tuple[Any, ...]] = {}
        self.felt: set[str] = set()  # keys of the command line that had an effect so far

    @property
    def defaults(self) -> Mapping[str, Value]:
        """What holds where a recipe says nothing, by flat key."""
        return self._experiment.defaults

    @property
    def keys(self) -> list[str]:
        """What the command line sets or searches."""
        return list(self._given)

    def knows(self, name: str, choices: Sequence[Any]) -> None:
        """An earlier trial had these choices under a name."""
        self._choices.setdefault(name, tuple(choices))

    def here(self, recipe: Recipe, told: Mapping[str, Any]) -> Recipe:
        """A recipe of another search, with what is fixed here in place of what was fixed there.

        told: all settings of that search, by key; others than those of recipes aren't looked at.

        Raises:
            ValueError: the settings don't go together.
        """
        there = {key for key, value in told.items() if declaration(key) is not None and not is_range(str(value))}
        for key in there:
            recipe = _without(recipe, key)
        fixed = {key: value for key, value in self._given.items() if not isinstance(value, Range)}
        for key, value in fixed.items():
            of_stages = key not in SETTINGS and key not in SHORTHANDS
            # what is of the whole may have been searched there, at its default
            if (of_stages or (key in SETTINGS and key in there)) and recipe.feels(key, self.defaults):
                recipe = recipe.with_setting(key, value, over=stage_number(key)[0] is not None)
        if "epochs_total" in fixed and not recipe.says("epochs"):
            recipe = split_total(recipe, fixed["epochs_total"], fixed.get("split"))
        return self._experiment.effective(recipe)

    def __call__(self, trial: BaseTrial) -> Recipe:
        """The recipe that a trial draws.

        Raises:
            SpaceError: the space's file raises something, or returns no recipe.
            ValueError: a setting of the command line is the space's own, or settings don't go together.
        """
        try:
            recipe = self._module.suggest(cast(Any, _Flexible(trial, self._choices)), self._menu)
        except Elsewhere:
            raise
        except Exception as error:
            raise self._blamed(error) from error
        if not isinstance(recipe, Recipe):
            raise SpaceError(
                f"space={self._name} must return a Recipe, made by menu.recipe(...), but returned {recipe!r:.100} "
                f"({self._file})",
                "",
            )
        return self._experiment.effective(self._settled(self._rounded(recipe), trial))

    def _settled(self, recipe: Recipe, trial: BaseTrial) -> Recipe:
        shorthands: dict[str, Value] = {}
        chosen = recipe  # as the space has it
        for key, given in self._given.items():
            if key == "epochs_total" and recipe.says("epochs"):  # a space may split it in its own way
                epochs = [stage.resolved(self._experiment.defaults)["epochs"] for stage in recipe.stages]
                if sum(epochs) == given:
                    self.felt.add(key)
                    continue
            if chosen.says("epochs" if key == "epochs_total" else key) or not self._kept(recipe, key, given):
                raise ValueError(f"{key}= is chosen by space={self._name} itself: leave it out")
            if not recipe.feels(key, self._experiment.defaults):
                continue
            self.felt.add(key)
            value = _rounded(given.suggest(trial)) if isinstance(given, Range) else given
            if key in SHORTHANDS:
                shorthands[key] = value
            else:
                recipe = recipe.with_setting(key, value, over=stage_number(key)[0] is not None)
        if "epochs_total" in shorthands:
            recipe = split_total(recipe, shorthands["epochs_total"], shorthands.get("split"))
        return recipe

    def _rounded(self, recipe: Recipe) -> Recipe:
        """The recipe with what the space chose in few digits."""
        own = {key: _rounded(getattr(recipe, key)) for key in SETTINGS if key not in self._menu.fixed}
        stages = [
            dataclasses.replace(stage, settings=tuple((key, _rounded(value)) for key, value in stage.settings))
            for stage in recipe.stages
        ]
        return dataclasses.replace(recipe, stages=tuple(stages), **own)

    def _kept(self, recipe: Recipe, key: str, given: Value | Range) -> bool:
        """Whether a setting of the whole that the menu has fixed is still so, where it has an effect."""
        fixed = key in SETTINGS and not isinstance(given, Range)
        return not fixed or not recipe.feels(key, {}) or getattr(recipe, key) == given

    def _blamed(self, error: Exception) -> SpaceError:
        """What a space raised, with its own line; a ValueError of its own is for the user, and keeps its words."""
        at = where_raised(error, self._file) or self._file
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        return SpaceError(f"{text} ({at})", "".join(traceback.format_exception(error)))

    @property
    def _file(self) -> str:
        return str(self._module.__file__)


def _without(recipe: Recipe, key: str) -> Recipe:
    """The recipe with a setting at its default; without the epochs of its stages, for a total."""
    if key in SETTINGS:
        return dataclasses.replace(recipe, **{key: SETTINGS[key].default})
    number, part = stage_number("epochs" if key in SHORTHANDS else key)
    stages = [
        dataclasses.replace(stage, settings=tuple(one for one in stage.settings if one[0] != part))
        if number in (None, place)
        else stage
        for place, stage in enumerate(recipe.stages, 1)
    ]
    return dataclasses.replace(recipe, stages=tuple(stages))


def _rounded(value: Value) -> Value:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


class _Flexible:
    """Passes draws on. Choices that hang on earlier ones have a name for each set: Optuna knows one set a name."""

    def __init__(self, trial: BaseTrial, known: dict[str, tuple[Any, ...]]) -> None:
        self._trial, self._known = trial, known

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        some = tuple(choices)
        if self._known.setdefault(name, some) != some:
            name = f"{name} of {'|'.join(map(str, some))}"
        return self._trial.suggest_categorical(name, some)
