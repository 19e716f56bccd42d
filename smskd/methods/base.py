"""What a distillation method is: weighted, named losses of a batch, and the parameters they need.

A method's file has, beside its pure loss functions:
    READS    which of the teacher's outputs it looks at: "logits", "embedding", "hint", "features"; others may be empty
    WEIGHTS  its published loss weights by the name of the loss term each multiplies, which a pair may override; names
             begin with the method's, since terms and weights of a joint stage lie in one table
    build(task) -> Method
    TEMPERATURE  if it softens logits: the default of its loss functions, and what the probabilities of several
                 teachers are averaged at (1 if it isn't there)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

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

    @property
    def hint(self) -> Tensor:
        """The middle block's feature map, [B, C, H, W]."""
        return self.output.features[self.hint_index]


@dataclass(frozen=True)
class Batch:
    """What is known of the images of a step, beside what the networks say of them.

    labels: true classes, [B]. index: their places among the training images, [B]; empty on other images.
    """

    labels: Tensor
    index: Tensor


@dataclass(frozen=True)
class Task:
    """What a method is built for.

    student, teacher: outputs of two images, for the shapes. weights: by name of the loss term. labels: of all training
    images, [N], on the device of the training.
    """

    student: View
    teacher: View
    weights: Mapping[str, float]
    labels: Tensor


class Method(nn.Module, ABC):
    """A method with its weights; parameters and memory of its own live and die with the stage.

    In eval mode its loss is only measured: nothing of it changes, and the images may be none of the training ones.
    """

    @abstractmethod
    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        """Weighted scalar losses, float32, by names from WEIGHTS; their sum is what the stage minimises.

        The teacher's outputs are constants. The networks' outputs may be in half precision.
        """


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
