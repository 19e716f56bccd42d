"""Decoupled knowledge distillation (Zhao et al. 2022, arXiv 2203.08679, eq. 7).

KD's divergence is the target class's (TCKD) plus, by the teacher's doubt, that of the other classes among themselves
(NCKD); here each has a weight of its own. The authors' warm-up of both weights over the first 20 of 240 epochs is off
unless asked for: a stage is short.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smskd.methods.base import Batch, Method, Task, View
from smskd.methods.kd import divergence
from smskd.settings import Setting, temperature, weight

READS = frozenset({"logits"})
SETTINGS = (
    weight(1.0, "factor of both terms"),
    Setting("tckd", 1.0, "weight of the target class", low=0),
    Setting("nckd", 8.0, "weight of the other classes", low=0),
    temperature(4.0),
    Setting("warmup", 0, "first epochs of the stage in which its loss rises to full weight", low=0, high=1_000_000),
)


def tckd_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) between true class and all others together, at a temperature, times its square.

    Args:
        student_logits: [B, classes], of at least 2 classes.
        teacher_logits: [B, classes]; no gradient goes into them.
        labels: true classes, [B].
        temperature: above 0.

    Returns:
        A float32 scalar, averaged over the batch.

    Raises:
        ValueError: the shapes aren't these, or the temperature isn't above 0.
    """
    _check(student_logits, teacher_logits, labels, temperature)
    student, teacher = (_true_or_not(x.float() / temperature, labels) for x in (student_logits, teacher_logits))
    return divergence(student, teacher, 1.0).mean() * temperature**2


def nckd_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) among the classes that aren't true, at a temperature, times its square.

    Arguments, result and errors are tckd_loss's; 0 for two classes.
    """
    _check(student_logits, teacher_logits, labels, temperature)
    student, teacher = (_others(x.float(), labels) for x in (student_logits, teacher_logits))
    return divergence(student, teacher, temperature).mean()


def _true_or_not(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits [B, 2] of the true class and of all others together: no probability, and so no logarithm of zero."""
    return torch.cat([logits.gather(1, labels[:, None]), _others(logits, labels).logsumexp(dim=1, keepdim=True)], dim=1)


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits [B, classes - 1], the true class left out rather than masked by a number that a large logit can beat."""
    places = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, places + (places >= labels[:, None]))


def _check(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> None:
    shape = tuple(student_logits.shape)
    if len(shape) != 2 or shape != tuple(teacher_logits.shape) or shape[1] < 2 or labels.shape != shape[:1]:
        raise ValueError(
            f"logits must be [B, classes], at least 2 classes, and labels [B], but got student {shape}, teacher "
            f"{tuple(teacher_logits.shape)} and labels {tuple(labels.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature > 0 must hold, but got {temperature}")


class DKD(Method):
    """tckd_loss and nckd_loss, weighted."""

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        own = self.settings
        of = student.output.logits, teacher.output.logits, batch.labels, own["temperature"]
        weight = own["weight"] * self.warmed(batch)
        return {"dkd_tckd": weight * own["tckd"] * tckd_loss(*of), "dkd_nckd": weight * own["nckd"] * nckd_loss(*of)}


def build(task: Task) -> Method:
    """DKD has no parameters; the shapes aren't looked at."""
    return DKD(task.settings)
