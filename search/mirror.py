"""A run's files behind a URL: they are written to a folder of this machine, and copied there.

Nothing is read back, since the study tells all; the study itself can't live there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from smskd.store import remote


@contextlib.contextmanager
def held(folder: Path, url: str) -> Iterator[None]:
    """Hold the URL: one driver a run, on all machines; the caller holds the folder.

    Raises:
        ValueError: another driver holds it.
    """
    with contextlib.ExitStack() as claims:
        try:
            claims.enter_context(remote.Files(url).lock("run", folder, wait=False))
        except TimeoutError:
            raise ValueError(
                f"another search is at work in {url}, or was cut off less than {remote.CLAIM_S:g} s ago: wait for it, "
                "or choose another one with out="
            ) from None
        yield


def copy(folder: Path, url: str) -> None:
    """Bring a run's files there, in place of older ones; those whose names begin with a dot stay here.

    Raises:
        OSError: one can't be written.
    """
    files = remote.Files(url)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            files.write(name.as_posix(), path.read_bytes())
