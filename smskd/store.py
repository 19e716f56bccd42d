"""Finished stages by content address: immutable, verified on read, shared by trials and by later runs.

An entry is a folder named by the SHA-256 of what its content is a function of; it holds the weights (safetensors), what
the stage's methods learned for themselves (regressors; safetensors), and a manifest. It is written under a temporary
name, synced and renamed, so an entry is whole or absent. There is no index and no second state: everything else can be
made again from here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import safetensors

if TYPE_CHECKING:  # a search's driver looks into the store and needs no torch
    from torch import Tensor

WEIGHTS = "weights.safetensors"
METHODS = "methods.safetensors"
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A finished stage as it stands in the store.

    weights: state of the network. digest: SHA-256 of the weights' file. facts: metrics and costs, as they were put.
    """

    key: str
    weights: Mapping[str, Tensor]
    digest: str
    facts: Mapping[str, Any]


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces: one text for one value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def address(identity: Mapping[str, Any]) -> str:
    """The key of a stage: SHA-256 of everything its result is a function of."""
    return hashlib.sha256(canonical(identity).encode()).hexdigest()


class Store:
    """A folder of finished stages; any number of processes may use it at once."""

    def __init__(self, root: Path) -> None:
        """Open a store, or make an empty one.

        Raises:
            OSError: the folder can't be made or written to.
        """
        self.root = root.absolute()
        for folder in ("entries", "locks", "partial"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """Where the entry of this key stands, if it exists."""
        return self.root / "entries" / key[:2] / key

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold this key: others who want it wait. The system frees it when its holder dies."""
        with filelock.FileLock(self.root / "locks" / key):
            for left in self._partial(key):  # by a holder that died: we hold the lock, so nobody writes them
                shutil.rmtree(left)
            yield

    def sweep(self) -> None:
        """Remove what writers that died have left behind; those at work are let be."""
        for key in sorted({entry.name.partition(".")[0] for entry in (self.root / "partial").iterdir()}):
            lock = filelock.FileLock(self.root / "locks" / key, timeout=0)
            with contextlib.suppress(filelock.Timeout), lock:
                for left in self._partial(key):
                    shutil.rmtree(left)

    def get(self, key: str) -> Entry | None:
        """The entry of this key, verified; None if there is none.

        An entry that fails verification is set aside (in `aside/`, for whoever wants to look) and counts as absent.
        """
        import safetensors.torch

        verified = self.verified(key)
        if verified is None:
            return None
        manifest, content = verified
        weights = safetensors.torch.load(content)
        return Entry(key=key, weights=weights, digest=manifest["weights"], facts=manifest["facts"])

    def verified(self, key: str) -> tuple[dict[str, Any], bytes] | None:
        """The manifest and the file of weights of this key, as get() has them."""
        place = self.path(key)
        if not place.is_dir():
            return None
        try:
            return _read(place, key)
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
            aside = self.root / "aside"
            aside.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another reader was quicker
                place.rename(aside / f"{key}.{uuid.uuid4().hex[:8]}")
            return None

    def digest(self, key: str) -> str | None:
        """Digest of an entry's weights as its manifest says, for a quick look; nothing is verified. None: no entry."""
        try:
            return str(json.loads((self.path(key) / MANIFEST).read_bytes())["weights"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def methods(self, key: str) -> dict[str, Tensor]:
        """What the methods of a stage that is there learned for themselves, by name; verified by get() before."""
        import safetensors.torch

        return safetensors.torch.load((self.path(key) / METHODS).read_bytes())

    def put(
        self,
        key: str,
        identity: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        methods: Mapping[str, Tensor],
    ) -> Entry:
        """Add an entry; the caller holds lock(key), and the entry is absent.

        Raises:
            OSError: it can't be written (disk full, no permission); the store is as before.
        """
        import safetensors.torch

        content, learned = (
            safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
            for tensors in (weights, methods)
        )
        digest = hashlib.sha256(content).hexdigest()
        manifest = {"key": key, "identity": identity, "weights": digest, "facts": facts, "written": time.time()}
        manifest["methods"] = hashlib.sha256(learned).hexdigest()
        manifest["check"] = hashlib.sha256(canonical(manifest).encode()).hexdigest()
        temporary = self.root / "partial" / f"{key}.{uuid.uuid4().hex}"
        place = self.path(key)
        place.parent.mkdir(exist_ok=True)
        temporary.mkdir()
        try:
            _write_synced(temporary / WEIGHTS, content)
            _write_synced(temporary / METHODS, learned)
            _write_synced(
                temporary / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False).encode()
            )
            _sync_folder(temporary)
            temporary.rename(place)
            _sync_folder(place.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(place, ignore_errors=True)  # renamed but not synced: it is ours, since we hold the lock
            raise
        return Entry(key=key, weights=weights, digest=digest, facts=facts)

    def size_bytes(self) -> int:
        """Bytes of all files in the store."""
        return sum(file.stat().st_size for file in self.root.rglob("*") if file.is_file())

    def _partial(self, key: str) -> list[Path]:
        return sorted((self.root / "partial").glob(f"{key}.*"))


def _read(place: Path, key: str) -> tuple[dict[str, Any], bytes]:
    manifest = json.loads((place / MANIFEST).read_bytes())
    if not isinstance(manifest, dict):
        raise ValueError(f"{place / MANIFEST} must hold an object, but holds {type(manifest).__name__}")
    check = manifest.pop("check")
    if hashlib.sha256(canonical(manifest).encode()).hexdigest() != check:
        raise ValueError(f"{place / MANIFEST} was changed after it was written")
    if manifest["key"] != key or address(manifest["identity"]) != key:
        raise ValueError(f"{place} holds the stage {manifest['key']}")
    content = (place / WEIGHTS).read_bytes()
    for name, digest in ((WEIGHTS, manifest["weights"]), (METHODS, manifest["methods"])):
        with (place / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise ValueError(f"{place / name} was changed after it was written")
    if not isinstance(manifest["facts"], dict):
        raise ValueError(f"{place / MANIFEST} holds no facts")
    safetensors.deserialize(content)  # type: ignore[no-untyped-call]  # its header; the digest holds, so what is wrong here was written so
    return manifest, content


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
