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
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from search.config import Config
from search.estimate import Kind, Rehearsal, Timing, kind, merged, steps_of
from smskd import bench as benches
from smskd import checkpoints, pipeline, stage
from smskd import job as jobs
from smskd import numerics as arithmetic
from smskd.bench import Bench, Taught
from smskd.cost import FlopCounter
from smskd.data import Data, Split
from smskd.experiment import Experiment
from smskd.forgetting import Validation
from smskd.numerics import Numerics
from smskd.recipe import Recipe, Stage
from smskd.result import Result
from smskd.setup import Setup
from smskd.store import Store, folder, is_url, open_store
from smskd.teacher import Teacher
from smskd.training import TEACHER

# Epochs of a rehearsed stage: the first pays what is paid once, the others are timed.
_EPOCHS = 3
# Of a rehearsed stage: weights that hardly move don't diverge, whatever weights and rates the search tries.
_RATE = 1e-6
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


def rehearse(
    config: Config, device: str, recipes: Sequence[Recipe], looked_up: Sequence[Recipe], scratch: Path
) -> Rehearsal:
    """Time all kinds of stage that the recipes have.

    Args:
        device: `cpu` or `cuda`.
        looked_up: recipes that the store is asked for, with each seed of the search.
        scratch: a folder of the disk that the store is on, to be thrown away.

    Raises:
        ValueError: data or teacher are missing, or don't fit the pair; as smskd.bench.prepare.
    """
    started = time.monotonic()
    experiment, on = config.experiment, torch.device(device)
    torch.set_num_threads(experiment.threads)
    numerics = arithmetic.choose(experiment.precision, experiment.compile, cuda=on.type == "cuda")
    data = benches.load_data(experiment).to(on)
    if on.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    network = benches.fresh(experiment.networks.teacher, data, seed=0)
    if experiment.teacher is not None:
        path, name = Path(experiment.teacher), experiment.networks.teacher.name
        network.load_state_dict(checkpoints.read(path, network, key="teacher", name=name).weights)
    prepare = time.monotonic() - started
    # a store that isn't there yet isn't made by being looked at
    is_there = is_url(config.store) or (folder(config.store) / "entries").is_dir()
    store = open_store(config.store, config.store_key) if is_there else Store(scratch / "none")
    setup = Setup(data=data, store=store, flops=FlopCounter(data))
    teachers = max(recipe.teachers for recipe in recipes)
    there = _there(config, setup, numerics, network if experiment.teacher else None, teachers, looked_up)
    prepare += 2 * _evaluated(network, data.validation, data)  # for its accuracy, and to keep its answers
    rehearsed = _Rehearsed(scratch, experiment, data, network, numerics)
    # the first, in the fewest steps, isn't timed for its own sake: it tells how many the others may have
    probe = rehearsed.timings(recipes[0], _FEWEST_STEPS)
    step_s = max(timing.steps[-1] for _, timing in probe)
    stages = sum(len(recipe.stages) for recipe in recipes)
    affordable = int(_BUDGET_S / (step_s * 2 * _EPOCHS * stages))
    timed = max(_FEWEST_STEPS, min(_MOST_STEPS, affordable))
    found: dict[Kind, list[Timing]] = {}
    wall, computing = time.monotonic(), time.process_time()
    for recipe in recipes:
        for one, timing in rehearsed.timings(recipe, timed):
            found.setdefault(one, []).append(timing)
    share = (time.process_time() - computing) / (time.monotonic() - wall) / torch.get_num_threads()
    return Rehearsal(
        kinds={one: merged(timings) for one, timings in found.items()},
        teacher=rehearsed.teacher(timed),
        test=_evaluated(benches.fresh(experiment.networks.student, data, seed=0), data.test, data),
        images=len(data.train),
        validation=len(data.validation),
        views=data.views,
        fills=_fills(Teacher(network, data), data, min(_batch_size(experiment), len(data.train))),
        timed=min(timed, *(steps_of(one.batch_size, len(data.train)) for one in found)),
        share=min(1.0, share) if on.type == "cpu" else 1.0,
        prepare=prepare,
        **there,
    )


def _there(
    config: Config, setup: Setup, numerics: Numerics, file: nn.Module | None, teachers: int, recipes: Sequence[Recipe]
) -> dict[str, Any]:
    """What the store has, as in Rehearsal, of so many teachers and of recipes. file: the teacher, if a file has it."""
    digests: dict[int, str] = {}
    for number in range(teachers):
        job = jobs.of_teacher(config.experiment, numerics, number)
        digest = setup.digest(job) if number or file is None else benches.weights_digest(file)
        digests |= {} if digest is None else {number: digest}
    held = collections.Counter[str]()
    for seed in config.search_seeds:
        found = set[str]()
        for recipe in recipes:
            count = pipeline.held_stages(recipe, config.experiment, numerics, setup, digests, seed=seed)
            found.update(prefix.id for prefix in recipe.prefixes()[:count])
        held.update(found)
    return {"held": dict(held), "teachers": frozenset(digests)}


class _Rehearsed:
    """An experiment with an untrained or read teacher, to distil from; its store is thrown away."""

    def __init__(
        self, scratch: Path, experiment: Experiment, data: Data, network: nn.Module, numerics: Numerics
    ) -> None:
        self._experiment, self._data, self._network, self._numerics = experiment, data, network, numerics
        self._store, self._flops = Store(scratch / "store"), FlopCounter(data)
        self._first = Teacher(network, data)
        self._scale = max(1.0, len(data.validation) / _EVALUATED)
        self._rounds = 0

    def timings(self, recipe: Recipe, steps: int) -> list[tuple[Kind, Timing]]:
        """Of a recipe's stages. steps: of an epoch, at most."""
        bench, seed = self._bench(steps, recipe.teachers), self._rounds
        self._rounds += 1
        # fills the teacher's tables; with an epoch more, which tells what an epoch is of the FLOPs
        before, _, _ = _distilled(recipe, bench, seed, _EPOCHS + 1)
        # draws the same views
        result, epochs, ends = _distilled(recipe, bench, seed, _EPOCHS)
        # finds all stages in the store, as another trial would
        _, _, found = _distilled(recipe, bench, seed, _EPOCHS)
        timings = []
        for number, (prefix, done) in enumerate(zip(recipe.prefixes(), result.stages, strict=True)):
            one, flops = kind(prefix, self._experiment.defaults), before.stages[number].train_flops - done.train_flops
            most = min(steps, steps_of(one.batch_size, len(self._data.train)))
            whole, reused = ends[number + 1] - ends[number], found[number + 1] - found[number]
            timing = dataclasses.replace(
                self._timing(epochs[number], most, trained=done.device_seconds, whole=whole, key=done.key),
                reused=self._scale * reused,
                flops=flops,
                flops_once=done.train_flops - _EPOCHS * flops,
                tables=self._tables(prefix),
            )
            timings.append((one, timing))
        return timings

    def teacher(self, steps: int) -> Timing:
        """The teacher's own training."""
        few: dict[str, Any] = {"epochs": _EPOCHS, "warmup_epochs": 0, "learning_rate": _RATE}
        short = dataclasses.replace(self._experiment, teacher=None, **{TEACHER + key: few[key] for key in few})
        network = benches.fresh(short.networks.teacher, self._data, seed=0)
        setup, job, marks = self._bench(steps, 1).setup, jobs.of_teacher(short, self._numerics), list[float]()
        started = time.monotonic()
        entry, _ = setup.finish(job, network, on_epoch=lambda epoch, epochs: marks.append(time.monotonic()))
        whole, trained = time.monotonic() - started, entry.facts["device_seconds"]
        steps = min(steps, steps_of(short.teacher_training.batch_size, len(self._data.train)))
        return self._timing(marks, steps, trained=trained, whole=whole, key=entry.key)

    def _timing(self, epochs: Sequence[float], steps: int, *, trained: float, whole: float, key: str) -> Timing:
        """Of a stage of so many steps an epoch. epochs: when each ended. trained: of `whole` seconds, in training."""
        each = tuple((later - earlier) / steps for earlier, later in itertools.pairwise(epochs))
        path = self._store.path(key)
        return Timing(
            steps=each,
            setup=max(0.0, trained - (epochs[-1] - epochs[0]) - steps * min(each)),
            around=self._scale * max(0.0, whole - trained),
            size=512 * sum(file.stat().st_blocks for file in (path, *path.iterdir())),
        )

    def _tables(self, prefix: Recipe) -> frozenset[str]:
        """Which of the first teacher's tables its last stage fills."""
        parent = None if len(prefix.stages) == 1 else ""
        work = jobs.of_student(prefix, self._experiment, self._numerics, seed=0, parent=parent, teachers=()).assignment
        reads = work.reads() if work.asks else frozenset[str]()
        if "features" in reads:
            return frozenset()
        return frozenset({"ends"} if reads - {"hint"} else ()) | frozenset({"hint"} & reads)

    def _bench(self, steps: int, teachers: int) -> Bench:
        data = _Short(
            **{one.name: getattr(self._data, one.name) for one in dataclasses.fields(Data) if one.init}
            | {name: _first(getattr(self._data, name)) for name in ("validation", "test")},
            batches_an_epoch=steps,
        )
        more = [Teacher(self._network, self._data) for _ in range(1, teachers)]
        return Bench(
            experiment=self._experiment,
            setup=Setup(data=data, store=self._store, flops=self._flops),
            numerics=self._numerics,
            teacher_accuracy=math.nan,
            validation=Validation(data, _batch_size(self._experiment)),
            teachers={number: Taught(one, "", "", 0.0) for number, one in enumerate([self._first, *more])},
        )


def _distilled(recipe: Recipe, bench: Bench, seed: int, epochs: int) -> tuple[Result, list[list[float]], list[float]]:
    """A recipe's stages, trained shortly or found: with when each one's epochs ended, and when it began or ended."""
    for key, value in {"epochs": epochs, "warmup_epochs": 0, "learning_rate": _RATE}.items():
        recipe = recipe.with_setting(key, value)
    marks: list[list[float]] = [[] for _ in recipe.stages]
    ends = [time.monotonic()]
    result = pipeline.distil(
        recipe, bench, seed=seed,
        on_epoch=lambda stage, epoch, epochs: marks[stage - 1].append(time.monotonic()),
        on_stage=lambda number, stage: ends.append(time.monotonic()),
    )  # fmt: skip
    return result, marks, ends


def _batch_size(experiment: Experiment) -> int:
    """Of a stage that says none."""
    return Stage(methods=("ce",)).training(experiment.defaults).batch_size


def _first(split: Split) -> Split:
    return split.take(np.arange(min(_EVALUATED, len(split))))


def _evaluated(network: nn.Module, split: Split, data: Data) -> float:
    """Seconds of an evaluation on all of a split."""
    short = _first(split)
    started = time.monotonic()
    stage.accuracy(network, data, short)
    return len(split) / len(short) * (time.monotonic() - started)


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
