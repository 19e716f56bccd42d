"""Every network of the project, by name. Each returns logits, feature maps and the pooled embedding.

Pre-trained weights are deliberately not here: teachers are trained by the project or given as files.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple, Protocol, cast

from torch import Tensor, nn

from smskd.pairs import TORCHVISION


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


# name -> the file of this folder that builds it
FAMILIES = {
    "tiny_teacher": "tiny",
    "tiny_student": "tiny",
    "resnet18": "resnet_torchvision",
    "resnet50": "resnet_torchvision",
    "mobilenetv2_half": "mobilenetv2",
    "shufflenetv2": "shufflenetv2",
    "vgg19": "vgg",
    "wrn40_2": "wrn",
    "resnet20": "resnet_cifar",
    "resnet56": "resnet_cifar",
    "resnet8x4": "resnet_cifar",
    "resnet32x4": "resnet_cifar",
}


def family(name: str) -> str:
    """The file of this folder that builds a network.

    Raises:
        KeyError: there is no network of this name (names come from smskd.pairs, so this is our mistake).
    """
    return "torchvision_any" if name.startswith(TORCHVISION) else FAMILIES[name]


def build(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """A fresh network by name, initialised from torch's global generator.

    Raises:
        KeyError: there is no network of this name, as in family().
    """
    built_by = importlib.import_module(f"smskd.models.{family(name)}")
    return cast(nn.Module, built_by.build(name, num_classes=num_classes, in_channels=in_channels))
