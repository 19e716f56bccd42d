"""The table of pairs: whole, valid from construction, cheap to import, helpful when a name or a size is wrong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import pytest

from smskd import models, pairs

TINY = pairs.get("tiny")


def test_the_table_is_whole() -> None:
    assert list(pairs.PAIRS) == [
        "tiny",
        "resnet50_mobilenetv2",
        "wrn40_2_shufflenetv2",
        "vgg19_resnet18",
        "resnet32x4_resnet8x4",
        "resnet56_resnet20",
    ]
    assert all(pair.name == name for name, pair in pairs.PAIRS.items())
    used = [network.name for pair in pairs.PAIRS.values() for network in (pair.teacher, pair.student)]
    assert sorted(used) == sorted(models.FAMILIES)


@pytest.mark.parametrize("name", [name for name in pairs.PAIRS if name != "tiny"])
def test_cifar_settings(name: str) -> None:
    pair = pairs.get(name)
    teacher = {
        "batch_size": 64,
        "learning_rate": 0.05,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 5e-4,
        "schedule": "step",
    }
    small_steps = pair.student.name in ("mobilenetv2_half", "shufflenetv2")
    assert asdict(pair.teacher_schedule) == teacher
    assert asdict(pair.student_schedule) == teacher | {"learning_rate": 0.01 if small_steps else 0.05}
    assert (pair.epochs, pair.teacher_epochs) == (50, 200)
    assert pair.loss_weights == {}


def test_tiny_settings() -> None:
    assert TINY.student_schedule == replace(TINY.teacher_schedule, learning_rate=0.2)
    assert asdict(TINY.teacher_schedule) == {
        "batch_size": 50,
        "learning_rate": 0.05,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
        "schedule": "one_cycle",
    }
    assert (TINY.epochs, TINY.teacher_epochs) == (12, 12)
    assert TINY.loss_weights == {"fitnets": 10.0, "at": 10.0, "sp": 300.0, "dkd_nckd": 1.0}


def test_get_names_the_nearest() -> None:
    assert pairs.get("vgg19_resnet18").teacher.name == "vgg19"
    with pytest.raises(ValueError, match=r"unknown pair 'vgg19_resnet19'.*tiny, .*Did you mean 'vgg19_resnet18'\?"):
        pairs.get("vgg19_resnet19")


def test_check_images_names_what_fits() -> None:
    pair = pairs.get("vgg19_resnet18")
    pairs.check_images(pair, height=16, width=16)
    pairs.check_images(TINY, height=8, width=8)
    with pytest.raises(
        ValueError, match=r"pair=vgg19_resnet18 needs images of at least 16 x 16 pixels, but data has 8 x 8"
    ) as e:
        pairs.check_images(pair, height=8, width=8)
    assert "(tiny, resnet50_mobilenetv2, wrn40_2_shufflenetv2, resnet32x4_resnet8x4, resnet56_resnet20)" in str(e.value)


@pytest.mark.parametrize(("height", "width"), [(15, 32), (32, 15)])
def test_check_images_looks_at_both_sides(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"data has {height} x {width}"):
        pairs.check_images(pairs.get("vgg19_resnet18"), height=height, width=width)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, r"`batch_size >= 1` must hold, but got \(batch_size=0\)"),
        ({"learning_rate": 0.0}, r"`0 < learning_rate < inf` must hold, but got \(learning_rate=0.0\)"),
        ({"learning_rate": float("nan")}, r"got \(learning_rate=nan\)"),
        ({"momentum": 1.0}, r"`0 <= momentum < 1` must hold, but got \(momentum=1.0\)"),
        ({"momentum": 0.0}, r"`momentum > 0 with nesterov` must hold"),
        ({"weight_decay": -1e-4}, r"`0 <= weight_decay < inf` must hold"),
        ({"schedule": "steps"}, r"unknown schedule 'steps'.*Did you mean 'step'\?"),
    ],
)
def test_a_schedule_is_valid_from_construction(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY.student_schedule, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, r"`epochs >= 1` must hold, but got \(epochs=0\)"),
        ({"teacher_epochs": -3}, r"`teacher_epochs >= 1` must hold, but got \(teacher_epochs=-3\)"),
        ({"loss_weights": {"kd": -0.9}}, r"`0 <= loss_weights\['kd'\] < inf` must hold, but got \(kd=-0.9\)"),
        ({"loss_weights": {"kd": float("inf")}}, r"got \(kd=inf\)"),
    ],
)
def test_a_pair_is_valid_from_construction(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_a_network_needs_a_size_and_nothing_can_be_changed() -> None:
    with pytest.raises(ValueError, match=r"`min_size >= 1` must hold, but got \(min_size=0\)"):
        pairs.Network(name="vgg19", min_size=0)
    with pytest.raises(FrozenInstanceError):
        TINY.epochs = 3  # type: ignore[misc]


def test_import_leaves_torch_alone() -> None:
    code = "import sys, smskd.pairs; sys.exit('torch' in sys.modules or 'torchvision' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
