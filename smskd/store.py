"""Finished stages by content address: immutable, verified on read, shared by trials and by later runs.

An entry is a folder named by the SHA-256 of what its content is a function of; it holds the weights (safetensors), what
the stage's methods learned for themselves (regressors; safetensors), and a manifest. It is written under a temporary
name, synced and renamed, so an entry is whole or absent. There is no index and no second state: everything else can be
made again from here. What is read may have been written by others: only regular files of bounded size are, and with a
secret only what somebody who has it has signed.

`open_store` opens a folder (which several machines may share), or a URL, which smskd.remote knows. Whoever writes to a
folder shared by several users needs its group: folders and locks made in it get the permissions that it has itself.

`python -m smskd.store` lists, verifies and prunes a store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import hmac
import json
import os
import platform
import re
import shutil
import socket
import stat
import sys
import time
import urllib.parse
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
MANIFEST_BYTES, WEIGHTS_BYTES = 16 * 2**20, 4 * 2**30  # larger files are not read
KEY = re.compile(r"[0-9a-f]{64}")
# What reading an entry raises that isn't as it was written.
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, safetensors.SafetensorError)
# Of opening a file of an entry: it is missing, a link, a folder, a socket; or the disk is bad.
_BROKEN = (errno.ENOENT, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.ENXIO, errno.EIO)
_SECRET_BYTES = (32, 4096)


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
    results, directly or as the parent or the teacher of a stage that they have; user@machine: before those of other
    machines.
    """

    key: str
    network: str
    methods: str
    bytes: int
    used: float
    needed_by: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Held:
    """An entry as it lies there: its manifest, bytes of all files, and when it was last used."""

    key: str
    manifest: Mapping[str, Any]
    bytes: int
    used: float


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces: one text for one value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def address(identity: Mapping[str, Any]) -> str:
    """The key of a stage: SHA-256 of everything its result is a function of."""
    return hashlib.sha256(canonical(identity).encode()).hexdigest()


def is_url(where: str | Path) -> bool:
    """Whether this names a store behind a URL, and not a folder."""
    return "://" in str(where)


def check_url(url: str) -> str:
    """The URL, if it can name a place for files.

    Raises:
        ValueError: it can't, or holds a password.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.username is not None or parts.password is not None:
        shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        raise ValueError(
            f"{shown} must be given without user:secret@, since URLs are written to files and shown: credentials come "
            "from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or the machine's role"
        )
    if not parts.netloc or parts.scheme == "file":
        raise ValueError(f"{url} must name a bucket, as in s3://bucket/folder; a folder is given without a scheme")
    return url


def absolute(where: str) -> str:
    """Where a store is, for processes in other folders.

    Raises:
        ValueError: as check_url.
    """
    return check_url(where) if is_url(where) else str(Path(where).absolute())


def folder(where: str | Path) -> Path:
    """Folder of this machine that a store is in, or is read through: then in ~/.cache, or XDG_CACHE_HOME."""
    if not is_url(where):
        return Path(where).absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    cache = base if base.is_absolute() else Path.home() / ".cache"
    return cache / "smskd" / hashlib.sha256(str(where).encode()).hexdigest()[:16]


def open_store(where: str | Path, key_file: str | Path | None = None) -> Store:
    """The store in a folder or behind a URL, an empty one if there is none yet.

    Args:
        key_file: its content signs what is written, and only what it has signed is read.

    Raises:
        ValueError: the URL, or the file of the key, can't be one.
        OSError: it can't be made.
    """
    secret = None if key_file is None else read_secret(Path(key_file))
    if not is_url(where):
        return Store(Path(where), secret)
    from smskd import remote  # pyarrow takes a while to import

    return remote.RemoteStore(str(where), secret)


def read_secret(path: Path) -> bytes:
    """What signs manifests.

    Raises:
        ValueError: no such file, others may read or write it, or it is too short or too long.
    """
    least, most = _SECRET_BYTES
    mend = f"make one: (umask 077; head -c {least} /dev/urandom > {path})"
    try:
        secret = read_file(path, most)
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ValueError(f"store_key={path} can't be read ({error.strerror}); {mend}") from None
    if mode & 0o077:
        raise ValueError(f"store_key={path} must be its owner's alone, but has mode {mode:04o}: chmod 600 {path}")
    if len(secret) < least:
        raise ValueError(f"store_key={path} must have at least {least} bytes, but has {len(secret)}; {mend}")
    return secret


class Store:
    """A folder of finished stages; any number of processes may use it at once."""

    def __init__(self, root: Path, secret: bytes | None = None) -> None:
        """Open a store, or make an empty one.

        Args:
            secret: signs what is written; what isn't signed by it counts as damaged.

        Raises:
            OSError: the folder can't be made or written to.
        """
        self.root, self._secret = root.absolute(), secret
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in ("entries", "locks", "partial", "owners"):
            self._make(self.root / folder)

    def path(self, key: str) -> Path:
        """Where the entry of this key stands, if it exists.

        Raises:
            ValueError: it is no key, and could name a place outside of the store.
        """
        if not KEY.fullmatch(key):
            raise ValueError(f"a key must be 64 hexadecimal digits, but is {key[:100]!r}")
        return self.root / "entries" / key[:2] / key

    @contextlib.contextmanager
    def lock(self, key: str, *, wait: bool = True) -> Iterator[None]:
        """Hold this key: others who want it wait. The system frees it when its holder dies.

        Raises:
            TimeoutError: another holds it, and `wait` is False.
        """
        with self._filelock(key, wait=wait):
            self._remove_partial(key)  # by a holder that died: we hold the lock, so nobody writes them
            yield

    def sweep(self) -> None:
        """Remove what writers that died have left behind; those at work are let be."""
        for key in sorted({entry.name.partition(".")[0] for entry in (self.root / "partial").iterdir()}):
            with contextlib.suppress(TimeoutError), self._filelock(key, wait=False):
                self._remove_partial(key)

    def get(self, key: str, like: Mapping[str, Tensor] | None = None) -> Entry | None:
        """The entry of this key, verified; None if there is none.

        An entry that fails verification is set aside (in `aside/`, for whoever wants to look) and counts as absent. So
        does one whose weights haven't the names, shapes and types of `like`.
        """
        import safetensors.torch

        verified = self.verified(key)
        if verified is None:
            return None
        manifest, content = verified
        weights = safetensors.torch.load(content)
        if like is not None and {n: (t.shape, t.dtype) for n, t in weights.items()} != {
            n: (t.shape, t.dtype) for n, t in like.items()
        }:
            self.set_aside(key)
            return None
        self._touch(key)
        return Entry(key=key, weights=weights, digest=manifest["weights"], facts=manifest["facts"])

    def verified(self, key: str) -> tuple[dict[str, Any], bytes] | None:
        """The manifest and the file of weights of this key, as get() has them.

        Raises:
            OSError: it can't be read, which says nothing of the entry: too many open files, no permission.
        """
        place = self.path(key)
        if not place.is_dir():
            return None
        try:
            return read_entry(place, key, self._secret)
        except OSError as error:
            if error.errno not in _BROKEN:
                raise
        except DAMAGE:
            pass
        Store.set_aside(self, key)
        return None

    def intact(self, key: str) -> bool:
        """Whether the entry of this key is as it was written; else it is set aside."""
        return self.verified(key) is not None

    def set_aside(self, key: str) -> None:
        """Make an entry absent that isn't what its key says.

        Raises:
            OSError: it is another user's, who doesn't let us.
        """
        aside = self.root / "aside"
        self._make(aside)
        with contextlib.suppress(FileNotFoundError):  # another reader was quicker
            self.path(key).rename(aside / f"{key}.{uuid.uuid4().hex[:8]}")

    def digest(self, key: str) -> str | None:
        """Digest of an entry's weights as its manifest says, for a quick look; nothing is verified. None: no entry."""
        try:
            return str(json.loads(read_file(self.path(key) / MANIFEST, MANIFEST_BYTES))["weights"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def methods(self, key: str) -> dict[str, Tensor]:
        """What the methods of a stage that is there learned for themselves, by name; verified by get() before."""
        import safetensors.torch

        return safetensors.torch.load(read_file(self.path(key) / METHODS, WEIGHTS_BYTES))

    def put(
        self,
        key: str,
        identity: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        methods: Mapping[str, Tensor],
    ) -> Entry:
        """Add an entry; the caller holds lock(key). One that is there stays, and is returned in place of this.

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
        told = canonical(manifest).encode()
        manifest["check"] = hashlib.sha256(told).hexdigest()
        if self._secret is not None:
            manifest["signature"] = _signature(self._secret, told)
        temporary = self.root / "partial" / f"{key}.{uuid.uuid4().hex}"
        place = self.path(key)
        self._make(place.parent)
        renamed = False
        try:
            self._make(temporary)
            _sync_folder(place.parent.parent)
            _write_synced(temporary / WEIGHTS, content)
            _write_synced(temporary / METHODS, learned)
            _write_synced(
                temporary / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False).encode()
            )
            _sync_folder(temporary)
            temporary.rename(place)
            renamed = True
            _sync_folder(place.parent)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if renamed:  # but not synced
                shutil.rmtree(place, ignore_errors=True)
            taken = isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST)
            if taken and (theirs := self.get(key)) is not None:
                return theirs
            raise
        return Entry(key=key, weights=weights, digest=digest, facts=facts)

    def size_bytes(self) -> int:
        """Bytes of all finished stages."""
        return sum(file.stat().st_size for file in (self.root / "entries").rglob("*") if file.is_file())

    def keys(self) -> list[str]:
        """Those of all entries."""
        return [place.name for place in sorted((self.root / "entries").glob("*/*")) if KEY.fullmatch(place.name)]

    def own(self, owner: str | Path, keys: Iterable[str]) -> None:
        """Note what a run has in its results: `prune` lets these entries be, and their parents and teachers, as long as
        its folder exists. Of a folder on another machine, or of a URL, nobody can know: these stay until `forget`.
        """
        told = {
            "owner": absolute(str(owner)),
            "user": os.environ.get("USER") or str(os.getuid()),
            "machine": socket.gethostname(),
        }
        name = hashlib.sha256(canonical(told).encode()).hexdigest()[:16]
        self._write_note(f"{name}.json", canonical(told | {"keys": sorted(set(keys))}).encode())

    def forget(self, run: str) -> None:
        """Remove what `own` has noted of a run, named as `entries` names it, or by its folder or URL alone.

        Raises:
            ValueError: nothing is noted of it, or a note can't be read.
        """
        noted = list(self._owners())
        found = [name for name, shown, told in noted if run in (shown, told["owner"])]
        for name in found:
            self._remove_note(name)
        if not found:
            there = ", ".join(sorted({shown for _, shown, _ in noted})) or "no run"
            raise ValueError(f"run={run} has no note in this store; noted are: {there}")

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
        listed: dict[str, Listed] = {}
        by_digest: dict[str, list[str]] = {}
        comes_of: dict[str, list[str]] = {}  # digests of parent and teachers
        for held in self._held():
            with contextlib.suppress(*DAMAGE):
                told, digest = held.manifest["identity"], str(held.manifest["weights"])
                methods = "+".join(told.get("methods") or ()) or "ce"
                comes_of[held.key] = [str(told.get("parent")), *map(str, told.get("teachers") or ())]
                by_digest.setdefault(digest, []).append(held.key)
                listed[held.key] = Listed(
                    key=held.key, network=str(told.get("network")), methods=methods, bytes=held.bytes, used=held.used,
                    needed_by=(),
                )  # fmt: skip
        owners: dict[str, set[str]] = {key: set() for key in listed}
        for _, owner, note in self._owners():
            waiting = [key for key in note["keys"] if key in listed]
            while waiting:
                key = waiting.pop()
                if owner not in owners[key]:
                    owners[key].add(owner)
                    waiting += [k for digest in comes_of[key] for k in by_digest.get(digest, []) if k in listed]
        found = [dataclasses.replace(entry, needed_by=tuple(sorted(owners[entry.key]))) for entry in listed.values()]
        return sorted(found, key=lambda entry: (entry.used, entry.key))

    def prune(self, limit_bytes: int) -> list[Listed]:
        """Remove entries, the longest unused first, until all together take no more than the limit; what was removed.

        Entries that a run needs stay, whatever the limit, as do those that somebody is about to write. What was set
        aside as damaged goes first, and tables, whose users keep what they have opened.
        """
        self._clear()
        entries = self.entries()
        total, removed = sum(entry.bytes for entry in entries), []
        for entry in entries:
            if total <= limit_bytes:
                break
            if entry.needed_by:
                continue
            # of another user, it may not be ours to remove
            with (
                contextlib.suppress(TimeoutError, FileNotFoundError, PermissionError),
                self.lock(entry.key, wait=False),
            ):
                self._remove(entry.key)
                total -= entry.bytes
                removed.append(entry)
        return removed

    def _held(self) -> Iterator[Held]:
        """All entries; those that can't be read are left out, and some of what is told may be wrong."""
        for place in sorted((self.root / "entries").glob("*/*")):
            with contextlib.suppress(OSError, ValueError, RecursionError):  # or pruned by another process meanwhile
                lock = self.root / "locks" / place.name
                written = (place / MANIFEST).stat().st_mtime
                yield Held(
                    key=place.name,
                    manifest=json.loads(read_file(place / MANIFEST, MANIFEST_BYTES)),
                    bytes=sum(file.lstat().st_size for file in place.iterdir()),
                    used=max(written, lock.stat().st_mtime) if lock.exists() else written,
                )

    def _remove(self, key: str) -> None:
        """Remove an entry; the caller holds lock(key)."""
        gone = self.root / "partial" / f"{key}.{uuid.uuid4().hex}"
        self.path(key).rename(gone)  # absent at once, and no half of it is ever seen
        shutil.rmtree(gone, ignore_errors=True)

    def _clear(self) -> None:
        """Remove what nobody needs, whatever the limit."""
        for folder in ("aside", "tables"):
            shutil.rmtree(self.root / folder, ignore_errors=True)

    def _touch(self, key: str) -> None:
        """Note that an entry was used: pruning begins with the oldest. The entry itself is never changed."""
        with contextlib.suppress(OSError):  # a store that is only read from, or another user's lock
            os.utime(self.root / "locks" / key)

    def _owners(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Notes of runs: name, how the run is shown, what is noted. Those of folders that are gone are removed."""
        for name, content in self._notes():
            try:
                told = json.loads(content)
                owner, machine, keys = str(told["owner"]), told.get("machine"), told["keys"]
                if not all(isinstance(key, str) for key in keys):
                    raise TypeError("keys must be text")
            except DAMAGE:  # nothing may be pruned that this run could need
                raise ValueError(
                    f"owners/{name} is damaged: remove it, and run the search that it is of again"
                ) from None
            here = machine in (None, socket.gethostname())
            if here and not is_url(owner) and not Path(owner).is_dir():
                self._remove_note(name)
            else:
                yield name, owner if here else f"{told.get('user')}@{machine}:{owner}", told

    def _notes(self) -> Iterator[tuple[str, bytes]]:
        for place in sorted((self.root / "owners").glob("*.json")):
            with contextlib.suppress(FileNotFoundError):
                yield place.name, read_file(place, MANIFEST_BYTES)

    def _write_note(self, name: str, content: bytes) -> None:
        temporary = self.root / "owners" / f"{name}.{uuid.uuid4().hex}"
        try:
            _write_synced(temporary, content)
            temporary.replace(self.root / "owners" / name)
            _sync_folder(self.root / "owners")
        finally:
            temporary.unlink(missing_ok=True)

    def _remove_note(self, name: str) -> None:
        (self.root / "owners" / name).unlink(missing_ok=True)

    def _filelock(self, name: str, *, wait: bool = True) -> filelock.BaseFileLock:
        mode = stat.S_IMODE(self.root.stat().st_mode) & 0o666 | 0o600
        return filelock.FileLock(self.root / "locks" / name, timeout=-1 if wait else 0, mode=mode)

    def _make(self, folder: Path) -> None:
        """Make a folder, if it isn't there, with the permissions of the store's own: a group may share it."""
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            folder.chmod(stat.S_IMODE(self.root.stat().st_mode))

    def _remove_partial(self, key: str) -> None:
        for left in (self.root / "partial").glob(f"{key}.*"):
            shutil.rmtree(left, ignore_errors=True)


def read_file(path: Path, most: int) -> bytes:
    """A regular file's content.

    Raises:
        OSError: it can't be read.
        ValueError: it is something else (a link, a pipe), or has more than `most` bytes.
    """
    # a pipe doesn't keep us waiting, and a link leads nowhere
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
        told = os.fstat(file.fileno())
        if not stat.S_ISREG(told.st_mode):
            raise ValueError(f"{path} must be a regular file")
        if told.st_size > most:
            raise ValueError(f"{path} must have at most {most} bytes, but has {told.st_size}")
        return file.read(most)


def check_manifest(content: bytes, key: str, secret: bytes | None) -> dict[str, Any]:
    """What a manifest's file says, without checksum and signature.

    Raises:
        any of DAMAGE: it isn't as it was written, is another stage's, or isn't signed by this secret.
    """
    manifest = json.loads(content)
    if not isinstance(manifest, dict):
        raise ValueError(f"{key}: a manifest must hold an object, but holds {type(manifest).__name__}")
    check, signature = manifest.pop("check"), manifest.pop("signature", None)
    told = canonical(manifest).encode()
    if hashlib.sha256(told).hexdigest() != check:
        raise ValueError(f"{key}: the manifest was changed after it was written")
    if secret is not None and not hmac.compare_digest(_signature(secret, told), str(signature)):
        raise ValueError(f"{key}: the manifest must be signed with store_key=, but isn't")
    if manifest["key"] != key or address(manifest["identity"]) != key:
        raise ValueError(f"{key}: the manifest is that of {manifest['key']}")
    if not isinstance(manifest["facts"], dict):
        raise ValueError(f"{key}: the manifest holds no facts")
    return manifest


def read_entry(place: Path, key: str, secret: bytes | None) -> tuple[dict[str, Any], bytes]:
    """An entry's manifest and file of weights, verified.

    Raises:
        OSError: a file can't be read.
        any of DAMAGE: it isn't as it was written, or as check_manifest.
    """
    manifest = check_manifest(read_file(place / MANIFEST, MANIFEST_BYTES), key, secret)
    files = {}
    for name, digest in ((METHODS, manifest["methods"]), (WEIGHTS, manifest["weights"])):
        files[name] = read_file(place / name, WEIGHTS_BYTES)
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise ValueError(f"{place / name} was changed after it was written")
        # its header; the digest holds, so what is wrong here was written so
        safetensors.deserialize(files[name])  # type: ignore[no-untyped-call]
    return manifest, files[WEIGHTS]


def _signature(secret: bytes, told: bytes) -> str:
    return hmac.new(secret, told, "sha256").hexdigest()


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


WHAT = ("list", "size", "verify", "prune", "forget")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What `python -m smskd.store` is asked for."""

    do: str = cli.key("size", f"one of {', '.join(WHAT)}; verify sets damaged entries aside")
    store: str = cli.key("runs/store", "finished stages: a folder, or a URL such as s3://bucket/folder")
    store_key: str | None = cli.key(None, "file with the secret that signs them; what it hasn't signed is damaged")
    run: str | None = cli.key(
        None, "for forget: a run whose stages needn't be kept, as do=list shows it; for one on another machine"
    )
    keep: str | None = cli.key(
        None, "for prune: how much may stay, such as 500MB or 2GB; what a run needs stays in any case"
    )

    def __post_init__(self) -> None:
        names.check("do", self.do, WHAT)
        if is_url(self.store):
            check_url(self.store)
        elif not (Path(self.store) / "entries").is_dir():
            raise ValueError(f"store={self.store} is no store of finished stages: it has no folder entries")
        if (self.do == "prune") != (self.keep is not None):
            raise ValueError("keep= says how much do=prune leaves, such as keep=2GB, and has no use elsewhere")
        if (self.do == "forget") != (self.run is not None):
            raise ValueError("run= says which run's stages do=forget lets go, and has no use elsewhere")
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
        return _do(config, open_store(config.store, config.store_key))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2


def _do(config: Config, store: Store) -> int:
    if config.do == "verify":
        keys = store.keys()
        damaged = [key for key in keys if not store.intact(key)]
        for key in damaged:
            _say(f"damaged, set aside: {key}")
        _say(f"{len(keys) - len(damaged)} of {len(keys)} entries are as they were written")
        return 3 if damaged else 0
    if config.run is not None:
        store.forget(config.run)
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
