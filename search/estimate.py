"""From timed steps to what a search would take: arithmetic over its stages. No torch, no Ray; nothing is timed here."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from search.config import Config
from smskd.recipe import Recipe

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


class Between(NamedTuple):
    """A number with its range."""

    low: float
    mid: float
    high: float


class Kind(NamedTuple):
    """What decides how long a step of a stage takes, beside networks and data.

    anchor: None: not anchored. weighted: the teacher is asked for the anchor's weights. teachers: how many are asked.
    """

    methods: tuple[str, ...]
    anchor: str | None
    weighted: bool
    teachers: int


def kind(recipe: Recipe, number: int) -> Kind:
    """Of a recipe's stage by number, from 1."""
    anchored = number > 1 and recipe.anchored
    weighted = anchored and recipe.weighting != "fixed"
    methods = recipe.stages[number - 1].distils
    return Kind(methods, recipe.anchor if anchored else None, weighted, recipe.teachers if methods or weighted else 0)


# A stage as the store tells it apart, but for the seed: id of the recipe it ends, and the epochs of that one's stages.
Unit = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Of one kind of stage, in seconds.

    steps: a step's, once for each timed epoch. setup: of a stage, before its first step. around: of a stage, outside of
    its training (evaluation, the store, what is recorded). reused: of a stage that comes from the store instead.
    size: bytes on disk of its entry in the store. flops: of an epoch. tables: which of the teacher's it fills.
    """

    steps: tuple[float, ...]
    setup: float
    around: float
    reused: float
    size: int
    flops: float
    tables: frozenset[str]

    def seconds(self, epochs: int, steps: int) -> Between:
        """Of a stage's training, of so many epochs of so many steps."""
        return Between(
            *(self.setup + epochs * steps * step for step in (min(self.steps), median(self.steps), max(self.steps)))
        )


def merged(timings: Sequence[Timing]) -> Timing:
    """Several of one kind as one: all steps, the mean of the rest."""
    mean = {name: fmean(getattr(t, name) for t in timings) for name in ("setup", "around", "reused", "flops")}
    first = timings[0]
    return Timing(steps=tuple(s for t in timings for s in t.steps), size=first.size, tables=first.tables, **mean)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a rehearsal is to find out.

    settings: as smskd.pipeline.prepare takes them, with the device. recipes: whose stages are to be timed. looked_up:
    recipes, with the epochs of their stages, that the store is asked for, with each of `seeds`. scratch: a folder of
    the disk that the store is on.
    """

    settings: Mapping[str, Any]
    recipes: Sequence[Recipe]
    looked_up: Sequence[tuple[Recipe, tuple[int, ...]]]
    seeds: Sequence[int]
    scratch: Path


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a rehearsal found of a pair.

    kinds: by kind of stage. teacher: of the teacher's own training. prepare: seconds until a process can begin with its
    first trial, imports not counted. share: of its cores, that the process had while it timed steps. test: seconds of a
    look at the test split. steps: of an epoch; timed: of an epoch here. images: in the training split. views: how many
    an image has. fills: seconds that the teacher takes for one image, where a table keeps the answer, by table. held:
    how many of the seeds the store has a stage of. teachers: which the store has, by place, or that a file has.
    """

    kinds: Mapping[Kind, Timing]
    teacher: Timing
    prepare: float
    share: float
    test: float
    steps: int
    timed: int
    images: int
    views: int
    fills: Mapping[str, float]
    held: Mapping[Unit, int]
    teachers: frozenset[int]


def together(found: Sequence[Rehearsal]) -> Rehearsal:
    """What processes side by side found, as one; what the store has was told to the first alone."""
    first = found[0]
    return Rehearsal(
        kinds={one: merged([each.kinds[one] for each in found]) for one in first.kinds},
        teacher=merged([each.teacher for each in found]),
        prepare=fmean(each.prepare for each in found),
        share=fmean(each.share for each in found),
        test=fmean(each.test for each in found),
        steps=first.steps,
        timed=first.timed,
        images=first.images,
        views=first.views,
        fills={name: fmean(each.fills.get(name, 0.0) for each in found) for name in first.fills},
        held=first.held,
        teachers=first.teachers,
    )


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

    @property
    def units(self) -> dict[Unit, Kind]:
        """Stages of one seed, each once, in the order of training."""
        return {unit: one for recipe in self.trials for unit, one in self.stages(recipe)}

    def stages(self, recipe: Recipe) -> list[tuple[Unit, Kind]]:
        """Of one recipe."""
        epochs = tuple(self.config.stage_epochs(len(recipe.stages)))
        return [((prefix.id, epochs[:k]), kind(recipe, k)) for k, prefix in enumerate(recipe.prefixes(), 1)]


def courses(config: Config) -> list[Work]:
    """What the search may run: one course where that is certain, else several, drawn at random.

    Raises:
        ValueError: the sampler doesn't fit the space, or the space has too many points, or too few epochs.
    """
    import optuna

    import spaces
    from search.study import Study, enumerate_space

    module, menu = spaces.load(config.space), config.menu

    def space(trial: spaces.Trial) -> Recipe:
        found: Recipe = module.suggest(trial, menu)
        return found

    points = enumerate_space(space)
    if points is not None:
        every = [recipe for _, recipe in points.values()]
        config.stage_epochs(max(len(recipe.stages) for recipe in every))
        limit = len(every) if config.trials is None else min(len(every), config.trials)
        if limit == len(every) or config.sampler in (None, "exhaustive"):
            return [Work(config=config, trials=every[:limit], finished=every[:limit])]
    found = []
    for draw in range(_DRAWS):
        study = Study(
            space=space,
            storage=optuna.storages.InMemoryStorage(),
            identity={},
            seeds=config.search_seeds,
            sampler="exhaustive" if config.sampler == "exhaustive" else "random",
            trials=config.trials,
            seed=draw,
            objective=lambda record: (0.0, 0.0),
            prefixes=config.epochs_total is None,
        )
        asked = list(iter(study.ask, None))
        finished = [claim for one in asked for claim in one.claims]
        found.append(Work(config=config, trials=[one.recipe for one in asked], finished=finished))
    return found


def to_rehearse(works: Iterable[Work]) -> list[Recipe]:
    """Few recipes that have all kinds of stage of all courses."""
    recipes = {recipe.id: recipe for work in works for recipe in work.trials}
    unseen = {one for work in works for one in work.units.values()}
    chosen = []
    for recipe in sorted(recipes.values(), key=lambda recipe: -len(recipe.stages)):
        new = [k for k in range(1, len(recipe.stages) + 1) if kind(recipe, k) in unseen]
        if new:
            chosen.append(recipe.prefixes()[new[-1] - 1])
            unseen -= {kind(recipe, k) for k in new}
    return chosen


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one course, or of one phase of it. device: seconds on devices, training alone. jobs: seconds of each trial,
    in order. once: seconds of what each worker does before its trials, and what they wait for together.
    """

    stage_runs: int
    device: Between
    jobs: Sequence[float]
    once: float
    disk: float


def search_cost(work: Work, found: Rehearsal, *, slots: int, known: frozenset[str], left: bool) -> Cost:
    """Of the search's phase. left: without what the store has, and without `known`, ids of finished recipes."""
    trials = [recipe for recipe in work.trials if not (left and recipe.id in known)]
    seeds = range(work.config.seeds)
    there = {(unit, seed) for unit, count in found.held.items() for seed in range(count)} if left else set()
    more = max((recipe.teachers for recipe in trials), default=0)
    missing = [place for place in range(more) if place not in found.teachers]
    epochs = work.config.teacher_epochs or work.config.networks.teacher_epochs
    teachers = len(missing) * (found.teacher.seconds(epochs, found.steps).mid + found.teacher.around)
    cost = _cost(work, trials, seeds, found, slots=slots, there=there, test=False)
    disk = _FOLDER_BYTES + _TRAINING_BYTES * len(work.finished) * work.config.seeds + len(missing) * found.teacher.size
    return Cost(
        stage_runs=cost.stage_runs, device=cost.device, jobs=cost.jobs, once=cost.once + teachers, disk=cost.disk + disk
    )


def confirm_cost(work: Work, found: Rehearsal, *, slots: int) -> tuple[int, Cost]:
    """How many recipes are confirmed at most, and what that costs."""
    members = confirmable(work, found)
    return len(members), _cost(work, members, range(work.config.confirm), found, slots=slots, there=set(), test=True)


def confirmable(work: Work, found: Rehearsal) -> list[Recipe]:
    """The largest front there can be, and the baseline, which is confirmed with it.

    Of recipes that cost the same, one at most is on a front, but for ties in accuracy; the longest counts here. Seconds
    never tie; parameters and latency are the student's and always do.
    """
    if work.config.comparison or "seconds" in work.config.costs:
        return list(work.finished)
    by_cost: dict[str, Recipe] = {}
    for recipe in sorted(work.finished, key=lambda recipe: len(recipe.stages)):
        flops = sum(found.kinds[one].flops * spent[-1] for (_, spent), one in work.stages(recipe))
        by_cost[f"{flops:.9g}" if "flops" in work.config.costs else ""] = recipe
    single = [recipe for recipe in work.finished if len(recipe.stages) == 1]
    baseline = next((recipe for recipe in single if recipe.notation == "kd"), single[0] if single else None)
    members = {recipe.id: recipe for recipe in [*by_cost.values(), *([baseline] if baseline else [])]}
    return sorted(members.values(), key=lambda recipe: len(recipe.stages))


def _cost(
    work: Work,
    trials: Sequence[Recipe],
    seeds: Iterable[int],
    found: Rehearsal,
    *,
    slots: int,
    there: set[tuple[Unit, int]],
    test: bool,
) -> Cost:
    done = set(there)
    low = mid = high = disk = 0.0
    jobs, asked = [], dict.fromkeys(found.fills, 0)
    for recipe, seed in itertools.product(trials, seeds):
        job = TRIAL_S + found.test * test
        for unit, one in work.stages(recipe):
            timing, spent = found.kinds[one], unit[1][-1]
            if (unit, seed) in done:
                job += timing.reused
                continue
            done.add((unit, seed))
            seconds = timing.seconds(spent, found.steps)
            low, mid, high = low + seconds.low, mid + seconds.mid, high + seconds.high
            disk += timing.size
            job += seconds.mid + timing.around
            for table in timing.tables:
                asked[table] += spent
        jobs.append(job)
    fills = sum(
        slots * found.images * found.views * (1 - (1 - 1 / found.views) ** (asked[table] / slots)) * seconds
        for table, seconds in found.fills.items()
    )
    # where others keep the cores busy now, the least is what the same steps take without them
    low, high = (
        min(low, (1 - _LEAST_SPREAD) * mid * min(1.0, found.share / BUSY_SHARE)),
        max(high, (1 + _LEAST_SPREAD) * mid),
    )
    return Cost(
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


def range_of(values: Iterable[float]) -> Between:
    """The mean, from the lowest to the highest."""
    found = list(values)
    return Between(min(found), fmean(found), max(found))


def spread(values: Iterable[Between]) -> Between:
    """Of several courses: the mean, from the lowest to the highest."""
    found = list(values)
    return Between(min(v.low for v in found), fmean(v.mid for v in found), max(v.high for v in found))


def total(values: Iterable[Between]) -> Between:
    """Of several pairs, as if all were high, or low, together."""
    low, mid, high = (sum(ends) for ends in zip(*values, strict=True))
    return Between(low, mid, high)


def detectable(sd: float, recipes: int, seeds: int) -> float | None:
    """The smallest difference of two recipes' means that is seen with 80 % power; unit of sd. None with one seed.

    The standard deviation is pooled over all recipes.
    """
    from reports.statistics import Pooled, detectable_difference

    degrees = max(2, recipes) * (seeds - 1)
    return detectable_difference(Pooled(math.sqrt(2) * sd, degrees), seeds) if degrees else None
