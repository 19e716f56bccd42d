"""The pairs of teacher and student, one a file of this folder, with the settings that suit them. Values only: no torch.

A file says PAIR, and is named as the pair; there is nothing to register. A network is built by the module that it
names: a file of smskd.models, or the pair's own.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field

from smskd import names
from smskd.recipe import declaration
from smskd.settings import Value
from smskd.training import TEACHER_SETTINGS

# names of torchvision's networks, taken as they are, begin so: networks made for 32 x 32 have some of the same names
TORCHVISION = "torchvision/"


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network by name.

    built_by: the module whose build(name, num_classes=, in_channels=) makes it.
    min_size: the smallest side of a square image that it can take, in pixels and in batches of at least two: batch norm
        can't train on one image whose map is one pixel.
    only_size: the one side that it can take, in pixels, where it can take no other; None: any from min_size.
    """

    name: str
    built_by: str
    min_size: int = 1  # strides are padded convolutions, so that one pixel stays one pixel; pools are not
    only_size: int | None = None

    def __post_init__(self) -> None:
        _require(self.min_size >= 1, "min_size >= 1", min_size=self.min_size)
        if self.only_size is not None:
            _require(self.only_size == self.min_size, "only_size == min_size", only_size=self.only_size)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A teacher, a student, and the settings at which they are trained when nothing else is asked for.

    defaults: by flat key (`epochs`, `fitnets.weight`, `teacher_epochs`), where they differ from what is declared; a
        setting of the training counts for the teacher, too, unless that has its own.

    Raises:
        ValueError: a default is no setting, or out of bounds.
    """

    name: str
    teacher: Network
    student: Network
    defaults: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, value in self.defaults.items():
            one = TEACHER_SETTINGS.get(key) or declaration(key)
            if one is None:
                raise ValueError(f"defaults of pair {self.name}: there is no setting {key!r}")
            one.read(value)

    @property
    def min_size(self) -> int:
        """The smallest side of a square image that both networks can take, in pixels."""
        return max(self.teacher.min_size, self.student.min_size)


def available() -> tuple[str, ...]:
    """Names of all pairs, the small one first."""
    return tuple(sorted((m.name for m in pkgutil.iter_modules(__path__)), key=lambda name: (name != "tiny", name)))


def get(name: str) -> Pair:
    """The pair of this name.

    Raises:
        ValueError: there is none; the message names the valid choices and the nearest one. Or its file says no PAIR.
    """
    module = importlib.import_module(f"{__name__}.{names.check('pair', name, available())}")
    pair = getattr(module, "PAIR", None)
    if not isinstance(pair, Pair) or pair.name != name:
        raise ValueError(f"smskd/pairs/{name}.py must say PAIR = Pair(name={name!r}, ...), but says {pair!r}")
    return pair


def network(name: str) -> Network:
    """A network of some pair, or of torchvision, by its name.

    Raises:
        ValueError: there is none.
    """
    if name.startswith(TORCHVISION):
        return _torchvision(name.removeprefix(TORCHVISION))
    pairs = (get(pair) for pair in available())
    found = {one.name: one for pair in pairs for one in (pair.teacher, pair.student)}
    return found[names.check("network", name, found)]


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
    if pair not in (None, made.name):  # what was chosen before bears the pair's name, too
        raise ValueError(f"teacher_model= and student_model= make a pair by themselves: leave pair={pair} out")
    return made


def of_models(teacher: str, student: str) -> Pair:
    """A pair of two classifiers of torchvision, at the settings customary on ImageNet, which are those declared.

    Raises:
        ValueError: torchvision has no classifier of one of these names; the message names the nearest one.
    """
    import torchvision.models  # takes seconds

    valid = torchvision.models.list_models(module=torchvision.models)
    for key, name in (("teacher_model", teacher), ("student_model", student)):
        names.check(key, name, valid)
    name = f"{teacher}_{student}"
    return Pair(
        name=f"{name}_torchvision" if name in available() else name,
        teacher=_torchvision(teacher),
        student=_torchvision(student),
        defaults={"teacher_epochs": 90},
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
    others = ", ".join(name for name in available() if side >= get(name).min_size)
    raise ValueError(
        f"pair={pair.name} needs images of at least {pair.min_size} x {pair.min_size} pixels, but data has "
        f"{height} x {width}: choose another pair ({others}) or larger images"
    )


def _require(holds: bool, invariant: str, **values: float) -> None:
    if not holds:
        got = ", ".join(f"{name}={value}" for name, value in values.items())
        raise ValueError(f"`{invariant}` must hold, but got ({got})")


def _torchvision(name: str) -> Network:
    """Sizes as tried. Most networks halve the side five times: below 32 pixels their last map would be a fraction."""
    only = 224 if name.startswith(("vit_", "maxvit_")) else None  # learned positions, or windows that must divide
    smallest = {"inception_v3": 75, "alexnet": 63}.get(name, 32)
    built_by = "smskd.models.torchvision_any"
    return Network(name=TORCHVISION + name, built_by=built_by, min_size=only or smallest, only_size=only)


# what is customary on CIFAR: 50 epochs a stage, of 150 in all
CIFAR: Mapping[str, Value] = {
    "epochs": 50, "batch_size": 64, "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "step",
    "teacher_epochs": 200, "teacher_learning_rate": 0.05,
}  # fmt: skip
