"""Wide residual networks with pre-activation blocks and without dropout, WRN-depth-width.

Source: Zagoruyko and Komodakis 2016 (arXiv 1605.07146), table 1.
"""

from __future__ import annotations

from torch import Tensor, nn

from smskd.models.staged import Staged, draw_kaiming

# name -> the smallest side of an image, in pixels
NETWORKS = {"wrn40_2": 1, "wrn40_1": 1, "wrn16_2": 1}

# name -> blocks of each stage, width; depth = 6 * blocks + 4
_SETTINGS = {"wrn40_2": (6, 2), "wrn40_1": (6, 1), "wrn16_2": (2, 2)}
_CHANNELS = (16, 32, 64)  # of the stages at width 1


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
    """One of NETWORKS; features are the three stages' outputs: signed, since batch norm and ReLU come after them.

    The hint is the second stage: a map of half the side. What stands before a map's ReLU is its next batch norm.
    """
    blocks, wide = _SETTINGS[name]
    channels = 16
    layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)]
    stages: list[nn.Sequential] = []
    relus: list[nn.Module] = []
    for index, width in enumerate(_CHANNELS):
        first = PreActivationBlock(channels, wide * width, stride=1 if index == 0 else 2)
        if index:
            relus.append(first.activate[1])
        channels = wide * width
        layers += [first, *(PreActivationBlock(channels, channels, stride=1) for _ in range(blocks - 1))]
        stages.append(nn.Sequential(*layers))
        layers = []
    tail = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
    network = Staged(
        stages, tail=tail, classifier=nn.Linear(channels, num_classes), hint_index=1, relus=[*relus, tail[1]]
    )
    draw_kaiming(network)
    return network
