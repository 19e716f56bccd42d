"""Similarity-preserving knowledge distillation (Tung and Mori 2019, arXiv 1907.09682, eq. 1 to 3), on the last maps."""

from __future__ import annotations

from torch import Tensor

from smskd.methods.base import Batch, Method, Task, View, check_one_batch, unit_rows
from smskd.settings import Setting, weight

READS = frozenset({"features"})
SETTINGS = (
    weight(3000.0),
    Setting(
        "layer",
        -1,
        "which feature maps are compared: -1 the last ones, -2 those before; 0, the middle ones",
        low=-20,
        high=0,
    ),
)


def similarity_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference, over all B x B pairs, of Gram matrices with rows of length 1.

    Args:
        student_map: [B, C, H, W].
        teacher_map: [B, D, I, J]; no gradient goes into it.

    Returns:
        A float32 scalar; 0 for a single sample. A sample of zeros has a row of zeros.

    Raises:
        ValueError: the maps don't have four dimensions and one batch.
    """
    check_one_batch("feature maps", student_map, teacher_map, ndim=4, shape="[B, C, H, W] and [B, D, I, J]")
    return (_similarities(student_map) - _similarities(teacher_map.detach())).square().mean().float()


def _similarities(maps: Tensor) -> Tensor:
    """[B, B] of maps [B, C, H, W], float64."""
    x = maps.flatten(1).double()
    # a row's own length would be divided out again: without it, no row of a small sample vanishes
    return unit_rows(unit_rows(x) @ x.T)


class SP(Method):
    """similarity_loss of a feature map of each network, weighted."""

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        maps = (view.map(self.settings["layer"]) for view in (student, teacher))
        return {"sp": self.settings["weight"] * similarity_loss(*maps)}


def build(task: Task) -> Method:
    """SP has no parameters and takes maps of any shapes."""
    for view in (task.student, task.teacher):
        view.map(task.settings["layer"])  # told before work starts if there is none
    return SP(task.settings)
