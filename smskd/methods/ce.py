"""Cross-entropy on the labels: part of every stage, and alone the student without a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

READS: frozenset[str] = frozenset()
WEIGHTS = {"ce": 1.0, "ce_beside_kd": 0.1}
# The methods that are published with cross-entropy at a tenth: KD in its forms.
BESIDE_KD = frozenset({"kd", "logit_std"})


def cross_entropy(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in float32: student_logits [B, classes], labels [B] -> scalar."""
    return F.cross_entropy(student_logits.float(), labels)


def weight_name(methods: Sequence[str]) -> str:
    """Which of WEIGHTS a stage of these methods uses: less beside KD, whose soft targets hold the labels' part too."""
    return "ce" if BESIDE_KD.isdisjoint(methods) else "ce_beside_kd"


def weight(methods: Sequence[str], weights: Mapping[str, float]) -> float:
    """The weight of cross-entropy in a stage of these methods."""
    return weights[weight_name(methods)]
