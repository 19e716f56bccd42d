"""A run's folder, read once: the table of results, and run.json with the types that the reports rely on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pandas as pd

from reports import results

SCHEMA = 2
Cost = Literal["flops", "seconds", "params", "latency"]
# Of a pair: a folder has it.
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_AGAIN = "run the same search command again: it writes the file anew"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder of one pair says. table: results.parquet; info: run.json."""

    table: pd.DataFrame
    info: Mapping[str, Any]


class _Network(msgspec.Struct):
    name: str | None = None
    params: int | None = None
    val_accuracy: float | None = None
    digest: str | None = None


class _Dataset(msgspec.Struct):
    name: str | None = None
    train: int | None = None
    validation: int | None = None
    test: int | None = None


class _Confirm(msgspec.Struct):
    seeds: list[int] = []
    opened: str | None = None
    reopened: bool = False


class _Machine(msgspec.Struct):
    gpus: list[Any] = []


class _Config(msgspec.Struct):
    warm_start: str | list[str] | None = None


class _Box(msgspec.Struct):
    error: tuple[float, float]
    cost: tuple[float, float]
    cost_name: Cost


class _Common(msgspec.Struct):
    """What the run.json of one pair and that of several have."""

    schema: Literal[2]
    config: _Config
    machine: _Machine
    experiment: dict[str, Any]
    settings: dict[str, str]
    objectives: Annotated[list[Literal["error"] | Cost], msgspec.Meta(min_length=2)]
    limits: dict[Literal["params", "latency_ms", "flops"], float | None] = {}
    versions: dict[str, str] | None = None
    recipes: int | None = None
    seconds: float | None = None


class _One(_Common, kw_only=True):
    teacher: _Network
    student: _Network
    dataset: _Dataset
    confirm: _Confirm
    box: _Box | None = None
    front: list[str] | None = None


class _PairOfNetworks(msgspec.Struct):
    teacher: _Network = msgspec.field(default_factory=_Network)
    student: _Network = msgspec.field(default_factory=_Network)
    confirm: _Confirm = msgspec.field(default_factory=_Confirm)


class _Names(msgspec.Struct):
    pair: Annotated[list[Annotated[str, msgspec.Meta(pattern=rf"^{NAME.pattern}\Z")]], msgspec.Meta(min_length=1)]


class _Several(_Common, kw_only=True):
    experiment: _Names  # type: ignore[assignment]
    pairs: dict[str, _PairOfNetworks]


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
        msgspec.convert(found, _Several if several else _One)
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
