"""ShuffleNetV2 1x for 32 x 32 images: torchvision's stages behind a 1x1 stride-1 stem without max-pool.

Source: Ma et al. 2018 (arXiv 1807.11164), table 5.
"""

from __future__ import annotations

from torch import nn
from torchvision.models import shufflenet_v2_x1_0

from smskd.models.staged import Staged, conv_bn_relu


def build(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """`shufflenetv2`; features are the outputs of three stages and of the last convolution.

    The hint is the second stage: 232 maps of a quarter of the side.
    """
    network = shufflenet_v2_x1_0(weights=None, num_classes=num_classes)
    stages = [
        nn.Sequential(conv_bn_relu(in_channels, 24, kernel_size=1), network.stage2),
        network.stage3,
        network.stage4,
        network.conv5,
    ]
    return Staged(stages, classifier=network.fc, hint_index=1)
