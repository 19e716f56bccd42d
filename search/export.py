"""`python -m search.export run=FOLDER`: the best student as torch.export and ONNX, each checked before it is kept.

Both take raw pixels, as the data set has them, and normalise these themselves; their batch size is free. Deliberately
not here: half precision, quantisation, weights beside the ONNX file.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smskd import cli, code
from smskd.settings import setting

if TYPE_CHECKING:
    from torch import Tensor, nn

PT2, ONNX, NOTE, WEIGHTS = "student.pt2", "student.onnx", "student.json", "student.safetensors"
OPSET = 20
# Largest difference of a logit from PyTorch's, as a share of the largest logit of the same images.
TOLERANCE = 1e-4
# Batches that are compared: the smallest, and sizes that the export hasn't seen.
_BATCHES = (1, 3, 16)
_ONNX_BYTES = 2**31  # a file of ONNX is one message of protobuf
_AGAIN = "run the same search command again: it writes the file anew"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What `python -m search.export` is asked for."""

    run: str = setting("", "folder of the run; of a search of several pairs, the folder of one")
    code: tuple[str, ...] = setting((), "the file of the student's network, if that is one's own, such as [nets.py]")

    def __post_init__(self) -> None:
        if not self.run or not Path(self.run).is_dir():
            raise ValueError(f"run={self.run}: there is no such folder; give the folder that a search wrote to")


@dataclass(frozen=True, kw_only=True)
class Student:
    """What student.json says of a network: its name in smskd.models, its images (pixels) and how they are normalised.

    code: the files that it is of, each with its digest, as smskd.code.stamps has them. layers: as in
    smskd.components.Network. mean, std: per channel, in the pixels' own units. pixels: `uint8` (0 to 255) or `float32`.
    sha256: of the weights.
    """

    network: str
    classes: int
    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixels: str
    sha256: str
    code: tuple[str, ...]
    layers: tuple[str, ...] | None

    def __post_init__(self) -> None:
        for name in ("classes", "channels", "height", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2**20:
                raise ValueError(f"{name} must be a whole number from 1 to {2**20}, but is {value!r}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels or not all(isinstance(v, float) and math.isfinite(v) for v in values):
                raise ValueError(f"{name} must have a number for each of {self.channels} channels, but is {values!r}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0, but is {self.std!r}")
        if self.pixels not in ("uint8", "float32"):
            raise ValueError(f"pixels must be uint8 or float32, but is {self.pixels!r}")


def export(run: Path) -> dict[str, Any]:
    """Write student.pt2 and student.onnx into a run folder, and what was checked into its student.json.

    Each file is loaded again and compared with PyTorch's logits on random images. Nothing is written unless both agree.

    Returns:
        What student.json has under `exports`: of each file its largest difference and the tolerance, in logits.

    Raises:
        ValueError: the folder is no run, its student is damaged or of an unknown network, or a check failed.
    """
    told, student = _read_note(run)
    network = _load(run, student)
    from reports.results import write_atomically

    model = _raw_pixels(network, student)
    batches = [_images(student, size) for size in _BATCHES]
    program = _exported(model, student)
    pt2 = _pt2(program, told)
    onnx, opset = _onnx(program, told)
    import torch

    checked = {
        PT2: {"torch": str(torch.__version__)} | _compared(PT2, model, _of_pt2(pt2), batches),
        ONNX: {"opset": opset} | _compared(ONNX, model, _of_onnx(onnx), batches),
    }
    for name, content in ((PT2, pt2), (ONNX, onnx)):
        checked[name]["sha256"] = hashlib.sha256(content).hexdigest()
        write_atomically(run / name, content)
    write_atomically(run / NOTE, json.dumps(told | {"exports": checked}, indent=1).encode())
    return checked


def _read_note(run: Path) -> tuple[dict[str, Any], Student]:
    """student.json, as it is and as a Student."""
    from reports import load

    load.info(run)  # says what is wrong with a folder that is no run of one pair
    path = run / NOTE
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{run} holds no {NOTE}: the search has finished no recipe yet; let it go on") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); {_AGAIN}") from None
    if not isinstance(told, dict):
        raise ValueError(f"{path} must hold an object, but holds {type(told).__name__}; {_AGAIN}")
    missing = sorted(Student.__dataclass_fields__.keys() - told.keys())
    if missing:
        raise ValueError(
            f"{path} must say {', '.join(missing)}, but doesn't: an earlier version wrote it. Run the search with "
            f"another out=: what is in the store isn't trained again"
        )
    fields: dict[str, Any] = {name: told[name] for name in Student.__dataclass_fields__}
    fields |= {name: tuple(fields[name]) if isinstance(fields[name], list) else () for name in ("mean", "std", "code")}
    fields["layers"] = tuple(fields["layers"]) if isinstance(fields["layers"], list) else None
    try:
        student = Student(**fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {_AGAIN}") from None
    return told, student


def _load(run: Path, student: Student) -> nn.Module:
    """The network with the student's weights, in eval mode.

    Raises:
        ValueError: the file of weights is missing, damaged, or another network's.
    """
    import safetensors
    import safetensors.torch

    from smskd import components, models

    if not isinstance(student.network, str):
        raise ValueError(f"{run / NOTE}: network must be a name, but is {student.network!r}; {_AGAIN}")
    if code.is_file(student.network):
        code.check_stamps(
            stamp for stamp in student.code if stamp.partition("@")[0] == student.network.partition(":")[0]
        )
    spec = components.network(student.network, layers=student.layers)
    path = run / WEIGHTS
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}; {_AGAIN}") from None
    if hashlib.sha256(content).hexdigest() != student.sha256:
        raise ValueError(f"{path} is damaged: its SHA-256 isn't the one in {NOTE}; {_AGAIN}")
    try:
        image = (student.channels, student.height, student.width)
        network = models.build(spec, num_classes=student.classes, image=image)
        network.load_state_dict(safetensors.torch.load(content))
    except (safetensors.SafetensorError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} doesn't hold the weights of {student.network}: {reason}; {_AGAIN}") from None
    return network.eval()


def _raw_pixels(network: nn.Module, student: Student) -> nn.Module:
    """From raw pixels, float32 [B, C, H, W], to logits [B, classes]."""
    import torch
    from torch import nn

    # hooks that look at feature maps can't be exported, and logits don't need them
    from smskd.models.recorded import Recorded

    plain = network.unhooked() if isinstance(network, Recorded) else None

    class RawPixels(nn.Module):
        mean: Tensor
        std: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = network if plain is None else plain
            for name in ("mean", "std"):
                self.register_buffer(name, torch.tensor(getattr(student, name), dtype=torch.float32).view(-1, 1, 1))

        def forward(self, images: Tensor) -> Tensor:
            normalised = (images - self.mean) / self.std
            if plain is None:
                return self.network(normalised).logits  # type: ignore[no-any-return]
            return plain.logits(normalised)

    return RawPixels().eval()


def _images(student: Student, size: int) -> Tensor:
    """Random images [size, C, H, W] of the data's mean and deviation, in its own units; the same each time."""
    import torch

    generator = torch.Generator().manual_seed(size)
    noise = torch.randn((size, student.channels, student.height, student.width), generator=generator)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (student.mean, student.std))
    images = mean + std * noise
    return images.round().clamp(0, 255) if student.pixels == "uint8" else images


def _exported(model: nn.Module, student: Student) -> Any:
    import torch

    free = {"images": {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(model, (_images(student, 2),), dynamic_shapes=free, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, which are nobody's business
    return program


def _pt2(program: Any, told: Mapping[str, Any]) -> bytes:
    import torch

    file = io.BytesIO()
    torch.export.save(program, file, extra_files={NOTE: json.dumps(told)})
    return file.getvalue()


def _onnx(program: Any, told: Mapping[str, Any]) -> tuple[bytes, int]:
    """The ONNX model and its opset."""
    import onnx
    import torch

    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size >= _ONNX_BYTES:
        raise ValueError(
            f"a student for ONNX must be smaller than {_ONNX_BYTES} bytes, but has {size}: nothing is written"
        )
    made = torch.onnx.export(
        program, dynamo=True, opset_version=OPSET, input_names=["images"], output_names=["logits"], verbose=False
    )
    assert made is not None, "dynamo=True returns a program"
    model = made.model_proto
    axes = {value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in axes:
                dim.dim_param = "batch"  # torch numbers its symbols
    for node in model.graph.node:
        node.ClearField("metadata_props")  # stack traces, with paths of this machine
    facts = {name: told[name] for name in ("network", "recipe", "data", "classes", "mean", "std", "pixels")}
    onnx.helper.set_model_props(model, {name: str(value) for name, value in facts.items()})
    onnx.checker.check_model(model)
    return model.SerializeToString(), next(o.version for o in model.opset_import if o.domain == "")


def _of_pt2(content: bytes) -> Any:
    import torch

    return torch.export.load(io.BytesIO(content)).module()


def _of_onnx(content: bytes) -> Any:
    import onnxruntime  # type: ignore[import-untyped]
    import torch

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _compared(name: str, model: nn.Module, loaded: Any, batches: Sequence[Tensor]) -> dict[str, Any]:
    """The largest difference of a logit, the tolerance, and on how many images.

    Raises:
        ValueError: the difference is above the tolerance, or a logit isn't finite.
    """
    import torch

    with torch.inference_mode():
        wanted = torch.cat([model(images) for images in batches])
        found = torch.cat([loaded(images) for images in batches])
    tolerance = TOLERANCE * float(wanted.abs().max())
    difference = float((found - wanted).abs().max()) if found.shape == wanted.shape else math.inf
    if not difference <= tolerance:  # NaN isn't
        raise ValueError(
            f"{name} must give PyTorch's logits within {tolerance:.3g}, but differs by {difference:.3g} on "
            f"{len(wanted)} random images: nothing is written"
        )
    return {"max_difference": difference, "tolerance": tolerance, "images": len(wanted)}


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code: 0 done, 2 bad input or a failed check."""
    import filelock

    if any(word in ("--help", "-h", "help") for word in argv):
        sys.stdout.write("\n".join([(__doc__ or "").strip(), "", "keys and defaults:", *cli.describe(Config), ""]))
        return 0
    try:
        run = Path(cli.parse(Config, argv).run)
        with filelock.FileLock(run / ".lock", timeout=0):  # a search at work writes student.json, too
            checked = export(run)
    except filelock.Timeout:
        sys.stderr.write(f"error: a search is at work in {run}: wait for it\n")
        return 2
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    for name, told in checked.items():
        what = f"opset {told['opset']}" if "opset" in told else f"torch {told['torch']}"
        sys.stdout.write(
            f"{run / name}: {what}, raw pixels in, logits within {told['max_difference']:.2g} of PyTorch's on "
            f"{told['images']} random images (tolerance {told['tolerance']:.2g})\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
