"""Names that users type: what a name may look like, and the error that helps when it isn't one of the known ones."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_SHAPE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def check(kind: str, name: str, valid: Iterable[str]) -> str:
    """Return `name` if it is among `valid`.

    Raises:
        ValueError: it is not; the message names the valid choices and the nearest one.
    """
    choices = list(valid)
    if name in choices:
        return name
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {kind} {name!r}; available are {', '.join(choices)}.{hint}")


def is_safe(name: str) -> bool:
    """Whether a name can become part of a path or a module name without leading anywhere else."""
    return _SHAPE.fullmatch(name) is not None
