"""What a distillation method is: weighted, named losses of a batch, and the parameters they need.

A method's file has, beside its pure loss functions:
    SETTINGS   what can be set: a tuple of smskd.settings' Setting(name, default, help, bounds), weight(default) and
               temperature(default), of plain values, since it is read without running the file. `weight` is of its one
               term, or a factor of all; at `temperature` the probabilities of several teachers are averaged
    CE_WEIGHT  where it is published with cross-entropy at less than 1: that weight
    READS      which of the teacher's outputs it looks at: "logits", "embedding", "hint", "features", "before_relu" (the
               maps before their ReLU); others may be empty. Or reads(settings), if that depends on them
    build(task) -> Method
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smskd.models import Output

# Shorter rows count as zero: their gradient, in proportion to 1 / length, would leave float32.
_SHORTEST = 1e-30


class View(NamedTuple):
    """One network's outputs and where FitNets' hint stands among them."""

    output: Output
    hint_index: int

    def map(self, layer: int) -> Tensor:
        """A feature map, [B, C, H, W]: 0, the hint, which is the middle block's; -1 the last one, -2 that before.

        Raises:
            ValueError: the network has fewer.
        """
        maps = self.output.features
        if layer and -layer > len(maps):
            raise ValueError(f"layer >= {-len(maps)} must hold, for the maps that there are, but got layer={layer}")
        return maps[layer or self.hint_index]


@dataclass(frozen=True)
class Batch:
    """What is known of the images of a step, beside what the networks say of them.

    labels: true classes, [B]. index: their places among the training images, [B]; empty on other images. epoch: of the
    stage, from 1.
    """

    labels: Tensor
    index: Tensor
    epoch: int = 1


@dataclass(frozen=True)
class Task:
    """What a method is built for.

    student, teacher: all outputs of two images, for shapes. settings: the method's own, each with its value. labels:
    of all training images, [N], on the device of the training.
    """

    student: View
    teacher: View
    settings: Mapping[str, Any]
    labels: Tensor


class Method(nn.Module, ABC):
    """A method with its settings; parameters and memory of its own live and die with the stage.

    In eval mode its loss is only measured: nothing of it changes, and the images may be none of the training ones.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = dict(settings)

    @abstractmethod
    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        """Weighted scalar losses, float32, by name; their sum is what the stage minimises.

        Names begin with the method's, since the terms of a joint stage lie in one table.

        The teacher's outputs are constants. The networks' outputs may be in half precision.
        """

    def warmed(self, batch: Batch) -> float:
        """How much a loss with a setting `warmup` counts in this epoch; in full, where it is only measured."""
        warmup = self.settings["warmup"]
        return min(batch.epoch / warmup, 1.0) if self.training and warmup else 1.0


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [B, D] divided by their lengths, in float64, in which no float32's square overflows or vanishes.

    A row of zeros stays so, and its gradient is zero.
    """
    x = rows.double()
    squared = x.square().sum(dim=1, keepdim=True)
    real = squared > _SHORTEST**2
    return x / torch.where(real, squared, 1.0).sqrt() * real


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two feature maps [B, C, H, W] and [B, D, h, w], averaged to the lesser height and the lesser width."""
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    shrunk = [x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size) for x in (student, teacher)]
    return shrunk[0], shrunk[1]


def check_one_batch(what: str, student: Tensor, teacher: Tensor, *, ndim: int, shape: str) -> None:
    """Refuse two tensors that aren't outputs for the images of one batch.

    Args:
        what: their name, in the plural. ndim: how many dimensions each must have. shape: these, to be told.

    Raises:
        ValueError: another number of dimensions, or two batch sizes; told with both shapes.
    """
    if student.ndim != ndim or teacher.ndim != ndim or len(student) != len(teacher):
        raise ValueError(
            f"{what} must be {shape} of one batch, but got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}"
        )
