"""ShuffleNetV2 1x for 32 x 32 images: torchvision's stages behind a 1x1 stride-1 stem without max-pool.

Source: Ma et al. 2018 (arXiv 1807.11164), table 5.
"""

from __future__ import annotations

from torch import nn
from torchvision.models import shufflenet_v2_x1_0

from smskd.models.staged import Staged, conv_bn_relu

# name -> the smallest side of an image, in pixels
NETWORKS = {"shufflenetv2": 1}


def build(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """`shufflenetv2`; features are the outputs of three stages, half their channels after a ReLU.

    The hint is the second stage: 232 maps of a quarter of the side. The last convolution is seen only in the embedding.
    """
    network = shufflenet_v2_x1_0(weights=None, num_classes=num_classes)
    stages = [
        nn.Sequential(conv_bn_relu(in_channels, 24, kernel_size=1), network.stage2),
        network.stage3,
        network.stage4,
    ]
    return Staged(stages, tail=network.conv5, classifier=network.fc, hint_index=1)
