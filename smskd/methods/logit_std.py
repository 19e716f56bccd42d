"""KD on standardised logits (Sun et al. 2024, arXiv 2403.01427, algorithm 1): z-scores, then KL.

Student and teacher need not agree in the logits' mean and spread, only in their relations. Published for CIFAR-100 with
cross-entropy at 0.1 beside it, as KD is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smskd.methods.base import Batch, Method, Task, View
from smskd.methods.kd import divergence
from smskd.settings import Setting, temperature, weight

READS = frozenset({"logits"})
# the paper's base temperature: z-scores have a spread of 1, so that it serves student and teacher alike
SETTINGS = (
    weight(9.0),
    temperature(2.0),
    Setting("unbiased", False, "the deviation is over classes - 1, as in the authors' code"),
)
CE_WEIGHT = 0.1

# A spread below this share of the largest logit is float32's rounding.
_ROUNDING = 1e-6


def standardised(logits: Tensor, *, unbiased: bool = False) -> Tensor:
    """z-scores of each sample's logits, in float32 or better: less their mean, by their standard deviation.

    A sample whose logits are all equal has z-scores of zero and gradients of zero.

    Args:
        logits: [B, classes].
        unbiased: the deviation is over classes - 1; the paper's is over classes.
    """
    x = logits if logits.dtype == torch.float64 else logits.float()
    centred = x - x.mean(dim=1, keepdim=True)
    # z-scores don't see a factor: with the largest deviation at 1 no square over- or underflows
    largest = centred.detach().abs().amax(dim=1, keepdim=True)
    real = largest > _ROUNDING * x.detach().abs().amax(dim=1, keepdim=True).clamp(min=1e-20)
    relative = torch.where(real, centred, 0.0) / torch.where(real, largest, 1.0)
    variance = relative.square().mean(dim=1, keepdim=True)
    if unbiased:
        variance = variance * (x.shape[1] / max(x.shape[1] - 1, 1))
    return relative / torch.where(real, variance, 1.0).sqrt()


def logit_std_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, *, unbiased: bool = False
) -> Tensor:
    """KL(teacher || student) of standardised logits at a temperature, times its square.

    Args:
        student_logits: [B, classes].
        teacher_logits: [B, classes]; no gradient goes into them.
        temperature: above 0.
        unbiased: as in standardised.

    Returns:
        A scalar, in float32 or better: summed over classes, averaged over the batch.

    Raises:
        ValueError: the shapes differ, or the temperature isn't above 0.
    """
    student, teacher = (standardised(x, unbiased=unbiased) for x in (student_logits, teacher_logits.detach()))
    return divergence(student, teacher, temperature).mean()


class LogitStd(Method):
    """logit_std_loss at the base temperature, weighted."""

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        own = self.settings
        logits = student.output.logits, teacher.output.logits
        loss = logit_std_loss(*logits, own["temperature"], unbiased=own["unbiased"])
        return {"logit_std": own["weight"] * loss}


def build(task: Task) -> Method:
    """It has no parameters."""
    return LogitStd(task.settings)
