"""The table of teacher/student pairs, with the settings each is trained at. Values only: no torch, nothing is built.

A pair's networks are built by name in smskd.models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from smskd import names

# names of torchvision's networks, taken as they are, begin so: networks made for 32 x 32 have some of the same names
TORCHVISION = "torchvision/"
LearningRateSchedule = Literal["step", "one_cycle"]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of smskd.models by name.

    min_size: the smallest side of a square image that it can take, in pixels and in batches of at least two: batch norm
        can't train on one image whose map is one pixel.
    only_size: the one side that it can take, in pixels, where it can take no other; None: any from min_size.
    """

    name: str
    min_size: int
    only_size: int | None = None

    def __post_init__(self) -> None:
        _require(self.min_size >= 1, "min_size >= 1", min_size=self.min_size)
        if self.only_size is not None:
            _require(self.only_size == self.min_size, "only_size == min_size", only_size=self.only_size)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a network is optimised: stochastic gradient descent, with a learning rate that starts anew with each stage.

    batch_size: images a step. learning_rate: its start (`step`) or its peak (`one_cycle`).
    """

    batch_size: int
    learning_rate: float
    momentum: float
    nesterov: bool
    weight_decay: float
    schedule: LearningRateSchedule

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, "batch_size >= 1", batch_size=self.batch_size)
        _require(0 < self.learning_rate < math.inf, "0 < learning_rate < inf", learning_rate=self.learning_rate)
        _require(0 <= self.momentum < 1, "0 <= momentum < 1", momentum=self.momentum)
        _require(not self.nesterov or self.momentum > 0, "momentum > 0 with nesterov", momentum=self.momentum)
        _require(0 <= self.weight_decay < math.inf, "0 <= weight_decay < inf", weight_decay=self.weight_decay)
        names.check("schedule", self.schedule, get_args(LearningRateSchedule))


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A teacher, a student, and the settings at which they are trained when nothing else is asked for.

    epochs: of the student, per stage. teacher_epochs: of the teacher, in all.
    loss_weights: by name of the loss term, where they differ from the methods' published ones.
    """

    name: str
    teacher: Network
    student: Network
    teacher_schedule: Schedule
    student_schedule: Schedule
    epochs: int
    teacher_epochs: int
    loss_weights: Mapping[str, float]

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "epochs >= 1", epochs=self.epochs)
        _require(self.teacher_epochs >= 1, "teacher_epochs >= 1", teacher_epochs=self.teacher_epochs)
        for term, weight in self.loss_weights.items():
            _require(0 <= weight < math.inf, f"0 <= loss_weights[{term!r}] < inf", **{term: weight})

    @property
    def min_size(self) -> int:
        """The smallest side of a square image that both networks can take, in pixels."""
        return max(self.teacher.min_size, self.student.min_size)


def get(name: str) -> Pair:
    """The pair of this name.

    Raises:
        ValueError: there is none; the message names the valid choices and the nearest one.
    """
    return PAIRS[names.check("pair", name, PAIRS)]


def split_epochs(stages: int, pair: Pair, *, epochs: int | None, epochs_total: int | None) -> list[int]:
    """Epochs of each stage.

    Raises:
        ValueError: both are given, or a stage would have none.
    """
    if epochs is not None and epochs_total is not None:
        raise ValueError(
            f"epochs= is for each stage and epochs_total= for all of them: leave one out of epochs={epochs} and "
            f"epochs_total={epochs_total}"
        )
    if epochs_total is None:
        each = [pair.epochs if epochs is None else epochs] * stages
    else:
        each = [epochs_total // stages + (place < epochs_total % stages) for place in range(stages)]
    if min(each) < 1:
        given = f"epochs={epochs}" if epochs_total is None else f"epochs_total={epochs_total} for {stages} stages"
        raise ValueError(f"each stage needs at least 1 epoch, but got {given}")
    return each


def choose(pair: str | None, teacher_model: str | None, student_model: str | None) -> Pair:
    """The pair that is asked for: by its name (None: `tiny`), or by two models of torchvision.

    Raises:
        ValueError: there is no such pair or model, one model is missing, or a pair is named beside the models.
    """
    if teacher_model is None and student_model is None:
        return get("tiny" if pair is None else pair)
    if teacher_model is None or student_model is None:
        missing = "teacher_model" if teacher_model is None else "student_model"
        raise ValueError(f"teacher_model= and student_model= go together, but {missing}= is missing; add it")
    made = of_models(teacher_model, student_model)
    if pair not in (None, made.name):  # a Config or best.yaml of these models bears the pair's name, too
        raise ValueError(f"teacher_model= and student_model= make a pair by themselves: leave pair={pair} out")
    return made


def of_models(teacher: str, student: str) -> Pair:
    """A pair of two classifiers of torchvision, at the settings customary on ImageNet.

    SGD, batches of 64, learning rate 0.1, momentum 0.9, weight decay 1e-4, `step`; 30 epochs a stage, 90 a teacher.

    Raises:
        ValueError: torchvision has no classifier of one of these names; the message names the nearest one.
    """
    import torchvision.models  # takes seconds

    valid = torchvision.models.list_models(module=torchvision.models)
    for key, name in (("teacher_model", teacher), ("student_model", student)):
        names.check(key, name, valid)
    schedule = Schedule(
        batch_size=64, learning_rate=0.1, momentum=0.9, nesterov=False, weight_decay=1e-4, schedule="step"
    )
    name = f"{teacher}_{student}"
    return Pair(
        name=f"{name}_torchvision" if name in PAIRS else name,
        teacher=_torchvision(teacher),
        student=_torchvision(student),
        teacher_schedule=schedule,
        student_schedule=schedule,
        epochs=30,
        teacher_epochs=90,
        loss_weights={},
    )


def check_images(pair: Pair, *, height: int, width: int) -> None:
    """Refuse a pair that can't take images of this height and width (pixels).

    Raises:
        ValueError: the images are too small, or not of the one size that a network takes; the message has the mend.
    """
    side = min(height, width)
    for network in (pair.teacher, pair.student):
        if network.only_size is not None and (height, width) != (network.only_size,) * 2:
            raise ValueError(
                f"pair={pair.name}: {network.name} takes images of {network.only_size} x {network.only_size} pixels "
                f"alone, but data has {height} x {width}: set image_size={network.only_size} with data=folder, or "
                f"choose another pair"
            )
    if side >= pair.min_size:
        return
    others = ", ".join(p.name for p in PAIRS.values() if side >= p.min_size)
    raise ValueError(
        f"pair={pair.name} needs images of at least {pair.min_size} x {pair.min_size} pixels, but data has "
        f"{height} x {width}: choose another pair ({others}) or larger images"
    )


def _require(holds: bool, invariant: str, **values: float) -> None:
    if not holds:
        got = ", ".join(f"{name}={value}" for name, value in values.items())
        raise ValueError(f"`{invariant}` must hold, but got ({got})")


def _network(name: str, min_size: int = 1) -> Network:
    # strides are padded convolutions, so that one pixel stays one pixel; pools are not
    return Network(name=name, min_size=min_size)


def _torchvision(name: str) -> Network:
    """Sizes as tried. Most networks halve the side five times: below 32 pixels their last map would be a fraction."""
    only = 224 if name.startswith(("vit_", "maxvit_")) else None  # learned positions, or windows that must divide
    smallest = {"inception_v3": 75, "alexnet": 63}.get(name, 32)
    return Network(name=TORCHVISION + name, min_size=only or smallest, only_size=only)


def _cifar_schedule(learning_rate: float) -> Schedule:
    return Schedule(
        batch_size=64, learning_rate=learning_rate, momentum=0.9, nesterov=False, weight_decay=5e-4, schedule="step"
    )


def _cifar(name: str, teacher: Network, student: Network, *, student_learning_rate: float) -> Pair:
    return Pair(
        name=name,
        teacher=teacher,
        student=student,
        teacher_schedule=_cifar_schedule(0.05),
        student_schedule=_cifar_schedule(student_learning_rate),
        epochs=50,
        teacher_epochs=200,
        loss_weights={},
    )


def _tiny_schedule(learning_rate: float) -> Schedule:
    return Schedule(
        batch_size=50, learning_rate=learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4, schedule="one_cycle"
    )


_TABLE = (
    Pair(
        name="tiny",
        teacher=_network("tiny_teacher"),
        student=_network("tiny_student"),
        teacher_schedule=_tiny_schedule(0.05),
        student_schedule=_tiny_schedule(0.2),
        epochs=12,
        teacher_epochs=12,
        # the published weights are for larger networks; these were tried on digits' validation split (LOG.md)
        loss_weights={"fitnets": 10.0, "at": 10.0, "sp": 300.0, "dkd_nckd": 1.0},
    ),
    _cifar("resnet50_mobilenetv2", _network("resnet50"), _network("mobilenetv2_half"), student_learning_rate=0.01),
    _cifar("wrn40_2_shufflenetv2", _network("wrn40_2"), _network("shufflenetv2"), student_learning_rate=0.01),
    # four pools
    _cifar("vgg19_resnet18", _network("vgg19", min_size=16), _network("resnet18"), student_learning_rate=0.05),
    _cifar("resnet32x4_resnet8x4", _network("resnet32x4"), _network("resnet8x4"), student_learning_rate=0.05),
    _cifar("resnet56_resnet20", _network("resnet56"), _network("resnet20"), student_learning_rate=0.05),
)

PAIRS: dict[str, Pair] = {pair.name: pair for pair in _TABLE}
