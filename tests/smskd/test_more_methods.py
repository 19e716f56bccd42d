"""AT, DKD, DIST, SP and PKT: against plain loops over the same formulas, on hostile input, and in a stage."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smskd import methods, models, pairs
from smskd.bench import Bench
from smskd.methods import at, dist, dkd, kd, pkt, sp
from smskd.methods.base import Batch, Task, View, unit_rows
from smskd.stage import Trained, reads_of
from tests.smskd import small

Loss = Callable[[Tensor, Tensor], Tensor]

PUBLISHED: dict[str, dict[str, float]] = {
    "at": {"weight": 1000.0},
    "dkd": {"weight": 1.0, "tckd": 1.0, "nckd": 8.0, "temperature": 4.0, "warmup": 0},
    "dist": {"weight": 1.0, "inter": 2.0, "intra": 2.0, "temperature": 4.0},
    "sp": {"weight": 3000.0, "layer": -1},
    "pkt": {"weight": 30_000.0},
}
# a method's terms, each with the setting that is its weight
TERMS = {
    "at": {"at": "weight"},
    "dkd": {"dkd_tckd": "tckd", "dkd_nckd": "nckd"},
    "dist": {"dist_inter": "inter", "dist_intra": "intra"},
    "sp": {"sp": "weight"},
    "pkt": {"pkt": "weight"},
}
READS = {"at": "features", "dkd": "logits", "dist": "logits", "sp": "features", "pkt": "embedding"}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels_of(logits: Tensor) -> Tensor:
    return torch.arange(len(logits)) % logits.shape[1]


def tckd(student: Tensor, teacher: Tensor) -> Tensor:
    return dkd.tckd_loss(student, teacher, labels_of(student), 4.0)


def nckd(student: Tensor, teacher: Tensor) -> Tensor:
    return dkd.nckd_loss(student, teacher, labels_of(student), 4.0)


# loss of a student's and a teacher's outputs, and the shapes of these for a batch
MAPS, LOGITS, EMBEDDINGS = ((4, 6, 6), (7, 3, 3)), ((6,), (6,)), ((6,), (9,))
LOSSES: dict[str, tuple[Loss, tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "at": (at.attention_loss, MAPS),
    "tckd": (tckd, LOGITS),
    "nckd": (nckd, LOGITS),
    "inter": (partial(dist.inter_class_loss, temperature=4.0), LOGITS),
    "intra": (partial(dist.intra_class_loss, temperature=4.0), LOGITS),
    "sp": (sp.similarity_loss, MAPS),
    "pkt": (pkt.pkt_loss, EMBEDDINGS),
}


def drawn(name: str, batch: int = 8) -> tuple[Tensor, Tensor]:
    student, teacher = LOSSES[name][1]
    return randn(batch, *student), randn(batch, *teacher, seed=1)


# --- what all have in common


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_defaults(name: str) -> None:
    module, declared = methods.load(name), methods.declaration(name)
    assert {key: one.default for key, one in declared.settings.items()} == PUBLISHED[name]
    assert declared.ce == 1
    assert frozenset({READS[name]}) == module.READS
    assert "arXiv" in (module.__doc__ or "")


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_reaches_the_student_alone(name: str) -> None:
    student, teacher = (x.requires_grad_() for x in drawn(name))
    LOSSES[name][0](student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None and student.grad.abs().sum() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_the_value(name: str) -> None:
    loss, (student, teacher) = LOSSES[name][0], drawn(name)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(student, teacher), student)
    direction = gradient / gradient.norm()
    step = 0.01
    with torch.no_grad():
        slope = (loss(student + step * direction, teacher) - loss(student - step * direction, teacher)) / (2 * step)
    assert slope.item() == pytest.approx(gradient.norm().item(), rel=0.01)


@pytest.mark.parametrize("name", LOSSES)
def test_a_student_like_its_teacher_has_loss_zero(name: str) -> None:
    student, _ = drawn(name)
    twin = student.clone().requires_grad_()
    loss = LOSSES[name][0](twin, student)
    (gradient,) = torch.autograd.grad(loss, twin)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert gradient.abs().max().item() < 1e-5
    assert LOSSES[name][0](twin, drawn(name)[0].flip(0)).item() > 1e-4


@pytest.mark.parametrize("name", LOSSES)
def test_no_state_is_kept_between_calls(name: str) -> None:
    loss, (student, teacher) = LOSSES[name][0], drawn(name)
    before = loss(student, teacher)
    loss(teacher if student.shape == teacher.shape else 2 * student, teacher)
    assert torch.equal(loss(student, teacher), before)


HOSTILE: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "identical": lambda x: x[:1].expand_as(x).clone(),
    "a pair": lambda x: torch.cat([x[:-1], x[:1]]),
    "one of zeros": lambda x: torch.cat([x[:-1], 0 * x[:1]]),
    "opposite": lambda x: torch.cat([x[: len(x) // 2], -x[: len(x) // 2]]),
    "batch of 1": lambda x: x[:1],
    "batch of 2": lambda x: x[:2],
    "constant": torch.ones_like,
    "small": lambda x: 1e-4 * x,
    "large": lambda x: 1e4 * x,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_hostile_outputs_have_finite_float32_losses_and_finite_gradients(
    name: str, case: str, dtype: torch.dtype, side: str
) -> None:
    student, teacher = drawn(name)
    batch = len(HOSTILE[case](student))
    student = (HOSTILE[case](student) if side != "teacher" else student[:batch]).to(dtype).requires_grad_()
    teacher = (HOSTILE[case](teacher) if side != "student" else teacher[:batch]).to(dtype)
    loss = LOSSES[name][0](student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and loss >= -1e-6
    assert student.grad is not None and student.grad.isfinite().all()
    if batch == 1 and name in ("intra", "sp", "pkt"):
        assert loss == 0 and torch.count_nonzero(student.grad) == 0


@pytest.mark.parametrize("scale", [1e-25, 1e-15, 1e15, 1e30])
@pytest.mark.parametrize("name", ["at", "sp", "pkt"])
def test_losses_that_do_not_see_scale(name: str, scale: float) -> None:
    loss, (student, teacher) = LOSSES[name][0], drawn(name)
    plain, extreme = student.clone().requires_grad_(), (scale * student).requires_grad_()
    assert loss(extreme, teacher).item() == pytest.approx(loss(plain, teacher).item(), rel=1e-5)
    assert loss(teacher, scale * teacher).item() == pytest.approx(0, abs=1e-9)
    (wanted,) = torch.autograd.grad(loss(plain, teacher), plain)
    (gradient,) = torch.autograd.grad(loss(extreme, teacher), extreme)
    torch.testing.assert_close(gradient.double() * scale, wanted.double(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("classes", [2, 3, 100])
@pytest.mark.parametrize("name", ["tckd", "nckd", "inter", "intra"])
def test_logits_of_any_size_and_number_of_classes(name: str, classes: int, scale: float) -> None:
    student, teacher = (scale * randn(8, classes)).requires_grad_(), scale * randn(8, classes, seed=1)
    loss = LOSSES[name][0](student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_are_refused(name: str) -> None:
    loss, (student, teacher) = LOSSES[name][0], drawn(name)
    says = "got student|but got"
    for wrong in ((student[:3], teacher), (student, teacher[:1]), (student.flatten(), teacher)):
        with pytest.raises(ValueError, match=says) as caught:
            loss(*wrong) if "ckd" not in name else getattr(dkd, f"{name}_loss")(*wrong, torch.arange(8) % 6, 4.0)
        assert all(str(tuple(x.shape)) in str(caught.value) for x in wrong)


def test_unit_rows() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e30, -4e30], [3e-25, 4e-25]], requires_grad=True)
    unit = unit_rows(rows)
    assert unit.dtype == torch.float64
    torch.testing.assert_close(
        unit, torch.tensor([[0.6, 0.8], [0, 0], [0.6, -0.8], [0.6, 0.8]], dtype=torch.float64), rtol=1e-6, atol=0
    )
    unit[:, 0].sum().backward()
    assert rows.grad is not None and rows.grad.isfinite().all() and torch.count_nonzero(rows.grad[1]) == 0


# --- at


def plain_attention(maps: Tensor) -> list[list[float]]:
    """By loops: mean over channels of squares, one list of positions a sample, of length 1."""
    found = []
    for sample in maps.double():
        channels, height, width = sample.shape
        values = [
            sum(float(sample[c, i, j]) ** 2 for c in range(channels)) / channels
            for i in range(height)
            for j in range(width)
        ]
        length = math.sqrt(sum(v * v for v in values))
        found.append([v / length for v in values])
    return found


def plain_at(student: Tensor, teacher: Tensor) -> float:
    one, other = plain_attention(student), plain_attention(teacher)
    squares = [(a - b) ** 2 for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(squares) / len(squares)


def test_at_equals_the_plain_form() -> None:
    student, teacher = randn(3, 4, 5, 2), randn(3, 7, 5, 2, seed=1)
    assert at.attention_loss(student, teacher).item() == pytest.approx(plain_at(student, teacher), rel=1e-5)


def test_at_worked_by_hand() -> None:
    # squares 9, 16 give attention (9, 16) / sqrt(337); the teacher's is (0, 1)
    student, teacher = torch.tensor([3.0, -4.0]).view(1, 1, 1, 2), torch.tensor([0.0, 5.0]).view(1, 1, 1, 2)
    wanted = (81 / 337 + (16 / math.sqrt(337) - 1) ** 2) / 2
    assert at.attention_loss(student, teacher).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((6, 6), (3, 3)), ((2, 2), (4, 4)), ((8, 8), (4, 2)), ((2, 6), (4, 3)), ((1, 1), (4, 4))],
)
def test_at_averages_the_larger_map_in_each_direction(student: tuple[int, int], teacher: tuple[int, int]) -> None:
    def averaged(maps: Tensor) -> Tensor:
        height, width = min(student[0], teacher[0]), min(student[1], teacher[1])
        windows = maps.view(3, 2, height, maps.shape[2] // height, width, maps.shape[3] // width)
        return windows.double().mean(dim=(3, 5))

    one, other = randn(3, 2, *student), randn(3, 2, *teacher, seed=1)
    wanted = plain_at(averaged(one), averaged(other))
    assert at.attention_loss(one, other).item() == pytest.approx(wanted, rel=1e-5, abs=1e-12)


def test_at_pairs_maps_from_the_deepest_backwards() -> None:
    student, teacher = [randn(2, c, 4, 4, seed=c) for c in (3, 5)], [randn(2, c, 4, 4, seed=c) for c in (2, 4, 6)]
    wanted = plain_at(student[1], teacher[2]) + plain_at(student[0], teacher[1])
    assert at.at_loss(student, teacher).item() == pytest.approx(wanted, rel=1e-5)
    assert at.at_loss(teacher, student).item() == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(ValueError, match="a feature map of each network, but got 0 of the student and 3"):
        at.at_loss([], teacher)


# --- dkd


def plain_dkd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[float, float]:
    """TCKD and NCKD by loops over probabilities."""
    tckd = nckd = 0.0
    for s, t, label in zip(student.double(), teacher.double(), labels.tolist(), strict=True):
        q, p = (torch.softmax(x / temperature, dim=0).tolist() for x in (s, t))
        tckd += p[label] * math.log(p[label] / q[label])
        tckd += (1 - p[label]) * math.log((1 - p[label]) / (1 - q[label]))
        for c in range(len(p)):
            if c != label:
                mine, wanted = q[c] / (1 - q[label]), p[c] / (1 - p[label])
                nckd += wanted * math.log(wanted / mine)
    return tckd * temperature**2 / len(student), nckd * temperature**2 / len(student)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_equals_the_plain_form(temperature: float) -> None:
    student, teacher = 3 * randn(8, 10), 3 * randn(8, 10, seed=1)
    labels = torch.tensor([0, 9, 4, 4, 1, 2, 9, 0])
    wanted = plain_dkd(student, teacher, labels, temperature)
    assert dkd.tckd_loss(student, teacher, labels, temperature).item() == pytest.approx(wanted[0], rel=1e-5)
    assert dkd.nckd_loss(student, teacher, labels, temperature).item() == pytest.approx(wanted[1], rel=1e-5)


def test_dkd_put_together_again_is_kd() -> None:
    student, teacher = 2 * randn(8, 10), 2 * randn(8, 10, seed=1)
    for s, t, label in zip(student[:, None], teacher[:, None], labels_of(student)[:, None], strict=True):
        doubt = 1 - F.softmax(t / 4.0, dim=1)[0, label]
        whole = dkd.tckd_loss(s, t, label, 4.0) + doubt * dkd.nckd_loss(s, t, label, 4.0)  # eq. 6
        assert whole.item() == pytest.approx(kd.kd_loss(s, t, 4.0).item(), rel=1e-4)


def test_dkd_of_logits_whose_probabilities_underflow() -> None:
    labels = torch.tensor([0])
    student, teacher = torch.tensor([[-1e4, 1e4, 0.0]]), torch.tensor([[1e4, 0.0, -1e4]])
    # the teacher gives the true class 1, the student exp(-5000): 5000 nats at temperature 4, times 16
    assert dkd.tckd_loss(student, teacher, labels, 4.0).item() == pytest.approx(5000 * 16, rel=1e-6)
    assert dkd.nckd_loss(student, teacher, labels, 4.0).item() == pytest.approx(0, abs=1e-6)  # both are sure of class 1
    student = torch.tensor([[1e4, -1e4, 1e4]])  # among classes 1 and 2, the teacher is sure of 1, the student of 2
    assert dkd.nckd_loss(student, teacher, labels, 4.0).item() == pytest.approx(5000 * 16, rel=1e-6)


def test_nckd_does_not_see_the_true_class() -> None:
    student, teacher, labels = randn(4, 5), randn(4, 5, seed=1), torch.tensor([0, 4, 2, 2])
    before = dkd.nckd_loss(student, teacher, labels, 4.0)
    other = student.scatter(1, labels[:, None], 1e6).requires_grad_()
    after = dkd.nckd_loss(other, teacher, labels, 4.0)
    assert torch.equal(after, before)
    (gradient,) = torch.autograd.grad(after, other)
    assert torch.count_nonzero(gradient.gather(1, labels[:, None])) == 0
    assert dkd.nckd_loss(randn(4, 2), randn(4, 2, seed=1), torch.tensor([0, 1, 1, 0]), 4.0) == 0


def test_dkd_refuses_labels_and_single_classes() -> None:
    for loss in (dkd.tckd_loss, dkd.nckd_loss):
        with pytest.raises(ValueError, match=r"labels \[B\], but got .* and labels \(3,\)"):
            loss(randn(4, 5), randn(4, 5), torch.zeros(3, dtype=torch.long), 4.0)
        with pytest.raises(ValueError, match="at least 2 classes"):
            loss(randn(4, 1), randn(4, 1), torch.zeros(4, dtype=torch.long), 4.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize(
    "loss",
    [
        partial(dkd.tckd_loss, labels=torch.tensor([0, 1])),
        partial(dkd.nckd_loss, labels=torch.tensor([0, 1])),
        dist.inter_class_loss,
        dist.intra_class_loss,
    ],
)
def test_temperatures_are_refused(loss: Callable[..., Tensor], temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature > 0"):
        loss(randn(2, 3), randn(2, 3), temperature=temperature)


# --- dist


def plain_correlation(one: list[float], other: list[float]) -> float:
    mean, other_mean = sum(one) / len(one), sum(other) / len(other)
    pairs = [(a - mean, b - other_mean) for a, b in zip(one, other, strict=True)]
    return sum(a * b for a, b in pairs) / math.sqrt(sum(a * a for a, _ in pairs) * sum(b * b for _, b in pairs))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_equals_the_plain_form(temperature: float) -> None:
    student, teacher = 3 * randn(8, 10), 3 * randn(8, 10, seed=1)
    q, p = (torch.softmax(x.double() / temperature, dim=1) for x in (student, teacher))
    inter = [1 - plain_correlation(a, b) for a, b in zip(q.tolist(), p.tolist(), strict=True)]
    intra = [1 - plain_correlation(a, b) for a, b in zip(q.T.tolist(), p.T.tolist(), strict=True)]
    found = dist.inter_class_loss(student, teacher, temperature), dist.intra_class_loss(student, teacher, temperature)
    assert found[0].item() == pytest.approx(sum(inter) / 8 * temperature**2, rel=1e-5)
    assert found[1].item() == pytest.approx(sum(intra) / 10 * temperature**2, rel=1e-5)


def test_dist_worked_by_hand() -> None:
    # two classes: the probabilities' deviations are (d, -d), so rows agree wholly or not at all
    student, teacher = torch.tensor([[2.0, 0.0], [5.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert dist.inter_class_loss(student, teacher, 1.0).item() == pytest.approx((0 + 2) / 2)
    # from the first sample to the second, class 0 rises in the student and falls in the teacher; class 1 the opposite
    assert dist.intra_class_loss(student, teacher, 1.0).item() == pytest.approx(2)
    assert dist.intra_class_loss(student, teacher, 4.0).item() == pytest.approx(2 * 16)


def test_dist_without_a_correlation_adds_nothing() -> None:
    student, teacher = randn(3, 5), randn(3, 5, seed=1)
    student[1] = 0.7  # all classes equally probable
    student.requires_grad_()
    loss = dist.inter_class_loss(student, teacher, 4.0)
    rest = dist.inter_class_loss(student[[0, 2]], teacher[[0, 2]], 4.0)
    assert loss.item() == pytest.approx(rest.item() * 2 / 3, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.count_nonzero(gradient[1]) == 0
    same = teacher[:1].expand(3, 5)
    assert dist.intra_class_loss(student, same, 4.0) == 0 and dist.intra_class_loss(same, teacher, 4.0) == 0


def test_dist_sees_classes_that_are_far_from_probable() -> None:
    student, teacher = (torch.tensor([[0.0, 400.0], [0.0, x]]) for x in (440.0, 360.0))
    # class 0 has probability exp(-100), then exp(-110) and exp(-90): opposite orders; class 1 has 1 for all
    assert dist.intra_class_loss(student, teacher, 4.0).item() == pytest.approx(16 * (2 + 0) / 2, rel=1e-6)


@pytest.mark.parametrize("classes", range(2, 60))
def test_dist_takes_rounding_for_no_correlation(classes: int) -> None:
    student = torch.full((4, classes), 0.1, requires_grad=True)
    loss = dist.inter_class_loss(student, randn(4, classes), 4.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss == 0 and torch.count_nonzero(gradient) == 0


@pytest.mark.parametrize("gap", range(100, 6000, 100))
def test_dist_has_finite_gradients_down_to_probabilities_of_zero(gap: int) -> None:
    student = torch.tensor([[0.0, gap], [0.0, 0.98 * gap], [0.0, 0.99 * gap]], requires_grad=True)
    (gradient,) = torch.autograd.grad(dist.intra_class_loss(student, randn(3, 2), 4.0), student)
    assert gradient.isfinite().all()


# --- sp


def plain_sp(student: Tensor, teacher: Tensor) -> float:
    def similarities(maps: Tensor) -> list[list[float]]:
        rows = maps.flatten(1).double().tolist()
        gram = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in rows] for x in rows]
        return [[g / math.sqrt(sum(h * h for h in row)) for g in row] for row in gram]

    one, other = similarities(student), similarities(teacher)
    squares = [(a - b) ** 2 for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(squares) / len(student) ** 2


def test_sp_equals_the_plain_form() -> None:
    student, teacher = randn(5, 3, 2, 2), randn(5, 4, 3, 3, seed=1)
    assert sp.similarity_loss(student, teacher).item() == pytest.approx(plain_sp(student, teacher), rel=1e-6)


def test_sp_worked_by_hand() -> None:
    # Gram matrices [[1, 1], [1, 2]] and the identity
    student = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).view(2, 2, 1, 1)
    teacher = torch.eye(2).view(2, 1, 1, 2)
    half, fifth = 1 / math.sqrt(2), 1 / math.sqrt(5)
    wanted = ((half - 1) ** 2 + half**2 + fifth**2 + (2 * fifth - 1) ** 2) / 4
    assert sp.similarity_loss(student, teacher).item() == pytest.approx(wanted, rel=1e-6)


# --- pkt


def plain_pkt(student: Tensor, teacher: Tensor) -> float:
    def neighbours(embeddings: Tensor) -> list[list[float]]:
        rows = embeddings.double().tolist()
        found = []
        for x in rows:
            near = []
            for y in rows:
                product = sum(a * b for a, b in zip(x, y, strict=True))
                near.append((product / math.hypot(*x) / math.hypot(*y) + 1) / 2)
            found.append([n / sum(near) for n in near])
        return found

    q, p = neighbours(student), neighbours(teacher)
    terms = [b * math.log(b / a) for x, y in zip(q, p, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(terms) / len(student) ** 2


@pytest.mark.parametrize("noise", [1.0, 1e-3])
def test_pkt_equals_the_plain_form(noise: float) -> None:
    teacher = randn(7, 12)
    student = teacher + noise * randn(7, 12, seed=1)
    assert pkt.pkt_loss(student, teacher).item() == pytest.approx(plain_pkt(student, teacher), rel=1e-5)
    assert pkt.pkt_loss(student, teacher) != pkt.pkt_loss(teacher, student)


def test_pkt_worked_by_hand() -> None:
    # cosines 1 and 0 give similarities 1 and 1/2, so rows (2/3, 1/3); the teacher's two are alike: (1/2, 1/2)
    student, teacher = torch.eye(2), torch.ones(2, 3)
    wanted = 2 * (0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))) / 4
    assert pkt.pkt_loss(student, teacher).item() == pytest.approx(wanted, rel=1e-6)


def test_pkt_of_opposite_embeddings() -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.ones(2, 2)
    # similarity 0 counts as 1e-7
    wanted = (math.log(0.5) + 0.5 * math.log(0.5 / 1e-7) - 0.5 * math.log(0.5)) / 2
    assert pkt.pkt_loss(student, teacher).item() == pytest.approx(wanted, rel=1e-5)


# --- in a stage, and on the networks of the pairs


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return small.prepare(tmp_path_factory.mktemp("store"), train_size=50, teacher_epochs=1)


def one_step(text: str, bench: Bench) -> tuple[Trained, nn.Module, nn.Module]:
    """Train a tiny student by train_stage for one step; its training, itself and what it was before."""
    student = small.fresh()
    return small.train(student, text, bench.data, [bench.teacher], train_size=50), student, small.fresh()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_stage_of_it_trains(name: str, bench: Bench) -> None:
    done, student, _ = one_step(name, bench)
    alone, baseline, before = one_step("ce", bench)
    (terms,), (plain,) = done.losses, alone.losses
    assert list(terms) == ["ce", *TERMS[name]]
    assert terms["ce"] == plain["ce"]  # at weight 1, as published
    assert all(terms[term] > 0 for term in TERMS[name])
    weights, without, start = (n.state_dict()["stages.0.0.weight"] for n in (student, baseline, before))
    assert weights.isfinite().all() and not torch.equal(weights, start) and not torch.equal(weights, without)


def test_all_at_once_in_a_joint_stage(bench: Bench) -> None:
    done, _, _ = one_step("kd+fitnets+rkd+at+dkd+dist+sp+pkt", bench)
    assert set(done.losses[0]) > {term for terms in TERMS.values() for term in terms}


def test_a_stage_tells_the_epoch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[int] = []
    forward = dkd.DKD.forward

    def watched(method: dkd.DKD, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        epochs.append(batch.epoch)
        return forward(method, student, teacher, batch)

    monkeypatch.setattr(dkd.DKD, "forward", watched)
    rising = small.train(small.fresh(), "dkd(warmup=4)", bench.data, [bench.teacher], train_size=50, epochs=3).losses[0]
    assert epochs == [1, 2, 3]  # of one step each
    full = one_step("dkd", bench)[0].losses[0]
    assert rising["ce"] == full["ce"]
    assert [4 * rising[term] for term in TERMS["dkd"]] == pytest.approx([full[term] for term in TERMS["dkd"]])


def test_weights_are_the_ones_the_method_is_built_with() -> None:
    output = models.Output(logits=randn(4, 5), features=(randn(4, 3, 4, 4),), embedding=randn(4, 3))
    other = models.Output(logits=randn(4, 5, seed=1), features=(randn(4, 6, 2, 2, seed=1),), embedding=randn(4, 6))
    views, labels = (View(output, 0), View(other, 0)), torch.tensor([0, 1, 2, 3])
    batch = Batch(labels, torch.arange(4))

    def losses(name: str, **settings: Any) -> dict[str, float]:
        method = methods.load(name).build(Task(*views, PUBLISHED[name] | settings, labels))
        return {term: loss.item() for term, loss in method(*views, batch).items()}

    for name, terms in TERMS.items():
        plain = losses(name, **dict.fromkeys(terms.values(), 1.0))
        assert list(plain) == list(terms)
        for term, setting in terms.items():
            published = PUBLISHED[name][setting]
            weighted = losses(name, **dict.fromkeys(terms.values(), 1.0) | {setting: published / 4})
            wanted = {t: v * (published / 4 if t == term else 1) for t, v in plain.items()}
            assert weighted == pytest.approx(wanted)


@pytest.mark.parametrize("pair", ["resnet56_resnet20", "wrn40_2_shufflenetv2"])
def test_methods_take_the_networks_of_a_pair(pair: str) -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([3, 99])
    views = []
    for spec in (pairs.get(pair).student, pairs.get(pair).teacher):
        network = models.build(spec, num_classes=100, image=(3, 32, 32))
        views.append(View(network(images), network.hint_index))  # type: ignore[arg-type]
    for name, terms in TERMS.items():
        method = methods.load(name).build(Task(views[0], views[1], PUBLISHED[name], labels))
        losses = method(views[0], views[1], Batch(labels, torch.arange(2)))
        assert list(losses) == list(terms)
        assert all(loss.shape == () and loss.isfinite() and loss > 0 for loss in losses.values())
        read = {"features": views[0].output.features[-1], "logits": views[0].output.logits}
        source = read.get(READS[name], views[0].output.embedding)
        (gradient,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), source, retain_graph=True)
        assert gradient.isfinite().all() and gradient.abs().sum() > 0


# --- layers


def staged(maps: list[tuple[int, int]], hint: int) -> View:
    """A network's outputs whose maps have these channels and sides."""
    features = tuple(randn(4, c, side, side, seed=k) for k, (c, side) in enumerate(maps))
    return View(models.Output(logits=randn(4, 5), features=features, embedding=randn(4, maps[-1][0])), hint)


LAYERS = staged([(3, 8), (5, 4), (7, 2)], 1), staged([(4, 8), (6, 8), (8, 4), (9, 2)], 2)


@pytest.mark.parametrize(("layer", "student", "teacher"), [(0, 1, 2), (-1, 2, 3), (-2, 1, 2), (-3, 0, 1)])
def test_a_layer_is_counted_from_the_last_and_0_is_the_hint(layer: int, student: int, teacher: int) -> None:
    mine, theirs = LAYERS
    assert mine.map(layer) is mine.output.features[student] and theirs.map(layer) is theirs.output.features[teacher]
    batch = Batch(torch.arange(4), torch.arange(4))
    method = methods.load("sp").build(Task(mine, theirs, {"weight": 2.0, "layer": layer}, batch.labels))
    wanted = sp.similarity_loss(mine.output.features[student], theirs.output.features[teacher])
    assert method(mine, theirs, batch)["sp"].item() == pytest.approx(2 * wanted.item())
    torch.manual_seed(0)
    method = methods.load("fitnets").build(
        Task(mine, theirs, {"weight": 2.0, "layer": layer, "relu": False}, batch.labels)
    )
    regressed = method.regressor(mine.output.features[student])
    wanted = F.mse_loss(regressed, theirs.output.features[teacher])
    assert method(mine, theirs, batch)["fitnets"].item() == pytest.approx(2 * wanted.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["fitnets", "sp"])
def test_a_layer_that_there_is_not_is_told_when_the_method_is_built(name: str) -> None:
    with pytest.raises(ValueError, match="layer >= -3 must hold, for the maps that there are, but got layer=-4"):
        methods.load(name).build(Task(*LAYERS, {"weight": 2.0, "layer": -4}, torch.arange(4)))


def test_what_is_read_hangs_on_the_layer() -> None:
    assert reads_of("fitnets", {"layer": 0}) == {"hint"} and reads_of("fitnets", {"layer": -1}) == {"features"}
    assert reads_of("sp", {"layer": 0}) == reads_of("sp", {"layer": -1}) == {"features"}
