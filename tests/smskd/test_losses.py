"""The losses: against plain forms of the same formulas, at worked values, and on hostile input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smskd import anchor, methods
from smskd.methods import fitnets, kd, rkd
from smskd.recipe import Stage

LABELS = torch.tensor([0, 1])
PAPERS = {
    "kd": {"weight": 0.9, "temperature": 4.0},
    "fitnets": {"weight": 100.0, "layer": 0, "relu": False},
    "rkd": {"weight": 1.0, "distance": 25.0, "angle": 50.0},
}
RKD_LOSSES = [rkd.distance_loss, rkd.angle_loss]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def logits_of(probability: float) -> Tensor:
    """Logits [2, 2] of a teacher that gives class 0 this probability, for both samples."""
    return torch.tensor([[probability, 1 - probability]] * 2).log()


# --- kd


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_kd_is_batchmean_kl_of_teacher_to_student_times_temperature_squared(temperature: float) -> None:
    student, teacher = 3 * randn(8, 100), 3 * randn(8, 100, seed=1)
    log_student = F.log_softmax(student.double() / temperature, dim=1)
    target = F.softmax(teacher.double() / temperature, dim=1)
    wanted = F.kl_div(log_student, target, reduction="batchmean").item() * temperature**2
    assert kd.kd_loss(student, teacher, temperature).item() == pytest.approx(wanted, rel=1e-5)
    assert kd.kd_loss(teacher, student, temperature).item() != pytest.approx(wanted, rel=1e-3)


def test_defaults_of_the_papers_methods() -> None:
    defaults = {name: {k: v.default for k, v in methods.declaration(name).settings.items()} for name in PAPERS}
    assert defaults == PAPERS


def test_kd_gradient_keeps_its_size_across_temperatures() -> None:
    student, teacher = (0.1 * randn(8, 10)).requires_grad_(), 0.1 * randn(8, 10, seed=1)
    sizes = [torch.autograd.grad(kd.kd_loss(student, teacher, t), student)[0].norm().item() for t in (2.0, 8.0, 32.0)]
    assert sizes == pytest.approx([sizes[0]] * 3, rel=0.1)


def test_divergence_has_the_gradient_of_its_value() -> None:
    student, teacher = randn(3, 5).double().requires_grad_(), randn(3, 5, seed=1).double()
    assert torch.autograd.gradcheck(lambda s: kd.divergence(s, teacher, 3.0), (student,))


def test_kd_gives_the_teacher_no_gradient_and_the_student_one() -> None:
    student, teacher = randn(4, 5).requires_grad_(), randn(4, 5, seed=1).requires_grad_()
    kd.kd_loss(student, teacher, 4.0).backward()
    assert teacher.grad is None
    assert student.grad is not None and student.grad.abs().sum() > 0


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_kd_refuses_temperatures(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature > 0"):
        kd.kd_loss(randn(2, 3), randn(2, 3), temperature)


def test_kd_refuses_shapes_that_would_broadcast() -> None:
    with pytest.raises(ValueError, match="one shape"):
        kd.kd_loss(randn(2, 3), randn(1, 3), 4.0)


def test_kd_of_half_precision_is_float32_and_finite() -> None:
    student = (100 * randn(4, 5)).half().requires_grad_()
    loss = kd.kd_loss(student, (100 * randn(4, 5, seed=1)).half(), 4.0)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("names", "weight"),
    [
        (("ce",), 1.0),
        (("fitnets", "rkd"), 1.0),
        (("kd", "rkd"), 0.1),
        (("logit_std",), 0.1),
        (("kd", "logit_std"), 0.1),
        (("crd", "reviewkd", "vid"), 1.0),
    ],
)
def test_cross_entropy_weighs_a_tenth_beside_kd(names: tuple[str, ...], weight: float) -> None:
    assert methods.ce_weight(names) == weight
    stage = Stage(methods=names)
    assert stage.training({}).ce == weight
    assert stage.training({"ce": 0.3}).ce == 0.3
    assert Stage(methods=names, settings=(("ce", 0.7),)).training({"ce": 0.3}).ce == 0.7


# --- anchor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 3.0, 4.0])
def test_anchor_is_exactly_zero_where_student_and_reference_agree(temperature: float, dtype: torch.dtype) -> None:
    reference = (5 * randn(64, 100)).to(dtype)
    student = reference.clone().requires_grad_()
    loss = anchor.anchor_loss(student, reference, torch.rand(64), temperature)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None and torch.count_nonzero(student.grad) == 0


@pytest.mark.parametrize("weighting", ["tcp", "tcp_true"])
@pytest.mark.parametrize("base", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("probability", "share"), [(0.95, 0.05), (0.55, 0.45)])
def test_worked_values_of_the_weight(weighting: str, base: float, probability: float, share: float) -> None:
    weights = anchor.reference_weights(logits_of(probability), torch.tensor([0, 0]), weighting, base)
    assert weights.tolist() == pytest.approx([share * base] * 2, rel=1e-5)


def test_tcp_looks_at_the_top_class_and_tcp_true_at_the_true_one() -> None:
    logits = logits_of(0.95)  # class 1 of the second sample is true, and improbable
    assert anchor.teacher_class_probability(logits, LABELS, "tcp").tolist() == pytest.approx([0.95, 0.95])
    assert anchor.teacher_class_probability(logits, LABELS, "tcp_true").tolist() == pytest.approx([0.95, 0.05])
    assert anchor.reference_weights(logits, LABELS, "tcp_true", 1.0).tolist() == pytest.approx([0.05, 0.95])
    assert anchor.reference_weights(logits, LABELS, "fixed", 0.3).tolist() == pytest.approx([0.3, 0.3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("weighting", ["fixed", "tcp", "tcp_true"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_weights_are_detached_float32_one_a_sample_and_in_range(
    weighting: str, scale: float, dtype: torch.dtype
) -> None:
    logits = (scale * randn(32, 10)).to(dtype).requires_grad_()
    weights = anchor.reference_weights(logits, torch.arange(32) % 10, weighting, 0.7)
    assert weights.shape == (32,) and weights.dtype == torch.float32 and not weights.requires_grad
    assert weights.min() >= 0 and weights.max() <= torch.tensor(0.7)


def test_anchor_weighs_each_sample_and_then_takes_the_mean() -> None:
    student, reference, weights = randn(6, 10), randn(6, 10, seed=1), torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    wanted = 0.0
    for s, r, weight in zip(student.double() / 4, reference.double() / 4, weights.double(), strict=True):
        target = r.softmax(dim=0)
        wanted += float(weight * (target * (target.log() - s.log_softmax(dim=0))).sum()) * 16 / 6
    assert anchor.anchor_loss(student, reference, weights, 4.0).item() == pytest.approx(wanted, rel=1e-5)


def test_anchor_of_equal_weights_is_kd_of_the_reference() -> None:
    student, reference = randn(6, 10), randn(6, 10, seed=1)
    torch.testing.assert_close(
        anchor.anchor_loss(student, reference, torch.full((6,), 0.5), 3.0), 0.5 * kd.kd_loss(student, reference, 3.0)
    )


def test_anchor_gives_gradient_to_the_student_alone() -> None:
    student, reference, weights = (t.requires_grad_() for t in (randn(6, 10), randn(6, 10, seed=1), torch.rand(6)))
    anchor.anchor_loss(student, reference, weights, 4.0).backward()
    assert reference.grad is None and weights.grad is None
    assert student.grad is not None and student.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(6, 1), (1,), ()])
def test_anchor_refuses_weights_that_would_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one per sample"):
        anchor.anchor_loss(randn(6, 10), randn(6, 10, seed=1), torch.ones(shape), 4.0)


@pytest.mark.parametrize("base", [-0.1, float("nan")])
def test_weights_refuse_lambda_base(base: float) -> None:
    with pytest.raises(ValueError, match="lambda_base >= 0"):
        anchor.reference_weights(logits_of(0.9), LABELS, "tcp", base)


def test_names_are_checked() -> None:
    with pytest.raises(ValueError, match="tcp_true"):
        anchor.reference_weights(logits_of(0.9), LABELS, "tcp_tru", 0.5)
    with pytest.raises(ValueError, match="tcp"):
        anchor.teacher_class_probability(logits_of(0.9), LABELS, "fixed")


# --- fitnets


def test_hint_loss_is_the_mean_squared_error() -> None:
    student, teacher = randn(2, 3, 4, 5).requires_grad_(), randn(2, 3, 4, 5, seed=1).requires_grad_()
    loss = fitnets.hint_loss(student, teacher)
    assert loss.item() == pytest.approx((student - teacher).detach().square().mean().item(), rel=1e-6)
    loss.backward()
    assert teacher.grad is None and student.grad is not None


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 3, 4, 1), (1, 3, 4, 4), (2, 6, 4, 4)])
def test_hint_loss_refuses_two_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Regressor"):
        fitnets.hint_loss(randn(2, 3, 4, 4), randn(*shape))


@pytest.mark.parametrize(
    ("source", "target", "kind"),
    [
        ((8, 4, 4), (64, 4, 4), nn.Conv2d),  # tiny
        ((16, 8, 8), (512, 16, 16), nn.ConvTranspose2d),  # resnet50_mobilenetv2
        ((232, 8, 8), (64, 16, 16), nn.ConvTranspose2d),  # wrn40_2_shufflenetv2
        ((128, 16, 16), (256, 8, 8), nn.Conv2d),  # vgg19_resnet18
        ((8, 6, 6), (4, 18, 18), nn.ConvTranspose2d),
        ((8, 1, 1), (4, 8, 8), nn.ConvTranspose2d),
        ((8, 5, 5), (4, 7, 7), nn.ConvTranspose2d),
        ((8, 4, 8), (4, 8, 8), nn.ConvTranspose2d),
        ((8, 8, 8), (4, 1, 1), nn.Conv2d),
        ((8, 7, 7), (4, 5, 5), nn.Conv2d),
        ((8, 8, 4), (4, 3, 4), nn.Conv2d),
    ],
)
def test_regressor_meets_the_teachers_shape(
    source: tuple[int, int, int], target: tuple[int, int, int], kind: type
) -> None:
    regressor = fitnets.Regressor(source, target)
    output = regressor(randn(2, *source))
    assert output.shape == (2, *target)
    assert [type(layer) for layer in regressor] == [kind, nn.BatchNorm2d]  # no ReLU: hints are signed
    assert output.min() < 0


def test_regressor_refuses_to_grow_and_shrink_at_once() -> None:
    with pytest.raises(ValueError, match="grows in one direction and shrinks in the other"):
        fitnets.Regressor((8, 8, 4), (4, 4, 8))


# --- rkd


def naive_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    def relative(x: Tensor) -> Tensor:
        distance = (x[:, None] - x[None]).square().sum(dim=2).sqrt()
        return distance / distance[distance > 0].mean()

    return F.smooth_l1_loss(relative(student.double()), relative(teacher.double()))


def naive_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    def cosines(x: Tensor) -> Tensor:
        unit = F.normalize(x[None] - x[:, None], dim=2)  # [i, j] points from i to j
        return torch.bmm(unit, unit.transpose(1, 2))

    return F.smooth_l1_loss(cosines(student.double()), cosines(teacher.double()))


@pytest.mark.parametrize(
    ("loss", "naive"), [(rkd.distance_loss, naive_distance_loss), (rkd.angle_loss, naive_angle_loss)]
)
@pytest.mark.parametrize(("batch", "shift"), [(2, 0.0), (3, 0.0), (16, 0.0), (16, 100.0)])
def test_rkd_equals_the_naive_form(
    loss: Callable[..., Tensor], naive: Callable[..., Tensor], batch: int, shift: float
) -> None:
    student, teacher = randn(batch, 12) + shift, randn(batch, 20, seed=1) - shift
    assert loss(student, teacher).item() == pytest.approx(naive(student, teacher).item(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("loss", "naive"), [(rkd.distance_loss, naive_distance_loss), (rkd.angle_loss, naive_angle_loss)]
)
def test_rkd_has_the_gradient_of_the_naive_form(loss: Callable[..., Tensor], naive: Callable[..., Tensor]) -> None:
    student, teacher = randn(8, 12).requires_grad_(), randn(8, 20, seed=1)
    (gradient,) = torch.autograd.grad(loss(student, teacher), student)
    exact = student.detach().double()  # by differences: autograd of the naive form is NaN at zero distances
    numeric = torch.zeros_like(exact)
    with torch.no_grad():
        for place in range(exact.numel()):
            step = torch.zeros(exact.numel(), dtype=torch.float64)
            step[place] = 1e-5
            step = step.view_as(exact)
            numeric.view(-1)[place] = (naive(exact + step, teacher) - naive(exact - step, teacher)) / 2e-5
    torch.testing.assert_close(gradient.double(), numeric, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("loss", RKD_LOSSES)
def test_rkd_sees_neither_scale_nor_shift_nor_rotation(loss: Callable[..., Tensor]) -> None:
    teacher = randn(10, 6)
    rotation = torch.linalg.qr(randn(6, 6, seed=2))[0]
    assert loss(3 * teacher @ rotation + 1, teacher).item() == pytest.approx(0, abs=1e-9)


def hostile() -> dict[str, Tensor]:
    plain = randn(8, 6)
    return {
        "zeros": torch.zeros(8, 6),
        "identical": plain[:1].expand(8, 6).clone(),
        "identical, large": 1e3 * plain[:1].expand(8, 6).clone(),
        "a pair": torch.cat([plain[:7], plain[:1]]),
        "nearly a pair": torch.cat([plain[:7], plain[:1] * (1 + 1e-6)]),
        "batch of 1": plain[:1],
        "batch of 2": plain[:2],
        "small": 1e-3 * plain,
        "large": 1e3 * plain,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", list(hostile()))
@pytest.mark.parametrize("loss", RKD_LOSSES)
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_rkd_of_hostile_embeddings_is_finite(
    loss: Callable[..., Tensor], case: str, dtype: torch.dtype, side: str
) -> None:
    bad = hostile()[case].to(dtype)
    plain = randn(len(bad), 6, seed=1).to(dtype)
    student = (plain if side == "teacher" else bad).clone().requires_grad_()
    value = loss(student, plain if side == "student" else bad)
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite()
    assert student.grad is not None and student.grad.isfinite().all()
    if len(bad) == 1 or side == "both":
        assert value.item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
@pytest.mark.parametrize("loss", RKD_LOSSES)
def test_rkd_of_extreme_scales(loss: Callable[..., Tensor], scale: float) -> None:
    student, teacher = randn(8, 6), randn(8, 6, seed=1)
    extreme = (scale * student).requires_grad_()
    value = loss(extreme, teacher)
    value.backward()
    assert value.item() == pytest.approx(loss(student, teacher).item(), rel=1e-5)
    assert extreme.grad is not None and extreme.grad.isfinite().all()


@pytest.mark.parametrize("loss", RKD_LOSSES)
def test_rkd_gives_the_teacher_no_gradient_and_the_student_one(loss: Callable[..., Tensor]) -> None:
    student, teacher = randn(8, 6).requires_grad_(), randn(8, 6, seed=1).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None and student.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", RKD_LOSSES)
@pytest.mark.parametrize(("student", "teacher"), [((4, 3), (5, 3)), ((4, 3, 1), (4, 3)), ((4,), (4,))])
def test_rkd_refuses_shapes(loss: Callable[..., Tensor], student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one batch"):
        loss(randn(*student), randn(*teacher))
