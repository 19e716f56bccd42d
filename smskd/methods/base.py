"""What a distillation method is: weighted, named losses of a batch, and the parameters they need.

A method's file has, beside its pure loss functions:
    READS    which of the teacher's outputs it looks at: "logits", "embedding", "hint", "features"; others may be empty
    WEIGHTS  its published loss weights by name, which a pair may override
    build(task) -> Method
    TEMPERATURE  if it softens logits: what several teachers' probabilities are averaged at (1 if it says nothing)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from smskd.models import Output


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
    """A method with its weights; parameters of its own (regressors) live and die with the stage."""

    @abstractmethod
    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        """Named, weighted scalar losses; their sum is what the stage minimises."""
