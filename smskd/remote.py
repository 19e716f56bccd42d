"""A store of finished stages behind a URL (S3 and what else pyarrow.fs knows), read through a folder of this machine.

The far side has the layout of a local store: a manifest is written last, so that an entry is whole or absent there too,
and an entry that is there stays: who comes second drops his own. The folder is a cache, and may be removed at any time.

Object storage has no locks, and not all of it writes on a condition. A claim takes their place: an object that says who
wants a key. Who wants one writes a claim, then looks: of two at least one sees the other, and who sees another
withdraws, since he can't know whether that one has looked before. A claim is renewed while its holder lives, and
expires; a holder that was paused for longer may train a stage that another has taken over, which harms nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
from pyarrow import fs

from smskd import store as local
from smskd.store import KEY, MANIFEST, METHODS, WEIGHTS, Entry, Store

if TYPE_CHECKING:
    from torch import Tensor

_LOG = logging.getLogger(__name__)
CLAIM_S = 60.0  # so long after it was last renewed a claim holds
_LEFT_S = 86_400.0  # so long after its last write an entry without a manifest counts as given up


class Files:
    """Whole files behind a URL, by names relative to it."""

    def __init__(self, url: str) -> None:
        """Open a URL; nothing is looked up or written.

        Raises:
            ValueError: it is no URL of a place for files.
        """
        self.url = local.check_url(url)
        try:
            self._system, root = fs.FileSystem.from_uri(url)
        except (ValueError, NotImplementedError, TypeError, pyarrow.ArrowException) as error:
            raise ValueError(f"{url} can't be opened: {error}") from None
        self._root = root.rstrip("/")

    def read(self, name: str, most: int) -> bytes:
        """A file's content.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it has more than `most` bytes.
        """
        with self._system.open_input_file(self._path(name)) as file:
            if file.size() > most:
                raise ValueError(f"{name} in {self.url} must have at most {most} bytes, but has {file.size()}")
            return bytes(file.read())

    def write(self, name: str, content: bytes) -> None:
        """Write a file, in place of one that there may be."""
        with self._system.open_output_stream(self._path(name)) as file:
            file.write(content)

    def list(self, folder: str) -> dict[str, tuple[int, float]]:
        """Files in a folder and those below it: name -> bytes, and when it was written by the server's clock."""
        selector = fs.FileSelector(self._path(folder), recursive=True, allow_not_found=True)
        start = len(self._root) + 1
        return {
            info.path[start:]: (info.size, info.mtime_ns / 1e9)
            for info in self._system.get_file_info(selector)
            if info.type == fs.FileType.File
        }

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return bool(self._system.get_file_info(self._path(name)).type == fs.FileType.File)

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._system.delete_file(self._path(name))

    def move(self, name: str, to: str) -> None:
        """Rename a file, if it is there."""
        try:
            self._system.move(self._path(name), self._path(to))
        except OSError:  # S3 tells no absence here
            if self.exists(name):
                raise

    def check_writable(self) -> None:
        """Write a file and remove it.

        Raises:
            OSError: that fails.
        """
        name = f".writable.{uuid.uuid4().hex}"
        self.write(name, b"")
        self.delete(name)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def owner_of(folder: Path) -> str:
    """A name for whoever works in this folder, made once: one machine's, and not that of another with its name."""
    place = folder / ".owner"
    if not place.exists():
        fresh = folder / f".owner.{uuid.uuid4().hex}"
        fresh.write_text(uuid.uuid4().hex)
        with contextlib.suppress(FileExistsError):  # another process was quicker
            os.link(fresh, place)
        fresh.unlink()
    return place.read_text()


@contextlib.contextmanager
def claim(files: Files, name: str, owner: str, *, wait: bool = True) -> Iterator[None]:
    """Hold a name among all that use these files.

    owner: whose claim it is. Only one process may act for an owner at a time, by a lock on its own machine: what a
    process of this owner that was killed has left is then no other's claim.

    Raises:
        TimeoutError: another holds it, and `wait` is False.
    """
    mine, pause = f"claims/{name}.{owner}", 0.1
    while True:
        files.write(mine, b"")
        written = {path: when for path, (_, when) in files.list("claims").items() if path.startswith(f"claims/{name}.")}
        now = written.get(mine, 0.0)  # the server's clock, so that no two clocks are compared
        for path in [path for path, when in written.items() if when < now - CLAIM_S]:
            files.delete(path)
            del written[path]
        if list(written) == [mine]:
            break
        files.delete(mine)
        if not wait:
            raise TimeoutError(f"{name} is claimed by another process in {files.url}")
        _LOG.debug("waiting for %s, which another process has claimed", name)
        time.sleep(random.uniform(0.5, 1.5) * pause)
        pause = min(2.0, 1.5 * pause)
    released = threading.Event()

    def renew() -> None:
        while not released.wait(CLAIM_S / 4):
            with contextlib.suppress(OSError):  # tried again before it expires
                files.write(mine, b"")

    renewing = threading.Thread(target=renew, daemon=True)
    renewing.start()
    try:
        yield
    finally:
        released.set()
        renewing.join()
        with contextlib.suppress(OSError):  # it expires
            files.delete(mine)


class RemoteStore(Store):
    """A store behind a URL; any number of processes and machines may use it at once."""

    def __init__(self, url: str, secret: bytes | None = None) -> None:
        """Open it, with an empty cache if there is none yet.

        Raises:
            ValueError: as Files.
            OSError: the cache can't be made.
        """
        self._files = Files(url)
        super().__init__(local.folder(url), secret)
        self._owner = owner_of(self.root)

    @contextlib.contextmanager
    def lock(self, key: str, *, wait: bool = True) -> Iterator[None]:
        """As in Store, on all machines; one that dies or is cut off frees it after CLAIM_S for others."""
        with super().lock(key, wait=wait), claim(self._files, key, self._owner, wait=wait):
            yield

    def verified(self, key: str) -> tuple[dict[str, Any], bytes] | None:
        """As in Store; it is fetched if this machine has none, and what only this machine has is brought there."""
        found = super().verified(key)
        if found is None:
            return self._fetch(key)
        self._upload(key)  # whoever put it was killed before it was there
        return found

    def intact(self, key: str) -> bool:
        """As in Store, of the far entry."""
        shutil.rmtree(self.path(key), ignore_errors=True)
        return self._fetch(key) is not None

    def digest(self, key: str) -> str | None:
        """As in Store."""
        found = super().digest(key)
        if found is None:
            with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
                return str(json.loads(self._files.read(_place(key, MANIFEST), local.MANIFEST_BYTES))["weights"])
        return found

    def put(
        self,
        key: str,
        identity: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        methods: Mapping[str, Tensor],
    ) -> Entry:
        """As in Store; if it can't be written there, it stays in the cache, and is brought there when next used."""
        if self._files.exists(_place(key, MANIFEST)) and (theirs := self.get(key)) is not None:
            return theirs  # this process was paused for so long that another took over
        entry = super().put(key, identity, weights, facts, methods)
        self._upload(key)
        return entry

    def set_aside(self, key: str) -> None:
        """As in Store, here and there."""
        super().set_aside(key)
        self._far_aside(key)

    def size_bytes(self) -> int:
        """As in Store."""
        return sum(size for size, _ in self._files.list("entries").values())

    def keys(self) -> list[str]:
        """As in Store."""
        found = (path.split("/")[-2] for path in self._files.list("entries") if path.endswith(MANIFEST))
        return sorted(key for key in found if KEY.fullmatch(key))

    def _upload(self, key: str) -> None:
        for name in (WEIGHTS, METHODS, MANIFEST):
            if self._files.exists(_place(key, MANIFEST)):
                return
            self._files.write(_place(key, name), (self.path(key) / name).read_bytes())

    def _fetch(self, key: str) -> tuple[dict[str, Any], bytes] | None:
        """Bring an entry here, verified; None if there is none. What isn't as it was written is set aside there."""
        with self._filelock(f"{key}.fetch"):
            if self.path(key).is_dir():  # another process has fetched it
                return super().verified(key)
            fetched = self.root / "fetched" / key
            shutil.rmtree(fetched, ignore_errors=True)  # by a process that was killed
            try:
                content = self._files.read(_place(key, MANIFEST), local.MANIFEST_BYTES)
            except FileNotFoundError:
                return None
            except ValueError:
                self._far_aside(key)
                return None
            fetched.mkdir(parents=True)
            try:
                local.check_manifest(content, key, self._secret)  # before larger files are read
                for name in (WEIGHTS, METHODS):
                    content_of = self._files.read(_place(key, name), local.WEIGHTS_BYTES)
                    (fetched / name).write_bytes(content_of)
                (fetched / MANIFEST).write_bytes(content)
                found = local.read_entry(fetched, key, self._secret)
            except (FileNotFoundError, *local.DAMAGE):
                self._far_aside(key)
                shutil.rmtree(fetched)
                return None
            self._make(self.path(key).parent)
            fetched.rename(self.path(key))
            return found

    def _far_aside(self, key: str) -> None:
        aside = f"aside/{key}.{uuid.uuid4().hex[:8]}"
        for name in (MANIFEST, WEIGHTS, METHODS):  # absent at once
            self._files.move(_place(key, name), f"{aside}/{name}")

    def _touch(self, key: str) -> None:
        with contextlib.suppress(OSError):
            self._files.write(f"used/{key}", b"")

    def _held(self) -> Iterator[local.Held]:
        used = {path.partition("/")[2]: when for path, (_, when) in self._files.list("used").items()}
        listed = self._files.list("entries")
        for path, (_, written) in sorted(listed.items()):
            folder, _, name = path.rpartition("/")
            if name != MANIFEST:
                continue
            key = folder.rpartition("/")[2]
            with contextlib.suppress(FileNotFoundError, *local.DAMAGE):
                yield local.Held(
                    key=key,
                    manifest=json.loads(self._files.read(path, local.MANIFEST_BYTES)),
                    bytes=sum(listed[f"{folder}/{n}"][0] for n in (WEIGHTS, METHODS, MANIFEST)),
                    used=max(written, used.get(key, 0.0)),
                )

    def _remove(self, key: str) -> None:
        for name in (MANIFEST, WEIGHTS, METHODS):
            self._files.delete(_place(key, name))
        self._files.delete(f"used/{key}")
        with contextlib.suppress(FileNotFoundError):
            super()._remove(key)

    def _clear(self) -> None:
        super()._clear()
        for path in self._files.list("aside"):
            self._files.delete(path)
        listed = self._files.list("entries")
        for path, (_, when) in listed.items():
            if f"{path.rpartition('/')[0]}/{MANIFEST}" not in listed and when < time.time() - _LEFT_S:
                self._files.delete(path)

    def _write_note(self, name: str, content: bytes) -> None:
        self._files.write(f"owners/{name}", content)

    def _notes(self) -> Iterator[tuple[str, bytes]]:
        for path in sorted(self._files.list("owners")):
            with contextlib.suppress(FileNotFoundError):
                yield path.partition("/")[2], self._files.read(path, local.MANIFEST_BYTES)

    def _remove_note(self, name: str) -> None:
        self._files.delete(f"owners/{name}")


def _place(key: str, name: str) -> str:
    return f"entries/{key[:2]}/{key}/{name}"
