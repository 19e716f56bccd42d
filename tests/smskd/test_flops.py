"""FLOPs of a forward pass: published and closed counts, attention's above all, and the same on a CPU and on CUDA."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from smskd import models
from smskd.cost import forward_flops


def without_arithmetic(module: nn.Module, shape: tuple[int, ...], device: str) -> float:
    """FLOPs, as counted on tensors that have no values, of a device that needn't be there."""
    with FakeTensorMode():
        tensors = (*module.parameters(), *module.buffers())
        fake: dict[int, Any] = {id(t): torch.empty(t.shape, dtype=t.dtype, device=device) for t in tensors}
        fake |= {id(p): nn.Parameter(fake[id(p)]) for p in module.parameters()}
        return forward_flops(copy.deepcopy(module, fake), torch.empty(shape, device=device), images=shape[0])


def of_torchvision(name: str, device: str = "cpu") -> float:
    """Of one image of 224 pixels."""
    with torch.device("meta"):
        network = torchvision.models.get_model(name)
    return without_arithmetic(network, (2, 3, 224, 224), device)


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "swin_t", "maxvit_t"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_published_counts(name: str, device: str) -> None:
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["_ops"]  # 10^9 multiply-adds
    assert of_torchvision(name, device) / 2e9 == pytest.approx(published, abs=6e-4)


def test_vit_to_the_digit() -> None:
    tokens, width, hidden = 197, 768, 3072
    layer = tokens * width * (4 * width + 2 * hidden) + 2 * tokens**2 * width
    vit = 2 * (196 * 3 * 16**2 * width + 12 * layer + 1000 * width)
    assert of_torchvision("vit_b_16") == vit == pytest.approx(35.13e9, rel=1e-3)


class Decoder(nn.Module):
    """Causal attention with fewer heads of keys and values than of queries, in whatever way torch likes."""

    def __init__(self, width: int = 24, heads: int = 4, shared: int = 2) -> None:
        super().__init__()
        self.size = width // heads
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(width, shared * self.size), nn.Linear(width, shared * self.size)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            part(tokens).unflatten(2, (-1, self.size)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(24, 4, 60, dropout=0.1, activation="gelu", batch_first=True)
    return nn.TransformerEncoder(layer, 3)


CASES: list[tuple[Any, tuple[int, ...], int]] = [  # module, shape of what it is given, FLOPs for both of its rows
    (encoder, (2, 10, 24), 2 * 2 * 3 * (10 * 24 * (4 * 24 + 2 * 60) + 2 * 10**2 * 24)),
    (Decoder, (2, 10, 24), 2 * 2 * (10 * 24 * (24 + 24 + 12 + 12) + 2 * 10**2 * 24)),
]  # fmt: skip


@pytest.mark.parametrize(("made", "shape", "expected"), CASES)
def test_closed_counts_are_the_same_on_cuda(made: Any, shape: tuple[int, ...], expected: int) -> None:
    assert forward_flops(made(), torch.randn(shape), images=1) == expected
    assert shape[0] * without_arithmetic(made(), shape, "cuda") == expected


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_networks(kind: type[nn.LSTM] | type[nn.GRU]) -> None:
    network = kind(4, 5, num_layers=2, bidirectional=True, batch_first=True)
    gates = 4 if kind is nn.LSTM else 3
    assert forward_flops(network, torch.randn(2, 7, 4), images=2) == 2 * 7 * 2 * gates * 5 * ((4 + 5) + (10 + 5))


def test_recurrent_networks_on_cuda() -> None:
    weights = [torch.empty(p.shape, device="meta") for p in nn.LSTM(4, 5, num_layers=2).parameters()]
    state, buffer = torch.empty(2, 2, 5, device="meta"), torch.empty(1, device="meta")

    def run(given: Tensor) -> Any:
        more = (weights, 4, buffer, state, state, 2, 5, 0, 2, True, 0.0, False, False, [], None)
        return torch.ops.aten._cudnn_rnn(given, *more)

    assert forward_flops(Call(run), torch.empty(2, 7, 4, device="meta"), images=2) == 2 * 7 * 4 * 5 * (4 + 5 + 5 + 5)


class Call(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: Tensor) -> Any:
        return self.function(*given)


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (torch.dot, [(5,), (5,)], 2 * 5),
        (torch.mv, [(4, 5), (5,)], 2 * 4 * 5),
        (torch.addmv, [(4,), (4, 5), (5,)], 2 * 4 * 5),
        (torch.addbmm, [(4, 6), (3, 4, 5), (3, 5, 6)], 2 * 3 * 4 * 5 * 6),
        (torch._addmm_activation, [(6,), (4, 5), (5, 6)], 2 * 4 * 5 * 6),
    ],
)
def test_products_that_are_not_of_two_matrices(function: Any, shapes: list[tuple[int, ...]], expected: int) -> None:
    assert forward_flops(Call(function), *map(torch.randn, shapes), images=1) == expected


def test_a_kernel_of_the_modules_own_choice() -> None:
    def attention(tokens: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(tokens, tokens, tokens)

    assert forward_flops(Call(attention), torch.randn(2, 3, 10, 8), images=2) == 2 * 3 * 10**2 * (8 + 8)


def test_nothing_stays_switched_and_no_state_is_moved() -> None:
    module = encoder().train()
    before = copy.deepcopy(module.state_dict())
    assert torch.backends.mha.get_fastpath_enabled()
    forward_flops(module, torch.randn(2, 10, 24), images=2)
    with pytest.raises(AssertionError, match="dimension of 24"):
        forward_flops(module, torch.randn(2, 10, 23), images=2)
    assert torch.backends.mha.get_fastpath_enabled() and torch.backends.cuda.flash_sdp_enabled()
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("cifar/tiny_teacher", (1, 8, 8), 1_807_616),
        ("cifar/tiny_student", (1, 8, 8), 39_488),
        ("cifar/resnet20", (3, 32, 32), 81_626_368),
        ("cifar/wrn40_2", (3, 32, 32), 655_198_720),
    ],
)
def test_convolutions(name: str, image: tuple[int, int, int], expected: int) -> None:
    network = models.build(name, num_classes=10, image=image)
    assert forward_flops(network, torch.randn(2, *image), images=2) == expected
