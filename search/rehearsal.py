"""What training takes on this machine: a few timed steps of each kind of stage, by the code that a search runs.

Whole recipes are distilled, on data that stop each epoch after a few batches, into a store that is thrown away. What a
process does here is what a trial does, so it is run in as many processes as there would be trials. Imports torch: the
command line asks for it in processes of its own.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search.estimate import Kind, Rehearsal, Task, Timing, Unit, kind, merged
from smskd import models, pairs, pipeline, stage, teacher
from smskd.data import Data, Split
from smskd.forgetting import Validation
from smskd.numerics import Numerics, choose
from smskd.pairs import Pair
from smskd.recipe import Recipe, parse
from smskd.store import Entry, Store, folder, is_url, open_store
from smskd.teacher import Teacher

# Epochs of a rehearsed stage: the first fills tables and pays what is paid once, the others are timed.
_EPOCHS = 3
_MOST_STEPS, _FEWEST_STEPS = 20, 2
# What the timed and untimed steps of all kinds of stage may take together, if the fewest steps do.
_BUDGET_S = 5.0
# Evaluation is timed on so many images, and scaled to all.
_EVALUATED = 512
_READS = {"ends": frozenset({"logits", "embedding"}), "hint": frozenset({"hint"})}


@dataclass(frozen=True, kw_only=True)
class _Short(Data):
    """Data whose epochs end after so many batches; all else is as it is."""

    batches_an_epoch: int

    def batches(self, order: Tensor, views: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        return itertools.islice(super().batches(order, views, size), self.batches_an_epoch)


def rehearse(task: Task) -> Rehearsal:
    """Time all kinds of stage that the recipes have.

    Raises:
        ValueError: data or teacher are missing, or don't fit the pair; as smskd.pipeline.prepare.
    """
    started = time.monotonic()
    settings = task.settings
    pair = pairs.choose(settings["pair"], settings["teacher_model"], settings["student_model"])
    place = torch.device(settings["device"])
    data = pipeline.load_data(
        pair, **{key: settings[key] for key in ("data", "data_dir", "train_size", "image_size")}
    ).to(place)
    prepared = time.monotonic() - started
    if place.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    numerics = choose(settings["precision"], settings["compile"], cuda=place.type == "cuda")
    epochs = pair.teacher_epochs if settings["teacher_epochs"] is None else settings["teacher_epochs"]
    network = models.build(pair.teacher.name, num_classes=data.classes, in_channels=data.channels)
    if settings["teacher"] is not None:
        network.load_state_dict(teacher.read_weights(Path(settings["teacher"]), network))
    network.to(place)
    teachers, held = frozenset[int](), dict[Unit, int]()
    if is_url(settings["store"]) or (folder(settings["store"]) / "entries").is_dir():  # a Store makes its folders
        store = open_store(settings["store"], settings["store_key"])
        digests = _teachers(task, store, data, pair, network, epochs, numerics)
        teachers, held = frozenset(digests), _held(task, store, data, pair, digests, numerics)
    elif settings["teacher"] is not None:
        teachers = frozenset({0})
    return _timed(task, pair, data, network, numerics, prepare=prepared, held=held, teachers=teachers)


def _teachers(
    task: Task, store: Store, data: Data, pair: Pair, network: torch.nn.Module, epochs: int, numerics: Numerics
) -> dict[int, str]:
    """Digests of the teachers that the store has, by place, or that a file has."""
    found: dict[int, str] = {}
    for place in range(max((recipe.teachers for recipe, _ in task.looked_up), default=1)):
        if place == 0 and task.settings["teacher"] is not None:
            digest: str | None = pipeline.weights_digest(network)
        else:
            digest = pipeline.held_teacher(store, data, pair, epochs, numerics, place=place)
        if digest is not None:
            found[place] = digest
    return found


def _held(
    task: Task, store: Store, data: Data, pair: Pair, teachers: dict[int, str], numerics: Numerics
) -> dict[Unit, int]:
    """As in Rehearsal."""
    found: set[tuple[Unit, int]] = set()
    for (recipe, per_stage), seed in itertools.product(task.looked_up, task.seeds):
        count = pipeline.held_stages(
            recipe, store, data, pair, teachers, seed=seed, per_stage=per_stage, numerics=numerics
        )
        found.update(((prefix.id, per_stage[:k]), seed) for k, prefix in enumerate(recipe.prefixes()[:count], 1))
    return dict(collections.Counter(unit for unit, _ in found))


def _timed(
    task: Task, pair: Pair, data: Data, network: torch.nn.Module, numerics: Numerics, *, prepare: float, **known: Any
) -> Rehearsal:
    batch = min(pair.student_schedule.batch_size, len(data.train))
    steps = len(data.train) // batch
    with tempfile.TemporaryDirectory(prefix=".smskd-plan-", dir=task.scratch) as scratch:
        rehearsed = _Rehearsed(Path(scratch), pair, data, network, numerics)
        prepare += rehearsed.evaluate_teacher()
        # the first, in the fewest steps, isn't timed for its own sake: it tells how many the others may have
        wanted = min(_FEWEST_STEPS, steps)
        probe = rehearsed.distil(task.recipes[0], wanted, Path(scratch) / "probe")
        step_s = max(timing.steps[-1] for timing in probe.values())
        kinds = sum(len(recipe.stages) for recipe in task.recipes)
        affordable = int(_BUDGET_S / (step_s * 2 * _EPOCHS * kinds))
        wanted = min(steps, max(wanted, min(_MOST_STEPS, affordable)))
        found: dict[Kind, list[Timing]] = {}
        wall, computing = time.monotonic(), time.process_time()
        for recipe in task.recipes:
            for one, timing in rehearsed.twice(recipe, wanted).items():
                found.setdefault(one, []).append(timing)
        share = (time.process_time() - computing) / (time.monotonic() - wall) / torch.get_num_threads()
        return Rehearsal(
            kinds={one: merged(timings) for one, timings in found.items()},
            teacher=rehearsed.teacher(wanted),
            test=rehearsed.test(),
            steps=steps,
            images=len(data.train),
            views=data.views,
            fills=_fills(rehearsed.bench_teacher, data, batch),
            timed=wanted,
            share=min(1.0, share) if data.mean.device.type == "cpu" else 1.0,
            prepare=prepare,
            **known,
        )


class _Rehearsed:
    """One pair, data and an untrained or read teacher, to distil from."""

    def __init__(self, folder: Path, pair: Pair, data: Data, network: torch.nn.Module, numerics: Numerics) -> None:
        self._folder, self._pair, self._data, self._numerics = folder, pair, data, numerics
        self.bench_teacher = Teacher(network, data)
        self._flops: dict[tuple[Any, ...], float] = {}
        self._validation = Validation(self._short(1), pair.student_schedule.batch_size)
        self._round = 0
        self._last: tuple[pipeline.Result, pipeline.Bench]

    def twice(self, recipe: Recipe, steps: int) -> dict[Kind, Timing]:
        """Timings of a recipe's stages: the first time fills the teacher's tables, the second draws the same views."""
        self.distil(recipe, steps, self._folder / str(self._round))
        self._round += 1
        timings = self.distil(recipe, steps, self._folder / str(self._round), reused=True)
        self._round += 1
        return timings

    def distil(self, recipe: Recipe, steps: int, store: Path, *, reused: bool = False) -> dict[Kind, Timing]:
        """Train a recipe's stages shortly. reused: and take them from the store, as another trial would."""
        bench = self._bench(steps, store, recipe.teachers)
        scale = max(1.0, len(self._data.validation) / len(bench.data.validation))
        marks: list[list[float]] = [[] for _ in recipe.stages]
        ends: list[float] = [time.monotonic()]
        result = pipeline.distil(
            recipe, bench, seed=0, epochs=_EPOCHS,
            on_epoch=lambda stage, epoch, epochs: marks[stage - 1].append(time.monotonic()),
            on_stage=lambda number, stage: ends.append(time.monotonic()),
        )  # fmt: skip
        again = [time.monotonic()]
        if reused:
            pipeline.distil(
                recipe, bench, seed=0, epochs=_EPOCHS, on_stage=lambda number, stage: again.append(time.monotonic())
            )
        self._last = result, bench
        timings: dict[Kind, list[Timing]] = {}
        for number, done in enumerate(result.stages, 1):
            stops = marks[number - 1]
            each = tuple((b - a) / steps for a, b in itertools.pairwise(stops))
            trained = done.device_seconds
            timing = Timing(
                steps=each,
                setup=max(0.0, trained - (stops[-1] - stops[0]) - steps * min(each)),
                around=scale * max(0.0, ends[number] - ends[number - 1] - trained),
                reused=scale * (again[number] - again[number - 1]) if reused else math.nan,
                size=_size(bench.store.path(done.key)),
                flops=done.train_flops / _EPOCHS,
                tables=_tables(recipe, number),
            )
            timings.setdefault(kind(recipe, number), []).append(timing)
        return {one: merged(several) for one, several in timings.items()}

    def teacher(self, steps: int) -> Timing:
        """The teacher's own training, as a stage of `ce`."""
        spec, schedule = self._pair.teacher, self._pair.teacher_schedule
        bench = self._bench(steps, self._folder / "teacher", 1)
        network = models.build(spec.name, num_classes=self._data.classes, in_channels=self._data.channels)
        marks: list[float] = []
        started = time.monotonic()
        entry, _ = pipeline.finish_stage(
            bench.store, bench.data, network.to(bench.device), spec, schedule, recipe=parse("ce"), parent=None,
            epochs=2, seed=0, init_seed=0, loss_weights={}, teachers=[], teacher_digests=[], flops={},
            numerics=self._numerics, on_epoch=lambda epoch, epochs: marks.append(time.monotonic()),
        )  # fmt: skip
        total = time.monotonic() - started
        return Timing(
            steps=((marks[1] - marks[0]) / steps,),
            setup=0.0,
            around=max(0.0, total - entry.facts["device_seconds"]),
            reused=0.0,
            size=_size(bench.store.path(entry.key)),
            flops=0.0,
            tables=frozenset(),
        )

    def evaluate_teacher(self) -> float:
        """Seconds that a process takes to evaluate the teacher, once for its accuracy and once to keep its answers."""
        short = self._short(1)
        started = time.monotonic()
        stage.accuracy(self.bench_teacher.network, short, short.validation)
        return 2 * max(1.0, len(self._data.validation) / len(short.validation)) * (time.monotonic() - started)

    def test(self) -> float:
        """Seconds of a look at the test split."""
        started = time.monotonic()
        result, bench = self._last
        pipeline.test_accuracy(result, bench)
        scale = len(self._data.test) / len(bench.data.test)
        return max(1.0, scale) * (time.monotonic() - started)

    def _short(self, steps: int) -> _Short:
        return _Short(
            **{f.name: getattr(self._data, f.name) for f in dataclasses.fields(Data) if f.init}
            | {name: _first(getattr(self._data, name)) for name in ("validation", "test")},
            batches_an_epoch=steps,
        )

    def _bench(self, steps: int, store: Path, teachers: int) -> pipeline.Bench:
        nobody = Entry(key="", weights={}, digest="", facts={"train_flops": 0.0})
        network = self.bench_teacher.network
        return pipeline.Bench(
            pair=self._pair, data=self._short(steps), store=Store(store), teacher=self.bench_teacher, teacher_digest="",
            teacher_accuracy=math.nan, teacher_source="", teacher_epochs=0, numerics=self._numerics,
            validation=self._validation,
            more={place: (Teacher(network, self._data), nobody) for place in range(1, teachers)}, flops=self._flops,
        )  # fmt: skip


def _tables(recipe: Recipe, number: int) -> frozenset[str]:
    """Which of the first teacher's tables a stage fills."""
    reads = stage.reads(recipe.stages[number - 1], recipe, first=not (number > 1 and recipe.anchored))
    if "features" in reads:
        return frozenset()
    return frozenset({"ends"} if reads - {"hint"} else ()) | frozenset({"hint"} & reads)


def _first(split: Split) -> Split:
    return split.take(np.arange(min(_EVALUATED, len(split))))


def _size(folder: Path) -> int:
    """Bytes that a folder takes on disk."""
    return 512 * sum(path.stat().st_blocks for path in (folder, *folder.iterdir()))


def _fills(asked: Teacher, data: Data, batch: int) -> dict[str, float]:
    """As in Rehearsal: of the outputs that the teacher isn't run for a second time."""
    index = torch.arange(batch, device=data.mean.device)
    view = torch.zeros_like(index)
    images = data.augmented(index, view)
    found = {}
    for name, reads in _READS.items():
        part = asked.part(reads)
        ran: list[float] = []
        handle = part.register_forward_pre_hook(lambda module, inputs, ran=ran: ran.append(time.monotonic()))
        asked(index, view, images, reads)
        before = len(ran)
        asked(index, view, images, reads)
        live = len(ran) > before
        handle.remove()
        if not live:
            started = time.monotonic()
            with torch.no_grad():
                part(images)
            found[name] = (time.monotonic() - started) / batch
    return found
