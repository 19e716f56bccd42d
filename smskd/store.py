"""Finished stages by content address: immutable, verified on read, shared by trials and by later runs.

An entry is a folder named by the SHA-256 of what its content is a function of; it holds the weights (safetensors), what
the stage's methods learned for themselves (regressors; safetensors), and a manifest. It is written under a temporary
name, synced and renamed, so an entry is whole or absent. There is no index and no second state: everything else can be
made again from here.

`python -m smskd.store` lists, verifies and prunes a store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import safetensors

from smskd import cli, names

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


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An entry as `Store.entries` tells of it.

    used: when it was last written or read, in seconds since 1970. needed_by: folders of runs that have it in their
    results, directly or as the parent or the teacher of a stage that they have.
    """

    key: str
    network: str
    methods: str
    bytes: int
    used: float
    needed_by: tuple[str, ...]


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
        for folder in ("entries", "locks", "partial", "owners"):
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
        with contextlib.suppress(OSError):  # a store that is only read from
            (self.root / "locks" / key).touch()  # when it was last used: pruning begins with the oldest
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
            _sync_folder(place.parent.parent)
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
        """Bytes of all finished stages."""
        return sum(file.stat().st_size for file in (self.root / "entries").rglob("*") if file.is_file())

    def own(self, owner: Path, keys: Iterable[str]) -> None:
        """Note what a run has in its results: as long as its folder exists, `prune` lets these entries be, and their
        parents and teachers.
        """
        place = self.root / "owners" / f"{hashlib.sha256(str(owner.absolute()).encode()).hexdigest()[:16]}.json"
        temporary = place.with_suffix(f".{uuid.uuid4().hex}")
        try:
            _write_synced(temporary, canonical({"owner": str(owner.absolute()), "keys": sorted(set(keys))}).encode())
            temporary.replace(place)
            _sync_folder(place.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def table(self, identity: Mapping[str, Any]) -> Path | None:
        """A folder for a table that processes of this machine fill and read together; None where that isn't safe.

        It may vanish at any time: what is in it can be computed again. It isn't synced, so that after a power cut it
        could hold anything: it is of this boot of this machine alone. Another process may see writes in another order
        than they were made, but for x86.
        """
        boot = Path("/proc/sys/kernel/random/boot_id")
        if platform.machine() not in ("x86_64", "AMD64") or not boot.is_file():
            return None
        folder = self.root / "tables" / boot.read_text().strip() / address(identity)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def entries(self) -> list[Listed]:
        """All entries, the longest unused first; those that can't be read are left out (`verified` sets them aside)."""
        manifests: dict[str, dict[str, Any]] = {}
        for place in sorted((self.root / "entries").glob("*/*")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                manifest = json.loads((place / MANIFEST).read_bytes())
                manifests[place.name] = {"weights": manifest["weights"], **manifest["identity"]}
        owners: dict[str, set[str]] = {key: set() for key in manifests}
        by_digest: dict[str, list[str]] = {}
        for key, told in manifests.items():
            by_digest.setdefault(told["weights"], []).append(key)
        for owner, keys in self._owners():
            waiting = [key for key in keys if key in manifests]
            while waiting:
                key = waiting.pop()
                if owner in owners[key]:
                    continue
                owners[key].add(owner)
                told = manifests[key]
                for digest in (told.get("parent"), *(told.get("teachers") or ())):
                    waiting += by_digest.get(digest, [])
        found = []
        for key, told in manifests.items():
            with contextlib.suppress(OSError):  # pruned by another process meanwhile
                found.append(
                    Listed(
                        key=key, network=str(told.get("network")),
                        methods="+".join(told.get("methods") or ()) or "ce",
                        bytes=sum(file.stat().st_size for file in self.path(key).iterdir()),
                        used=self._used(key), needed_by=tuple(sorted(owners[key])),
                    )
                )  # fmt: skip
        return sorted(found, key=lambda entry: (entry.used, entry.key))

    def prune(self, limit_bytes: int) -> list[Listed]:
        """Remove entries, the longest unused first, until all together take no more than the limit; what was removed.

        Entries that a run needs stay, whatever the limit, as do those that somebody is about to write. What was set
        aside as damaged goes first, and tables, whose users keep what they have opened.
        """
        for folder in ("aside", "tables"):
            shutil.rmtree(self.root / folder, ignore_errors=True)
        entries = self.entries()
        total, removed = sum(entry.bytes for entry in entries), []
        for entry in entries:
            if total <= limit_bytes:
                break
            if entry.needed_by:
                continue
            lock = filelock.FileLock(self.root / "locks" / entry.key, timeout=0)
            with contextlib.suppress(filelock.Timeout, FileNotFoundError), lock:
                gone = self.root / "partial" / f"{entry.key}.{uuid.uuid4().hex}"
                self.path(entry.key).rename(gone)  # absent at once, and no half of it is ever seen
                shutil.rmtree(gone)
                total -= entry.bytes
                removed.append(entry)
        return removed

    def _used(self, key: str) -> float:
        """When an entry was last read or written; it is never changed itself."""
        lock = self.root / "locks" / key
        written = (self.path(key) / MANIFEST).stat().st_mtime
        return max(written, lock.stat().st_mtime) if lock.exists() else written

    def _owners(self) -> Iterator[tuple[str, list[str]]]:
        """Runs whose folders exist, and the keys of their results; notes of runs that are gone are removed."""
        for place in sorted((self.root / "owners").glob("*.json")):
            try:
                told = json.loads(place.read_bytes())
            except ValueError:  # nothing may be pruned that this run could need
                raise ValueError(
                    f"owners/{place.name} is damaged: remove it, and run the search that it is of again"
                ) from None
            if Path(told["owner"]).is_dir():
                yield told["owner"], told["keys"]
            else:
                place.unlink(missing_ok=True)

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
    for name, found, digest in (
        (WEIGHTS, content, manifest["weights"]),
        (METHODS, (place / METHODS).read_bytes(), manifest["methods"]),
    ):
        if hashlib.sha256(found).hexdigest() != digest:
            raise ValueError(f"{place / name} was changed after it was written")
    if not isinstance(manifest["facts"], dict):
        raise ValueError(f"{place / MANIFEST} holds no facts")
    safetensors.deserialize(content)  # type: ignore[no-untyped-call]  # its header; the digest holds, so what is wrong here was written so
    return manifest, content


def _write_synced(path: Path, content: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # one of a write names no file
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


WHAT = ("list", "size", "verify", "prune")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What `python -m smskd.store` is asked for."""

    do: str = cli.key("size", f"one of {', '.join(WHAT)}; verify sets damaged entries aside")
    store: str = cli.key("runs/store", "folder of finished stages")
    keep: str | None = cli.key(
        None, "for prune: how much may stay, such as 500MB or 2GB; what a run needs stays in any case"
    )

    def __post_init__(self) -> None:
        names.check("do", self.do, WHAT)
        if not (Path(self.store) / "entries").is_dir():
            raise ValueError(f"store={self.store} is no store of finished stages: it has no folder entries")
        if (self.do == "prune") != (self.keep is not None):
            raise ValueError("keep= says how much do=prune leaves, such as keep=2GB, and has no use elsewhere")
        if self.keep is not None:
            self.limit_bytes  # noqa: B018 (raises where it is no size)

    @property
    def limit_bytes(self) -> int:
        """keep=, in bytes."""
        text = str(self.keep).upper()
        number, unit = (text[:-2], _UNITS[text[-2:]]) if text[-2:] in _UNITS else (text, 1)
        try:
            size = float(number) * unit
            if not 0 <= size < float("inf"):
                raise ValueError
        except ValueError:
            raise ValueError(
                f"keep= must be a size in bytes, or with one of {', '.join(_UNITS)}, but got keep={self.keep}"
            ) from None
        return int(size)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code: 0 done, 2 bad input, 3 verify found damage."""
    if any(word in ("--help", "-h", "help") for word in argv):
        _say("Look after a store of finished stages.\n\nkeys and defaults:\n" + "\n".join(cli.describe(Config)))
        return 0
    try:
        config = cli.parse(Config, argv)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    store = Store(Path(config.store))
    if config.do == "verify":
        keys = [place.name for place in sorted((store.root / "entries").glob("*/*"))]
        damaged = [key for key in keys if store.verified(key) is None]
        for key in damaged:
            _say(f"damaged, set aside: {key}")
        _say(f"{len(keys) - len(damaged)} of {len(keys)} entries are as they were written")
        return 3 if damaged else 0
    if config.do == "prune":
        removed = store.prune(config.limit_bytes)
        _say(f"removed {len(removed)} entries, {_size(sum(entry.bytes for entry in removed))}")
    entries = store.entries()
    if config.do == "list":
        for entry in entries:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
            runs = ", ".join(entry.needed_by) or "no run"
            what = f"{entry.network} {entry.methods}  {_size(entry.bytes)}"
            _say(f"{entry.key[:16]}  {what}  used {when}  needed by {runs}")
    needed = sum(entry.bytes for entry in entries if entry.needed_by)
    total = sum(entry.bytes for entry in entries)
    _say(f"{len(entries)} entries, {_size(total)}, of which runs need {_size(needed)}")
    return 0


def _size(count: int) -> str:
    return next(
        (f"{count / size:.3g} {unit}" for unit, size in reversed(_UNITS.items()) if count >= size), f"{count} B"
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
