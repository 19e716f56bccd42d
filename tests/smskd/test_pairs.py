"""Pairs: found in their folder, valid from construction, cheap to import, helpful when a name or a size is wrong."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smskd import code, components, job, methods, models, pairs, pipeline
from smskd.components import Network
from smskd.experiment import Experiment
from smskd.pairs import Pair
from smskd.recipe import Stage
from smskd.training import Training

TINY = pairs.get("tiny")
CIFAR = [
    *("resnet110_resnet32", "resnet32x4_resnet8x4", "resnet32x4_shufflenetv1", "resnet32x4_shufflenetv2"),
    *("resnet50_mobilenetv2", "resnet56_resnet20", "vgg13_mobilenetv2", "vgg13_vgg8", "vgg19_resnet18"),
    *("wrn40_2_shufflenetv2", "wrn40_2_wrn16_2", "wrn40_2_wrn40_1"),
]


def student_training(pair: str, *names: str) -> Training:
    return Stage(methods=names or ("ce",)).training(Experiment(pair=pair).defaults)


def test_the_pairs_are_found_the_small_one_first() -> None:
    found = pairs.available()
    assert found[0] == "tiny" and {"tiny", *CIFAR} <= set(found)
    assert list(found[1:]) == sorted(found[1:])


@pytest.mark.parametrize("name", pairs.available())
def test_a_pair_is_whole(name: str) -> None:
    pair = pairs.get(name)
    assert pair.name == name
    for network in (pair.teacher, pair.student):
        assert components.network(network.name) == network
        assert network.name.startswith("cifar/") and network.short in components.shipped()
    made = Experiment(pair=name)
    assert made.teacher_training.ce == 1
    for method in methods.available():
        assert Stage(methods=(method,)).training(made.defaults).epochs >= 1


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_settings(name: str) -> None:
    published = Training(
        epochs=50, batch_size=64, learning_rate=0.05, momentum=0.9, nesterov=False, weight_decay=5e-4, schedule="step",
        ce=1.0,
    )  # fmt: skip
    small_steps = pairs.get(name).student.short in ("mobilenetv2_half", "shufflenetv1", "shufflenetv2")
    assert Experiment(pair=name).teacher_training == replace(published, epochs=200)
    assert student_training(name) == replace(published, learning_rate=0.01 if small_steps else 0.05)


def test_what_is_no_weight_of_the_pair_is_the_published_one() -> None:
    for pair in CIFAR:  # those that are are in test_published.py
        own = Stage(methods=("fitnets", "kd")).of_methods(Experiment(pair=pair).defaults)
        assert (own["fitnets"]["weight"], own["kd"]["weight"], own["kd"]["temperature"]) == (100, 0.9, 4)


def test_tiny_settings() -> None:
    student = Training(
        epochs=12, batch_size=50, learning_rate=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4,
        schedule="one_cycle", ce=1.0,
    )  # fmt: skip
    assert student_training("tiny") == student
    assert student_training("tiny", "kd") == replace(student, ce=0.1)
    assert Experiment().teacher_training == replace(student, learning_rate=0.05)
    own = {key: value for key, value in Experiment().defaults.items() if "." in key}
    assert own == {"fitnets.weight": 10.0, "at.weight": 10.0, "sp.weight": 300.0, "dkd.nckd": 1.0}


def test_get_names_the_nearest() -> None:
    assert pairs.get("vgg19_resnet18").teacher.name == "cifar/vgg19"
    with pytest.raises(ValueError, match=r"unknown pair 'vgg19_resnet19'.*tiny, .*Did you mean 'vgg19_resnet18'\?"):
        pairs.get("vgg19_resnet19")


def test_check_images_names_what_fits() -> None:
    pair = pairs.get("vgg19_resnet18")
    pairs.check_images(pair, height=8, width=8)
    pairs.check_images(TINY, height=8, width=8)
    with pytest.raises(
        ValueError, match=r"pair=vgg19_resnet18 needs images of at least 8 x 8 pixels, but data has 4 x 4"
    ) as e:
        pairs.check_images(pair, height=4, width=4)
    said = str(e.value).partition("another pair (")[2].partition(")")[0].split(", ")
    assert said == [name for name in pairs.available() if pairs.get(name).min_size <= 4]
    assert {"tiny", *CIFAR} - {name for name in CIFAR if "vgg" in name} <= set(said)


@pytest.mark.parametrize(("height", "width"), [(7, 32), (32, 7)])
def test_check_images_looks_at_both_sides(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"data has {height} x {width}"):
        pairs.check_images(pairs.get("vgg19_resnet18"), height=height, width=width)


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"epochs": 0}, r"1 <= epochs <= 1e\+06 must hold, but got epochs=0"),
        ({"teacher_epochs": -3}, r"must hold, but got teacher_epochs=-3"),
        ({"kd.weight": -0.9}, r"kd.weight >= 0 must hold, but got kd.weight=-0.9"),
        ({"kd.weight": float("inf")}, r"got kd.weight=inf"),
        ({"learning_rate": float("nan")}, r"got learning_rate=nan"),
        ({"momentum": 1.0}, r"0 <= momentum < 1 must hold, but got momentum=1"),
        ({"schedule": "steps"}, r"unknown schedule 'steps'.*Did you mean 'step'\?"),
        ({"kd.wait": 1.0}, r"defaults of pair tiny: there is no setting 'kd.wait'"),
        ({"teacher_ce": 1.0}, r"there is no setting 'teacher_ce'"),
    ],
)
def test_a_pair_is_valid_from_construction(defaults: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, defaults=defaults)


def test_a_network_needs_a_size_and_nothing_can_be_changed() -> None:
    with pytest.raises(ValueError, match=r"`min_size >= 1` must hold, but got \(min_size=0\)"):
        Network(name="cifar/vgg19", min_size=0)
    with pytest.raises(FrozenInstanceError):
        TINY.name = "other"  # type: ignore[misc]


def test_import_leaves_torch_alone() -> None:
    code = (
        "import sys, smskd.pairs; [smskd.pairs.get(name) for name in smskd.pairs.available()]; "
        "sys.exit('torch' in sys.modules or 'torchvision' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- a pair is one new file, of one's own or here

MINE = '''"""Two networks of one convolution each."""

from smskd.components import network
from smskd.pairs import Pair


def teacher(num_classes, in_channels):
    return plain(16, num_classes, in_channels)


def student(num_classes, in_channels):
    return plain(4, num_classes, in_channels)


def plain(width, num_classes, in_channels):
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, num_classes),
    )


PAIR = Pair(
    name="{name}",
    teacher=network("mine_tiny.py:teacher"),
    student=network("mine_tiny.py:student"),
    defaults={{"epochs": 2, "learning_rate": 0.1}},
)
'''
NAME = "mine_tiny"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where such a file would be; what is in use afterwards is what was before."""
    monkeypatch.setattr(code._FILES, "modules", dict(code._FILES.modules))
    monkeypatch.setattr(code._FILES, "of", dict(code._FILES.of))
    yield tmp_path / f"{NAME}.py"
    sys.modules.pop(NAME, None)


def test_a_pair_with_networks_of_its_own_is_one_file(file: Path, tmp_path: Path) -> None:
    def digest(text: str) -> str:
        file.write_text(text)
        code.use(file)
        return job.code_digest(pairs.get(str(file)).student, ("kd",))

    first = digest(MINE.format(name=NAME))
    made = Experiment(pair=str(file), train_size=100)
    assert made.networks.defaults["epochs"] == 2
    result = pipeline.run("kd>fitnets", made, store=tmp_path / "store", device="cpu")
    assert [len(stage.losses) for stage in result.stages] == [2, 2]
    network = models.build(pairs.get(str(file)).student, num_classes=10, image=(1, 8, 8))
    assert {n: t.shape for n, t in network.state_dict().items()} == {n: t.shape for n, t in result.weights.items()}
    assert digest(MINE.format(name=NAME).replace("stride=2", "stride=1")) != first


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder beside the package's own."""
    (tmp_path / "pairs").mkdir()
    monkeypatch.setattr(pairs, "__path__", [*pairs.__path__, str(tmp_path / "pairs")])
    yield tmp_path / "pairs" / f"{NAME}.py"
    sys.modules.pop(f"{pairs.__name__}.{NAME}", None)
    vars(pairs).pop(NAME, None)
    importlib.invalidate_caches()


def test_a_new_pair_voids_no_stage_of_others(here: Path) -> None:
    def keys() -> dict[str, str]:
        job._of_package.cache_clear()
        found = [one for pair in map(pairs.get, old[:2]) for one in (pair.teacher, pair.student)]
        return {network.name: job.code_digest(network, ("fitnets",)) for network in found}

    old = pairs.available()
    before = keys()
    tiny = Path(str(pairs.__file__)).with_name("tiny.py")
    here.write_text(tiny.read_text().replace('"tiny"', f'"{NAME}"'))
    importlib.invalidate_caches()
    assert set(pairs.available()) - set(old) == {NAME} and pairs.get(NAME).defaults == TINY.defaults
    assert keys() == before


@pytest.mark.parametrize("text", ["", "PAIR = 3", MINE.format(name="other")])
def test_a_file_that_says_no_pair_is_told(file: Path, text: str) -> None:
    file.write_text(text)
    code.use(file)
    with pytest.raises(ValueError, match=rf"{NAME}.py must say PAIR = Pair\(name='{NAME}'"):
        pairs.get(str(file))


def test_a_pair_is_a_value() -> None:
    again = Pair(name="tiny", teacher=TINY.teacher, student=TINY.student, defaults=dict(TINY.defaults))
    assert again == TINY


def test_networks_are_initialised_from_torchs_generator() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(models.build("cifar/tiny_student", num_classes=10, image=(1, 8, 8)).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not all(torch.equal(value, states[2][name]) for name, value in states[0].items())
