"""MobileNetV2 at half width for 32 x 32 images: torchvision's blocks with one stride less, so that it ends at 2 x 2.

Source: Sandler et al. 2018 (arXiv 1801.04381), table 2.
"""

from __future__ import annotations

from itertools import islice

from torch import nn
from torchvision.models import MobileNetV2

from smskd.models.staged import Staged, draw_kaiming

# expansion, channels at full width, blocks, stride of the first block
_SETTING = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),  # stride 2 in the paper, for images of 224 pixels
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def build(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """`mobilenetv2_half`; features are the outputs of seven stages (linear, signed) and of the last convolution.

    The hint is the 32-channel stage: 16 maps of a quarter of the side. torchvision's dropout of 0.2 stands between
    the embedding and the linear layer.
    """
    network = MobileNetV2(
        num_classes=num_classes,
        width_mult=0.5,
        inverted_residual_setting=[list(row) for row in _SETTING],
        round_nearest=4,  # halves every width exactly; the usual 8 would make 16 of the 24-channel stage, not 12
    )
    stem = nn.Conv2d(in_channels, 16, 3, stride=2, padding=1, bias=False)
    draw_kaiming(stem)  # as torchvision draws the one for three channels, which it replaces
    network.features[0][0] = stem

    layers = iter(network.features)
    first, *blocks = [row[2] for row in _SETTING]
    # the stem goes with the first stage, the last convolution is a stage of its own
    stages = [nn.Sequential(*islice(layers, count)) for count in (1 + first, *blocks, 1)]
    return Staged(stages, classifier=network.classifier, hint_index=2)
