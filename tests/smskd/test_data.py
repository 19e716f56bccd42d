"""Data sets: sizes, views, readers of the files as their makers publish them, and refusals. No network."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import pytest
import torch

from smskd import datasets
from smskd.data import Data, Split, load


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a test asked for the network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_digits() -> None:
    one, two = load("digits"), load("digits")
    assert (len(one.train), len(one.validation), len(one.test)) == (1000, 398, 399)
    assert one.fingerprint == two.fingerprint
    assert torch.equal(one.train.images, two.train.images)
    assert (one.classes, one.channels, one.height, one.width, one.views) == (10, 1, 8, 8, 1)
    normal = one.normalised(one.train.images)
    assert normal.mean().item() == pytest.approx(0, abs=1e-4)
    assert normal.std().item() == pytest.approx(1, abs=1e-3)


def test_train_size_is_stratified_and_changes_the_fingerprint() -> None:
    whole, part = load("digits"), load("digits", train_size=100)
    assert len(part.train) == 100
    assert set(part.train.labels.bincount().tolist()) <= {9, 10, 11}
    assert part.fingerprint != whole.fingerprint
    assert torch.equal(part.test.images, whole.test.images)
    assert load("digits", train_size=1000).fingerprint == whole.fingerprint


def test_all_images_but_those_of_the_test_are_trained_on() -> None:
    data, every = load("digits"), load("digits", train_on="all")
    assert (len(every.train), len(every.validation), len(every.test)) == (1398, 398, 399)
    assert every.train.places is None
    assert _rows(every.train) == _rows(data.train) | _rows(data.validation)
    assert not _rows(every.train) & _rows(data.test)
    assert torch.equal(every.validation.images, data.validation.images)
    assert torch.equal(every.mean, data.mean)
    assert torch.equal(every.std, data.std)
    assert every.fingerprint != data.fingerprint
    assert load("digits", train_on="train").fingerprint == data.fingerprint
    part = load("digits", train_on="all", train_size=1200)
    assert len(part.train) == 1200
    assert _rows(part.train) < _rows(every.train)


def test_pad_and_flip_are_settable() -> None:
    data = load("digits")
    other = load("digits", pad=2, flip=True)
    assert (data.pad, data.flip, data.views) == (0, False, 1)
    assert (other.pad, other.flip, other.views) == (2, True, 50)
    assert torch.equal(other.train.images, data.train.images)
    assert len({d.fingerprint for d in (data, other, load("digits", pad=2), load("digits", flip=True))}) == 4
    assert load("digits", pad=0, flip=False).fingerprint == data.fingerprint
    for pad in (-1, 8):
        with pytest.raises(ValueError, match=rf"0 <= pad < 8, the side of an image, must hold, but got pad={pad}"):
            load("digits", pad=pad)


@pytest.mark.parametrize("size", [9, 1001])
def test_train_size_out_of_range(size: int) -> None:
    with pytest.raises(ValueError, match=r"train_size must be from 10 .* to 1000"):
        load("digits", train_size=size)


@pytest.mark.parametrize(("pad", "flip"), [(0, False), (0, True), (2, False), (2, True)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augmented_equals_slicing_by_hand(pad: int, flip: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (5, 3, 6, 7), generator=generator).to(dtype)
    split = Split(images=images, labels=torch.tensor([0, 1, 0, 1, 0]))
    mean, std = torch.tensor([90.0, 100, 110]).view(3, 1, 1), torch.tensor([40.0, 50, 60]).view(3, 1, 1)
    data = Data(
        name="x", classes=2, train=split, validation=split, test=split, mean=mean, std=std, pad=pad, flip=flip
    )  # fmt: skip
    side = 2 * pad + 1
    assert data.views == side**2 * (1 + flip)
    index, view = (t.flatten() for t in torch.meshgrid(torch.arange(5), torch.arange(data.views), indexing="ij"))
    got = data.augmented(index, view)
    assert got.dtype == torch.float32
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    for place, i, v in zip(range(len(index)), index.tolist(), view.tolist(), strict=True):
        top, left = divmod(v % side**2, side)
        crop = padded[i, :, top : top + 6, left : left + 7].astype(np.float32)
        if v >= side**2:
            crop = crop[:, :, ::-1]
        wanted = (torch.from_numpy(crop.copy()) - mean) / std
        assert torch.equal(got[place], wanted)
    centre = torch.full((5,), side * pad + pad)
    assert torch.equal(data.augmented(torch.arange(5), centre), data.normalised(images))


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Writes what Python 2 and its NumPy wrote, as CIFAR's files were made: byte strings, and ints for booleans."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def _string(self, value: str | bytes) -> None:
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    def _boolean(self, value: bool) -> None:
        self.write(b"K" + bytes([value]))

    dispatch[str] = dispatch[bytes] = _string
    dispatch[bool] = _boolean


def _write_cifar(path: Path, entry: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    _Python2Pickler(buffer, protocol=2).dump(entry)
    content = buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content
    path.write_bytes(content)


def _images(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def _rows(split: Split) -> set[tuple[bytes, int]]:
    return {(i.numpy().tobytes(), int(y)) for i, y in zip(split.images, split.labels, strict=True)}


def _cifar100(folder: Path) -> tuple[np.ndarray, list[int]]:
    folder.mkdir()
    train, labels = _images(0, 1000), [k % 100 for k in range(1000)]
    for name, data, fine in (("train", train, labels), ("test", _images(1, 100), list(range(100)))):
        entry = {
            "filenames": [f"{k}.png" for k in range(len(data))],
            "batch_label": "training batch 1 of 1",
            "fine_labels": fine,
            "coarse_labels": [k // 5 for k in fine],
            "data": data,
        }
        _write_cifar(folder / name, entry)
    return train, labels


@pytest.mark.parametrize("inside", [False, True])
def test_cifar100(tmp_path: Path, inside: bool) -> None:
    folder = tmp_path / "cifar-100-python"
    train, labels = _cifar100(folder)
    data = load("cifar100", data_dir=folder if inside else tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (900, 100, 100)
    assert data.train.images.shape[1:] == (3, 32, 32)
    assert (data.classes, data.pad, data.flip, data.views) == (100, 4, True, 162)
    wanted = {(row.tobytes(), label) for row, label in zip(train, labels, strict=True)}
    assert _rows(data.train) | _rows(data.validation) == wanted
    assert not _rows(data.train) & _rows(data.validation)
    assert data.validation.labels.bincount().tolist() == [1] * 100
    assert data.test.images[7].flatten().numpy().tobytes() == _images(1, 100)[7].tobytes()
    every = load("cifar100", data_dir=folder if inside else tmp_path, train_on="all")
    assert np.array_equal(every.train.images.flatten(1).numpy(), train), "in the order of the file"
    assert every.train.labels.tolist() == labels


def test_cifar10(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    batches = {f"data_batch_{k}": _images(k, 40) for k in range(1, 6)} | {"test_batch": _images(9, 20)}
    for name, images in batches.items():
        labels = [k % 10 for k in range(len(images))]
        names = [f"{k}.png" for k in range(len(images))]
        _write_cifar(folder / name, {"batch_label": name, "labels": labels, "data": images, "filenames": names})
    data = load("cifar10", data_dir=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test), data.classes) == (180, 20, 20, 10)
    wanted = {
        (row.tobytes(), k % 10) for name, images in batches.items() if name != "test_batch"
        for k, row in enumerate(images)
    }  # fmt: skip
    assert _rows(data.train) | _rows(data.validation) == wanted


@pytest.mark.parametrize("module", ["os", "posix"])
def test_hostile_pickle_is_refused_and_not_run(tmp_path: Path, module: str) -> None:
    folder = tmp_path / "cifar-100-python"
    _cifar100(folder)
    ran = tmp_path / "ran"
    (folder / "train").write_bytes(f"c{module}\nsystem\n(S'touch {ran}'\ntR.".encode())
    with pytest.raises(ValueError, match=rf"{module}\.system") as caught:
        load("cifar100", data_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert not ran.exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x00.", b"nonsense"])
def test_damaged_cifar(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "cifar-100-python"
    _cifar100(folder)
    (folder / "test").write_bytes(content)
    with pytest.raises(ValueError, match="can't be read as CIFAR"):
        load("cifar100", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "archive"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100"), ("fashion_mnist", "FashionMNIST")]
)
def test_missing_set_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, archive: str
) -> None:
    asked = []

    def fetch(root: str, download: bool = False) -> None:
        asked.append(root)
        raise OSError("Network is unreachable")

    monkeypatch.setattr(f"torchvision.datasets.{archive}", fetch)
    with pytest.raises(ValueError, match="Network is unreachable") as caught:
        load(name, data_dir=tmp_path / "none")
    message = str(caught.value)
    assert asked == [str(tmp_path / "none")]
    assert "\n" not in message
    assert f"data={name}" in message
    assert str(tmp_path / "none") in message
    assert "data_dir=" in message


def _idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + array.tobytes())


def test_debian_folder_is_read_as_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    made = {}
    for part, count in (("train", 200), ("t10k", 30)):
        made[part] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        _idx(tmp_path / f"{part}-images-idx3-ubyte.gz", made[part])
        _idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", (np.arange(count) % 10).astype(np.uint8))
    before = sorted(tmp_path.iterdir())
    data = load("fashion_mnist", data_dir=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (180, 20, 30)
    assert (data.channels, data.height, data.width, data.pad, data.flip) == (1, 28, 28, 2, True)
    assert np.array_equal(data.test.images[:, 0].numpy(), made["t10k"])
    assert data.test.labels.tolist() == [k % 10 for k in range(30)]
    wanted = {(image.tobytes(), k % 10) for k, image in enumerate(made["train"])}
    assert _rows(data.train) | _rows(data.validation) == wanted
    assert sorted(tmp_path.iterdir()) == before
    # found by itself where Debian puts it
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", tmp_path)
    monkeypatch.setattr(datasets, "DATA_DIR", tmp_path / "none")
    assert load("fashion_mnist").fingerprint == data.fingerprint


def test_incomplete_fashion_mnist(tmp_path: Path) -> None:
    _idx(tmp_path / "train-images-idx3-ubyte.gz", np.zeros((10, 28, 28), dtype=np.uint8))
    with pytest.raises(ValueError, match="incomplete or damaged") as caught:
        load("fashion_mnist", data_dir=tmp_path)
    assert str(tmp_path) in str(caught.value)


def _class_folders(root: Path, parts: dict[str, int], size: tuple[int, int] = (12, 12)) -> None:
    for part, count in parts.items():
        for label, name in enumerate(("cat", "dog")):
            place = root / part / name
            place.mkdir(parents=True)
            for k in range(count):
                PIL.Image.new("RGB", size, (100 * label, k, 7)).save(place / f"{k}.png")


@pytest.mark.parametrize("held", ["test", "val"])
def test_folder_with_two_parts(tmp_path: Path, held: str) -> None:
    _class_folders(tmp_path, {"train": 20, held: 3})
    data = load("folder", data_dir=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test), data.classes) == (36, 4, 6, 2)
    assert data.train.images.shape[1:] == (3, 12, 12)
    assert (data.train.images[:, 0, 0, 0] == 100 * data.train.labels).all()
    assert (data.train.images[:, 2] == 7).all()
    assert data.validation.labels.tolist().count(0) == 2


def test_folder_with_three_parts_keeps_them(tmp_path: Path) -> None:
    _class_folders(tmp_path, {"train": 6, "val": 4, "test": 3})
    data = load("folder", data_dir=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 8, 6)
    assert data.class_names is not None
    assert len(data.class_names) == 2
    every = load("folder", data_dir=tmp_path, train_on="all")
    assert torch.equal(every.train.images, torch.cat([data.train.images, data.validation.images]))
    assert torch.equal(every.train.labels, torch.cat([data.train.labels, data.validation.labels]))
    assert torch.equal(every.train.digests, torch.cat([data.train.digests, data.validation.digests]))


def test_folder_of_several_sizes_needs_image_size(tmp_path: Path) -> None:
    _class_folders(tmp_path, {"train": 20, "test": 3})
    PIL.Image.new("RGB", (9, 14)).save(tmp_path / "train" / "dog" / "5.png")
    with pytest.raises(ValueError, match="image_size=") as caught:
        load("folder", data_dir=tmp_path)
    assert "9 x 14" in str(caught.value)
    assert load("folder", data_dir=tmp_path, image_size=10).train.images.shape[1:] == (3, 10, 10)


def test_folder_parts_of_unequal_size_need_image_size(tmp_path: Path) -> None:
    _class_folders(tmp_path, {"train": 20})
    _class_folders(tmp_path, {"test": 3}, size=(16, 16))
    with pytest.raises(ValueError, match="image_size="):
        load("folder", data_dir=tmp_path)


def test_folder_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs data_dir="):
        load("folder")
    with pytest.raises(ValueError, match="found neither"):
        load("folder", data_dir=tmp_path)
    _class_folders(tmp_path, {"train": 3, "test": 2})
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "hog")
    with pytest.raises(ValueError, match="differ in dog, hog"):
        load("folder", data_dir=tmp_path)


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="image_size= is for data=folder"):
        load("digits", image_size=8)
    with pytest.raises(ValueError, match="leave data_dir= out"):
        load("digits", data_dir=Path("x"))
    with pytest.raises(ValueError, match=r"digits.*cifar100") as caught:
        load("cifar")
    assert "\n" not in str(caught.value)
