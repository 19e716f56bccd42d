"""FitNets hints: the student's middle feature map, regressed, meets the teacher's (arXiv 1412.6550, eq. 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from smskd.methods.base import Batch, Method, Task, View
from smskd.settings import Setting, weight

SETTINGS = (
    weight(100.0),
    Setting(
        "layer",
        0,
        "which feature maps meet: 0, each network's middle one; -1 the last ones, -2 those before",
        low=-20,
        high=0,
    ),
    Setting("relu", False, "a ReLU behind the regressor, as in distillation benchmarks"),
)


def reads(settings: Mapping[str, Any]) -> frozenset[str]:
    """The hint alone, or all maps where another layer is asked for."""
    return frozenset({"hint"} if settings["layer"] == 0 else {"features"})


def hint_loss(student_hint: Tensor, teacher_hint: Tensor) -> Tensor:
    """Mean squared error of two feature maps of the same shape, in float32; no gradient goes into the teacher's.

    Raises:
        ValueError: the shapes differ (a regressor has to come between).
    """
    if student_hint.shape != teacher_hint.shape:
        raise ValueError(
            f"hints must have one shape, but got student {tuple(student_hint.shape)} and teacher "
            f"{tuple(teacher_hint.shape)}: put a Regressor between them"
        )
    return F.mse_loss(student_hint.float(), teacher_hint.detach().float())


class Regressor(nn.Sequential):
    """A convolution and batch norm from one feature-map shape to another.

    Shapes are (C, H, W). A larger map is reduced by stride, a smaller one grown by a transposed convolution.
    """

    def __init__(self, source: tuple[int, int, int], target: tuple[int, int, int]) -> None:
        (channels_in, *size_in), (channels_out, *size_out) = source, target
        steps = [_step(a, b) for a, b in zip(size_in, size_out, strict=True)]
        growing = any(grows for grows, *_ in steps)
        if growing and any(not grows and a != b for (grows, *_), a, b in zip(steps, size_in, size_out, strict=True)):
            raise ValueError(
                f"a hint that grows in one direction and shrinks in the other isn't supported: {source} to {target}"
            )
        if growing:
            steps = [(True, 1, 1, 0) if a == b else s for s, a, b in zip(steps, size_in, size_out, strict=True)]
        _, kernel, stride, padding = zip(*steps, strict=True)
        layer = nn.ConvTranspose2d if growing else nn.Conv2d
        super().__init__(
            layer(channels_in, channels_out, kernel, stride, padding, bias=False), nn.BatchNorm2d(channels_out)
        )


def _step(source: int, target: int) -> tuple[bool, int, int, int]:
    """(grows, kernel, stride, padding) that lead from one side length to another."""
    if source == target:
        return False, 1, 1, 0
    if source > target:
        factor, rest = divmod(source, target)
        return (False, 3, factor, 1) if rest == 0 else (False, 1 + source - target, 1, 0)
    factor, rest = divmod(target, source)
    if rest:
        return True, 1 + target - source, 1, 0
    kernel = 2 * factor - factor % 2
    return True, kernel, factor, (kernel - factor) // 2


class FitNets(Method):
    """hint_loss behind a regressor that belongs to this stage alone; no ReLU by default, since hints can be signed."""

    def __init__(self, settings: Mapping[str, Any], regressor: Regressor) -> None:
        super().__init__(settings)
        self.regressor = regressor

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        of_student, of_teacher = (view.map(self.settings["layer"]) for view in (student, teacher))
        regressed = self.regressor(of_student.float())
        if self.settings["relu"]:
            regressed = regressed.relu()
        return {"fitnets": self.settings["weight"] * hint_loss(regressed, of_teacher)}


def build(task: Task) -> Method:
    """A regressor between the two hints' shapes, initialised from torch's global generator."""
    source, target = (tuple(view.map(task.settings["layer"]).shape[1:]) for view in (task.student, task.teacher))
    return FitNets(task.settings, Regressor(source, target))  # type: ignore[arg-type]
