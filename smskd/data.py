"""A data set on one device: three splits, counted views (augmentation), and a fingerprint.

Pad-and-crop with flip has only (2 pad + 1)^2 * (1 or 2) views of an image, so a view is a number, and a batch of random
views is one indexing operation. Images are tensors; a folder's that don't fit in memory stay files (smskd.files),
and a batch of theirs gets its views in the same way. Data of the user's own are made in smskd.sources. Deliberately not
here: random transforms of PIL.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smskd import datasets
from smskd.files import ImageFiles, Streamed, size_of, whole

# torchvision and scikit-learn take seconds to import; they are imported where they read or split.

# In standard deviations of the clean pixels. Enough that a small student trails its teacher by some six points.
DIGITS_NOISE = 0.5
_SPLIT_SEED = 0
# Images that take more bytes than this, decoded, are streamed. No result depends on it.
MEMORY_BYTES = 2 * 2**30
# Mean and standard deviation are taken over so many images at most, evenly spaced.
_MOMENT_IMAGES = 10_000


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images [N, C, H, W], as read (uint8 or float32, not normalised) or streamed, and labels [N], int64.

    digests: SHA-256 of what decides each image, [N, 32], uint8, on the CPU; None: images that are told by their pixels.
    places: where each stood in what the split was taken from, [N], on the CPU; None: it is whole.
    """

    images: Tensor | Streamed
    labels: Tensor
    digests: Tensor | None = None
    places: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray) -> Split:
        """The samples at these places, in the order of the split."""
        return self._taken(torch.from_numpy(np.sort(index)))

    def _taken(self, rows: Tensor) -> Split:
        images = self.images[rows] if isinstance(self.images, Tensor) else self.images.take(rows)
        digests = None if self.digests is None else self.digests[rows]
        places = rows if self.places is None else self.places[rows]
        return Split(images=images, labels=self.labels[rows], digests=digests, places=places)

    def joined(self, other: Split) -> Split:
        """Both as one: as they stood in what both were taken from, or one after the other."""
        one, two = self.images, other.images
        if isinstance(one, Streamed):
            assert isinstance(two, Streamed), "splits of a data set have one form"
            images: Tensor | Streamed = one.joined(two)
        else:
            assert isinstance(two, Tensor), "splits of a data set have one form"
            images = torch.cat([one, two])
        both = Split(
            images=images,
            labels=torch.cat([self.labels, other.labels]),
            digests=_both(self.digests, other.digests),
            places=_both(self.places, other.places),
        )
        return both if both.places is None else replace(both._taken(both.places.argsort()), places=None)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images with their labels, in order, `size` at a time; the last batch may be smaller."""
        labels = torch.split(self.labels, size)
        if isinstance(self.images, Tensor):
            return zip(torch.split(self.images, size), labels, strict=True)
        return zip(self.images.batches(torch.split(torch.arange(len(self)), size)), labels, strict=True)


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set, ready to train on.

    mean, std: [C, 1, 1], in the images' own units. pad: pixels of black around an image before it is cropped back.
    flip: whether a mirrored image is a valid one. class_names: by label, where they are known.
    """

    name: str
    classes: int
    train: Split
    validation: Split
    test: Split
    mean: Tensor
    std: Tensor
    pad: int
    flip: bool
    class_names: tuple[str, ...] | None = None
    fingerprint: str = ""
    _views: Tensor | None = field(init=False, repr=False)  # None where images are streamed

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            split: Split = getattr(self, name)
            if len(split) < 2:
                raise ValueError(f"data={self.name}: the {name} split needs at least 2 images, but has {len(split)}")
            if split.images.shape[1:] != self.train.images.shape[1:]:
                raise ValueError(
                    f"data={self.name}: all splits must have one image shape, but train has "
                    f"{tuple(self.train.images.shape[1:])} and {name} {tuple(split.images.shape[1:])}"
                )
            if split.images.dtype != self.train.images.dtype:
                ours, other = (str(one.images.dtype).removeprefix("torch.") for one in (self.train, split))
                raise ValueError(
                    f"data={self.name}: all splits must have one type of pixels, but train has {ours} and {name} "
                    f"{other}"
                )
            lowest, highest = int(split.labels.min()), int(split.labels.max())
            if lowest < 0 or highest >= self.classes:
                raise ValueError(
                    f"data={self.name}: labels must be in 0..{self.classes - 1}, but {name} has {lowest}..{highest}"
                )
        images = self.train.images
        object.__setattr__(self, "_views", self._crops(images) if isinstance(images, Tensor) else None)
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", self._digest())

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def height(self) -> int:
        return self.train.images.shape[2]

    @property
    def width(self) -> int:
        return self.train.images.shape[3]

    @property
    def shape(self) -> dict[str, Any]:
        """What a network is built for: its classes and the shape of an image, as smskd.models.build takes them."""
        return {"num_classes": self.classes, "image": (self.channels, self.height, self.width)}

    @property
    def views(self) -> int:
        """How many views an image has."""
        return (2 * self.pad + 1) ** 2 * (2 if self.flip else 1)

    def augmented(self, index: Tensor, view: Tensor) -> Tensor:
        """Normalised training images at `index`, each in its own view: both [B] -> [B, C, H, W], float32."""
        if self._views is not None:
            return self._seen(self._views, index, view)
        return self._seen_raw(self.train.images[index], view)

    def batches(self, order: Tensor, views: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Training images in the order given, `size` at a time; an incomplete last batch is left out.

        Args:
            order: places among the training images. views: of each training image, by its place.

        Yields:
            places [B], views [B], normalised images in these views [B, C, H, W] and labels [B].
        """
        places = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
        images = self.train.images
        raw = images.batches(places) if isinstance(images, Streamed) else None
        for index in places:
            view = views[index]
            seen = self.augmented(index, view) if raw is None else self._seen_raw(next(raw), view)
            yield index, view, seen, self.train.labels[index]

    def _crops(self, images: Tensor) -> Tensor:
        """All crops of images [N, C, H, W]: [N, 2 pad + 1, 2 pad + 1, C, H, W], without a copy."""
        padded = F.pad(images, (self.pad,) * 4)
        return padded.unfold(2, self.height, 1).unfold(3, self.width, 1).permute(0, 2, 3, 1, 4, 5)

    def _seen_raw(self, images: Tensor, view: Tensor) -> Tensor:
        return self._seen(self._crops(images), torch.arange(len(images), device=images.device), view)

    def _seen(self, crops: Tensor, index: Tensor, view: Tensor) -> Tensor:
        """Of all crops those of the images at `index` in their views, normalised."""
        side = 2 * self.pad + 1
        crop = view % side**2
        images = self.normalised(crops[index, crop // side, crop % side])
        if self.flip:
            images = torch.where((view >= side**2)[:, None, None, None], images.flip(-1), images)
        return images

    def normalised(self, images: Tensor) -> Tensor:
        """Raw images [B, C, H, W] -> float32, shifted and scaled per channel."""
        return (images.float() - self.mean) / self.std

    def to(self, device: torch.device) -> Data:
        """The same data on a device."""

        def moved(split: Split) -> Split:
            return replace(split, images=split.images.to(device), labels=split.labels.to(device))

        return replace(
            self,
            train=moved(self.train),
            validation=moved(self.validation),
            test=moved(self.test),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )

    def _digest(self) -> str:
        digest = hashlib.sha256(repr((self.name, self.classes, self.pad, self.flip)).encode())
        for tensor in (
            self.mean,
            self.std,
            *(t for s in (self.train, self.validation, self.test) for t in (_told_by(s), s.labels)),
        ):
            digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
            digest.update(np.ascontiguousarray(tensor.numpy()).data)
        if self.train.digests is not None:  # files are the same at any size
            digest.update(repr(tuple(self.train.images.shape[1:])).encode())
        return digest.hexdigest()


def load(
    name: str,
    *,
    data_dir: Path | None = None,
    train_size: int | None = None,
    image_size: int | None = None,
    pad: int | None = None,
    flip: bool | None = None,
    train_on: str = "train",
) -> Data:
    """Read a data set by name.

    Args:
        name: one of smskd.datasets.NAMES.
        data_dir: the folder that holds its files; None: runs/data, where a missing set is downloaded to.
        train_size: keep this many training images, stratified by class; None: all.
        image_size: for `folder`, resize the shorter side to so many pixels and cut the middle out; None: images have
            one size already.
        pad, flip, train_on: as in adapted.

    Returns:
        The data on the CPU. Validation is carved from the training part, stratified, always in the same way.

    Raises:
        ValueError: no such set, it isn't there and can't be had, or a setting doesn't fit it; one line says the mend.
    """
    datasets.check(name, data_dir=data_dir, image_size=image_size)
    reader = _READERS[name]
    data = reader(data_dir, image_size) if name == "folder" else reader(data_dir)
    return adapted(data, train_size=train_size, pad=pad, flip=flip, train_on=train_on)


def adapted(
    data: Data, *, train_size: int | None = None, pad: int | None = None, flip: bool | None = None, train_on: str
) -> Data:
    """Data with other settings than those they come with.

    Args:
        train_size: keep this many training images, stratified by class; None: all.
        pad, flip: as in Data; None: the data's own.
        train_on: `train`, or `all`: validation images are trained on, too, in the order in which they stood before
            they were carved out. They stay the validation split, whose accuracy then says nothing. Mean and deviation
            stay those of the training images.

    Raises:
        ValueError: a setting doesn't fit the data; one line says the mend.
    """
    changes: dict[str, Any] = {}
    if pad is not None and pad != data.pad:
        if not 0 <= pad < min(data.height, data.width):
            raise ValueError(
                f"data={data.name}: 0 <= pad < {min(data.height, data.width)}, the side of an image, must hold, but "
                f"got pad={pad}"
            )
        changes["pad"] = pad
    if flip is not None and flip != data.flip:
        changes["flip"] = flip
    train = data.train.joined(data.validation) if train_on == "all" else data.train
    if train_size is not None:
        count = len(train)
        datasets.check_train_size(data.name, train_size, classes=data.classes, count=count)
        train = train if train_size == count else train.take(_stratified(train.labels, count - train_size)[0])
    if train is not data.train:
        changes["train"] = train
    return replace(data, **changes, fingerprint="") if changes else data


def _both(one: Tensor | None, two: Tensor | None) -> Tensor | None:
    return None if one is None or two is None else torch.cat([one, two])


def _stratified(labels: Tensor, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the samples that stay and of those held out, with the classes in proportion."""
    from sklearn.model_selection import train_test_split

    places = np.arange(len(labels))
    try:
        stay, leave = train_test_split(places, test_size=held_out, stratify=labels.numpy(), random_state=_SPLIT_SEED)
    except ValueError as error:
        raise ValueError(f"{len(labels)} images can't be split by class with {held_out} held out: {error}") from None
    return stay, leave


def carve(train: Split, held_out: int) -> tuple[Split, Split]:
    """Training images, and so many of them for validation, stratified, always the same."""
    stay, leave = _stratified(train.labels, held_out)
    return train.take(stay), train.take(leave)


def _channel(values: tuple[float, ...], scale: float = 1.0) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) * scale


def _moments(split: Split) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over a split in memory, in the images' units, [C, 1, 1]."""
    assert isinstance(split.images, Tensor)
    flat = split.images.transpose(0, 1).flatten(1)
    # in chunks, so that a large uint8 set isn't held in float at once
    chunks = [c.double() for c in torch.split(flat, 2**22, dim=1)]
    mean = torch.stack([c.sum(dim=1) for c in chunks]).sum(dim=0) / flat.shape[1]
    square = torch.stack([(c - mean[:, None]).square().sum(dim=1) for c in chunks]).sum(dim=0) / flat.shape[1]
    return mean.float().view(-1, 1, 1), square.sqrt().clamp(min=1e-6).float().view(-1, 1, 1)


def _digits(data_dir: Path | None) -> Data:
    """scikit-learn's 1,797 digits, 8 x 8, with a fixed draw of noise that makes the gap to the teacher visible.

    No crop: a shift by one pixel in eight costs a student of 12 epochs ten points on validation.
    """
    import sklearn.datasets

    bunch = sklearn.datasets.load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    images += (
        DIGITS_NOISE * images.std() * torch.randn(images.shape, generator=torch.Generator().manual_seed(_SPLIT_SEED))
    )
    everything = Split(images=images, labels=torch.from_numpy(bunch.target).long())
    train, rest = carve(everything, 797)
    validation, test = carve(rest, 399)
    mean, std = _moments(train)
    return Data(
        name="digits", classes=10, train=train, validation=validation, test=test, mean=mean, std=std, pad=0, flip=False
    )


def _fashion_mnist(data_dir: Path | None) -> Data:
    """Zalando's 70,000 articles, 28 x 28 grey: torchvision's folder, or one with the four .gz files, as in Debian."""
    import torchvision.datasets

    folders = datasets.folders("fashion_mnist", data_dir)
    for folder in folders:
        if (folder / "FashionMNIST" / "raw").is_dir():
            return _fashion_mnist_from(folder)
        if (folder / "train-images-idx3-ubyte.gz").is_file():
            return _fashion_mnist_unpacked(folder)
    _download("fashion_mnist", torchvision.datasets.FashionMNIST, folders)
    return _fashion_mnist_from(folders[0])


def _fashion_mnist_unpacked(folder: Path) -> Data:
    """torchvision reads unpacked files from its own layout: make that for the moment of reading."""
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        for packed in folder.glob("*-ubyte.gz"):
            with gzip.open(packed) as source, (raw / packed.stem).open("wb") as target:
                shutil.copyfileobj(source, target)
        return _fashion_mnist_from(Path(scratch), shown=folder)


def _fashion_mnist_from(root: Path, shown: Path | None = None) -> Data:
    import torchvision.datasets

    try:
        sets = [torchvision.datasets.FashionMNIST(root, train=train) for train in (True, False)]
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"data=fashion_mnist: the files in {shown or root} are incomplete or damaged ({error})"
        ) from None
    train, test = (Split(images=s.data.unsqueeze(1), labels=s.targets.long()) for s in sets)
    train, validation = carve(train, len(train) // 10)
    mean, std = _moments(train)
    return Data(
        name="fashion_mnist",
        classes=10,
        train=train,
        validation=validation,
        test=test,
        mean=mean,
        std=std,
        pad=2,
        flip=True,
    )


def _cifar(data_dir: Path | None, *, name: str) -> Data:
    """CIFAR's python version, 32 x 32 in colour; read with an unpickler that makes arrays and nothing else."""
    if name == "cifar100":
        folder, train_files, test_file, key, classes = "cifar-100-python", ["train"], "test", "fine_labels", 100
        mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
        archive = "CIFAR100"
    else:
        folder, train_files, test_file = "cifar-10-batches-py", [f"data_batch_{k}" for k in range(1, 6)], "test_batch"
        key, classes = "labels", 10
        mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
        archive = "CIFAR10"
    (root,) = datasets.folders(name, data_dir)
    found = next((p for p in (root / folder, root) if (p / train_files[0]).is_file()), None)
    if found is None:
        import torchvision.datasets

        _download(name, getattr(torchvision.datasets, archive), [root])
        found = root / folder
    train = _cifar_split(name, [found / file for file in train_files], key)
    test = _cifar_split(name, [found / test_file], key)
    train, validation = carve(train, len(train) // 10)
    return Data(
        name=name, classes=classes, train=train, validation=validation, test=test,
        mean=_channel(mean, 255), std=_channel(std, 255), pad=4, flip=True,
    )  # fmt: skip


class _ArraysOnly(pickle.Unpickler):
    """Reads the pickles of CIFAR: dicts, lists, strings and NumPy arrays. A file that names other code is refused."""

    _allowed = frozenset(
        [("_codecs", "encode"), ("numpy", "ndarray"), ("numpy", "dtype")]
        + [(f"numpy.{core}.multiarray", n) for core in ("core", "_core") for n in ("_reconstruct", "scalar")]
        + [(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")]
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR file has")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _cifar_split(name: str, files: list[Path], key: str) -> Split:
    images, labels = [], []
    for file in files:
        try:
            with file.open("rb") as stream:
                entry = _ArraysOnly(stream, encoding="latin1").load()
            images.append(np.asarray(entry["data"], dtype=np.uint8).reshape(-1, 3, 32, 32))
            labels.append(np.asarray(entry[key], dtype=np.int64))
            if len(images[-1]) != len(labels[-1]):
                raise ValueError(f"{len(images[-1])} images but {len(labels[-1])} labels")
        except Exception as error:  # a damaged pickle raises nearly anything
            raise ValueError(f"data={name}: {file} can't be read as CIFAR's python version: {error}") from None
    return Split(images=torch.from_numpy(np.concatenate(images)), labels=torch.from_numpy(np.concatenate(labels)))


def _told_by(split: Split) -> Tensor:
    """What a fingerprint is made of: digests of the files, so that files and tensors have the same; or the pixels."""
    if split.digests is not None:
        return split.digests
    assert isinstance(split.images, Tensor), "files have digests"
    return split.images


def sampled_moments(train: Split) -> tuple[Tensor, Tensor]:
    """As _moments, of images that are streamed or not, which gives the same: batches are cut in one way."""
    rows = np.unique(np.linspace(0, len(train) - 1, min(len(train), _MOMENT_IMAGES)).round().astype(np.int64))
    exact = torch.int64 if train.images.dtype == torch.uint8 else torch.float64
    total, square = torch.zeros(2, train.images.shape[1], dtype=exact)
    for images, _ in train.take(rows).batches(64):
        flat = images.transpose(0, 1).flatten(1).to(exact)
        total, square = total + flat.sum(dim=1), square + flat.square().sum(dim=1)
    count = len(rows) * train.images.shape[2] * train.images.shape[3]
    mean = total.double() / count
    variance = (square.double() / count - mean.square()).clamp(min=0)
    return mean.float().view(-1, 1, 1), variance.sqrt().clamp(min=1e-6).float().view(-1, 1, 1)


def _folder(data_dir: Path | None, image_size: int | None) -> Data:
    """Images in class folders below train/ and test/ (or val/), in memory if all of them fit, else as files.

    With train/, val/ and test/ all three are used as they are; with two, validation is carved from train/.
    """
    assert data_dir is not None, "datasets.check asks for it"
    parts = {part: data_dir / part for part in ("train", "val", "test") if (data_dir / part).is_dir()}
    if "train" not in parts or len(parts) < 2:
        raise ValueError(
            f"data=folder: looked for train/ and test/ (or val/) in {data_dir}, found {', '.join(parts) or 'neither'}; "
            f"put one folder per class below each"
        )
    found = {part: _listed(folder) for part, folder in parts.items()}
    classes = found["train"].classes
    for part, listing in found.items():
        if listing.classes != classes:
            odd = sorted(set(listing.classes) ^ set(classes))
            raise ValueError(
                f"data=folder: train/ and {part}/ must have the same class folders, but differ in {', '.join(odd[:5])}"
            )
    read = _splits(found, image_size)
    train = read["train"]
    test = read["test" if "test" in read else "val"]
    if len(read) == 3:
        validation = read["val"]
    else:
        train, validation = carve(train, default_held_out(train, len(classes)))
    mean, std = sampled_moments(train)
    return Data(
        name="folder", classes=len(classes), train=train, validation=validation, test=test,
        mean=mean, std=std, pad=default_pad(train), flip=True, class_names=tuple(classes),
    )  # fmt: skip


def default_held_out(train: Split, classes: int) -> int:
    """How many of the training images are for validation, where data bring none."""
    return max(classes, len(train) // 10)


def default_pad(train: Split) -> int:
    """As in Data, where data say none: an eighth of the width, as CIFAR's four pixels are."""
    return max(1, train.images.shape[-1] // 8)


class _Listing(NamedTuple):
    """Image files of one part, their labels [N], and the classes' names."""

    paths: np.ndarray
    labels: Tensor
    classes: list[str]


def _listed(folder: Path) -> _Listing:
    import torchvision.datasets
    from torchvision.datasets.folder import IMG_EXTENSIONS

    try:
        listing = torchvision.datasets.ImageFolder(str(folder))
    except (FileNotFoundError, OSError) as error:
        raise ValueError(
            f"data=folder: {folder} has no class folders with images ({', '.join(IMG_EXTENSIONS)}): {error}"
        ) from None
    paths = np.array([os.fsencode(path) for path, _ in listing.samples])
    return _Listing(paths, torch.tensor(listing.targets), listing.classes)


def _splits(found: dict[str, _Listing], image_size: int | None) -> dict[str, Split]:
    """The parts' images, in one form: tensors if all of them fit in memory, else files."""
    if image_size is None:
        first = found["train"].paths[0]
        height, width = size_of(first)  # of the header alone
        for path in (path for listing in found.values() for path in listing.paths):
            if (other := size_of(path)) != (height, width):
                raise ValueError(
                    f"data=folder: images must have one size, but {os.fsdecode(first)} has {width} x {height} and "
                    f"{os.fsdecode(path)} {other[1]} x {other[0]}: set image_size="
                )
    else:
        height = width = image_size
    files = {
        part: ImageFiles(paths=listing.paths, height=height, width=width, resize=image_size is not None)
        for part, listing in found.items()
    }
    streams = {part: whole(images) for part, images in files.items()}
    fits = sum(images.nbytes for images in streams.values()) <= MEMORY_BYTES
    return {
        part: Split(images=images[:] if fits else images, labels=found[part].labels, digests=files[part].digests())
        for part, images in streams.items()
    }


def _download(name: str, fetch: Callable[..., Any], folders: list[Path]) -> None:
    try:
        fetch(str(folders[0]), download=True)
    except (OSError, RuntimeError) as error:
        looked = " and ".join(str(p) for p in folders)
        debian = " (or install Debian's package dataset-fashion-mnist)" if name == "fashion_mnist" else ""
        raise ValueError(
            f"data={name}: looked in {looked}, found nothing, and the download failed ({error}); "
            f"put the files there or name their folder with data_dir={debian}"
        ) from None


_READERS: dict[str, Callable[..., Data]] = {
    "digits": _digits,
    "cifar100": lambda data_dir: _cifar(data_dir, name="cifar100"),
    "cifar10": lambda data_dir: _cifar(data_dir, name="cifar10"),
    "fashion_mnist": _fashion_mnist,
    "folder": _folder,
}
