"""Attention transfer (Zagoruyko and Komodakis 2017, arXiv 1612.03928, eq. 2, activation-based, with squares).

A pair's loss is the mean over positions of the squared difference, as in the common comparisons (arXiv 1910.10699) that
the weight comes from; the paper has the norm of the difference. Gradient-based attention isn't here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from smskd.methods.base import Batch, Method, Task, View, check_one_batch, same_size, unit_rows
from smskd.settings import weight

READS = frozenset({"features"})
SETTINGS = (weight(1000.0),)

# Maps whose largest value is below this count as zero; unit_rows has the same limit.
_SMALLEST = 1e-30


def attention_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of two feature maps' attention, each sample's of length 1.

    Attention is the mean over channels of the squares. Where heights or widths differ, the larger map is averaged
    (adaptive pooling, before the squares) to the smaller size, in each direction for itself.

    Args:
        student_map: [B, C, H, W].
        teacher_map: [B, D, I, J]; no gradient goes into it.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: the maps don't have four dimensions and one batch.
    """
    check_one_batch("feature maps", student_map, teacher_map, ndim=4, shape="[B, C, H, W] and [B, D, I, J]")
    student, teacher = same_size(_scaled(student_map), _scaled(teacher_map.detach()))
    return (_attention(student) - _attention(teacher)).square().mean().float()


def _scaled(maps: Tensor) -> Tensor:
    """Each sample with its largest value at 1: attention doesn't see a scale, and so no square overflows."""
    x = maps.float()
    largest = x.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
    return x / torch.where(largest > _SMALLEST, largest, 1.0)


def _attention(maps: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, positions], float64."""
    return unit_rows(maps.square().mean(dim=1).flatten(1))


def at_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Sum of attention_loss over pairs of maps, from the deepest backwards.

    The last maps make a pair, then those before them, until one network has none left: with 2 and 3 maps, the pairs are
    (2, 3) and (1, 2). Networks of equally many blocks meet block by block.

    Args:
        student_maps: shallow to deep, [B, C, H, W] each.
        teacher_maps: likewise; no gradient goes into them.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: a network has no maps, or a pair isn't fit for attention_loss.
    """
    if not student_maps or not teacher_maps:
        raise ValueError(
            f"attention needs a feature map of each network, but got {len(student_maps)} of the student and "
            f"{len(teacher_maps)} of the teacher"
        )
    pairs = zip(reversed(student_maps), reversed(teacher_maps), strict=False)
    return torch.stack([attention_loss(s, t) for s, t in pairs]).sum()


class AT(Method):
    """at_loss, weighted."""

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        return {"at": self.settings["weight"] * at_loss(student.output.features, teacher.output.features)}


def build(task: Task) -> Method:
    """AT has no parameters and takes maps of any shapes."""
    return AT(task.settings)
