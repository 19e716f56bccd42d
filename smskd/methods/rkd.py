"""Relational knowledge distillation (Park et al. 2019, arXiv 1904.05068, eq. 4 to 8).

Both losses come from Gram matrices: [B, B] products instead of [B, B, D] differences, in float64 so that the
subtraction of near-equal products loses nothing that float32 embeddings hold.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from smskd.methods.base import Method, View

READS = frozenset({"embedding"})
WEIGHTS = {"rkd_distance": 25.0, "rkd_angle": 50.0}

# Squared distances below this share of the squared norms are rounding, not distance.
_ROUNDING = 1e-13


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 between pairwise distances, each divided by the mean of the positive ones (eq. 4, 5).

    Args:
        student: embeddings [B, D].
        teacher: embeddings [B, E]; no gradient goes into them.

    Returns:
        A float32 scalar, the mean over all B x B pairs; 0 for a single sample.
    """
    _check(student, teacher)
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher.detach())).float()


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 between the cosines of the angles of all triplets (eq. 6, 7).

    Args:
        student: embeddings [B, D].
        teacher: embeddings [B, E]; no gradient goes into them.

    Returns:
        A float32 scalar, the mean over all B x B x B triplets; 0 for a single sample.
    """
    _check(student, teacher)
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher.detach()))


def _check(student: Tensor, teacher: Tensor) -> None:
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ValueError(
            f"embeddings must be [B, D] and [B, E] of one batch, but got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}"
        )


def _gram(embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gram matrix, distances, and where these are real ones; all [B, B]. A zero distance has gradient zero."""
    x = embedding.double()
    gram = x @ x.T
    norms = gram.diagonal()
    squared = norms[:, None] + norms[None, :] - 2 * gram
    real = squared > _ROUNDING * (norms[:, None] + norms[None, :])
    real = real & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    distance = torch.where(real, squared, 1.0).sqrt() * real
    return gram, distance, real


def _relative_distances(embedding: Tensor) -> Tensor:
    _, distance, real = _gram(embedding)
    mean = distance.sum() / real.sum().clamp(min=1)
    return distance / torch.where(mean > 0, mean, 1.0)


def _cosines(embedding: Tensor) -> Tensor:
    """cos of the angle at i between j and k, [B, B, B] as (i, j, k); 0 where i is j or k, or they coincide."""
    gram, distance, real = _gram(embedding)
    inverse = real / torch.where(real, distance, 1.0)
    at_i = gram[None, :, :] - gram[:, :, None] - gram[:, None, :] + gram.diagonal()[:, None, None]
    return (at_i * inverse[:, :, None] * inverse[:, None, :]).float()


class RKD(Method):
    """Distance and angle losses on pooled embeddings, weighted."""

    def __init__(self, distance_weight: float, angle_weight: float) -> None:
        super().__init__()
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def forward(self, student: View, teacher: View, labels: Tensor) -> dict[str, Tensor]:
        embeddings = student.output.embedding, teacher.output.embedding
        return {
            "rkd_distance": self.distance_weight * distance_loss(*embeddings),
            "rkd_angle": self.angle_weight * angle_loss(*embeddings),
        }


def build(student: View, teacher: View, weights: Mapping[str, float]) -> Method:
    """RKD has no parameters and takes embeddings of any two widths."""
    return RKD(weights["rkd_distance"], weights["rkd_angle"])
