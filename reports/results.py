"""The table of results: its columns, and how it is written and read. Nothing is computed from it here."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
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
_FLOATS = ("train_flops", "device_seconds", "spent_flops", "spent_seconds", "latency_ms", "extra_teacher_flops")
_COUNTS = {"n_stages": 10**3, "epochs_total": 10**9, "params": 10**15, "teachers": 10**3} | dict.fromkeys(_FLOATS, 1e60)
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
    "val_accuracy": Column(
        "float64", True, "accuracy on the validation split after the last epoch, 0 to 1; null if that was trained on"
    ),
    "test_accuracy": Column("float64", True, "accuracy on the test split after the last epoch, 0 to 1; `confirm` only"),
    "test_best_accuracy": Column("float64", True, "highest of any epoch, which flatters; under `protocol=paper` only"),
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
    "extra_teacher_flops": Column("float64", True, "training cost of teachers beyond the first; in no other column"),
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
    names = {name for row in rows for name in row} - COLUMNS.keys()
    settings = sorted(names, key=lambda name: (name.count("."), name))  # of the training before those of methods
    arrays = {name: _array(name, [row.get(name) for row in rows]) for name in (*COLUMNS, *settings)}
    table = pa.table({name: array for name, array in arrays.items() if array.type != pa.null()})
    frame = _frame(table)
    if wrong := _wrong(frame):
        raise ValueError(wrong)
    order = frame.assign(phase=frame["phase"].map(PHASES.index))
    order = order.sort_values(["pair", "phase", "n_stages", "recipe", "recipe_id", "seed"], kind="stable")
    table = table.take(order.index.to_numpy()).replace_schema_metadata({_KEY: str(SCHEMA).encode()})
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
    kinds = dict(zip(table.column_names, table.schema.types, strict=True))
    for name, column in COLUMNS.items():
        if (kind := kinds.get(name, "no such column")) != _ARROW[column.dtype]:
            raise ValueError(f"column {name} of {path} must be {column.dtype}, but is {kind}; {_AGAIN}")
    if len(kinds) < table.num_columns or set(kinds.values()) - set(_KINDS):
        raise ValueError(f"{path} has a column twice, or one of a type that no setting has; {_AGAIN}")
    frame = _frame(table)
    if wrong := _wrong(frame):
        raise ValueError(f"{wrong}, as {path} says; {_AGAIN}")
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
        return msgspec.json.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


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
    dtypes |= {name: column.dtype for name, column in COLUMNS.items() if column.nullable or not table[name].null_count}
    # by way of objects, since whole numbers with nulls would become floats
    frame: pd.DataFrame = table.to_pandas(integer_object_nulls=True)
    return frame[[*COLUMNS, *(name for name in table.column_names if name not in COLUMNS)]].astype(dtypes)


def _array(name: str, values: list[object]) -> pa.Array:
    """Values of one column of all rows; of a setting, of the type that they have."""
    try:
        array = pa.array(values, from_pandas=True)
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"{name} must be of one type in all rows, but isn't: {error}") from None
    wanted = _ARROW[COLUMNS[name].dtype] if name in COLUMNS else array.type
    if array.type not in (wanted, pa.null()) and (array.type, wanted) != (pa.int64(), pa.float64()):
        raise ValueError(f"{name} must be of type {wanted} in all rows, but is of {array.type}")
    if array.type not in _KINDS and array.type != pa.null():
        raise ValueError(f"{name} must be a text, a number or a truth value, but is of {array.type}")
    return array.cast(wanted)


def _wrong(frame: pd.DataFrame) -> str | None:
    """What is wrong first in a table of the right types, and in which row; None if nothing is."""
    complete, search = frame["status"] == "complete", frame["phase"] == "search"
    for name in map(str, frame.columns):
        values, column = frame[name], COLUMNS.get(name)
        rules = []
        if column is None and (name in _ADDED or not _SETTING.fullmatch(name)):
            return f"{name!r} is neither a column nor a name that a setting can have, {_SETTING.pattern}"
        if column is not None and not column.nullable:
            rules.append(("must not be null", values.isna()))
        if values.dtype == "float64":
            rules.append(("must be finite", values.abs() == math.inf))
        if name in _FRACTIONS:
            rules.append(("must be a fraction from 0 to 1", (values < 0) | (values > 1)))
        if name in _CHOICES:
            rules.append((f"must be one of {', '.join(_CHOICES[name])}", ~values.isin(_CHOICES[name])))
        if name in _COUNTS:
            rules.append((f"must be from 0 to {_COUNTS[name]:g}", (values < 0) | (values > _COUNTS[name])))
        if name in ("train_flops", "device_seconds"):
            rules.append(("is of every complete row", values.isna() & complete))
        if name == "val_accuracy":  # a confirmation may have been trained on the validation split
            tested = frame["test_accuracy"].notna()
            rules.append(("is of every complete row without test_accuracy", values.isna() & complete & ~tested))
        if name in _OF_TEST:
            rules.append(("belongs to phase confirm only", values.notna() & search))
        for rule, where in rules:
            if where.any():
                row = frame[where].iloc[0]
                return f"{name} {rule}, but is {row[name]} in {_name(row)}"
    for keys in (["pair", "recipe_id", "seed", "phase"], ["pair", "position"]):
        twice = frame[frame.duplicated(keys, keep=False)].sort_values(keys, kind="stable")
        if len(twice):
            both = f"{_name(twice.iloc[0])} and {_name(twice.iloc[1])}"
            return f"one row per {', '.join(keys)} must hold, but there are {both}"
    return None


def _name(row: pd.Series[Any]) -> str:
    return f"the {row['phase']} row of {row['recipe']} ({row['recipe_id']}), seed {row['seed']}"


if __name__ == "__main__":
    print(schema_markdown(), end="")  # noqa: T201
