"""Networks as public repositories name their layers, written down from their state dicts; not from ours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(before: int, after: int, side: int = 3, stride: int = 1, *, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(before, after, side, stride, side // 2, groups=groups, bias=bias)


def _numbered(module: nn.Module, convolutions: Sequence[nn.Conv2d], start: int = 1) -> None:
    for number, one in enumerate(convolutions, start):
        setattr(module, f"conv{number}", one)
        setattr(module, f"bn{number}", nn.BatchNorm2d(one.out_channels))


def _applied(module: nn.Module, number: int, maps: Tensor) -> Tensor:
    result: Tensor = getattr(module, f"bn{number}")(getattr(module, f"conv{number}")(maps))
    return result


class _Residual(nn.Module):
    """conv1, bn1, ...; the shortcut, if there is one, under the name that is given."""

    def __init__(self, before: int, width: int, stride: int, bottleneck: bool, shortcut: str) -> None:
        super().__init__()
        wide = [conv(before, width, 1), conv(width, width, 3, stride), conv(width, 4 * width, 1)]
        self.convolutions = wide if bottleneck else [conv(before, width, 3, stride), conv(width, width)]
        self.depth, self.after, self.name = len(self.convolutions), self.convolutions[-1].out_channels, shortcut
        _numbered(self, self.convolutions)
        del self.convolutions
        if stride != 1 or before != self.after:
            setattr(self, shortcut, nn.Sequential(conv(before, self.after, 1, stride), nn.BatchNorm2d(self.after)))

    def forward(self, maps: Tensor) -> Tensor:
        made = maps
        for number in range(1, self.depth + 1):
            made = _applied(self, number, made)
            made = F.relu(made) if number < self.depth else made
        return F.relu(made + getattr(self, self.name, nn.Identity())(maps))


class _InOne(nn.Module):
    """weiaicunzai's block: residual_function, shortcut."""

    def __init__(self, before: int, width: int, stride: int, bottleneck: bool, _: str) -> None:
        super().__init__()
        wide = [conv(before, width, 1), conv(width, width, 3, stride), conv(width, 4 * width, 1)]
        layers: list[nn.Module] = []
        for one in wide if bottleneck else [conv(before, width, 3, stride), conv(width, width)]:
            layers += [one, nn.BatchNorm2d(one.out_channels), nn.ReLU()]
            self.after = one.out_channels
        self.residual_function = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential()
        if stride != 1 or before != self.after:
            self.shortcut = nn.Sequential(conv(before, self.after, 1, stride), nn.BatchNorm2d(self.after))

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.residual_function(maps) + self.shortcut(maps))


class ResNet(nn.Module):
    """RepDistiller's resnet* (fc, downsample) and ResNet* (linear, shortcut); with `in_one` weiaicunzai's."""

    def __init__(
        self, blocks: Sequence[int], stem: int, widths: Sequence[int], *,
        bottleneck: bool = False, head: str = "fc", shortcut: str = "downsample", in_one: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if in_one:
            self.conv1: nn.Module = nn.Sequential(conv(3, stem), nn.BatchNorm2d(stem), nn.ReLU())
        else:
            self.conv1, self.bn1 = conv(3, stem), nn.BatchNorm2d(stem)
        before, self.head, self.in_one, self.names = stem, head, in_one, []
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            layers = []
            for number in range(count):
                stride = 2 if stage and not number else 1
                layers.append((_InOne if in_one else _Residual)(before, width, stride, bottleneck, shortcut))
                before = layers[-1].after
            self.names.append(f"conv{stage + 2}_x" if in_one else f"layer{stage + 1}")
            setattr(self, self.names[-1], nn.Sequential(*layers))
        setattr(self, head, nn.Linear(before, 100))

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.conv1(images) if self.in_one else F.relu(self.bn1(self.conv1(images)))
        for name in self.names:
            maps = getattr(self, name)(maps)
        logits: Tensor = getattr(self, self.head)(maps.mean((2, 3)))
        return logits


class _Wide(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(before), conv(before, after, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(after), conv(after, after)
        if before != after:
            self.convShortcut = conv(before, after, 1, stride)

    def forward(self, maps: Tensor) -> Tensor:
        activated = F.relu(self.bn1(maps))
        made: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return made + (self.convShortcut(activated) if hasattr(self, "convShortcut") else maps)


class _WideStage(nn.Module):
    def __init__(self, before: int, after: int, stride: int, blocks: int) -> None:
        super().__init__()
        rest = [_Wide(after, after, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(_Wide(before, after, stride), *rest)


class WideResNet(nn.Module):
    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.conv1 = conv(3, 16)
        self.block1 = _WideStage(16, 16 * width, 1, blocks)
        self.block2 = _WideStage(16 * width, 32 * width, 2, blocks)
        self.block3 = _WideStage(32 * width, 64 * width, 2, blocks)
        self.bn1, self.fc = nn.BatchNorm2d(64 * width), nn.Linear(64 * width, 100)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.block3.layer(self.block2.layer(self.block1.layer(self.conv1(images))))
        logits: Tensor = self.fc(F.relu(self.bn1(maps)).mean((2, 3)))
        return logits


def _shuffled(maps: Tensor, groups: int) -> Tensor:
    batch, channels, *sides = maps.shape
    return maps.view(batch, groups, channels // groups, *sides).transpose(1, 2).reshape(maps.shape)


class _Shuffle1(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.groups, self.stride = 1 if before == 24 else 3, stride
        middle = after // 4
        narrow = conv(before, middle, 1, groups=self.groups)
        _numbered(self, [narrow, conv(middle, middle, 3, stride, groups=middle), conv(middle, after, 1, groups=3)])

    def forward(self, maps: Tensor) -> Tensor:
        made = _shuffled(F.relu(_applied(self, 1, maps)), self.groups)
        made = _applied(self, 3, F.relu(_applied(self, 2, made)))
        if self.stride == 1:
            return F.relu(made + maps)
        return F.relu(torch.cat([made, F.avg_pool2d(maps, 3, 2, 1)], 1))


class ShuffleNetV1(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, before = conv(3, 24, 1), nn.BatchNorm2d(24), 24
        for stage, (after, count) in enumerate(((240, 4), (480, 8), (960, 4)), 1):
            rest = [_Shuffle1(after, after, 1) for _ in range(count - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(_Shuffle1(before, after - before, 2), *rest))
            before = after
        self.linear = nn.Linear(before, 100)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.bn1(self.conv1(images)))
        logits: Tensor = self.linear(self.layer3(self.layer2(self.layer1(maps))).mean((2, 3)))
        return logits


class _Shuffle2(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        _numbered(self, [conv(half, half, 1), conv(half, half, 3, groups=half), conv(half, half, 1)])

    def forward(self, maps: Tensor) -> Tensor:
        kept, made = maps.chunk(2, 1)
        made = _applied(self, 2, F.relu(_applied(self, 1, made)))
        return _shuffled(torch.cat([kept, F.relu(_applied(self, 3, made))], 1), 2)


class _Shuffle2Down(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        half = after // 2
        _numbered(self, [conv(before, before, 3, 2, groups=before), conv(before, half, 1), conv(before, half, 1)])
        _numbered(self, [conv(half, half, 3, 2, groups=half), conv(half, half, 1)], 4)

    def forward(self, maps: Tensor) -> Tensor:
        left = F.relu(_applied(self, 2, _applied(self, 1, maps)))
        right = _applied(self, 4, F.relu(_applied(self, 3, maps)))
        return _shuffled(torch.cat([left, F.relu(_applied(self, 5, right))], 1), 2)


class ShuffleNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, before = conv(3, 24, 1), nn.BatchNorm2d(24), 24
        for stage, (after, count) in enumerate(((116, 3), (232, 7), (464, 3)), 1):
            rest = [_Shuffle2(after) for _ in range(count)]
            setattr(self, f"layer{stage}", nn.Sequential(_Shuffle2Down(before, after), *rest))
            before = after
        self.conv2, self.bn2, self.linear = conv(before, 1024, 1), nn.BatchNorm2d(1024), nn.Linear(1024, 100)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.bn1(self.conv1(images)))
        maps = F.relu(self.bn2(self.conv2(self.layer3(self.layer2(self.layer1(maps))))))
        logits: Tensor = self.linear(maps.mean((2, 3)))
        return logits


class VGG(nn.Module):
    """block0.0 a convolution with a bias, block0.1 its batch norm, block0.3 the next one; pools have no names here."""

    def __init__(self, counts: Sequence[int]) -> None:
        super().__init__()
        before = 3
        for block, (count, width) in enumerate(zip(counts, (64, 128, 256, 512, 512), strict=True)):
            layers: list[nn.Module] = []
            for _ in range(count):
                layers += [conv(before, width, bias=True), nn.BatchNorm2d(width), nn.ReLU()]
                before = width
            setattr(self, f"block{block}", nn.Sequential(*layers))
        self.classifier = nn.Linear(before, 100)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.max_pool2d(self.block0(images), 2)
        maps = F.max_pool2d(self.block2(F.max_pool2d(self.block1(maps), 2)), 2)
        logits: Tensor = self.classifier(self.block4(self.block3(maps)).mean((2, 3)))
        return logits


class _Inverted(nn.Module):
    def __init__(self, before: int, after: int, stride: int, times: int) -> None:
        super().__init__()
        wide, self.adds = times * before, stride == 1 and before == after
        self.conv = nn.Sequential(
            *(conv(before, wide, 1), nn.BatchNorm2d(wide), nn.ReLU()),
            *(conv(wide, wide, 3, stride, groups=wide), nn.BatchNorm2d(wide), nn.ReLU()),
            *(conv(wide, after, 1), nn.BatchNorm2d(after)),
        )

    def forward(self, maps: Tensor) -> Tensor:
        made: Tensor = self.conv(maps)
        return made + maps if self.adds else made


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        rows = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
        self.conv1, before = nn.Sequential(conv(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU()), 16
        self.blocks = nn.ModuleList()
        for times, after, count, stride in rows:
            first = _Inverted(before, after, stride, times)
            self.blocks.append(nn.Sequential(first, *(_Inverted(after, after, 1, times) for _ in range(count - 1))))
            before = after
        self.conv2 = nn.Sequential(conv(before, 1280, 1), nn.BatchNorm2d(1280), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(1280, 100))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv1(images)
        for block in self.blocks:
            maps = block(maps)
        logits: Tensor = self.classifier(self.conv2(maps).mean((2, 3)))
        return logits


def _wide(blocks: int) -> ResNet:
    return ResNet([blocks] * 3, 32, (64, 128, 256))


def _thin(blocks: int) -> ResNet:
    return ResNet([blocks] * 3, 16, (16, 32, 64))


_LARGE = (64, 128, 256, 512)
# whose, the network's name here, and it
NETWORKS = {
    "RepDistiller's resnet20": lambda: _thin(3),
    "RepDistiller's resnet32": lambda: _thin(5),
    "RepDistiller's resnet56": lambda: _thin(9),
    "RepDistiller's resnet110": lambda: _thin(18),
    "RepDistiller's resnet8x4": lambda: _wide(1),
    "RepDistiller's resnet32x4": lambda: _wide(5),
    "RepDistiller's resnet18": lambda: ResNet([2] * 4, 64, _LARGE, head="linear", shortcut="shortcut"),
    "RepDistiller's resnet50": lambda: ResNet(
        [3, 4, 6, 3], 64, _LARGE, bottleneck=True, head="linear", shortcut="shortcut"
    ),
    "weiaicunzai's resnet18": lambda: ResNet([2] * 4, 64, _LARGE, in_one=True),
    "weiaicunzai's resnet50": lambda: ResNet([3, 4, 6, 3], 64, _LARGE, bottleneck=True, in_one=True),
    "RepDistiller's wrn40_2": lambda: WideResNet(6, 2),
    "RepDistiller's wrn40_1": lambda: WideResNet(6, 1),
    "RepDistiller's wrn16_2": lambda: WideResNet(2, 2),
    "RepDistiller's shufflenetv1": ShuffleNetV1,
    "RepDistiller's shufflenetv2": ShuffleNetV2,
    "RepDistiller's vgg8": lambda: VGG([1] * 5),
    "RepDistiller's vgg13": lambda: VGG([2] * 5),
    "RepDistiller's vgg19": lambda: VGG([2, 2, 4, 4, 4]),
    "RepDistiller's mobilenetv2_half": MobileNetV2,
}


def build(name: str) -> nn.Module:
    """One of NETWORKS with random weights, whose logits tell images apart, in eval mode."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # so that one batch sets statistics at which no layer's maps vanish
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.1)
    with torch.no_grad():
        network(torch.randn(4, 3, 32, 32))
    return network.eval()
