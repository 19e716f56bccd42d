"""Every network keeps the Output contract. That they are the published ones is in test_published.py."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smskd import components, models

MIN_SIZES = {name: size for name, (_, size) in components.shipped().items()}
NAMES = tuple(MIN_SIZES)
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
    return models.build(f"cifar/{name}", num_classes=100, image=(3, 32, 32)).eval()


@cache
def grey_network(name: str) -> nn.Module:
    """In train mode, for 1 channel and 10 classes. Shared: only shapes may be asserted."""
    return models.build(f"cifar/{name}", num_classes=10, image=(1, 8, 8)).train()


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def linear_layer(network: nn.Module) -> nn.Linear:
    (linear,) = (m for m in network.modules() if isinstance(m, nn.Linear))
    return linear


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
    # the embedding is the last map behind the tail, pooled, and what the linear layer sees
    tail = getattr(network, "tail", None) or nn.Identity()
    torch.testing.assert_close(output.embedding, F.adaptive_avg_pool2d(tail(output.features[-1]), 1).flatten(1))
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
    assert output.embedding.shape == (2, linear_layer(grey_network(name)).in_features)


@pytest.mark.parametrize("name", NAMES)
def test_min_size_is_the_smallest_that_works(name: str) -> None:
    network, size = grey_network(name), MIN_SIZES[name]
    assert network(torch.randn(2, 1, size, size)).logits.shape == (2, 10)
    if size > 1:
        with pytest.raises(RuntimeError, match="too small"):
            network(torch.randn(2, 1, size - 1, size - 1))


@pytest.mark.parametrize("name", NAMES)
def test_features_are_signed_where_no_relu_ends_a_stage(name: str) -> None:
    signed = [maps.min() < 0 for maps in colour_network(name)(torch.randn(2, 3, 32, 32)).features]
    assert signed == [name.startswith(("wrn", "mobilenet"))] * len(signed)


@pytest.mark.parametrize("name", NAMES)
def test_maps_before_the_relu(name: str) -> None:
    output = colour_network(name)(torch.randn(2, 3, 32, 32), before_relu=True)
    if name.startswith("wrn"):  # the next batch norm's, whose ReLU is no map
        raw, maps = output.before_relu, output.features
        assert [r.shape for r in raw] == [m.shape for m in maps] and all(r.min() < 0 for r in raw)
        return
    for raw, maps in zip(output.before_relu, output.features, strict=True):
        if name.startswith(("mobilenet", "shufflenetv2")):  # whose stages don't end with one
            assert raw is maps
        else:
            assert raw.min() < 0 and torch.equal(raw.relu(), maps)


def test_no_network_drops_out() -> None:
    assert not [n for n in NAMES if any(isinstance(m, nn.Dropout) for m in grey_network(n).modules())]


@pytest.mark.parametrize("name", ["tiny_student", "wrn16_2"])
def test_a_copy_watches_its_own_layers(name: str) -> None:
    network = models.build(f"cifar/{name}", num_classes=10, image=(1, 8, 8)).eval()
    images = torch.randn(2, 1, 8, 8)
    copied = deepcopy(network)
    with torch.no_grad():
        before = network(images, before_relu=True).before_relu
        for parameter in network.parameters():
            parameter.zero_()
        after = copied(images, before_relu=True).before_relu
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["tiny_student", "mobilenetv2_half", "resnet8x4"])
def test_same_generator_state_gives_the_same_network(name: str) -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(models.build(f"cifar/{name}", num_classes=10, image=(1, 8, 8)).state_dict())
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
    with pytest.raises(ValueError, match=r"unknown network 'cifar/resnet21'.*Did you mean 'cifar/resnet\d+'\?"):
        models.build("cifar/resnet21", num_classes=10, image=(3, 32, 32))
