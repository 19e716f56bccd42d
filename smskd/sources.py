"""Data of the user's own: arrays, torch's Datasets and Hugging Face's, made into Data.

Images are looked at one by one, and told by the digests of their pixels. What takes more than MEMORY_BYTES (smskd.data)
is streamed, as large folders are.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import Subset

from smskd import blame, data
from smskd.data import Data, Split
from smskd.files import ahead, fitted, whole

_LOG = logging.getLogger(__name__)

_FORMS = (
    "a pair of arrays (images, labels), a torch Dataset of (image, label), or a datasets.Dataset of Hugging Face with "
    "both"
)
_PARTS = {2: ("train", "test"), 3: ("train", "validation", "test")}
# Columns of Hugging Face's sets, where the types of their features don't tell.
_IMAGE_COLUMNS, _LABEL_COLUMNS = ("image", "img"), ("label", "labels", "fine_label")
_GREY, _DEEP = ("1", "L", "LA"), ("I", "F")  # modes of PIL
_NO_DATASETS = (tuple, list, dict, str, bytes, np.ndarray, Tensor)
# So many images of a part are looked at first, twice: for colours, and for random transforms.
_PROBED = 16
# Images that are read at once, and seconds of reading after which that is told.
_CHUNK, _LONG_S = 64, 10.0
# What arithmetic may add to floats that are in [0, 1].
_ROUNDING = 1e-5


def of_parts(
    name: str,
    parts: Sequence[Any] | Mapping[str, Any],
    *,
    image_size: int | None = None,
    train_size: int | None = None,
    pad: int | None = None,
    flip: bool | None = None,
    train_on: str = "train",
) -> Data:
    """Data from what a function of the user's returned.

    Args:
        name: of the data.
        parts: (train, test) or (train, validation, test), or a mapping with these keys. Each is a pair of arrays of
            NumPy or torch; or a torch Dataset of (image, label), the image a PIL image, an array or a tensor; or a
            datasets.Dataset of Hugging Face. Images are uint8, or float in [0, 1], [H, W], [H, W, C] or [C, H, W];
            labels are 0..K-1, or strings, whose classes are in sorted order.
        image_size: resize the shorter side to so many pixels and cut the middle out; None: images have one size.
        pad, flip: as in Data; None: an eighth of the width, and true.
        train_size, train_on: as in smskd.data.adapted.

    Returns:
        The data on the CPU. Without a validation part one is carved from the training part, stratified, always in the
        same way.

    Raises:
        ValueError: a part has none of these forms, or images or labels that can't be taken; in one line, with the mend.
    """
    if isinstance(parts, Mapping):  # as a DatasetDict of Hugging Face is
        parts = _in_order(name, parts)
    if not isinstance(parts, tuple | list) or len(parts) not in _PARTS:
        given = f"{len(parts)} of them" if isinstance(parts, tuple | list) else f"a {type(parts).__name__}"
        raise ValueError(f"data={name}: (train, test) or (train, validation, test) must be returned, but got {given}")
    raw = {part: _raw(f"data={name}: {part}", given) for part, given in zip(_PARTS[len(parts)], parts, strict=True)}
    colour = any(_colours(image) for image, _ in map(raw["train"].item, raw["train"].probed))
    sources = {part: _Images(one, _form(one, colour, image_size)) for part, one in raw.items()}
    fits = sum(whole(source).nbytes for source in sources.values()) <= data.MEMORY_BYTES
    read = {part: _read(source, fits) for part, source in sources.items()}
    labels, class_names = _labels(name, raw, {part: told for part, (_, told, _) in read.items()})
    splits = {
        part: Split(images=images, labels=labels[part], digests=digests) for part, (images, _, digests) in read.items()
    }
    train, classes = splits["train"], len(class_names or torch.bincount(labels["train"]))
    if "validation" in splits:
        validation = splits["validation"]
    else:
        counts = train.labels.bincount()
        if rare := (counts == 1).nonzero().flatten().tolist():
            raise ValueError(
                f"data={name}: each class must have 2 training images or more, since validation is carved out of them, "
                f"but class {rare[0]} has 1: give more, or a validation part"
            )
        train, validation = data.carve(train, data.default_held_out(train, classes))
    mean, std = data.sampled_moments(train)
    made = Data(
        name=name, classes=classes, train=train, validation=validation, test=splits["test"], mean=mean, std=std,
        pad=data.default_pad(train), flip=True, class_names=class_names,
    )  # fmt: skip
    return data.adapted(made, train_size=train_size, pad=pad, flip=flip, train_on=train_on)


def _in_order(name: str, parts: Mapping[Any, Any]) -> list[Any]:
    """The parts of a mapping, which has them by these names.

    Raises:
        ValueError: one is missing, or another there.
    """
    for named in (*_PARTS.values(), ("train", "val", "test")):
        if {*parts} == {*named}:
            return [parts[part] for part in named]
    raise ValueError(
        f"data={name}: a mapping must have train and test, or train, validation and test, but has "
        f"{', '.join(map(repr, parts)) or 'nothing'}: give those to be used, as a tuple"
    )


@dataclass(frozen=True, kw_only=True)
class _Raw:
    """A part as the user has it. where: what it is called in messages. get: place to (image, label)."""

    where: str
    get: Callable[[int], Any]
    count: int
    class_names: tuple[str, ...] | None = None

    @property
    def probed(self) -> range:
        return range(min(self.count, _PROBED))

    def item(self, place: int) -> tuple[Any, Any]:
        """Image and label, as they are.

        Raises:
            ValueError: there is no such pair, or the user's code raised something: with type, message, file and line.
        """
        try:
            found = self.get(place)
        except Exception as error:
            raise ValueError(f"{self.where}: item {place} can't be read: {blame.told(error)}") from error
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise ValueError(f"{self.where}: an item must be (image, label), but item {place} is {_told(found)}")
        return found[0], found[1]


def _raw(where: str, part: Any) -> _Raw:
    """Raises ValueError: the part has none of the forms, has no items, or gives others when it is asked again."""
    if isinstance(part, tuple | list) and len(part) == 2 and len(getattr(part[0], "shape", ())):
        found = _arrays(where, *part)
    elif (
        type(part).__module__.partition(".")[0] == "datasets" and hasattr(part, "features") and hasattr(part, "__len__")
    ):
        found = _hugging_face(where, part)
    elif hasattr(part, "__getitem__") and hasattr(part, "__len__") and not isinstance(part, _NO_DATASETS):
        found = _Raw(where=where, get=part.__getitem__, count=len(part), class_names=_class_names(part))
    else:
        raise ValueError(f"{where} must be {_FORMS}, but is {_told(part)}")
    if not found.count:
        raise ValueError(f"{where} has no images")
    for place in found.probed:
        (one, _), (two, _) = found.item(place), found.item(place)
        if not np.array_equal(_array(where, place, one, True), _array(where, place, two, True), equal_nan=True):
            raise ValueError(
                f"{where}: item {place} is another image each time, so nothing could be repeated: leave random "
                "transforms out; pad= and flip= are drawn here"
            )
    return found


def _arrays(where: str, images: Any, labels: Any) -> _Raw:
    if isinstance(images, Tensor):
        images = images.detach().cpu()
    told = _label_array(where, labels)
    if len(images) != len(told):
        raise ValueError(f"{where} must have a label for each image, but has {len(images)} images, {len(told)} labels")
    return _Raw(where=where, get=lambda place: (images[place], told[place]), count=len(told))


def _hugging_face(where: str, part: Any) -> _Raw:
    kinds = {column: type(feature).__name__ for column, feature in part.features.items()}
    image = _column(where, kinds, "Image", _IMAGE_COLUMNS)
    label = _column(where, kinds, "ClassLabel", _LABEL_COLUMNS)
    dtype = part.features[image].dtype if kinds[image].startswith("Array") else None
    if part.format["type"] is None:  # else the user has said how items come
        part = part.select_columns([image, label])
        part = part if dtype is None else part.with_format("numpy")  # they would come as lists

    def get(place: int) -> tuple[Any, Any]:
        row = part[place]
        # formats give whole numbers as int64, whatever the column has
        return row[image] if dtype is None else np.asarray(row[image]).astype(dtype), row[label]

    names = tuple(part.features[label].names) if kinds[label] == "ClassLabel" else None
    return _Raw(where=where, get=get, count=len(part), class_names=names)


def _column(where: str, kinds: dict[str, str], kind: str, usual: Sequence[str]) -> str:
    """The one of this type; or one with a usual name, among these if there are any."""
    fitting = [column for column, found in kinds.items() if found == kind]
    if len(fitting) == 1:
        return fitting[0]
    for column in usual:
        if column in (fitting or kinds):
            return column
    there = ", ".join(f"{column} ({found})" for column, found in kinds.items())
    raise ValueError(f"{where} must have one column of type {kind}, or named {' or '.join(usual)}, but has {there}")


def _class_names(part: Any) -> tuple[str, ...] | None:
    while isinstance(part, Subset):
        part = part.dataset
    names = getattr(part, "classes", None)
    known = isinstance(names, tuple | list) and all(isinstance(one, str) for one in names)
    return tuple(names) if known and names else None


@dataclass(frozen=True, kw_only=True)
class _Form:
    """What all images of a part are. axis: of the channels in an item; None: it has none. shape: [C, H, W]."""

    colour: bool
    side: int | None
    axis: int | None
    shape: tuple[int, int, int]
    floats: bool


def _form(raw: _Raw, colour: bool, side: int | None) -> _Form:
    """As the first image has it. colour: of PIL images. side: to bring them to."""
    first = _array(raw.where, 0, raw.item(0)[0], colour)
    axis = _channel_axis(raw.where, first.shape)
    channels, height, width = _channels_first(first, axis).shape
    return _Form(
        colour=colour, side=side, axis=axis, floats=_is_float(raw.where, 0, first),
        shape=(channels, side or height, side or width),
    )  # fmt: skip


class _Images:
    """A source for smskd.files: a part whose images have a form. Looked at as they are read."""

    def __init__(self, raw: _Raw, form: _Form) -> None:
        self.raw, self._form = raw, form

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.raw.count, *self._form.shape

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self._form.floats else torch.uint8

    def read(self, places: np.ndarray) -> Tensor:
        return self.read_labelled(places)[0]

    def read_labelled(self, places: np.ndarray) -> tuple[Tensor, list[Any], Tensor]:
        """Images [B, C, H, W], labels, and SHA-256 of the images' pixels, [B, 32], uint8.

        Raises:
            ValueError: an image hasn't the form of the others, or values that images haven't.
        """
        items = [(place, *self.raw.item(place)) for place in places.tolist()]
        images = np.stack([self._image(place, image) for place, image, _ in items])
        labels = [label.item() if hasattr(label, "item") and np.ndim(label) == 0 else label for _, _, label in items]
        kind = str(images.dtype).encode()
        digests = [hashlib.sha256(kind + image.tobytes()).digest() for image in images]
        told = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).view(-1, 32)
        return torch.from_numpy(images), labels, told

    def digests(self, places: np.ndarray) -> tuple[list[Any], Tensor]:
        """As read_labelled, without the images."""
        return self.read_labelled(places)[1:]

    def _image(self, place: int, given: Any) -> np.ndarray:
        """One image, [C, H, W]."""
        where, form = self.raw.where, self._form
        array = _array(where, place, given, form.colour)
        if array.ndim != (2 if form.axis is None else 3) or _is_float(where, place, array) != form.floats:
            raise ValueError(
                f"{where}: all images must have one layout and type, as item 0 has, but item {place} is "
                f"{array.dtype} {list(array.shape)}"
            )
        image = _channels_first(array, form.axis)
        if image.shape[0] != form.shape[0]:
            raise ValueError(
                f"{where}: all images must have as many channels as item 0, which has {form.shape[0]}, but item "
                f"{place} has {image.shape[0]}"
            )
        if form.floats:
            low, high = image.min(), image.max()
            if np.isnan(low):
                raise ValueError(f"{where}: images must be numbers, but item {place} has NaN: mend or leave it out")
            if low < -_ROUNDING or high > 1 + _ROUNDING:
                raise ValueError(
                    f"{where}: float images must be in [0, 1], but item {place} has {low:g}..{high:g}: divide by 255, "
                    "or give uint8, and leave Normalize out (mean and deviation are measured here)"
                )
            image = image.astype(np.float32)
        if form.side is not None:
            return _square(image, form.side)
        if image.shape != form.shape:
            raise ValueError(
                f"{where}: images must have one size, but item 0 has {form.shape[2]} x {form.shape[1]} and item "
                f"{place} {image.shape[2]} x {image.shape[1]}: set image_size="
            )
        return image


def _read(source: _Images, in_memory: bool) -> tuple[Any, list[Any], Tensor]:
    """Images, as a tensor or streamed; their labels; and their digests [N, 32]."""
    count = source.shape[0]
    chunks = np.split(np.arange(count), range(_CHUNK, count, _CHUNK))
    labels: list[Any] = []
    digests: list[Tensor] = []
    images = torch.empty(source.shape, dtype=source.dtype) if in_memory else whole(source)
    if isinstance(images, Tensor):
        for places in chunks:
            images[places[0] : places[-1] + 1], told, digest = source.read_labelled(places)
            labels += told
            digests.append(digest)
        return images, labels, torch.cat(digests)
    started, silent = time.monotonic(), True
    for told, digest in ahead(source.digests, chunks):
        labels += told
        digests.append(digest)
        if silent and time.monotonic() - started > _LONG_S:
            silent = False
            _LOG.warning(
                "%s: all %d images are read once, by which the data are told from others; %d %% after %.0f s",
                source.raw.where, count, 100 * len(labels) // count, _LONG_S,
            )  # fmt: skip
    return images, labels, torch.cat(digests)


def _labels(
    name: str, raw: dict[str, _Raw], told: dict[str, list[Any]]
) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """Labels of each part, [N], int64, in 0..K-1, and the classes' names, where they are known.

    Raises:
        ValueError: they aren't labels, or the parts haven't the same classes.
    """
    found = {part: _label_array(raw[part].where, labels) for part, labels in told.items()}
    names = raw["train"].class_names
    for part, one in raw.items():
        if names and one.class_names and one.class_names != names:
            odd = sorted(set(names) ^ set(one.class_names)) or ["the order"]
            raise ValueError(f"data={name}: train and {part} must have the same classes, but differ in {odd[0]}")
    if found["train"].dtype.kind == "U":
        names = names or tuple(np.unique(found["train"]).tolist())
    there = np.unique(found["train"])
    made = {}
    for part, labels in found.items():
        if labels.dtype.kind != found["train"].dtype.kind:
            raise ValueError(f"data={name}: labels must be numbers or strings, but in train and {part} they differ")
        if lacking := np.setdiff1d(labels, there).tolist():
            raise ValueError(f"data={name}: {part} has label {lacking[0]!r}, of which train has no image")
        if labels.dtype.kind == "U":
            numbers = {label: number for number, label in enumerate(names or ())}
            if unknown := [label for label in there.tolist() if label not in numbers]:
                raise ValueError(f"data={name}: label {unknown[0]!r} must be one of the classes {', '.join(numbers)}")
            labels = np.array([numbers[label] for label in labels.tolist()], dtype=np.int64)
        made[part] = torch.from_numpy(labels)
    if found["train"].dtype.kind != "U":
        _check_numbers(name, there, names)
    if len(names or there) < 2:
        raise ValueError(f"data={name}: there must be at least 2 classes, but train has {there.tolist()[0]!r} alone")
    return made, names


def _check_numbers(name: str, there: np.ndarray, names: tuple[str, ...] | None) -> None:
    """Refuse labels, sorted, that don't count classes."""
    low, high = int(there[0]), int(there[-1])
    if names is not None:
        if low < 0 or high >= len(names):
            raise ValueError(
                f"data={name}: labels must be in 0..{len(names) - 1}, since there are {len(names)} names of classes, "
                f"but train has {low}..{high}"
            )
    elif low < 0 or high != len(there) - 1:
        gap = np.setdiff1d(np.arange(max(high, 0) + 1), there).tolist()
        more = f" and none of {gap[0]}" if gap else ""
        raise ValueError(
            f"data={name}: labels must be 0..K-1, each of which train has, but it has {low}..{high}{more}: number the "
            "classes anew, such as np.unique(labels, return_inverse=True)[1], or give strings"
        )


def _label_array(where: str, labels: Any) -> np.ndarray:
    """Labels [N], as int64 or strings.

    Raises:
        ValueError: they are neither.
    """
    found = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if found.ndim != 1:
        raise ValueError(
            f"{where}: labels must be one number or string for each image, [N], but have shape {list(found.shape)}: of "
            "one-hot rows give labels.argmax(1)"
        )
    if found.dtype.kind in "iub":
        return found.astype(np.int64)
    if found.dtype.kind == "O" and all(isinstance(label, str) for label in found):
        return found.astype(np.str_)
    if found.dtype.kind != "U":
        some = found.tolist()[0]  # as Python has it
        raise ValueError(f"{where}: labels must be whole numbers or strings, but are {found.dtype}, such as {some!r}")
    return found


def _array(where: str, place: int, image: Any, colour: bool) -> np.ndarray:
    """An image as it is, as an array; PIL's in colours or grey.

    Raises:
        ValueError: it is no image.
    """
    if isinstance(image, PIL.Image.Image):
        if image.mode.partition(";")[0] in _DEEP:
            raise ValueError(
                f"{where}: PIL images must have 8 bits a channel, but item {place} has mode {image.mode}: give arrays, "
                "float in [0, 1]"
            )
        if _colours(image) and not colour:
            raise ValueError(
                f"{where}: the first images are grey, but item {place} has colours ({image.mode}): give all of them as "
                'image.convert("RGB")'
            )
        return np.asarray(image.convert("RGB" if colour else "L"))
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        return np.asarray(image.float() if image.dtype == torch.bfloat16 else image)
    if not hasattr(image, "__array__"):
        raise ValueError(
            f"{where}: an image must be a PIL image, an array or a tensor, but item {place} is {_told(image)}"
        )
    return np.asarray(image)


def _colours(image: Any) -> bool:
    return isinstance(image, PIL.Image.Image) and image.mode not in _GREY


def _is_float(where: str, place: int, array: np.ndarray) -> bool:
    """Raises ValueError: it is neither float nor uint8."""
    if array.dtype == np.uint8 or array.dtype.kind == "f":
        return array.dtype != np.uint8
    raise ValueError(
        f"{where}: images must be uint8, or float in [0, 1], but item {place} is {array.dtype}: of whole numbers in "
        "0..255 give images.astype(np.uint8)"
    )


def _channel_axis(where: str, shape: tuple[int, ...]) -> int | None:
    """Of an image of this shape: the first or last, whichever has 1, 3 or 4; or else leaves a square."""
    if len(shape) == 2:
        return None
    if len(shape) == 3:
        usual = [axis for axis in (0, 2) if shape[axis] in (1, 3, 4)]
        square = [axis for axis in (0, 2) if shape[1] == shape[2 - axis]]
        for found in (usual, square):
            if len(found) == 1:
                return found[0]
    raise ValueError(
        f"{where}: images must be [H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels C, or square ones with any, "
        f"but item 0 has shape {list(shape)}"
    )


def _channels_first(array: np.ndarray, axis: int | None) -> np.ndarray:
    return array[None] if axis is None else np.moveaxis(array, axis, 0)


def _square(image: np.ndarray, side: int) -> np.ndarray:
    """[C, H, W], cut and resized as the images of a folder are, each channel for itself."""
    bands = [np.asarray(fitted(PIL.Image.fromarray(np.ascontiguousarray(band)), side)) for band in image]
    made = np.stack(bands)
    return made if made.dtype == np.uint8 else made.clip(0, 1)  # the filter oversteps


def _told(value: object) -> str:
    """A value in a message: its type, and what it holds, if that is short."""
    kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
    return f"a {kind} of {len(value)}" if isinstance(value, tuple | list | dict) else f"a {kind}"
