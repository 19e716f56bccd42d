"""VGG-19 with batch norm for 32 x 32 images: four pools, global average pooling and one linear layer.

Source: Simonyan and Zisserman 2015 (arXiv 1409.1556), table 1, column E. The fifth pool and the two hidden linear
layers are left out, as is the custom of CIFAR work.
"""

from __future__ import annotations

from torch import nn

from smskd.models.staged import Staged, conv_bn_relu, draw_kaiming

# output channels and convolutions of each block
_BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))


def build(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """`vgg19`; features are the blocks' outputs before their pools, the hint is block 3's: a quarter of the side.

    Images need 16 pixels a side, for the four pools.
    """
    stages: list[nn.Module] = []
    for channels, convolutions in _BLOCKS:
        # a pool belongs to the block after it, so that the feature map is the one before the pool
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if stages else []
        for _ in range(convolutions):
            layers.append(conv_bn_relu(in_channels, channels))
            in_channels = channels
        stages.append(nn.Sequential(*layers))
    network = Staged(stages, classifier=nn.Linear(in_channels, num_classes), hint_index=2)
    draw_kaiming(network)
    return network
