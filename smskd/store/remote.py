"""Files behind a URL: S3, and what else pyarrow.fs knows.

Of a folder that is put or removed the manifest is written last and removed first: it is whole or absent here too.

Object storage has no locks, and not all of it writes on a condition. A claim takes their place: an object that says who
wants a name. Who wants one writes a claim, then looks: of two at least one sees the other, and who sees another
withdraws, since he can't know whether that one has looked before. A claim is renewed while its holder lives, and
expires; a holder that was paused for longer may train a stage that another has taken over, which harms nothing.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow
from pyarrow import fs

from smskd.store.entries import MANIFEST, METHODS, WEIGHTS
from smskd.store.where import check_url

_LOG = logging.getLogger(__name__)
CLAIM_S = 60.0  # so long after it was last renewed a claim holds
_LEFT_S = 86_400.0  # so long after its last write an entry without a manifest counts as given up


class Files:
    """Files behind a URL, by names relative to it; an entry's folder of files comes and goes as one."""

    USES = "used"  # here a file tells when the entry of its name was last used

    def __init__(self, url: str) -> None:
        """Open a URL; nothing is looked up or written.

        Raises:
            ValueError: no files can be at it.
        """
        self.url = check_url(url)
        try:
            system, root = fs.FileSystem.from_uri(url)
        except (ValueError, NotImplementedError, TypeError, pyarrow.ArrowException) as error:
            raise ValueError(f"{url} can't be opened: {error}") from None
        self._system = fs.SubTreeFileSystem(root.rstrip("/"), system)

    @contextlib.contextmanager
    def lock(self, name: str, folder: Path, *, wait: bool = True) -> Iterator[None]:
        """Hold a name among all that use these files.

        Args:
            folder: one of this machine, in which its holder works. Only one process at a time may hold the name for it,
                by a lock on its own machine: what one that was killed has left is then no other's claim.

        Raises:
            TimeoutError: another holds it, and `wait` is False.
        """
        mine, pause = f"claims/{name}.{owner_of(folder)}", 0.1
        while True:
            self.write(mine, b"")
            claims = {p: when for p, (_, when) in self.list("claims").items() if p.startswith(f"claims/{name}.")}
            now = claims.get(mine, 0.0)  # the server's clock, so that no two clocks are compared
            for path in [path for path, when in claims.items() if when < now - CLAIM_S]:
                self.delete(path)
                del claims[path]
            if list(claims) == [mine]:
                break
            self.delete(mine)
            if not wait:
                raise TimeoutError(f"{name} is claimed by another process in {self.url}")
            _LOG.debug("waiting for %s, which another process has claimed", name)
            time.sleep(random.uniform(0.5, 1.5) * pause)
            pause = min(2.0, 1.5 * pause)
        released = threading.Event()

        def renew() -> None:
            while not released.wait(CLAIM_S / 4):
                with contextlib.suppress(OSError):  # tried again before it expires
                    self.write(mine, b"")

        renewing = threading.Thread(target=renew, daemon=True)
        renewing.start()
        try:
            yield
        finally:
            released.set()
            renewing.join()
            with contextlib.suppress(OSError):  # it expires
                self.delete(mine)

    def check_writable(self) -> None:
        """Write a file and remove it; an OSError says that no files can be written."""
        self.write(".writable", b"")
        self.delete(".writable")

    def has(self, folder: str, name: str = MANIFEST) -> bool:
        """Whether there is such an entry: it is, where its manifest is."""
        return bool(self._system.get_file_info(f"{folder}/{name}").type == fs.FileType.File)

    def read(self, name: str, most: int) -> bytes:
        """A file's content.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it has more than `most` bytes.
            OSError: it can't be read, which says nothing of it.
        """
        with self._system.open_input_file(name) as file:
            if file.size() > most:
                raise ValueError(f"{name} in {self.url} must have at most {most} bytes, but has {file.size()}")
            return bytes(file.read())

    def write(self, name: str, content: bytes) -> None:
        """Write a file, in place of one that there may be."""
        with self._system.open_output_stream(name) as file:
            file.write(content)

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._system.delete_file(name)

    def list(self, folder: str) -> dict[str, tuple[int, float]]:
        """Files in a folder and those below it: name -> bytes, and when it was written by the server's clock."""
        infos = self._system.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
        return {i.path: (i.size, i.mtime_ns / 1e9) for i in infos if i.type == fs.FileType.File}

    def put(self, folder: str, files: Mapping[str, bytes]) -> None:
        """Add the files of an entry, the manifest last; one that is there stays."""
        for name, content in files.items():
            if self.has(folder):
                return
            self.write(f"{folder}/{name}", content)

    def move(self, folder: str, to: str) -> None:
        """Rename the folder of an entry, as far as its files are there."""
        for name in (MANIFEST, WEIGHTS, METHODS):
            try:
                self._system.move(f"{folder}/{name}", f"{to}/{name}")
            except OSError:  # S3 tells no absence here
                if self.has(folder, name):
                    raise

    def remove(self, folder: str) -> None:
        """Remove an entry, if it is there, and the note of its use."""
        for name in (MANIFEST, WEIGHTS, METHODS):
            self.delete(f"{folder}/{name}")
        self.delete(f"{self.USES}/{folder.rpartition('/')[2]}")

    def clear(self) -> None:
        """Remove what nobody needs: what was set aside, and entries that nobody finishes."""
        listed = self.list("entries")
        parts = [name for name in listed if f"{name.rpartition('/')[0]}/{MANIFEST}" not in listed]
        given_up = [name for name in parts if listed[name][1] < time.time() - _LEFT_S]
        for name in (*self.list("aside"), *given_up):
            self.delete(name)

    def touch(self, name: str) -> None:
        """Make a file one that was written now, and empty."""
        self.write(name, b"")


def owner_of(folder: Path) -> str:
    """A name for whoever works in this folder, made once: one machine's, and not that of another with its name."""
    path = folder / ".owner"
    with contextlib.suppress(FileExistsError):
        path.symlink_to(uuid.uuid4().hex)  # to nothing: unlike a file's content, a link's is there as soon as it is
    return path.readlink().name
