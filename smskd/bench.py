"""Bench: the fixed side of an experiment, made ready: data on a device, the teachers, the store of finished stages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from smskd import blame, checkpoints, code, methods, models, pairs, sources, stage
from smskd import data as datasets
from smskd import job as jobs
from smskd import numerics as arithmetic
from smskd.components import Network
from smskd.cost import FlopCounter
from smskd.data import Data
from smskd.experiment import Experiment
from smskd.forgetting import Validation
from smskd.methods.base import Batch, Task
from smskd.numerics import Numerics
from smskd.pairs import Pair
from smskd.recipe import Stage
from smskd.setup import Initial, Setup
from smskd.store import Store
from smskd.teacher import Teacher

_OF_DATA = ("train_size", "image_size", "pad", "flip", "train_on")  # settings that data are read with


class Taught(NamedTuple):
    """A teacher, the digest of its weights, where they came from, for people, and what its training cost here."""

    teacher: Teacher
    digest: str
    source: str
    train_flops: float


@dataclass(frozen=True, kw_only=True)
class Bench:
    """An experiment, made ready on one device. teachers: by number; those past 0 as recipes ask for them."""

    experiment: Experiment
    setup: Setup
    numerics: Numerics
    teacher_accuracy: float
    validation: Validation
    teachers: dict[int, Taught] = field(repr=False)

    @property
    def pair(self) -> Pair:
        return self.experiment.networks

    @property
    def data(self) -> Data:
        return self.setup.data

    @property
    def store(self) -> Store:
        return self.setup.store

    @property
    def device(self) -> torch.device:
        return self.data.mean.device

    @property
    def teacher(self) -> Teacher:
        """The first."""
        return self.teachers[0].teacher

    @property
    def teacher_digest(self) -> str:
        """SHA-256 of the first one's weights."""
        return self.teachers[0].digest


def prepare(
    experiment: Experiment,
    store: Store,
    *,
    device: str | None = None,
    on_epoch: Callable[[int, int], None] = lambda epoch, epochs: None,
) -> Bench:
    """Load the data and the teacher, training the latter if the store lacks it.

    Args:
        device: as torch names it; None: cuda if there is one, else cpu.
        on_epoch: called with finished epochs, and all epochs, of a teacher that is trained.

    Raises:
        ValueError: data or teacher are missing, or don't fit the pair.
    """
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    numerics = arithmetic.choose(experiment.precision, experiment.compile, cuda=on.type == "cuda")
    data = load_data(experiment).to(on)
    if on.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    student = fresh(experiment.networks.student, data, seed=0)
    initial = _initial(experiment, student)
    setup = Setup(data=data, store=store, flops=FlopCounter(data), initial=initial)
    network = fresh(experiment.networks.teacher, data, seed=int(jobs.of_teacher(experiment, numerics).init))
    source = _given_weights(network, experiment.networks.teacher, experiment.teacher, "teacher")
    if experiment.code or methods.own():
        _check_own(experiment, data, student, network)
    if source is not None:
        taught = _with_table(experiment, setup, numerics, network, weights_digest(network), source, 0.0)
    else:
        taught = _trained(experiment, setup, numerics, network, 0, on_epoch)
    return Bench(
        experiment=experiment,
        setup=setup,
        numerics=numerics,
        teacher_accuracy=stage.accuracy(network, data, data.validation),
        validation=Validation(data, Stage(methods=("ce",)).training(experiment.defaults).batch_size),
        teachers={0: taught},
    )


def teacher(bench: Bench, number: int) -> Taught:
    """A teacher by number; those past the first are trained here, from seeds of their own."""
    if number not in bench.teachers:
        job = jobs.of_teacher(bench.experiment, bench.numerics, number)
        network = fresh(bench.pair.teacher, bench.data, seed=int(job.init))
        bench.teachers[number] = _trained(bench.experiment, bench.setup, bench.numerics, network, number)
    return bench.teachers[number]


def _given_weights(network: nn.Module, spec: Network, file: str | None, key: str) -> str | None:
    """Give a network the weights of a file, if there is one; where they are from, or None if they are as drawn."""
    if file is not None:
        path = Path(file)
        loaded = checkpoints.read(path, network, key=key, name=spec.name)
        network.load_state_dict(loaded.weights)
        return f"file {path.name}, {loaded.read_as}"
    return "given" if isinstance(spec.object, nn.Module) else None


def _initial(experiment: Experiment, student: nn.Module) -> Initial | None:
    """What every student starts from, where that isn't drawn; `student` is given it."""
    if _given_weights(student, experiment.networks.student, experiment.student, "student") is None:
        return None
    return Initial(weights=student.state_dict(), digest=weights_digest(student))


def _trained(
    experiment: Experiment,
    setup: Setup,
    numerics: Numerics,
    network: nn.Module,
    number: int,
    on_epoch: Callable[[int, int], None] = lambda epoch, epochs: None,
) -> Taught:
    """A teacher from the store, or trained into it."""
    entry, _ = setup.finish(jobs.of_teacher(experiment, numerics, number), network, on_epoch=on_epoch)
    source = f"trained here for {experiment.teacher_training.epochs} epochs"
    flops = float(entry.facts["train_flops"])
    return _with_table(experiment, setup, numerics, network, entry.digest, source, flops)


def _with_table(
    experiment: Experiment,
    setup: Setup,
    numerics: Numerics,
    network: nn.Module,
    digest: str,
    source: str,
    flops: float,
) -> Taught:
    """A teacher whose outputs are shared by the processes that use this store on this machine, where that can be."""
    identity = {
        "teacher": digest,
        "data": setup.data.fingerprint,
        "code": jobs.code_digest(experiment.networks.teacher, ()),
        "environment": jobs.environment(setup.data.mean.device, numerics),
    }
    return Taught(Teacher(network, setup.data, folder=setup.store.table(identity)), digest, source, flops)


def check(experiment: Experiment, data: Data) -> None:
    """Refuse networks, files of weights and methods of the user's own that can't be used, before work starts.

    Raises:
        ValueError: one of them can't, or raises an exception; told in one line.
    """
    student, teacher = (
        fresh(spec, data, seed=0) for spec in (experiment.networks.student, experiment.networks.teacher)
    )
    _given_weights(teacher, experiment.networks.teacher, experiment.teacher, "teacher")
    _initial(experiment, student)
    _check_own(experiment, data, student, teacher)


def _check_own(experiment: Experiment, data: Data, student: nn.Module, teacher: nn.Module) -> None:
    """Try networks, and methods of the user's own, on two images."""
    mine, answer = stage.probe(student, data), stage.probe(teacher, data)
    labels = data.train.labels[:2]
    for name in methods.own():
        file = f"{name}.py"
        module = methods.load(name)
        if not hasattr(module, "reads") and not hasattr(module, "READS"):
            raise ValueError(f"{file} must say READS, which of the teacher's outputs it looks at, such as {{'logits'}}")
        own = Stage(methods=(name,)).of_methods(experiment.defaults)[name]
        try:
            with torch.random.fork_rng(devices=[]):
                built = module.build(Task(mine, answer, own, data.train.labels)).to(labels.device)
                terms = built(mine, answer, Batch(labels, torch.arange(2, device=labels.device)))
            if not all(isinstance(loss, torch.Tensor) and loss.dim() == 0 for loss in terms.values()):
                raise TypeError("losses must be scalar tensors by name")
        except Exception as error:  # whatever a user's code may raise
            raise ValueError(f"method {name}: {blame.told(error, code.path_of(file))}") from error


def load_data(experiment: Experiment) -> Data:
    """The experiment's data, in memory or as files, on the CPU.

    Raises:
        ValueError: they are missing, or the pair can't take their images.
    """
    settings: dict[str, Any] = {name: getattr(experiment, name) for name in _OF_DATA}
    if code.is_file(experiment.data):
        parts = _asked(code.load(experiment.data, "data"), experiment.data)
        loaded = sources.of_parts(experiment.data, parts, **settings)
    elif "data" in experiment.objects:
        loaded = sources.of_parts(experiment.data, experiment.objects["data"], **settings)
    else:
        folder = None if experiment.data_dir is None else Path(experiment.data_dir)
        loaded = datasets.load(experiment.data, data_dir=folder, **settings)
    pairs.check_images(experiment.networks, height=loaded.height, width=loaded.width)
    return loaded


def _asked(function: Any, name: str) -> Any:
    """What a user's function says that the data are."""
    try:
        return function()
    except (Exception, SystemExit) as error:  # whatever a user's code may raise
        raise ValueError(f"data={name}: {blame.told(error, code.path_of(name.partition(':')[0]))}") from error


def fresh(spec: Network, data: Data, *, seed: int) -> nn.Module:
    """A network with initial weights that depend on the seed alone, on the data's device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = models.build(spec, **data.shape)
    # GPUs compute convolutions in this layout; others keep the order the weights are stored in
    layout = torch.channels_last if data.mean.device.type == "cuda" else torch.contiguous_format
    return network.to(data.mean.device).to(memory_format=layout)


def weights_digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
