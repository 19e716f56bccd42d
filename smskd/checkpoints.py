"""A network's weights from a file: its own, or a public checkpoint whose names are other ones. Nothing in it is run.

Checkpoints differ in what is around the weights (an epoch, an optimiser, an average), in what is before their names
(`module.`), and in the names themselves. Layers come in the same order everywhere, so that a known layout is no more
than that order; what is in no known layout is taken in the file's own order, if kinds and shapes agree one by one.
"""

from __future__ import annotations

import pickle
import re
import shlex
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor, nn

from smskd.components import CIFAR

# What files of weights may have: safetensors' header; a checkpoint, in sizes of the network, and beside them: the
# teacher that a distiller keeps with its student, and what the optimiser and the methods remember.
_HEADER_BYTES, _CHECKPOINT_TIMES, _CHECKPOINT_BYTES = 2**22, 8, 2**28
# Keys that weights stand under. Where there are several, the first: averages are what their makers evaluate.
_WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
    *("state_dict", "model", "net", "model_state_dict", "network", "weights"),
)
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "student.", "teacher.")
_ROLES = ("student", "teacher")
_DEPTH = 4  # of wrappers in one another, and of prefixes after one another
_COUNT = "num_batches_tracked"  # of no use but where a batch norm has no momentum; old files lack it
_KINDS = ("weight", "bias", "running_mean", "running_var", _COUNT)


class _Layout(NamedTuple):
    """Names in the order of the layers: the first parts of names, and the parts after it."""

    title: str
    first: str
    inner: str


# mdistiller, ReviewKD and chenyaofo's zoo name theirs as RepDistiller does. A file is of the first that has all its
# words. That our networks keep their layers in this order is all that hangs on them.
_BLOCK = "conv1 bn1 conv2 bn2 conv3 bn3 conv4 bn4 conv5 bn5 downsample shortcut"
_LAYOUTS = (
    _Layout("RepDistiller", "conv1 bn1 layer1 layer2 layer3 fc", _BLOCK),
    _Layout("RepDistiller", "conv1 bn1 layer1 layer2 layer3 layer4 conv2 bn2 linear", _BLOCK),
    _Layout("RepDistiller", "conv1 block1 block2 block3 bn1 fc", "layer bn1 conv1 bn2 conv2 convShortcut"),
    _Layout("RepDistiller", "block0 block1 block2 block3 block4 classifier", ""),
    _Layout("RepDistiller", "conv1 blocks conv2 classifier", "conv"),
    _Layout("weiaicunzai", "conv1 conv2_x conv3_x conv4_x conv5_x fc", "residual_function shortcut"),
    _Layout("torchvision", "conv1 bn1 layer1 layer2 layer3 layer4 fc", _BLOCK),
)
_TAKEN = "its own names, those of RepDistiller, mdistiller, ReviewKD, chenyaofo or weiaicunzai, or others in its order"
# A pickle that names one of these was made to run something: how to load it all the same isn't said.
_HOSTILE = re.compile(r"(os|posix|nt|subprocess|sys|shutil|socket|runpy|importlib|pty|builtins|__builtin__)\.")


class Loaded(NamedTuple):
    """Weights under the network's own names, in its types; and how they were found in the file, for people."""

    weights: dict[str, Tensor]
    read_as: str


class _Source(NamedTuple):
    """Tensors of a file, not yet read: shapes by name, whether their order is that of layers, and how to get one."""

    shapes: Mapping[str, tuple[int, ...]]
    ordered: bool
    get: Callable[[str], Tensor]
    under: str = ""


class _Refused(Exception):
    """What is wrong with a file of weights that could be read so far."""


def read(path: Path, network: nn.Module, *, key: str, name: str) -> Loaded:
    """A network's weights from a file: safetensors, or a checkpoint that torch loads without running code.

    The weights may stand under `state_dict`, `model` and the like, averaged ones before others; their names may begin
    with `module.`, `student.` and the like. Of a file of two networks the one is taken that fits; if both do, the one
    of `key`. Nothing is read into memory that is much larger than the network; of safetensors, nothing before names
    and shapes are right.

    Args:
        key: `teacher` or `student`: what the file is given for.
        name: the network's, such as `cifar/resnet20`.

    Raises:
        ValueError: no such file, it isn't one of the two, it is too large, or it is of another network.
    """
    if not path.is_file():
        raise ValueError(f"{key}={path}: there is no such file")
    wanted = network.state_dict()
    try:
        if path.suffix == ".safetensors":
            return _of_safetensors(path, wanted, key, name)
        return _of_checkpoint(path, wanted, key, name)
    except _Refused as refusal:
        raise ValueError(f"{key}={path}: {refusal}") from None
    except Exception as error:  # a hostile or damaged file raises nearly anything
        said = f"neither safetensors nor a weights-only checkpoint of tensors: {_reason(error)}"
        raise ValueError(f"{key}={path}: {said}") from None


def _of_safetensors(path: Path, wanted: Mapping[str, Tensor], key: str, name: str) -> Loaded:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _HEADER_BYTES:
        raise ValueError(f"a header of at most {_HEADER_BYTES} bytes is expected, but it says {length}")
    with safetensors.safe_open(path, framework="pt") as file:
        shapes = {str(one): tuple(file.get_slice(one).get_shape()) for one in file.keys()}  # noqa: SIM118 (no mapping)
        return _matched(_Source(shapes, False, lambda one: file.get_tensor(one)), wanted, key, name)


def _of_checkpoint(path: Path, wanted: Mapping[str, Tensor], key: str, name: str) -> Loaded:
    most = _CHECKPOINT_TIMES * sum(value.nbytes for value in wanted.values()) + _CHECKPOINT_BYTES
    size = path.stat().st_size
    with path.open("rb") as file:
        packed_too = file.read(4) == b"PK\x03\x04"  # as torch tells
    if packed_too:
        with zipfile.ZipFile(path) as packed:
            size = max(size, sum(entry.file_size for entry in packed.infolist()))
    if size > most:
        raise _Refused(f"a checkpoint of this network of at most {most} bytes is expected, but it has {size}")
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        pickled = re.search(r"GLOBAL ([\w.]{1,100}) ", str(error))
        if pickled is None or _HOSTILE.match(pickled[1]):
            raise
        raise _Refused(_mend(path, pickled[1], key, packed_too)) from None
    inside = _inside(found)
    if inside is None:
        raise _Refused(f"must hold tensors by name, but holds {type(found).__name__}{_keys(found)}")
    found, under = inside
    tensors = {str(one): value for one, value in found.items()}
    shapes = {one: tuple(value.shape) for one, value in tensors.items()}
    return _matched(_Source(shapes, True, tensors.__getitem__, under), wanted, key, name)


def _inside(found: object, under: str = "", depth: int = 0) -> tuple[Mapping[Any, Tensor], str] | None:
    """Tensors by name, and the key that they stand under."""
    if not isinstance(found, Mapping) or not found:
        return None
    if all(isinstance(value, Tensor) for value in found.values()):
        return found, under
    parts = (_inside(found.get(one), one, depth + 1) for one in _WRAPPERS if depth < _DEPTH)
    for part in parts:
        if part is not None:
            return part
    # a distiller's two networks, each under its own key: as names that begin with it
    roles = {role: _inside(found.get(role), under, depth + 1) for role in _ROLES if depth < _DEPTH}
    both = {f"{role}.{one}": value for role, part in roles.items() if part for one, value in part[0].items()}
    return (both, under) if both else None


def _keys(found: object) -> str:
    if not isinstance(found, Mapping) or not found:
        return ""
    return f" with the keys {', '.join(repr(str(one)[:50]) for one in list(found)[:8])}"


def _matched(source: _Source, wanted: Mapping[str, Tensor], key: str, name: str) -> Loaded:
    """The weights that fit, in the most certain way in which any do: by own names, by a layout's, by order."""
    average = f" from its {source.under}" if "ema" in source.under else ""
    candidates = list(_candidates(source.shapes, key))
    own = [(part, _shapes(source, part), prefix) for part, prefix in candidates if _same_names(part, wanted)]
    for part, shapes, prefix in own:
        if not _differing(shapes, wanted):
            return _loaded(source, part, wanted, f"read by its own names{average}{_whose(prefix)}")
    if own:  # names without doubt
        raise _Refused(_differing(own[0][1], wanted))
    differ = ""
    known = [(part, prefix, next((one for one in _LAYOUTS if _is_of(one, part)), None)) for part, prefix in candidates]
    for part, prefix, layout in sorted(known, key=lambda one: one[2] is None):
        if layout is None and not source.ordered:
            continue
        names = list(part) if layout is None else sorted(part, key=_in_order(layout))
        paired, differs = _in_sequence(_shapes(source, {one: part[one] for one in names}), wanted)
        if paired is not None:
            how = "by the order of its shapes"
            if layout is not None and name.startswith(CIFAR):
                how = f"as {layout.title}'s {name.removeprefix(CIFAR)}"
            given = {ours: part[theirs] for ours, theirs in paired.items()}
            return _loaded(source, given, wanted, f"read {how}{average}{_whose(prefix)}")
        differ = differ or differs
    raise _Refused(_other_network(source, candidates, wanted, name, differ))


def _shapes(source: _Source, part: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    return {one: source.shapes[there] for one, there in part.items()}


def _whose(prefix: str) -> str:
    """Of a file of two networks, which."""
    return next((f" of the {one[:-1]} in it" for one in ("student.", "teacher.") if one in prefix), "")


def _candidates(shapes: Mapping[str, tuple[int, ...]], key: str) -> Iterator[tuple[dict[str, str], str]]:
    """Names without what is before them, to the file's names; and what was before. All, then what is under a prefix."""
    prefixes = sorted(_PREFIXES, key=lambda prefix: prefix != f"{key}.")
    level = [({one: one for one in shapes}, "")]
    for _ in range(_DEPTH):
        yield from level
        level = [
            (inside, before + prefix)
            for part, before in level
            for prefix in prefixes
            if (inside := {one[len(prefix) :]: there for one, there in part.items() if one.startswith(prefix)})
        ]


def _same_names(part: Mapping[str, str], wanted: Mapping[str, Tensor]) -> bool:
    return set(part) <= set(wanted) and all(one in part for one in wanted if _kind(one) != _COUNT)


def _differing(shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, Tensor]) -> str:
    """The first that has another shape, in words; "" if none has."""
    for one, value in wanted.items():
        if shapes.get(one, tuple(value.shape)) != tuple(value.shape):
            return f"{one} must have shape {tuple(value.shape)} for this network and data, but has {shapes[one]}"
    return ""


def _kind(name: str) -> str:
    last = name.rpartition(".")[2]
    return last if last in _KINDS else ""


def _is_of(layout: _Layout, names: Mapping[str, str]) -> bool:
    first, inner = layout.first.split(), {*layout.inner.split(), *_KINDS}
    split = [one.split(".") for one in names]
    return all(
        parts[0] in first and all(part in inner or (part.isascii() and part.isdigit()) for part in parts[1:])
        for parts in split
    ) and {first[0], first[-1]} <= {parts[0] for parts in split}


def _in_order(layout: _Layout) -> Callable[[str], tuple[int, ...]]:
    first = {part: rank for rank, part in enumerate(layout.first.split())}
    inner = {part: rank for rank, part in enumerate((*layout.inner.split(), *_KINDS))}

    def key(name: str) -> tuple[int, ...]:
        start, *rest = name.split(".")
        return (first[start], *(inner[part] if part in inner else int(part) for part in rest))

    return key


def _in_sequence(
    shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, Tensor]
) -> tuple[dict[str, str] | None, str]:
    """Ours to theirs, if they are alike one by one; else None, and where they first differ."""
    ours = [one for one in wanted if _kind(one) != _COUNT]
    theirs = [one for one in shapes if _kind(one) != _COUNT]
    for own, other in zip(ours, theirs, strict=False):
        if _kind(own) != _kind(other) or tuple(wanted[own].shape) != shapes[other]:
            is_there = f"{other[:100]} {shapes[other]}"
            return None, f"{is_there} stands where {own} {tuple(wanted[own].shape)} is expected"
    if len(ours) != len(theirs):
        return None, f"{len(theirs)} tensors stand where {len(ours)} are expected"
    paired = dict(zip(ours, theirs, strict=True))
    for own in wanted:
        beside = paired.get(own.removesuffix(_COUNT) + "running_mean")
        if _kind(own) == _COUNT and beside is not None:
            count = beside.removesuffix("running_mean") + _COUNT
            if count in shapes:
                paired[own] = count
    return paired, ""


def _loaded(source: _Source, given: Mapping[str, str], wanted: Mapping[str, Tensor], read_as: str) -> Loaded:
    weights = {
        one: _plain(one, source.get(given[one]), value) if one in given else torch.zeros_like(value, device="cpu")
        for one, value in wanted.items()
    }
    differs = _differing({one: tuple(value.shape) for one, value in weights.items()}, wanted)
    if differs:  # a count of batches, which isn't looked at before
        raise _Refused(differs)
    return Loaded(weights, read_as)


def _plain(name: str, found: Tensor, wanted: Tensor) -> Tensor:
    """In the network's type, which it can't be if it is sparse, quantised, or has whole numbers in place of others."""
    plain = found.layout == torch.strided and found.device.type == "cpu" and not found.is_quantized
    alike = found.is_floating_point() == wanted.is_floating_point() and not found.is_complex()
    if not (plain and (alike or name.endswith(_COUNT))):  # a whole file may have been cast to half precision
        raise _Refused(f"{name} isn't a plain tensor of the network's kind")
    made = found.to(wanted.dtype)
    if not made.isfinite().all():
        raise _Refused(f"{name} holds NaN or infinity")
    return made


def _other_network(
    source: _Source,
    candidates: Sequence[tuple[Mapping[str, str], str]],
    wanted: Mapping[str, Tensor],
    name: str,
    differ: str,
) -> str:
    """What to say of a file that doesn't fit: of names that are nearly the network's, which; else what else differs."""
    nearest = max((part for part, _ in candidates), key=lambda part: len(set(part) & set(wanted)))
    if 2 * len(set(nearest) & set(wanted)) >= len(wanted):
        missing = sorted(one for one in set(wanted) - set(nearest) if _kind(one) != _COUNT)
        extra = sorted(set(nearest) - set(wanted))
        return (
            f"wrong names; missing {len(missing)} ({', '.join(missing[:3]) or '-'}), "
            f"unknown {len(extra)} ({', '.join(one[:100] for one in extra[:3]) or '-'})"
        )
    if not differ:
        some = ", ".join(one[:100] for one in list(source.shapes)[:3])
        differ = f"{some} are names of no known layout, and safetensors keeps no order"
    return f"of another network than {name}: {differ}; {_counts(source, wanted)}; taken are files with {_TAKEN}"


def _counts(source: _Source, wanted: Mapping[str, Tensor]) -> str:
    theirs, ours = ([one for one in names if _kind(one) != _COUNT] for names in (source.shapes, wanted))
    return f"it has {len(theirs)} tensors, the network {len(ours)}"


def _mend(path: Path, pickled: str, key: str, packed: bool) -> str:
    """How to be rid of a pickled object beside the weights."""
    if packed:
        with zipfile.ZipFile(path) as file:
            content = next((file.read(one) for one in file.namelist() if one.endswith("data.pkl")), b"")
    else:
        content = path.read_bytes()
    whole = content[2:3] == b"c" and not content[3:].startswith(b"collections\n")  # begins with a class: a network
    wrapper = next((w for w in _WRAPPERS if b"X" + len(w).to_bytes(4, "little") + w.encode() in content), None)
    inside = ".state_dict()" if whole or wrapper is None else f"[{wrapper!r}]"
    code = f"import torch; torch.save(torch.load({str(path)!r}, 'cpu', weights_only=False){inside}, 'weights.pth')"
    return (
        f"holds a pickled {pickled}, and unpickling can run code, so it isn't read; where you trust the file, keep its "
        f"tensors alone: python -c {shlex.quote(code)}; and give {key}=weights.pth"
    )


def _reason(error: Exception) -> str:
    """An error's cause in one line: of torch's refusals what was met, not how to load it all the same."""
    text = str(error)
    if "weights_only" in text or isinstance(error, pickle.UnpicklingError):
        pickled = re.search(r"GLOBAL ([\w.]{1,100}) ", text)
        if pickled is not None:
            return f"it names {pickled[1]}, which could run anything"
        if "TorchScript" in text:
            return "it is a TorchScript archive; save the network's state_dict() instead"
        return "it holds other things than tensors"
    lines = "".join(one if one.isprintable() else "\n" for one in text[:2000]).split("\n")
    return next((line.strip()[:200] for line in lines if line.strip()), type(error).__name__)
