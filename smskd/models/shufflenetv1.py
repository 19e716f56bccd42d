"""ShuffleNet with three groups for 32 x 32 images, behind a 1x1 stride-1 stem without max-pool.

Source: Zhang et al. 2018 (arXiv 1707.01083), table 1, g = 3. As in distillation benchmarks (arXiv 1910.10699), a ReLU
follows the depthwise convolution, too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smskd.models.staged import Staged, conv_bn_relu, last_relu

# name -> the smallest side of an image, in pixels
NETWORKS = {"shufflenetv1": 1}

_GROUPS = 3
_STEM = 24
# channels and blocks of each stage
_STAGES = ((240, 4), (480, 8), (960, 4))


class ShuffleUnit(nn.Module):
    """Squeeze by a grouped 1x1, shuffle channels, convolve each by 3x3, widen by a grouped 1x1.

    The input is added, or at stride 2 averaged and put beside the result, whose channels make up the number.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        made = out_channels - in_channels if stride == 2 else out_channels
        squeezed = made // 4
        self.groups = 1 if in_channels == _STEM else _GROUPS  # there are few channels behind the stem
        self.squeeze = conv_bn_relu(in_channels, squeezed, kernel_size=1, groups=self.groups)
        self.depthwise = conv_bn_relu(squeezed, squeezed, stride=stride, groups=squeezed)
        self.widen = nn.Sequential(nn.Conv2d(squeezed, made, 1, groups=_GROUPS, bias=False), nn.BatchNorm2d(made))
        self.shrink = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B, in_channels, H, W] to [B, out_channels, H / stride, W / stride]."""
        shuffled = self.squeeze(maps).unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        made: Tensor = self.widen(self.depthwise(shuffled))
        both = maps + made if self.shrink is None else torch.cat([made, self.shrink(maps)], dim=1)
        activated: Tensor = self.relu(both)
        return activated


def build(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """`shufflenetv1`; features are the outputs of its three stages, the hint is the second: a quarter of the side."""
    channels = _STEM
    layers: list[nn.Module] = [conv_bn_relu(in_channels, channels, kernel_size=1)]
    stages = []
    for width, blocks in _STAGES:
        layers.append(ShuffleUnit(channels, width, stride=2))
        layers += [ShuffleUnit(width, width, stride=1) for _ in range(blocks - 1)]
        channels = width
        stages.append(nn.Sequential(*layers))
        layers = []
    relus = [last_relu(stage) for stage in stages]
    return Staged(stages, classifier=nn.Linear(channels, num_classes), hint_index=1, relus=relus)
