"""What a stage is said to have kept."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from smskd import stage as training
from smskd.bench import Bench
from smskd.forgetting import Lineage, Validation
from smskd.methods import ce, fitnets, kd
from tests.smskd import small
from tests.smskd.small import fresh

SMALL: dict[str, Any] = {"train_size": 200, "teacher_epochs": 1}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def bench(store: Path) -> Bench:
    return small.prepare(store, **SMALL)


def terms_of(notation: str, student: nn.Module, bench: Bench) -> list[training.Term]:
    work, views = small.assignment(notation), [training.probe(bench.teacher.network, bench.data)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return training.build_terms(work, training.probe(student, bench.data), views, bench.data.train.labels)


def test_agreement_and_losses_are_what_a_plain_loop_finds(bench: Bench, store: Path) -> None:
    result = small.run("fitnets>kd", store, seed=3, **SMALL)
    (first, second), data = result.stages, bench.data
    students = []
    for stage in result.stages:
        entry = bench.store.get(stage.key)
        assert entry is not None
        student = fresh()
        student.load_state_dict(dict(entry.weights))
        students.append(student.eval())
    images, labels = data.normalised(data.validation.images), data.validation.labels
    with torch.no_grad():
        early, late = (student(images) for student in students)
        teacher = bench.teacher.network(images)
    chosen = [output.logits.argmax(dim=1) for output in (early, late, teacher)]
    assert first.agreement_teacher == pytest.approx((chosen[0] == chosen[2]).double().mean().item())
    assert second.agreement_teacher == pytest.approx((chosen[1] == chosen[2]).double().mean().item())
    assert first.agreement_previous is None
    assert second.agreement_previous == pytest.approx((chosen[0] == chosen[1]).double().mean().item())

    regressor = fitnets.Regressor((8, 4, 4), (64, 4, 4)).eval()
    learned = {n.removeprefix("0/regressor."): t for n, t in bench.store.methods(first.key).items()}
    regressor.load_state_dict(learned)
    with torch.no_grad():
        hints = [
            fitnets.hint_loss(regressor(output.features[0]), teacher.features[1]).item() for output in (early, late)
        ]
    entropy = [ce.cross_entropy(output.logits, labels).item() for output in (early, late)]
    soft = kd.kd_loss(late.logits, teacher.logits, 4.0).item()
    assert first.stage_losses == pytest.approx((entropy[0] + 10 * hints[0],), rel=1e-4)
    assert second.stage_losses == pytest.approx((entropy[1] + 10 * hints[1], 0.1 * entropy[1] + 0.9 * soft), rel=1e-4)
    assert hints[0] != pytest.approx(hints[1], rel=1e-3)


def test_from_the_store_the_same_is_said(bench: Bench, store: Path) -> None:
    trained, found = (small.run("kd>rkd>fitnets weighting=tcp", store, seed=4, **SMALL) for _ in range(2))
    assert [s.trained for s in (*trained.stages, *found.stages)] == [True] * 3 + [False] * 3
    assert [replace(s, trained=False) for s in trained.stages] == list(found.stages)
    assert [len(s.stage_losses) for s in found.stages] == [1, 2, 3]


def test_looking_changes_nothing(bench: Bench) -> None:
    student = fresh()
    before, state = copy.deepcopy(student.state_dict()), torch.get_rng_state()
    terms = terms_of("fitnets", student, bench)
    term_before = copy.deepcopy(terms[0].method.state_dict())
    lineage = Lineage(Validation(bench.data, 50))
    kept = lineage.add(student, ce_weight=1, terms=terms, teachers={0: bench.teacher.network})
    assert student.training and terms[0].method.training and not bench.teacher.network.training
    assert all(torch.equal(before[n], t) for n, t in student.state_dict().items())
    assert all(torch.equal(term_before[n], t) for n, t in terms[0].method.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    again = lineage.add(student, ce_weight=1, terms=terms, teachers={0: bench.teacher.network})
    assert again.agreement_previous == 1 and again.stage_losses == kept.stage_losses * 2


def test_a_teacher_agrees_with_itself(bench: Bench) -> None:
    lineage = Lineage(Validation(bench.data, 50))
    kept = lineage.add(bench.teacher.network, ce_weight=1, terms=[], teachers={0: bench.teacher.network})
    assert kept.agreement_teacher == 1


class Counting(nn.Module):
    """A network that counts its batches."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.hint_index, self.calls = network, network.hint_index, 0

    def forward(self, images: torch.Tensor, before_relu: bool = False) -> object:
        self.calls += 1
        return self.network(images, before_relu=before_relu)


def looked_at(bench: Bench, notation: str, teacher: nn.Module, validation: Validation) -> object:
    student = fresh()
    terms = terms_of(notation, student, bench)
    return Lineage(validation).add(student, ce_weight=1, terms=terms, teachers={0: teacher})


def kept_floats(validation: Validation) -> int:
    views = [view for _, view in validation._answers.values()]
    return sum(t.numel() for v in views for t in (v.output.logits, v.output.embedding, *v.output.features))


def test_a_teacher_is_asked_once_for_what_is_read_and_no_map_is_kept_that_is_not(bench: Bench) -> None:
    teacher, validation = Counting(bench.teacher.network), Validation(bench.data, 50)
    batches = len(list(validation.batches()))
    for notation in ("kd", "rkd", "kd"):
        looked_at(bench, notation, teacher, validation)
    assert teacher.calls == batches
    assert kept_floats(validation) == len(bench.data.validation) * (10 + 64)
    looked_at(bench, "fitnets", teacher, validation)
    assert teacher.calls == 2 * batches
    looked_at(bench, "kd", teacher, validation)
    assert teacher.calls == 2 * batches
    hint = 64 * 4 * 4
    assert kept_floats(validation) == len(bench.data.validation) * (10 + 64 + hint)


@pytest.mark.parametrize("notation", ["fitnets", "at", "kd"])
def test_beyond_the_bound_a_teacher_is_asked_again_and_says_the_same(
    bench: Bench, notation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = looked_at(bench, notation, bench.teacher.network, Validation(bench.data, 50))
    monkeypatch.setattr("smskd.forgetting._KEPT_BYTES", 50 * 4 * (10 + 64) + 1)
    teacher, validation = Counting(bench.teacher.network), Validation(bench.data, 50)
    batches = len(list(validation.batches()))
    found = [looked_at(bench, notation, teacher, validation) for _ in range(2)]
    assert found == [kept, kept]
    assert teacher.calls == (2 * batches - 1 if notation == "kd" else 2 * batches)
