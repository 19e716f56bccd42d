"""Finished stages by content address: immutable, verified on read, shared by trials and by later runs.

A store is a folder, which several machines may share, or lies behind a URL: then a folder of this machine is its cache,
and may be removed at any time. `local.Folder` and `remote.Files` are one interface over the two: files by names
relative to a root, and folders of files that come and go as one. There is no index and no second state: everything else
can be made again from here.

Whoever writes to a folder shared by several users needs its group: folders and locks made in it get the permissions
that it has itself. `python -m smskd.store` lists, verifies and prunes a store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import platform
import socket
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from smskd.store import entries
from smskd.store.entries import DAMAGE, KEY, MANIFEST, METHODS, WEIGHTS, Entry, Listed, Note, address, canonical
from smskd.store.local import Folder, read_secret
from smskd.store.where import absolute, check_url, folder, is_url

if TYPE_CHECKING:  # a search's driver looks into the store and needs no torch
    from torch import Tensor

    from smskd.store.remote import Files

__all__ = [
    "MANIFEST", "METHODS", "WEIGHTS", "Entry", "Store", "absolute", "address", "canonical", "check_url",
    "folder", "is_url", "open_store", "read_secret",
]  # fmt: skip


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
    from smskd.store.remote import Files  # pyarrow takes a while to import

    return Store(folder(where), secret, Files(str(where)))


class Store:
    """Finished stages; any number of processes, and of machines, may use it at once."""

    def __init__(self, root: Path, secret: bytes | None = None, far: Files | None = None) -> None:
        """Open a store, or make an empty one.

        Args:
            root: folder that it is in; with `far` its cache.
            secret: signs what is written; what isn't signed by it counts as damaged.
            far: files behind the URL that it is at.

        Raises:
            OSError: the folder can't be made or written to.
        """
        self._near, self._secret, self._far = Folder(root), secret, far
        self.root = self._near.root
        self._home: Folder | Files = far or self._near
        self._layers: list[Folder | Files] = [self._near] if far is None else [far, self._near]

    def path(self, key: str) -> Path:
        """Where the entry of this key stands on this machine, if it does.

        Raises:
            ValueError: it is no key, and could name a file outside of the store.
        """
        return self.root / entries.folder(key)

    @contextlib.contextmanager
    def lock(self, key: str, *, wait: bool = True) -> Iterator[None]:
        """Hold this key: others who want it wait. When its holder dies, the system frees it for others on its machine;
        for those on other machines, of a store behind a URL, it expires after remote.CLAIM_S.

        Raises:
            TimeoutError: another holds it, and `wait` is False.
        """
        far = contextlib.nullcontext() if self._far is None else self._far.lock(key, self.root, wait=wait)
        with self._near.lock(key, wait=wait), far:
            yield

    def sweep(self) -> None:
        """Remove what writers that died have left behind; those at work are let be."""
        for name in {path.name.partition(".")[0] for path in (self.root / "partial").iterdir()}:
            with contextlib.suppress(TimeoutError), self._near.lock(name, wait=False):
                pass  # whoever takes it removes them

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
        with contextlib.suppress(OSError):  # a store that is only read from, or another user's lock
            self._home.touch(f"{self._home.USES}/{key}")
        return Entry(key=key, weights=weights, digest=manifest["weights"], facts=manifest["facts"])

    def verified(self, key: str) -> tuple[dict[str, Any], bytes] | None:
        """The manifest and the file of weights of this key, as get() has them.

        What only the far side has is fetched; what only this machine has (whoever put it was killed) is brought there.

        Raises:
            OSError: it can't be read, which says nothing of the entry: too many open files, no permission.
        """
        name, lock = entries.folder(key), f"fetch-{key}"  # not the key's lock, which is held for a whole training
        found = self._verified(self._near, key)
        if self._far is not None and found is not None:
            self._far.put(name, found[1])
        elif self._far is not None:
            with self._near.lock(lock):
                found = self._verified(self._near, key)  # another process may have fetched it
                if found is None and (found := self._verified(self._far, key)) is not None:
                    with contextlib.suppress(FileExistsError):
                        self._near.put(name, found[1], lock=lock)
        return None if found is None else (found[0], found[1][WEIGHTS])

    def intact(self, key: str) -> bool:
        """Whether the entry of this key is as it was written, on the far side if there is one; else it is set aside."""
        if self._far is not None:
            self._near.remove(entries.folder(key))
        return self.verified(key) is not None

    def set_aside(self, key: str) -> None:
        """Make an entry absent that isn't what its key says.

        Raises:
            OSError: it is another user's, who doesn't let us.
        """
        for files in self._layers:
            self._set_aside(files, key)

    def digest(self, key: str) -> str | None:
        """Digest of an entry's weights as its manifest says, for a quick look; nothing is verified. None: no entry."""
        for files in reversed(self._layers):
            with contextlib.suppress(OSError, *DAMAGE):
                return str(self._manifest(files, key)["weights"])
        return None

    def methods(self, key: str) -> dict[str, Tensor]:
        """What the methods of a stage that is there learned for themselves, by name; verified by get() before."""
        import safetensors.torch

        return safetensors.torch.load(self._near.read(f"{entries.folder(key)}/{METHODS}", entries.WEIGHTS_BYTES))

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
            OSError: it can't be written (disk full, no permission); the store is as before. If it was the far side, the
                entry stays in the cache, and is brought there when it is next used.
        """
        import safetensors.torch

        name = entries.folder(key)
        # this process was paused for so long that another took over
        if self._far is not None and self._far.has(name) and (theirs := self.get(key)) is not None:
            return theirs
        contents = {
            file: safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
            for file, tensors in ((METHODS, methods), (WEIGHTS, weights))
        }
        digest, files = entries.pack(key, identity, facts, contents, self._secret)
        try:
            self._near.put(name, files, lock=key)
        except FileExistsError:
            if (theirs := self.get(key)) is not None:
                return theirs
            raise
        if self._far is not None:
            self._far.put(name, files)
        return Entry(key=key, weights=weights, digest=digest, facts=facts)

    def size_bytes(self) -> int:
        """Bytes of all finished stages."""
        return sum(size for size, _ in self._home.list("entries").values())

    def keys(self) -> list[str]:
        """Those of all entries."""
        return [key for key in sorted(self._files()) if self._home.has(entries.folder(key))]

    def own(self, owner: str | Path, keys: Iterable[str]) -> None:
        """Note what a run has in its results: `prune` lets these entries be, and their parents and teachers, as long as
        its folder exists. Of a folder on another machine, or of a URL, nobody can know: these stay until `forget`.
        """
        run = (absolute(str(owner)), os.environ.get("USER") or str(os.getuid()), socket.gethostname())
        note = Note(*run, sorted(set(keys)))
        name = hashlib.sha256(canonical(run).encode()).hexdigest()[:16]
        self._home.write(f"owners/{name}.json", canonical(msgspec.structs.asdict(note)).encode())

    def forget(self, run: str) -> None:
        """Remove what `own` has noted of a run, named as `entries` names it, or by its folder or URL alone.

        Raises:
            ValueError: nothing is noted of it, or a note can't be read.
        """
        notes = list(self._notes())
        found = [name for name, shown, note in notes if run in (shown, note.owner)]
        for name in found:
            self._home.delete(name)
        if not found:
            there = ", ".join(sorted({shown for _, shown, _ in notes})) or "no run"
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
        path = self.root / "tables" / boot.read_text().strip() / address(identity)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def entries(self) -> list[Listed]:
        """All entries, the longest unused first; those that can't be read are left out (`verified` sets them aside)."""
        found: dict[str, Listed] = {}
        comes_of: dict[str, list[str]] = {}  # digests of parent and teachers
        by_digest: dict[str, list[str]] = {}
        used = {name.rpartition("/")[2]: when for name, (_, when) in self._home.list(self._home.USES).items()}
        for key, files in self._files().items():
            with contextlib.suppress(PermissionError, *DAMAGE):  # or pruned by another process meanwhile
                manifest = self._manifest(self._home, key)
                told = manifest["identity"]
                comes_of[key] = [str(told.get("parent")), *map(str, told.get("teachers", ()))]
                methods = "+".join(map(str, told.get("methods", ()))) or "ce"
                size, written = sum(size for size, _ in files.values()), files[MANIFEST][1]
                found[key] = Listed(
                    key=key, network=str(told.get("network")), methods=methods, bytes=size,
                    used=max(written, used.get(key, 0)), needed_by=(),
                )  # fmt: skip
                by_digest.setdefault(manifest["weights"], []).append(key)
        for _, owner, note in self._notes():
            needed, waiting = set(), note.keys
            while waiting:
                if (key := waiting.pop()) in found and key not in needed:
                    needed.add(key)
                    waiting += [k for digest in comes_of[key] for k in by_digest.get(digest, ())]
            for key in needed:
                owners = {*found[key].needed_by, owner}
                found[key] = dataclasses.replace(found[key], needed_by=tuple(sorted(owners)))
        return sorted(found.values(), key=lambda entry: (entry.used, entry.key))

    def prune(self, limit_bytes: int) -> list[Listed]:
        """Remove entries, the longest unused first, until all together take no more than the limit; what was removed.

        Entries that a run needs stay, whatever the limit, as do those that somebody is about to write. What was set
        aside as damaged goes first, and tables, whose users keep what they have opened.
        """
        for files in self._layers:
            files.clear()
        listed = self.entries()
        total, removed = sum(entry.bytes for entry in listed), []
        for entry in listed:
            if total <= limit_bytes:
                break
            if entry.needed_by:
                continue
            # of another user, it may not be ours to remove
            with contextlib.suppress(TimeoutError, PermissionError), self.lock(entry.key, wait=False):
                for files in self._layers:
                    files.remove(entries.folder(entry.key))
                total -= entry.bytes
                removed.append(entry)
        return removed

    def _verified(self, files: Folder | Files, key: str) -> tuple[dict[str, Any], dict[str, bytes]] | None:
        """Manifest and files of an entry as they lie there; what isn't as it was written is set aside there."""
        name = entries.folder(key)
        if not files.has(name):
            return None
        try:
            return entries.verify(lambda file, most: files.read(f"{name}/{file}", most), key, self._secret)
        except DAMAGE:
            self._set_aside(files, key)
            return None

    def _set_aside(self, files: Folder | Files, key: str) -> None:
        files.move(entries.folder(key), f"aside/{key}.{uuid.uuid4().hex[:8]}")

    def _manifest(self, files: Folder | Files, key: str) -> Any:
        """What an entry's manifest says, unverified."""
        return entries.parse(files.read(f"{entries.folder(key)}/{MANIFEST}", entries.MANIFEST_BYTES))

    def _files(self) -> dict[str, dict[str, tuple[int, float]]]:
        """Files of all entries: key -> name -> bytes, and when it was written."""
        found: dict[str, dict[str, tuple[int, float]]] = {}
        for path, told in self._home.list("entries").items():
            name, _, file = path.rpartition("/")
            key = name.rpartition("/")[2]
            if KEY.fullmatch(key) and name == entries.folder(key):
                found.setdefault(key, {})[file] = told
        return found

    def _notes(self) -> Iterator[tuple[str, str, Note]]:
        """Notes of runs: file, how the run is shown, what is noted. Those of folders that are gone are removed."""
        for name in sorted(name for name in self._home.list("owners") if name.endswith(".json")):
            try:
                note = msgspec.json.decode(self._home.read(name, entries.MANIFEST_BYTES), type=Note)
            except FileNotFoundError:  # another process has removed it
                continue
            except DAMAGE:  # nothing may be pruned that this run could need
                raise ValueError(f"{name} is damaged: remove it, and run the search that it is of again") from None
            here = note.machine == socket.gethostname()
            if here and not is_url(note.owner) and not Path(note.owner).is_dir():
                self._home.delete(name)
            else:
                yield name, note.owner if here else f"{note.user}@{note.machine}:{note.owner}", note
