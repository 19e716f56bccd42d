"""Variational information distillation (Ahn et al. 2019, arXiv 1904.05835, section 2).

The more likely the teacher's feature map is under a Gaussian that the student's map predicts, the larger is a lower
bound of the information that the two share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smskd.methods.base import Batch, Method, Task, View, same_size
from smskd.settings import weight

READS = frozenset({"features"})
SETTINGS = (weight(1.0),)

INITIAL_VARIANCE = 5.0
# The smallest variance.
_EPS = 1e-5


def negative_log_likelihood(mean: Tensor, variance: Tensor, target: Tensor) -> Tensor:
    """Of a teacher's feature map under a Gaussian with a variance a channel, less the constant log(2 pi) / 2.

    Args:
        mean: predicted, [B, C, H, W].
        variance: [C], above 0.
        target: the teacher's map, [B, C, H, W]; no gradient goes into it.

    Returns:
        A scalar, the mean over all elements, in float32.

    Raises:
        ValueError: the shapes don't fit each other.
    """
    if mean.shape != target.shape or mean.ndim != 4 or variance.shape != mean.shape[1:2]:
        raise ValueError(
            "mean and target must have one shape [B, C, H, W] and variance [C], but got mean "
            f"{tuple(mean.shape)}, target {tuple(target.shape)} and variance {tuple(variance.shape)}"
        )
    spread = variance.float().view(1, -1, 1, 1)
    return ((mean.float() - target.detach().float()).square() / spread + spread.log()).mean() / 2


class Gaussian(nn.Module):
    """The teacher's map as a student's map predicts it: three 1x1 convolutions for its mean, a variance a channel.

    The hidden layers are as wide as the teacher's map, and convolutions have no bias, as in the authors' code.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 1, bias=False),
        )
        self.scale = nn.Parameter(torch.full((channels_out,), math.log(math.expm1(INITIAL_VARIANCE - _EPS))))

    @property
    def variance(self) -> Tensor:
        """Of each channel, [C], above 0."""
        return F.softplus(self.scale) + _EPS

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of two feature maps of any two sizes."""
        source, target = same_size(student.float(), teacher.detach().float())
        return negative_log_likelihood(self.mean(source), self.variance, target)


class VID(Method):
    """The sum over pairs of feature maps, weighted.

    Maps are paired from the deepest backwards, as many as the network with fewer has; the other's shallowest are left
    out.
    """

    def __init__(self, settings: Mapping[str, Any], gaussians: list[Gaussian]) -> None:
        super().__init__(settings)
        self.gaussians = nn.ModuleList(gaussians)

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        maps = zip(self.gaussians, student.output.features[::-1], teacher.output.features[::-1], strict=False)
        losses = [gaussian(of_student, of_teacher) for gaussian, of_student, of_teacher in maps]
        return {"vid": self.settings["weight"] * torch.stack(losses).sum()}


def build(task: Task) -> Method:
    """A predictor for each pair of maps, deepest first, initialised from torch's global generator."""
    pairs = zip(task.student.output.features[::-1], task.teacher.output.features[::-1], strict=False)
    return VID(task.settings, [Gaussian(student.shape[1], teacher.shape[1]) for student, teacher in pairs])
