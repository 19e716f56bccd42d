"""The pairs of teacher and student, one a file of this folder, with the settings that suit them. Values only: no torch.

A file says PAIR, and is named as the pair; there is nothing to register. One elsewhere is named by its path.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType

from smskd import code, components, names
from smskd.components import Network
from smskd.recipe import declaration
from smskd.settings import Value
from smskd.training import TEACHER_SETTINGS


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
    """The pair of this name, or of a file: `my_pair.py`.

    Raises:
        ValueError: there is none; the message names the valid choices and the nearest one. Or its file says no PAIR.
    """
    if code.is_file(name):
        module: ModuleType = code.load(name, "pair")
        file, called = code.named(name), code.named(name).removesuffix(".py")
    else:
        module = importlib.import_module(f"{__name__}.{names.check('pair', name, available())}")
        file, called = f"smskd/pairs/{name}.py", name
    pair = getattr(module, "PAIR", None)
    if not isinstance(pair, Pair) or pair.name != called:
        raise ValueError(f"{file} must say PAIR = Pair(name={called!r}, ...), but says {pair!r}")
    return pair


def choose(
    pair: str | None,
    teacher: Network | None,
    student: Network | None,
    *,
    layers: Mapping[str, Sequence[str] | None] | None = None,
) -> Pair:
    """The pair that is asked for: by its name (None: `tiny`), or by two networks.

    layers: of `teacher` and `student`, if others than the usual are looked at.

    Raises:
        ValueError: there is no such pair, one network is missing, or a pair is named beside the networks.
    """
    if teacher is None and student is None:
        made = get("tiny" if pair is None else pair)
    elif teacher is None or student is None:
        missing = "teacher_model" if teacher is None else "student_model"
        raise ValueError(f"teacher_model= and student_model= go together, but {missing}= is missing; add it")
    else:
        made = of_networks(teacher, student)
        if pair not in (None, made.name):  # what was chosen before bears the pair's name, too
            raise ValueError(f"teacher_model= and student_model= make a pair by themselves: leave pair={pair} out")
    for role, chosen in (layers or {}).items():
        if chosen is not None:
            looked_at = dataclasses.replace(getattr(made, role), layers=tuple(chosen))
            made = dataclasses.replace(made, **{role: looked_at})
    return made


def of_networks(teacher: Network, student: Network) -> Pair:
    """A pair of any two networks: as shipped if there is one of these two, else at the settings customary for them.

    These are CIFAR's for two networks of `cifar/`, else ImageNet's, which are those declared.
    """
    for one in map(get, available()):
        if (one.teacher, one.student) == (teacher, student):
            return one
    name = f"{teacher.short}_{student.short}"
    small = all(one.kind == components.CIFAR for one in (teacher, student))
    return Pair(
        name=f"{name}_torchvision" if name in available() else name,
        teacher=teacher,
        student=student,
        defaults={**CIFAR, **_SMALL_STEPS[student.short.startswith(_LIGHT)]} if small else {"teacher_epochs": 90},
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


# what is customary on CIFAR: 50 epochs a stage, of 150 in all
CIFAR: Mapping[str, Value] = {
    "epochs": 50, "batch_size": 64, "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "step",
    "teacher_epochs": 200, "teacher_learning_rate": 0.05,
}  # fmt: skip
# light students are trained there at a fifth of the rate
_LIGHT = ("mobilenet", "shufflenet")
_SMALL_STEPS: Mapping[bool, Mapping[str, Value]] = {True: {"learning_rate": 0.01}, False: {}}
