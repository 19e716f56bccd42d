"""The methods that came after the paper's three: against plain forms of their formulas, at worked values, in training.

What all methods keep to is in tests/contracts/test_methods.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from smskd import methods
from smskd import stage as training
from smskd.bench import Bench
from smskd.methods import base, crd, logit_std, reviewkd, vid
from smskd.methods.base import Batch, Method, Task, View
from smskd.models import Output
from tests.smskd import small

NAMES = ["crd", "logit_std", "reviewkd", "vid"]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def view_of(maps: Sequence[Tensor], embedding: Tensor | None = None, logits: Tensor | None = None) -> View:
    """Without an embedding, the last map's average; before the ReLU maps are lower by 1."""
    if embedding is None:
        embedding = maps[-1].mean((2, 3)) if maps else torch.empty(0)
    return View(
        Output(
            logits=torch.empty(0) if logits is None else logits,
            features=tuple(maps),
            embedding=embedding,
            before_relu=tuple(one - 1 for one in maps),
        ),
        0,
    )


NO_BATCH = Batch(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))


def defaults(name: str) -> dict[str, Any]:
    return {key: one.default for key, one in methods.declaration(name).settings.items()}


def built(name: str, student: View, teacher: View, labels: Tensor, **settings: float) -> Method:
    method: Method = methods.load(name).build(Task(student, teacher, defaults(name) | settings, labels))
    return method


# --- in training


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return small.prepare(tmp_path_factory.mktemp("store"), teacher_epochs=1)


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_trains_with_the_published_weight(name: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Method] = []
    starts: list[dict[str, Tensor]] = []
    original = training.build_terms

    def watched(*arguments: Any) -> list[training.Term]:
        found = original(*arguments)
        made.extend(term.method for term in found)
        starts.extend({n: t.clone() for n, t in term.method.state_dict().items()} for term in found)
        return found

    monkeypatch.setattr(training, "build_terms", watched)

    def train(text: str) -> tuple[dict[str, float], dict[str, Tensor]]:
        student = small.fresh()
        done = small.train(student, text, bench.data, [bench.teacher])
        return dict(done.losses[0]), {n: t.clone() for n, t in student.state_dict().items()}

    losses, weights = train(name)
    assert list(losses) == ["ce", name] and all(map(math.isfinite, losses.values()))
    learned = [n for n, _ in made[0].named_parameters()]
    assert all(not torch.equal(made[0].state_dict()[n], starts[0][n]) for n in learned)
    again, same = train(f"{name}(weight={defaults(name)['weight']})")
    assert again == losses and all(torch.equal(same[n], weights[n]) for n in weights)
    none, other = train(f"{name}(weight=0)")
    assert none[name] == 0
    assert any(not torch.equal(other[n], weights[n]) for n in weights)


@pytest.mark.parametrize("name", NAMES)
def test_flops_of_its_own_layers_are_counted(name: str, bench: Bench, tmp_path: Path) -> None:
    def flops(text: str) -> float:
        return small.run(text, tmp_path, teacher_epochs=1).train_flops

    assert flops(name) > flops("kd") if name != "logit_std" else flops(name) == flops("kd")


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (lambda student, teacher: logit_std.logit_std_loss(student, teacher, 2.0), (4, 5)),
        (reviewkd.hierarchical_context_loss, (2, 3, 4, 4)),
        (lambda mean, target: vid.negative_log_likelihood(mean, torch.ones(3), target), (2, 3, 4, 4)),
    ],
)
def test_losses_give_the_teacher_no_gradient(loss: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    student, teacher = randn(*shape).requires_grad_(), randn(*shape, seed=1).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None and student.grad.abs().sum() > 0


# --- logit_std


def naive_logit_std(student: Tensor, teacher: Tensor, temperature: float) -> float:
    def soft(row: list[float]) -> list[float]:
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in row) / len(row))
        exps = [math.exp((x - mean) / deviation / temperature) for x in row]
        return [e / sum(exps) for e in exps]

    total = 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        total += sum(q * math.log(q / p) for p, q in zip(soft(s_row), soft(t_row), strict=True))
    return total / len(student) * temperature**2


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_logit_std_equals_the_plain_form(temperature: float) -> None:
    student, teacher = 3 * randn(8, 10) + 5, randn(8, 10, seed=1)
    loss = logit_std.logit_std_loss(student, teacher, temperature)
    assert loss.item() == pytest.approx(naive_logit_std(student, teacher, temperature), rel=1e-5)


def test_logit_std_defaults() -> None:
    assert defaults("logit_std") == {"weight": 9.0, "temperature": 2.0, "unbiased": False}
    student, teacher = randn(8, 10), randn(8, 10, seed=1)
    plain = naive_logit_std(student, teacher, 2.0)
    views = view_of([], logits=student), view_of([], logits=teacher)
    term = built("logit_std", *views, NO_BATCH.labels)(*views, NO_BATCH)["logit_std"]
    assert term.item() == pytest.approx(9 * plain, rel=1e-5)
    warm = built("logit_std", *views, NO_BATCH.labels, weight=1.0, temperature=5.0)(*views, NO_BATCH)["logit_std"]
    assert warm.item() == pytest.approx(naive_logit_std(student, teacher, 5.0), rel=1e-5)


def test_z_scores_have_mean_0_and_deviation_1_whatever_scale_and_shift() -> None:
    logits = randn(6, 10)
    scores = logit_std.standardised(logits)
    assert scores.mean(dim=1).tolist() == pytest.approx([0] * 6, abs=1e-6)
    assert scores.square().mean(dim=1).tolist() == pytest.approx([1] * 6, rel=1e-5)
    assert scores[0].tolist() == pytest.approx(
        ((logits[0] - logits[0].mean()) / logits[0].std(correction=0)).tolist(), rel=1e-4, abs=1e-6
    )
    for scale in (1e-15, 1e-3, 1e3, 1e15):
        torch.testing.assert_close(logit_std.standardised(scale * logits), scores)
    torch.testing.assert_close(logit_std.standardised(logits + 100), scores, rtol=1e-3, atol=1e-4)
    assert logit_std.logit_std_loss(3 * logits + 1, logits, 2.0).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -1e4, 1e-30, 1e30])
def test_constant_logits_have_z_scores_and_gradients_of_zero(value: float) -> None:
    student = torch.full((4, 7), value).requires_grad_()
    assert torch.count_nonzero(logit_std.standardised(student)) == 0
    for teacher in (torch.full((4, 7), 0.3), randn(4, 7)):
        (gradient,) = torch.autograd.grad(logit_std.logit_std_loss(student, teacher, 2.0), student)
        assert torch.count_nonzero(gradient) == 0
    assert logit_std.logit_std_loss(student, torch.full((4, 7), 0.3), 2.0).item() == 0


def test_logit_std_has_the_gradient_of_its_value() -> None:
    student, teacher = randn(3, 5).double().requires_grad_(), randn(3, 5, seed=1).double()
    assert torch.autograd.gradcheck(lambda s: logit_std.logit_std_loss(s, teacher, 2.0), (student,))


def test_logit_std_refuses_shapes_and_temperatures() -> None:
    with pytest.raises(ValueError, match="one shape"):
        logit_std.logit_std_loss(randn(2, 3), randn(1, 3), 2.0)
    with pytest.raises(ValueError, match="temperature > 0"):
        logit_std.logit_std_loss(randn(2, 3), randn(2, 3), 0.0)


# --- vid


def test_likelihood_equals_the_plain_form_and_the_normal_density() -> None:
    mean, target = randn(2, 3, 4, 5), randn(2, 3, 4, 5, seed=1)
    variance = torch.tensor([0.5, 1.0, 4.0])
    found = vid.negative_log_likelihood(mean, variance, target).item()
    total = 0.0
    for b in range(2):
        for c, v in enumerate(variance.tolist()):
            for h in range(4):
                for w in range(5):
                    total += 0.5 * ((mean[b, c, h, w].item() - target[b, c, h, w].item()) ** 2 / v + math.log(v))
    assert found == pytest.approx(total / 120, rel=1e-5)
    density = torch.distributions.Normal(mean, variance.sqrt().view(1, 3, 1, 1)).log_prob(target).mean().item()
    assert found == pytest.approx(-density - math.log(2 * math.pi) / 2, rel=1e-5)


def test_likelihood_is_best_at_the_variance_of_the_errors() -> None:
    mean, target = torch.zeros(4, 1, 8, 8), 3 * randn(4, 1, 8, 8)
    true = target.square().mean().item()
    at = {
        factor: vid.negative_log_likelihood(mean, torch.tensor([factor * true]), target).item()
        for factor in (0.5, 0.9, 1.0, 1.1, 2.0)
    }
    assert min(at, key=at.__getitem__) == 1.0


def test_vid_defaults() -> None:
    assert defaults("vid") == {"weight": 1.0}
    gaussian = vid.Gaussian(8, 64)
    assert gaussian.variance.tolist() == pytest.approx([5.0] * 64, rel=1e-5)
    with torch.no_grad():
        gaussian.scale.fill_(-1e4)
    assert gaussian.variance.tolist() == pytest.approx([1e-5] * 64)
    shapes = [tuple(p.shape) for p in gaussian.mean.parameters()]
    assert shapes == [(64, 8, 1, 1), (64, 64, 1, 1), (64, 64, 1, 1)]


@pytest.mark.parametrize(("student", "teacher", "met"), [
    ((4, 4), (4, 4), (4, 4)), ((8, 8), (2, 2), (2, 2)), ((1, 1), (7, 5), (1, 1)), ((2, 8), (8, 2), (2, 2)),
])  # fmt: skip
def test_vid_averages_the_larger_map(student: tuple[int, int], teacher: tuple[int, int], met: tuple[int, int]) -> None:
    small, large = base.same_size(randn(2, 3, *student), randn(2, 5, *teacher))
    assert small.shape == (2, 3, *met) and large.shape == (2, 5, *met)


def test_vid_average_at_worked_values() -> None:
    teacher = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    assert base.same_size(torch.zeros(1, 1, 1, 1), teacher)[1].item() == 4.0


def test_vid_sums_over_maps_paired_from_the_deepest_backwards() -> None:
    student = view_of([randn(2, 8, 4, 4), randn(2, 16, 2, 2, seed=1)])
    maps = [randn(2, 32, 8, 8, seed=2), randn(2, 24, 4, 4, seed=3), randn(2, 20, 4, 4, seed=4)]
    method = built("vid", student, view_of(maps), NO_BATCH.labels, weight=3.0)
    assert isinstance(method, vid.VID)
    widths = [(g.mean[0].in_channels, g.mean[-1].out_channels) for g in method.gaussians]  # type: ignore[union-attr, index]
    assert widths == [(16, 20), (8, 24)]
    wanted = 0.0
    for gaussian, of_student, of_teacher in zip(
        method.gaussians, student.output.features[::-1], maps[::-1], strict=False
    ):
        hidden = of_student.double()
        pooled = of_teacher.double()
        if pooled.shape[2] > hidden.shape[2]:  # 4 x 4 over 2 x 2: means of quarters
            pooled = torch.stack([
                torch.stack([pooled[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3)) for j in range(2)], dim=2)
                for i in range(2)
            ], dim=2)  # fmt: skip
        for place in (0, 2, 4):
            kernel = gaussian.mean[place].weight[:, :, 0, 0].double()  # type: ignore[union-attr, index]
            hidden = torch.einsum("oc,bchw->bohw", kernel, hidden if place == 0 else hidden.clamp(min=0))
        wanted += (0.5 * ((hidden - pooled).square() / 5 + math.log(5))).mean().item()
    assert method(student, view_of(maps), NO_BATCH)["vid"].item() == pytest.approx(3 * wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("mean", "variance", "target"),
    [((2, 3, 4, 4), (3,), (2, 1, 4, 4)), ((2, 3, 4, 4), (1,), (2, 3, 4, 4)), ((2, 3), (3,), (2, 3))],
)
def test_likelihood_refuses_shapes(mean: tuple[int, ...], variance: tuple[int, ...], target: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one shape"):
        vid.negative_log_likelihood(randn(*mean), torch.ones(variance), randn(*target))


# --- reviewkd


@pytest.mark.parametrize(("side", "levels"), [(8, (4, 2, 1)), (5, (4, 2, 1)), (4, (2, 1)), (2, (1,)), (1, ())])
def test_hcl_equals_the_plain_form(side: int, levels: tuple[int, ...]) -> None:
    student, teacher = randn(2, 3, side, side), randn(2, 3, side, side, seed=1)
    difference = (student - teacher).double()
    parts, weights = [difference.square().mean().item()], [1.0]
    for level in levels:
        cells = []
        for i in range(level):  # cell i covers floor(i * side / level) to ceil((i + 1) * side / level)
            rows = slice(i * side // level, -(-(i + 1) * side // level))
            for j in range(level):
                columns = slice(j * side // level, -(-(j + 1) * side // level))
                cells.append(difference[:, :, rows, columns].mean((2, 3)))
        parts.append(torch.stack(cells).square().mean().item())
        weights.append(weights[-1] / 2)
    wanted = sum(w * p for w, p in zip(weights, parts, strict=True)) / sum(weights)
    assert reviewkd.hierarchical_context_loss(student, teacher).item() == pytest.approx(wanted, rel=1e-5)


def test_hcl_at_worked_values() -> None:
    # a difference of 1 everywhere is 1 at each level, and one of +1 and -1 in turn vanishes in the averages
    ones = torch.ones(2, 3, 8, 8)
    assert reviewkd.hierarchical_context_loss(ones, 0 * ones).item() == pytest.approx(1)
    board = (-1.0) ** (torch.arange(8)[:, None] + torch.arange(8))
    assert reviewkd.hierarchical_context_loss(board * ones, 0 * ones).item() == pytest.approx(1 / 1.875)
    assert reviewkd.LEVELS == (4, 2, 1)


@pytest.mark.parametrize("teacher", [(2, 1, 4, 4), (2, 3, 2, 2), (1, 3, 4, 4)])
def test_hcl_refuses_two_shapes(teacher: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Fusion"):
        reviewkd.hierarchical_context_loss(randn(2, 3, 4, 4), randn(*teacher))


@pytest.mark.parametrize(("side", "size"), [(4, 4), (4, 8), (4, 2)])
def test_fusion_equals_the_plain_form(side: int, size: int) -> None:
    fusion = reviewkd.Fusion(3, 6, 5, fuse=True).eval()  # batch norm divides by sqrt(1 + eps) alone
    student, below = randn(2, 3, side, side), randn(2, 6, 2, 2, seed=1)
    compared, handed_up = fusion(student, below, torch.Size([size, size]))

    norm = 1 / math.sqrt(1 + 1e-5)
    narrow = torch.einsum("oc,bchw->bohw", fusion.narrow[0].weight[:, :, 0, 0].double(), student.double()) * norm  # type: ignore[operator, index]
    upsampled = below.double().repeat_interleave(side // 2, dim=2).repeat_interleave(side // 2, dim=3)
    assert fusion.attention is not None and fusion.attention.bias is not None
    kernel = fusion.attention.weight[:, :, 0, 0].double()
    scores = torch.einsum("oc,bchw->bohw", kernel, torch.cat([narrow, upsampled], dim=1))
    share = 1 / (1 + torch.exp(-scores - fusion.attention.bias.double().view(1, 2, 1, 1)))
    mixed = share[:, :1] * narrow + share[:, 1:] * upsampled
    if size == 8:
        mixed = mixed.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    if size == 2:
        mixed = mixed[:, :, ::2, ::2]
    torch.testing.assert_close(handed_up, mixed.float())
    padded = F.pad(mixed, (1, 1, 1, 1))
    wanted = torch.zeros(2, 5, size, size, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            kernel = fusion.widen[0].weight[:, :, i, j].double()  # type: ignore[index, union-attr]
            wanted += torch.einsum("oc,bchw->bohw", kernel, padded[:, :, i : i + size, j : j + size]) * norm
    torch.testing.assert_close(compared, wanted.float())


def test_reviewkd_goes_from_the_deepest_level_up() -> None:
    student = [randn(2, 8, 4, 4), randn(2, 16, 2, 2, seed=1)]
    teacher = [randn(2, 32, 8, 8, seed=2), randn(2, 24, 4, 4, seed=3), randn(2, 20, 2, 2, seed=4)]
    method = built("reviewkd", view_of(student), view_of(teacher), NO_BATCH.labels, weight=3.0).eval()
    assert isinstance(method, reviewkd.ReviewKD) and defaults("reviewkd") == {"weight": 1.0, "warmup": 0}
    first, second, third = method.fusions  # the embedding, the last map, the one before it
    assert [f.attention is None for f in (first, second, third)] == [True, False, False]
    loss = torch.zeros(())
    raw = [maps - 1 for maps in teacher]
    fused, below = first(student[1].mean((2, 3), keepdim=True), None, torch.Size([1, 1]))
    loss = loss + F.mse_loss(fused, teacher[2].mean((2, 3), keepdim=True))
    fused, below = second(student[1], below, torch.Size([2, 2]))
    loss = loss + reviewkd.hierarchical_context_loss(fused, raw[2])
    fused, below = third(student[0], below, torch.Size([4, 4]))
    loss = loss + reviewkd.hierarchical_context_loss(fused, raw[1])
    found = method(view_of(student), view_of(teacher), NO_BATCH)["reviewkd"]
    assert found.item() == pytest.approx(3 * loss.item(), rel=1e-6)
    plain = view_of(teacher)
    with pytest.raises(ValueError, match="shorter"):  # and no level is left out when nobody asked for the maps
        method(view_of(student), plain._replace(output=plain.output._replace(before_relu=())), NO_BATCH)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([(8, 5, 7), (9, 3, 4)], [(4, 7, 5), (6, 4, 3), (7, 1, 1)]),
        ([(4, 1, 1)], [(8, 8, 8), (9, 4, 4)]),
        ([(4, 16, 16), (5, 8, 8), (6, 4, 4)], [(3, 2, 2)]),
    ],
)
@pytest.mark.parametrize("name", ["vid", "reviewkd"])
def test_any_two_networks_maps_meet(
    name: str, student: list[tuple[int, int, int]], teacher: list[tuple[int, int, int]]
) -> None:
    ours, theirs = (view_of([randn(2, *shape) for shape in shapes]) for shapes in (student, teacher))
    assert built(name, ours, theirs, NO_BATCH.labels)(ours, theirs, NO_BATCH)[name].isfinite()


def test_one_image_of_one_pixel_takes_the_running_statistics() -> None:
    norm = reviewkd._Norm(3)
    image = randn(1, 3, 1, 1)
    torch.testing.assert_close(norm(image), image / math.sqrt(1 + 1e-5))
    assert norm.num_batches_tracked == 0
    assert norm(randn(2, 3, 1, 1)).mean().item() == pytest.approx(0, abs=1e-6) and norm.num_batches_tracked == 1


# --- crd


def naive_nce(positive: Tensor, negatives: Tensor, counted: Tensor, z: float, images: int) -> float:
    total = 0.0
    for own, row, mask in zip(positive.tolist(), negatives.tolist(), counted.tolist(), strict=True):
        others = [score for score, use in zip(row, mask, strict=True) if use]
        noise = len(others) / images
        p = math.exp(own) / z
        total -= math.log(p / (p + noise))
        for score in others:
            total -= math.log(noise / (math.exp(score) / z + noise))
    return total / len(positive)


def test_nce_equals_the_plain_form() -> None:
    positive, negatives = 5 * randn(4), 5 * randn(4, 9, seed=1)
    counted = randn(4, 9, seed=2) > 0
    found = crd.nce_loss(positive, negatives, counted, torch.tensor(3.0).log(), 20)
    assert found.item() == pytest.approx(naive_nce(positive, negatives, counted, 3.0, 20), rel=1e-5)


def test_nce_at_a_worked_value_and_without_negatives() -> None:
    # p = K/N for the positive and the one negative: twice log 2
    zero = torch.zeros(1, 1)
    assert crd.nce_loss(zero[0], zero, zero == 0, torch.tensor(2.0).log(), 2).item() == pytest.approx(2 * math.log(2))
    assert crd.nce_loss(zero[0], zero, zero > 0, torch.tensor(2.0).log(), 2).item() == 0


@pytest.mark.parametrize(
    ("positive", "negatives", "counted"), [((3,), (2, 4), (2, 4)), ((2,), (2, 4), (2, 1)), ((2,), (2,), (2,))]
)
def test_nce_refuses_shapes(positive: tuple[int, ...], negatives: tuple[int, ...], counted: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"positive \[B\]"):
        crd.nce_loss(randn(*positive), randn(*negatives), torch.ones(counted) > 0, torch.tensor(0.0), 4)
    with pytest.raises(ValueError, match="images >= 1"):
        crd.nce_loss(randn(2), randn(2, 4), torch.ones(2, 4) > 0, torch.tensor(0.0), 0)


LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 1])


def contrast(labels: Tensor = LABELS, **settings: float) -> crd.CRD:
    views = view_of([], randn(2, 6)), view_of([], randn(2, 9))
    method = built("crd", *views, labels, **settings)
    assert isinstance(method, crd.CRD)
    return method


def embeddings(size: int, seed: int) -> tuple[View, View]:
    return view_of([], randn(size, 6, seed=seed)), view_of([], randn(size, 9, seed=seed + 1))


def test_crd_defaults() -> None:
    assert defaults("crd") == {
        "weight": 0.8, "temperature": 0.07, "negatives": 16384, "momentum": 0.5, "dimension": 128,
    }  # fmt: skip
    method = contrast(torch.arange(5000) % 10)
    for bank in (method.student_bank, method.teacher_bank):
        assert bank.shape == (5000, 128) and bank.dtype == torch.float32
        assert bank.norm(dim=1).mean().item() == pytest.approx(1, rel=0.01)
        assert abs(bank.mean().item()) < 0.001
    assert not torch.equal(method.student_bank, method.teacher_bank)


def test_crd_is_the_plain_form_and_its_memory_moves_half_way() -> None:
    method = contrast(weight=2.0)
    index = torch.tensor([4, 0, 8])
    zs: list[list[float]] = []
    for step in range(2):
        student, teacher = embeddings(3, seed=10 * step)
        rows = [
            (x @ layer.weight.T + layer.bias).detach().double()
            for x, layer in (
                (student.output.embedding, method.student_embed),
                (teacher.output.embedding, method.teacher_embed),
            )
        ]
        ours, theirs = (row / row.norm(dim=1, keepdim=True) for row in rows)
        banks = [bank.double().clone() for bank in (method.student_bank, method.teacher_bank)]
        wanted = 0.0
        for side, (anchors, bank) in enumerate(((ours, banks[1]), (theirs, banks[0]))):
            scores = anchors @ bank.T / 0.07
            other = LABELS[None, :] != LABELS[index][:, None]
            positive = torch.stack([scores[b, i] for b, i in enumerate(index.tolist())])
            if step == 0:
                everything = torch.cat([positive, scores[other]])
                zs.append([everything.exp().mean().item() * len(LABELS)])
            wanted += naive_nce(positive, scores, other, zs[side][0], len(LABELS))
        loss = method(student, teacher, Batch(LABELS[index], index))["crd"]
        assert loss.item() == pytest.approx(2 * wanted, rel=1e-4)
        assert method.log_z.exp().tolist() == pytest.approx([z[0] for z in zs], rel=1e-4)  # estimated once
        for bank, before, new in zip((method.student_bank, method.teacher_bank), banks, (ours, theirs), strict=True):
            moved = before[index] + new
            before[index] = moved / moved.norm(dim=1, keepdim=True)
            torch.testing.assert_close(bank, before.float())


def counted_in(method: crd.CRD, index: Tensor, monkeypatch: pytest.MonkeyPatch, *, steps: int = 1) -> list[Tensor]:
    """Which drawn images counted for each sample at each step, as the loss saw it, by the images' scores."""
    seen: list[Tensor] = []
    original = crd.nce_loss

    def watched(positive: Tensor, negatives: Tensor, counted: Tensor, log_z: Tensor, images: int) -> Tensor:
        seen.append(counted)
        return original(positive, negatives, counted, log_z, images)

    monkeypatch.setattr(crd, "nce_loss", watched)
    for _ in range(steps):
        method(*embeddings(len(index), seed=0), Batch(method.labels[index], index))
    return seen[::2]


def test_negatives_are_of_other_classes_and_as_many_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    index = torch.arange(10)
    (all_there_are,) = counted_in(contrast(), index, monkeypatch)
    assert all_there_are.sum(dim=1).tolist() == [10 - LABELS.eq(label).sum().item() for label in LABELS]
    method = contrast(negatives=5)
    drawn: list[Tensor] = []
    original = crd.CRD._draw

    def draw(self: crd.CRD) -> Tensor:
        drawn.append(original(self))
        return drawn[-1]

    monkeypatch.setattr(crd.CRD, "_draw", draw)
    chosen = counted_in(method, index, monkeypatch, steps=300)
    frequency = torch.zeros(10, 10)
    for places, counted in zip(drawn, chosen, strict=True):
        assert len(places) == len(places.unique()) == 9  # 5 and the largest class
        assert counted.sum(dim=1).tolist() == [5] * 10
        for sample in range(10):
            frequency[sample, places[counted[sample]]] += 1 / 300
    others = LABELS[None, :] != LABELS[:, None]
    assert frequency[~others].sum() == 0
    expected = others * 5 / others.sum(dim=1, keepdim=True)
    assert (frequency - expected).abs().max() < 0.15  # 5 standard deviations


def test_in_eval_mode_positives_are_the_batchs_own() -> None:
    method = contrast().eval()
    student, teacher = embeddings(3, seed=0)
    new = Batch(torch.tensor([0, 1, 2]), torch.empty(0, dtype=torch.long))
    before = {n: t.clone() for n, t in method.state_dict().items()}
    loss = method(student, teacher, new)["crd"].item()
    assert all(torch.equal(t, before[n]) for n, t in method.state_dict().items())
    with torch.no_grad():
        ours = F.normalize(method.student_embed(student.output.embedding), dim=1).double()
        theirs = F.normalize(method.teacher_embed(teacher.output.embedding), dim=1).double()
    wanted = 0.0
    for anchors, bank in ((ours, method.teacher_bank), (theirs, method.student_bank)):
        positive, scores = (ours * theirs).sum(dim=1) / 0.07, anchors @ bank.double().T / 0.07
        other = LABELS[None, :] != new.labels[:, None]
        z = torch.cat([positive, scores[other]]).exp().mean().item() * len(LABELS)
        wanted += naive_nce(positive, scores, other, z, len(LABELS))
    assert loss == pytest.approx(0.8 * wanted, rel=1e-4)


def test_training_needs_the_images_places() -> None:
    with pytest.raises(ValueError, match=r"3 images needs its place .* got 0 places: call eval\(\)"):
        contrast()(*embeddings(3, seed=0), Batch(torch.tensor([0, 1, 2]), torch.empty(0, dtype=torch.long)))


def test_no_tensor_of_a_step_is_as_large_as_rows_for_each_sample() -> None:
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for made in result if isinstance(result, tuple | list) else [result]:
                if isinstance(made, Tensor):
                    self.numel = max(self.numel, made.numel())
            return result

    images, size = 3000, 32
    method = contrast(torch.arange(images) % 10)
    with Largest() as largest:
        index = torch.arange(size)
        method(*embeddings(size, seed=0), Batch(method.labels[index], index))["crd"].backward()
    assert images * 128 / 2 < largest.numel <= images * 128
