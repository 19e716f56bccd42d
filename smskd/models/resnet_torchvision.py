"""ResNet-18 and ResNet-50 for 32 x 32 images: torchvision's stages behind a 3x3 stride-1 stem without max-pool.

Source: He et al. 2016 (arXiv 1512.03385); the stem for small images is the custom of CIFAR work.
"""

from __future__ import annotations

from torch import nn
from torchvision.models import resnet18, resnet50

from smskd.models.staged import Staged, conv_bn_relu, draw_kaiming, last_relu

# name -> the smallest side of an image, in pixels
NETWORKS = {"resnet18": 1, "resnet50": 1}

_BUILDERS = {"resnet18": resnet18, "resnet50": resnet50}


def build(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """`resnet18` or `resnet50`; features are the four stages' outputs.

    The hint is the second stage: 128 or 512 maps of half the side.
    """
    network = _BUILDERS[name](weights=None, num_classes=num_classes)
    stem = conv_bn_relu(in_channels, 64)
    draw_kaiming(stem)  # as torchvision draws the rest
    stages = [nn.Sequential(stem, network.layer1), network.layer2, network.layer3, network.layer4]
    return Staged(stages, classifier=network.fc, hint_index=1, relus=[last_relu(stage) for stage in stages])
