"""Every network of the project, by name. Each returns logits, feature maps and the pooled embedding.

Pre-trained weights are deliberately not here: teachers are trained by the project or given as files.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple, Protocol, cast

from torch import Tensor, nn

from smskd import pairs


class Output(NamedTuple):
    """What a network says of a batch of B images.

    logits: [B, classes]. features: the output of each block, shallow to deep, [B, C, H, W] each.
    embedding: the last block's output after global average pooling, [B, D].
    """

    logits: Tensor
    features: tuple[Tensor, ...]
    embedding: Tensor


class Network(Protocol):
    """A classifier of this project: a module whose forward returns Output.

    `hint_index` is the place of FitNets' hint (the middle block) in Output.features.
    """

    hint_index: int

    def __call__(self, images: Tensor) -> Output: ...


def build(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """A fresh network of some pair, or of torchvision, by name, initialised from torch's global generator.

    Raises:
        ValueError: there is no network of this name.
    """
    built_by = importlib.import_module(pairs.network(name).built_by)
    return cast(nn.Module, built_by.build(name, num_classes=num_classes, in_channels=in_channels))
