"""DIST: Pearson correlations of the two networks' probabilities (Huang et al. 2022, arXiv 2205.10536, eq. 9 to 11).

A distance is 1 - correlation, so a student may be surer or less sure than its teacher: the order is what it learns.
Computed in float64, in which probabilities far below float32's smallest have a variance.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from smskd.methods.base import Batch, Method, Task, View
from smskd.settings import Setting, temperature, weight

READS = frozenset({"logits"})
SETTINGS = (
    weight(1.0, "factor of both terms"),
    Setting("inter", 2.0, "weight of the distances within samples", low=0),
    Setting("intra", 2.0, "weight of the distances within classes", low=0),
    temperature(4.0),
)

# A row whose squared deviations are below this share of its squares varies by float32's rounding alone.
_ROUNDING = 1e-13
# Below this sum of squares, 1 / length to the third power, which the gradient needs, leaves float64.
_TINY = 1e-200


def inter_class_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Mean over samples of the distance between two networks' probabilities of all classes, times temperature squared.

    Args:
        student_logits: [B, classes].
        teacher_logits: [B, classes]; no gradient goes into them.
        temperature: above 0.

    Returns:
        A float32 scalar in [0, 2 * temperature^2]. A sample whose probabilities are all equal, in either network, has
        no correlation: it adds 0 to the sum.

    Raises:
        ValueError: the shapes differ or aren't these, or the temperature isn't above 0.
    """
    return _distance(*_probabilities(student_logits, teacher_logits, temperature)) * temperature**2


def intra_class_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Mean over classes of the distance between two networks' probabilities of all samples, times temperature squared.

    Arguments, result and errors are inter_class_loss's. A class equally probable for all samples adds 0 to the sum, so
    a batch of 1 has loss 0.
    """
    student, teacher = _probabilities(student_logits, teacher_logits, temperature)
    return _distance(student.T, teacher.T) * temperature**2


def _probabilities(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student and teacher logits must both be [B, classes], but got {tuple(student_logits.shape)} and "
            f"{tuple(teacher_logits.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature > 0 must hold, but got {temperature}")
    student, teacher = (F.softmax(x.double() / temperature, dim=1) for x in (student_logits, teacher_logits.detach()))
    return student, teacher


def _distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows of 1 - correlation, float32; a row without a correlation has distance and gradient zero."""
    (student, student_varies), (teacher, teacher_varies) = _standardised(student), _standardised(teacher)
    return ((1 - (student * teacher).sum(dim=1)) * (student_varies & teacher_varies)).mean().float()


def _standardised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows less their means, divided by their lengths; and which of them vary."""
    centred = rows - rows.mean(dim=1, keepdim=True)
    squared, whole = centred.square().sum(dim=1), rows.square().sum(dim=1)
    varies = (squared > _ROUNDING * whole) & (squared > _TINY)
    return centred / torch.where(varies, squared, 1.0).sqrt()[:, None], varies


class DIST(Method):
    """Inter- and intra-class losses, weighted."""

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        own = self.settings
        of = student.output.logits, teacher.output.logits, own["temperature"]
        return {
            "dist_inter": own["weight"] * own["inter"] * inter_class_loss(*of),
            "dist_intra": own["weight"] * own["intra"] * intra_class_loss(*of),
        }


def build(task: Task) -> Method:
    """DIST has no parameters; the shapes aren't looked at."""
    return DIST(task.settings)
