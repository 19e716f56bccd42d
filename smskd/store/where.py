"""Where a store is: a folder, or a URL such as s3://bucket/folder."""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from pathlib import Path


def is_url(where: str | Path) -> bool:
    """Whether this names a store behind a URL, and not a folder."""
    return "://" in str(where)


def check_url(url: str) -> str:
    """The URL, if files can be at it.

    Raises:
        ValueError: they can't, or it holds a password.
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
        ValueError: no files can be at the URL, or it holds a password.
    """
    return check_url(where) if is_url(where) else str(Path(where).absolute())


def folder(where: str | Path) -> Path:
    """Folder of this machine that a store is in, or is read through: then in ~/.cache, or XDG_CACHE_HOME."""
    if not is_url(where):
        return Path(where).absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    cache = base if base.is_absolute() else Path.home() / ".cache"
    return cache / "smskd" / hashlib.sha256(str(where).encode()).hexdigest()[:16]
