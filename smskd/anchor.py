"""What holds a stage to the student before it: the frozen reference, and the weight of each sample."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from smskd import names
from smskd.methods.kd import divergence
from smskd.recipe import WEIGHTINGS


def freeze(student: nn.Module) -> nn.Module:
    """A copy of the student in eval mode that never changes again: the reference of the next stage."""
    return copy.deepcopy(student).eval().requires_grad_(False)


def teacher_class_probability(teacher_logits: Tensor, labels: Tensor, kind: str) -> Tensor:
    """How sure the teacher is of each sample (SMSKD, arXiv 2601.15657).

    Args:
        teacher_logits: [B, classes].
        labels: true classes, [B]; looked at by `tcp_true` alone.
        kind: `tcp`, the probability of the teacher's top class, or `tcp_true`, that of the true class.

    Returns:
        Probabilities, [B], float32, detached.
    """
    names.check("teacher class probability", kind, ("tcp", "tcp_true"))
    probabilities = torch.softmax(teacher_logits.detach().float(), dim=1)
    if kind == "tcp":
        return probabilities.amax(dim=1)
    return probabilities.gather(1, labels[:, None]).squeeze(1)


def reference_weights(teacher_logits: Tensor, labels: Tensor, weighting: str, lambda_base: float) -> Tensor:
    """lambda of each sample: lambda_base if `fixed`, else (1 - teacher class probability) * lambda_base.

    Args:
        teacher_logits: [B, classes].
        labels: [B].
        weighting: `fixed`, `tcp` or `tcp_true`.
        lambda_base: at least 0.

    Returns:
        [B], float32, detached, in [0, lambda_base].
    """
    names.check("weighting", weighting, WEIGHTINGS)
    if not lambda_base >= 0:
        raise ValueError(f"lambda_base >= 0 must hold, but got lambda_base={lambda_base}")
    if weighting == "fixed":
        return torch.full((len(labels),), float(lambda_base), dtype=torch.float32, device=labels.device)
    certainty = teacher_class_probability(teacher_logits, labels, weighting)
    return (1 - certainty).clamp(0, 1) * lambda_base


def anchor_loss(student_logits: Tensor, reference_logits: Tensor, weights: Tensor, temperature: float = 4.0) -> Tensor:
    """Mean over the batch of weight * KL(reference || student) at a temperature, times its square.

    Args:
        student_logits: [B, classes].
        reference_logits: [B, classes]; no gradient goes into them.
        weights: [B], one per sample.
        temperature: above 0.

    Returns:
        A float32 scalar; it and its gradient are zero where student and reference agree.
    """
    if weights.shape != student_logits.shape[:1]:
        raise ValueError(
            f"weights must be one per sample, [{len(student_logits)}], but got shape {tuple(weights.shape)}"
        )
    return (weights.detach() * divergence(student_logits, reference_logits, temperature)).mean()
