"""Every network keeps the Output contract, and has the shapes and sizes that the published ones have."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smskd import models, pairs

PAIRS = [pairs.get(name) for name in pairs.available()]
MIN_SIZES = {n.name: n.min_size for pair in PAIRS for n in (pair.teacher, pair.student)}
NAMES = tuple(MIN_SIZES)

# for 3 x 32 x 32 images and 100 classes: hint, last feature map, parameters
PUBLISHED = {
    "resnet50": ((512, 16, 16), (2048, 4, 4), 23_705_252),
    "mobilenetv2_half": ((16, 8, 8), (1280, 2, 2), 812_548),
    "wrn40_2": ((64, 16, 16), (128, 8, 8), 2_255_156),
    "shufflenetv2": ((232, 8, 8), (1024, 4, 4), 1_355_528),
    "vgg19": ((256, 8, 8), (512, 2, 2), 20_081_188),
    "resnet18": ((128, 16, 16), (512, 4, 4), 11_220_132),
    "resnet20": ((32, 16, 16), (64, 8, 8), 278_324),
    "resnet56": ((32, 16, 16), (64, 8, 8), 861_620),
    "resnet8x4": ((128, 16, 16), (256, 8, 8), 1_233_540),
    "resnet32x4": ((128, 16, 16), (256, 8, 8), 7_433_860),
}
# for 1 x 8 x 8 images and 10 classes; convolution + batch norm of each block, then the linear layer
TINY = {
    "tiny_teacher": ((64, 4, 4), (64, 4, 4), 9 * 32 + 64 + 9 * 32 * 64 + 128 + 9 * 64 * 64 + 128 + 650),
    "tiny_student": ((8, 4, 4), (16, 4, 4), 9 * 8 + 16 + 9 * 8 * 16 + 32 + 170),
}


@pytest.fixture(autouse=True)
def same_images_every_time() -> None:
    torch.manual_seed(0)


@cache
def colour_network(name: str) -> nn.Module:
    """In eval mode, for 3 channels and 100 classes. Shared: tests must not train it."""
    return models.build(name, num_classes=100, in_channels=3).eval()


@cache
def grey_network(name: str) -> nn.Module:
    """In train mode, for 1 channel and 10 classes. Shared: only shapes may be asserted."""
    return models.build(name, num_classes=10, in_channels=1).train()


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def linear_layer(network: nn.Module) -> nn.Linear:
    (linear,) = (m for m in network.modules() if isinstance(m, nn.Linear))
    return linear


def test_networks_of_known_shapes_are_found() -> None:
    assert set(PUBLISHED) | set(TINY) <= set(NAMES)
    assert not set(PUBLISHED) & set(TINY)


@pytest.mark.parametrize("name", PUBLISHED)
def test_hint_last_map_and_size_are_the_published_ones(name: str) -> None:
    network = colour_network(name)
    with torch.no_grad():
        output = network(torch.randn(2, 3, 32, 32))
    hint, last, count = PUBLISHED[name]
    assert tuple(output.features[network.hint_index].shape) == (2, *hint)
    assert tuple(output.features[-1].shape) == (2, *last)
    assert parameters(network) == count


@pytest.mark.parametrize("name", TINY)
def test_tiny_hint_last_map_and_size(name: str) -> None:
    network = grey_network(name)
    output = network(torch.randn(2, 1, 8, 8))
    hint, last, count = TINY[name]
    assert tuple(output.features[network.hint_index].shape) == (2, *hint)
    assert tuple(output.features[-1].shape) == (2, *last)
    assert parameters(network) == count


@pytest.mark.parametrize("name", NAMES)
def test_output_contract(name: str) -> None:
    network = colour_network(name)
    output = network(torch.randn(2, 3, 32, 32))
    assert isinstance(output, models.Output)
    assert output.logits.shape == (2, 100)
    # the embedding is the last map, pooled, and what the linear layer sees
    torch.testing.assert_close(output.embedding, F.adaptive_avg_pool2d(output.features[-1], 1).flatten(1))
    torch.testing.assert_close(linear_layer(network)(output.embedding), output.logits)
    # each map is made from the one before it, and nothing changed it in place since
    for shallow, deep in zip(output.features, output.features[1:], strict=False):
        (gradient,) = torch.autograd.grad(deep.square().sum(), shallow, retain_graph=True)
        assert gradient.abs().sum() > 0
        assert deep.shape[2] <= shallow.shape[2]
    assert isinstance(network.hint_index, int)
    assert 0 <= network.hint_index < len(output.features)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_every_parameter(name: str) -> None:
    network = colour_network(name)
    output = network(torch.randn(2, 3, 32, 32))
    gradients = torch.autograd.grad(F.cross_entropy(output.logits, torch.tensor([0, 1])), list(network.parameters()))
    assert all(torch.isfinite(g).all() for g in gradients)
    assert all(g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(28, 28), (8, 8), (19, 33)], ids=str)
def test_grey_images_of_any_size(name: str, shape: tuple[int, int]) -> None:
    if min(shape) < MIN_SIZES[name]:
        pytest.skip(f"{name} needs {MIN_SIZES[name]} pixels")
    output = grey_network(name)(torch.randn(2, 1, *shape))
    assert output.logits.shape == (2, 10)
    assert output.embedding.shape == output.features[-1].shape[:2]


@pytest.mark.parametrize("name", NAMES)
def test_min_size_is_the_smallest_that_works(name: str) -> None:
    network, size = grey_network(name), MIN_SIZES[name]
    assert network(torch.randn(2, 1, size, size)).logits.shape == (2, 10)
    if size > 1:
        with pytest.raises(RuntimeError, match="too small"):
            network(torch.randn(2, 1, size - 1, size - 1))


def test_features_of_wrn_are_signed_until_the_last_and_resnets_are_not() -> None:
    images = torch.randn(2, 3, 32, 32)
    *blocks, last = colour_network("wrn40_2")(images).features
    assert all(f.min() < 0 for f in blocks)
    assert last.min() == 0
    assert all(f.min() >= 0 for f in colour_network("resnet20")(images).features)


def test_vgg_hint_is_before_its_pool() -> None:
    features = colour_network("vgg19")(torch.randn(2, 3, 32, 32)).features
    assert [f.shape[2] for f in features] == [32, 16, 8, 4, 2]


def test_of_the_published_networks_only_mobilenet_drops_out() -> None:
    droppers = {n for n in PUBLISHED if any(isinstance(m, nn.Dropout) and m.p > 0 for m in grey_network(n).modules())}
    assert droppers == {"mobilenetv2_half"}


@pytest.mark.parametrize("name", ["tiny_student", "mobilenetv2_half", "resnet8x4"])
def test_same_generator_state_gives_the_same_network(name: str) -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(models.build(name, num_classes=10, in_channels=1).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.mark.parametrize("name", ["wrn40_2", "resnet20", "vgg19", "resnet18"])
def test_convolutions_are_drawn_by_fan_out(name: str) -> None:
    for module in colour_network(name).modules():
        if isinstance(module, nn.Conv2d):
            expected = (2 / (module.out_channels * module.kernel_size[0] * module.kernel_size[1])) ** 0.5
            # the standard deviation of n normal values is known to a relative 1 / sqrt(2 n): five of those
            assert module.weight.std().item() == pytest.approx(expected, rel=5 / (2 * module.weight.numel()) ** 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()


def test_unknown_network() -> None:
    with pytest.raises(ValueError, match=r"unknown network 'resnet19'.*Did you mean 'resnet\d+'\?"):
        models.build("resnet19", num_classes=10, in_channels=3)
