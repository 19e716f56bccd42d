"""Files of a store in a folder of this machine, which other users and machines may share.

What is written is synced and renamed, so that it is whole or absent. Only regular files are read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import filelock

# Of opening a file: it is a link, a folder, a socket; or the disk is bad.
_BROKEN = (errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.ENXIO, errno.EIO)
_SECRET_BYTES = (32, 4096)


class Folder:
    """Files below a folder, by names relative to it; folders of files come and go as one."""

    USES = "locks"  # here a file tells when the entry of its name was last used

    def __init__(self, root: Path) -> None:
        """Open a folder of a store, or make one.

        Raises:
            OSError: it can't be made or written to.
        """
        self.root = root.absolute()
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("entries", "locks", "partial", "owners"):
            self._make(self.root / name)

    @contextlib.contextmanager
    def lock(self, name: str, *, wait: bool = True) -> Iterator[None]:
        """Hold a name without dots: others who want it wait. The system frees it when its holder dies.

        Raises:
            TimeoutError: another holds it, and `wait` is False.
        """
        mode = stat.S_IMODE(self.root.stat().st_mode) & 0o666 | 0o600
        with filelock.FileLock(self.root / "locks" / name, timeout=-1 if wait else 0, mode=mode):
            for left in (self.root / "partial").glob(f"{name}.*"):  # by a holder that died, since we hold the lock
                shutil.rmtree(left, ignore_errors=True)
            yield

    def has(self, folder: str) -> bool:
        """Whether there is such a folder."""
        return (self.root / folder).is_dir()

    def read(self, name: str, most: int) -> bytes:
        """A file's content.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is something else (a link, a pipe), is on a bad disk, or has more than `most` bytes.
            OSError: it can't be read, which says nothing of it.
        """
        return read_file(self.root / name, most)

    def write(self, name: str, content: bytes) -> None:
        """Write a file, in place of one that there may be."""
        path = self.root / name
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            _write_synced(temporary, content)
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.root / name).unlink(missing_ok=True)

    def list(self, folder: str) -> dict[str, tuple[int, float]]:
        """Files in a folder and those below it: name -> bytes, and when it was written."""
        found = {}
        start = len(str(self.root)) + 1
        for parent, _, names in os.walk(self.root / folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # removed by another process meanwhile
                    told = os.lstat(f"{parent}/{name}")
                    found[f"{parent[start:]}/{name}"] = (told.st_size, told.st_mtime)
        return found

    def put(self, folder: str, files: Mapping[str, bytes], *, lock: str) -> None:
        """Add a folder of files, all of them or none; the caller holds the lock.

        Raises:
            FileExistsError: there is one, and it stays.
            OSError: it can't be written (disk full, no permission); all is as before.
        """
        path, temporary = self.root / folder, self.root / "partial" / f"{lock}.{uuid.uuid4().hex}"
        self._make(path.parent)
        renamed = False
        try:
            self._make(temporary)
            _sync_folder(path.parent.parent)
            for name, content in files.items():
                _write_synced(temporary / name, content)
            _sync_folder(temporary)
            temporary.rename(path)
            renamed = True
            _sync_folder(path.parent)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if renamed:  # but not synced
                shutil.rmtree(path, ignore_errors=True)
            if isinstance(error, OSError) and error.errno == errno.ENOTEMPTY:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
            raise

    def move(self, folder: str, to: str) -> None:
        """Rename a folder, if it is there; PermissionError where it is another user's, who doesn't let us."""
        self._make((self.root / to).parent)
        with contextlib.suppress(FileNotFoundError):  # another process was quicker
            (self.root / folder).rename(self.root / to)

    def remove(self, folder: str) -> None:
        """Remove a folder, if it is there; the caller holds the lock named like its last part."""
        gone = f"partial/{Path(folder).name}.{uuid.uuid4().hex}"
        self.move(folder, gone)  # absent at once, and no half of it is ever seen
        shutil.rmtree(self.root / gone, ignore_errors=True)

    def clear(self) -> None:
        """Remove what nobody needs: what was set aside, and tables."""
        for name in ("aside", "tables"):
            shutil.rmtree(self.root / name, ignore_errors=True)

    def touch(self, name: str) -> None:
        """Make a file one that was written now."""
        os.utime(self.root / name)

    def _make(self, path: Path) -> None:
        """Make a folder, if it isn't there, with the permissions of the store's own: a group may share it."""
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            path.chmod(stat.S_IMODE(self.root.stat().st_mode))


def read_secret(path: Path) -> bytes:
    """What signs manifests.

    Raises:
        ValueError: no such file, others may read or write it, or it is too short or too long.
    """
    least, most = _SECRET_BYTES
    mend = f"make one: (umask 077; head -c {least} /dev/urandom > {path})"
    try:
        secret, mode = read_file(path, most), stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ValueError(f"store_key={path} can't be read ({error.strerror}); {mend}") from None
    if mode & 0o077:
        raise ValueError(f"store_key={path} must be its owner's alone, but has mode {mode:04o}: chmod 600 {path}")
    if len(secret) < least:
        raise ValueError(f"store_key={path} must have at least {least} bytes, but has {len(secret)}; {mend}")
    return secret


def read_file(path: Path, most: int) -> bytes:
    """A regular file's content; errors are those of Folder.read."""
    try:  # a pipe doesn't keep us waiting, and a link leads nowhere
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
            told = os.fstat(file.fileno())
            if not stat.S_ISREG(told.st_mode):
                raise ValueError(f"{path} must be a regular file")
            if told.st_size > most:
                raise ValueError(f"{path} must have at most {most} bytes, but has {told.st_size}")
            return file.read(most)
    except OSError as error:
        if error.errno in _BROKEN:
            raise ValueError(f"{path} can't be read: {error.strerror}") from error
        raise


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
