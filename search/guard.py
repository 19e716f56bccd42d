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

# Ray's agents write their titles over the beginning of their environment, which is in random order: one of many stays.
_MARKS = [f"SMSKD_DRIVER_{number}" for number in range(12)]
# It looks so often, until it has found nothing for so long: what is just being started on a busy machine comes late.
_EVERY_S, _QUIET_S, _AT_MOST_S = 0.3, 2.0, 60.0


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Processes that are started within are killed if this process is; where there is a /proc."""
    mark = secrets.token_hex(16)
    command = [sys.executable, "-I", "-S", __file__, mark]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,  # no Ctrl-C of a terminal reaches it
    ) as guard:  # fmt: skip
        os.environ.update(dict.fromkeys(_MARKS, mark))
        try:
            yield
        finally:
            for name in _MARKS:
                del os.environ[name]
            guard.kill()


def end(mark: str) -> None:
    """Kill the processes with this mark in their environment until there are none."""
    deadline = time.monotonic() + _AT_MOST_S
    found_at = time.monotonic()
    while found_at + _QUIET_S > time.monotonic() < deadline:
        for pid in [int(process.name) for process in Path("/proc").glob("[0-9]*") if _bears(process, mark)]:
            found_at = time.monotonic()
            with contextlib.suppress(OSError):  # it ended by itself
                os.kill(pid, signal.SIGKILL)
        time.sleep(_EVERY_S)


def _bears(process: Path, mark: str) -> bool:
    try:
        return mark.encode() in (process / "environ").read_bytes()
    except OSError:  # somebody else's, or ended
        return False


if __name__ == "__main__":
    sys.stdin.read()  # until the driver ends, however that comes about
    end(sys.argv[1])
