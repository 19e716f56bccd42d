"""run(recipe, ...): a fold of train_stage over the stages, through the store. One recipe, one seed, in this process."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smskd import anchor, cost, methods, models, pairs
from smskd import data as datasets
from smskd import numerics as arithmetic
from smskd import recipe as recipes
from smskd import stage as training
from smskd import teacher as teachers
from smskd.data import Data
from smskd.files import ImageFiles
from smskd.forgetting import Kept, Lineage, Validation
from smskd.methods import base, ce, kd
from smskd.methods.base import Batch
from smskd.numerics import FLOAT32, Numerics
from smskd.pairs import Network, Pair, Schedule
from smskd.recipe import Recipe, Stage
from smskd.store import Entry, Store, address, open_store
from smskd.teacher import Teacher

STORE = Path("runs/store")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The fixed side of an experiment: pair, data and teacher, on one device.

    teacher_digest: SHA-256 of its weights. teacher_source: where it came from, for people. more: further teachers, by
    place, as recipes of several asked for them.
    """

    pair: Pair
    data: Data
    store: Store
    teacher: Teacher
    teacher_digest: str
    teacher_accuracy: float
    teacher_source: str
    teacher_epochs: int
    numerics: Numerics
    validation: Validation
    more: dict[int, tuple[Teacher, Entry]] = field(default_factory=dict, repr=False)
    flops: dict[tuple[Any, ...], float] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        return self.data.mean.device


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """One finished stage.

    digest: SHA-256 of the student's weights. val_accuracy: after the last epoch, a fraction. train_flops,
    device_seconds: of this stage alone. losses: per epoch, the mean of each named term. trained: by this call, and not
    found in the store. test_accuracies: after each epoch, fractions; empty unless asked for.
    """

    key: str
    digest: str
    val_accuracy: float
    train_flops: float
    device_seconds: float
    losses: tuple[Mapping[str, float], ...]
    anchor_weights: Mapping[str, float]
    trained: bool
    kept: Kept
    test_accuracies: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished recipe: its stages, and the student's weights after the last.

    extra_teacher_flops: what training its teachers cost beyond the first.
    """

    recipe: Recipe
    seed: int
    stages: tuple[StageResult, ...]
    params: int
    weights: Mapping[str, Tensor] = field(repr=False)
    extra_teacher_flops: float = 0.0

    @property
    def val_accuracy(self) -> float:
        """Of the last stage's last epoch, a fraction."""
        return self.stages[-1].val_accuracy

    @property
    def test_best_accuracy(self) -> float | None:
        """The highest test accuracy of any epoch of the last stage, flattered by its choice; None unless asked for."""
        return max(self.stages[-1].test_accuracies, default=None)

    @property
    def train_flops(self) -> float:
        """Of all stages, as if nothing were shared; the teacher's and the reference's forward passes are in it."""
        return sum(s.train_flops for s in self.stages)

    @property
    def device_seconds(self) -> float:
        """Of all stages, as measured when each was trained, as if nothing were shared."""
        return sum(s.device_seconds for s in self.stages)


def run(
    recipe: Recipe | str,
    *,
    pair: str | None = None,
    teacher_model: str | None = None,
    student_model: str | None = None,
    data: str = "digits",
    seed: int = 0,
    epochs: int | None = None,
    epochs_total: int | None = None,
    data_dir: str | Path | None = None,
    train_size: int | None = None,
    image_size: int | None = None,
    teacher: str | Path | None = None,
    teacher_epochs: int | None = None,
    store: str | Path = STORE,
    store_key: str | Path | None = None,
    device: str | None = None,
    precision: str | None = None,
    compile: str | None = None,
    test_each_epoch: bool = False,
    on_stage: Callable[[int, StageResult], None] = lambda number, result: None,
    on_epoch: Callable[[int, int, int], None] = lambda stage, epoch, epochs: None,
) -> Result:
    """Distil one student by one recipe; stages that the store has are taken from there.

    Args:
        recipe: a Recipe or its notation, such as "kd>fitnets>rkd weighting=tcp".
        pair, data: names, as in smskd.pairs and smskd.data; pair None: tiny, or the pair of the two models.
        teacher_model, student_model: classifiers of torchvision, given together and in place of a pair.
        seed: of the student; the same seed starts every recipe from the same weights.
        epochs: per stage; None: the pair's own.
        epochs_total: of all stages together, instead; split as evenly as it goes, the first stages get what is over.
        data_dir, train_size, image_size: as in smskd.data.load.
        teacher: a file with the teacher's weights; None: trained once and kept in the store. Further teachers, of a
            recipe that has several, are trained always.
        teacher_epochs: for a teacher that is trained; None: the pair's own.
        store, store_key: finished stages, and what signs them, as in smskd.store.open_store.
        device: as torch names it; None: cuda if there is one, else cpu.
        precision, compile: as in smskd.numerics; None: what suits the device.
        test_each_epoch: look at the test split after every epoch, which changes nothing of the training. For runs whose
            choices are made.
        on_stage: called with the stage's number, from 1, and its result, when it is finished or found.
        on_epoch: called with the stage's number, finished epochs, and all epochs of the stage.

    Raises:
        ValueError: a name or value is wrong; the message says which are right.
        smskd.stage.Diverged: a loss turned NaN.
    """
    recipe = recipes.parse(recipe) if isinstance(recipe, str) else recipe
    bench = prepare(
        pair=pair, teacher_model=teacher_model, student_model=student_model, data=data, data_dir=data_dir,
        train_size=train_size, image_size=image_size, teacher=teacher, teacher_epochs=teacher_epochs, store=store,
        store_key=store_key, device=device, precision=precision, compile=compile,
    )  # fmt: skip
    return distil(
        recipe, bench, seed=seed, epochs=epochs, epochs_total=epochs_total, test_each_epoch=test_each_epoch,
        on_stage=on_stage, on_epoch=on_epoch,
    )  # fmt: skip


def distil(
    recipe: Recipe,
    bench: Bench,
    *,
    seed: int,
    epochs: int | None = None,
    epochs_total: int | None = None,
    test_each_epoch: bool = False,
    on_stage: Callable[[int, StageResult], None] = lambda number, result: None,
    on_epoch: Callable[[int, int, int], None] = lambda stage, epoch, epochs: None,
) -> Result:
    """run() on a bench that is there; arguments and errors as there."""
    per_stage = pairs.split_epochs(len(recipe.stages), bench.pair, epochs=epochs, epochs_total=epochs_total)
    student = _fresh(bench.pair.student, bench.data, seed=_derived(seed, "student"))
    parent: Entry | None = None
    results: list[StageResult] = []
    extra_flops = 0.0
    lineage, listened = Lineage(bench.validation), {0: bench.teacher.network}
    for number, (stage, prefix) in enumerate(zip(recipe.stages, recipe.prefixes(), strict=True), 1):
        reads = training.reads(stage, recipe, first=parent is None)
        taught = [bench_teacher(bench, place) for place in range(recipe.teachers)] if reads else []
        extra_flops = max(extra_flops, sum(flops for *_, flops in taught))
        entry, trained = finish_stage(
            bench.store, bench.data, student, bench.pair.student, bench.pair.student_schedule,
            recipe=prefix, parent=parent, epochs=per_stage[number - 1], seed=_derived(seed, prefix.id, number),
            init_seed=_derived(seed, "student"), loss_weights=bench.pair.loss_weights,
            teachers=[teacher for teacher, *_ in taught], teacher_digests=[digest for _, digest, _ in taught],
            numerics=bench.numerics, flops=bench.flops, test_each_epoch=test_each_epoch,
            on_epoch=functools.partial(on_epoch, number),
        )  # fmt: skip
        terms = _trained_terms(bench, student, stage, recipe, entry)
        listened |= {place: bench_teacher(bench, place)[0].network for term in terms for place in term.teachers}
        kept = lineage.add(
            student,
            ce_weight=ce.weight(stage.methods, ce.WEIGHTS | dict(bench.pair.loss_weights)),
            terms=terms,
            teachers=listened,
        )
        facts = {**entry.facts, "test_accuracies": tuple(entry.facts.get("test_accuracies", ()))}
        results.append(StageResult(key=entry.key, digest=entry.digest, trained=trained, kept=kept, **facts))
        on_stage(number, results[-1])
        parent = entry
    assert parent is not None
    return Result(
        recipe=recipe, seed=seed, stages=tuple(results), params=cost.parameters(student), weights=parent.weights,
        extra_teacher_flops=extra_flops,
    )  # fmt: skip


def bench_teacher(bench: Bench, place: int) -> tuple[Teacher, str, float]:
    """A teacher by place, its digest, and what it cost beyond the bench's own, which is at 0; others are trained here.

    Only the seed differs: of the initial weights, the order of images and their views.
    """
    if place == 0:
        return bench.teacher, bench.teacher_digest, 0.0
    if place not in bench.more:
        network = _fresh(bench.pair.teacher, bench.data, seed=_derived(0, "teacher", "of several", place))
        entry = _trained_teacher(
            bench.store, bench.data, bench.pair, network, bench.teacher_epochs, bench.numerics,
            seed=_derived(0, "teacher", "of several", place, 1), init_seed=_derived(0, "teacher", "of several", place),
        )  # fmt: skip
        bench.more[place] = (
            _with_table(network, bench.data, bench.store, bench.pair, entry.digest, bench.numerics),
            entry,
        )
    teacher, entry = bench.more[place]
    return teacher, entry.digest, float(entry.facts["train_flops"])


def _trained_terms(bench: Bench, student: nn.Module, stage: Stage, recipe: Recipe, entry: Entry) -> list[training.Term]:
    """A finished stage's methods, as they were when it ended."""
    if not stage.distils:
        return []
    views = [training.probe(bench_teacher(bench, place)[0].network, bench.data) for place in range(recipe.teachers)]
    with torch.random.fork_rng():
        terms = training.build_terms(
            stage, training.probe(student, bench.data), views, bench.pair.loss_weights, bench.data.train.labels
        )
    learned = bench.store.methods(entry.key)
    for number, term in enumerate(terms):
        mine = {name.partition("/")[2]: t for name, t in learned.items() if name.partition("/")[0] == str(number)}
        term.method.to(bench.device).load_state_dict(mine)
    return terms


def test_accuracy(result: Result, bench: Bench) -> float:
    """Share of test images that a finished student gets right. Ask for it once, after everything is chosen."""
    student = _fresh(bench.pair.student, bench.data, seed=0)
    student.load_state_dict(dict(result.weights))
    return training.accuracy(student, bench.data, bench.data.test)


def prepare(
    *,
    pair: str | None = None,
    teacher_model: str | None = None,
    student_model: str | None = None,
    data: str = "digits",
    data_dir: str | Path | None = None,
    train_size: int | None = None,
    image_size: int | None = None,
    teacher: str | Path | None = None,
    teacher_epochs: int | None = None,
    store: str | Path = STORE,
    store_key: str | Path | None = None,
    device: str | None = None,
    precision: str | None = None,
    compile: str | None = None,
    on_epoch: Callable[[int, int], None] = lambda epoch, epochs: None,
) -> Bench:
    """Load the data and the teacher, training the latter if the store lacks it. Arguments and errors as in run().

    The last two benches of a process are kept: a worker runs many trials of one.

    on_epoch: called with finished epochs, and all epochs, of a teacher that is trained.
    """
    chosen = pairs.choose(pair, teacher_model, student_model)
    wanted = (
        chosen.name, data, data_dir, train_size, image_size, teacher, teacher_epochs, store, store_key, device,
        precision, compile,
    )  # fmt: skip
    if wanted not in _benches:
        made = _prepared(chosen, *wanted[1:], on_epoch)
        while len(_benches) >= 2:
            del _benches[next(iter(_benches))]
        _benches[wanted] = made
    return _benches[wanted]


_benches: dict[tuple[Any, ...], Bench] = {}


def _prepared(
    table: Pair,
    data: str,
    data_dir: str | Path | None,
    train_size: int | None,
    image_size: int | None,
    teacher: str | Path | None,
    teacher_epochs: int | None,
    store: str | Path,
    store_key: str | Path | None,
    device: str | None,
    precision: str | None,
    compile: str | None,
    on_epoch: Callable[[int, int], None],
) -> Bench:
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    numerics = arithmetic.choose(precision, compile, cuda=place.type == "cuda")
    loaded = load_data(table, data=data, data_dir=data_dir, train_size=train_size, image_size=image_size).to(place)
    if place.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    shelf = open_store(store, store_key)
    epochs = table.teacher_epochs if teacher_epochs is None else teacher_epochs
    if epochs < 1:
        raise ValueError(f"teacher_epochs >= 1 must hold, but got teacher_epochs={epochs}")
    network = _fresh(table.teacher, loaded, seed=_derived(0, "teacher"))
    if teacher is not None:
        network.load_state_dict(teachers.read_weights(Path(teacher), network))
        digest, source = weights_digest(network), f"file {Path(teacher).name}"
    else:
        entry = _trained_teacher(
            shelf, loaded, table, network, epochs, numerics,
            seed=_derived(0, "teacher", 1), init_seed=_derived(0, "teacher"), on_epoch=on_epoch,
        )  # fmt: skip
        digest, source = entry.digest, f"trained here for {epochs} epochs"
    return Bench(
        pair=table,
        data=loaded,
        store=shelf,
        teacher=_with_table(network, loaded, shelf, table, digest, numerics),
        teacher_digest=digest,
        teacher_accuracy=training.accuracy(network, loaded, loaded.validation),
        teacher_source=source,
        teacher_epochs=epochs,
        numerics=numerics,
        validation=Validation(loaded, table.student_schedule.batch_size),
    )


def _with_table(network: nn.Module, data: Data, store: Store, pair: Pair, digest: str, numerics: Numerics) -> Teacher:
    """A teacher whose outputs are shared by the processes that use this store on this machine, where that can be."""
    identity = {
        "teacher": digest,
        "data": data.fingerprint,
        "code": code_digest(pair.teacher.name, ()),
        "environment": environment(data.mean.device, numerics),
    }
    return Teacher(network, data, folder=store.table(identity))


def _trained_teacher(
    store: Store,
    data: Data,
    pair: Pair,
    network: nn.Module,
    epochs: int,
    numerics: Numerics,
    *,
    seed: int,
    init_seed: int,
    on_epoch: Callable[[int, int], None] = lambda epoch, epochs: None,
) -> Entry:
    """A teacher from the store, or trained into it; `network` holds its weights afterwards."""
    entry, _ = finish_stage(
        store, data, network, pair.teacher, pair.teacher_schedule,
        recipe=recipes.parse("ce"), parent=None, epochs=epochs, seed=seed, init_seed=init_seed,
        loss_weights={}, teachers=[], teacher_digests=[], numerics=numerics, flops={}, on_epoch=on_epoch,
    )  # fmt: skip
    return entry


def load_data(
    pair: Pair, *, data: str, data_dir: str | Path | None, train_size: int | None, image_size: int | None
) -> Data:
    """The data on the CPU, after a check that the pair can take its images."""
    loaded = datasets.load(
        data, data_dir=Path(data_dir) if data_dir else None, train_size=train_size, image_size=image_size
    )
    pairs.check_images(pair, height=loaded.height, width=loaded.width)
    return loaded


def finish_stage(
    store: Store,
    data: Data,
    network: nn.Module,
    spec: Network,
    schedule: Schedule,
    *,
    recipe: Recipe,
    parent: Entry | None,
    epochs: int,
    seed: int,
    init_seed: int,
    loss_weights: Mapping[str, float],
    teachers: Sequence[Teacher],
    teacher_digests: Sequence[str],
    flops: dict[tuple[Any, ...], float],
    numerics: Numerics = FLOAT32,
    test_each_epoch: bool = False,
    on_epoch: Callable[[int, int], None] = lambda epoch, epochs: None,
) -> tuple[Entry, bool]:
    """The last stage of `recipe`, from the store or trained into it; and whether it was trained.

    `network` holds the stage's weights afterwards. Of processes that want one stage one trains, the others wait.
    `flops` remembers what was counted, by what it depends on. With `test_each_epoch` the entry is one of its own, with
    the same weights: a stage stored without those accuracies doesn't stand in for it, and nobody else reads them.
    """
    stage = recipe.stages[-1]
    weights = _weights_of(stage, loss_weights)
    identity = stage_identity(
        data, spec, schedule, recipe=recipe, parent=None if parent is None else parent.digest, epochs=epochs, seed=seed,
        init_seed=init_seed, loss_weights=loss_weights, teacher_digests=teacher_digests, numerics=numerics,
        test_each_epoch=test_each_epoch,
    )  # fmt: skip
    key = address(identity)
    entry = _held(store, key, network)
    if entry is None:
        with store.lock(key):
            entry = _held(store, key, network)  # whoever held the lock may have trained it
            if entry is None:
                if parent is not None:
                    network.load_state_dict(dict(parent.weights))
                reference = anchor.freeze(network) if identity["anchor"] is not None else None
                tested: list[float] = []
                testing = 0.0

                def after_epoch(epoch: int) -> None:
                    nonlocal testing
                    if test_each_epoch:
                        started = time.monotonic()
                        tested.append(training.accuracy(network, data, data.test))
                        testing += time.monotonic() - started
                    on_epoch(epoch, epochs)

                done = training.train_stage(
                    network, stage=stage, recipe=recipe, reference=reference, teachers=teachers, data=data,
                    schedule=schedule, loss_weights=weights, epochs=epochs, seed=seed, numerics=numerics,
                    on_epoch=after_epoch,
                )  # fmt: skip
                facts = {
                    "val_accuracy": training.accuracy(network, data, data.validation),
                    "train_flops": stage_flops(
                        done.terms, done.images, network, recipe, data, teachers, reference, flops
                    ),
                    "device_seconds": done.seconds - testing,  # it is no part of the training
                    "losses": done.losses,
                    "anchor_weights": done.anchor_weights,
                    **({"test_accuracies": tested} if test_each_epoch else {}),
                }
                learned = {
                    f"{number}/{name}": tensor
                    for number, term in enumerate(done.terms)
                    for name, tensor in term.method.state_dict().items()
                }
                return store.put(key, identity, network.state_dict(), facts, learned), True
    network.load_state_dict(dict(entry.weights))
    return entry, False


def _held(store: Store, key: str, network: nn.Module) -> Entry | None:
    """A stage that the store has, with weights that fit the network and facts that a stage has."""
    entry = store.get(key, network.state_dict())
    if entry is None:
        return None
    facts = dict(entry.facts)
    facts.pop("test_accuracies", None)
    numbers = ("val_accuracy", "train_flops", "device_seconds")
    whole = facts.keys() == {*numbers, "losses", "anchor_weights"}
    if whole and all(isinstance(facts[name], int | float) for name in numbers):
        return entry
    store.set_aside(key)
    return None


def stage_identity(
    data: Data,
    spec: Network,
    schedule: Schedule,
    *,
    recipe: Recipe,
    parent: str | None,
    epochs: int,
    seed: int,
    init_seed: int,
    loss_weights: Mapping[str, float],
    teacher_digests: Sequence[str],
    numerics: Numerics,
    test_each_epoch: bool = False,
) -> dict[str, Any]:
    """All that the last stage of `recipe` is a function of; its address is the stage's key in the store.

    parent: digest of the stage before; None for the first. The rest as in finish_stage.
    """
    stage = recipe.stages[-1]
    return {
        "format": 2,
        "network": spec.name,
        "image": [data.channels, data.height, data.width],
        "data": data.fingerprint,
        "methods": list(stage.distils),
        "loss_weights": _weights_of(stage, loss_weights),
        "anchor": recipe.anchoring if parent is not None and recipe.anchored else None,
        "schedule": asdict(schedule),
        "epochs": epochs,
        "parent": parent,
        "init_seed": init_seed if parent is None else None,
        "teachers": list(teacher_digests),
        "seed": seed,
        "code": code_digest(spec.name, stage.distils),
        "environment": environment(data.mean.device, numerics),
        **({"test_each_epoch": True} if test_each_epoch else {}),  # no part of the other entries' keys
    }


def held_teacher(
    store: Store, data: Data, pair: Pair, epochs: int, numerics: Numerics, *, place: int = 0
) -> str | None:
    """Digest of a teacher (by place, as in bench_teacher) that the store has; None if it is still to be trained."""
    path: tuple[str | int, ...] = ("teacher",) if place == 0 else ("teacher", "of several", place)
    identity = stage_identity(
        data, pair.teacher, pair.teacher_schedule, recipe=recipes.parse("ce"), parent=None, epochs=epochs,
        seed=_derived(0, *path, 1), init_seed=_derived(0, *path), loss_weights={}, teacher_digests=[],
        numerics=numerics,
    )  # fmt: skip
    return store.digest(address(identity))


def held_stages(
    recipe: Recipe,
    store: Store,
    data: Data,
    pair: Pair,
    teachers: Mapping[int, str],
    *,
    seed: int,
    per_stage: Sequence[int],
    numerics: Numerics,
) -> int:
    """How many stages of a recipe, from its first, the store has: run() won't train these. No file is verified.

    Args:
        teachers: digests of those that there are, by place.
        per_stage: epochs of each stage.
    """
    parent: str | None = None
    for number, (stage, prefix) in enumerate(zip(recipe.stages, recipe.prefixes(), strict=True)):
        reads = training.reads(stage, recipe, first=parent is None)
        asked = range(recipe.teachers) if reads else range(0)
        if not all(place in teachers for place in asked):
            return number
        identity = stage_identity(
            data, pair.student, pair.student_schedule, recipe=prefix, parent=parent, epochs=per_stage[number],
            seed=_derived(seed, prefix.id, number + 1), init_seed=_derived(seed, "student"),
            loss_weights=pair.loss_weights, teacher_digests=[teachers[place] for place in asked], numerics=numerics,
        )  # fmt: skip
        parent = store.digest(address(identity))
        if parent is None:
            return number
    return len(recipe.stages)


def stage_flops(
    terms: Sequence[training.Term],
    images: int,
    network: nn.Module,
    recipe: Recipe,
    data: Data,
    teachers: Sequence[Teacher],
    reference: nn.Module | None,
    known: dict[tuple[Any, ...], float],
) -> float:
    """Training FLOPs of a recipe's last stage: student and regressors forward and backward, others forward.

    EWC has no reference to run, but gradients of some images for its Fisher information.

    Args:
        terms: the stage's methods, as built.
        images: how many go through the student.
        network: the student, on the data's device; no state is moved.
        reference: None: the stage isn't anchored.
        known: remembers what was counted, by what it depends on.
    """
    stage = recipe.stages[-1]
    first = reference is None
    wanted = [training.reads(stage, recipe, first=first, teacher=place) for place in range(len(teachers))]
    case = (stage.distils, *wanted, None if first else recipe.anchor)
    if case not in known:
        two = data.normalised(data.train.images[:2])
        student = cost.forward_flops(network, two, images=2)
        others = sum(cost.forward_flops(t.part(w), two, images=2) for t, w in zip(teachers, wanted, strict=True))
        trained = student
        views = [training.probe(t.network, data) for t in teachers]
        mine = training.probe(network, data)
        batch = Batch(data.train.labels[:2], torch.arange(2, device=two.device))
        for term in terms:
            trained += cost.forward_flops(term.method, mine, views[term.teachers[0]], batch, images=2)
        if reference is not None and recipe.anchor == "reference":
            others += student
        known[case] = others + cost.TRAINING_OVER_FORWARD * trained
        known[(*case, "once")] = 0.0
        if reference is not None and recipe.anchor == "ewc":
            known[(*case, "once")] = cost.TRAINING_OVER_FORWARD * student * min(anchor.FISHER_IMAGES, len(data.train))
    return images * known[case] + known[(*case, "once")]


def _weights_of(stage: Stage, loss_weights: Mapping[str, float]) -> dict[str, float]:
    """Those of the loss weights that a stage uses."""
    return {name: value for name, value in loss_weights.items() if name in _terms(stage.methods)}


class Counter:
    """Counts what recipes cost, with networks that are built and not trained: equal to what training them records."""

    def __init__(self, pair: Pair, data: Data) -> None:
        """data: for the shapes, the labels and the number of training images."""
        self._schedule, self._data = pair.student_schedule, data
        self._student = _fresh(pair.student, data, seed=0)
        self._teacher = Teacher(_fresh(pair.teacher, data, seed=0), data)
        self._known: dict[tuple[Any, ...], float] = {}

    def stages(self, recipe: Recipe, epochs: Sequence[int]) -> list[float]:
        """Training FLOPs of each stage, as in Result. epochs: of each stage."""
        found = []
        student, data = self._student, self._data
        for number, prefix in enumerate(recipe.prefixes()):
            last, first = prefix.stages[-1], number == 0
            taught = [self._teacher] * recipe.teachers if training.reads(last, recipe, first=first) else []
            views = [training.probe(teacher.network, data) for teacher in taught]
            with torch.random.fork_rng(devices=[]):
                terms = training.build_terms(last, training.probe(student, data), views, {}, data.train.labels)
            reference = student if not first and recipe.anchored else None
            images = images_trained(epochs[number], self._schedule, data)
            found.append(stage_flops(terms, images, student, prefix, data, taught, reference, self._known))
        return found


def images_trained(epochs: int, schedule: Schedule, data: Data) -> int:
    """How many go through a network: an incomplete last batch of an epoch is left out."""
    batch = min(schedule.batch_size, len(data.train))
    return epochs * (len(data.train) // batch) * batch


def _terms(stage_methods: tuple[str, ...]) -> set[str]:
    """Names of the loss weights that a stage of these methods uses."""
    return {ce.weight_name(stage_methods)}.union(
        *(methods.load(name).WEIGHTS for name in stage_methods if name != "ce")
    )


def _fresh(spec: Network, data: Data, *, seed: int) -> nn.Module:
    """A network with initial weights that depend on the seed alone, on the data's device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = models.build(spec.name, num_classes=data.classes, in_channels=data.channels)
    # GPUs compute convolutions in this layout; others keep the order the weights are stored in
    layout = torch.channels_last if data.mean.device.type == "cuda" else torch.contiguous_format
    return network.to(data.mean.device).to(memory_format=layout)


def _derived(seed: int, *path: str | int) -> int:
    """A seed for one purpose, from the study's seed: equal for equal paths, unrelated otherwise."""
    return int.from_bytes(hashlib.sha256(repr((seed, *path)).encode()).digest()[:7], "big")


def weights_digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def environment(device: torch.device, numerics: Numerics) -> dict[str, str | int]:
    """What else the bits of a result depend on: device kind, versions, threads, numeric mode."""
    if device.type == "cuda":
        kind: dict[str, str | int] = {"device": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
    else:
        capability = torch.backends.cpu.get_cpu_capability()
        kind = {"device": f"{platform.machine()} {capability}", "threads": torch.get_num_threads()}
    return kind | {"torch": str(torch.__version__), "numeric": str(numerics)}


@functools.cache
def code_digest(network: str, stage_methods: tuple[str, ...]) -> str:
    """SHA-256 of the code that a stage's result is a function of; comments and docstrings aren't in it."""
    family = models.family(network)
    sources: list[Any] = [
        training,
        anchor,
        Data,
        ImageFiles,
        Teacher,
        base,
        ce,
        kd,  # the anchor's divergence, and that of methods built on it
        models,
        importlib.import_module(f"smskd.models.{family}"),
    ]
    sources += [importlib.import_module("smskd.models.staged"), *(methods.load(name) for name in stage_methods)]
    # the layers themselves are torchvision's
    digest = hashlib.sha256(importlib.metadata.version("torchvision").encode() if family == "torchvision_any" else b"")
    for source in sources:
        tree = ast.parse(inspect.getsource(source))
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and ast.get_docstring(node, clean=False) is not None
            ):
                node.body = node.body[1:] or [ast.Pass()]
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()
