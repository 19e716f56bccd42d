"""The Optuna study: which recipe next, never the same twice, and what came of it. Knows nothing of Ray.

The study is persistent and the only record of what was suggested; results can be made again from the store of stages.
One driver a study: whoever opens it holds the lock of the run's folder.
"""

from __future__ import annotations

import dataclasses
import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from types import MappingProxyType
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from search import stopping
from search.draws import Draw, Given, Named, Near, Random, Scope
from search.space import Elsewhere, SearchSpace
from search.study_file import SOURCE, open_other, open_study
from smskd.notation import parse
from smskd.recipe import Recipe
from smskd.result import COMPLETE, FAILED, PRUNED, Result, of_dict

DEFAULT_TRIALS = 40
# The attribute of a trial that counts the recipes told before it.
_ORDER = "order"
# Notes on the study: how many recipes of a finite space break no limit; what was learnt of other studies.
_ALLOWED, _LEARNT = "within the limits", "learnt"
# By this NSGA-II knows its populations, and knows nothing of trials without it.
_GENERATION = "NSGAIISampler:generation"
# Asking a sampler more often for a recipe not seen yet litters the study with failed trials and finds little.
_TRIES = 2
_NEAR_TRIES, _RANDOM_TRIES = 100, 1000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Largest values that a recipe of the front may have, by name; never empty.

    measured: a result's values by the same names. foreseen: those that are known of a recipe before it is trained.
    """

    bounds: Mapping[str, float]
    measured: Callable[[Result], Mapping[str, float]]
    foreseen: Callable[[Recipe], Mapping[str, float]]

    def excess(self, values: Mapping[str, float]) -> dict[str, float]:
        """Optuna's constraints: by which part of its bound each value is above it; 0 or less is allowed."""
        return {name: value / self.bounds[name] - 1 for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is minimised: of a result, `values` makes the error and each of `costs`; and what a recipe may cost.

    limits: a recipe known to break one isn't trained; one that turns out to is never on the front.
    """

    values: Callable[[Result], tuple[float, ...]]
    costs: Sequence[str] = ("cost",)
    limits: Limits | None = None


@dataclass(frozen=True, kw_only=True)
class Design:
    """How a study searches.

    seeds: a recipe is told when it has run with each of these. sampler: None: exhaustive for a finite space, else tpe.
    trials: recipes at most; None: all of a finite space, else DEFAULT_TRIALS. seed: of the sampler.
    margin: a recipe whose finished prefix is dominated by more than this error gives up its later stages, as
        search.stopping says; None: none does.
    """

    seeds: Sequence[int]
    sampler: str | None = None
    trials: int | None = None
    seed: int = 0
    margin: float | None = None


@dataclass(kw_only=True)
class Asked:
    """A recipe that was suggested. `claims` are the recipes it will settle: prefixes of its own, and itself.

    depth: how many of its stages are to be trained now. records: by seed, of `now`.
    """

    trial: optuna.Trial
    recipe: Recipe
    claims: list[Recipe]
    depth: int
    records: dict[int, Result] = field(default_factory=dict)

    @property
    def now(self) -> Recipe:
        """What is to be trained now: the recipe, or a prefix after which it may be given up."""
        return self.recipe.prefixes()[self.depth - 1]


class Study:
    """Asks Optuna for recipes and tells it how they did. Minimises what `objective` makes of a record."""

    def __init__(
        self,
        scope: Scope,
        storage: str | optuna.storages.BaseStorage,
        *,
        identity: Mapping[str, Any],
        goal: Goal,
        design: Design,
        sources: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Open the study at `storage`, or make it.

        Args:
            scope: the space, and what was seen of it.
            storage: a database URL as Optuna takes it, or a storage of its own.
            identity: the settings that decide the numbers; a study made with others is refused.
            sources: what other studies found is made known to the sampler: name for people -> database URL. Their
                recipes count as finished only where they are trained here.

        Raises:
            ValueError: the storage, or that of a source, holds no such study or another one; or the sampler doesn't
                fit the space or the sources.
        """
        self.points = scope.points
        if design.sampler == "exhaustive" and self.points is None:
            raise ValueError(
                "sampler=exhaustive needs a finite space, but this one has a continuous parameter: use tpe"
            )
        self.sampler = design.sampler or ("tpe" if self.points is None else "exhaustive")
        if sources and self.sampler in ("exhaustive", "random"):
            raise ValueError(f"warm_start= is for a sampler that learns (tpe, nsga2, gp), not for {self.sampler}")
        self._scope, self._space, self._goal, self._limits = scope, scope.space, goal, goal.limits
        self._seeds, self._margin, self._trials = tuple(design.seeds), design.margin, design.trials
        others = {name: open_other(name, url, identity) for name, url in sources.items()}
        self._study = open_study(storage, identity, goal.costs)
        earlier = self._study.get_trials(deepcopy=False)
        for trial in earlier:
            self._recall(trial)
        self._settled: dict[str, tuple[Recipe, list[Result]]] = {}
        # Values of the recipes that finished; ids of those that were given up on the way, or broke a limit beforehand.
        self._finished: dict[str, list[float]] = {}
        self._given_up: set[str] = set()
        self._refused: set[str] = set()
        self._running: dict[int, Asked] = {}
        # The order in which recipes were finished is not that of asking. Clocks may step back, so it is counted.
        self._told = 1 + max((trial.user_attrs.get(_ORDER, -1) for trial in earlier), default=-1)
        for trial in sorted(earlier, key=lambda trial: trial.user_attrs.get(_ORDER, math.inf)):
            if trial.state == TrialState.RUNNING:  # its driver died; the stages it had finished are in the store
                self._study.tell(trial.number, state=TrialState.FAIL)
                if trial.params:
                    self._study.enqueue_trial(trial.params, skip_if_exists=False)
            elif trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and SOURCE not in trial.user_attrs:
                recipe = parse(trial.user_attrs["recipe"])
                self._settled[recipe.id] = recipe, [of_dict(told) for told in trial.user_attrs["records"]]
                if trial.state == TrialState.COMPLETE:
                    self._finished[recipe.id] = list(trial.values)
                else:
                    (self._refused if trial.constraints else self._given_up).add(recipe.id)
        for name, other in others.items():
            self._learn(name, other)
        # A study taken up again draws on, and not from the start.
        drawn = design.seed + len(earlier)
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
    def settled(self) -> dict[str, tuple[Recipe, list[Result]]]:
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

    def _recall(self, trial: FrozenTrial) -> None:
        """Which choices a name stood for: a space whose choices hang on earlier ones has several."""
        if isinstance(self._space, SearchSpace):
            for name, distribution in trial.distributions.items():
                if isinstance(distribution, CategoricalDistribution) and " of " not in name:
                    self._space.knows(name, distribution.choices)

    def tell(self, asked: Asked, record: Result) -> bool:
        """Take the record of one seed of `asked.now`; once all are in, settle the recipe. Whether that was so.

        If it wasn't and `asked.records` is empty, `asked.now` is longer than before: its seeds are to be run.
        """
        asked.records[record.seed] = record
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
            recipe = self._space(drawn)  # its parameters are those that this asks for
            claims = self._claims(recipe, drawn.params)
            if claims:
                return self._ask_for(claims[min(len(claims), room) - 1][0])
        return None

    def _draws(self, suggested: Mapping[str, Any]) -> Iterator[Draw]:
        """Where else to look if what a sampler suggests is known already: near to it, then anywhere."""
        if self.sampler != "random":
            yield from (Near(self._random, suggested) for _ in range(_NEAR_TRIES))
        if self.points is None:
            yield from (Random(self._random) for _ in range(_RANDOM_TRIES))
            return
        taken = self._taken()
        left = [
            params for key, (params, recipe) in self.points.items() if key not in taken and not self._breaks(recipe)
        ]
        if left:
            yield Given(self._random.choice(left))

    def _turn_down(
        self, trial: optuna.Trial, recipe: Recipe, claims: Sequence[tuple[dict[str, Any], Recipe]], room: int
    ) -> None:
        """Tell Optuna that a suggestion isn't run."""
        self._running.pop(trial.number, None)
        if recipe.id not in self._taken() and (broken := self._breaks(recipe)):
            assert self._limits is not None
            for name, excess in self._limits.excess(self._limits.foreseen(recipe)).items():
                trial.set_constraint(name, excess)
            why = f"not trained: {broken}"
            records = [Result(recipe=str(recipe), seed=seed, status=PRUNED, error=why) for seed in self._seeds]
            self._write(trial.set_user_attr, recipe, records)
            self._settled[recipe.id] = recipe, records
            self._refused.add(recipe.id)
            self._study.tell(trial, state=TrialState.PRUNED)
            return
        why = "seen before" if not claims else f"has {len(claims)} new recipes, room for {room}"
        trial.set_user_attr("not run", why)
        self._study.tell(trial, state=TrialState.FAIL)

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

    def _gives_up(self, asked: Asked, values: Sequence[float], records: Sequence[Result]) -> bool:
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
        given_up = [
            dataclasses.replace(record, recipe=str(asked.recipe), status=PRUNED, error=why) for record in records
        ]
        self._settle(asked, given_up)
        self._given_up.add(asked.recipe.id)
        self._study.tell(asked.trial, state=TrialState.PRUNED)
        return True

    def _settle(self, asked: Asked, records: list[Result]) -> None:
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
        for prefix in recipe.prefixes()[:-1]:
            within = self._within(prefix, params)
            if prefix.id not in taken and within is not None and not self._breaks(prefix):
                found.append((within, prefix))
        return found if self._breaks(recipe) else [*found, (dict(params), recipe)]

    def _within(self, recipe: Recipe, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """Parameters that lead to a prefix; None if it isn't a recipe of the space.

        An infinite space is asked: a prefix has the same parameters but for `n_stages`, if the space has such a one.
        """
        if self.points is not None:
            return self.points[recipe.id][0] if recipe.id in self.points else None
        shorter = Given({**params, "n_stages": len(recipe.stages)})
        return self._leads(shorter, recipe) if "n_stages" in params else None

    def _leads(self, trial: Draw, recipe: Recipe) -> dict[str, Any] | None:
        """A trial's parameters, if it draws this recipe."""
        try:
            return trial.params if self._space(trial).id == recipe.id else None
        except Elsewhere:
            return None

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

    def _tell_prefix(self, prefix: Recipe, asked: Asked, records: Sequence[Result]) -> None:
        shorter = [record.of_prefix(str(prefix), len(prefix.stages)) for record in records]
        values = self._values(shorter)
        params = self._within(prefix, asked.trial.params)
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
        given = Given(params)
        self._space(given)
        self._study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=given.distributions, values=values, user_attrs=attributes,
                system_attrs=system, constraints=constraints,
            )
        )  # fmt: skip

    def _learn(self, source: str, other: optuna.Study) -> None:
        """Make the finished recipes of another study known to the sampler, those that are in this space; once."""
        learnt = self.attributes.get(_LEARNT, {})
        if source in learnt:
            return
        count = 0
        for trial in other.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if SOURCE in trial.user_attrs:
                continue
            recipe = parse(trial.user_attrs["recipe"])
            records = [of_dict(told) for told in trial.user_attrs["records"]]
            params = self._params_of(recipe, other.user_attrs["identity"])
            if params is not None:
                attributes = {"recipe": str(recipe), SOURCE: source}
                self._add(params, trial.values, attributes, {_GENERATION: 0}, self._excess(records))
                count += 1
        self.note(_LEARNT, learnt | {source: count})

    def _params_of(self, recipe: Recipe, told: Mapping[str, Any]) -> dict[str, Any] | None:
        """Parameters that lead to a recipe of a search with these settings; None if it isn't one of this space, or
        can't be found in it.

        An infinite space is searched by the names of its parameters: `n_stages`, `stage_1`, ..., and those of settings.
        """
        if isinstance(self._space, SearchSpace):
            try:
                recipe = self._space.here(recipe, told)
            except ValueError:  # a total too short for its stages, say
                return None
        if self.points is not None:
            return self.points[recipe.id][0] if recipe.id in self.points else None
        return self._leads(Named(recipe, self._scope.defaults), recipe)

    def _write(self, put: Callable[[str, Any], Any], recipe: Recipe, records: Sequence[Result]) -> None:
        put("recipe", str(recipe))
        put("records", [record.to_dict() for record in records])
        put(_ORDER, self._told)
        self._told += 1
        errors = {f"seed {record.seed}: {record.error}" for record in records if record.status == FAILED}
        errors |= {str(record.error) for record in records if record.status == PRUNED}
        if errors:
            put("error", "; ".join(sorted(errors)))

    def _values(self, records: Sequence[Result]) -> list[float] | None:
        """Means over seeds; None if a seed failed or a value isn't finite."""
        if any(record.status != COMPLETE for record in records):
            return None
        means = [fmean(column) for column in zip(*map(self._goal.values, records), strict=True)]
        return means if all(map(math.isfinite, means)) else None

    def _excess(self, records: Sequence[Result]) -> dict[str, float]:
        """Optuna's constraints of a finished recipe: of the means over its seeds."""
        if self._limits is None:
            return {}
        measured = [self._limits.measured(record) for record in records]
        return self._limits.excess({name: fmean(one[name] for one in measured) for name in self._limits.bounds})


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
