"""What to say of an exception of a training: a word for whoever runs it, the traceback for whoever wrote the code."""

from __future__ import annotations

import traceback
from pathlib import Path


class Diverged(RuntimeError):
    """A loss turned NaN or infinite, so that there is nothing left to train."""


def where_raised(error: BaseException, file: str | None = None) -> str:
    """Where it was raised, as `methods/mine.py, line 12`: in this file, or in the last one that isn't a library's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and "lib/python" not in frame.filename]
    if file is not None:
        own = [frame for frame in frames if Path(frame.filename).resolve() == Path(file).resolve()]
    return f"{'/'.join(Path(own[-1].filename).parts[-2:])}, line {own[-1].lineno}" if own else ""


def told(error: BaseException, file: str | None = None) -> str:
    """An exception in one line, with the place where it was raised, in this file if it was there."""
    where = where_raised(error, file) or where_raised(error)
    return f"{_line(error)} ({where})" if where else _line(error)


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def text_of(error: Exception) -> tuple[str, str | None]:
    """The cause in a line, with the place of a mistake in the code; and the traceback of such a mistake, else None.

    A loss that diverged, and memory that didn't suffice, are no mistakes of the code.
    """
    if isinstance(error, Diverged) or out_of_memory(error):
        return _line(error), None
    return told(error), "".join(traceback.format_exception(error))


def out_of_memory(error: Exception) -> bool:
    """Whether it is for want of memory, on a GPU or off it."""
    signs = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)
