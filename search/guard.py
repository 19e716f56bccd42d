"""Ends what a killed driver leaves of its Ray: a process of its own, which hears of the driver's end by a pipe.

Ray's server and raylet die with the driver, but its agents stay for a minute (they wait for an answer from the server),
and a worker that is stopped, or hangs in C code, for good. Run as a script, with nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_MARK = "SMSKD_DRIVER"
# It looks so often, until it has found nothing twice: a process that is being started has its parent's environment.
_EVERY_S, _AT_MOST_S = 0.3, 30.0


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Processes that are started within are killed if this process is; where there is a /proc."""
    mark = secrets.token_hex(8)
    command = [sys.executable, "-I", "-S", __file__, f"{_MARK}={mark}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,  # no Ctrl-C of a terminal reaches it
    ) as guard:  # fmt: skip
        os.environ[_MARK] = mark
        try:
            yield
        finally:
            del os.environ[_MARK]
            guard.kill()


def end(mark: str) -> None:
    """Kill the processes with this mark in their environment until there are none."""
    deadline, empty = time.monotonic() + _AT_MOST_S, 0
    while empty < 2 and time.monotonic() < deadline:
        found = [int(process.name) for process in Path("/proc").glob("[0-9]*") if _bears(process, mark)]
        empty = 0 if found else empty + 1
        for pid in found:
            with contextlib.suppress(OSError):  # it ended by itself
                os.kill(pid, signal.SIGKILL)
        time.sleep(_EVERY_S)


def _bears(process: Path, mark: str) -> bool:
    try:
        return mark.encode() in (process / "environ").read_bytes().split(b"\0")
    except OSError:  # somebody else's, or ended
        return False


if __name__ == "__main__":
    sys.stdin.read()  # until the driver ends, however that comes about
    end(sys.argv[1])
