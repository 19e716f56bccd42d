"""MobileNetV2 at half width for 32 x 32 images, as distillation benchmarks have it: the last maps are 2 x 2.

Source: Sandler et al. 2018 (arXiv 1801.04381), table 2. As in the benchmarks (arXiv 1910.10699) the first two strides
of 2 are one less, ReLU stands for ReLU6, the first block has an expansion, too, and nothing is dropped out.
"""

from __future__ import annotations

from torch import Tensor, nn

from smskd.models.staged import Staged, conv_bn_relu, draw_kaiming, narrow_linear

# name -> the smallest side of an image, in pixels
NETWORKS = {"mobilenetv2_half": 1}

_STEM, _LAST = 16, 1280
# expansion, channels at half width, blocks, stride of the first block; a stage is what ends with a feature map
_STAGES = (
    ((1, 8, 1, 1), (6, 12, 2, 1)),
    ((6, 16, 3, 2),),
    ((6, 32, 4, 2), (6, 48, 3, 1)),
    ((6, 80, 3, 2), (6, 160, 1, 1)),
)


class InvertedResidual(nn.Module):
    """Widen by 1x1, convolve each channel by 3x3, narrow by 1x1 without a ReLU; add the input where shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        wide = expansion * in_channels
        self.layers = nn.Sequential(
            conv_bn_relu(in_channels, wide, kernel_size=1),
            conv_bn_relu(wide, wide, stride=stride, groups=wide),
            nn.Conv2d(wide, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B, in_channels, H, W] to [B, out_channels, H / stride, W / stride]."""
        made: Tensor = self.layers(maps)
        return maps + made if self.adds else made


def build(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """`mobilenetv2_half`; features are signed maps of 12, 16, 48 and 160 channels, of a half to a 16th of the side.

    The hint is the second one. The last convolution, of 1280 channels, is seen only in the embedding.
    """
    channels = _STEM
    layers: list[nn.Module] = [conv_bn_relu(in_channels, channels, stride=2)]
    stages = []
    for rows in _STAGES:
        for expansion, width, blocks, first in rows:
            for stride in (first, *[1] * (blocks - 1)):
                layers.append(InvertedResidual(channels, width, expansion=expansion, stride=stride))
                channels = width
        stages.append(nn.Sequential(*layers))
        layers = []
    tail = conv_bn_relu(channels, _LAST, kernel_size=1)
    network = Staged(stages, tail=tail, classifier=narrow_linear(_LAST, num_classes), hint_index=1)
    draw_kaiming(network)
    return network
