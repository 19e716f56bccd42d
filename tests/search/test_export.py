"""The student as torch.export and ONNX: PyTorch's logits from raw pixels, for every network, or nothing at all."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import filelock
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from reports import load
from search import export
from smskd import models, pairs

ROOT = Path(__file__).parents[2]
QUICK = [("cifar/tiny_student", 1, 8), ("cifar/resnet8x4", 3, 32)]
# the student of every pair, and some of torchvision's
STUDENTS = {pair.student for pair in map(pairs.get, pairs.available())}
SLOW = [
    *((one.name, 3, max(32, one.min_size)) for one in sorted(STUDENTS, key=lambda one: one.name)),
    ("torchvision/mobilenet_v3_small", 1, 32), ("torchvision/squeezenet1_1", 3, 48), ("torchvision/googlenet", 3, 32),
    ("torchvision/vit_b_16", 3, 224), ("torchvision/swin_t", 3, 64),
]  # fmt: skip
RUN = {
    "schema": load.SCHEMA, "experiment": {"pair": "tiny", "data": "digits"}, "settings": {}, "limits": {},
    "objectives": ["error", "flops"],
} | {key: {} for key in ("config", "teacher", "student", "dataset", "confirm", "machine")}  # fmt: skip
SEVERAL = RUN | {"experiment": {"pair": ["a", "b"], "data": "digits"}, "pairs": {}}
# what torch and onnxscript say to themselves
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxscript.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
]


def run_folder(
    folder: Path,
    network: str = "cifar/tiny_student",
    channels: int = 1,
    side: int = 8,
    *,
    note: dict[str, Any] | None = None,
) -> Path:
    """A run folder with a student whose every parameter and statistic is drawn."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    built = models.build(network, num_classes=10, image=(channels, side, side))
    state = built.state_dict()
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and not tensor.any():
            tensor.normal_(0, 0.02)  # biases, and the head of torchvision's ViTs
    save_file(state, folder / export.WEIGHTS)
    digest = hashlib.sha256((folder / export.WEIGHTS).read_bytes()).hexdigest()
    told = {
        "network": network, "recipe": "kd>rkd", "seed": 0, "classes": 10, "channels": channels, "height": side,
        "width": side, "mean": [100.0 + c for c in range(channels)], "std": [50.0 + c for c in range(channels)],
        "pixels": "uint8", "data": "cifar10", "sha256": digest, "code": [], "layers": None,
    }  # fmt: skip
    (folder / export.NOTE).write_text(
        json.dumps({k: v for k, v in (told | (note or {})).items() if v is not None or k == "layers"})
    )
    (folder / "run.json").write_text(json.dumps(RUN))
    return folder


def wanted(run: Path, images: torch.Tensor) -> torch.Tensor:
    """PyTorch's logits of raw images."""
    told = json.loads((run / export.NOTE).read_text())
    image = told["channels"], told["height"], told["width"]
    network = models.build(told["network"], num_classes=told["classes"], image=image)
    network.load_state_dict(load_file(run / export.WEIGHTS))
    network.eval()
    mean, std = (torch.tensor(told[key]).view(-1, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        logits: torch.Tensor = network((images - mean) / std).logits
    return logits


def check(run: Path, channels: int, side: int) -> None:
    assert export.main([f"run={run}"]) == 0
    told = json.loads((run / export.NOTE).read_text())["exports"]
    program = torch.export.load(run / export.PT2).module()
    session = onnxruntime.InferenceSession(run / export.ONNX, providers=["CPUExecutionProvider"])
    for size in (1, 5):
        images = torch.randint(0, 256, (size, channels, side, side)).float()
        logits = wanted(run, images)
        allowed = 2e-4 * float(logits.abs().max())
        assert logits.std() > 0 and allowed > 0
        assert torch.allclose(program(images), logits, rtol=0, atol=allowed)
        found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        assert torch.allclose(found, logits, rtol=0, atol=allowed)
    model = onnx.load(run / export.ONNX)
    assert next((o.domain, o.version) for o in model.opset_import) == ("", told[export.ONNX]["opset"])
    (images_in,), (logits_out,) = session.get_inputs(), session.get_outputs()
    assert (images_in.name, images_in.type, images_in.shape) == (
        "images", "tensor(float)", ["batch", channels, side, side],
    )  # fmt: skip
    assert (logits_out.name, logits_out.shape) == ("logits", ["batch", 10])
    for name, entry in told.items():
        assert 0 <= entry["max_difference"] <= entry["tolerance"]
        assert entry["sha256"] == hashlib.sha256((run / name).read_bytes()).hexdigest()
    # nothing of the machine it was made on
    assert str(ROOT).encode() not in (run / export.ONNX).read_bytes()
    with zipfile.ZipFile(run / export.PT2) as file:
        assert not [name for name in file.namelist() if str(ROOT).encode() in file.read(name)]


@pytest.mark.parametrize(("network", "channels", "side"), QUICK)
def test_small_networks(tmp_path: Path, network: str, channels: int, side: int) -> None:
    check(run_folder(tmp_path, network, channels, side), channels, side)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "channels", "side"), SLOW)
def test_other_networks(tmp_path: Path, network: str, channels: int, side: int) -> None:
    check(run_folder(tmp_path, network, channels, side), channels, side)


def refused(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of a folder that is refused, and of which nothing is changed."""
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.name != ".lock"} if run.is_dir() else {}
    assert export.main([f"run={run}"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: ") and told.err.count("\n") == 1
    if run.is_dir():
        assert {path.name: path.read_bytes() for path in run.iterdir() if path.name != ".lock"} == before
    return told.err


@pytest.mark.parametrize(
    ("which", "wrong"), [(export.PT2, "off"), (export.ONNX, "off"), (export.ONNX, "nan"), (export.ONNX, "shape")]
)
def test_a_failed_check_leaves_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, which: str, wrong: str
) -> None:
    reader = "_of_pt2" if which == export.PT2 else "_of_onnx"
    original = getattr(export, reader)

    def loaded(content: bytes) -> Any:
        run = original(content)
        change = {"off": lambda x: x + 0.01, "nan": lambda x: x * float("nan"), "shape": lambda x: x[:, :1]}[wrong]
        return lambda images: change(run(images))

    monkeypatch.setattr(export, reader, loaded)
    run = run_folder(tmp_path)
    assert f"{which} must give PyTorch's logits within" in refused(run, capsys)
    assert not (run / export.PT2).exists() and not (run / export.ONNX).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "cifar/resnet8x5"}, "unknown network 'cifar/resnet8x5'"),
        ({"network": "torchvision/resnet999"}, "unknown network 'resnet999'"),
        ({"network": "torchvision/../tiny"}, "unknown network"),
        ({"network": ["cifar/tiny_student"]}, "network must be a name"),
        ({"network": "nets.py:Student"}, "nets.py: its code runs only if the file is named"),
        ({"network": "cifar/tiny_teacher"}, "doesn't hold the weights of cifar/tiny_teacher"),
        ({"classes": 11}, "doesn't hold the weights of cifar/tiny_student"),
        ({"classes": "10"}, "classes must be a whole number"),
        ({"height": 0}, "height must be a whole number"),
        ({"mean": [1.0, 2.0]}, "mean must have a number for each of 1 channels"),
        ({"mean": [float("nan")]}, "mean must have a number"),
        ({"std": [0.0]}, "std must be above 0"),
        ({"pixels": "int4"}, "pixels must be uint8 or float32"),
        ({"sha256": "0" * 64}, "is damaged: its SHA-256"),
        ({"mean": None, "std": None}, "must say mean, std, but doesn't: an earlier version wrote it"),
    ],
)
def test_a_note_that_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    assert message in refused(run_folder(tmp_path, note=changes), capsys)


def test_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path)
    weights = (run / export.WEIGHTS).read_bytes()
    flipped = bytearray(weights)
    flipped[-1] ^= 1
    for content in (bytes(flipped), weights[:100], b""):
        (run / export.WEIGHTS).write_bytes(content)
        assert "student.safetensors is damaged: its SHA-256 isn't the one in student.json; run the same" in refused(
            run, capsys
        )
    (run / export.WEIGHTS).unlink()
    assert "student.safetensors can't be read" in refused(run, capsys)
    run_folder(tmp_path, note={"sha256": hashlib.sha256(b"pickle").hexdigest()})
    (run / export.WEIGHTS).write_bytes(b"pickle")
    assert "doesn't hold the weights of cifar/tiny_student" in refused(run, capsys)
    for note, message in (("{", "student.json is damaged"), ("[]", "must hold an object")):
        (run / export.NOTE).write_text(note)
        assert message in refused(run, capsys)


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no such folder" in refused(tmp_path / "none", capsys)
    assert "a run folder holds run.json" in refused(tmp_path, capsys)
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    assert "holds no student.json: the search has finished no recipe yet" in refused(tmp_path, capsys)
    run_folder(tmp_path)
    (tmp_path / "run.json").write_text("{")
    assert "run.json is damaged" in refused(tmp_path, capsys)
    (tmp_path / "run.json").write_text(json.dumps(SEVERAL))
    assert "several pairs: give the folder of one" in refused(tmp_path, capsys)
    told = {(): "no such folder", ("run=",): "needs a value", ("folder",): "key=value", ("run=a", "run=b"): "twice"}
    for words, message in told.items():
        assert export.main(words) == 2
        assert message in capsys.readouterr().err


def test_a_search_at_work_is_let_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path)
    with filelock.FileLock(run / ".lock"):
        assert "a search is at work in" in refused(run, capsys)


def test_too_large_for_onnx(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_ONNX_BYTES", 1000)
    assert "must be smaller than 1000 bytes" in refused(run_folder(tmp_path), capsys)
