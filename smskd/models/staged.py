"""`Staged`, the chain of stages that every network here is, and the convolution most of them are built from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from smskd.models import Output


class Staged(nn.Module):
    """A classifier as a chain: stages, global average pooling, then `classifier` from embedding [B, D] to logits.

    Each stage's output is one of Output.features, and the last one's is what is pooled, whatever its height and width.
    A stage must not change its input in place: the input is the feature map before it.
    """

    hint_index: int

    def __init__(self, stages: Sequence[nn.Module], *, classifier: nn.Module, hint_index: int) -> None:
        super().__init__()
        assert 0 <= hint_index < len(stages), f"hint_index={hint_index} must point into {len(stages)} stages"
        self.stages = nn.ModuleList(stages)
        self.classifier = classifier
        self.hint_index = hint_index

    def forward(self, images: Tensor) -> Output:
        """Logits, feature maps and embedding of images [B, C, H, W]."""
        features = []
        maps = images
        for stage in self.stages:
            maps = stage(maps)
            features.append(maps)
        embedding = maps.mean((2, 3))
        return Output(logits=self.classifier(embedding), features=tuple(features), embedding=embedding)


def conv_bn_relu(in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution that keeps height and width (at stride 1), batch norm and ReLU."""
    # no bias: batch norm would take it away again
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def draw_kaiming(network: nn.Module) -> None:
    """Draw the convolutions' weights anew, normal with variance 2 / fan-out (He et al. 2015, arXiv 1502.01852, eq. 14).

    Batch norms need nothing: torch starts them at weight 1, bias 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
