"""Any classifier answers with Output: torchvision's by name, timm's, plain modules of many shapes; copies and pairs."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision.models
import yaml
from torch import Tensor, nn

from smskd import anchor, checkpoints, components, methods, models, pairs, train
from smskd.components import TORCHVISION
from smskd.components import network as named
from smskd.data import load
from smskd.experiment import Experiment
from smskd.job import code_digest
from smskd.methods.base import Batch, Task, View
from smskd.models import __main__ as command
from smskd.models import torchvision_any
from smskd.models.recorded import Recorded
from smskd.recipe import Stage
from smskd.teacher import Teacher
from smskd.training import Training

# name -> side of the images, channels of each feature map with its side, place of the hint, length of the embedding
SAMPLE: dict[str, tuple[int, list[tuple[int, int]], int, int]] = {
    "resnet18": (64, [(64, 32), (64, 16), (128, 8), (256, 4), (512, 2)], 2, 512),
    "mobilenet_v2": (64, [(16, 32), (24, 16), (32, 8), (96, 4), (1280, 2)], 2, 1280),
    "shufflenet_v2_x0_5": (64, [(24, 32), (24, 16), (48, 8), (96, 4), (1024, 2)], 2, 1024),
    "efficientnet_b0": (64, [(16, 32), (24, 16), (40, 8), (112, 4), (1280, 2)], 2, 1280),
    "densenet121": (64, [(64, 32), (256, 16), (512, 8), (1024, 4), (1024, 2)], 2, 1024),
    "vgg11_bn": (32, [(64, 32), (128, 16), (256, 8), (512, 4), (512, 2), (512, 1)], 3, 4096),
    "squeezenet1_1": (64, [(64, 31), (128, 15), (256, 7), (512, 3)], 2, 512),
    "convnext_tiny": (32, [(96, 8), (192, 4), (384, 2), (768, 1)], 1, 768),
    "swin_t": (64, [(96, 16), (192, 8), (384, 4), (768, 2)], 1, 768),
    "vit_b_16": (224, [(768, 14)] * 4, 1, 768),
    "regnet_y_400mf": (64, [(48, 16), (104, 8), (208, 4), (440, 2)], 1, 440),
    "googlenet": (64, [(64, 32), (192, 16), (480, 8), (832, 4), (1024, 2)], 2, 1024),
}
SLOW = {"vit_b_16", "vgg11_bn", "swin_t", "convnext_tiny", "densenet121"}
every_family = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SAMPLE]
)


def build(name: str, *, in_channels: int = 3) -> Recorded:
    torch.manual_seed(0)
    network = models.build(TORCHVISION + name, num_classes=7, image=(in_channels, 64, 64))
    assert isinstance(network, Recorded)
    return network


def images_for(name: str) -> torch.Tensor:
    side = SAMPLE[name][0]
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@every_family
def test_output_gradient_and_copies(name: str) -> None:
    _, maps, hint_index, width = SAMPLE[name]
    network, images = build(name), images_for(name)
    network.eval()
    with torch.no_grad():
        output, again = network(images), network(images)
    assert output.logits.shape == (2, 7)
    assert output.embedding.shape == (2, width)
    assert [tuple(f.shape) for f in output.features] == [(2, channels, side, side) for channels, side in maps]
    assert network.hint_index == hint_index
    for one, two in zip(
        (output.logits, output.embedding, *output.features),
        (again.logits, again.embedding, *again.features),
        strict=True,
    ):
        assert torch.equal(one, two)

    reference = anchor.freeze(network)
    network.train()
    trained = network(images)
    trained.logits.square().sum().backward()
    assert [key for key, p in network.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        kept, moved = reference(images), network.eval()(images)
    assert torch.equal(kept.logits, output.logits)
    assert torch.equal(kept.embedding, output.embedding)
    assert all(torch.equal(a, b) for a, b in zip(kept.features, output.features, strict=True))
    assert not torch.equal(moved.embedding, output.embedding)
    # no call leaves anything behind: a copy made between two calls holds no tensor of the first
    assert not network._kept and not reference._kept
    copy.deepcopy(network)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "squeezenet1_1"])
def test_the_embedding_is_what_the_last_layer_makes_logits_of(name: str) -> None:
    network, images = build(name).eval(), images_for(name)
    output = network(images)
    last = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    if isinstance(last, nn.Linear):
        assert torch.allclose(last(output.embedding), output.logits, atol=1e-6)
    else:
        assert torch.allclose(output.embedding, output.features[-1].mean((2, 3)), atol=1e-6)


# name -> modules whose outputs are the maps, place of the hint, what is given the embedding
CHOSEN = {
    "alexnet": ("features.1 features.4 features.11 features.12", 1, "classifier.6"),
    "inception_v3": ("Conv2d_2b_3x3 Conv2d_4a_3x3 Mixed_5d Mixed_6e Mixed_7c", 2, "dropout"),
    "maxvit_t": ("blocks.0 blocks.1 blocks.2 blocks.3", 1, "classifier.5"),
    "mnasnet0_5": ("layers.7 layers.8 layers.9 layers.11 layers.16", 2, "classifier.0"),
    "mobilenet_v3_small": ("features.0 features.1 features.3 features.8 features.12", 2, "classifier.2"),
    "efficientnet_v2_s": ("features.1 features.2 features.3 features.5 features.7", 2, "classifier.0"),
    "swin_v2_t": ("features.1 features.3 features.5 features.7", 1, "head"),
    "resnext50_32x4d": ("relu layer1 layer2 layer3 layer4", 2, "fc"),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_what_is_looked_at_in_other_families(name: str) -> None:
    with torch.device("meta"):
        plain = torchvision_any.build(name, num_classes=7, in_channels=3)
    network = Recorded(plain, name=TORCHVISION + name, num_classes=7, image=(3, 64, 64))
    assert (" ".join(network.layers), network.hint_index, network.head) == CHOSEN[name]


def test_the_embedding_is_taken_before_dropout() -> None:
    network = build("mobilenet_v3_small").train()
    embedding = network(torch.randn(8, 3, 32, 32)).embedding
    assert (embedding == 0).float().mean() < 0.02  # its dropout zeroes a fifth, in place


def test_grey_images_are_three_equal_channels_and_others_are_refused() -> None:
    network = build("resnet18", in_channels=1).eval()
    grey = torch.randn(2, 1, 32, 32)
    assert torch.equal(network(grey).logits, network(grey.repeat(1, 3, 1, 1)).logits)
    with pytest.raises(ValueError, match="in_channels=4"):
        build("resnet18", in_channels=4)


def test_weights_are_those_of_torchvision_itself(tmp_path: Path) -> None:
    plain = torchvision.models.resnet18(weights=None, num_classes=7).eval()
    safetensors.torch.save_file(plain.state_dict(), tmp_path / "t.safetensors")
    network = build("resnet18").eval()
    loaded = checkpoints.read(tmp_path / "t.safetensors", network, key="teacher", name="torchvision/resnet18")
    network.load_state_dict(loaded.weights)
    images = images_for("resnet18")
    assert torch.equal(network(images).logits, plain(images))


def test_a_teacher_has_the_hint_of_a_network_without_stages_and_runs_live() -> None:
    data = load("digits", train_size=10)
    teacher = Teacher(build("shufflenet_v2_x0_5", in_channels=1), data)
    # AlexNet, VGG and RegNet answer for an image by what else is in the batch, in the last bits
    assert teacher._ends is None and teacher._hints is None
    images = data.normalised(data.train.images[:3])
    index = torch.arange(3)
    alone = teacher(index, index * 0, images, frozenset({"hint"}))
    whole = teacher(index, index * 0, images, frozenset({"features"}))
    assert torch.equal(alone.map(0), whole.map(0))
    assert torch.equal(teacher.part(frozenset({"hint"}))(images), whole.map(0))


# --- plain modules


class Functional(nn.Module):
    """One ReLU and one pool for all places; what the layers are isn't told by the module's structure."""

    def __init__(self, num_classes: int = 7, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(in_channels, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.fc1, self.fc2 = nn.LazyLinear(32), nn.Linear(32, num_classes)
        self.relu, self.pool, self.drop = nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.5, inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.pool(self.relu(self.conv1(images)))
        maps = self.pool(F.relu(self.conv2(maps)))
        found: Tensor = self.fc2(self.drop(self.relu(self.fc1(maps.flatten(1)))))
        return found


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU(inplace=True))
        self.two = nn.Sequential(nn.Conv2d(after, after, 3, 1, 1), nn.BatchNorm2d(after))
        self.short = nn.Conv2d(before, after, 1, stride)

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.two(self.one(maps)) + self.short(maps))


class Residual(nn.Module):
    """As people write one for CIFAR; `hidden` puts all but the head into one module of its own."""

    def __init__(self, num_classes: int = 7, in_channels: int = 3, hidden: bool = False) -> None:
        super().__init__()
        stages = {
            "stem": nn.Conv2d(in_channels, 8, 3, padding=1),
            "layer1": nn.Sequential(Block(8, 8, 1), Block(8, 8, 1)),
        }
        stages |= {"layer2": nn.Sequential(Block(8, 16, 2), Block(16, 16, 1)), "layer3": Block(16, 32, 2)}
        if hidden:
            self.body: nn.Module = Body(stages)
        else:
            self.body = nn.Identity()
            for name, stage in stages.items():
                self.add_module(name, stage)
        self.head = nn.Linear(32, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.body(images)
        for part in (getattr(self, name) for name in ("stem", "layer1", "layer2", "layer3") if hasattr(self, name)):
            maps = part(maps)
        found: Tensor = self.head(F.adaptive_avg_pool2d(maps, 1).flatten(1))
        return found


class Body(nn.Module):
    def __init__(self, stages: dict[str, nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleDict(stages)

    def forward(self, maps: Tensor) -> Tensor:
        for part in self.stages.values():
            maps = part(maps)
        return maps


class Transformer(nn.Module):
    """A ViT of 2 x 4 patches for each 8 x 16 pixels, with tokens before them."""

    def __init__(self, depth: int = 5, width: int = 16, *, tokens: int = 1, first: bool = True, side: int = 32) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, width, 4, 4)
        self.tokens = nn.Parameter(torch.randn(1, tokens, width))
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=first)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head, self.first = nn.Linear(width, 7), first

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        patches = self.cut(images).flatten(2).transpose(1, 2)
        row = torch.cat([self.tokens.expand(len(images), -1, -1), patches], dim=1)
        row = self.encoder(row) if self.first else self.encoder(row.transpose(0, 1)).transpose(0, 1)
        return {"hidden": row, "logits": self.head(row[:, 0])}


class Layer(nn.Module):
    """Returns its attention, too."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mix = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 16)

    def forward(self, row: Tensor) -> tuple[Tensor, Tensor]:
        mixed, weights = self.attention(row, row, row)
        return row + self.mix(mixed), weights


class Backbone(nn.Module):
    """Returns no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.layer = nn.Conv2d(3, 16, 4, 4), nn.ModuleList(Layer() for _ in range(4))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        row = self.embeddings(images).flatten(2).transpose(1, 2)
        for layer in self.layer:
            row, _ = layer(row)
        return {"last_hidden_state": row}


class Nested(nn.Module):
    """As Hugging Face's classifiers are made."""

    def __init__(self) -> None:
        super().__init__()
        self.vit, self.classifier = Backbone(), nn.Linear(16, 7)

    def forward(self, images: Tensor) -> Any:
        return SimpleNamespace(logits=self.classifier(self.vit(images)["last_hidden_state"].mean(1)))


class Last(nn.Module):
    """Channels last, as Swin's blocks are."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, 8, 4, 4)
        self.mix1, self.mix2 = nn.Linear(8, 8), nn.Linear(32, 16)
        self.head = nn.Linear(16, 7)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.mix1(self.cut(images).permute(0, 2, 3, 1))
        four = [maps[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        found: Tensor = self.head(self.mix2(torch.cat(four, -1)).mean((1, 2)))
        return found


class Cosine(nn.Module):
    """Its logits are made by no linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.centres = nn.Parameter(torch.randn(7, 16))

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(F.normalize(self.body(images).mean((2, 3))), F.normalize(self.centres))


class Returns(nn.Module):
    """A network that returns something made of its logits and an embedding."""

    def __init__(self, made: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.head, self.made = nn.Conv2d(3, 5, 3, 2), nn.Linear(5, 7), made

    def forward(self, images: Tensor) -> Any:
        embedding = self.body(images).mean((2, 3))
        return self.made(self.head(embedding), embedding)


class Answer(NamedTuple):
    logits: Tensor
    aux_logits: Tensor


def of_perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 20), nn.ReLU(), nn.Linear(20, 7))


def of_lists() -> nn.Module:
    first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    second = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(nn.Sequential(first, second), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 7))


def of_convolutions() -> nn.Module:
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Dropout(0.5, inplace=True), nn.Conv2d(8, 7, 1))
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def maps_of(*shapes: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, shape.split("x"))) for shape in shapes]


# module, its chosen layers, their maps, hint, head, width of the embedding
PLAIN: dict[str, tuple[Callable[[], nn.Module], list[str], list[tuple[int, ...]], int, str | None, int]] = {
    "functional": (Functional, ["conv1", "conv2", "pool"], maps_of("8x32x32", "16x16x16", "16x8x8"), 1, "drop", 32),
    "residual": (Residual, ["layer1", "layer2", "layer3"], maps_of("8x32x32", "16x16x16", "32x8x8"), 1, "head", 32),
    "hidden": (
        lambda: Residual(hidden=True), ["body.stages.layer1", "body.stages.layer2", "body.stages.layer3"],
        maps_of("8x32x32", "16x16x16", "32x8x8"), 1, "head", 32,
    ),
    "lists": (of_lists, ["0.0.1", "0.0.2", "0.1"], maps_of("8x32x32", "8x16x16", "16x8x8"), 1, "3", 16),
    "convolutions": (of_convolutions, ["0"], maps_of("7x16x16"), 0, "0.2", 8),
    "vit": (
        Transformer, [f"encoder.layers.{k}" for k in (0, 1, 2, 4)], maps_of(*["16x8x8"] * 4), 1, "head", 16,
    ),
    "shallow vit": (
        lambda: Transformer(2, tokens=5), ["encoder.layers.0", "encoder.layers.1"], maps_of(*["16x8x8"] * 2), 0,
        "head", 16,
    ),
    "sequence first": (
        lambda: Transformer(4, first=False), [f"encoder.layers.{k}" for k in range(4)], maps_of(*["16x8x8"] * 4), 1,
        "head", 16,
    ),
    "nested": (Nested, [f"vit.layer.{k}" for k in range(4)], maps_of(*["16x8x8"] * 4), 1, "classifier", 16),
    "channels last": (Last, ["mix1", "mix2"], maps_of("8x8x8", "16x4x4"), 0, "head", 16),
    "cosine": (Cosine, ["body.1", "body.3"], maps_of("8x16x16", "16x8x8"), 0, None, 16),
    "perceptron": (of_perceptron, [], maps_of("20x1x1"), 0, "3", 20),
}  # fmt: skip


def recorded(network: nn.Module, *, image: tuple[int, int, int] = (3, 32, 32), **more: Any) -> Recorded:
    return Recorded(network, name="nets.py:Mine", num_classes=7, image=image, **more)


def made(case: str) -> nn.Module:
    torch.manual_seed(0)
    network = PLAIN[case][0]()
    network.eval()(torch.zeros(1, 3, 32, 32))  # lazy layers
    return network


@pytest.mark.parametrize("case", PLAIN)
def test_what_is_looked_at_in_a_plain_module(case: str) -> None:
    _, layers, maps, hint, head, width = PLAIN[case]
    network = made(case)
    state = torch.random.get_rng_state()
    wrapped = recorded(network)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (list(wrapped.layers), wrapped.head, wrapped.hint_index) == (layers, head, hint)
    images = torch.randn(2, 3, 32, 32)
    output, plain = wrapped.eval()(images), network(images)
    plain = plain["logits"] if isinstance(plain, dict) else getattr(plain, "logits", plain)
    assert torch.equal(output.logits, plain)
    assert [tuple(one.shape[1:]) for one in output.features] == maps
    assert output.embedding.shape == (2, width) and output.before_relu == ()
    assert all(map(torch.equal, wrapped(images, before_relu=True).before_relu, output.features))
    assert wrapped.state_dict().keys() == network.state_dict().keys()
    assert torch.equal(wrapped.unhooked().logits(images), output.logits)
    copied = copy.deepcopy(wrapped)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    again = copied(images)
    assert all(map(torch.equal, (*again.features, again.embedding), (*output.features, output.embedding)))
    wrapped.train()(images).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in wrapped.parameters())


@pytest.mark.parametrize("case", ["functional", "residual", "hidden", "cosine", "channels last", "vit"])
def test_maps_and_embedding_are_what_passes_through(case: str) -> None:
    network = made(case)
    output = recorded(network).eval()(images := torch.randn(2, 3, 32, 32))
    last = output.features[-1]
    if case == "functional":
        assert torch.equal(output.embedding, F.relu(network.get_submodule("fc1")(last.flatten(1))))
    elif case == "vit":
        row = network(images)["hidden"]
        assert torch.equal(output.embedding, row[:, 0])
        assert torch.equal(last[:, :, 2, 3], row[:, 1 + 2 * 8 + 3])
    else:
        assert torch.allclose(output.embedding, last.mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize("tokens", [0, 1, 4])
def test_patches_have_the_shape_of_the_image(tokens: int) -> None:
    network = Transformer(tokens=max(tokens, 1))
    if not tokens:  # the mean of all patches, and no other token
        network.tokens = nn.Parameter(torch.randn(1, 0, 16))
    wrapped = recorded(network, image=(3, 16, 48)).eval()
    images = torch.randn(2, 3, 16, 48)
    output = wrapped(images)
    assert output.features[-1].shape == (2, 16, 4, 12)
    row = network(images)["hidden"]
    assert torch.equal(output.features[-1][:, :, 1, 2], row[:, tokens + 12 + 2])
    # of other images, too, as long as their patches are as large
    assert wrapped(torch.randn(2, 3, 32, 64)).features[-1].shape == (2, 16, 8, 16)


@pytest.mark.parametrize(
    "answer",
    [
        lambda logits, embedding: {"logits": logits, "other": embedding},
        lambda logits, embedding: (embedding, logits),
        lambda logits, embedding: [logits],
        lambda logits, embedding: Answer(logits, logits + 1),
        lambda logits, embedding: models.Output(logits, (), embedding),
        lambda logits, embedding: SimpleNamespace(logits=logits),
    ],
)
def test_logits_are_found_in_what_is_returned(answer: Any) -> None:
    network = Returns(answer)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(recorded(network)(images).logits, network.head(network.body(images).mean((2, 3))))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda logits, embedding: logits[:, :5], r"returned a tensor \[B, 5\]"),
        (lambda logits, embedding: {"scores": logits}, "returned dict with scores"),
        (lambda logits, embedding: (logits, logits), r"returned tuple of a tensor \[B, 7\], a tensor \[B, 7\]"),
        (lambda logits, embedding: None, "returned NoneType"),
        (
            lambda logits, embedding: logits + embedding,
            r"take images of 3 x 32 x 32, but raises .*.py, line \d+\)",
        ),
    ],
)
def test_what_has_no_logits_is_told_in_one_line(answer: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^nets.py:Mine must .*{said}") as told:
        recorded(Returns(answer))
    assert "\n" not in str(told.value)


def test_logits_of_training_may_come_with_others() -> None:
    plain = torchvision.models.googlenet(num_classes=7, init_weights=False)
    wrapped = recorded(plain, image=(3, 64, 64)).train()
    assert wrapped(torch.randn(2, 3, 64, 64)).logits.shape == (2, 7)
    assert wrapped.head == "dropout"  # and not the auxiliary one's


def test_named_layers_take_the_place_of_those_chosen() -> None:
    network = made("residual")
    wrapped = recorded(network, layers=("layer2.0", "layer1")).eval()
    assert list(wrapped.layers) == ["layer1", "layer2.0"]
    kept: list[Tensor] = []
    network.get_submodule("layer2.0").register_forward_hook(lambda module, given, output: kept.append(output))
    assert torch.equal(wrapped(torch.randn(2, 3, 32, 32)).features[1], kept[0])
    shipped = components.network("cifar/resnet8x4", layers=("stages.1.0", "stages.2"))
    output = models.build(shipped, num_classes=7, image=(3, 32, 32)).eval()(torch.randn(2, 3, 32, 32))
    assert [tuple(one.shape[1:]) for one in output.features] == [(128, 16, 16), (256, 8, 8)]
    assert output.embedding.shape == (2, 256)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (("layr2",), "calls no module 'layr2'; those that give feature maps: layer2, "),
        (
            ("layer1", "head"),
            r"layer 'head' of nets.py:Mine must give a feature map, but gives \[B, 7\]; those that do: ",
        ),
        ((), "must name one module or more: "),
    ],
)
def test_layers_that_give_no_map_are_told_with_the_nearest(layers: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said) as told:
        recorded(made("residual"), layers=layers)
    assert "\n" not in str(told.value) and len(str(told.value)) < 400


def test_a_layer_that_is_left_out_later_is_told() -> None:
    network = made("residual")
    wrapped = recorded(network)
    network.layer2 = nn.Identity()
    network.layer3 = nn.Conv2d(8, 32, 1)
    with pytest.raises(ValueError, match=r"nets\.py:Mine must call layer2 in every forward pass"):
        wrapped(torch.randn(2, 3, 32, 32))


class Counted(nn.Module):
    """Values decide what it does, so it can't be tried without."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()), nn.Linear(8, 7)
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        maps = self.body(images + torch.rand(()))
        return self.head(maps.mean((2, 3)) if float(maps.mean()) > -1 else maps.amax((2, 3)))


def test_lazy_layers_have_their_weights_at_once() -> None:
    torch.manual_seed(0)
    wrapped = recorded(Functional().train())
    assert wrapped.state_dict()["fc1.weight"].shape == (32, 16 * 8 * 8) and wrapped.network.training
    torch.manual_seed(0)
    again = recorded(Functional())
    assert all(map(torch.equal, again.state_dict().values(), wrapped.state_dict().values()))


def test_lazy_batch_norms_whose_buffers_cannot_be_copied() -> None:
    layers = nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(7)
    wrapped = recorded(nn.Sequential(*layers))
    assert wrapped.state_dict()["1.running_mean"].shape == (8,) and wrapped.head == "4"


def test_trying_a_network_changes_nothing_of_it() -> None:
    network = Counted().train()
    network.body.eval()
    state = torch.random.get_rng_state()
    wrapped = recorded(network)
    assert list(wrapped.layers) == ["body"] and network.calls == 0
    assert network.training and not network.body.training
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("case", ["residual", "vit"])
@pytest.mark.slow
def test_compiled_answers_are_the_same(case: str) -> None:
    wrapped = recorded(made(case)).eval()
    images = torch.randn(4, 3, 32, 32)
    output, compiled = wrapped(images), torch.compile(wrapped, backend="aot_eager")(images)
    for one, two in zip((*output.features, output.embedding), (*compiled.features, compiled.embedding), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_what_is_exported_gives_the_logits() -> None:
    wrapped = recorded(made("residual")).eval()

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = wrapped.unhooked()

        def forward(self, images: Tensor) -> Tensor:
            return self.network.logits(images)

    images = torch.randn(4, 3, 32, 32)
    free = {"images": {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(Logits(), (images,), dynamic_shapes=free, strict=False).module()
    assert torch.allclose(program(images[:3]), wrapped(images[:3]).logits, atol=1e-6)


@pytest.mark.parametrize("method", ["kd", "fitnets", "rkd"])
def test_two_sizes_of_vit_distil(method: str) -> None:
    data = load("digits", train_size=20)
    torch.manual_seed(0)

    def vit(width: int, depth: int) -> Recorded:
        network = Transformer(depth, width)
        network.cut = nn.Conv2d(1, width, 2, 2)
        network.head = nn.Linear(width, 10)
        return Recorded(network, name="nets.py:Vit", num_classes=10, image=(1, 8, 8))

    student = vit(16, 2)
    images = data.normalised(data.train.images[:4])  # two have but one distance, whose share of the mean is 1
    mine, theirs = (View(one.eval()(images), one.hint_index) for one in (student, vit(32, 4)))
    batch = Batch(data.train.labels[:4], torch.arange(4))
    settings = Stage(methods=(method,)).of_methods({})[method]
    built = methods.load(method).build(Task(mine, theirs, settings, data.train.labels))
    student.train()
    sum(built(View(student(images), student.hint_index), theirs, batch).values()).backward()
    assert student.network.get_submodule("encoder.layers.0.linear1").weight.grad.abs().sum() > 0
    assert mine.map(0).shape == (4, 16, 4, 4) and theirs.map(0).shape == (4, 32, 4, 4)


# --- timm's


OF_TIMM: dict[str, tuple[tuple[int, int, int], list[tuple[int, ...]], int, int]] = {
    "resnet10t": ((1, 64, 64), maps_of("64x32x32", "64x16x16", "128x8x8", "256x4x4", "512x2x2"), 2, 512),
    "vit_tiny_patch16_224": ((3, 64, 64), maps_of(*["192x4x4"] * 4), 1, 192),
    "swin_tiny_patch4_window7_224": ((3, 224, 224), maps_of("96x56x56", "192x28x28", "384x14x14", "768x7x7"), 1, 768),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name.startswith("swin") else ()) for name in OF_TIMM]
)
def test_networks_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    image, maps, hint, width = OF_TIMM[name]
    network = models.build(f"timm/{name}", num_classes=7, image=image).eval()
    output = network(torch.randn(2, *image))
    assert output.logits.shape == (2, 7) and output.embedding.shape == (2, width)
    assert [tuple(one.shape[1:]) for one in output.features] == maps and network.hint_index == hint
    plain = timm.create_model(name, num_classes=7, in_chans=image[0])
    assert network.state_dict().keys() == plain.state_dict().keys()


def test_a_network_that_timm_lacks_is_told_with_the_nearest() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"unknown network 'timm/resnet10tt'.* Did you mean 'timm/resnet10t'\?"):
        models.build("timm/resnet10tt", num_classes=7, image=(3, 64, 64))
    with pytest.raises(ValueError, match=r"timm/vit_tiny_patch16_224 must take images of 3 x 8 x 8, but raises"):
        models.build("timm/vit_tiny_patch16_224", num_classes=7, image=(3, 8, 8))


def test_without_timm_the_mend_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="needs timm, which isn't installed: pip install timm"):
        models.build("timm/resnet10t", num_classes=7, image=(3, 64, 64))


# --- the command


def shown(*words: str) -> None:
    assert command.main(["show", *words]) == 0


def test_show_marks_what_is_looked_at(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "shown_nets.py").write_text(
        "from torch import nn\ndef Net(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 4, 3, 2, 1), nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    shown(f"student_model={tmp_path / 'shown_nets.py'}:Net", "data=digits", "teacher_model=cifar/tiny_teacher")
    student, teacher = capsys.readouterr().out.split("\n\n")
    assert student.splitlines() == [
        "shown_nets.py:Net: 690 parameters; images of 1 x 8 x 8, 10 classes",
        "  0  4 x 4 x 4  map 0, the hint",
        "  1  64",
        "  2  10         its input is the embedding",
    ]
    assert "cifar/tiny_teacher" in teacher and teacher.count("map ") == 3 and teacher.count("the hint") == 1
    shown("teacher_model=resnet18", "image=1x64x64", "num_classes=7", "teacher_layers=[layer1,layer2.0]")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "torchvision/resnet18: 11,180,103 parameters; images of 3 x 64 x 64, 7 classes"
    assert [line.split()[0] for line in lines if "map " in line] == ["layer1", "layer2.0"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list"], "the first word must be show"),
        (["show"], "student_model= or teacher_model= is missing"),
        (["show", "student_model=cifar/resnet21"], "Did you mean 'cifar/resnet32'?"),
        (["show", "student_modle=cifar/resnet20"], "Did you mean 'student_model'?"),
        (["show", "student_model=cifar/resnet20", "image=32"], "image= must be channels, height and width"),
        (["show", "student_model=cifar/resnet20", "image=3x32x32", "data=digits"], "leave one of them out"),
        (["show", "student_model=cifar/resnet20", "student_layers=[stages.7]"], "calls no module 'stages.7'"),
    ],
)
def test_show_refuses_wrong_words(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(words) == 2
    told = capsys.readouterr()
    assert told.out == "" and message in told.err and told.err.count("\n") == 1


# --- the pair


def test_a_pair_of_models_has_the_settings_of_imagenet() -> None:
    pair = pairs.choose(None, named("resnet34"), named("mobilenet_v3_small"))
    assert pair.name == "resnet34_mobilenet_v3_small"
    assert (pair.teacher.name, pair.student.name) == ("torchvision/resnet34", "torchvision/mobilenet_v3_small")
    made = Experiment(teacher_model="resnet34", student_model="mobilenet_v3_small")
    student = Stage(methods=("kd",)).training(made.defaults)
    assert student == replace(Training(), ce=0.1)
    assert (student.batch_size, student.learning_rate, student.momentum) == (64, 0.1, 0.9)
    assert (student.weight_decay, student.nesterov, student.schedule) == (1e-4, False, "step")
    assert made.teacher_training == replace(student, epochs=90, ce=1.0)
    assert (student.epochs, pair.min_size) == (30, 32)
    assert pairs.choose(None, None, None).name == "tiny"


def test_a_name_that_the_table_has_is_another_pair() -> None:
    made = pairs.choose(None, named("vgg19"), named("resnet18"))
    assert made.name not in pairs.available()
    assert pairs.get("vgg19_resnet18").student.name != made.student.name
    assert code_digest(pairs.get("vgg19_resnet18").student, ()) != code_digest(made.student, ())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("resnet35", "resnet18"), r"unknown teacher_model 'resnet35'.*Did you mean '[\w/]+'\?"),
        (("resnet34", "fcn_resnet50"), r"unknown student_model 'fcn_resnet50'.*Did you mean '[\w/]+'\?"),
        (("resnet34", None), "student_model= is missing"),
        ((None, "resnet18"), "teacher_model= is missing"),
        (("resnet34", "resnet18", "tiny"), "leave pair=tiny out"),
    ],
)
def test_wrong_choices_are_refused(words: tuple[str | None, ...], message: str) -> None:
    keys = ("teacher_model", "student_model", "pair")
    with pytest.raises(ValueError, match=message):
        Experiment(**dict(zip(keys, words, strict=False)))


@pytest.mark.parametrize(
    ("teacher", "side", "message"),
    [
        ("vit_b_32", 32, "takes images of 224 x 224 pixels alone"),
        ("vit_b_32", 256, "image_size=224"),
        ("inception_v3", 74, "at least 75 x 75"),
        ("alexnet", 62, "at least 63 x 63"),
        ("resnet34", 31, "at least 32 x 32"),
    ],
)
def test_sizes(teacher: str, side: int, message: str) -> None:
    pair = pairs.of_networks(named(teacher), named("resnet18"))
    with pytest.raises(ValueError, match=message):
        pairs.check_images(pair, height=side, width=side)
    pairs.check_images(pair, height=pair.min_size, width=pair.min_size)


@pytest.mark.parametrize("name", ["alexnet", pytest.param("inception_v3", marks=pytest.mark.slow)])
def test_the_smallest_size_is_the_smallest_that_works(name: str) -> None:
    side = named(name).min_size
    network = build(name)
    network(torch.randn(2, 3, side, side))
    with pytest.raises(RuntimeError):
        network(torch.randn(2, 3, side - 1, side - 1))


def test_an_experiment_takes_models_and_its_best_recipe_too(tmp_path: Path) -> None:
    words = {"teacher_model": "resnet34", "student_model": "resnet18", "data": "folder", "data_dir": "x"}
    one = Experiment(**words, image_size=64)
    assert one.networks.student.name == "torchvision/resnet18" and one.pair == "resnet34_resnet18"
    full = {key: f"torchvision/{words[key]}" for key in ("teacher_model", "student_model")}
    assert one.to_dict() == words | full | {"image_size": 64}
    (tmp_path / "best.yaml").write_text(yaml.safe_dump({"recipe": "kd"} | one.to_dict() | {"seed": 0}))
    _, again, _ = train._read([f"recipe={tmp_path / 'best.yaml'}"])
    assert again == one
    assert not {"teacher_model", "student_model"} & set(Experiment().to_dict())
    assert Experiment().pair == "tiny"
    with pytest.raises(ValueError, match="leave pair=tiny out"):
        Experiment(**words, image_size=64, pair="tiny")
