"""VGG-8, 13 and 19 with batch norm for 32 x 32 images, global average pooling and one linear layer.

Source: Simonyan and Zisserman 2015 (arXiv 1409.1556), table 1, columns B and E. As in distillation benchmarks (arXiv
1910.10699), VGG-8 has one convolution a block, the two hidden linear layers and the fifth pool are left out, and so is
the fourth below 64 pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from smskd.models.staged import Staged, conv_bn_relu, draw_kaiming, last_relu, narrow_linear

# name -> the smallest side of an image, in pixels: three pools
NETWORKS = {"vgg8": 8, "vgg13": 8, "vgg19": 8}

# output channels of each block, and its convolutions
_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {"vgg8": (1, 1, 1, 1, 1), "vgg13": (2, 2, 2, 2, 2), "vgg19": (2, 2, 4, 4, 4)}
# the side of the maps before the fourth pool, of images of 64 pixels
_LARGE = 8


class LargePool(nn.Module):
    """A 2x2 max-pool, left out where maps are those of a small image."""

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, C, H / 2, W / 2] if both sides are at least 8 pixels, else themselves."""
        return F.max_pool2d(maps, 2) if min(maps.shape[2:]) >= _LARGE else maps


def build(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """`vgg8`, `vgg13` or `vgg19`; features are the outputs of blocks 2 to 5, before their pools.

    The hint is block 3's: a quarter of the side. Convolutions have biases, as published.
    """
    layers: list[nn.Module] = []
    stages: list[nn.Module] = []
    for block, (channels, convolutions) in enumerate(zip(_WIDTHS, _CONVOLUTIONS[name], strict=True)):
        if block:  # a pool belongs to the block after it, so that the feature map is the one before the pool
            layers.append(LargePool() if block == len(_WIDTHS) - 1 else nn.MaxPool2d(2))
        for _ in range(convolutions):
            layers.append(conv_bn_relu(in_channels, channels, bias=True))
            in_channels = channels
        if block:  # the first block goes with the second one
            stages.append(nn.Sequential(*layers))
            layers = []
    relus = [last_relu(stage) for stage in stages]
    network = Staged(stages, classifier=narrow_linear(in_channels, num_classes), hint_index=1, relus=relus)
    draw_kaiming(network)
    return network
