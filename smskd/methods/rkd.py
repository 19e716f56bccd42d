"""Relational knowledge distillation (Park et al. 2019, arXiv 1904.05068, eq. 4 to 8).

Both losses come from Gram matrices: [B, B] products instead of [B, B, D] differences, in float64 so that the
subtraction of near-equal products loses nothing that float32 embeddings hold.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from smskd.methods.base import Batch, Method, Task, View, check_one_batch
from smskd.settings import Setting, weight

READS = frozenset({"embedding"})
SETTINGS = (
    weight(1.0, "factor of both terms"),
    Setting("distance", 25.0, "weight of the distances", low=0),
    Setting("angle", 50.0, "weight of the angles", low=0),
)

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
    return _distance_loss(*_pairs_of_both(student, teacher))


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 between the cosines of the angles of all triplets (eq. 6, 7).

    Args:
        student: embeddings [B, D].
        teacher: embeddings [B, E]; no gradient goes into them.

    Returns:
        A float32 scalar, the mean over all B x B x B triplets; 0 for a single sample.
    """
    return _angle_loss(*_pairs_of_both(student, teacher))


class _Pairs(NamedTuple):
    """Of a batch's embeddings, [B, B] each, float64: products, distances, and 1 / distance, 0 where that is none."""

    gram: Tensor
    distance: Tensor
    inverse: Tensor


def _pairs_of_both(student: Tensor, teacher: Tensor) -> tuple[_Pairs, _Pairs]:
    check_one_batch("embeddings", student, teacher, ndim=2, shape="[B, D] and [B, E]")
    return _pairs(student), _pairs(teacher.detach())


def _pairs(embedding: Tensor) -> _Pairs:
    """A distance that is zero, or only rounding, has gradient zero."""
    x = embedding.double()
    gram = x @ x.T
    norms = gram.diagonal()
    squared = norms[:, None] + norms[None, :] - 2 * gram
    real = squared > _ROUNDING * (norms[:, None] + norms[None, :])
    real.fill_diagonal_(False)
    distance = torch.where(real, squared, 1.0).sqrt()
    return _Pairs(gram, distance * real, real / distance)


def _distance_loss(student: _Pairs, teacher: _Pairs) -> Tensor:
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher)).float()


def _relative_distances(pairs: _Pairs) -> Tensor:
    mean = pairs.distance.sum() / (pairs.inverse > 0).sum().clamp(min=1)
    return pairs.distance / torch.where(mean > 0, mean, 1.0)


def _angle_loss(student: _Pairs, teacher: _Pairs) -> Tensor:
    return cast(Tensor, _AngleLoss.apply(student.gram, student.inverse, _cosines(teacher.gram, teacher.inverse)))


def _cosines(gram: Tensor, inverse: Tensor) -> Tensor:
    """cos of the angle at i between j and k, [B, B, B] as (i, j, k), float32; 0 where i is j or k, or they coincide."""
    from_i = gram - gram.diagonal()[:, None] / 2
    at_i = (gram[None, :, :] - from_i[:, :, None]).sub_(from_i[:, None, :])
    return at_i.mul_(inverse[:, :, None]).mul_(inverse[:, None, :]).float()


class _AngleLoss(torch.autograd.Function):
    """Smooth L1 between the student's cosines, from its gram and inverse [B, B], and given ones [B, B, B].

    Autograd would keep and walk through eight [B, B, B] tensors, six of them in float64: half of an RKD step's time.
    """

    @staticmethod
    def forward(ctx: Any, gram: Tensor, inverse: Tensor, target: Tensor) -> Tensor:
        cosines = _cosines(gram, inverse)
        ctx.save_for_backward(inverse, cosines, target)
        return F.smooth_l1_loss(cosines, target)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        inverse, cosines, target = ctx.saved_tensors
        count = len(cosines)
        slope = (cosines - target).clamp_(-1, 1)  # of the loss by each cosine, times their number; symmetric in j, k
        # cos_ijk = at_ijk * inverse_ij * inverse_ik, so by inverse_ij: twice the sum over k of slope * cos / inverse_ij
        by_inverse = 2 * (slope * cosines).sum(dim=2).double() * torch.where(inverse > 0, 1 / inverse, 0.0)
        # at_ijk = gram_jk - gram_ij - gram_ik + gram_ii; the largest inverse is taken out, since float32 is narrow
        largest = inverse.amax().clamp(min=torch.finfo(inverse.dtype).tiny)
        relative = (inverse / largest).float()
        by_at = slope.mul_(relative[:, :, None]).mul_(relative[:, None, :])
        by_row = by_at.sum(dim=2)
        by_gram = by_at.sum(dim=0) - 2 * by_row + torch.diag(by_row.sum(dim=1))
        scale = grad.double() / count**3
        return by_gram.double() * (largest**2 * scale), by_inverse * scale, None


class RKD(Method):
    """Distance and angle losses on pooled embeddings, weighted."""

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        own = self.settings
        pairs = _pairs_of_both(student.output.embedding, teacher.output.embedding)
        return {
            "rkd_distance": own["weight"] * own["distance"] * _distance_loss(*pairs),
            "rkd_angle": own["weight"] * own["angle"] * _angle_loss(*pairs),
        }


def build(task: Task) -> Method:
    """RKD has no parameters and takes embeddings of any two widths."""
    return RKD(task.settings)
