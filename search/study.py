"""The Optuna study: which recipe next, never the same twice, and what came of it. Knows nothing of Ray.

The study is persistent and the only record of what was suggested; results can be made again from the store of stages.
One driver a study: whoever opens it holds the lock of the run's folder.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import fmean
from typing import Any, NotRequired, TypedDict

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FixedTrial, TrialState

from smskd.recipe import Recipe, parse
from spaces import Trial

SCHEMA = 1
DEFAULT_TRIALS = 40
_ENUMERATION_LIMIT = 20_000
# The attribute of a trial that counts the recipes told before it.
_ORDER = "order"
# Asking a sampler more often for a recipe not seen yet litters the study with failed trials and finds little.
_TRIES = 3
_RANDOM_TRIES = 1000

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
class Asked:
    """A recipe that was suggested. `claims` are the recipes it will settle: prefixes of its own, and itself."""

    trial: optuna.Trial
    recipe: Recipe
    claims: tuple[Recipe, ...]
    records: dict[int, Record] = field(default_factory=dict)


class Study:
    """Asks Optuna for recipes and tells it how they did. Minimises what `objective` makes of a record."""

    def __init__(
        self,
        *,
        space: Space,
        storage: str,
        identity: Mapping[str, Any],
        seeds: Sequence[int],
        sampler: str | None,
        trials: int | None,
        seed: int,
        objective: Callable[[Record], tuple[float, float]],
        prefixes: bool = True,
    ) -> None:
        """Open the study at `storage`, or make it.

        Args:
            space: trial -> recipe.
            storage: a database URL as Optuna takes it.
            identity: the settings that decide the numbers; a study made with others is refused.
            seeds: a recipe is told when it has run with each of these.
            sampler: None: exhaustive for a finite space, else tpe.
            trials: recipes at most; None: all of a finite space, else DEFAULT_TRIALS.
            seed: of the sampler.
            objective: from one record to the two values to minimise.
            prefixes: whether the beginning of a finished recipe is a finished recipe.

        Raises:
            ValueError: the storage holds another study, or the sampler doesn't fit the space.
        """
        points = enumerate_space(space)
        if sampler == "exhaustive" and points is None:
            raise ValueError(
                "sampler=exhaustive needs a finite space, but this one has a continuous parameter: use tpe"
            )
        self.sampler = sampler or ("tpe" if points is None else "exhaustive")
        self.points = points
        self._space, self._seeds, self._objective, self._prefixes = space, tuple(seeds), objective, prefixes
        self._study = _open(storage, identity)
        earlier = self._study.get_trials(deepcopy=False)
        # A study taken up again draws on, and not from the start.
        self._study.sampler = _sampler(self.sampler, seed + len(earlier))
        self._random = random.Random(seed + len(earlier))
        self._settled: dict[str, tuple[Recipe, list[Record]]] = {}
        self._finished: set[str] = set()
        self._running: dict[int, Asked] = {}
        # The order in which recipes were finished is not that of asking. Clocks may step back, so it is counted.
        self._told = 1 + max((trial.user_attrs.get(_ORDER, -1) for trial in earlier), default=-1)
        for trial in sorted(earlier, key=_when):
            if trial.state == TrialState.COMPLETE:
                recipe = parse(trial.user_attrs["recipe"])
                self._settled[recipe.id] = recipe, trial.user_attrs["records"]
                self._finished.add(recipe.id)
            elif trial.state == TrialState.RUNNING:  # its driver died; the stages it had finished are in the store
                self._study.tell(trial.number, state=TrialState.FAIL)
                if trial.params:
                    self._study.enqueue_trial(trial.params, skip_if_exists=False)
        whole = DEFAULT_TRIALS if points is None else len(points)
        self.limit = whole if trials is None else trials if points is None else min(trials, whole)

    @property
    def settled(self) -> dict[str, tuple[Recipe, list[Record]]]:
        """Recipe id -> recipe and its records, of all that are finished or have failed in this run, in that order."""
        return self._settled

    @property
    def attributes(self) -> dict[str, Any]:
        """Notes on the whole study, kept with it."""
        return self._study.user_attrs

    def note(self, key: str, value: Any) -> None:
        """Keep a note on the whole study."""
        self._study.set_user_attr(key, value)

    def complete(self) -> bool:
        """Whether all that was wanted is finished; failed recipes are to be tried again."""
        return len(self._finished) >= self.limit

    def room(self) -> int:
        """How many recipes may still be asked for."""
        return max(0, self.limit - len(self._taken()))

    def idle(self) -> bool:
        """Whether nothing that was asked for is still to be told."""
        return not self._running

    def ask(self) -> Asked | None:
        """The next recipe; None if there is none, or none until a running one is told."""
        if len(self._taken()) >= self.limit:
            return None
        if self.sampler == "exhaustive":
            assert self.points is not None
            return self._ask_for(next(params for key, (params, _) in self.points.items() if key not in self._taken()))
        for _ in range(_TRIES):
            trial = self._study.ask()
            recipe = self._space(trial)
            claims = self._claims(recipe, trial.params)
            room = self.limit - len(self._taken())
            if claims and len(claims) <= room:
                return self._accept(trial, recipe, [claim for _, claim in claims])
            trial.set_user_attr(
                "not run", "seen before" if not claims else f"has {len(claims)} new recipes, room for {room}"
            )
            self._study.tell(trial, state=TrialState.FAIL)
            if claims:  # the longest beginning of it that there is room for
                return self._ask_for(claims[room - 1][0])
        for _ in range(_RANDOM_TRIES):
            drawn = _Random(self._random)
            claims = self._claims(self._space(drawn), drawn.params)
            if claims:
                return self._ask_for(claims[min(len(claims), self.limit - len(self._taken())) - 1][0])
        return None

    def tell(self, asked: Asked, record: Record) -> bool:
        """Take the record of one seed; once all are in, settle the recipe. Whether that was so."""
        asked.records[record["seed"]] = record
        if len(asked.records) < len(self._seeds):
            return False
        records = [asked.records[s] for s in self._seeds]
        del self._running[asked.trial.number]
        values = self._values(records)
        if values is None:
            self._write(asked.trial.set_user_attr, asked.recipe, records)
            self._settled[asked.recipe.id] = asked.recipe, records
            self._study.tell(asked.trial, state=TrialState.FAIL)
            return True
        for claim in asked.claims[:-1]:
            self._tell_prefix(claim, asked, records)
        self._write(asked.trial.set_user_attr, asked.recipe, records)
        self._study.tell(asked.trial, values)
        self._settled[asked.recipe.id] = asked.recipe, records
        self._finished.add(asked.recipe.id)
        return True

    def _taken(self) -> set[str]:
        """Ids of recipes that are settled, or will be by one that runs."""
        return {*self.settled, *(claim.id for asked in self._running.values() for claim in asked.claims)}

    def _claims(self, recipe: Recipe, params: Mapping[str, Any]) -> list[tuple[dict[str, Any], Recipe]]:
        """The recipes that running this one would settle, with parameters, shortest first; [] if it is taken."""
        taken = self._taken()
        if recipe.id in taken:
            return []
        found: list[tuple[dict[str, Any], Recipe]] = []
        for prefix in recipe.prefixes()[:-1] if self._prefixes else ():
            place = self._place(prefix, params)
            if prefix.id not in taken and place is not None:
                found.append((place, prefix))
        return [*found, (dict(params), recipe)]

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
        while True:
            trial = self._study.ask()
            recipe = self._space(trial)
            if trial.params == params:
                return self._accept(trial, recipe, [claim for _, claim in self._claims(recipe, params)])
            self._study.tell(trial, state=TrialState.FAIL)  # queued by a driver that died; it will be asked for again

    def _accept(self, trial: optuna.Trial, recipe: Recipe, claims: Sequence[Recipe]) -> Asked:
        trial.set_user_attr("recipe", str(recipe))
        asked = Asked(trial=trial, recipe=recipe, claims=tuple(claims))
        self._running[trial.number] = asked
        return asked

    def _tell_prefix(self, prefix: Recipe, asked: Asked, records: Sequence[Record]) -> None:
        shorter: list[Record] = [{**record, "stages": record["stages"][: len(prefix.stages)]} for record in records]
        values = self._values(shorter)
        params = self._place(prefix, asked.trial.params)
        assert values is not None and params is not None, f"{prefix} was claimed by {asked.recipe}"
        fixed = FixedTrial(params)
        self._space(fixed)
        attributes: dict[str, Any] = {"begins": str(asked.recipe)}
        self._write(attributes.__setitem__, prefix, shorter)
        distributions: dict[str, BaseDistribution] = fixed.distributions
        self._study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, values=values, user_attrs=attributes)
        )
        self._settled[prefix.id] = prefix, shorter
        self._finished.add(prefix.id)

    def _write(self, put: Callable[[str, Any], Any], recipe: Recipe, records: Sequence[Record]) -> None:
        put("recipe", str(recipe))
        put("records", list(records))
        put(_ORDER, self._told)
        self._told += 1
        errors = [f"seed {record['seed']}: {record['error']}" for record in records if record["error"]]
        if errors:
            put("error", "; ".join(errors))

    def _values(self, records: Sequence[Record]) -> list[float] | None:
        """Means over seeds; None if a seed failed or a value isn't finite."""
        if any(record["status"] != "complete" for record in records):
            return None
        means = [fmean(column) for column in zip(*map(self._objective, records), strict=True)]
        return means if all(map(math.isfinite, means)) else None


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


class _Walk(_Stub):
    """Follows a path of choices, and goes on with the first of each."""

    def __init__(self, path: Sequence[int]) -> None:
        super().__init__()
        self.path, self.sizes = list(path), list[int]()

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


def _when(trial: optuna.trial.FrozenTrial) -> tuple[bool, Any]:
    """Sorts trials in the order in which they were told; those of before that was counted by the clock, and first."""
    order = trial.user_attrs.get(_ORDER)
    return (True, order) if order is not None else (False, (trial.datetime_complete or datetime.max, trial.number))


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    match name:
        case "tpe":
            return optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=seed)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed)
        case _:  # an exhaustive walk enqueues every point itself
            return optuna.samplers.RandomSampler(seed=seed)


def _open(storage: str, identity: Mapping[str, Any]) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="smskd", storage=storage, directions=["minimize", "minimize"], load_if_exists=True
    )
    if not study.user_attrs and not study.get_trials(deepcopy=False):
        study.set_user_attr("schema", SCHEMA)
        study.set_user_attr("identity", dict(identity))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(["error", "cost"])
    held = study.user_attrs
    if held.get("schema") != SCHEMA:
        raise ValueError(
            f"{storage} holds a study of schema {held.get('schema')}, but this program reads {SCHEMA}: use another out="
        )
    differing = [k for k, v in identity.items() if held["identity"].get(k) != v]
    if differing:
        changes = ", ".join(f"{k}: {held['identity'].get(k)} there, {identity[k]} here" for k in differing)
        raise ValueError(f"{storage} holds another search ({changes}): use another out=, or the same settings")
    return study
