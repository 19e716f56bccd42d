"""Storage that fails under a search: no fault of a recipe, and no input to mend."""

from __future__ import annotations

import errno
import os
import sqlite3

from search import storages

_FULL = (errno.ENOSPC, errno.EDQUOT)
# Of SQLite: a write failed; its journal can't be made, or the database was damaged since it was opened.
_UNWRITTEN = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_BROKEN = (*_UNWRITTEN, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT)


def trouble(error: BaseException) -> str | None:
    """What failed and what to do, if a full disk, a broken study or a lost server is behind an error; else None."""
    for seen in storages.behind(error):
        if isinstance(seen, OSError) and seen.errno in _FULL:
            where = f" for {seen.filename}" if seen.filename else ""
            return f"{os.strerror(seen.errno)}{where}: free some (python -m smskd.store do=prune, say)"
        if _code(seen) in _BROKEN:
            return f"the study can't be read or written ({seen}): see whether its disk has space, and is well"
    return storages.lost(error)


def full(error: BaseException) -> bool:
    """Whether a database couldn't be written, most likely since the disk is full, is behind an error."""
    return any(_code(seen) in _UNWRITTEN for seen in storages.behind(error))


def _code(error: BaseException) -> int:
    """SQLite's own, without the extension in the higher bytes; 0 of other errors."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
