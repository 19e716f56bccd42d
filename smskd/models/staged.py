"""`Staged`, the chain of stages that every network here is, and the convolution most of them are built from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from smskd.models import Output


class Staged(nn.Module):
    """A classifier as a chain: stages, a tail, global average pooling, then `classifier` from embedding to logits.

    Each stage's output is one of Output.features; what is pooled is the tail's output, or without a tail the last
    stage's, whatever its height and width. A stage must not change its input in place: that is the feature map before.
    """

    hint_index: int

    def __init__(
        self,
        stages: Sequence[nn.Module],
        *,
        classifier: nn.Module,
        hint_index: int,
        tail: nn.Module | None = None,
        relus: Sequence[nn.Module] = (),
    ) -> None:
        """relus: for each stage the ReLU whose input is Output.before_relu; none: the features themselves are."""
        super().__init__()
        assert 0 <= hint_index < len(stages), f"hint_index={hint_index} must point into {len(stages)} stages"
        assert len(relus) in (0, len(stages)), f"there are {len(relus)} ReLUs for {len(stages)} stages"
        self.stages = nn.ModuleList(stages)
        self.tail = tail
        self.classifier = classifier
        self.hint_index = hint_index
        self._relus = tuple(relus)  # they are modules of stages and tail already

    def forward(self, images: Tensor, before_relu: bool = False) -> Output:
        """Logits, feature maps and embedding of images [B, C, H, W]; if asked for, what stands before their ReLUs."""
        if not before_relu:
            return self._output(images)
        kept: dict[int, Tensor] = {}
        handles = [relu.register_forward_pre_hook(_keeper(kept, place)) for place, relu in enumerate(self._relus)]
        try:
            output = self._output(images)
        finally:
            for handle in handles:
                handle.remove()
        found = tuple(kept[place] for place in range(len(handles)))
        return output._replace(before_relu=found or output.features)

    def _output(self, images: Tensor) -> Output:
        features = []
        maps = images
        for stage in self.stages:
            maps = stage(maps)
            features.append(maps)
        if self.tail is not None:
            maps = self.tail(maps)
        embedding = maps.mean((2, 3))
        return Output(logits=self.classifier(embedding), features=tuple(features), embedding=embedding)


def _keeper(kept: dict[int, Tensor], place: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        kept[place] = inputs[0].clone()  # most ReLUs work in place; one that is called several times stands last, too

    return keep


def last_relu(stage: nn.Module) -> nn.Module:
    """The ReLU at a stage's end."""
    return [module for module in stage.modules() if isinstance(module, nn.ReLU)][-1]


def conv_bn_relu(
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: int = 3,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> nn.Sequential:
    """Convolution that keeps height and width (at stride 1), batch norm and ReLU.

    bias: of the convolution. Batch norm takes it away again, but published networks may have it in their files.
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def draw_kaiming(network: nn.Module) -> None:
    """Draw the convolutions' weights anew, normal with variance 2 / fan-out (He et al. 2015, arXiv 1502.01852, eq. 14).

    Their biases become 0. Batch norms need nothing: torch starts them at weight 1, bias 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def narrow_linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer that starts near zero: weights of standard deviation 0.01, biases 0."""
    linear = nn.Linear(in_features, out_features)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return linear
