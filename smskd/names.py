"""Names that users type, and the error that helps when one isn't among those known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def check(kind: str, name: str, valid: Iterable[str]) -> str:
    """Return `name` if it is among `valid`.

    Raises:
        ValueError: it is not; the message names the valid choices and the nearest one.
    """
    choices = list(valid)
    if name in choices:
        return name
    near = nearest(name, choices)
    hint = f" Did you mean {near!r}?" if near else ""
    raise ValueError(f"unknown {kind} {name!r:.200}; available are {', '.join(choices)}.{hint}")


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name most like this one, if any is like it at all."""
    near = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.4)
    return near[0] if near else None
