"""From timed steps to what a search would take: arithmetic over its stages. No torch, no Ray; nothing is timed here."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median
from types import MappingProxyType
from typing import Any, NamedTuple

from search.config import Config
from smskd.recipe import Defaults, Recipe
from smskd.settings import Value

NOTHING: Mapping[str, int] = MappingProxyType({})
# An infinite space is drawn from so often, to see how much its draws share.
_DRAWS = 10
# What an estimate is taken to be off by at least, either way.
_LEAST_SPREAD = 0.2
# A process that has less of its cores shares them with others' work; the rest is files and waiting for them.
BUSY_SHARE = 0.85
# Seconds that Ray takes on two idle cores (LOG.md): to start, for a phase's workers, around each trial; and the files.
RAY_START_S, WORKERS_START_S, TRIAL_S, FILES_S = 4.0, 2.5, 0.1, 2.0
# Of a run's folder: page and study of an empty search, and what each training adds; measured on default runs.
_FOLDER_BYTES, _TRAINING_BYTES = 1_100_000, 3_000
# Training settings that say how many steps there are, and at which rate; a step takes as long whatever they are.
_OF_THE_COURSE = frozenset({"epochs", "warmup_epochs", "batch_size", "schedule", "milestones"})


class Between(NamedTuple):
    """A number with its range."""

    low: float
    mid: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float | Between]) -> Between:
        """The mean of several, from the lowest to the highest."""
        found = [one if isinstance(one, Between) else Between(one, one, one) for one in values]
        return cls(min(v.low for v in found), fmean(v.mid for v in found), max(v.high for v in found))

    @classmethod
    def total(cls, values: Iterable[Between]) -> Between:
        """The sum, as if all were high, or low, together."""
        return cls(*map(sum, zip(*values, strict=True)))


class Kind(NamedTuple):
    """What decides how long a step of a stage takes, beside networks and data.

    anchor: None: not anchored. weighted: the teacher is asked for the anchor's weights. teachers: how many are asked.
    settings: those that change what is computed. That is told by their type: a number with a fraction scales something
    (a weight, a temperature, a rate), which takes as long at any value but 0, at which it may be left out; a whole
    number counts something or picks a layer, and a name picks a way. So ranges over the former add no kinds.
    """

    methods: tuple[str, ...]
    anchor: str | None
    weighted: bool
    teachers: int
    batch_size: int
    settings: tuple[tuple[str, Value], ...] = ()


def steps_of(batch_size: int, images: int) -> int:
    """Steps of an epoch; an incomplete last batch is left out."""
    return images // min(batch_size, images)


def kind(recipe: Recipe, defaults: Defaults) -> Kind:
    """Of a recipe's last stage. defaults: the pair's, by flat key."""
    stage, anchored = recipe.stages[-1], len(recipe.stages) > 1 and recipe.anchored
    weighted = anchored and recipe.weighting != "fixed"
    values = stage.resolved(defaults)
    return Kind(
        methods=stage.distils,
        anchor=recipe.anchor if anchored else None,
        weighted=weighted,
        teachers=recipe.teachers if stage.distils or weighted else 0,
        batch_size=values["batch_size"],
        settings=tuple(
            (key, value)
            for key, value in values.items()
            if key not in _OF_THE_COURSE and (value == 0 or not isinstance(value, float))
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Of one kind of stage, in seconds.

    steps: a step's, once for each timed epoch. setup: of a stage, before its first step. around: of a stage, outside of
    its training (evaluation, the store, what is recorded). reused: of a stage that comes from the store instead.
    size: bytes on disk of its entry in the store. flops: of an epoch; flops_once: of a stage, beside them. tables: of
    the teacher, those that it fills.
    """

    steps: tuple[float, ...]
    setup: float = 0.0
    around: float = 0.0
    reused: float = 0.0
    size: int = 0
    flops: float = 0.0
    flops_once: float = 0.0
    tables: frozenset[str] = frozenset()

    def seconds(self, steps: int) -> Between:
        """Of a stage's training, of so many steps in all."""
        return Between(*(self.setup + steps * step for step in (min(self.steps), median(self.steps), max(self.steps))))


def merged(timings: Sequence[Timing]) -> Timing:
    """Several of one kind as one: all steps, the mean of the rest."""
    names = ("setup", "around", "reused")
    mean: dict[str, Any] = {name: fmean(getattr(t, name) for t in timings) for name in names}
    return dataclasses.replace(timings[0], steps=tuple(s for t in timings for s in t.steps), **mean)


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a rehearsal found of a pair.

    kinds: by kind of stage. teacher: of the teacher's own training. prepare: seconds until a process can begin with its
    first trial, imports not counted. share: of its cores, that the process had while it timed steps. test: seconds of a
    look at the test split. timed: steps of an epoch here, at most. images: in the training split. validation: in that
    split. views: how many an image has. fills: seconds that the teacher takes for one image, where a table keeps the
    answer, by table. held: how many of the seeds the store has a stage of, by the id of the recipe that ends with it.
    teachers: which the store has, by number, or that a file has.
    """

    kinds: Mapping[Kind, Timing]
    teacher: Timing
    prepare: float
    share: float
    test: float
    timed: int
    images: int
    validation: int
    views: int
    fills: Mapping[str, float]
    held: Mapping[str, int]
    teachers: frozenset[int]


def together(found: Sequence[Rehearsal]) -> Rehearsal:
    """What processes side by side found, as one; what the store has was told to the first alone."""
    names = ("prepare", "share", "test")
    mean: dict[str, Any] = {name: fmean(getattr(each, name) for each in found) for name in names}
    return dataclasses.replace(
        found[0],
        kinds={one: merged([each.kinds[one] for each in found]) for one in found[0].kinds},
        teacher=merged([each.teacher for each in found]),
        fills={name: fmean(each.fills[name] for each in found) for name in found[0].fills},
        **mean,
    )


class Part(NamedTuple):
    """A stage of a recipe. unit: the stage as the store tells it apart, but for the seed: id of the recipe it ends."""

    unit: str
    kind: Kind
    epochs: int


@dataclass(frozen=True, kw_only=True)
class Work:
    """One course of a search: all of a finite space, or one of the draws of an infinite one.

    trials: recipes that are run, in order, with each seed. finished: recipes that end up in the table, more than those
    where beginnings count too.
    """

    config: Config
    trials: Sequence[Recipe]
    finished: Sequence[Recipe]

    @property
    def unshared(self) -> int:
        """Stage runs, if every recipe trained all of its own."""
        return self.config.seeds * sum(len(recipe.stages) for recipe in self.finished)

    @cached_property
    def parts(self) -> dict[str, list[Part]]:
        """The stages of each recipe, by its id."""
        config, defaults = self.config, self.config.experiment.defaults
        return {
            recipe.id: [Part(one.id, kind(one, defaults), config.epochs(one)[-1]) for one in recipe.prefixes()]
            for recipe in (*self.trials, *self.finished)
        }


def courses(config: Config) -> list[Work]:
    """What the search may run: one course where that is certain, else several, drawn at random.

    Raises:
        ValueError: the sampler doesn't fit the space; or as search.draws.look.
    """
    import optuna

    from search.draws import look
    from search.study import Design, Goal, Study

    scope = look(config.search_space())
    if scope.points is not None:
        limit = min(config.trials or len(scope.recipes), len(scope.recipes))
        if limit == len(scope.recipes) or config.sampler in (None, "exhaustive"):
            return [Work(config=config, trials=scope.recipes[:limit], finished=scope.recipes[:limit])]
    found = []
    for draw in range(_DRAWS):
        sampler = "exhaustive" if config.sampler == "exhaustive" else "random"
        design = Design(seeds=config.search_seeds, sampler=sampler, trials=config.trials, seed=draw)
        storage = optuna.storages.InMemoryStorage()
        study = Study(scope, storage, identity={}, goal=Goal(values=lambda record: (0.0, 0.0)), design=design)
        asked = list(iter(study.ask, None))
        finished = [claim for one in asked for claim in one.claims]
        found.append(Work(config=config, trials=[one.recipe for one in asked], finished=finished))
    return found


def to_rehearse(works: Iterable[Work]) -> list[Recipe]:
    """Few recipes that have all kinds of stage of all courses."""
    recipes = {recipe.id: (recipe, work.parts[recipe.id]) for work in works for recipe in work.trials}
    seen: set[Kind] = set()
    chosen = []
    for recipe, parts in sorted(recipes.values(), key=lambda one: -len(one[1])):
        new = [number for number, part in enumerate(parts) if part.kind not in seen]
        if new:
            chosen.append(recipe.prefixes()[new[-1]])
            seen |= {part.kind for part in parts[: new[-1] + 1]}
    return chosen


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one phase of a course. recipes: how many. device: seconds on devices, training alone. jobs: seconds of each
    trial, in order. once: seconds of what each worker does before its trials, and what they wait for together.
    """

    recipes: int
    stage_runs: int
    device: Between
    jobs: Sequence[float]
    once: float
    disk: float


def teacher_seconds(config: Config, found: Rehearsal, wanted: int) -> float:
    """What the teachers take that are still to be trained, of so many."""
    made = config.experiment.teacher_training
    seconds = found.teacher.seconds(made.epochs * steps_of(made.batch_size, found.images)).mid + found.teacher.around
    return seconds * len(set(range(wanted)) - found.teachers)


def search_cost(
    work: Work, found: Rehearsal, *, slots: int, known: Collection[str] = (), held: Mapping[str, int] = NOTHING
) -> Cost:
    """Of the search's phase, without `known`, ids of finished recipes, and what the store has (as in Rehearsal)."""
    trials = [recipe for recipe in work.trials if recipe.id not in known]
    wanted = max((recipe.teachers for recipe in trials), default=0)
    missing = len(set(range(wanted)) - found.teachers)
    cost = _cost(work, trials, work.config.seeds, found, slots=slots, held=held)
    rows = len(work.finished) * work.config.seeds
    return dataclasses.replace(
        cost,
        once=cost.once + teacher_seconds(work.config, found, wanted),
        disk=cost.disk + _FOLDER_BYTES + _TRAINING_BYTES * rows + missing * found.teacher.size,
    )


def confirm_cost(work: Work, found: Rehearsal, *, slots: int) -> Cost:
    """Of the confirmation, at most: with teachers of its own, where that trains on validation images, too."""
    config, recipes = work.config, confirmable(work, found)
    if config.train_on == "train":
        return _cost(work, recipes, config.confirm, found, slots=slots, test=found.test)
    of_file = frozenset({0} if config.experiment.teacher is not None else ())
    found = dataclasses.replace(found, images=found.images + found.validation, teachers=of_file)
    wanted = max((recipe.teachers for recipe in recipes), default=0)
    cost = _cost(work, recipes, config.confirm, found, slots=slots, test=found.test)
    return dataclasses.replace(
        cost,
        once=cost.once + teacher_seconds(config, found, wanted),
        disk=cost.disk + len(set(range(wanted)) - of_file) * found.teacher.size,
    )


def confirmable(work: Work, found: Rehearsal) -> list[Recipe]:
    """The largest front there can be, and the baseline, which is confirmed with it; shortest first.

    Of recipes that cost the same, one at most is on a front, but for ties in accuracy; the longest counts here. Seconds
    never tie; parameters and latency are the student's and always do.
    """
    shortest_first = sorted(
        work.finished, key=lambda one: (len(one.stages), sum(part.epochs for part in work.parts[one.id]))
    )
    if work.config.comparison or "seconds" in work.config.cost:
        return shortest_first
    by_cost: dict[str, str] = {}
    for recipe in shortest_first:
        spent = [(found.kinds[part.kind], part.epochs) for part in work.parts[recipe.id]]
        flops = sum(timing.flops * epochs + timing.flops_once for timing, epochs in spent)
        by_cost[f"{flops:.9g}" if "flops" in work.config.cost else ""] = recipe.id
    single = [recipe for recipe in shortest_first if len(recipe.stages) == 1]
    of_kd = sorted((recipe for recipe in single if recipe.path == "kd"), key=lambda recipe: len(str(recipe)))
    members = {*by_cost.values(), *(recipe.id for recipe in (of_kd or single)[:1])}
    return [recipe for recipe in shortest_first if recipe.id in members]


def _cost(
    work: Work,
    trials: Sequence[Recipe],
    seeds: int,
    found: Rehearsal,
    *,
    slots: int,
    held: Mapping[str, int] = NOTHING,
    test: float = 0.0,
) -> Cost:
    """held: for how many seeds a stage is there. test: seconds after each trial."""
    there = {(unit, seed) for unit, count in held.items() for seed in range(count)}
    done = set(there)
    spent: list[Between] = []
    jobs, disk, asked = [], 0.0, dict.fromkeys(found.fills, 0)
    for recipe, seed in itertools.product(trials, range(seeds)):
        job = TRIAL_S + test
        for part in work.parts[recipe.id]:
            timing = found.kinds[part.kind]
            if (part.unit, seed) in done:
                job += timing.reused
                continue
            done.add((part.unit, seed))
            spent.append(timing.seconds(part.epochs * steps_of(part.kind.batch_size, found.images)))
            disk += timing.size
            job += spent[-1].mid + timing.around
            for table in timing.tables & asked.keys():
                asked[table] += part.epochs
        jobs.append(job)
    fills = sum(
        slots * found.images * found.views * (1 - (1 - 1 / found.views) ** (asked[table] / slots)) * seconds
        for table, seconds in found.fills.items()
    )
    low, mid, high = Between.total([Between(0, 0, 0), *spent])
    # where others keep the cores busy now, the least is what the same steps take without them
    low = min(low, (1 - _LEAST_SPREAD) * mid * min(1.0, found.share / BUSY_SHARE))
    high = max(high, (1 + _LEAST_SPREAD) * mid)
    return Cost(
        recipes=len(trials),
        stage_runs=len(done) - len(there),
        device=Between(low + fills, mid + fills, high + fills),
        jobs=jobs,
        once=found.prepare + fills / slots,
        disk=disk,
    )


def makespan(jobs: Iterable[float], slots: int) -> float:
    """Seconds that jobs take, one after another, each where a slot is free first."""
    free = [0.0] * slots
    for job in jobs:
        heapq.heapreplace(free, free[0] + job)
    return max(free)


def wall(costs: Sequence[Cost], slots: int) -> float:
    """Seconds of one phase of all pairs, whose trials take turns; 0 if there is nothing to do."""
    rounds = itertools.zip_longest(*(cost.jobs for cost in costs))
    jobs = [job for one in rounds for job in one if job is not None]
    once = sum(cost.once for cost in costs) / min(slots, len(costs))
    return WORKERS_START_S + once + makespan(jobs, slots) if jobs else 0.0


def detectable(sd: float, recipes: int, seeds: int) -> float | None:
    """The smallest difference of two recipes' means that is seen with 80 % power; unit of sd. None with one seed.

    The standard deviation is pooled over all recipes.
    """
    from reports.statistics import Pooled, detectable_difference

    degrees = max(2, recipes) * (seeds - 1)
    return detectable_difference(Pooled(math.sqrt(2) * sd, degrees), seeds) if degrees else None
