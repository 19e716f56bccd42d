"""Ctrl-C and SIGTERM, as one KeyboardInterrupt that isn't lost and leaves nothing half done.

Python raises it wherever the program happens to be: in a finaliser or a callback of C code it is printed and dropped,
and in the middle of Ray's start or end it leaves processes behind. So it is noted as well, and `check` raises it again;
and where it has to wait for such a place, it is noted only. Signals are the process's, and so is this state.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_told = False
_deferred = 0


def listen() -> None:
    """From now on both signals interrupt this process; what was told before is forgotten."""
    global _told
    _told = False
    again()


def again() -> None:
    """Set the handlers once more: somebody else may have set theirs."""
    for number in SIGNALS:
        signal.signal(number, _hear)


def check() -> None:
    """Raise KeyboardInterrupt if a signal has come."""
    if _told:
        raise KeyboardInterrupt


def ignore() -> None:
    """From now on nothing more is heard: what is saved now is saved whole."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within, signals are noted and raise nothing: `check` is asked where it suits."""
    global _deferred
    _deferred += 1
    try:
        yield
    finally:
        _deferred -= 1


def _hear(number: int, frame: FrameType | None) -> None:
    global _told
    _told = True
    if not _deferred:
        raise KeyboardInterrupt
