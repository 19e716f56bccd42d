"""A run's folder, read once: the table of results, and run.json with the types that the reports rely on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import pandas as pd

from reports import results

SCHEMA = 2
# Of a pair: a folder has it.
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_AGAIN = "run the same search command again: it writes the file anew"


class Run(NamedTuple):
    """What a run folder of one pair says. table: results.parquet; info: run.json."""

    table: pd.DataFrame
    info: Mapping[str, Any]


def _part(**kinds: Any) -> type[msgspec.Struct]:
    """An object of which the reports read these keys; each may be missing, or null."""
    return msgspec.defstruct("part", [(key, kind | None, None) for key, kind in kinds.items()])


_COST = Literal["flops", "seconds", "params", "latency"]
_ENDS = tuple[float, float]
_NETWORK: Any = _part(
    **{"name": str, "params": int, "digest": str, "val_accuracy": float},
    **{"train_accuracy": float, "test_accuracy": float, "warnings": list[str]},
)
_CONFIRM: Any = _part(seeds=list[int], opened=str, reopened=bool, train_on=str)
_BOX = msgspec.defstruct("box", [("error", _ENDS), ("cost", _ENDS), ("cost_name", _COST)])
_NAMES = Annotated[list[Annotated[str, msgspec.Meta(pattern=rf"^{NAME.pattern}\Z")]], msgspec.Meta(min_length=1)]
_SHARED: dict[str, Any] = {
    "config": _part(warm_start=str | list[str]),
    "machine": _part(gpus=list),
    "settings": dict[str, str],
    "objectives": Annotated[list[Literal["error"] | _COST], msgspec.Meta(min_length=2)],
    "limits": dict[Literal["params", "latency_ms", "flops"], float | None],
}
_MAYBE = _part(box=_BOX, front=list[str], versions=dict[str, str], recipes=int, seconds=float)
# What is read of a run.json of one pair, and of several.
_ONE = _SHARED | {"experiment": dict[str, Any], "teacher": _NETWORK, "student": _NETWORK, "confirm": _CONFIRM}
_ONE |= {"dataset": _part(name=str, train=int, validation=int, test=int)}
_PAIR: Any = _part(teacher=_NETWORK, student=_NETWORK, confirm=_CONFIRM)
_SEVERAL = _SHARED | {"experiment": msgspec.defstruct("experiment", [("pair", _NAMES)]), "pairs": dict[str, _PAIR]}
_KINDS = {
    several: msgspec.defstruct("info", [*kinds.items()], bases=(_MAYBE,), kw_only=True)
    for several, kinds in ((False, _ONE), (True, _SEVERAL))
}


def run(folder: Path) -> Run:
    """What the folder of a search of one pair says.

    Raises:
        ValueError: as results.read and info.
    """
    return Run(table=results.read(folder), info=info(folder))


def is_several(folder: Path) -> bool:
    """Whether the folder's run.json is of several pairs."""
    try:
        return "pairs" in results.read_json(folder / "run.json")
    except (OSError, ValueError, TypeError):
        return False


def info(folder: Path, *, several: bool = False) -> dict[str, Any]:
    """The contents of run.json, of a search of one pair or of several.

    Raises:
        ValueError: it is missing, damaged, of another schema or kind, or a value of it isn't what the reports need.
    """
    path = folder / "run.json"
    if not several and is_several(folder):
        raise ValueError(f"{folder} holds a search of several pairs: give the folder of one, which is in it")
    try:
        found: dict[str, Any] = results.read_json(path)
    except FileNotFoundError as cause:
        raise ValueError(f"a run folder holds run.json, but {folder} doesn't; {_AGAIN}") from cause
    except (OSError, ValueError) as cause:
        raise ValueError(f"{path} is damaged or half-written ({cause}); {_AGAIN}") from cause
    schema = found.get("schema") if isinstance(found, dict) else type(found).__name__
    if schema != SCHEMA:
        raise ValueError(f"{path} has schema {schema!r}, but this program reads {SCHEMA}; {_AGAIN}")
    try:
        msgspec.convert(found, _KINDS[several])
    except msgspec.ValidationError as cause:
        raise ValueError(f"{path} isn't as a search writes it: {cause} ($ is the whole of it); {_AGAIN}") from cause
    if found["objectives"][0] != "error" or "error" in found["objectives"][1:]:
        raise ValueError(f"objectives must be error and then costs in {path}, but are {found['objectives']}; {_AGAIN}")
    return found


def get(info: Mapping[str, Any], *path: str) -> Any:
    """A value of run.json, or None."""
    value: Any = info
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
