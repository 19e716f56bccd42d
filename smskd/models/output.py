"""What a network says of images, and what a network is."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Output(NamedTuple):
    """What a network says of a batch of B images.

    logits: [B, classes]. features: feature maps, shallow to deep, [B, C, H, W] each. embedding: what enters the last
    linear layer, [B, D]. before_relu: where that was asked for, the maps as they are before their ReLU.
    """

    logits: Tensor
    features: tuple[Tensor, ...]
    embedding: Tensor
    before_relu: tuple[Tensor, ...] = ()


class Network(Protocol):
    """A classifier of this project: a module whose forward returns Output.

    `hint_index` is the place of FitNets' hint (the middle block) in Output.features.
    """

    hint_index: int

    def __call__(self, images: Tensor, before_relu: bool = False) -> Output: ...
