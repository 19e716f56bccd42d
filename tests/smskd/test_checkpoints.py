"""Teachers from files: read where they fit, refused where they don't, never run."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from smskd import checkpoints


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def read_weights(path: Path, network: nn.Module) -> dict[str, Tensor]:
    return checkpoints.read(path, network, key="teacher", name="own").weights


def _same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return set(found) == set(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_safetensors(tmp_path: Path) -> None:
    network = _network()
    safetensors.torch.save_file(network.state_dict(), tmp_path / "t.safetensors")
    assert _same(read_weights(tmp_path / "t.safetensors", network), network.state_dict())


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "net", "model_state_dict", "ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "student.", "module.teacher.", "_orig_mod.module.", "model.net."])
def test_checkpoint(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    network = _network()
    content: dict[str, Any] = {prefix + name: value for name, value in network.state_dict().items()}
    torch.save({wrapper: content, "epoch": 3} if wrapper else content, tmp_path / "t.pt")
    assert _same(read_weights(tmp_path / "t.pt", network), network.state_dict())


def _refused(path: Path, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        read_weights(path, _network())
    assert str(caught.value).startswith(f"teacher={path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_wrong_shape(tmp_path: Path, suffix: str) -> None:
    content = _network().state_dict() | {"0.weight": torch.zeros(5, 4)}
    path = tmp_path / f"t{suffix}"
    if suffix == ".pt":
        torch.save(content, path)
    else:
        safetensors.torch.save_file(content, path)
    _refused(path, r"0\.weight must have shape \(3, 4\).*\(5, 4\)")


def test_wrong_names(tmp_path: Path) -> None:
    content = dict(_network().state_dict())
    content["odd"] = content.pop("0.bias")
    torch.save(content, tmp_path / "t.pt")
    _refused(tmp_path / "t.pt", r"missing 1 \(0\.bias\), unknown 1 \(odd\)")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(tmp_path: Path, value: float) -> None:
    torch.save(_network().state_dict() | {"0.bias": torch.full((3,), value)}, tmp_path / "t.pt")
    _refused(tmp_path / "t.pt", "NaN or infinity")


class _Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def test_hostile_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    torch.save({"0.weight": _Hostile(f"touch {ran}")}, tmp_path / "t.pt")
    _refused(tmp_path / "t.pt", "neither safetensors nor a weights-only checkpoint")
    assert not ran.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"neither of the two"])
def test_damaged_file(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_bytes(content)
    _refused(path, "neither safetensors")


def test_missing_file(tmp_path: Path) -> None:
    _refused(tmp_path / "t.pt", "no such file")


def test_not_a_mapping(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "t.pt")
    _refused(tmp_path / "t.pt", "must hold tensors by name")


def test_a_header_that_says_more_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    _refused(path, "a header of at most 4194304 bytes is expected, but it says 1099511627776")


def test_tensors_of_another_network_are_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.safetensors"
    safetensors.torch.save_file({"0.weight": torch.zeros(3, 4), "more": torch.zeros(1000, 1000)}, path)
    opened = safetensors.safe_open

    @contextlib.contextmanager
    def names_and_shapes_alone(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with opened(*args, **kwargs) as file:
            yield SimpleNamespace(keys=file.keys, get_slice=file.get_slice)

    monkeypatch.setattr(safetensors, "safe_open", names_and_shapes_alone)
    _refused(path, "of another network than own: 0.weight, more are names of no known layout")


def test_a_checkpoint_that_unpacks_to_more_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("t/data.pkl", bytes(2**25))
    assert path.stat().st_size < 2**16
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(checkpoints, "_CHECKPOINT_BYTES", 2**24)
    _refused(path, "a checkpoint of this network of at most 1677[0-9]+ bytes is expected, but it has 33554432")
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    _refused(path, "neither safetensors nor a weights-only checkpoint")


@pytest.mark.parametrize(
    "value",
    [torch.zeros(3, dtype=torch.complex64), torch.zeros(3, dtype=torch.int64)],
    ids=["complex", "whole"],
)
def test_other_kinds_of_tensors(tmp_path: Path, value: Tensor) -> None:
    torch.save(_network().state_dict() | {"0.bias": value}, tmp_path / "t.pt")
    _refused(tmp_path / "t.pt", r"0\.bias isn't a plain tensor")
