"""Cross-entropy on the labels: part of every stage, and alone the student without a teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

READS: frozenset[str] = frozenset()


def cross_entropy(student_logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in float32: student_logits [B, classes], labels [B] -> scalar."""
    return F.cross_entropy(student_logits.float(), labels, label_smoothing=label_smoothing)
