"""Data of the user's own: every form gives the same Data; what can't be taken is refused in one line."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, Subset

from smskd import data as datasets
from smskd import sources
from smskd.data import Data, load
from smskd.files import Streamed, fitted
from smskd.sources import of_parts


class Items(Dataset[Any]):
    """A torch Dataset whose items are made by a function of the place."""

    def __init__(self, count: int, make: Callable[[int], Any], classes: Any = None) -> None:
        self._count, self._make = count, make
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> Any:
        return self._make(place)


def pixels(count: int, seed: int = 0, shape: tuple[int, ...] = (10, 14, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def numbers(count: int, classes: int = 3) -> np.ndarray:
    return np.arange(count) % classes


TRAIN, TEST = (pixels(40), numbers(40)), (pixels(9, 1), numbers(9))
PARTS = (TRAIN, TEST)


def plain(part: tuple[np.ndarray, np.ndarray], classes: Any = None) -> Items:
    images, labels = part
    return Items(len(labels), lambda place: (images[place], int(labels[place])), classes)


def as_pil(part: tuple[np.ndarray, np.ndarray]) -> Items:
    images, labels = part
    return Items(len(labels), lambda place: (PIL.Image.fromarray(images[place]), torch.tensor(labels[place])))


def as_torch(part: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(part[0]).permute(0, 3, 1, 2), torch.from_numpy(part[1])


FORMS: dict[str, Callable[[tuple[np.ndarray, np.ndarray]], Any]] = {
    "NHWC": lambda part: part,
    "labels in a list": lambda part: [part[0], part[1].tolist()],
    "NCHW tensors": as_torch,
    "uint8 labels": lambda part: (part[0], part[1].astype(np.uint8)),
    "dataset of arrays": plain,
    "dataset of PIL images": as_pil,
    "dataset of tensors": lambda part: torch.utils.data.TensorDataset(*as_torch(part)),
    "object array": lambda part: (np.array([*part[0], None], dtype=object)[:-1], part[1]),
}


def same(one: Data, two: Data) -> bool:
    splits = ((getattr(d, name) for name in ("train", "validation", "test")) for d in (one, two))
    return one.fingerprint == two.fingerprint and all(
        torch.equal(a.images[:], b.images[:]) and torch.equal(a.labels, b.labels) for a, b in zip(*splits, strict=True)
    )


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_data(form: str) -> None:
    made = of_parts("mine", tuple(FORMS[form](part) for part in PARTS))
    assert same(made, of_parts("mine", PARTS))
    assert made.train.images.dtype == torch.uint8
    assert made.train.images.shape[1:] == (3, 10, 14)
    assert torch.equal(made.test.images[:], torch.from_numpy(TEST[0]).permute(0, 3, 1, 2))
    assert made.test.labels.tolist() == TEST[1].tolist()
    assert (made.classes, made.class_names, made.pad, made.flip) == (3, None, 1, True)


def test_validation_is_carved_by_class_and_the_rest_is_trained_on() -> None:
    made = of_parts("mine", PARTS)
    assert (len(made.train), len(made.validation), len(made.test)) == (36, 4, 9)
    assert sorted(made.validation.labels.tolist()) == [0, 0, 1, 2]
    assert made.validation.places is not None
    rows = made.validation.places
    assert torch.equal(made.validation.images[:], torch.from_numpy(TRAIN[0]).permute(0, 3, 1, 2)[rows])


@pytest.mark.parametrize("name", [None, "validation", "val"])
def test_a_validation_part_is_used_as_it_is(name: str | None) -> None:
    validation = (pixels(7, 2), numbers(7))
    made = of_parts(
        "mine", [TRAIN, validation, TEST] if name is None else {name: validation, "test": TEST, "train": TRAIN}
    )
    assert (len(made.train), len(made.validation)) == (40, 7)
    assert torch.equal(made.validation.images[:], torch.from_numpy(validation[0]).permute(0, 3, 1, 2))


def test_mean_and_deviation_are_measured() -> None:
    made = of_parts("mine", PARTS)
    seen = made.train.images[:].double()
    assert torch.allclose(made.mean.flatten().double(), seen.mean((0, 2, 3)), rtol=1e-6)
    assert torch.allclose(made.std.flatten().double(), seen.std((0, 2, 3), correction=0), rtol=1e-6)


def as_floats(part: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return part[0].astype(np.float64) / 255, part[1]


def test_floats_are_the_same_images_in_other_units() -> None:
    made, bytes_ = of_parts("mine", tuple(map(as_floats, PARTS))), of_parts("mine", PARTS)
    assert made.train.images.dtype == torch.float32
    assert made.fingerprint != bytes_.fingerprint
    places, views = torch.arange(5), torch.tensor([0, 3, 7, 9, 17])
    assert torch.allclose(made.augmented(places, views), bytes_.augmented(places, views), atol=1e-5)
    half = tuple((torch.from_numpy(images).bfloat16(), labels) for images, labels in map(as_floats, PARTS))
    assert of_parts("mine", half).train.images.dtype == torch.float32


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((12, 12), (1, 12, 12)),
        ((12, 10, 1), (1, 12, 10)),
        ((1, 12, 10), (1, 12, 10)),
        ((4, 12, 10), (4, 12, 10)),
        ((3, 12, 4), None),
        ((12, 12, 13), (13, 12, 12)),
        ((13, 12, 12), (13, 12, 12)),
        ((4, 4, 1), (1, 4, 4)),
        ((12, 10, 13), None),
        ((100,), None),
        ((1, 3, 12, 12), None),
    ],
)
def test_layouts(shape: tuple[int, ...], wanted: tuple[int, int, int] | None) -> None:
    parts = tuple((pixels(12, seed, shape), numbers(12)) for seed in (0, 1))
    if wanted is None:
        refused(parts, r"train: images must be \[H, W\], .* item 0 has shape " + str(list(shape)).replace("[", r"\["))
        return
    found = of_parts("mine", parts).test.images[:]
    assert found.shape[1:] == wanted
    channels_last = len(shape) == 3 and shape[:2] == wanted[1:]
    by_hand = np.moveaxis(parts[1][0], -1, 1) if channels_last else parts[1][0].reshape(12, *wanted)
    assert np.array_equal(found.numpy(), by_hand)


def test_strings_are_classes_in_sorted_order() -> None:
    names = np.array(["dog", "ant", "cat"])
    made = of_parts("mine", tuple((images, names[labels]) for images, labels in PARTS))
    assert made.class_names == ("ant", "cat", "dog")
    assert made.test.labels.tolist() == [2, 0, 1] * 3
    for form in (lambda labels: names[labels].tolist(), lambda labels: names[labels].astype(object)):
        assert same(made, of_parts("mine", tuple((images, form(labels)) for images, labels in PARTS)))


def test_class_names_come_from_the_dataset() -> None:
    names = ["dog", "ant", "cat", "never seen"]
    made = of_parts("mine", (Subset(plain(TRAIN, names), range(40)), plain(TEST, names)))
    assert (made.class_names, made.classes) == (tuple(names), 4)
    words = tuple(
        Items(len(part[1]), lambda place, part=part: (part[0][place], names[part[1][place]]), names) for part in PARTS
    )
    assert of_parts("mine", words).test.labels.tolist() == TEST[1].tolist(), "in the order of the dataset's classes"


def test_grey_and_coloured_pictures() -> None:
    def part(modes: list[str]) -> Items:
        return Items(
            len(modes), lambda place: (PIL.Image.fromarray(TRAIN[0][place]).convert(modes[place]), place % 2)
        )  # fmt: skip

    grey = of_parts("mine", (part(["L"] * 20), part(["L"] * 4)))
    assert grey.channels == 1
    mixed = of_parts("mine", (part(["L", "RGB"] * 10), part(["L"] * 4)))
    assert mixed.channels == 3
    assert torch.equal(mixed.test.images[:][:, :1], grey.test.images[:])
    palettes = of_parts("mine", (part(["P", "RGBA"] * 10), part(["RGB"] * 4)))
    assert palettes.channels == 3
    refused((part(["L"] * 19 + ["RGB"]), part(["L"] * 4)), r"first images are grey, but item 19 has colours .*convert")
    refused((part(["I"] * 20), part(["I"] * 4)), r"8 bits a channel, but item 0 has mode I: give arrays")


@pytest.mark.parametrize("floats", [False, True])
def test_images_of_several_sizes_need_image_size(floats: bool) -> None:
    def part(count: int) -> Items:
        def make(place: int) -> tuple[Any, int]:
            image = pixels(1, place, (10 + place % 3, 14, 3))[0]
            return (image / 255 if floats else image), place % 2

        return Items(count, make)

    parts = (part(20), part(6))
    refused(parts, r"train: images must have one size, but item 0 has 14 x 10 and item 1 14 x 11: set image_size=")
    made = of_parts("mine", parts, image_size=8)
    assert made.train.images.shape[1:] == (3, 8, 8)
    wanted = np.moveaxis(np.asarray(fitted(PIL.Image.fromarray(pixels(1, 4, (11, 14, 3))[0]), 8)), -1, 0)
    found = made.test.images[4:5][0].numpy()
    if floats:
        assert found.min() >= 0 and found.max() <= 1
        assert np.abs(255 * found - wanted).max() <= 3, "8 bits are rounded between the two directions, too"
    else:
        assert np.array_equal(found, wanted)


def test_resizing_is_that_of_folders(tmp_path: Path) -> None:
    for part, (images, labels) in zip(("train", "test"), PARTS, strict=True):
        for place, (image, label) in enumerate(zip(images, labels, strict=True)):
            (tmp_path / part / str(label)).mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(image).save(tmp_path / part / str(label) / f"{place:02}.png")
    folder = load("folder", data_dir=tmp_path, image_size=8)
    made = of_parts("mine", PARTS, image_size=8)
    order = np.argsort(TEST[1], kind="stable")
    assert torch.equal(made.test.images[torch.from_numpy(order)], folder.test.images[:])


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets, "MEMORY_BYTES", 40 * 420 + 9 * 420 - 1)
    yield


@pytest.mark.parametrize("form", ["NHWC", "NCHW tensors", "dataset of PIL images"])
@pytest.mark.parametrize("settings", [{}, {"train_size": 12}, {"image_size": 6}, {"train_on": "all"}])
@pytest.mark.parametrize("change", [lambda part: part, as_floats], ids=["uint8", "float"])
def test_streamed_data_are_the_same(
    form: str, settings: dict[str, Any], change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "dataset of PIL images" and change is as_floats:
        change = lambda part: part  # noqa: E731
    parts = tuple(FORMS[form](change(part)) for part in PARTS)
    held = of_parts("mine", parts, **settings)
    monkeypatch.setattr(datasets, "MEMORY_BYTES", 0)
    made = of_parts("mine", parts, **settings)
    assert isinstance(held.train.images, torch.Tensor)
    assert all(isinstance(split.images, Streamed) for split in (made.train, made.validation, made.test))
    assert same(held, made)
    assert torch.equal(held.mean, made.mean) and torch.equal(held.std, made.std)
    order = torch.randperm(len(made.train), generator=torch.Generator().manual_seed(0))
    for a, b in zip(held.batches(order, order % 18, 5), made.batches(order, order % 18, 5), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_what_does_not_fit_is_streamed(streamed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(of_parts("mine", PARTS).train.images, Streamed)
    monkeypatch.setattr(datasets, "MEMORY_BYTES", 40 * 420 + 9 * 420)
    assert isinstance(of_parts("mine", PARTS).train.images, torch.Tensor)


def test_streamed_images_are_read_by_other_processes(streamed: None) -> None:
    images, labels = TRAIN
    here, asked = os.getpid(), list[int]()

    def make(place: int) -> tuple[np.ndarray, int]:
        if os.getpid() == here:
            asked.append(place)
        return images[place], int(labels[place])

    made = of_parts("mine", (Items(40, make), TEST))
    assert set(asked) == set(range(sources._PROBED)), "the probes alone"
    asked.clear()
    assert len(list(made.batches(torch.arange(36), torch.zeros(36, dtype=torch.long), 6))) == 6
    assert not asked


def test_a_long_reading_is_told(
    streamed: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sources, "_LONG_S", -1.0)
    with caplog.at_level(logging.WARNING):
        of_parts("mine", PARTS)
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        "data=mine: train: all 40 images are read once",
        "data=mine: test: all 9 images are read once",
    ]


def test_any_change_is_another_fingerprint() -> None:
    def fingerprint(train: tuple[np.ndarray, np.ndarray] = TRAIN, **settings: Any) -> str:
        return of_parts("mine", (train, TEST), **settings).fingerprint

    pixel, label = TRAIN[0].copy(), TRAIN[1].copy()
    pixel[39, 9, 13, 2] ^= 1
    label[0] = 1
    found = {
        fingerprint(),
        fingerprint((pixel, TRAIN[1])),
        fingerprint((TRAIN[0], label)),
        fingerprint(pad=2),
        fingerprint(flip=False),
        fingerprint(train_size=30),
        fingerprint(train_on="all"),
        fingerprint(image_size=10),
    }
    assert len(found) == 8
    assert fingerprint(pad=1, flip=True) == fingerprint() == fingerprint(train_size=36)


def refused(parts: Any, match: str, **settings: Any) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        of_parts("mine", parts, **settings)
    assert str(caught.value).startswith("data=mine: ")
    assert "\n" not in str(caught.value)


WRONG: list[tuple[Any, str]] = [
    (TRAIN, r"train must be a pair of arrays .* but is a numpy.ndarray"),
    ([TRAIN], r"\(train, test\) or \(train, validation, test\) must be returned, but got 1 of them"),
    ({"train": TRAIN, "rest": TEST}, r"a mapping must have train and test, .* but has 'train', 'rest'"),
    (None, r"must be returned, but got a NoneType"),
    ((TRAIN, "test"), r"test must be a pair of arrays .* torch Dataset .* Hugging Face with both, but is a str"),
    ((TRAIN, None), r"test must be a pair of arrays .* but is a NoneType"),
    ((TRAIN, [TEST[0]]), r"test must be .* but is a list of 1"),
    ((TRAIN, {"images": 1}), r"test must be .* but is a dict of 1"),
    ((TRAIN, (pixels(3), numbers(4))), r"test must have a label for each image, but has 3 images, 4 labels"),
    ((TRAIN, (pixels(0), numbers(0))), r"test has no images"),
    ((TRAIN, (pixels(1), numbers(1))), r"test split needs at least 2 images, but has 1"),
    ((TRAIN, (pixels(9).astype(np.int64), numbers(9))), r"uint8, or float in \[0, 1\], but item 0 is int64: .*astype"),
    ((TRAIN, (pixels(9, 0, (10, 12, 3)), numbers(9))), r"all splits must have one image shape.*\(3, 10, 12\)"),
    ((TRAIN, as_floats(TEST)), r"all splits must have one type of pixels, but train has uint8 and test float32"),
    ((TRAIN, (TEST[0] * 1.0, TEST[1])), r"test: float images must be in \[0, 1\], but item 0 .* divide by 255"),
    ((TRAIN, (TEST[0] / 255 - 0.5, TEST[1])), r"test: float images must be in \[0, 1\], but item 0 .* leave Normalize"),
    ((TRAIN, (np.full((9, 10, 14, 3), np.nan), TEST[1])), r"test: images must be numbers, but item 0 has NaN"),
    ((TRAIN, (np.full((9, 10, 14, 3), np.inf), TEST[1])), r"float images must be in \[0, 1\], but item 0 has inf..inf"),
    ((TRAIN, (TEST[0], np.eye(9))), r"labels must be one number .* shape \[9, 9\]: .*argmax"),
    ((TRAIN, (TEST[0], numbers(9) + 0.5)), r"test: labels must be whole numbers or strings, but are float64, such as"),
    ((TRAIN, (TEST[0], [None] * 9)), r"test: labels must be whole numbers or strings, but are object, such as None"),
    ((TRAIN, (TEST[0], numbers(9) - 1)), r"test has label -1, of which train has no image"),
    ((TRAIN, (TEST[0], numbers(9, 4))), r"test has label 3, of which train has no image"),
    ((TRAIN, (TEST[0], numbers(9).astype(str))), r"numbers or strings, but in train and test they differ"),
    (((TRAIN[0], TRAIN[1] - 1), (TEST[0], TEST[1] - 1)), r"labels must be 0..K-1, .* has -1..1"),
    (((TRAIN[0], TRAIN[1] + 1), (TEST[0], TEST[1] + 1)), r"has 1..3 and none of 0: number the classes anew"),
    (((TRAIN[0], TRAIN[1] * 2), (TEST[0], TEST[1] * 2)), r"has 0..4 and none of 1: number the classes anew"),
    (((TRAIN[0], TRAIN[1] * 0), (TEST[0], TEST[1] * 0)), r"at least 2 classes, but train has 0 alone"),
    ((plain(TRAIN, ["a", "b"]), TEST), r"labels must be in 0..1, since there are 2 names .* has 0..2"),
    ((plain(TRAIN, ["a", "b", "c"]), plain(TEST, ["a", "b", "d"])), r"must have the same classes, but differ in c"),
    ((plain(TRAIN, ["a", "b", "c"]), plain(TEST, ["a", "c", "b"])), r"same classes, but differ in the order"),
    ((Items(4, lambda place: TRAIN[0][place]), TEST), r"item must be \(image, label\), but item 0 is a numpy.ndarray"),
    ((Items(4, lambda place: (TRAIN[0][place],) * 3), TEST), r"\(image, label\), but item 0 is a tuple of 3"),
    ((Items(4, lambda place: ("a.png", 1)), TEST), r"PIL image, an array or a tensor, but item 0 is a str"),
    (
        (Items(40, lambda place: (TRAIN[0][place][:, : 14 - (place == 39)], place % 2)), TEST),
        r"train: images must have one size, but item 0 has 14 x 10 and item 39 13 x 10",
    ),
    (
        (Items(40, lambda place: (TRAIN[0][place][..., : 3 - (place == 39)], place % 2)), TEST),
        r"as many channels as item 0, which has 3, but item 39 has 2",
    ),
    (
        (Items(40, lambda place: (TRAIN[0][place] / (255 if place == 39 else 1), place % 2)), TEST),
        r"float images must be in \[0, 1\], but item 0",
    ),
    (
        (Items(40, lambda place: (TRAIN[0][place] / 255 if place == 39 else TRAIN[0][place], place % 2)), TEST),
        r"one layout and type, as item 0 has, but item 39 is float64",
    ),
    (
        (Items(40, lambda place: (np.random.default_rng().random((9, 9)), place % 2)), TEST),
        r"train: item 0 is another image each time, .* leave random transforms out",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "match"), WRONG, ids=range(len(WRONG)))
def test_refusals(parts: Any, match: str) -> None:
    refused(parts, match)


def test_a_stream_without_length_is_refused() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield TRAIN[0][0], 0

    refused((Stream(), TEST), r"train must be a pair of arrays .* but is a \S*Stream")


@pytest.mark.parametrize("place", [0, 39])
@pytest.mark.parametrize("in_memory", [True, False])
def test_an_exception_of_the_users_code_is_told_with_its_place(
    in_memory: bool, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(at: int) -> Any:
        if at == place:
            raise KeyError("lost\nlabel")
        return TRAIN[0][at], at % 3

    monkeypatch.setattr(datasets, "MEMORY_BYTES", 2**30 if in_memory else 0)
    line = make.__code__.co_firstlineno + 2
    refused(
        (Items(40, make), TEST), rf"train: item {place} can't be read: KeyError: .*lost.*test_sources.py, line {line}\)"
    )


@pytest.mark.parametrize("pad", [-1, 10])
def test_pad_out_of_range(pad: int) -> None:
    refused(PARTS, rf"0 <= pad < 10, the side of an image, must hold, but got pad={pad}", pad=pad)


def test_too_few_of_a_class_to_carve() -> None:
    train = TRAIN[0], np.array([0] * 39 + [1])
    refused((train, (TEST[0], numbers(9, 2))), r"2 training images or more, .* but class 1 has 1: .* a validation part")
    assert len(of_parts("mine", (train, train, (TEST[0], numbers(9, 2)))).train) == 40


# Hugging Face's library is optional.


@pytest.fixture
def hf() -> Any:
    return pytest.importorskip("datasets")


def hugging(hf: Any, part: tuple[np.ndarray, np.ndarray], image: Any, label: Any, **more: Any) -> Any:
    images, labels = part
    columns = {"image": list(map(PIL.Image.fromarray, images)), "label": labels.tolist()}
    features = hf.Features({"image": image, "label": label})
    return hf.Dataset.from_dict(columns, features=features)


def test_hugging_face(hf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["dog", "ant", "cat"]
    parts = tuple(hugging(hf, part, hf.Image(), hf.ClassLabel(names=names)) for part in PARTS)
    made = of_parts("mine", parts)
    assert same(made, of_parts("mine", PARTS))
    assert made.class_names == tuple(names)
    renamed = tuple(part.rename_columns({"image": "picture", "label": "kind"}) for part in parts)
    assert same(made, of_parts("mine", renamed)), "found by the types of features"
    assert same(made, of_parts("mine", tuple(part.with_format("numpy") for part in parts)))
    assert same(made, of_parts("mine", tuple(part.with_format("torch") for part in parts)))
    monkeypatch.setattr(datasets, "MEMORY_BYTES", 0)
    streamed = of_parts("mine", parts)
    assert isinstance(streamed.train.images, Streamed)
    assert same(made, streamed)


def test_hugging_face_by_names(hf: Any) -> None:
    made = of_parts("mine", PARTS)
    arrays = hf.Array3D(shape=(10, 14, 3), dtype="uint8")
    columns = [
        {"img": list(images), "fine_label": labels.tolist(), "text": ["x"] * len(labels)} for images, labels in PARTS
    ]
    features = hf.Features({"img": arrays, "fine_label": hf.Value("int64"), "text": hf.Value("string")})
    parts = tuple(hf.Dataset.from_dict(one, features=features) for one in columns)
    assert same(made, of_parts("mine", parts))
    two = tuple(
        part.add_column("coarse_label", [0] * len(part))
        .cast_column("fine_label", hf.ClassLabel(num_classes=3))
        .cast_column("coarse_label", hf.ClassLabel(num_classes=1))
        for part in parts
    )
    assert same(made, of_parts("mine", two))
    refused(
        tuple(part.rename_column("fine_label", "kind") for part in parts),
        r"one column of type ClassLabel, or named label or labels or fine_label, but has img \(Array3D\), kind ",
    )


def test_hugging_face_without_labels(hf: Any) -> None:
    train, test = (hugging(hf, part, hf.Image(), hf.ClassLabel(names=["a", "b", "c"])) for part in PARTS)
    unknown = test.map(lambda row: {"label": -1})
    refused((train, unknown), r"test has label -1, of which train has no image")
    refused((train, test.to_iterable_dataset()), r"test must be .* but is a datasets\S*IterableDataset")
