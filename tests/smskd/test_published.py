"""Networks, layers, losses and settings are those of the published comparisons, which results are set beside.

The networks of tests.smskd.public_networks are other code for the same definitions. They get random weights, ours get
the same; then logits, feature maps and the losses on these are compared, with formulas written down here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smskd import cost, methods, models, pairs
from smskd.experiment import Experiment
from smskd.methods import reviewkd, vid
from smskd.methods.base import Batch, Method, Task, View
from smskd.recipe import Stage
from smskd.stage import reads_of
from tests.smskd import public_networks as public

# parameters, for 100 classes; million FLOPs of an image of 3 x 32 x 32, where they were counted on published code, too;
# channels and sides of the feature maps
WIDE, THIN = [(64, 32), (128, 16), (256, 8)], [(16, 32), (32, 16), (64, 8)]
VGG = [(128, 16), (256, 8), (512, 4), (512, 4)]
PUBLISHED: dict[str, tuple[int, float | None, list[tuple[int, int]]]] = {
    "resnet20": (278_324, 81.64, THIN),
    "resnet32": (472_756, None, THIN),
    "resnet56": (861_620, 251.51, THIN),
    "resnet110": (1_736_564, None, THIN),
    "resnet8x4": (1_233_540, 354.14, WIDE),
    "resnet32x4": (7_433_860, 2166.08, WIDE),
    "resnet18": (11_220_132, 1110.94, [(64, 32), (128, 16), (256, 8), (512, 4)]),
    "resnet50": (23_705_252, 2596.03, [(256, 32), (512, 16), (1024, 8), (2048, 4)]),
    "wrn16_2": (703_284, None, [(32, 32), (64, 16), (128, 8)]),
    "wrn40_1": (569_780, None, THIN),
    "wrn40_2": (2_255_156, 655.22, [(32, 32), (64, 16), (128, 8)]),
    "vgg8": (3_965_028, None, VGG),
    "vgg13": (9_462_180, None, VGG),
    "vgg19": (20_086_692, 1022.86, VGG),
    "mobilenetv2_half": (812_836, 13.05, [(12, 16), (16, 8), (48, 4), (160, 2)]),
    "shufflenetv1": (949_258, None, [(240, 16), (480, 8), (960, 4)]),
    "shufflenetv2": (1_355_528, 89.01, [(116, 16), (232, 8), (464, 4)]),
}
CIFAR = [name for name in pairs.available() if name != "tiny"]


@pytest.fixture(autouse=True)
def _own_generator() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# --- the networks


class Tiny(nn.Sequential):
    """The two networks of the pair that isn't published."""

    def __init__(self, *blocks: tuple[int, int]) -> None:
        layers: list[nn.Module] = []
        before = 3
        for width, stride in blocks:
            layers += [public.conv(before, width, 3, stride), nn.BatchNorm2d(width)]
            before = width
        super().__init__(*layers, nn.Linear(before, 100))


@cache
def public_network(name: str) -> Any:
    """In eval mode. Shared: tests must not train it."""
    tiny = {"tiny_teacher": ((32, 1), (64, 2), (64, 1)), "tiny_student": ((8, 2), (16, 1))}
    return Tiny(*tiny[name]).eval() if name in tiny else public.build(f"RepDistiller's {name}")


@cache
def network(name: str) -> nn.Module:
    """Ours, with the public one's weights, in eval mode. Shared: tests must not train it."""
    made = models.build(f"cifar/{name}", num_classes=100, image=(3, 32, 32)).eval()
    theirs = public_network(name).state_dict()
    assert [t.shape for t in made.state_dict().values()] == [t.shape for t in theirs.values()]
    made.load_state_dict(dict(zip(made.state_dict(), theirs.values(), strict=True)))
    return made


class Seen:
    """What a public network says: logits, feature maps without the stem's, these before the ReLU, what is pooled."""

    def __init__(self, net: Any, images: Tensor) -> None:
        self.maps: list[Tensor] = []
        self.raw: list[Tensor] = []
        with torch.no_grad():
            end, head = getattr(self, f"_of_{type(net).__name__.lower()}")(net, images)
            self.embedding = end.mean((2, 3))
            self.logits = head(self.embedding)

    def _relu(self, raw: Tensor) -> Tensor:
        self.raw.append(raw)
        self.maps.append(F.relu(raw))
        return self.maps[-1]

    def _of_tiny(self, net: Any, maps: Tensor) -> tuple[Tensor, nn.Module]:
        for place in range(0, len(net) - 1, 2):
            maps = self._relu(net[place + 1](net[place](maps)))
        return maps, net[-1]

    def _of_resnet(self, net: Any, maps: Tensor) -> tuple[Tensor, nn.Module]:
        maps = F.relu(net.bn1(net.conv1(maps)))
        for name in net.names:
            *blocks, last = getattr(net, name)
            made = maps = nn.Sequential(*blocks)(maps)
            for number in range(1, last.depth + 1):
                made = F.relu(made) if number > 1 else made
                made = getattr(last, f"bn{number}")(getattr(last, f"conv{number}")(made))
            maps = self._relu(made + getattr(last, last.name, nn.Identity())(maps))
        return maps, getattr(net, net.head)

    def _of_wideresnet(self, net: Any, maps: Tensor) -> tuple[Tensor, nn.Module]:
        maps = net.conv1(maps)
        norms = [net.block2.layer[0].bn1, net.block3.layer[0].bn1, net.bn1]
        for block, norm in zip((net.block1, net.block2, net.block3), norms, strict=True):
            maps = block.layer(maps)
            self.maps.append(maps)
            self.raw.append(norm(maps))
        return F.relu(self.raw[-1]), net.fc

    def _of_vgg(self, net: Any, maps: Tensor) -> tuple[Tensor, nn.Module]:
        maps = net.block0(maps)
        for block, pooled in ((net.block1, True), (net.block2, True), (net.block3, True), (net.block4, False)):
            maps = F.max_pool2d(maps, 2) if pooled else maps
            maps = self._relu(block[:-1](maps))
        return maps, net.classifier

    def _of_mobilenetv2(self, net: Any, maps: Tensor) -> tuple[Tensor, nn.Module]:
        maps = net.conv1(maps)
        for number, block in enumerate(net.blocks):
            maps = block(maps)
            if number in (1, 2, 4, 6):
                self.maps.append(maps)
        return net.conv2(maps), net.classifier

    def _of_shufflenetv1(self, net: Any, maps: Tensor) -> tuple[Tensor, nn.Module]:
        maps = F.relu(net.bn1(net.conv1(maps)))
        for stage in (net.layer1, net.layer2, net.layer3):
            *units, last = stage
            before = nn.Sequential(*units)(maps)
            squeezed = F.relu(last.bn1(last.conv1(before)))
            shuffled = torch.cat(
                [squeezed[:, start :: len(squeezed[0]) // 3] for start in range(len(squeezed[0]) // 3)], 1
            )
            maps = self._relu(before + last.bn3(last.conv3(F.relu(last.bn2(last.conv2(shuffled))))))
        return maps, net.linear

    def _of_shufflenetv2(self, net: Any, maps: Tensor) -> tuple[Tensor, nn.Module]:
        maps = F.relu(net.bn1(net.conv1(maps)))
        for stage in (net.layer1, net.layer2, net.layer3):
            maps = stage(maps)
            self.maps.append(maps)
        return F.relu(net.bn2(net.conv2(maps))), net.linear


def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@cache
def seen(name: str) -> Seen:
    return Seen(public_network(name), images())


@cache
def said(name: str) -> View:
    """What ours say of the same images."""
    made = network(name)
    with torch.no_grad():
        return View(made(images(), before_relu=True), made.hint_index)  # type: ignore[arg-type]


def test_every_network_that_is_shipped_is_compared() -> None:
    from smskd import components

    assert set(components.shipped()) == {*PUBLISHED, "tiny_teacher", "tiny_student"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_same_weights_give_the_same_logits_and_maps(name: str) -> None:
    wanted, found = seen(name), said(name).output
    close = {"rtol": 1e-5, "atol": 1e-5}
    with torch.no_grad():
        torch.testing.assert_close(wanted.logits, public_network(name)(images()), **close)
    torch.testing.assert_close(found.logits, wanted.logits, **close)
    torch.testing.assert_close(found.embedding, wanted.embedding, **close)
    parameters, flops, shapes = PUBLISHED[name]
    assert [(f.shape[1], f.shape[2]) for f in found.features] == shapes
    for ours, theirs in zip(found.features, wanted.maps, strict=True):
        torch.testing.assert_close(ours, theirs, **close)
    # those that no published code asks for its maps before the ReLU give the maps themselves
    for ours, theirs in zip(found.before_relu, wanted.raw or wanted.maps, strict=True):
        torch.testing.assert_close(ours, theirs, **close)
    # the published hint is the second map behind the stem's
    assert said(name).hint_index == 1
    assert cost.parameters(network(name)) == parameters
    if flops is not None:
        assert round(cost.forward_flops(network(name), images()[:1], images=1) / 1e6, 2) == flops


@pytest.mark.parametrize("name", PUBLISHED)
def test_asking_for_more_changes_nothing(name: str) -> None:
    made = network(name)
    with torch.no_grad():
        plain = made(images())
    asked = said(name).output
    assert plain.before_relu == () and torch.equal(plain.logits, asked.logits)
    assert all(torch.equal(a, b) for a, b in zip(plain.features, asked.features, strict=True))
    assert not any(module._forward_pre_hooks for module in made.modules())


def test_a_vgg_pools_a_fourth_time_from_64_pixels_on() -> None:
    sides = {}
    for side in (8, 32, 63, 64):
        with torch.no_grad():
            sides[side] = [maps.shape[2] for maps in network("vgg8")(torch.randn(1, 3, side, side)).features]
    assert sides == {8: [4, 2, 1, 1], 32: [16, 8, 4, 4], 63: [31, 15, 7, 7], 64: [32, 16, 8, 4]}


@pytest.mark.parametrize("name", ["mobilenetv2_half", "vgg8", "vgg13", "vgg19"])
def test_classifiers_start_as_published(name: str) -> None:
    made = models.build(f"cifar/{name}", num_classes=100, image=(3, 32, 32))
    (linear,) = (module for module in made.modules() if isinstance(module, nn.Linear))
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.02) and not linear.bias.any()
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=5 / (2 * module.weight.numel()) ** 0.5)
            assert module.bias is None or not module.bias.any()


def test_shufflenets_start_as_torch_starts_layers() -> None:
    made = models.build("cifar/shufflenetv1", num_classes=100, image=(3, 32, 32))
    torch.manual_seed(0)
    theirs = public.ShuffleNetV1()
    torch.manual_seed(0)
    assert all(
        a.std().item() == pytest.approx(b.std().item(), rel=0.2)
        for a, b in zip(made.parameters(), theirs.parameters(), strict=True)
        if a.dim() == 4 and a.numel() > 500
    )
    assert not any(isinstance(module, nn.Dropout) for module in made.modules())


# --- the losses on the pairs' layers


def both(pair: str) -> tuple[str, str]:
    made = pairs.get(pair)
    return made.student.short, made.teacher.short


def method(name: str, pair: str, **settings: Any) -> Method:
    """As a stage builds it for the pair, at weight 1, in train mode."""
    student, teacher = (said(one) for one in both(pair))
    own = {key: one.default for key, one in methods.declaration(name).settings.items()} | {"weight": 1.0}
    task = Task(student, teacher, own | settings, torch.zeros(4, dtype=torch.long))
    built: Method = methods.load(name).build(task)
    return built.train()


def loss(of: Method, pair: str) -> float:
    student, teacher = (said(one) for one in both(pair))
    with torch.no_grad():
        (term,) = of(student, teacher, Batch(torch.zeros(4, dtype=torch.long), torch.arange(4))).values()
    return term.item()


def paired(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """From the deepest backwards. Published pairs have equally many."""
    count = min(len(student), len(teacher))
    return list(zip(student[-count:], teacher[-count:], strict=True))[::-1]


def shrunk(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    side = min(one.shape[2], other.shape[2])
    return F.adaptive_avg_pool2d(one.double(), side), F.adaptive_avg_pool2d(other.double(), side)


def test_published_pairs_have_equally_many_maps() -> None:
    for student, teacher in map(both, CIFAR):
        assert len(said(student).output.features) == len(said(teacher).output.features)


@pytest.mark.parametrize("pair", pairs.available())
def test_at_compares_the_published_layers(pair: str) -> None:
    student, teacher = (seen(one) for one in both(pair))
    wanted = 0.0
    for maps in paired(student.maps, teacher.maps):
        one, other = (F.normalize(x.pow(2).mean(1).flatten(1), dim=1) for x in shrunk(*maps))
        wanted += (one - other).pow(2).mean().item()
    assert loss(method("at", pair), pair) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("pair", pairs.available())
def test_sp_compares_the_published_layers(pair: str) -> None:
    rows = [F.normalize(x @ x.T, dim=1) for x in (seen(one).maps[-1].flatten(1).double() for one in both(pair))]
    assert loss(method("sp", pair), pair) == pytest.approx((rows[0] - rows[1]).pow(2).mean().item(), rel=1e-4)


@pytest.mark.parametrize("pair", pairs.available())
def test_vid_compares_the_published_layers(pair: str) -> None:
    student, teacher = (seen(one) for one in both(pair))
    made = method("vid", pair)
    assert isinstance(made, vid.VID)
    wanted = 0.0
    for gaussian, maps in zip(made.gaussians, paired(student.maps, teacher.maps), strict=True):
        of_student, of_teacher = shrunk(*maps)
        kernels = [p.detach().double() for p in gaussian.mean.parameters()]  # type: ignore[union-attr]
        hidden = F.conv2d(F.relu(F.conv2d(of_student, kernels[0])), kernels[1])
        error = F.conv2d(F.relu(hidden), kernels[2]) - of_teacher
        variance = F.softplus(gaussian.scale.detach().double()).view(1, -1, 1, 1) + 1e-5  # type: ignore[operator]
        wanted += 0.5 * (error.pow(2) / variance + variance.log()).mean().item()
    assert loss(made, pair) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("pair", pairs.available())
def test_reviewkd_compares_the_published_layers(pair: str) -> None:
    student, teacher = (seen(one) for one in both(pair))
    made = method("reviewkd", pair)
    assert isinstance(made, reviewkd.ReviewKD)
    raw = teacher.raw or teacher.maps
    levels = [(student.embedding[..., None, None], teacher.embedding[..., None, None]), *paired(student.maps, raw)]
    below = None
    wanted = 0.0
    for fusion, (of_student, of_teacher) in zip(made.fusions, levels, strict=True):
        maps = _normed(F.conv2d(of_student.double(), _weight(fusion, "narrow.0")))
        if below is not None:
            below = F.interpolate(below, maps.shape[2:], mode="nearest")
            scores = F.conv2d(
                torch.cat([maps, below], 1), _weight(fusion, "attention"), _weight(fusion, "attention", "bias")
            )
            maps = maps * scores[:, :1].sigmoid() + below * scores[:, 1:].sigmoid()
        below = F.interpolate(maps, of_teacher.shape[2:], mode="nearest")
        wanted += _hcl(_normed(F.conv2d(below, _weight(fusion, "widen.0"), padding=1)), of_teacher.double())
    assert loss(made, pair) == pytest.approx(wanted, rel=2e-4)


def _weight(fusion: nn.Module, layer: str, name: str = "weight") -> Tensor:
    return fusion.get_parameter(f"{layer}.{name}").detach().double()


def _normed(maps: Tensor) -> Tensor:
    centred = maps - maps.mean((0, 2, 3), keepdim=True)
    return centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()


def _hcl(one: Tensor, other: Tensor) -> float:
    parts = [(1.0, (one - other).square().mean().item())]
    for side in (4, 2, 1):
        if side < one.shape[2]:
            difference = F.adaptive_avg_pool2d(one, side) - F.adaptive_avg_pool2d(other, side)
            parts.append((parts[-1][0] / 2, difference.square().mean().item()))
    return sum(share * part for share, part in parts) / sum(share for share, _ in parts)


def test_reviewkd_has_the_levels_of_its_authors_tables() -> None:
    def widths(pair: str) -> list[tuple[int, int]]:
        made = method("reviewkd", pair)
        assert isinstance(made, reviewkd.ReviewKD)
        return [(f.narrow[0].in_channels, f.widen[0].out_channels) for f in reversed(made.fusions)]  # type: ignore

    assert widths("resnet50_mobilenetv2") == [(12, 256), (16, 512), (48, 1024), (160, 2048), (1280, 2048)]
    assert widths("resnet32x4_shufflenetv2") == [(116, 64), (232, 128), (464, 256), (1024, 256)]
    assert widths("resnet32x4_shufflenetv1") == [(240, 64), (480, 128), (960, 256), (960, 256)]
    assert widths("wrn40_2_wrn16_2") == [(32, 32), (64, 64), (128, 128), (128, 128)]
    assert widths("vgg13_mobilenetv2") == [(12, 128), (16, 256), (48, 512), (160, 512), (1280, 512)]


def test_parameters_beside_the_student_are_as_many_as_published() -> None:
    def count(name: str, pair: str) -> int:
        return sum(p.numel() for p in method(name, pair).parameters())

    assert round(count("vid", "resnet50_mobilenetv2") / 1e4) == 1153
    assert round(count("vid", "wrn40_2_shufflenetv2") / 1e3) == 121
    assert round(count("reviewkd", "resnet50_mobilenetv2") / 1e5) == 279
    assert round(count("reviewkd", "wrn40_2_shufflenetv2") / 1e4) == 257


def test_only_reviewkd_asks_for_maps_before_the_relu() -> None:
    asking = [
        name
        for name in methods.available()
        if name != "ce"
        and "before_relu" in reads_of(name, {k: one.default for k, one in methods.declaration(name).settings.items()})
    ]
    assert asking == ["reviewkd"]


# --- weights and rates of the pairs


def own(pair: str, key: str) -> Any:
    name, _, setting = key.partition(".")
    return Stage(methods=(name,)).of_methods(Experiment(pair=pair).defaults)[name][setting]


def test_published_weights_of_the_pairs() -> None:
    beta = {
        **{"resnet56_resnet20": 2, "resnet110_resnet32": 2, "resnet32x4_resnet8x4": 8, "wrn40_2_wrn16_2": 6},
        **{"wrn40_2_wrn40_1": 6, "vgg13_vgg8": 6, "resnet32x4_shufflenetv1": 8, "resnet32x4_shufflenetv2": 8},
        **{"vgg13_mobilenetv2": 6, "resnet50_mobilenetv2": 8},
    }
    assert {pair: own(pair, "dkd.nckd") for pair in beta} == beta
    review = {
        **{"resnet56_resnet20": 0.6, "resnet110_resnet32": 1, "resnet32x4_resnet8x4": 5, "wrn40_2_wrn16_2": 5},
        **{"wrn40_2_wrn40_1": 5, "resnet32x4_shufflenetv1": 5, "resnet32x4_shufflenetv2": 8},
    }
    assert {pair: own(pair, "reviewkd.weight") for pair in review} == review


def test_published_rates_of_the_pairs() -> None:
    for pair in CIFAR:
        small = both(pair)[0].startswith(("mobilenet", "shufflenet"))
        assert Experiment(pair=pair).defaults["learning_rate"] == (0.01 if small else 0.05)
        assert Experiment(pair=pair).teacher_training.learning_rate == 0.05


# --- what is published, and not the default


@pytest.mark.parametrize("name", ["dkd", "reviewkd"])
def test_a_warm_up_rises_over_the_first_epochs_and_is_not_measured(name: str) -> None:
    pair = "resnet56_resnet20"
    student, teacher = (said(one) for one in both(pair))
    made, plain = method(name, pair, warmup=4), method(name, pair)
    plain.load_state_dict(made.state_dict())

    def total(of: Method, epoch: int) -> float:
        with torch.no_grad():
            batch = Batch(torch.arange(4), torch.arange(4), epoch)
            return float(sum(term.item() for term in of(student, teacher, batch).values()))

    full = total(plain, 1)
    assert [total(made, epoch) / full for epoch in (1, 2, 4, 5)] == pytest.approx([0.25, 0.5, 1, 1])
    assert total(plain, 1) == total(plain, 9) == full
    plain.load_state_dict(made.state_dict())
    assert total(made.eval(), 1) == total(plain.eval(), 1) > 0


def test_fitnets_relu_is_behind_the_regressor() -> None:
    pair = "resnet56_resnet20"
    made = method("fitnets", pair, relu=True)
    regressed = _normed(F.conv2d(seen("resnet20").maps[1].double(), made.get_parameter("regressor.0.weight").double()))
    wanted = F.mse_loss(F.relu(regressed), seen("resnet56").maps[1].double()).item()
    assert loss(made, pair) == pytest.approx(wanted, rel=1e-4)


def test_logit_std_may_divide_by_the_deviation_over_classes_less_one() -> None:
    pair, soft = "resnet56_resnet20", 2.0
    student, teacher = (seen(one).logits.double() for one in both(pair))
    student, teacher = ((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) / soft for x in (student, teacher))
    wanted = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="batchmean") * soft**2
    assert loss(method("logit_std", pair, unbiased=True), pair) == pytest.approx(wanted.item(), rel=1e-4)
    assert loss(method("logit_std", pair), pair) != pytest.approx(wanted.item(), rel=1e-4)
