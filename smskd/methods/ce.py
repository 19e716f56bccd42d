"""Cross-entropy on the labels: part of every stage, and alone the student without a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

READS: frozenset[str] = frozenset()
WEIGHTS = {"ce": 1.0, "ce_beside_kd": 0.1}


def cross_entropy(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in float32: student_logits [B, classes], labels [B] -> scalar."""
    return F.cross_entropy(student_logits.float(), labels)


def weight(methods: Sequence[str], weights: Mapping[str, float]) -> float:
    """The weight of cross-entropy in a stage: less beside `kd`, whose soft targets hold the labels' part too."""
    return weights["ce_beside_kd" if "kd" in methods else "ce"]
