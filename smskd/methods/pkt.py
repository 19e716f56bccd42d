"""Probabilistic knowledge transfer (Passalis and Tefas 2018, arXiv 1803.10837, section 3, cosine similarity as kernel).

As in the authors' code a sample is among its own neighbours, and the divergence is the mean over B x B pairs: the sum
that the paper writes, divided by B^2. The published weight belongs to that mean.
"""

from __future__ import annotations

from torch import Tensor

from smskd.methods.base import Batch, Method, Task, View, check_one_batch, unit_rows
from smskd.settings import weight

READS = frozenset({"embedding"})
SETTINGS = (weight(30_000.0),)

# Similarities below this count as this: opposite embeddings have similarity 0, and no logarithm.
_LEAST = 1e-7


def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of each sample's neighbours, divided by the batch size, averaged over the samples.

    A neighbour's probability is in proportion to (1 + cosine) / 2 of the two embeddings.

    Args:
        student: embeddings [B, D].
        teacher: embeddings [B, E]; no gradient goes into them.

    Returns:
        A float32 scalar; 0 for a single sample. To an embedding of zeros, all are equally near.

    Raises:
        ValueError: the embeddings don't have two dimensions and one batch.
    """
    check_one_batch("embeddings", student, teacher, ndim=2, shape="[B, D] and [B, E]")
    probability, target = _neighbours(student), _neighbours(teacher.detach())
    # float64 to here: the logarithms of two near-uniform rows nearly cancel, and the weight is large
    return (target * (target.log() - probability.log())).mean().float()


def _neighbours(embedding: Tensor) -> Tensor:
    """Probabilities [B, B], rows of sum 1, float64."""
    unit = unit_rows(embedding)
    similarity = ((1 + unit @ unit.T) / 2).clamp(min=_LEAST)
    return similarity / similarity.sum(dim=1, keepdim=True)


class PKT(Method):
    """pkt_loss of the pooled embeddings, weighted."""

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        return {"pkt": self.settings["weight"] * pkt_loss(student.output.embedding, teacher.output.embedding)}


def build(task: Task) -> Method:
    """PKT has no parameters and takes embeddings of any two widths."""
    return PKT(task.settings)
