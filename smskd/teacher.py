"""The frozen teacher: its outputs over every view, as a table where memory allows.

A teacher is trained as any network is, by a stage of `ce` (smskd.pipeline); nothing here trains.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smskd.data import Data
from smskd.methods.base import View
from smskd.models import Output

# What a table of teacher outputs may take. In memory it is committed as rows are filled; on disk it is reserved.
TABLE_BYTES = 2**30
# Fewer images than this are computed with others to make up the number: products of small matrices take another path,
# in which sums have another order. With a few more images than that it is seen whether the answers stay the same.
_FEWEST, _MORE = 32, 48
# After so many look-ups that found all they asked for, see whether any row is still to come.
_LOOK_EVERY = 20


class Teacher:
    """A frozen network, asked for the outputs of training images in given views.

    Each (image, view) is computed once and kept, as long as the tables fit their budget: logits and embeddings first,
    then hints; in `folder` once for all processes that give the same one. On a CPU the answer of a chain of `stages`
    for an image doesn't depend on the rest of the batch, bit for bit (small batches take another path and are filled
    up), so training with the tables equals training with the live teacher. Elsewhere (GPUs; wide linear layers or
    grouped convolutions, as torchvision's classifiers have; a processor on which two sizes of batch are seen to give
    two answers) that isn't so, and the teacher runs live. For a hint a chain runs as deep as the hint.
    """

    def __init__(
        self, network: nn.Module, data: Data, *, table_bytes: int = TABLE_BYTES, folder: Path | None = None
    ) -> None:
        """folder: of the tables' files, for this network and these data alone (Store.table); None: in memory."""
        self.network = network.eval().requires_grad_(False)
        self.hint_index: int = network.hint_index  # type: ignore[assignment]
        self._hint_part = _hint_part(network).eval()
        self._views = data.views
        self._ends: _Table | None = None
        self._hints: _Table | None = None
        if data.mean.device.type == "cpu" and hasattr(network, "stages"):
            rows = len(data.train) * data.views
            probe = self._whole(data.normalised(data.train.images[:2]))
            ends, hints = _Table.size(rows, probe[:2]), _Table.size(rows, probe[2:])
            if ends <= table_bytes and not self._same_in_any_batch(data):
                table_bytes = 0
            self._ends = _Table(rows, probe[:2], folder, "ends") if ends <= table_bytes else None
            self._hints = _Table(rows, probe[2:], folder, "hints") if ends + hints <= table_bytes else None

    def _same_in_any_batch(self, data: Data) -> bool:
        images = data.normalised(data.train.images[:_MORE])
        few, more = self._whole(images[:_FEWEST]), self._whole(images)
        return all(torch.equal(a, b[:_FEWEST]) for a, b in zip(few, more, strict=True))

    def __call__(self, index: Tensor, view: Tensor, images: Tensor, reads: frozenset[str]) -> View:
        """Outputs of a batch: places [B], views [B] and the images [B, C, H, W]; `reads` as in smskd.methods.

        An output that `reads` doesn't name may be an empty tensor or missing.
        """
        if reads & {"features", "before_relu"}:
            with torch.no_grad():
                return View(self.network(images, before_relu="before_relu" in reads), self.hint_index)
        rows = index * self._views + view
        logits = embedding = hint = images.new_empty(0)
        if reads - {"hint"}:
            if self._ends is None:
                logits, embedding, hint = self._whole(images)
            else:
                wanted = [name in reads for name in ("logits", "embedding")]
                logits, embedding = self._ends.look_up(rows, images, lambda asked: self._whole(asked)[:2], wanted)
        if "hint" in reads and not len(hint):
            if self._hints is None:
                (hint,) = self._until_hint(images)
            else:
                (hint,) = self._hints.look_up(rows, images, self._until_hint, [True])
        features = (images.new_empty(0),) * self.hint_index + (hint,)
        return View(Output(logits=logits, embedding=embedding, features=features), self.hint_index)

    def _whole(self, images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            output: Output = self.network(images)
        return output.logits, output.embedding, output.features[self.hint_index]

    def _until_hint(self, images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (self._hint_part(images),)

    def part(self, reads: frozenset[str]) -> nn.Module:
        """What has to run for these outputs, if no table has them."""
        return self._hint_part if reads == {"hint"} else self.network


class _Hint(nn.Module):
    """The hint of a network that can't be run in part."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        output: Output = self.network(images)
        return output.features[self.network.hint_index]  # type: ignore[index]


def _hint_part(network: nn.Module) -> nn.Module:
    """What has to run for the hint: images to maps."""
    stages: Any = getattr(network, "stages", None)
    return _Hint(network) if stages is None else nn.Sequential(*stages[: network.hint_index + 1])  # type: ignore[operator]


class _Table:
    """Some outputs of a network, one row for each (image, view), computed when first asked for.

    With a folder its columns are files that processes map into memory and fill together. A row is marked after it is
    written, and whoever writes one writes the same.
    """

    def __init__(self, rows: int, probe: Sequence[Tensor], folder: Path | None, name: str) -> None:
        shapes = [(rows, *t.shape[1:]) for t in probe]
        files = [] if folder is None else [folder / f"{name}-{column}" for column in range(len(probe) + 1)]
        try:
            for file, shape in zip(files, [*shapes, (rows,)], strict=bool(files)):
                _reserve(file, 4 * math.prod(shape))
        except OSError:  # no room: a mapped page that can't be written would end the process
            files = []
        if files:
            *columns, marks = files
            self._columns = [_mapped(file, shape, torch.float32) for file, shape in zip(columns, shapes, strict=True)]
            self._filled = _mapped(marks, (rows,), torch.bool)
        else:
            self._columns = [torch.empty(shape) for shape in shapes]
            self._filled = torch.zeros(rows, dtype=torch.bool)
        self._complete = False
        self._hits = 0

    @staticmethod
    def size(rows: int, probe: Sequence[Tensor]) -> int:
        """Bytes of a table of so many rows; the probe is a batch of each output."""
        return 4 * rows * sum(t[0].numel() for t in probe)

    def look_up(
        self,
        rows: Tensor,
        images: Tensor,
        compute: Callable[[Tensor], tuple[Tensor, ...]],
        wanted: Sequence[bool],
    ) -> tuple[Tensor, ...]:
        """The columns' values in these rows [B], empty where not `wanted`; `compute` gives them all for images that
        were never asked for.
        """
        if not self._complete:
            self._fill(rows, images, compute)
        none = images.new_empty(0)
        return tuple(column[rows] if asked else none for column, asked in zip(self._columns, wanted, strict=True))

    def _fill(self, rows: Tensor, images: Tensor, compute: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        missing = (~self._filled[rows]).nonzero().squeeze(1)
        if not len(missing):
            self._hits += 1
            if self._hits % _LOOK_EVERY == 0:
                self._complete = bool(self._filled.all())
            return
        few = min(_FEWEST, len(rows)) - len(missing)
        asked = missing if few <= 0 else torch.cat([missing, missing[:1].expand(few)])
        for column, values in zip(self._columns, compute(images[asked]), strict=True):
            column[rows[asked]] = values.float()
        self._filled[rows[asked]] = True


def _reserve(file: Path, size: int) -> None:
    """Make a file of zeros, if there is none, whose pages can all be written."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


def _mapped(file: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.from_file(str(file), shared=True, size=math.prod(shape), dtype=dtype).view(*shape)
