"""Residual networks made for 32 x 32 images: three stages of basic blocks, and the four-times wider ones of KD work.

Source: He et al. 2016 (arXiv 1512.03385), section 4.2. Shortcuts that change the shape are 1x1 convolutions with batch
norm (option B), where the paper pads with zeros: so do the distillation benchmarks that the accuracies are compared to.
"""

from __future__ import annotations

from torch import nn
from torchvision.models.resnet import BasicBlock

from smskd.models.staged import Staged, conv_bn_relu, draw_kaiming, last_relu

# name -> the smallest side of an image, in pixels
NETWORKS = {"resnet20": 1, "resnet32": 1, "resnet56": 1, "resnet110": 1, "resnet8x4": 1, "resnet32x4": 1}

# name -> blocks of each stage, channels of the stem, channels of the stages; depth = 6 * blocks + 2
_SETTINGS = {
    "resnet20": (3, 16, (16, 32, 64)),
    "resnet32": (5, 16, (16, 32, 64)),
    "resnet56": (9, 16, (16, 32, 64)),
    "resnet110": (18, 16, (16, 32, 64)),
    "resnet8x4": (1, 32, (64, 128, 256)),
    "resnet32x4": (5, 32, (64, 128, 256)),
}


def build(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """One of NETWORKS; features are the three stages' outputs.

    The hint is the second stage: a map of half the side.
    """
    blocks, channels, widths = _SETTINGS[name]
    layers: list[nn.Module] = [conv_bn_relu(in_channels, channels)]
    stages = []
    for index, width in enumerate(widths):
        layers.append(_first_block(channels, width, stride=1 if index == 0 else 2))
        layers += [BasicBlock(width, width) for _ in range(blocks - 1)]
        channels = width
        stages.append(nn.Sequential(*layers))
        layers = []
    relus = [last_relu(stage) for stage in stages]
    network = Staged(stages, classifier=nn.Linear(channels, num_classes), hint_index=1, relus=relus)
    draw_kaiming(network)
    return network


def _first_block(in_channels: int, out_channels: int, *, stride: int) -> BasicBlock:
    """The block of a stage that changes the shape, if the stage does."""
    if in_channels == out_channels and stride == 1:
        return BasicBlock(in_channels, out_channels)
    conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    project = nn.Sequential(conv, nn.BatchNorm2d(out_channels))
    return BasicBlock(in_channels, out_channels, stride=stride, downsample=project)
