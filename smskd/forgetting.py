"""What a student keeps of its teacher and of its earlier stages, seen on validation images. Nothing here trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smskd.data import Data
from smskd.methods import ce
from smskd.methods.base import Batch, View
from smskd.models import Output
from smskd.stage import Term

# Outputs of a teacher on all validation images are kept up to this size, and computed anew beyond it.
_KEPT_BYTES = 2**28


@dataclass(frozen=True, kw_only=True)
class Kept:
    """After one stage.

    agreement_teacher: share of the validation images that student and (first) teacher give to one class.
    agreement_previous: the same of the student and itself before the stage; None for the first.
    stage_losses: for each stage so far, its own loss (cross-entropy and methods, weighted as there; no anchor) of the
        student as it is now.
    """

    agreement_teacher: float
    agreement_previous: float | None
    stage_losses: tuple[float, ...]


class Validation:
    """A data set's validation images in batches, and what teachers say of them; asked for anew or kept, by size."""

    def __init__(self, data: Data, batch_size: int) -> None:
        self._data, self._batch_size = data, batch_size
        self._answers: dict[int, list[Output]] = {}

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Normalised images and labels."""
        return [
            (self._data.normalised(images), labels)
            for images, labels in self._data.validation.batches(self._batch_size)
        ]

    def of_teacher(self, place: int, network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> list[Output]:
        """A teacher's outputs, batch by batch; teachers are told apart by their place."""
        if place in self._answers:
            return self._answers[place]
        with torch.no_grad():
            answers: list[Output] = [network(images) for images, _ in batches]
        sizes = [t.numel() * t.element_size() for a in answers for t in (a.logits, a.embedding, *a.features)]
        if sum(sizes) <= _KEPT_BYTES:
            self._answers[place] = answers
        return answers


class Lineage:
    """The stages of one training, one after another."""

    def __init__(self, validation: Validation) -> None:
        self._validation = validation
        self._stages: list[tuple[float, list[Term]]] = []
        self._before: Tensor | None = None

    def add(
        self, student: nn.Module, *, ce_weight: float, terms: list[Term], teachers: Mapping[int, nn.Module]
    ) -> Kept:
        """Look at the student after a further stage.

        Args:
            student: its mode is as before afterwards.
            ce_weight: of cross-entropy in that stage.
            terms: the stage's methods as they were trained.
            teachers: by place, the first (0) and those that any stage so far listens to.
        """
        self._stages.append((ce_weight, terms))
        batches = self._validation.batches()
        answers = {place: self._validation.of_teacher(place, network, batches) for place, network in teachers.items()}
        hints = {place: network.hint_index for place, network in teachers.items()}
        training = student.training
        student.eval()
        modes = [(term.method, term.method.training) for _, terms in self._stages for term in terms]
        for method, _ in modes:
            method.eval()
        totals = [0.0] * len(self._stages)
        chosen, taught = [], []
        with torch.no_grad():
            for number, (images, labels) in enumerate(batches):
                mine = View(student(images), student.hint_index)  # type: ignore[arg-type]
                said = {place: View(outputs[number], hints[place]) for place, outputs in answers.items()}  # type: ignore[arg-type]
                known = Batch(labels, labels[:0])
                for place, (weight, terms) in enumerate(self._stages):
                    loss = weight * ce.cross_entropy(mine.output.logits, labels)
                    for term in terms:
                        loss = loss + sum(term(mine, said, known).values())
                    totals[place] += float(loss) * len(labels)
                chosen.append(mine.output.logits.argmax(dim=1))
                taught.append(said[0].output.logits.argmax(dim=1))
        student.train(training)
        for method, mode in modes:
            method.train(mode)
        classes, before = torch.cat(chosen), self._before
        self._before = classes
        return Kept(
            agreement_teacher=_share(classes == torch.cat(taught)),
            agreement_previous=None if before is None else _share(classes == before),
            stage_losses=tuple(total / len(classes) for total in totals),
        )


def _share(same: Tensor) -> float:
    return float(same.double().mean())
