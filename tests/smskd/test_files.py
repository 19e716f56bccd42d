"""Folders whose images stay files: the same numbers as in memory, decoded elsewhere; and a pair of ImageNet's size."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from smskd import data as datasets
from smskd import pipeline
from smskd.data import Data, load
from smskd.experiment import Experiment
from smskd.files import ImageFiles, Streamed


def write_folder(root: Path, parts: dict[str, int], *, size: tuple[int, int], suffix: str = "png") -> Path:
    """Two classes of random images, (width, height); the classes differ in brightness."""
    rng = np.random.default_rng(0)
    for part, count in parts.items():
        for label, name in enumerate(("n01440764", "n01443537")):
            place = root / part / name
            place.mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(100 * label, 100 * label + 150, (size[1], size[0], 3), dtype=np.uint8)
                PIL.Image.fromarray(pixels).save(place / f"{k}.{suffix}")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images", {"train": 12, "val": 5, "test": 3}, size=(20, 14))


def both(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[Data, Data]:
    """A folder in memory, and as files."""
    in_memory = load("folder", data_dir=folder, **settings)
    monkeypatch.setattr(datasets, "MEMORY_BYTES", 0)
    streamed = load("folder", data_dir=folder, **settings)
    assert isinstance(in_memory.train.images, torch.Tensor)
    assert all(isinstance(s.images, Streamed) for s in (streamed.train, streamed.validation, streamed.test))
    return in_memory, streamed


def test_what_does_not_fit_stays_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 40 * 3 * 12 * 12
    monkeypatch.setattr(datasets, "MEMORY_BYTES", needed)
    assert isinstance(load("folder", data_dir=folder, image_size=12).train.images, torch.Tensor)
    monkeypatch.setattr(datasets, "MEMORY_BYTES", needed - 1)
    assert isinstance(load("folder", data_dir=folder, image_size=12).train.images, Streamed)


@pytest.mark.parametrize("settings", [{"image_size": 12}, {"image_size": 12, "train_size": 9}, {"train_on": "all"}, {}])
def test_both_forms_are_one_data_set(folder: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    one, two = both(folder, monkeypatch, **settings)
    assert one.fingerprint == two.fingerprint
    assert torch.equal(one.mean, two.mean)
    assert torch.equal(one.std, two.std)
    assert one.train.images.shape == two.train.images.shape
    assert torch.equal(one.train.images[:2], two.train.images[:2])
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(one.train), generator=generator)
    views = torch.randint(one.views, (len(one.train),), generator=generator)
    before = torch.get_rng_state()
    batches = [list(data.batches(order, views, 4)) for data in (one, two)]
    assert torch.equal(torch.get_rng_state(), before), "a network's dropout would differ between the two"
    assert len(batches[0]) == len(batches[1]) == len(order) // 4
    for a, b in zip(*batches, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    index = torch.tensor([5, 0, 3])
    assert torch.equal(one.augmented(index, views[index]), two.augmented(index, views[index]))
    for part in ("validation", "test"):
        read = [list(getattr(data, part).batches(4)) for data in (one, two)]
        assert [len(labels) for _, labels in read[0]] == ([4, 4, 2] if part == "validation" else [4, 2])
        for a, b in zip(*read, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_mean_and_deviation_are_those_of_the_pixels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = both(folder, monkeypatch)
    pixels = one.train.images.double()
    for data in (one, two):
        assert torch.allclose(data.mean.flatten().double(), pixels.mean((0, 2, 3)), rtol=1e-6)
        assert torch.allclose(data.std.flatten().double(), pixels.std((0, 2, 3), correction=0), rtol=1e-6)


def test_training_is_the_same_bit_for_bit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Experiment(data="folder", data_dir=str(folder), image_size=12, teacher_epochs=2)
    results = []
    for name, budget in (("memory", 2**30), ("files", 0)):
        monkeypatch.setattr(datasets, "MEMORY_BYTES", budget)
        results.append(pipeline.run("kd>fitnets+rkd weighting=tcp epochs=2", made, store=tmp_path / name, device="cpu"))
    one, two = results
    assert [s.trained for s in two.stages] == [True, True]
    assert [s.losses for s in one.stages] == [s.losses for s in two.stages]
    assert [(s.digest, s.val_accuracy, s.train_flops) for s in one.stages] == [
        (s.digest, s.val_accuracy, s.train_flops) for s in two.stages
    ]
    assert [s.key for s in one.stages] == [s.key for s in two.stages]


def test_training_processes_decode_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, data = both(folder, monkeypatch, image_size=12)
    here = os.getpid()
    original = ImageFiles.read
    monkeypatch.setattr(
        ImageFiles, "read", lambda files, places: original(files, places) if os.getpid() != here else pytest.fail()
    )
    order = torch.arange(len(data.train))
    assert len(list(data.batches(order, order * 0, 5))) == len(order) // 5
    assert len(list(data.validation.batches(5))) == 2


def test_a_changed_file_is_another_data_set(folder: Path) -> None:
    first = load("folder", data_dir=folder, image_size=12).fingerprint
    assert load("folder", data_dir=folder, image_size=10).fingerprint != first
    file = folder / "train" / "n01440764" / "3.png"
    pixels = np.asarray(PIL.Image.open(file)).copy()
    pixels[0, 0, 0] ^= 1
    PIL.Image.fromarray(pixels).save(file)
    assert load("folder", data_dir=folder, image_size=12).fingerprint != first


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (20, 20)])
def test_resizing_keeps_the_aspect_and_cuts_the_middle_out(tmp_path: Path, width: int, height: int) -> None:
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[height // 2 - 10 : height // 2 + 10, width // 2 - 10 : width // 2 + 10] = 200
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(3):
                PIL.Image.fromarray(pixels).save(tmp_path / part / name / f"{k}.png")
    images = load("folder", data_dir=tmp_path, image_size=10).test.images
    assert images.shape[2:] == (10, 10)
    assert (images[..., 2:-2, 2:-2] == 200).all()
    assert (images[:] > 150).all()  # the filter looks beyond the edge of what is cut out


def test_a_damaged_file_is_named_in_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, data = both(folder, monkeypatch, image_size=12)
    damaged = folder / "train" / "n01443537" / "2.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    order = torch.arange(len(data.train))
    with pytest.raises(ValueError, match="can't be read as an image") as caught:
        list(data.batches(order, order * 0, 4))
    assert str(damaged) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="can't be read as an image"):
        load("folder", data_dir=folder)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["kd", "fitnets"])
def test_a_pair_of_imagenet_takes_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    write_folder(tmp_path / "images", {"train": 4, "val": 2}, size=(240, 224), suffix="jpg")
    monkeypatch.setattr(datasets, "MEMORY_BYTES", 0)
    made = Experiment(
        teacher_model="resnet34", student_model="mobilenet_v3_small", data="folder", data_dir=str(tmp_path / "images"),
        image_size=224, teacher_epochs=1,
    )  # fmt: skip
    result = pipeline.run(f"{recipe} epochs=1", made, store=tmp_path / "store", device="cpu")
    (stage,) = result.stages
    assert set(stage.losses[0]) == {"ce", recipe}
    assert all(math.isfinite(loss) and loss > 0 for loss in stage.losses[0].values())
    assert result.weights["features.0.0.weight"].shape == (16, 3, 3, 3)
    assert stage.train_flops > 1e9
