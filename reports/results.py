"""The table of results: its columns, and how it is written and read. Nothing is computed from it here."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = 4
PHASES = ("search", "confirm")
STATUSES = ("complete", "failed", "pruned")
_OF_TEST = ("test_accuracy", "test_best_accuracy")
_FRACTIONS = ("val_accuracy", *_OF_TEST)
_CHOICES = {"phase": PHASES, "status": STATUSES}
# No run comes near, and what is computed of these stays finite.
_COUNTS = {
    "n_stages": 10**3,
    "epochs_total": 10**9,
    "params": 10**15,
    "teachers": 10**3,
} | dict.fromkeys(
    ("train_flops", "device_seconds", "spent_flops", "spent_seconds", "latency_ms", "extra_teacher_flops"), 1e60
)
_KEY = b"smskd_schema"
# What is read at most: run.json and its like; rows of a table, and its bytes on disk and unpacked.
_JSON_BYTES, _ROWS, _TABLE_BYTES = 2**26, 10**6, 2**30
_AGAIN = "run the same search command again: finished stages are kept, and the table is written anew"


class Column(NamedTuple):
    """dtype: the pandas dtype, of every run, even where all values are null. nullable: may a value be missing?"""

    dtype: str
    nullable: bool
    meaning: str


COLUMNS: dict[str, Column] = {
    "recipe": Column("str", False, "the whole recipe in one line, with its settings; it parses back to itself"),
    "recipe_id": Column("str", False, "twelve hexadecimal digits: what the recipe does"),
    "methods": Column("str", False, "stages in order, as in `kd>fitnets>rkd`; `kd+rkd` is one stage of two methods"),
    "pair": Column("str", False, "teacher and student, a name of the table of pairs"),
    "data": Column("str", False, "data set"),
    "seed": Column("int64", False, "seed of this training"),
    "phase": Column("str", False, "`search` (chosen on validation) or `confirm` (trained again with fresh seeds)"),
    "position": Column("int64", False, "position in the order in which recipes were finished, from 0; prefixes first"),
    "status": Column("str", False, "`complete`, `failed` or `pruned` (given up, or not begun)"),
    "error": Column("str", True, "cause of a failure, or why a recipe was given up"),
    "val_accuracy": Column("float64", True, "accuracy on the validation split after the last epoch, 0 to 1"),
    "test_accuracy": Column("float64", True, "accuracy on the test split after the last epoch, 0 to 1; `confirm` only"),
    "test_best_accuracy": Column(
        "float64",
        True,
        "highest test accuracy of any epoch, 0 to 1: flattered by its choice; `confirm` under `protocol=paper` only",
    ),
    "train_flops": Column("float64", True, "training cost as if no stage were shared, floating-point operations"),
    "device_seconds": Column("float64", True, "training time as if no stage were shared, seconds"),
    "spent_flops": Column("float64", True, "training cost of the stages that no row of an earlier position paid for"),
    "spent_seconds": Column("float64", True, "training time of the stages that no row of an earlier position paid for"),
    "params": Column("int64", False, "parameters of the student"),
    "latency_ms": Column("float64", True, "inference time of the student, milliseconds; null unless measured"),
    "epochs_total": Column("int64", False, "epochs of all stages together"),
    "n_stages": Column("int64", False, "number of stages"),
    "anchor": Column("str", True, "what stages after the first hold on to, or `none`; null with one stage"),
    "weighting": Column("str", True, "weight of the anchor: `fixed`, `tcp` or `tcp_true`; null without an anchor"),
    "lambda_base": Column("float64", True, "largest weight of the anchor; null without an anchor"),
    "anchor_temperature": Column("float64", True, "temperature of the anchor; null unless it is `reference`"),
    "teachers": Column("int64", False, "how many teachers the methods share out among them"),
    "extra_teacher_flops": Column(
        "float64",
        True,
        "training cost of the teachers beyond the first, floating-point operations; in no other column",
    ),
}
# Settings among the fixed columns: these, too, may differ between the recipes of a run.
_FIXED_SETTINGS = ("lambda_base", "weighting", "anchor", "anchor_temperature", "teachers")
# What reports.front.summarise and reports.naming add to a table: names that no setting can have.
_ADDED = (
    *("seeds", "val_half_width", "val_sd", "cost", "feasible", "front", "letter"),
    *("test_half_width", "test_sd", "confirm_seeds", "holds", "name", "settings", "anchoring"),
)
_SETTING = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*){0,2}")
_ARROW: dict[str, pa.DataType] = {"str": pa.string(), "int64": pa.int64(), "float64": pa.float64()}
# Of setting columns, which are nullable.
_KINDS = {pa.string(): "str", pa.int64(): "Int64", pa.float64(): "float64", pa.bool_(): "boolean"}


def setting_columns(frame: pd.DataFrame) -> list[str]:
    """The settings that a table of results, or its summary, has beside its fixed columns, in their order."""
    return [name for name in map(str, frame.columns) if name not in COLUMNS and name not in _ADDED]


def differing(frame: pd.DataFrame) -> list[str]:
    """The settings, those among the fixed columns first, that differ between the recipes of a pair; null is no value.

    frame: a table of results, or its summary.
    """
    names = [name for name in (*_FIXED_SETTINGS, *setting_columns(frame)) if name in frame.columns]
    most = frame.groupby("pair")[names].nunique().max()
    return [name for name in names if most[name] > 1]


def write(rows: Sequence[Mapping[str, object]], folder: Path) -> None:
    """Write results.parquet and results.csv into `folder`, each whole or not at all.

    The same rows in any order give the same files: rows are sorted by pair, phase, number of stages, recipe, id and
    seed, which is not the order in which they were trained: that is `position`.

    rows: a nullable column may be left out. What isn't in COLUMNS is a setting: a text, a whole number, a number or a
    truth value; missing or null where it is idle in the recipe; its column is left out where it is null in all rows.

    Raises:
        ValueError: a row lacks a column, has a value of the wrong type or range, or occurs twice; a setting has a name
            that none can have, or values of several types; or two rows of a pair have one position.
    """
    kinds = _kinds(rows)
    checked = [_check(row, kinds) for row in rows]
    order = ("n_stages", "recipe", "recipe_id", "seed")
    checked.sort(key=lambda r: (r["pair"], PHASES.index(str(r["phase"])), *(r[name] for name in order)))
    for before, after in itertools.pairwise(checked):
        if all(before[name] == after[name] for name in ("pair", "recipe_id", "seed", "phase")):
            raise ValueError(f"one row per pair, recipe_id, seed and phase must hold, but two rows are {_name(after)}")
    taken: dict[tuple[object, object], Mapping[str, object]] = {}
    for row in checked:
        other = taken.setdefault((row["pair"], row["position"]), row)
        if other is not row:
            raise ValueError(
                f"position {row['position']} must be of one row, but is of {_name(other)} and of {_name(row)}"
            )
    schema = pa.schema({name: _ARROW[column.dtype] for name, column in COLUMNS.items()} | kinds)
    table = pa.Table.from_pylist(checked, schema=schema.with_metadata({_KEY: str(SCHEMA).encode()}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_atomically(folder / "results.parquet", sink.getvalue().to_pybytes())
    write_atomically(folder / "results.csv", _frame(table).to_csv(index=False, lineterminator="\n").encode())


def read(folder: Path) -> pd.DataFrame:
    """The table that `write` left in `folder`: columns and dtypes as in COLUMNS, then the settings.

    Null is NaN, and NA in the settings of types Int64 and boolean.

    Raises:
        ValueError: `folder` is not a run, or its results.parquet is half-written or of another schema.
    """
    path = folder / "results.parquet"
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
        raise ValueError(
            f"a run folder holds results.parquet, but {folder} doesn't (found: {found or 'nothing'}); "
            "give the folder that a search wrote to"
        )
    try:
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            size = max(path.stat().st_size, sum(group.total_byte_size for group in groups))
            if file.metadata.num_rows > _ROWS or size > _TABLE_BYTES:
                raise ValueError(
                    f"{path} must have at most {_ROWS} rows and {_TABLE_BYTES} bytes, but has {file.metadata.num_rows} "
                    f"and {size}; {_AGAIN}"
                )
            table = file.read()
    except (pa.ArrowException, OSError) as cause:
        raise ValueError(f"{path} is half-written or no Parquet file ({cause}); {_AGAIN}") from cause
    version = (table.schema.metadata or {}).get(_KEY, b"none").decode(errors="replace")
    if version != str(SCHEMA):
        raise ValueError(f"{path} has schema version {version!r}, but this program reads {SCHEMA}; {_AGAIN}")
    for name, column in COLUMNS.items():
        kind = table.schema.field(name).type if name in table.column_names else "no such column"
        if kind != _ARROW[column.dtype]:
            raise ValueError(f"column {name} of {path} must be {column.dtype}, but is {kind}; {_AGAIN}")
    for field in table.schema:
        if field.name not in COLUMNS and (field.type not in _KINDS or not _SETTING.fullmatch(field.name)):
            raise ValueError(
                f"{field.name!r} of type {field.type} in {path} is neither a column nor a setting; {_AGAIN}"
            )
    if len(set(table.column_names)) < table.num_columns or set(_ADDED) & set(table.column_names):
        raise ValueError(f"{path} has a column twice, or one of a name that is taken; {_AGAIN}")
    frame = _frame(table)
    for name in map(str, frame.columns):
        values = frame[name]
        wrong = values.isna() & (name in COLUMNS and not COLUMNS[name].nullable)
        if values.dtype == "float64":
            wrong |= values.abs() == math.inf
        if name in _FRACTIONS:
            wrong |= (values < 0) | (values > 1)
        if name in _CHOICES:
            wrong |= ~values.isin(_CHOICES[name])
        if name in _COUNTS:
            wrong |= (values < 0) | (values > _COUNTS[name])
        if wrong.any():
            raise ValueError(f"{name} can't be {values[wrong].iloc[0]!r}, as {path} says; {_AGAIN}")
    return frame


def read_json(path: Path) -> Any:
    """What a file of JSON holds, as a search writes it: no larger than a run's, and of numbers that a float can be.

    Raises:
        OSError: it can't be read.
        ValueError: it is too large, or no such JSON.
    """
    with path.open("rb") as file:
        text = file.read(_JSON_BYTES + 1)
    if len(text) > _JSON_BYTES:
        raise ValueError(f"it must have at most {_JSON_BYTES} bytes")
    try:
        return json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _whole(text: str) -> int:
    if len(text) > len(str(-(2**63))):
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is no number")
    return value


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a power cut, finds the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # one of a write names no file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name must survive a power cut too
    finally:
        os.close(folder)


def schema_markdown() -> str:
    """The text of SCHEMA.md."""
    lines = [
        "# The table of results",
        "",
        f"`results.parquet` (schema version {SCHEMA} under `{_KEY.decode()}` in the file's metadata) and its copy as",
        "text, `results.csv`, hold one row per pair, recipe, seed and phase. Rows are sorted by pair, phase,",
        "number of stages, recipe, id and seed, which is not the order of training: `position` is. `python -m",
        "reports.results` prints this page.",
        "",
        "| column | type | null | meaning |",
        "|---|---|---|---|",
        *(f"| `{k}` | {c.dtype} | {'yes' if c.nullable else 'no'} | {c.meaning} |" for k, c in COLUMNS.items()),
        "",
        "After them comes a column for each setting of the run's recipes, or of its experiment, that isn't at its",
        "default in all of them: `learning_rate` (training, in all stages), `stage_2.epochs` (in one),",
        "`kd.temperature` (of a method), `stage_1.kd.temperature`, `precision` (of the experiment). Types are str,",
        "Int64, float64 or boolean; values are those in effect, defaults included, null where idle in the recipe.",
    ]
    return "\n".join(lines) + "\n"


def _frame(table: pa.Table) -> pd.DataFrame:
    dtypes = {field.name: _KINDS[field.type] for field in table.schema}
    dtypes |= {name: column.dtype for name, column in COLUMNS.items()}
    # by way of objects, since whole numbers with nulls would become floats
    frame: pd.DataFrame = table.to_pandas(integer_object_nulls=True)
    return frame[[*COLUMNS, *(name for name in table.column_names if name not in COLUMNS)]].astype(dtypes)


def _kinds(rows: Sequence[Mapping[str, object]]) -> dict[str, pa.DataType]:
    """The Arrow types of the settings of all rows: of the training before those of methods and single stages."""
    found: dict[str, set[pa.DataType]] = {}
    for row in rows:
        for name in row.keys() - COLUMNS.keys():
            if not _SETTING.fullmatch(name) or name in _ADDED:
                raise ValueError(f"{name!r} in {_name(row)} is neither a column nor a setting: {_SETTING.pattern}")
            if not _null(row[name]):
                found.setdefault(name, set()).add(_kind(name, row))
    out = {}
    for name, kinds in sorted(found.items(), key=lambda item: (item[0].count("."), item[0])):
        kinds = {pa.float64()} if kinds == {pa.int64(), pa.float64()} else kinds
        if len(kinds) > 1:
            raise ValueError(f"{name} must have one type in all rows, but has {', '.join(sorted(map(str, kinds)))}")
        out[name] = kinds.pop()
    return out


def _kind(name: str, row: Mapping[str, object]) -> pa.DataType:
    value = row[name]
    if isinstance(value, bool | np.bool_):
        return pa.bool_()
    if isinstance(value, Integral):
        return pa.int64()
    if isinstance(value, Real) and math.isfinite(value):
        return pa.float64()
    if isinstance(value, str):
        return pa.string()
    raise ValueError(f"{name} must be a text, a finite number or a truth value, but is {value!r} in {_name(row)}")


def _null(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _check(row: Mapping[str, object], settings: Mapping[str, pa.DataType]) -> dict[str, object]:
    out = {name: _value(name, column, row) for name, column in COLUMNS.items()}
    out |= {name: None if _null(value := row.get(name)) else value for name in settings}
    for name, choices in _CHOICES.items():
        _one_of(name, choices, row)
    for name in _FRACTIONS:
        value = out[name]
        if isinstance(value, float) and not 0 <= value <= 1:
            raise ValueError(f"{name} must be a fraction from 0 to 1, but is {value} in {_name(row)}")
    needed = ("val_accuracy", "train_flops", "device_seconds") if out["status"] == "complete" else ()
    for name in needed:
        if out[name] is None:
            raise ValueError(f"a complete row has {name}, but {_name(row)} has none; is its status failed?")
    for name in _OF_TEST:
        if out["phase"] == "search" and out[name] is not None:
            raise ValueError(f"{name} belongs to phase confirm only, but {_name(row)} has one")
    return out


def _value(name: str, column: Column, row: Mapping[str, object]) -> object:
    value = row.get(name)
    if _null(value):
        if column.nullable:
            return None
        raise ValueError(f"{name} must not be null, but is in {_name(row)}")
    if column.dtype == "float64" and isinstance(value, Real) and math.isfinite(value):
        return float(value)
    if column.dtype == "int64" and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if column.dtype == "str" and isinstance(value, str):
        return value
    raise ValueError(f"{name} must be a finite {column.dtype}, but is {value!r} in {_name(row)}")


def _one_of(name: str, choices: tuple[str, ...], row: Mapping[str, object]) -> None:
    if row[name] not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, but is {row[name]!r} in {_name(row)}")


def _name(row: Mapping[str, object]) -> str:
    return f"the {row.get('phase')} row of {row.get('recipe')} ({row.get('recipe_id')}), seed {row.get('seed')}"


if __name__ == "__main__":
    print(schema_markdown(), end="")  # noqa: T201
