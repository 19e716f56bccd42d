"""Contrastive representation distillation (Tian et al. 2020, arXiv 1910.10699, section 3.1).

Student and teacher embeddings of one image are to be told from those of images of other classes, by noise-contrastive
estimation (NCE) against two memory banks, one a network, with a row for each of the N training images.

Memory: the banks take 2 x N x 128 floats, 1,024 bytes an image: 51 MB for 50,000. A step gathers one draw of rows for
the whole batch, at most 2 x (16,384 + largest class) x 128 floats, where rows drawn for each sample would take B times
that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smskd.methods.base import Batch, Method, Task, View
from smskd.settings import Setting, weight

READS = frozenset({"embedding"})
SETTINGS = (
    weight(0.8),
    Setting("temperature", 0.07, "divides the scores", above=0),
    Setting("negatives", 16384, "images of other classes that a sample is told from", low=1, high=10**6),
    Setting("momentum", 0.5, "share of the old row that a memory bank keeps", low=0, below=1),
    Setting("dimension", 128, "of the embeddings that are compared", low=1, high=10**4),
)


def nce_loss(positive: Tensor, negatives: Tensor, counted: Tensor, log_z: Tensor, images: int) -> Tensor:
    """Noise-contrastive estimation with uniform noise over the training images.

    With p = exp(score) / Z and K negatives, -log(p / (p + K/N)) of the positive and -log(K/N / (p + K/N)) of each
    negative.

    Args:
        positive: score of each sample's own image, [B], already divided by the temperature.
        negatives: scores of M other images, [B, M].
        counted: which of them are this sample's negatives, bool, [B, M]; their number is K.
        log_z: log of the constant Z, a scalar.
        images: N, the number of training images.

    Returns:
        A float32 scalar: summed over positive and negatives, averaged over the batch.

    Raises:
        ValueError: the shapes don't fit each other, or there are no images.
    """
    if positive.shape != negatives.shape[:1] or negatives.ndim != 2 or counted.shape != negatives.shape:
        raise ValueError(
            "scores must be positive [B], negatives [B, M] and counted [B, M], but got "
            f"{tuple(positive.shape)}, {tuple(negatives.shape)} and {tuple(counted.shape)}"
        )
    if images < 1:
        raise ValueError(f"images >= 1 must hold, but got {images}")
    log_noise = (counted.sum(dim=1) / images).log()  # -inf without negatives: the positive is certain
    at_positive = positive.float() - log_z - log_noise
    at_negatives = (negatives.float() - log_z - log_noise[:, None]).masked_fill(~counted, -math.inf)
    return (F.softplus(-at_positive) + F.softplus(at_negatives).sum(dim=1)).mean()


class CRD(Method):
    """nce_loss of the student against the teacher's bank and of the teacher against the student's, weighted.

    Negatives are 16,384 images of other classes than the sample's, drawn without replacement at each step, or all there
    are when fewer; the samples of a batch share the draw. Each side's Z is estimated at the first step, and kept. In
    training a sample's positive is its image's row in the other network's bank, and its own rows then move towards its
    embeddings. In eval mode no buffer changes and the positives are the batch's own embeddings; the draw is then the
    same each time, and takes nothing from torch's global generator.
    """

    labels: Tensor
    student_bank: Tensor
    teacher_bank: Tensor
    log_z: Tensor

    def __init__(self, settings: Mapping[str, Any], student_width: int, teacher_width: int, labels: Tensor) -> None:
        super().__init__(settings)
        dimension = settings["dimension"]
        self.student_embed = nn.Linear(student_width, dimension)
        self.teacher_embed = nn.Linear(teacher_width, dimension)
        # one more than the largest class, so that each sample finds its negatives among them
        self._drawn = min(len(labels), settings["negatives"] + int(labels.bincount().max()))
        self.register_buffer("labels", labels.clone())
        self.register_buffer("student_bank", _bank(len(labels), dimension))
        self.register_buffer("teacher_bank", _bank(len(labels), dimension))
        self.register_buffer("log_z", torch.full((2,), -math.inf))  # Z = 0: not estimated yet

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        """The one term, `crd`.

        Raises:
            ValueError: in training, without the images' places.
        """
        of_student = F.normalize(self.student_embed(student.output.embedding.float()), dim=1)
        of_teacher = F.normalize(self.teacher_embed(teacher.output.embedding.detach().float()), dim=1)
        if self.training and len(batch.index) != len(of_student):
            raise ValueError(
                f"in training each of the {len(of_student)} images needs its place among the training images, but got "
                f"{len(batch.index)} places: call eval() before other images are looked at"
            )
        drawn = self._draw()
        counted = self.labels[drawn] != batch.labels[:, None]
        counted &= counted.cumsum(dim=1) <= self.settings["negatives"]
        losses, log_zs = [], []
        temperature, momentum = self.settings["temperature"], self.settings["momentum"]
        for side, (anchor, partner, bank) in enumerate(
            ((of_student, of_teacher, self.teacher_bank), (of_teacher, of_student, self.student_bank))
        ):
            positive = (anchor * (bank[batch.index] if self.training else partner.detach())).sum(dim=1) / temperature
            negatives = anchor @ bank[drawn].T / temperature
            estimate = _log_z(positive.detach(), negatives.detach(), counted, len(bank))
            log_zs.append(torch.where(self.log_z[side].isinf(), estimate, self.log_z[side]))
            losses.append(nce_loss(positive, negatives, counted, log_zs[side], len(bank)))
        if self.training:
            self.log_z.copy_(torch.stack(log_zs))
            for bank, rows in ((self.student_bank, of_student), (self.teacher_bank, of_teacher)):
                bank[batch.index] = F.normalize(momentum * bank[batch.index] + (1 - momentum) * rows.detach(), dim=1)
        return {"crd": self.settings["weight"] * torch.stack(losses).sum()}

    def _draw(self) -> Tensor:
        """Places of images to find negatives among, in random order."""
        device = self.labels.device
        generator = None if self.training else torch.Generator(device).manual_seed(0)
        return torch.randperm(len(self.labels), generator=generator, device=device)[: self._drawn]


def _bank(images: int, dimension: int) -> Tensor:
    """Rows of length about 1 in random directions, [N, dimension]."""
    return (2 * torch.rand(images, dimension) - 1) * math.sqrt(3 / dimension)


def _log_z(positive: Tensor, negatives: Tensor, counted: Tensor, images: int) -> Tensor:
    """log of N times the mean of exp(score), over positives and the negatives that count."""
    scores = torch.cat([positive[:, None], negatives.masked_fill(~counted, -math.inf)], dim=1)
    return scores.flatten().logsumexp(dim=0) - (counted.sum() + len(positive)).log() + math.log(images)


def build(task: Task) -> Method:
    """Embeddings and banks, drawn from torch's global generator."""
    student, teacher = (view.output.embedding.shape[1] for view in (task.student, task.teacher))
    return CRD(task.settings, student, teacher, task.labels)
