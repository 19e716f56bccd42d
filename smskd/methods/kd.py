"""Knowledge distillation on logits (Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2)."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from smskd.methods.base import Batch, Method, Task, View
from smskd.settings import temperature, weight

READS = frozenset({"logits"})
SETTINGS = (weight(0.9), temperature(4.0))
CE_WEIGHT = 0.1  # soft targets hold the labels' part too


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) at a temperature, times its square.

    Args:
        student_logits: [B, classes].
        teacher_logits: [B, classes]; no gradient goes into them.
        temperature: above 0; the square keeps the gradient's size the same across temperatures.

    Returns:
        A scalar, in float32 or better: summed over classes, averaged over the batch.

    Raises:
        ValueError: the shapes differ, or the temperature isn't above 0.
    """
    return divergence(student_logits, teacher_logits, temperature).mean()


def divergence(student_logits: Tensor, target_logits: Tensor, temperature: float) -> Tensor:
    """KL(target || student) per sample, [B], in float32 or better, at a temperature and times its square."""
    if student_logits.shape != target_logits.shape:
        raise ValueError(
            f"student and target logits must have one shape, but got {tuple(student_logits.shape)} and "
            f"{tuple(target_logits.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature > 0 must hold, but got {temperature}")
    student, target = (x if x.dtype == torch.float64 else x.float() for x in (student_logits, target_logits.detach()))
    return cast(Tensor, _Divergence.apply(student, target, temperature))


class _Divergence(torch.autograd.Function):
    """KL(target || student) of logits [B, classes] at a temperature, times its square, summed over classes.

    Its own backward, T * (softmax(student / T) - softmax(target / T)), is exactly zero where the two agree; autograd's,
    through log_softmax, leaves rounding there, which an anchored student would follow. And it is three operations.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, target: Tensor, temperature: float) -> Tensor:
        log_student = F.log_softmax(student / temperature, dim=1)
        log_target = F.log_softmax(target / temperature, dim=1)
        likely = log_target.exp()
        divergence = (likely * (log_target - log_student)).sum(dim=1) * temperature**2
        ctx.save_for_backward((log_student.exp() - likely) * temperature)
        return divergence

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return grad[:, None] * slope, None, None


class KD(Method):
    """kd_loss, weighted."""

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        own = self.settings
        return {"kd": own["weight"] * kd_loss(student.output.logits, teacher.output.logits, own["temperature"])}


def build(task: Task) -> Method:
    """KD has no parameters; the shapes aren't looked at."""
    return KD(task.settings)
