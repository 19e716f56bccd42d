"""Trials that are none: to walk through a space, to draw from it at random, to look for a recipe in it."""

from __future__ import annotations

import datetime
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

from search.space import Elsewhere, SearchSpace
from smskd.recipe import Recipe
from smskd.settings import Value

ENUMERATION_LIMIT = 20_000
# An infinite space is drawn from so often before a search, to see what it does.
LOOKS = 200


class Draw(BaseTrial):
    """A trial whose every parameter comes from `choose`; a name asked for again keeps its value."""

    def __init__(self) -> None:
        self._params: dict[str, Any] = {}
        self._distributions: dict[str, BaseDistribution] = {}

    def choose(self, name: str, distribution: BaseDistribution) -> Any:
        """A value of a parameter that wasn't asked for before."""
        raise NotImplementedError

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name not in self._params:
            self._params[name] = self.choose(name, distribution)
            self._distributions[name] = distribution
        return self._params[name]

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return float(self._suggest(name, FloatDistribution(low, high, log=log, step=step)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return int(self._suggest(name, IntDistribution(low, high, log=log, step=step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._suggest(name, CategoricalDistribution(choices))

    def suggest_uniform(self, name: str, low: float, high: float) -> float:
        return self.suggest_float(name, low, high)

    def suggest_loguniform(self, name: str, low: float, high: float) -> float:
        return self.suggest_float(name, low, high, log=True)

    def suggest_discrete_uniform(self, name: str, low: float, high: float, q: float) -> float:
        return self.suggest_float(name, low, high, step=q)

    @property
    def params(self) -> dict[str, Any]:
        return dict(self._params)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return dict(self._distributions)

    # what Optuna's trials have beside it: a space has no use for them, and may look
    def report(self, value: float, step: int) -> None:
        raise NotImplementedError("a trial of several objectives has no report()")  # as in Optuna

    def should_prune(self) -> bool:
        raise NotImplementedError("a trial of several objectives has no should_prune()")

    def set_user_attr(self, key: str, value: Any) -> None: ...

    def set_constraint(self, key: str, value: float) -> None: ...

    @property
    def user_attrs(self) -> dict[str, Any]:
        return {}

    @property
    def datetime_start(self) -> datetime.datetime | None:
        return None

    @property
    def number(self) -> int:
        return 0


def values_of(distribution: BaseDistribution) -> Sequence[Any] | None:
    """All values of a parameter; None if they have no finite number."""
    match distribution:
        case CategoricalDistribution():
            return distribution.choices
        case IntDistribution():
            return range(distribution.low, distribution.high + 1, distribution.step)
        case FloatDistribution(step=float(step), low=low, high=high):
            return [min(low + k * step, high) for k in range(1 + round((high - low) / step))]
        case _:
            return None


class Given(Draw):
    """Takes each parameter from a mapping, which may hold more.

    Raises:
        Elsewhere: from suggest_*, one that isn't there, or isn't one of the values.
    """

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__()
        self._given = params

    def choose(self, name: str, distribution: BaseDistribution) -> Any:
        value = self._given.get(name)
        if value is None or (
            not isinstance(distribution, CategoricalDistribution) and not isinstance(value, int | float)
        ):
            raise Elsewhere
        if not distribution._contains(distribution.to_internal_repr(value)):
            raise Elsewhere
        return value


class Named(Given):
    """Looks for a recipe by the names of parameters: `n_stages`, `stage_1`, ..., and those of settings."""

    def __init__(self, recipe: Recipe, defaults: Mapping[str, Value]) -> None:
        wanted: dict[str, Any] = {"n_stages": len(recipe.stages), **recipe.anchoring, "teachers": recipe.teachers}
        for number, stage in enumerate(recipe.stages, 1):
            values = stage.resolved(defaults)
            own = {key: values[key] for key in values if "." in key}
            wanted |= {f"stage_{number}": stage.path, **own}
            wanted |= {f"stage_{number}.{key}": value for key, value in values.items()}
            wanted |= {key: value for key, value in values.items() if number == 1}
        super().__init__(wanted)

    def choose(self, name: str, distribution: BaseDistribution) -> Any:
        plain, _, _ = name.partition(" of ")  # choices that hang on earlier ones
        try:
            return Given({name: self._given.get(name, self._given.get(plain))}).choose(name, distribution)
        except ValueError:  # to_internal_repr's, of a value that isn't one of the choices
            raise Elsewhere from None


class Walk(Draw):
    """Follows a path of choices, and goes on with the first of each.

    Raises:
        Elsewhere: from suggest_*, a parameter has no finite number of values.
    """

    def __init__(self, path: Sequence[int]) -> None:
        super().__init__()
        self.path, self.sizes = list(path), list[int]()

    def choose(self, name: str, distribution: BaseDistribution) -> Any:
        values = values_of(distribution)
        if values is None:
            raise Elsewhere
        at = len(self.sizes)
        if at == len(self.path):
            self.path.append(0)
        self.sizes.append(len(values))
        return values[self.path[at]]


class Random(Draw):
    """Draws everything uniformly."""

    def __init__(self, generator: random.Random) -> None:
        super().__init__()
        self._generator = generator

    def choose(self, name: str, distribution: BaseDistribution) -> Any:
        values = values_of(distribution)
        if values is not None:
            return self._generator.choice(values)
        assert isinstance(distribution, FloatDistribution), "all others are finite"
        low, high = distribution.low, distribution.high
        if not distribution.log:
            return self._generator.uniform(low, high)
        return min(high, max(low, math.exp(self._generator.uniform(math.log(low), math.log(high)))))


class Near(Random):
    """Keeps most of what was suggested: each parameter but for one in as many as there are, drawn anew."""

    def __init__(self, generator: random.Random, suggested: Mapping[str, Any]) -> None:
        super().__init__(generator)
        self._kept = {k: v for k, v in suggested.items() if generator.random() >= 1 / len(suggested)}

    def choose(self, name: str, distribution: BaseDistribution) -> Any:
        if name in self._kept and distribution._contains(distribution.to_internal_repr(self._kept[name])):
            return self._kept[name]
        return super().choose(name, distribution)


Points = dict[str, tuple[dict[str, Any], Recipe]]


def enumerate_space(space: Callable[[BaseTrial], Recipe]) -> Points | None:
    """Recipe id -> parameters and recipe, of a finite space, shortest recipes first; None if the space isn't finite.

    A depth-first walk over all choices of a define-by-run space.

    Raises:
        ValueError: it has more points than can be run; or as SearchSpace.
    """
    found: Points = {}
    path: list[int] = []
    for _ in range(ENUMERATION_LIMIT):
        walk = Walk(path)
        try:
            recipe = space(walk)
        except Elsewhere:
            return None
        found.setdefault(recipe.id, (walk.params, recipe))
        path = _next(walk.path, walk.sizes)
        if not path:
            ordered = sorted(found.items(), key=lambda item: len(item[1][1].stages))
            return dict(ordered)
    raise ValueError(
        f"this space has over {ENUMERATION_LIMIT} points: ask for fewer methods, max_stages or values; or for an "
        "interval(...), of which a sampler draws"
    )


def _next(path: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """The next place of a depth-first walk; [] after the last."""
    following = list(path)
    while following and following[-1] + 1 >= sizes[len(following) - 1]:
        following.pop()
    if following:
        following[-1] += 1
    return following


@dataclass(frozen=True, kw_only=True)
class Scope:
    """A space, and what was seen of it.

    points: of a finite space; None: it is infinite. recipes: all of it, or some, drawn at random. defaults: what holds
    where a recipe says nothing, by flat key.
    """

    space: Callable[[BaseTrial], Recipe]
    points: Points | None
    recipes: Sequence[Recipe]
    defaults: Mapping[str, Value] = field(default_factory=dict)


def look(space: SearchSpace) -> Scope:
    """Walk through a finite space, or draw from an infinite one.

    Raises:
        ValueError: as SearchSpace; or a setting of the command line has no effect in any recipe.
    """
    points = enumerate_space(space)
    generator = random.Random(0)
    if points is not None:
        recipes = [recipe for _, recipe in points.values()]
    else:
        recipes = [space(Random(generator)) for _ in range(LOOKS)]
    for key in space.keys:
        if key not in space.felt:
            raise ValueError(f"{key}= has no effect in any recipe of this search: leave it out")
    return Scope(space=space, points=points, recipes=recipes, defaults=space.defaults)
