"""What a distillation method is: weighted, named losses of a batch, and the parameters they need.

A method's file has, beside its pure loss functions:
    READS    which of the teacher's outputs it looks at: "logits", "embedding", "hint", "features"; others may be empty
    WEIGHTS  its published loss weights by name, which a pair may override
    build(student, teacher, weights) -> Method, where student and teacher are Output of a probe batch, for the shapes
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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


class Method(nn.Module, ABC):
    """A method with its weights; parameters of its own (regressors) live and die with the stage."""

    @abstractmethod
    def forward(self, student: View, teacher: View, labels: Tensor) -> dict[str, Tensor]:
        """Named, weighted scalar losses; their sum is what the stage minimises."""
