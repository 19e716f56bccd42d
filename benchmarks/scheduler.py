"""The real Searcher on 8, 64 and 1,000 devices that train nothing: how busy they are, and how long a search takes.

A device takes a drawn time for each stage that no other has trained, and waits where another is at it, as trials wait
for each other's locks. The bound is the longer of all work shared out evenly and the longest chain of stages.
    python -m benchmarks.scheduler
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import made_up
from search import config, draws
from search.jobs import StudySource
from search.nodes import Nodes
from search.searcher import QueueSearcher, Trials
from search.study import Design, Goal, Study
from smskd.notation import parse
from smskd.result import Result

# Of one stage beside a plain one; the spread is that of a busy cluster.
SECONDS: Mapping[str, float] = {"ce": 1.0, "kd": 1.1, "rkd": 1.3, "fitnets": 1.3, "at": 1.2, "sp": 1.2}
ANCHOR_SECONDS, SPREAD = 0.3, 0.2
SEEDS = 3
# devices, methods of the space, and its longest recipe
SEARCHES: Sequence[tuple[int, Sequence[str], int]] = (
    (8, ("kd", "fitnets", "rkd"), 3),
    (8, ("kd", "fitnets", "rkd", "at", "sp"), 4),
    (64, ("kd", "fitnets", "rkd", "at"), 4),
    (1000, ("kd", "fitnets", "rkd", "at", "sp"), 4),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one simulated search. work: of all stages, each once. waited: by trials that held a device and did nothing.

    bound: no schedule is shorter. idle_at_end: device time after the last trial has started in which nothing runs, as
    a share of all. ask_ms: median of what the Searcher took to suggest a trial, in milliseconds.
    """

    devices: int
    recipes: int
    trials: int
    makespan: float
    bound: float
    work: float
    waited: float
    idle_at_end: float
    ask_ms: float

    @property
    def utilisation(self) -> float:
        """Share of the devices' time, up to the end of the search, in which they train."""
        return self.work / (self.makespan * self.devices)


@dataclass
class _Device:
    trial: str
    recipe: str
    seed: int
    stage: int = 0
    trained: list[float] = field(default_factory=list)


class Cluster:
    """Devices that take trials from a Searcher, and a clock that jumps from event to event."""

    def __init__(self, search: QueueSearcher, devices: int, seconds: Mapping[str, float], seed: int) -> None:
        self._search, self._devices, self._seconds = search, devices, seconds
        self._random = random.Random(seed)
        self._durations: dict[tuple[str, int], float] = {}
        self._done: set[tuple[str, int]] = set()
        self._training: set[tuple[str, int]] = set()
        self._waiting: dict[tuple[str, int], list[tuple[_Device, float]]] = {}
        self._events: list[tuple[float, int, _Device, tuple[str, int]]] = []
        self._order = itertools.count()
        self.now = self.waited = self.idle_at_end = 0.0
        self.asks: list[float] = []
        self.trials = 0

    @property
    def work(self) -> float:
        """Seconds of all stages that were trained."""
        return sum(self._durations.values())

    def run(self) -> None:
        """Until the Searcher has no more."""
        free, ended = self._devices, False
        while True:
            while free and not ended:
                started = time.perf_counter()
                told = self._search.suggest(f"t{self.trials}")
                self.asks.append(1000 * (time.perf_counter() - started))
                if told is None:
                    break
                if not isinstance(told, dict):
                    ended = True
                    break
                free -= 1
                self.trials += 1
                self.idle_at_end = 0.0
                self._go_on(_Device(f"t{self.trials - 1}", told["recipe"], told["seed"]))
                free += self._finished
            if not self._events:
                if not ended:
                    raise RuntimeError(
                        f"{self._devices} devices are idle, nothing runs, and the Searcher gives nothing"
                    )
                return
            before = self.now
            self.now, _, device, key = heapq.heappop(self._events)
            self.idle_at_end += free * (self.now - before)
            self._done.add(key)
            self._training.discard(key)
            for other, since in [(device, self.now), *self._waiting.pop(key, [])]:
                self.waited += self.now - since
                self._go_on(other)
                free += self._finished

    def _go_on(self, device: _Device) -> None:
        """Take the next stage: trained already, in training elsewhere, or to be trained here."""
        self._finished = 0
        recipe = parse(device.recipe)
        prefixes = recipe.prefixes()
        while device.stage < len(prefixes):
            key = (prefixes[device.stage].id, device.seed)
            if key in self._training:
                self._waiting.setdefault(key, []).append((device, self.now))
                return
            if key not in self._done:
                self._training.add(key)
                spread = self._random.lognormvariate(0, SPREAD)
                whole = max(self._seconds[name] for name in recipe.stages[device.stage].methods)
                self._durations[key] = spread * (whole + (ANCHOR_SECONDS if device.stage else 0))
                heapq.heappush(self._events, (self.now + self._durations[key], next(self._order), device, key))
                device.stage += 1
                return
            device.stage += 1
            self._tell(device)
        self._finished = 1
        self._search.on_trial_complete(device.trial, {"outcome": json.dumps(self._outcome(device, len(prefixes)))})

    def _tell(self, device: _Device) -> None:
        self._search.on_trial_result(device.trial, {"stage": device.stage + 1})

    def _outcome(self, device: _Device, stages: int) -> dict[str, Any]:
        record = made_up.result(device.recipe, device.seed, [made_up.stage()] * stages)
        return {"record": record.to_dict(), "trained": 0, "teacher": "t", "bench": None}


def simulate(devices: int, methods: Sequence[str], longest: int, *, seeds: int = SEEDS, seed: int = 0) -> Outcome:
    """One search of all orders of these methods, up to so many stages."""
    words = [f"methods=[{','.join(methods)}]", f"max_stages={longest}"]
    scope = draws.look(config.parse(words).search_space())
    with tempfile.TemporaryDirectory() as scratch:
        study = Study(
            scope,
            f"sqlite:///{Path(scratch) / 'study.db'}",
            identity={},
            goal=Goal(values=_values),
            design=Design(seeds=range(seeds), seed=seed),
        )
        assert study.points is not None, "a finite space"
        recipes = [recipe for _, recipe in study.points.values()]
        source = StudySource(study, range(seeds), "tiny")
        trials = Trials(settings={}, epochs=lambda recipe: [1], digest=lambda: "t", meet=lambda told: None)
        cluster = Cluster(
            QueueSearcher(source, {"tiny": trials}, lambda job, record, trained: None, Nodes(print)),
            devices,
            SECONDS,
            seed,
        )
        cluster.run()
        durations = cluster._durations
        chains = [
            sum(durations[prefix.id, number] for prefix in recipe.prefixes())
            for recipe in recipes
            for number in range(seeds)
        ]
    return Outcome(
        devices=devices,
        recipes=len(recipes),
        trials=cluster.trials,
        makespan=cluster.now,
        bound=max(cluster.work / devices, *chains),
        work=cluster.work,
        waited=cluster.waited,
        idle_at_end=cluster.idle_at_end / (cluster.now * devices),
        ask_ms=statistics.median(cluster.asks),
    )


def _values(record: Result) -> tuple[float, float]:
    return 0.1, float(len(record.stages))


def main() -> None:
    """Simulate, and print a table in Markdown."""
    lines = [
        "| devices | recipes x seeds | utilisation | makespan over the bound | held and waiting | idle at the end | "
        "a suggestion |",
        "|---|---|---|---|---|---|---|",
    ]
    for devices, methods, longest in SEARCHES:
        out = simulate(devices, methods, longest)
        held = 100 * out.waited / (out.makespan * out.devices)
        lines.append(
            f"| {out.devices:,} | {out.recipes} x {SEEDS} | {100 * out.utilisation:.0f} % | "
            f"{out.makespan / out.bound:.2f} | {held:.1f} % | {100 * out.idle_at_end:.1f} % | {out.ask_ms:.1f} ms |"
        )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
