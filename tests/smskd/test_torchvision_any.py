"""Classifiers of torchvision by name: the Output contract, copies, and the pair that two of them make."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision.models
import yaml
from torch import nn

from smskd import anchor, checkpoints, models, pairs, train
from smskd.data import load
from smskd.experiment import Experiment
from smskd.job import code_digest
from smskd.models.torchvision_any import Recorded
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
    network = models.build(pairs.TORCHVISION + name, num_classes=7, in_channels=in_channels)
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


# --- the pair


def test_a_pair_of_models_has_the_settings_of_imagenet() -> None:
    pair = pairs.choose(None, "resnet34", "mobilenet_v3_small")
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
    made = pairs.choose(None, "vgg19", "resnet18")
    assert made.name not in pairs.available()
    assert pairs.get("vgg19_resnet18").student.name != made.student.name
    assert code_digest(pairs.network("resnet18"), ()) != code_digest(made.student, ())


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ((None, "resnet35", "resnet18"), r"unknown teacher_model 'resnet35'.*Did you mean 'resnet\d+'\?"),
        ((None, "resnet34", "fcn_resnet50"), r"unknown student_model 'fcn_resnet50'.*Did you mean '\w+'\?"),
        ((None, "resnet34", None), "student_model= is missing"),
        ((None, None, "resnet18"), "teacher_model= is missing"),
        (("tiny", "resnet34", "resnet18"), "leave pair=tiny out"),
    ],
)
def test_wrong_choices_are_refused(chosen: tuple[str | None, str | None, str | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pairs.choose(*chosen)


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
    pair = pairs.of_models(teacher, "resnet18")
    with pytest.raises(ValueError, match=message):
        pairs.check_images(pair, height=side, width=side)
    pairs.check_images(pair, height=pair.min_size, width=pair.min_size)


@pytest.mark.parametrize("name", ["alexnet", pytest.param("inception_v3", marks=pytest.mark.slow)])
def test_the_smallest_size_is_the_smallest_that_works(name: str) -> None:
    side = pairs.of_models(name, "resnet18").teacher.min_size
    network = build(name)
    network(torch.randn(2, 3, side, side))
    with pytest.raises(RuntimeError):
        network(torch.randn(2, 3, side - 1, side - 1))


def test_an_experiment_takes_models_and_its_best_recipe_too(tmp_path: Path) -> None:
    words = {"teacher_model": "resnet34", "student_model": "resnet18", "data": "folder", "data_dir": "x"}
    one = Experiment(**words, image_size=64)
    assert one.networks.student.name == "torchvision/resnet18" and one.pair == "resnet34_resnet18"
    assert one.to_dict() == words | {"image_size": 64}
    (tmp_path / "best.yaml").write_text(yaml.safe_dump({"recipe": "kd"} | one.to_dict() | {"seed": 0}))
    _, again, _ = train._read([f"recipe={tmp_path / 'best.yaml'}"])
    assert again == one
    assert not {"teacher_model", "student_model"} & set(Experiment().to_dict())
    assert Experiment().pair == "tiny"
    with pytest.raises(ValueError, match="leave pair=tiny out"):
        Experiment(**words, image_size=64, pair="tiny")
