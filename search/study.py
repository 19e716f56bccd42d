"""The Optuna study: which recipe next, never the same twice, and what came of it. Knows nothing of Ray.

The study is persistent and the only record of what was suggested; results can be made again from the store of stages.
One driver a study: whoever opens it holds the lock of the run's folder.
"""

from __future__ import annotations

import contextlib
import math
import random
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any, NotRequired, TypedDict
from urllib.parse import quote

import optuna
import sqlalchemy.exc
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from search import disk, stopping, storages
from smskd.recipe import Recipe, parse
from spaces import Trial

SCHEMA = 1
_NAME = "smskd"
DEFAULT_TRIALS = 40
_ENUMERATION_LIMIT = 20_000
# The attribute of a trial that counts the recipes told before it.
_ORDER = "order"
# The attribute of a trial that tells which other study it is from.
_SOURCE = "from"
# Notes on the study: how many recipes of a finite space break no limit; what was learnt of other studies.
_ALLOWED, _LEARNT = "within the limits", "learnt"
# By this NSGA-II knows its populations, and knows nothing of trials without it.
_GENERATION = "NSGAIISampler:generation"
# What two searches must have in common for one to learn from the other.
_TASK = ("pair", "data", "cost")
# Asking a sampler more often for a recipe not seen yet litters the study with failed trials and finds little.
_TRIES = 2
_NEAR_TRIES, _RANDOM_TRIES = 100, 1000

Space = Callable[[Trial], Recipe]


class StageRecord(TypedDict):
    """One finished stage: its key in the store, and what smskd.pipeline.StageResult says of it."""

    key: str
    val_accuracy: float
    train_flops: float
    device_seconds: float
    anchor_weights: dict[str, float]
    agreement_teacher: float
    agreement_previous: float | None
    stage_losses: list[float]


class Record(TypedDict):
    """What came of one recipe with one seed. error: the cause, where status is `failed`."""

    seed: int
    status: str
    error: str | None
    params: int | None
    stages: list[StageRecord]
    test_accuracy: float | None
    extra_teacher_flops: NotRequired[float]
    test_best_accuracy: NotRequired[float | None]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Largest values that a recipe of the front may have, by name; never empty.

    measured: a record's values by the same names. foreseen: those that are known of a recipe before it is trained.
    """

    bounds: Mapping[str, float]
    measured: Callable[[Record], Mapping[str, float]]
    foreseen: Callable[[Recipe], Mapping[str, float]]

    def excess(self, values: Mapping[str, float]) -> dict[str, float]:
        """Optuna's constraints: by which part of its bound each value is above it; 0 or less is allowed."""
        return {name: value / self.bounds[name] - 1 for name, value in values.items()}


@dataclass(kw_only=True)
class Asked:
    """A recipe that was suggested. `claims` are the recipes it will settle: prefixes of its own, and itself.

    depth: how many of its stages are to be trained now. records: by seed, of `now`.
    """

    trial: optuna.Trial
    recipe: Recipe
    claims: list[Recipe]
    depth: int
    records: dict[int, Record] = field(default_factory=dict)

    @property
    def now(self) -> Recipe:
        """What is to be trained now: the recipe, or a prefix after which it may be given up."""
        return self.recipe.prefixes()[self.depth - 1]


class Study:
    """Asks Optuna for recipes and tells it how they did. Minimises what `objective` makes of a record."""

    def __init__(
        self,
        *,
        space: Space,
        storage: str | optuna.storages.BaseStorage,
        identity: Mapping[str, Any],
        seeds: Sequence[int],
        sampler: str | None,
        trials: int | None,
        seed: int,
        objective: Callable[[Record], tuple[float, ...]],
        costs: Sequence[str] = ("cost",),
        prefixes: bool = True,
        limits: Limits | None = None,
        margin: float | None = None,
        sources: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Open the study at `storage`, or make it.

        Args:
            space: trial -> recipe.
            storage: a database URL as Optuna takes it, or a storage of its own.
            identity: the settings that decide the numbers; a study made with others is refused.
            seeds: a recipe is told when it has run with each of these.
            sampler: None: exhaustive for a finite space, else tpe.
            trials: recipes at most; None: all of a finite space, else DEFAULT_TRIALS.
            seed: of the sampler.
            objective: from one record to the values to minimise: the error, and each of the costs.
            costs: names of what is minimised beside the error.
            prefixes: whether the beginning of a finished recipe is a finished recipe.
            limits: a recipe known to break one isn't trained; one that turns out to is never on the front.
            margin: a recipe whose finished prefix is dominated by more than this error gives up its later stages, as
                search.stopping says; None: none does.
            sources: what other studies found is made known to the sampler: name for people -> database URL. Their
                recipes count as finished only where they are trained here.

        Raises:
            ValueError: the storage, or that of a source, holds no such study or another one; or the sampler doesn't
                fit the space or the sources.
        """
        points = enumerate_space(space)
        if sampler == "exhaustive" and points is None:
            raise ValueError(
                "sampler=exhaustive needs a finite space, but this one has a continuous parameter: use tpe"
            )
        self.sampler = sampler or ("tpe" if points is None else "exhaustive")
        if sources and self.sampler in ("exhaustive", "random"):
            raise ValueError(f"warm_start= is for a sampler that learns (tpe, nsga2, gp), not for {self.sampler}")
        self.points = points
        self._space, self._seeds, self._objective, self._prefixes = space, tuple(seeds), objective, prefixes
        self._limits, self._margin, self._trials = limits, margin, trials
        others = {name: _other(name, url, identity) for name, url in sources.items()}
        self._study = _open(storage, identity, costs)
        earlier = self._study.get_trials(deepcopy=False)
        self._settled: dict[str, tuple[Recipe, list[Record]]] = {}
        # Values of the recipes that finished; ids of those that were given up on the way, or broke a limit beforehand.
        self._finished: dict[str, list[float]] = {}
        self._given_up: set[str] = set()
        self._refused: set[str] = set()
        self._running: dict[int, Asked] = {}
        # The order in which recipes were finished is not that of asking. Clocks may step back, so it is counted.
        self._told = 1 + max((trial.user_attrs.get(_ORDER, -1) for trial in earlier), default=-1)
        for trial in sorted(earlier, key=_when):
            if trial.state == TrialState.RUNNING:  # its driver died; the stages it had finished are in the store
                self._study.tell(trial.number, state=TrialState.FAIL)
                if trial.params:
                    self._study.enqueue_trial(trial.params, skip_if_exists=False)
            elif trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and _SOURCE not in trial.user_attrs:
                recipe = parse(trial.user_attrs["recipe"])
                self._settled[recipe.id] = recipe, trial.user_attrs["records"]
                if trial.state == TrialState.COMPLETE:
                    self._finished[recipe.id] = list(trial.values)
                else:
                    (self._refused if trial.constraints else self._given_up).add(recipe.id)
        for name, other in others.items():
            self._learn(name, other)
        # A study taken up again draws on, and not from the start.
        drawn = seed + len(earlier)
        self._sampler = self._study.sampler = _sampler(self.sampler, drawn, self.limit)
        self._random = random.Random(drawn)

    @property
    def limit(self) -> int:
        """How many recipes are to be settled, beside those that break a limit."""
        whole = DEFAULT_TRIALS
        if self.points is not None:
            whole = self.attributes.get(_ALLOWED, len(self.points)) if self._limits else len(self.points)
        if self._trials is None:
            return whole
        return self._trials if self.points is None else min(self._trials, whole)

    @property
    def settled(self) -> dict[str, tuple[Recipe, list[Record]]]:
        """Recipe id -> recipe and its records, of all that finished, failed or were given up in this run, in order."""
        return self._settled

    @property
    def refused(self) -> int:
        """How many recipes were not trained, since they break a limit."""
        return len(self._refused)

    @property
    def attributes(self) -> dict[str, Any]:
        """Notes on the whole study, kept with it."""
        return self._study.user_attrs

    def note(self, key: str, value: Any) -> None:
        """Keep a note on the whole study."""
        self._study.set_user_attr(key, value)

    def complete(self) -> bool:
        """Whether all that was wanted is settled; failed recipes are to be tried again."""
        return len(self._finished) + len(self._given_up) >= self.limit

    def room(self) -> int:
        """How many recipes may still be asked for."""
        return max(0, self.limit - len(self._taken() - self._refused))

    def stages_to_come(self) -> int:
        """How many stages recipes that run have after those being trained now, if none is given up."""
        return sum(len(asked.recipe.stages) - asked.depth for asked in self._running.values())

    def idle(self) -> bool:
        """Whether nothing that was asked for is still to be told."""
        return not self._running

    def ask(self) -> Asked | None:
        """The next recipe; None if there is none, or none until a running one is told."""
        self._look_ahead()
        while (asked := self._next()) is not None:
            if self._goes_on(asked):
                return asked
        return None

    def tell(self, asked: Asked, record: Record) -> bool:
        """Take the record of one seed of `asked.now`; once all are in, settle the recipe. Whether that was so.

        If it wasn't and `asked.records` is empty, `asked.now` is longer than before: its seeds are to be run.
        """
        asked.records[record["seed"]] = record
        if len(asked.records) < len(self._seeds):
            return False
        records = [asked.records[s] for s in self._seeds]
        values = self._values(records)
        if values is None:
            self._settle(asked, records)
            self._study.tell(asked.trial, state=TrialState.FAIL)
            return True
        for claim in [claim for claim in asked.claims if len(claim.stages) <= asked.depth and claim != asked.recipe]:
            self._tell_prefix(claim, asked, records)
            asked.claims.remove(claim)
        if asked.depth < len(asked.recipe.stages):
            if self._gives_up(asked, values, records):
                return True
            asked.depth += 1
            asked.records.clear()
            return not self._goes_on(asked)
        for name, excess in self._excess(records).items():
            asked.trial.set_constraint(name, excess)
        self._settle(asked, records)
        self._study.tell(asked.trial, values)
        self._finished[asked.recipe.id] = values
        return True

    def _next(self) -> Asked | None:
        taken = self._taken()
        room = self.limit - len(taken - self._refused)
        if self.sampler == "exhaustive":
            assert self.points is not None
            for key, (params, recipe) in self.points.items():
                if key in taken:
                    continue
                if self._breaks(recipe):  # told even after the last one that is run, so that all are listed
                    self._turn_down(self._ask_for(params).trial, recipe, [], room)
                else:
                    return self._ask_for(params) if room > 0 else None
            return None
        if room <= 0:
            return None
        for _ in range(_TRIES):
            trial = self._study.ask()
            recipe = self._space(trial)
            claims = self._claims(recipe, trial.params)
            if claims and claims[-1][1] == recipe and len(claims) <= room:
                return self._accept(trial, recipe, [claim for _, claim in claims])
            params = dict(trial.params)
            self._turn_down(trial, recipe, claims, room)
            if claims:  # the longest beginning of it that there is room for
                return self._ask_for(claims[min(len(claims), room) - 1][0])
        for drawn in self._draws(params):
            claims = self._claims(self._space(drawn), drawn.params)
            if claims:
                return self._ask_for(claims[min(len(claims), room) - 1][0])
        return None

    def _draws(self, suggested: Mapping[str, Any]) -> Iterator[_Stub | FixedTrial]:
        """Where else to look if what a sampler suggests is known already: near to it, then anywhere."""
        if self.sampler != "random":
            yield from (_Near(self._random, suggested) for _ in range(_NEAR_TRIES))
        if self.points is None:
            yield from (_Random(self._random) for _ in range(_RANDOM_TRIES))
            return
        taken = self._taken()
        left = [
            params for key, (params, recipe) in self.points.items() if key not in taken and not self._breaks(recipe)
        ]
        if left:
            fixed = FixedTrial(self._random.choice(left))
            self._space(fixed)
            yield fixed

    def _turn_down(
        self, trial: optuna.Trial, recipe: Recipe, claims: Sequence[tuple[dict[str, Any], Recipe]], room: int
    ) -> None:
        """Tell Optuna that a suggestion isn't run."""
        self._running.pop(trial.number, None)
        if recipe.id not in self._taken() and (broken := self._breaks(recipe)):
            assert self._limits is not None
            for name, excess in self._limits.excess(self._limits.foreseen(recipe)).items():
                trial.set_constraint(name, excess)
            records = [self._untrained(seed, f"not trained: {broken}") for seed in self._seeds]
            self._write(trial.set_user_attr, recipe, records)
            self._settled[recipe.id] = recipe, records
            self._refused.add(recipe.id)
            self._study.tell(trial, state=TrialState.PRUNED)
            return
        why = "seen before" if not claims else f"has {len(claims)} new recipes, room for {room}"
        trial.set_user_attr("not run", why)
        self._study.tell(trial, state=TrialState.FAIL)

    @staticmethod
    def _untrained(seed: int, why: str) -> Record:
        return {"seed": seed, "status": "pruned", "error": why, "params": None, "stages": [], "test_accuracy": None}

    def _look_ahead(self) -> None:
        """Count which recipes of a finite space break no limit, so that a search knows when it is at its end."""
        if self._limits is not None and self.points is not None and _ALLOWED not in self.attributes:
            self.note(_ALLOWED, sum(not self._breaks(recipe) for _, recipe in self.points.values()))

    def _breaks(self, recipe: Recipe) -> str:
        """Which limit a recipe is known to break before it is trained; empty if none."""
        if self._limits is None:
            return ""
        values = self._limits.foreseen(recipe)
        over = [name for name, excess in self._limits.excess(values).items() if excess > 0]
        return ", ".join(f"{name} {values[name]:.6g} is more than {self._limits.bounds[name]:.6g}" for name in over)

    def _goes_on(self, asked: Asked) -> bool:
        """Go past the stages whose prefixes are finished recipes; False if one of these is dominated: it is told."""
        while asked.depth < len(asked.recipe.stages) and asked.now.id in self._finished:
            _, records = self._settled[asked.now.id]
            if self._gives_up(asked, self._finished[asked.now.id], records):
                return False
            asked.depth += 1
        return True

    def _gives_up(self, asked: Asked, values: Sequence[float], records: Sequence[Record]) -> bool:
        """Whether a recipe ends with its finished prefix `asked.now`; if so, it is told. values: of the prefix."""
        assert self._margin is not None, "only a recipe that may be given up stops at a prefix"
        allowed = {
            key: list(found)
            for key, found in self._finished.items()
            if self._limits is None or max(self._excess(self._settled[key][1]).values()) <= 0
        }
        better = stopping.dominated_by(values, allowed, self._margin)
        if better is None:
            return False
        other, _ = self._settled[better]
        why = (
            f"given up after stage {asked.depth} of {len(asked.recipe.stages)}: {asked.now} has "
            f"{100 * (1 - values[0]):.2f} % on validation, {other} costs no more and has "
            f"{100 * (1 - allowed[better][0]):.2f} %"
        )
        given_up: list[Record] = [{**record, "status": "pruned", "error": why} for record in records]
        self._settle(asked, given_up)
        self._given_up.add(asked.recipe.id)
        self._study.tell(asked.trial, state=TrialState.PRUNED)
        return True

    def _settle(self, asked: Asked, records: list[Record]) -> None:
        del self._running[asked.trial.number]
        self._write(asked.trial.set_user_attr, asked.recipe, records)
        self._settled[asked.recipe.id] = asked.recipe, records

    def _taken(self) -> set[str]:
        """Ids of recipes that are settled, or will be by one that runs."""
        return {*self._settled, *(claim.id for asked in self._running.values() for claim in asked.claims)}

    def _claims(self, recipe: Recipe, params: Mapping[str, Any]) -> list[tuple[dict[str, Any], Recipe]]:
        """The recipes that running this one would settle, with parameters, shortest first; [] if it is taken.

        Those that break a limit are left out; so the recipe itself is the last one, unless it breaks one.
        """
        taken = self._taken()
        if recipe.id in taken:
            return []
        found: list[tuple[dict[str, Any], Recipe]] = []
        for prefix in recipe.prefixes()[:-1] if self._prefixes else ():
            place = self._place(prefix, params)
            if prefix.id not in taken and place is not None and not self._breaks(prefix):
                found.append((place, prefix))
        return found if self._breaks(recipe) else [*found, (dict(params), recipe)]

    def _place(self, recipe: Recipe, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """Parameters that lead to a prefix; None if it isn't a recipe of the space.

        An infinite space is asked: a prefix has the same parameters but for `n_stages`, if the space has such a one.
        """
        if self.points is not None:
            return self.points[recipe.id][0] if recipe.id in self.points else None
        shorter = {**params, "n_stages": len(recipe.stages)}
        if "n_stages" not in params or self._space(FixedTrial(shorter)).id != recipe.id:
            return None
        return shorter

    def _ask_for(self, params: Mapping[str, Any]) -> Asked:
        self._study.enqueue_trial(dict(params), skip_if_exists=False)
        if self.sampler in ("tpe", "gp"):  # they would think of a suggestion that nobody asks for
            self._study.sampler = optuna.samplers.RandomSampler(seed=0)
        try:
            while True:
                trial = self._study.ask()
                recipe = self._space(trial)
                if trial.params == params:
                    return self._accept(trial, recipe, [claim for _, claim in self._claims(recipe, params)])
                self._study.tell(trial, state=TrialState.FAIL)  # queued by a driver that died; it will be asked for
        finally:
            self._study.sampler = self._sampler

    def _accept(self, trial: optuna.Trial, recipe: Recipe, claims: list[Recipe]) -> Asked:
        trial.set_user_attr("recipe", str(recipe))
        depth = len(recipe.stages) if self._margin is None else 1
        asked = Asked(trial=trial, recipe=recipe, claims=claims, depth=depth)
        self._running[trial.number] = asked
        return asked

    def _tell_prefix(self, prefix: Recipe, asked: Asked, records: Sequence[Record]) -> None:
        shorter: list[Record] = [{**record, "stages": record["stages"][: len(prefix.stages)]} for record in records]
        values = self._values(shorter)
        params = self._place(prefix, asked.trial.params)
        assert values is not None and params is not None, f"{prefix} was claimed by {asked.recipe}"
        attributes: dict[str, Any] = {"begins": str(asked.recipe)}
        self._write(attributes.__setitem__, prefix, shorter)
        generation = {k: v for k, v in self._frozen(asked).system_attrs.items() if k == _GENERATION}
        self._add(params, values, attributes, generation, self._excess(shorter))
        self._settled[prefix.id] = prefix, shorter
        self._finished[prefix.id] = values

    def _frozen(self, asked: Asked) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[asked.trial.number]

    def _add(
        self,
        params: dict[str, Any],
        values: Sequence[float],
        attributes: dict[str, Any],
        system: dict[str, Any],
        constraints: dict[str, float],
    ) -> None:
        """A complete trial that Optuna wasn't asked for."""
        fixed = FixedTrial(params)
        self._space(fixed)
        distributions: dict[str, BaseDistribution] = fixed.distributions
        self._study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=distributions, values=values, user_attrs=attributes, system_attrs=system,
                constraints=constraints,
            )
        )  # fmt: skip

    def _learn(self, source: str, other: optuna.Study) -> None:
        """Make the finished recipes of another study known to the sampler, those that are in this space; once."""
        learnt = self.attributes.get(_LEARNT, {})
        if source in learnt:
            return
        count = 0
        for trial in other.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if _SOURCE in trial.user_attrs:
                continue
            recipe, records = parse(trial.user_attrs["recipe"]), trial.user_attrs["records"]
            params = self._params_of(recipe)
            if params is not None:
                attributes = {"recipe": str(recipe), _SOURCE: source}
                self._add(params, trial.values, attributes, {_GENERATION: 0}, self._excess(records))
                count += 1
        self.note(_LEARNT, learnt | {source: count})

    def _params_of(self, recipe: Recipe) -> dict[str, Any] | None:
        """Parameters that lead to any recipe; None if it isn't one of the space, or can't be found in it.

        An infinite space is searched by the names of its parameters: `n_stages`, `stage_1`, ..., and those of settings.
        """
        if self.points is not None:
            return self.points[recipe.id][0] if recipe.id in self.points else None
        named = _Named(recipe)
        try:
            return named.params if self._space(named).id == recipe.id else None
        except _Elsewhere:
            return None

    def _write(self, put: Callable[[str, Any], Any], recipe: Recipe, records: Sequence[Record]) -> None:
        put("recipe", str(recipe))
        put("records", list(records))
        put(_ORDER, self._told)
        self._told += 1
        errors = {f"seed {record['seed']}: {record['error']}" for record in records if record["status"] == "failed"}
        errors |= {str(record["error"]) for record in records if record["status"] == "pruned"}
        if errors:
            put("error", "; ".join(sorted(errors)))

    def _values(self, records: Sequence[Record]) -> list[float] | None:
        """Means over seeds; None if a seed failed or a value isn't finite."""
        if any(record["status"] != "complete" for record in records):
            return None
        means = [fmean(column) for column in zip(*map(self._objective, records), strict=True)]
        return means if all(map(math.isfinite, means)) else None

    def _excess(self, records: Sequence[Record]) -> dict[str, float]:
        """Optuna's constraints of a finished recipe: of the means over its seeds."""
        if self._limits is None:
            return {}
        measured = [self._limits.measured(record) for record in records]
        return self._limits.excess({name: fmean(one[name] for one in measured) for name in self._limits.bounds})


def enumerate_space(space: Space) -> dict[str, tuple[dict[str, Any], Recipe]] | None:
    """Recipe id -> parameters and recipe, of a finite space, shortest recipes first; None if the space isn't finite.

    A depth-first walk over all choices of a define-by-run space.

    Raises:
        ValueError: it has more points than can be run.
    """
    found: dict[str, tuple[dict[str, Any], Recipe]] = {}
    path: list[int] = []
    for _ in range(_ENUMERATION_LIMIT):
        walk = _Walk(path)
        try:
            recipe = space(walk)
        except _Continuous:
            return None
        found.setdefault(recipe.id, (walk.params, recipe))
        path = _next(walk.path, walk.sizes)
        if not path:
            ordered = sorted(found.items(), key=lambda item: len(item[1][1].stages))
            return dict(ordered)
    raise ValueError(f"this space has over {_ENUMERATION_LIMIT} points: ask for fewer methods or max_stages")


def _next(path: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """The next place of a depth-first walk; [] after the last."""
    following = list(path)
    while following and following[-1] + 1 >= sizes[len(following) - 1]:
        following.pop()
    if following:
        following[-1] += 1
    return following


class _Continuous(Exception):
    """A parameter has no finite number of values."""


class _Stub:
    """A trial whose every parameter comes from `_choose`; a name asked for again keeps its value."""

    def __init__(self) -> None:
        self.params: dict[str, Any] = {}

    def _choose(self, values: Sequence[Any]) -> Any:
        raise NotImplementedError

    def _pick(self, name: str, values: Sequence[Any]) -> Any:
        if name not in self.params:
            self.params[name] = self._choose(values)
        return self.params[name]

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        return str(self._pick(name, choices))

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return int(self._pick(name, range(low, high + 1)))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if step is None:
            return float(self._pick(name, self._continuum(low, high, log)))
        return float(self._pick(name, [low + k * step for k in range(1 + round((high - low) / step))]))

    def _continuum(self, low: float, high: float, log: bool) -> Sequence[float]:
        raise NotImplementedError


class _Elsewhere(Exception):
    """A recipe isn't in the space, or can't be found in it by the names of parameters."""


class _Named(_Stub):
    """Looks for a recipe by the names of parameters; what isn't in the recipe is the first choice."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        stages = {f"stage_{number}": str(stage) for number, stage in enumerate(recipe.stages, 1)}
        self._wanted: dict[str, Any] = {"n_stages": len(recipe.stages), **stages, **recipe.settings}

    def _pick(self, name: str, values: Sequence[Any]) -> Any:
        padding = name.startswith("stage_") and name not in self._wanted
        value = values[0] if padding else self._wanted.get(name)
        if value not in values:
            raise _Elsewhere
        self.params[name] = value
        return value

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if step is not None:
            return super().suggest_float(name, low, high, step=step)
        value = self._wanted.get(name)
        if value is None or not low <= value <= high:
            raise _Elsewhere
        self.params[name] = float(value)
        return float(value)


class _Walk(_Stub):
    """Follows a path of choices, and goes on with the first of each."""

    def __init__(self, path: Sequence[int]) -> None:
        super().__init__()
        self.path, self.sizes = list(path), list[int]()

    def _pick(self, name: str, values: Sequence[Any]) -> Any:
        number = name.removeprefix("stage_")
        padding = number != name and number.isdigit() and int(number) > self.params.get("n_stages", math.inf)
        return super()._pick(name, values[:1] if padding else values)

    def _choose(self, values: Sequence[Any]) -> Any:
        place = len(self.sizes)
        if place == len(self.path):
            self.path.append(0)
        self.sizes.append(len(values))
        return values[self.path[place]]

    def _continuum(self, low: float, high: float, log: bool) -> Sequence[float]:
        raise _Continuous


class _Random(_Stub):
    """Draws everything uniformly."""

    def __init__(self, generator: random.Random) -> None:
        super().__init__()
        self._generator = generator

    def _choose(self, values: Sequence[Any]) -> Any:
        return self._generator.choice(values)

    def _continuum(self, low: float, high: float, log: bool) -> Sequence[float]:
        if not log:
            return [self._generator.uniform(low, high)]
        return [math.exp(self._generator.uniform(math.log(low), math.log(high)))]


class _Near(_Random):
    """Keeps most of what was suggested: each parameter but for one in as many as there are, drawn anew."""

    def __init__(self, generator: random.Random, suggested: Mapping[str, Any]) -> None:
        super().__init__(generator)
        self._kept = {k: v for k, v in suggested.items() if generator.random() >= 1 / len(suggested)}

    def _pick(self, name: str, values: Sequence[Any]) -> Any:
        if name in self._kept:
            self.params[name] = self._kept[name]
        return super()._pick(name, values)


def _when(trial: optuna.trial.FrozenTrial) -> tuple[bool, Any]:
    """Sorts trials in the order in which they were told; those of before that was counted by the clock, and first."""
    order = trial.user_attrs.get(_ORDER)
    return (True, order) if order is not None else (False, (trial.datetime_complete or datetime.max, trial.number))


def _sampler(name: str, seed: int, limit: int) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match name:
            case "tpe":  # group: spaces whose parameters hang on each other are sampled together as far as they agree
                return optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)
            case "nsga2":  # Optuna's population of 50 would be the first and only one of most searches
                return optuna.samplers.NSGAIISampler(population_size=min(50, max(8, limit // 5)), seed=seed)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)
            case _:  # an exhaustive walk enqueues every point itself
                return optuna.samplers.RandomSampler(seed=seed)


def _open(
    storage: str | optuna.storages.BaseStorage, identity: Mapping[str, Any], costs: Sequence[str]
) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _readable(storage):
        if isinstance(storage, str):
            _make_file(storage, identity, costs)
            storage = storages.opened(storage)
        study = _made(storage, identity, costs)
        held = study.user_attrs
        study.get_trials(deepcopy=False)
    _check(storage, held, identity)
    return study


def _made(
    storage: str | optuna.storages.BaseStorage, identity: Mapping[str, Any], costs: Sequence[str]
) -> optuna.Study:
    directions = [StudyDirection.MINIMIZE] * (1 + len(costs))
    study = optuna.create_study(study_name=_NAME, storage=storage, directions=directions, load_if_exists=True)
    held = study.user_attrs
    # one that was made, and nothing more: the command was refused, and is mended now
    unused = held.keys() == {"identity", "schema"} and held["schema"] == SCHEMA and held["identity"] != identity
    fits = study.directions == directions and not study.get_trials(deepcopy=False)
    if fits and (unused or "schema" not in held):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(["error", *costs])
        study.set_user_attr("identity", dict(identity))
        study.set_user_attr("schema", SCHEMA)  # the last one: without it, the study is made anew
    return study


def _make_file(storage: str, identity: Mapping[str, Any], costs: Sequence[str]) -> None:
    """Make a file with an empty study where there is none, whole or not at all: Optuna makes tables and their indices
    one by one, and doesn't miss those that a killed driver didn't come to.
    """
    path = Path(storage.removeprefix("sqlite:///"))
    new = not path.is_file() or not path.stat().st_size
    if not storage.startswith("sqlite:///") or not new or not path.parent.is_dir():
        return
    temporary = path.with_name(f"{path.name}.partial")
    for left in (temporary, *(Path(f"{file}-journal") for file in (temporary, path))):
        left.unlink(missing_ok=True)
    made = optuna.storages.RDBStorage(f"sqlite:///{temporary}")
    _made(made, identity, costs)
    made.remove_session()
    made.engine.dispose()
    temporary.replace(path)


def finished(storage: str, identity: Mapping[str, Any]) -> frozenset[str]:
    """Ids of the recipes that a study has finished; it is read alone, whoever may be at work in it.

    Raises:
        ValueError: there is no study, or another one.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _readable(storage):
        try:
            study = optuna.load_study(study_name=_NAME, storage=storage)
        except KeyError:
            raise ValueError(
                f"{storage} holds no study of this program: use another storage=, or another out="
            ) from None
        told = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    _check(storage, study.user_attrs, identity)
    return frozenset(parse(trial.user_attrs["recipe"]).id for trial in told if _SOURCE not in trial.user_attrs)


def _check(storage: object, held: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    _check_schema(storage, held)
    there = held["identity"]
    differing = [k for k in {**identity, **there} if there.get(k) != identity.get(k)]
    if differing:
        changes = ", ".join(f"{k}: {there.get(k)} there, {identity.get(k)} here" for k in differing)
        raise ValueError(f"{storage} holds another search ({changes}): use another out=, or the same settings")


def _other(name: str, storage: str, identity: Mapping[str, Any]) -> optuna.Study:
    """Another run's study, to learn from."""
    with _readable(storage):
        try:
            study = optuna.load_study(study_name=_NAME, storage=storage)
        except KeyError:
            raise ValueError(f"{name} holds no study of this program: leave it out of warm_start=") from None
        held = study.user_attrs
        study.get_trials(deepcopy=False)
    _check_schema(storage, held)
    for key in _TASK:
        if held["identity"].get(key) != identity.get(key):
            raise ValueError(
                f"warm_start= needs runs of the same {', '.join(_TASK)}, but {name} has "
                f"{key}={held['identity'].get(key)} and this run {key}={identity.get(key)}: leave it out"
            )
    return study


def _check_schema(storage: object, held: Mapping[str, Any]) -> None:
    if held.get("schema") != SCHEMA or not isinstance(held.get("identity"), dict):
        raise ValueError(
            f"{storage} holds a study of schema {held.get('schema')}, but this program reads {SCHEMA}: use another "
            "out=, or the version of this program that made it"
        )


@contextlib.contextmanager
def _readable(storage: object) -> Iterator[None]:
    """Name a storage that can't be read, and what to do.

    Raises:
        ValueError: it is no database, one of something else, or a damaged one.
    """
    mend = "use another out= (the finished stages are in the store and aren't trained again), or restore the file"
    path = Path(str(storage).removeprefix("sqlite:///"))
    if str(storage).startswith("sqlite:///") and path.is_file() and path.stat().st_size:
        try:
            # rw: what a killed driver left half-written is rolled back by whoever opens it, which a mere reader may not
            with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True)) as database:
                tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                ((verdict,),) = database.execute("PRAGMA quick_check(1)")  # else found only when that page is read
                if verdict != "ok":
                    raise sqlite3.DatabaseError(verdict)
        except sqlite3.Error as error:
            if disk.full(error):
                raise
            raise ValueError(f"{path} is no study, or a damaged one ({error}): {mend}") from None
        if tables and not {"studies", "trials", "version_info"} <= tables:
            raise ValueError(f"{path} is a database of something else, or half of a study: {mend}")
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        if disk.full(error):
            raise
        if (cause := storages.lost(error)) is not None:
            raise ValueError(f"{storages.hidden(str(storage))} can't be opened: {cause}") from None
        raise ValueError(f"{storage} can't be read as a study ({' '.join(str(error).split())[:200]}): {mend}") from None
