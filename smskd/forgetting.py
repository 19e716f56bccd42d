"""What a student keeps of its teacher and of its earlier stages, seen on validation images. Nothing here trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smskd.data import Data
from smskd.methods import ce
from smskd.methods.base import Batch, View
from smskd.models import Output
from smskd.stage import Term, reads_of

# Outputs of teachers on validation images are kept up to this size, and computed anew beyond it.
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
    """A data set's validation images in batches, and what teachers say of them: kept, or asked for anew, by size."""

    def __init__(self, data: Data, batch_size: int) -> None:
        self._data, self._batch_size = data, batch_size
        self._answers: dict[tuple[int, int], tuple[frozenset[str], View]] = {}
        self._bytes = 0

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images and labels; all of them at once could take more than there is."""
        for images, labels in self._data.validation.batches(self._batch_size):
            yield self._data.normalised(images), labels

    def of_teacher(self, teacher: int, network: nn.Module, batch: int, images: Tensor, reads: frozenset[str]) -> View:
        """A teacher's outputs for the batch of this number, those that `reads` names (as in smskd.methods).

        Teachers are told apart by their number. Feature maps of a whole validation split can take gigabytes, so what
        isn't read isn't kept, and nothing beyond a bound.
        """
        held, view = self._answers.get((teacher, batch), (frozenset(), None))
        if view is not None and reads <= held:
            return view
        with torch.no_grad():
            output: Output = network(images, before_relu="before_relu" in reads)
        hint: int = network.hint_index  # type: ignore[assignment]
        if "features" not in reads:
            none = images.new_empty(0)
            maps = [none] * hint + [output.features[hint]] if "hint" in reads else [none] * (hint + 1)
            output = output._replace(features=tuple(maps))
        answer = View(output, hint)
        size = _size(answer) - (0 if view is None else _size(view))
        if self._bytes + size <= _KEPT_BYTES:
            self._bytes += size
            whole = {"logits", "embedding"} | ({"hint"} if "features" in reads else set())
            self._answers[teacher, batch] = reads | whole, answer
        return answer


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
            teachers: by number, the first (0) and those that any stage so far listens to.
        """
        self._stages.append((ce_weight, terms))
        reads = {number: frozenset({"logits"}) for number in teachers}
        for _, earlier in self._stages:
            for term in earlier:
                for number in term.teachers:
                    reads[number] |= reads_of(term.name, term.method.settings)
        training = student.training
        student.eval()
        modes = [(term.method, term.method.training) for _, terms in self._stages for term in terms]
        for method, _ in modes:
            method.eval()
        totals = [0.0] * len(self._stages)
        chosen, taught = [], []
        with torch.no_grad():
            for batch, (images, labels) in enumerate(self._validation.batches()):
                mine = View(student(images), student.hint_index)  # type: ignore[arg-type]
                said = {
                    number: self._validation.of_teacher(number, network, batch, images, reads[number])
                    for number, network in teachers.items()
                }
                known = Batch(labels, labels[:0])
                for stage, (weight, terms) in enumerate(self._stages):
                    loss = weight * ce.cross_entropy(mine.output.logits, labels)
                    for term in terms:
                        loss = loss + sum(term(mine, said, known).values())
                    totals[stage] += float(loss) * len(labels)
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


def _size(view: View) -> int:
    output = view.output
    kept = (output.logits, output.embedding, *output.features, *output.before_relu)
    return sum(t.numel() * t.element_size() for t in kept)


def _share(same: Tensor) -> float:
    return float(same.double().mean())
