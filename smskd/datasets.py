"""The data sets by name, and where their files are looked for. No torch: what is missing is refused before it loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from smskd import code, names
from smskd.components import OBJECT

NAMES = ("digits", "cifar100", "cifar10", "fashion_mnist", "folder")
DATA_DIR = Path("runs/data")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True, kw_only=True)
class BuiltIn:
    """A data set that comes with the packages: nothing to look for.

    train: images to train on. side: height and width, in pixels.
    """

    train: int
    classes: int
    side: int


BUILT_IN: Mapping[str, BuiltIn] = {"digits": BuiltIn(train=1000, classes=10, side=8)}


def check(name: str, *, data_dir: object = None, image_size: object = None) -> None:
    """Refuse a name that isn't known, and settings that have no use with it.

    Raises:
        ValueError: one of them; with the mend.
    """
    if own(name):
        if data_dir is not None:
            raise ValueError(f"data_dir= is for data sets by name; data={name} reads what it says: leave it out")
        return
    names.check("data", name, NAMES)
    if image_size is not None and name != "folder":
        raise ValueError(f"image_size= is for data=folder and data=FILE.py; data={name} has images of a fixed size")
    if data_dir is not None and name in BUILT_IN:
        raise ValueError(f"data={name} comes with scikit-learn and has no files; leave data_dir= out")
    if data_dir is None and name == "folder":
        raise ValueError(
            "data=folder needs data_dir=, a folder with train/CLASS/image files, and test/ or val/ beside it"
        )


def own(name: str) -> bool:
    """Whether the data are a user's own: of a function in a file, or objects."""
    return code.is_file(name) or name.startswith(OBJECT)


def check_train_size(name: str, train_size: int, *, classes: int, count: int) -> None:
    """Refuse a part of the training images that can't be taken.

    Raises:
        ValueError: it is too small or too large.
    """
    if not classes <= train_size <= count:
        raise ValueError(
            f"train_size must be from {classes} (one a class) to {count} for data={name}, but got {train_size}"
        )


def folders(name: str, data_dir: Path | None) -> list[Path]:
    """Folders in which a downloaded data set's files are looked for, in this order."""
    if data_dir is not None:
        return [data_dir]
    return [DATA_DIR, DEBIAN_FASHION_MNIST] if name == "fashion_mnist" else [DATA_DIR]


def downloads(name: str) -> Path | None:
    """The folder that a set is downloaded to; None: it comes with the packages, or stands in a folder of its own."""
    if own(name) or name == "folder" or name in BUILT_IN or (name == "fashion_mnist" and DEBIAN_FASHION_MNIST.is_dir()):
        return None
    return DATA_DIR
