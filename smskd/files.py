"""Images that stay files: opened, resized and cropped when they are asked for, by processes of their own.

What a file looks like is decided here for images that are read into memory, too, so that both forms are the same bits.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """Colour images in files, asked for as uint8 tensors [B, 3, height, width].

    paths: file names [N], as bytes, so that millions of them are one array. resize: the shorter side is brought to the
    square's side and the middle is cut out; without it all files must have one size. device: where images come out.
    """

    paths: np.ndarray
    height: int
    width: int
    resize: bool
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As a tensor of all images would have."""
        return len(self), 3, self.height, self.width

    @property
    def nbytes(self) -> int:
        """Bytes of all images, decoded."""
        return int(np.prod(self.shape))

    def take(self, rows: Tensor) -> ImageFiles:
        """The files at these places."""
        return replace(self, paths=self.paths[rows.cpu().numpy()])

    def to(self, device: torch.device) -> ImageFiles:
        """The same files, handed out on a device."""
        return replace(self, device=device)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Decode a few images in this process.

        Raises:
            ValueError: a file can't be read as an image.
        """
        places = rows if isinstance(rows, slice) else rows.cpu().numpy()
        return self._decoded(self.paths[places]).to(self.device)

    def batches(self, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images of each batch of places [B], decoded ahead: by as many processes as this one has threads.

        Raises:
            ValueError: a file can't be read as an image.
        """
        on_gpu = self.device.type == "cuda"
        loader = DataLoader(
            _Decoder(self),
            batch_size=None,
            sampler=[batch.cpu() for batch in rows],
            num_workers=max(1, torch.get_num_threads()),
            pin_memory=on_gpu,
            generator=torch.Generator(),  # or the loader would draw from the global one, which the training draws from
        )
        for images in loader:
            if isinstance(images, str):
                raise ValueError(images)
            yield images.to(self.device, non_blocking=on_gpu)

    def digests(self) -> Tensor:
        """SHA-256 of each file, [N, 32], uint8: every byte is read, none decoded."""

        def digest(path: bytes) -> bytes:
            with Path(os.fsdecode(path)).open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()

        with ThreadPoolExecutor(max(1, torch.get_num_threads()) * 4) as pool:  # they wait for the disk
            found = b"".join(pool.map(digest, self.paths.tolist()))
        return torch.frombuffer(bytearray(found), dtype=torch.uint8).view(-1, 32)

    def _decoded(self, paths: np.ndarray) -> Tensor:
        images = np.empty((len(paths), self.height, self.width, 3), dtype=np.uint8)
        for row, path in enumerate(map(os.fsdecode, paths.tolist())):
            try:
                with PIL.Image.open(path) as file:
                    image = file.convert("RGB")
            except (OSError, SyntaxError, ValueError) as error:
                raise ValueError(f"data=folder: {path} can't be read as an image: {error}") from None
            if self.resize:
                image = PIL.ImageOps.fit(image, (self.width, self.height), PIL.Image.Resampling.BICUBIC)
            images[row] = np.asarray(image)
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


class _Decoder(Dataset[Tensor | str]):
    """What a decoding process runs: places of a batch to images; an error as text, since tracebacks are long."""

    def __init__(self, files: ImageFiles) -> None:
        self._files = files.to(torch.device("cpu"))

    def __getitem__(self, rows: Tensor) -> Tensor | str:
        try:
            return self._files[rows]
        except ValueError as error:
            return str(error)


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
