"""WRN-40-2, the wide residual network with pre-activation blocks and without dropout.

Source: Zagoruyko and Komodakis 2016 (arXiv 1605.07146), table 1, depth 40, width 2.
"""

from __future__ import annotations

from torch import Tensor, nn

from smskd.models.staged import Staged, draw_kaiming

_BLOCKS_PER_STAGE = 6  # depth 40 = 6 * 6 + 4
_CHANNELS = (32, 64, 128)


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions, and none after the sum: the output is signed."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True))
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        )
        self.project: nn.Module | None = None
        if in_channels != out_channels:
            self.project = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B, in_channels, H, W] to [B, out_channels, H / stride, W / stride]."""
        activated = self.activate(maps)
        # a projection reads the activated maps, an identity the raw ones, as in the authors' code
        shortcut: Tensor = maps if self.project is None else self.project(activated)
        residual: Tensor = self.residual(activated)
        return shortcut + residual


def build(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """`wrn40_2`; features are the three stages' outputs, the last one after the final batch norm and ReLU.

    The hint is the second stage: 64 signed maps of half the side.
    """
    channels = 16
    layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)]
    stages = []
    for index, out_channels in enumerate(_CHANNELS):
        layers.append(PreActivationBlock(channels, out_channels, stride=1 if index == 0 else 2))
        layers += [PreActivationBlock(out_channels, out_channels, stride=1) for _ in range(_BLOCKS_PER_STAGE - 1)]
        channels = out_channels
        if index == len(_CHANNELS) - 1:
            layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        stages.append(nn.Sequential(*layers))
        layers = []
    network = Staged(stages, classifier=nn.Linear(channels, num_classes), hint_index=1)
    draw_kaiming(network)
    return network
