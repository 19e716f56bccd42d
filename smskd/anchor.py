"""What holds a stage to the student before it: the frozen reference or EWC, and the weight of each sample."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
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


# Of how many training images the Fisher information is the mean, and how many floats of gradients are held at once.
FISHER_IMAGES = 1024
_GRADIENT_FLOATS = 2**24


def fisher(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher information: the mean over samples of each one's squared gradient, in eval mode.

    Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3), with the data's own labels.

    Args:
        network: left as it was.
        images: [B, C, H, W].
        labels: [B].

    Returns:
        For each parameter by name, its shape; detached.
    """
    training = network.training
    network.eval()
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    buffers = {name: b.detach() for name, b in network.named_buffers()}

    def loss(values: Mapping[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        output = torch.func.functional_call(network, (dict(values), buffers), (image[None],))
        return F.cross_entropy(output.logits.float(), label[None])

    of_each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    chunk = max(1, _GRADIENT_FLOATS // sum(p.numel() for p in parameters.values()))
    for some, their in zip(torch.split(images, chunk), torch.split(labels, chunk), strict=True):
        for name, gradient in of_each(parameters, some, their).items():
            total[name] += gradient.square().sum(dim=0)
    network.train(training)
    return {name: value / len(images) for name, value in total.items()}


def ewc_loss(
    student: Mapping[str, Tensor], reference: Mapping[str, Tensor], information: Mapping[str, Tensor], weight: Tensor
) -> Tensor:
    """weight / 2 * sum of information * (student - reference)^2 over all parameters (arXiv 1612.00796, eq. 3).

    Args:
        student, reference, information: by parameter name, of one shape each; no gradient goes into the last two.
        weight: a scalar.

    Returns:
        A scalar; it and its gradient are zero where student and reference agree.

    Raises:
        ValueError: the names differ.
    """
    if not student.keys() == reference.keys() == information.keys():
        raise ValueError(
            f"student, reference and information must have the same parameters, but have {len(student)}, "
            f"{len(reference)} and {len(information)}"
        )
    terms = [(information[n].detach() * (p - reference[n].detach()).square()).sum() for n, p in student.items()]
    return weight.detach() / 2 * torch.stack(terms).sum()
