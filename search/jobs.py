"""What is to be trained: jobs, each a recipe with a seed, and where they come from. Knows nothing of Ray."""

from __future__ import annotations

import functools
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from search.study import Asked, Study
from smskd.notation import parse
from smskd.result import Result

# Recipes that may wait for stages in training before the study is asked for no more. A sampler that is asked early
# knows less.
LOOK_AHEAD, LOOK_AHEAD_OF_SAMPLERS = 64, 4


@dataclass(frozen=True, kw_only=True)
class Job:
    """One trial: a pair, a recipe and a seed. test: open the test split when it is trained."""

    pair: str
    recipe: str
    seed: int
    test: bool


class Source(Protocol):
    """Where the Searcher gets its jobs from, and where results go."""

    def next(self) -> Job | None:
        """A job to start now, or None."""

    def exhausted(self) -> bool:
        """Whether no job will come any more, whatever the running ones bring."""

    def take(self, job: Job, record: Result) -> None:
        """The record of a job that ended."""

    def advance(self, job: Job, stages: int) -> None:
        """A running job has finished so many of its stages."""

    def remaining(self) -> int:
        """How many jobs are still to end, as far as one can tell."""

    def put_back(self, job: Job) -> None:
        """Take a running job back into the queue, before all others: what ran it is gone."""


class _Stages:
    """Which stages are being trained: a job that wants one of them would hold its device and wait."""

    def __init__(self) -> None:
        self._left: dict[Job, list[str]] = {}
        self._busy = Counter[tuple[str, int]]()

    def start(self, job: Job) -> None:
        self._left[job] = _stage_ids(job.recipe)
        self._busy.update((stage, job.seed) for stage in self._left[job])

    def advance(self, job: Job, stages: int) -> None:
        if job not in self._left:
            return
        ids = _stage_ids(job.recipe)
        done = len(ids) - len(self._left[job])
        for stage in self._left[job][: max(0, stages - done)]:
            self._busy -= Counter({(stage, job.seed): 1})
        self._left[job] = ids[max(stages, done) :]

    def end(self, job: Job) -> None:
        self._busy -= Counter((stage, job.seed) for stage in self._left.pop(job))

    def wanted_by(self, job: Job) -> bool:
        """Whether a running job is at a stage of this one, or will be."""
        return any((stage, job.seed) in self._busy for stage in _stage_ids(job.recipe))


@functools.lru_cache(maxsize=10_000)
def _stage_ids(recipe: str) -> list[str]:
    """Ids of a recipe's beginnings: recipes that share one share, with the same seed, the stages up to there."""
    return [prefix.id for prefix in parse(recipe).prefixes()]


class StudySource:
    """The search of one pair: recipes as its study asks for them, each with all its seeds.

    Of the jobs that wait, the first starts that needs no stage which is in training; if there is none, the study is
    asked for more, as long as not too many wait.
    """

    def __init__(self, study: Study, seeds: Sequence[int], pair: str) -> None:
        self._study, self._seeds, self._pair = study, seeds, pair
        self._waiting: list[tuple[Asked, Job]] = []
        # several where recipes that may be given up begin alike: one trial then serves them all
        self._running: dict[Job, list[Asked]] = {}
        self._stages = _Stages()
        self._most = len(seeds) * (LOOK_AHEAD if study.sampler == "exhaustive" else LOOK_AHEAD_OF_SAMPLERS)
        self._dry = False

    def next(self) -> Job | None:
        at = 0
        while True:
            while at < len(self._waiting):
                asked, job = self._waiting[at]
                if job in self._running:
                    self._running[job].append(asked)
                elif not self._stages.wanted_by(job):
                    self._running[job] = [asked]
                    self._stages.start(job)
                else:
                    at += 1
                    continue
                del self._waiting[at]
                if self._running[job] == [asked]:
                    return job
            if at >= self._most:
                return None
            more = self._study.ask()
            self._dry = more is None
            if more is None:
                return None
            self._waiting += self._jobs(more)

    def _jobs(self, asked: Asked) -> list[tuple[Asked, Job]]:
        now = str(asked.now)
        return [(asked, Job(pair=self._pair, recipe=now, seed=seed, test=False)) for seed in self._seeds]

    def exhausted(self) -> bool:
        return self._dry and not self._waiting and self._study.idle()

    def take(self, job: Job, record: Result) -> None:
        self._stages.end(job)
        for asked in self._running.pop(job):
            if not self._study.tell(asked, record) and not asked.records:  # its next stage, before other recipes
                self._waiting[:0] = self._jobs(asked)

    def advance(self, job: Job, stages: int) -> None:
        self._stages.advance(job, stages)

    def remaining(self) -> int:
        later = self._study.stages_to_come() * len(self._seeds)
        return len(self._waiting) + len(self._running) + later + self._study.room() * len(self._seeds)

    def put_back(self, job: Job) -> None:
        self._stages.end(job)
        self._waiting[:0] = [(asked, job) for asked in self._running.pop(job)]


class ListSource:
    """A fixed list of jobs: the confirmation of one pair. The first starts that needs no stage which is in training."""

    def __init__(self, jobs: Sequence[Job], keep: Callable[[Job, Result], None]) -> None:
        self._waiting, self._keep = list(jobs), keep
        self._running: set[Job] = set()
        self._stages = _Stages()

    def next(self) -> Job | None:
        for at, job in enumerate(self._waiting):
            if not self._stages.wanted_by(job):
                del self._waiting[at]
                self._running.add(job)
                self._stages.start(job)
                return job
        return None

    def exhausted(self) -> bool:
        return not self._waiting and not self._running

    def take(self, job: Job, record: Result) -> None:
        self._running.remove(job)
        self._stages.end(job)
        self._keep(job, record)

    def advance(self, job: Job, stages: int) -> None:
        self._stages.advance(job, stages)

    def remaining(self) -> int:
        return len(self._waiting) + len(self._running)

    def put_back(self, job: Job) -> None:
        self._stages.end(job)
        self._running.remove(job)
        self._waiting.insert(0, job)


class RoundRobin:
    """The jobs of several pairs, one of each in turn: their teachers are trained side by side, and a device that one
    pair has nothing for takes a job of another.
    """

    def __init__(self, sources: Mapping[str, Source]) -> None:
        """sources: by pair, which is what its jobs name."""
        self._sources = dict(sources)
        self._turns = deque(self._sources)

    def next(self) -> Job | None:
        for _ in range(len(self._turns)):
            source = self._sources[self._turns[0]]
            self._turns.rotate(-1)
            job = source.next()
            if job is not None:
                return job
        return None

    def exhausted(self) -> bool:
        return all(source.exhausted() for source in self._sources.values())

    def take(self, job: Job, record: Result) -> None:
        self._sources[job.pair].take(job, record)

    def advance(self, job: Job, stages: int) -> None:
        self._sources[job.pair].advance(job, stages)

    def remaining(self) -> int:
        return sum(source.remaining() for source in self._sources.values())

    def put_back(self, job: Job) -> None:
        self._sources[job.pair].put_back(job)
