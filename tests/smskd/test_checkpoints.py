"""Networks from files: read where they fit, public ones too, refused where they don't, never run."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from smskd import checkpoints, models
from tests.smskd import public_networks


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


IMAGE = (3, 32, 32)


def _built(name: str) -> nn.Module:
    return models.build(f"cifar/{name}", num_classes=100, image=IMAGE).eval()


def _reads(path: Path, public: nn.Module, name: str, says: str, key: str = "teacher") -> None:
    """The file makes our network answer as the public one does."""
    network = _built(name)
    loaded = checkpoints.read(path, network, key=key, name=f"cifar/{name}")
    assert loaded.read_as == says
    network.load_state_dict(loaded.weights)
    images = torch.randn(2, *IMAGE)
    with torch.no_grad():
        wanted, found = public(images), network(images).logits
    assert (wanted[0] - wanted[1]).abs().max() > 0.01
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("whose", public_networks.NETWORKS)
def test_public_layouts(tmp_path: Path, whose: str) -> None:
    public, name = public_networks.build(whose), whose.rpartition(" ")[2]
    weights = public.state_dict()
    torch.save({"epoch": 240, "model": weights, "accuracy": torch.tensor(0.7)}, tmp_path / "t.pth")
    _reads(tmp_path / "t.pth", public, name, f"read as {whose}")
    safetensors.torch.save_file(weights, tmp_path / "t.safetensors")  # which sorts the names
    _reads(tmp_path / "t.safetensors", public, name, f"read as {whose}")


@pytest.mark.parametrize("wrapper", [None, *checkpoints._WRAPPERS])
@pytest.mark.parametrize("legacy", [False, True])
def test_wrappers_of_a_public_layout(tmp_path: Path, wrapper: str | None, legacy: bool) -> None:
    public = public_networks.build("RepDistiller's resnet8x4")
    weights: dict[str, Any] = {f"module.{name}": value for name, value in public.state_dict().items()}
    content = {"best": 0.7, wrapper: weights, "optimizer": {"state": {}, "param_groups": []}} if wrapper else weights
    torch.save(content, tmp_path / "t.pth", _use_new_zipfile_serialization=not legacy)
    average = f" from its {wrapper}" if wrapper and "ema" in wrapper else ""
    _reads(tmp_path / "t.pth", public, "resnet8x4", f"read as RepDistiller's resnet8x4{average}")


def test_an_average_goes_before_what_was_averaged(tmp_path: Path) -> None:
    network = _network()
    averaged = torch.optim.swa_utils.AveragedModel(network)
    network[0].weight.data += 1
    torch.save({"model": network.state_dict(), "model_ema": averaged.state_dict()}, tmp_path / "t.pt")
    loaded = checkpoints.read(tmp_path / "t.pt", network, key="teacher", name="own")
    assert _same(loaded.weights, averaged.module.state_dict())
    assert loaded.read_as == "read by its own names from its model_ema"


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_of_a_distillers_two_networks_the_one_that_fits(tmp_path: Path, prefix: str) -> None:
    students, teachers = (public_networks.build(f"RepDistiller's {name}") for name in ("resnet8x4", "resnet20"))
    both = {f"{prefix}{part}.{name}": value for part, network in (("student", students), ("teacher", teachers))
            for name, value in network.state_dict().items()}  # fmt: skip
    both[f"{prefix}connectors.0.weight"] = torch.zeros(3)
    torch.save({"epoch": 3, "model": both}, tmp_path / "latest")
    for key in ("teacher", "student"):
        says = "read as RepDistiller's resnet20 of the teacher in it"
        _reads(tmp_path / "latest", teachers, "resnet20", says, key)
        says = "read as RepDistiller's resnet8x4 of the student in it"
        _reads(tmp_path / "latest", students, "resnet8x4", says, key)


@pytest.mark.parametrize("key", ["teacher", "student"])
def test_of_two_networks_that_fit_the_one_that_is_asked_for(tmp_path: Path, key: str) -> None:
    made = {part: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)) for part in ("student", "teacher")}
    nested = {part: one.state_dict() for part, one in made.items()} | {"iteration": 4}
    for content in (nn.ModuleDict(made).state_dict(), nested):
        torch.save(content, tmp_path / "t.pt")
        loaded = checkpoints.read(tmp_path / "t.pt", _network(), key=key, name="own")
        assert _same(loaded.weights, made[key].state_dict())
        assert loaded.read_as == f"read by its own names of the {key} in it"


def test_counts_that_were_cast_with_the_rest(tmp_path: Path) -> None:
    network = _network()
    torch.save({name: value.half() for name, value in network.state_dict().items()}, tmp_path / "t.pt")
    found = read_weights(tmp_path / "t.pt", network)
    assert found["1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_precision_becomes_the_networks(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    network, path = _network(), tmp_path / f"t{suffix}"
    content = {name: v.to(dtype) if v.is_floating_point() else v for name, v in network.state_dict().items()}
    (torch.save if suffix == ".pt" else safetensors.torch.save_file)(content, path)
    found = read_weights(path, network)
    assert all(found[name].dtype == value.dtype for name, value in network.state_dict().items())
    assert all(torch.equal(found[name], value.to(found[name].dtype)) for name, value in content.items())


def test_old_files_lack_the_count_of_batches(tmp_path: Path) -> None:
    public = public_networks.build("RepDistiller's resnet8x4")
    kept = {name: value for name, value in public.state_dict().items() if "num_batches" not in name}
    torch.save(kept, tmp_path / "t.pth")
    _reads(tmp_path / "t.pth", public, "resnet8x4", "read as RepDistiller's resnet8x4")
    network = _network()
    torch.save({n: v for n, v in network.state_dict().items() if "num_batches" not in n}, tmp_path / "own.pth")
    network[1].num_batches_tracked += 5
    assert read_weights(tmp_path / "own.pth", network)["1.num_batches_tracked"] == 0


class _Renamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm, self.head = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)


def test_unknown_names_are_read_by_the_order_of_shapes(tmp_path: Path) -> None:
    given = _Renamed()
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    torch.save({f"model.{name}": value for name, value in given.state_dict().items()}, tmp_path / "t.pt")
    loaded = checkpoints.read(tmp_path / "t.pt", network, key="student", name="nets.py:Net")
    assert loaded.read_as == "read by the order of its shapes"
    assert all(map(torch.equal, loaded.weights.values(), given.state_dict().values()))
    safetensors.torch.save_file(given.state_dict(), tmp_path / "t.safetensors")
    with pytest.raises(ValueError, match=r"head\.bias.* are names of no known layout, and safetensors keeps no order"):
        checkpoints.read(tmp_path / "t.safetensors", network, key="student", name="nets.py:Net")


def _told(tmp_path: Path, weights: dict[str, Tensor], name: str) -> str:
    torch.save({"net": weights}, tmp_path / "t.pth")
    with pytest.raises(ValueError) as caught:
        checkpoints.read(tmp_path / "t.pth", _built(name), key="student", name=f"cifar/{name}")
    message = str(caught.value)
    assert message.isprintable() and "RepDistiller, mdistiller, ReviewKD, chenyaofo or weiaicunzai" in message
    return message.removeprefix(f"student={tmp_path / 't.pth'}: ")


def test_other_networks_are_told_by_what_differs(tmp_path: Path) -> None:
    wide = public_networks.build("RepDistiller's wrn16_2").state_dict()
    biased = {"conv1.weight": wide.pop("conv1.weight"), "conv1.bias": torch.zeros(16), **wide}  # as weiaicunzai's
    says = "of another network than cifar/wrn16_2: conv1.bias (16,) stands where "
    assert _told(tmp_path, biased, "wrn16_2").startswith(says)
    linear = {"features.0.weight": torch.zeros(64, 3, 3, 3), "features.0.bias": torch.zeros(64)}
    linear |= {f"classifier.{k}.weight": torch.zeros(1) for k in (0, 3, 6)}  # as VGGs with three linear layers
    assert "it has 5 tensors, the network 32; taken are files with its own names" in _told(tmp_path, linear, "vgg8")
    deeper = public_networks.build("RepDistiller's resnet20").state_dict()
    assert "layer2.0.conv1.weight (32, 16, 3, 3) stands where" in _told(tmp_path, deeper, "resnet32")
    torch.save({"epoch": 3, "args": "x"}, tmp_path / "t.pth")
    with pytest.raises(ValueError, match="must hold tensors by name, but holds dict with the keys 'epoch', 'args'"):
        read_weights(tmp_path / "t.pth", _network())


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("beside", "named"),
    [(argparse.Namespace(lr=0.1), "argparse.Namespace"), (np.float64(0.7), "numpy._core.multiarray.scalar")],
)
def test_pickled_objects_are_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool, beside: Any, named: str
) -> None:
    network, path = _network(), tmp_path / "a last.pth"
    torch.save({"opt": beside, "model": network.state_dict()}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError) as caught:
        read_weights(path, network)
    message = str(caught.value)
    assert message.isprintable() and f"holds a pickled {named}, " in message and "add_safe_globals" not in message
    code = shlex.split(message.partition("python -c ")[2].partition("; and give ")[0])[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {})  # as `python -c` does, without torch's seconds of import
    assert message.endswith("; and give teacher=weights.pth")
    assert _same(read_weights(tmp_path / "weights.pth", network), network.state_dict())


def test_a_whole_pickled_network_is_told_how_to_be_saved(tmp_path: Path) -> None:
    network = _network()
    network.model = nn.Linear(2, 2)  # a name that weights may stand under
    torch.save(network, tmp_path / "t.pt")
    _refused(tmp_path / "t.pt", r"holds a pickled torch.nn.modules.container.Sequential.*\.state_dict\(\)")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_a_torchscript_archive(tmp_path: Path) -> None:
    torch.jit.script(_network()).save(tmp_path / "t.pt")
    _refused(tmp_path / "t.pt", "a TorchScript archive")
