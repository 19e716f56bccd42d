"""Knowledge review (Chen et al. 2021, arXiv 2104.09044, section 3): a student's deep maps help its shallow ones.

From the deepest level up, attention-based fusion (ABF) mixes a level's map with what came from below it; each result
meets the teacher's map of that level, as it is before its ReLU, in a hierarchical context loss (HCL). The deepest level
is the embedding as a map of one pixel, as in the authors' code. Their weight on CIFAR-100 differs from pair to pair,
0.6 to 8, and is 1 for ResNet-110 to ResNet-32 alone: pairs have their own. Their warm-up over the first 20 of 240
epochs is off unless asked for: a stage is short.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smskd.methods.base import Batch, Method, Task, View
from smskd.models import Output
from smskd.settings import Setting, weight

READS = frozenset({"before_relu", "embedding"})
SETTINGS = (
    weight(1.0),
    Setting("warmup", 0, "first epochs of the stage in which its loss rises to full weight", low=0, high=1_000_000),
)

# Sides that maps are averaged to; each counts half as much as the one before it, the full map counting 1.
LEVELS = (4, 2, 1)
_MAX_WIDTH = 512


def hierarchical_context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of two feature maps and of their averages over 4 x 4, 2 x 2 and 1 x 1 cells.

    Averages that aren't smaller than the map are left out. The weights 1, 1/2, 1/4, 1/8 of those that stay are made to
    sum to 1.

    Args:
        student: [B, C, H, W].
        teacher: [B, C, H, W]; no gradient goes into it.

    Returns:
        A scalar, in float32.

    Raises:
        ValueError: the shapes differ (a Fusion has to come between).
    """
    if student.shape != teacher.shape or student.ndim != 4:
        raise ValueError(
            f"feature maps must have one shape [B, C, H, W], but got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}: put a Fusion between them"
        )
    student, teacher = student.float(), teacher.detach().float()
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for side in (side for side in LEVELS if side < min(student.shape[2:])):
        weight /= 2
        total += weight
        pooled = [F.adaptive_avg_pool2d(maps, side) for maps in (student, teacher)]
        loss = loss + weight * F.mse_loss(pooled[0], pooled[1])
    return loss / total


class _Norm(nn.BatchNorm2d):
    """Batch norm that takes one image whose map is one pixel: it has no variance, so the running one serves."""

    def forward(self, input: Tensor) -> Tensor:
        if input.numel() > input.shape[1]:
            return super().forward(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class Fusion(nn.Module):
    """ABF of one level: the student's map, and what the level below it handed up, weighed pixel by pixel.

    channels_in: of the student's map. width: of what is handed up. channels_out: of the teacher's map.
    fuse: whether there is a level below.
    """

    def __init__(self, channels_in: int, width: int, channels_out: int, *, fuse: bool) -> None:
        super().__init__()
        narrow = nn.Conv2d(channels_in, width, 1, bias=False)
        widen = nn.Conv2d(width, channels_out, 3, padding=1, bias=False)
        for layer in (narrow, widen):
            nn.init.kaiming_uniform_(layer.weight, a=1)
        self.narrow = nn.Sequential(narrow, _Norm(width))
        self.attention = nn.Conv2d(2 * width, 2, 1) if fuse else None
        self.widen = nn.Sequential(widen, _Norm(channels_out))

    def forward(self, student: Tensor, below: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """The map to compare with the teacher's of this height and width, and the one to hand up."""
        maps: Tensor = self.narrow(student)
        if self.attention is not None:
            assert below is not None, "a level that fuses has one below it"
            below = _sized(below, maps.shape[2:])
            share = self.attention(torch.cat([maps, below], dim=1)).sigmoid()
            maps = maps * share[:, :1] + below * share[:, 1:]
        maps = _sized(maps, size)
        return self.widen(maps), maps


def _sized(maps: Tensor, size: torch.Size) -> Tensor:
    return maps if maps.shape[2:] == size else F.interpolate(maps, tuple(size), mode="nearest")


class ReviewKD(Method):
    """The sum over levels of hierarchical_context_loss behind a Fusion, weighted.

    Levels are paired from the deepest backwards, as many as the network with fewer has; the other's shallowest are left
    out.
    """

    def __init__(self, settings: Mapping[str, Any], fusions: list[Fusion]) -> None:
        super().__init__(settings)
        self.fusions = nn.ModuleList(fusions)

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        below: Tensor | None = None
        losses = []
        levels = (levels[: len(self.fusions)] for levels in _both(student, teacher))
        for fusion, of_student, of_teacher in zip(self.fusions, *levels, strict=True):
            fused, below = fusion(of_student, below, of_teacher.shape[2:])
            losses.append(hierarchical_context_loss(fused, of_teacher))
        return {"reviewkd": self.settings["weight"] * self.warmed(batch) * torch.stack(losses).sum()}


def _levels(output: Output, maps: Sequence[Tensor]) -> list[Tensor]:
    """The embedding as a map of one pixel, then the maps, deepest first, in float32."""
    return [output.embedding.float()[:, :, None, None], *(one.float() for one in reversed(maps))]


def _both(student: View, teacher: View) -> tuple[list[Tensor], list[Tensor]]:
    mine, answer = student.output, teacher.output
    return _levels(mine, mine.features), _levels(answer, answer.before_relu)


def build(task: Task) -> Method:
    """A Fusion for each pair of levels, deepest first, initialised from torch's global generator."""
    student, teacher = ([level.shape[1] for level in levels] for levels in _both(task.student, task.teacher))
    width = min(_MAX_WIDTH, student[0])
    fusions = [
        Fusion(channels_in, width, channels_out, fuse=depth > 0)
        for depth, (channels_in, channels_out) in enumerate(zip(student, teacher, strict=False))
    ]
    return ReviewKD(task.settings, fusions)
