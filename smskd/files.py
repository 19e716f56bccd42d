"""Images that aren't held in memory: decoded when they are asked for, by processes of their own.

What a file looks like is decided here for images that are read into memory, too, so that both forms are the same bits.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

_Read = TypeVar("_Read")


class Source(Protocol):
    """Where images are, by place."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number, channels, height and width."""

    @property
    def dtype(self) -> torch.dtype:
        """uint8, or float32 in [0, 1]."""

    def read(self, places: np.ndarray) -> Tensor:
        """The images at these places [B]: [B, C, H, W].

        Raises:
            ValueError: one can't be had; in one line.
        """


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """Images of a source, asked for as tensors. rows: their places in it [N]. device: where images come out."""

    source: Source
    rows: np.ndarray
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As a tensor of all images would have."""
        return len(self), *self.source.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all images, decoded."""
        return math.prod(self.shape) * self.dtype.itemsize

    def take(self, rows: Tensor) -> Streamed:
        """The images at these places."""
        return replace(self, rows=self.rows[rows.cpu().numpy()])

    def joined(self, other: Streamed) -> Streamed:
        """These images, and then those of another."""
        if other.source is self.source:
            return replace(self, rows=np.concatenate([self.rows, other.rows]))
        later = other.rows + self.source.shape[0]
        return replace(self, source=_Joined(self.source, other.source), rows=np.concatenate([self.rows, later]))

    def to(self, device: torch.device) -> Streamed:
        """The same images, handed out on a device."""
        return replace(self, device=device)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Decode a few images in this process.

        Raises:
            ValueError: an image can't be had.
        """
        places = self.rows[rows if isinstance(rows, slice) else rows.cpu().numpy()]
        return self.source.read(places).to(self.device)

    def batches(self, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images of each batch of places [B], decoded ahead.

        Raises:
            ValueError: an image can't be had.
        """
        on_gpu = self.device.type == "cuda"
        for images in ahead(self.source.read, [self.rows[batch.cpu().numpy()] for batch in rows], pin=on_gpu):
            yield images.to(self.device, non_blocking=on_gpu)


def whole(source: Source) -> Streamed:
    """All images of a source."""
    return Streamed(source=source, rows=np.arange(source.shape[0]))


class _Joined:
    """Two sources as one: the places of the second follow those of the first."""

    def __init__(self, first: Source, second: Source) -> None:
        self._first, self._second = first, second
        self.dtype = first.dtype

    @property
    def shape(self) -> tuple[int, int, int, int]:
        count, channels, height, width = self._first.shape
        return count + self._second.shape[0], channels, height, width

    def read(self, places: np.ndarray) -> Tensor:
        count = self._first.shape[0]
        images = torch.empty((len(places), *self.shape[1:]), dtype=self.dtype)
        for source, mine, start in ((self._first, places < count, 0), (self._second, places >= count, count)):
            if mine.any():
                images[torch.from_numpy(mine)] = source.read(places[mine] - start)
        return images


def ahead(read: Callable[[np.ndarray], _Read], batches: Sequence[np.ndarray], *, pin: bool = False) -> Iterator[_Read]:
    """What `read` gives for each batch of places, in order; called ahead, by as many processes as this has threads.

    pin: tensors come in memory that is copied to a GPU without waiting.

    Raises:
        ValueError: `read` does.
    """
    loader = DataLoader(
        _Reader(read),
        batch_size=None,
        sampler=batches,
        num_workers=max(1, torch.get_num_threads()),
        pin_memory=pin,
        # others would ask that the user's code can be imported
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        generator=torch.Generator(),  # or the loader would draw from the global one, which the training draws from
    )
    for found in loader:
        if isinstance(found, str):
            raise ValueError(found)
        yield found


class _Reader(Dataset[object]):
    """What a reading process runs: places of a batch to what is there; an error as text, since tracebacks are long."""

    def __init__(self, read: Callable[[np.ndarray], object]) -> None:
        self._read = read

    def __getitem__(self, places: np.ndarray) -> object:
        try:
            return self._read(places)
        except ValueError as error:
            return str(error)


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """A source of colour images: files. uint8, [B, 3, height, width].

    paths: file names [N], as bytes, so that millions of them are one array. resize: the shorter side is brought to the
    square's side and the middle is cut out; without it all files must have one size.
    """

    paths: np.ndarray
    height: int
    width: int
    resize: bool

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.paths), 3, self.height, self.width

    def read(self, places: np.ndarray) -> Tensor:
        images = np.empty((len(places), self.height, self.width, 3), dtype=np.uint8)
        for row, path in enumerate(map(os.fsdecode, self.paths[places].tolist())):
            try:
                with PIL.Image.open(path) as file:
                    image = file.convert("RGB")
            except (OSError, SyntaxError, ValueError) as error:
                raise ValueError(f"data=folder: {path} can't be read as an image: {error}") from None
            images[row] = np.asarray(fitted(image, self.height) if self.resize else image)
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def digests(self) -> Tensor:
        """SHA-256 of what decides each image, [N, 32], uint8: its file, which is read to the end, and the decoder."""

        def digest(path: bytes) -> bytes:
            with Path(os.fsdecode(path)).open("rb") as file:
                found = hashlib.file_digest(file, "sha256")
            found.update(PIL.__version__.encode())
            return found.digest()

        with ThreadPoolExecutor(max(1, torch.get_num_threads()) * 4) as pool:  # they wait for the disk
            found = b"".join(pool.map(digest, self.paths.tolist()))
        return torch.frombuffer(bytearray(found), dtype=torch.uint8).view(-1, 32)


def fitted(image: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """An image as a square: its shorter side is brought to `side` pixels, and the middle is cut out."""
    return PIL.ImageOps.fit(image, (side, side), PIL.Image.Resampling.BICUBIC)


def size_of(path: bytes) -> tuple[int, int]:
    """Height and width of an image, from its header.

    Raises:
        ValueError: it can't be read as an image.
    """
    try:
        with PIL.Image.open(os.fsdecode(path)) as file:
            return file.height, file.width
    except (OSError, SyntaxError) as error:
        raise ValueError(f"data=folder: {os.fsdecode(path)} can't be read as an image: {error}") from None
