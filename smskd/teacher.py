"""The frozen teacher: its outputs over every view, as a table where memory allows; and teachers from files.

A teacher is trained as any network is, by a stage of `ce` (smskd.pipeline); nothing here trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from smskd.data import Data
from smskd.methods.base import View
from smskd.models import Output

# What one process may spend on its table of teacher outputs. Memory is committed as rows are filled.
TABLE_BYTES = 2**30


class Teacher:
    """A frozen network, asked for the outputs of training images in given views.

    Each (image, view) is computed once and kept, as long as the table fits its budget: all outputs, or else logits and
    embeddings, or else nothing. On a CPU a network's answer for an image doesn't depend on the rest of the batch, bit
    for bit (batches of one take another path and are avoided), so training with the table equals training with the live
    teacher. Elsewhere that isn't promised, and the teacher runs live.
    """

    def __init__(self, network: nn.Module, data: Data, *, table_bytes: int = TABLE_BYTES) -> None:
        self.network = network.eval().requires_grad_(False)
        self.hint_index: int = network.hint_index  # type: ignore[assignment]
        self._views = data.views
        self._widths: list[tuple[int, ...]] = []
        if data.mean.device.type == "cpu":
            probe = self._compute(data.normalised(data.train.images[:2]))
            whole = [tuple(t.shape[1:]) for t in (probe.logits, probe.embedding, *probe.features)]
            rows = len(data.train) * data.views
            for widths in (whole, whole[:2]):
                if 4 * rows * sum(torch.Size(w).numel() for w in widths) <= table_bytes:
                    self._widths = widths
                    break
            self._table = [torch.empty(rows, *w) for w in self._widths]
            self._filled = torch.zeros(rows, dtype=torch.bool)

    def __call__(self, index: Tensor, view: Tensor, images: Tensor, reads: frozenset[str]) -> View:
        """Outputs of a batch: places [B], views [B] and the images [B, C, H, W]; `reads` as in smskd.methods.

        Feature maps are given if `reads` names them; otherwise they may be missing.
        """
        if not self._widths or ("features" in reads and len(self._widths) == 2):
            return View(self._compute(images), self.hint_index)
        rows = index * self._views + view
        missing = (~self._filled[rows]).nonzero().squeeze(1)
        if len(missing):
            asked = missing if len(missing) > 1 else missing.expand(2)
            output = self._compute(images[asked])
            for column, values in zip(self._table, (output.logits, output.embedding, *output.features), strict=False):
                column[rows[asked]] = values
            self._filled[rows[asked]] = True
        logits, embedding, *features = (column[rows] for column in self._table)
        return View(Output(logits=logits, embedding=embedding, features=tuple(features)), self.hint_index)

    def _compute(self, images: Tensor) -> Output:
        with torch.no_grad():
            output: Output = self.network(images)
        return output


def read_weights(path: Path, network: nn.Module) -> dict[str, Tensor]:
    """A network's weights from a file: safetensors, or a checkpoint that torch loads without running code.

    A checkpoint may hold the weights under `state_dict` or `model`, and names may begin with `module.`.

    Raises:
        ValueError: no such file, it isn't one of the two, or its names or shapes aren't the network's.
    """
    if not path.is_file():
        raise ValueError(f"teacher={path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            found: Any = safetensors.torch.load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or damaged file raises nearly anything
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"teacher={path}: neither safetensors nor a weights-only checkpoint of tensors: {first[:200]}"
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(f"teacher={path}: must hold tensors by name, but holds {type(found).__name__}")
    found = {str(name).removeprefix("module."): value for name, value in found.items()}
    wanted = network.state_dict()
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or extra:
        raise ValueError(
            f"teacher={path}: wrong names; missing {len(missing)} ({', '.join(missing[:3]) or '-'}), "
            f"unknown {len(extra)} ({', '.join(extra[:3]) or '-'})"
        )
    for name, value in wanted.items():
        if found[name].shape != value.shape:
            raise ValueError(
                f"teacher={path}: {name} must have shape {tuple(value.shape)} for this pair and data, but has "
                f"{tuple(found[name].shape)}"
            )
        if value.is_floating_point() and not found[name].isfinite().all():
            raise ValueError(f"teacher={path}: {name} holds NaN or infinity")
    return {name: found[name].to(value.dtype) for name, value in wanted.items()}
