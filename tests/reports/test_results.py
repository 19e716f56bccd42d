"""The table of results: what is written is read back, and what can't be right is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from reports import results

ROW: dict[str, Any] = {
    **{"recipe": "kd>rkd learning_rate=0.1", "recipe_id": "0123456789ab", "methods": "kd>rkd"},
    **{"pair": "tiny", "data": "digits", "seed": 0, "phase": "search", "position": 0},
    **{"status": "complete", "error": None, "val_accuracy": 0.9, "test_accuracy": None, "test_best_accuracy": None},
    **{"train_flops": 1e9, "device_seconds": 2.5, "spent_flops": 2e8, "spent_seconds": 0.5, "params": 10},
    **{"latency_ms": None, "epochs_total": 6, "n_stages": 2, "anchor": "reference", "weighting": "fixed"},
    **{"lambda_base": 0.5, "anchor_temperature": None, "teachers": 1, "extra_teacher_flops": None},
}
FAILED = ROW | {"seed": 1, "position": 1, "status": "failed", "error": "loss is NaN", "val_accuracy": None}


def test_read_returns_what_was_written(tmp_path: Path) -> None:
    results.write([ROW, FAILED], tmp_path)
    table = results.read(tmp_path)
    assert list(table.columns) == list(results.COLUMNS) == list(ROW)
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == {
        k: c.dtype for k, c in results.COLUMNS.items()
    }
    for name, value in ROW.items():
        assert pd.isna(table[name][0]) if value is None else table[name][0] == value
    assert table["error"][1] == "loss is NaN" and math.isnan(table["val_accuracy"][1])
    text = pd.read_csv(tmp_path / "results.csv", dtype={k: c.dtype for k, c in results.COLUMNS.items()})
    pd.testing.assert_frame_equal(text, table)


def test_types_hold_where_all_values_are_null_and_where_there_are_no_rows(tmp_path: Path) -> None:
    for rows in ([FAILED], []):
        results.write(rows, tmp_path)
        schema = pq.read_schema(tmp_path / "results.parquet")
        assert schema.metadata[b"smskd_schema"] == b"4"
        kinds = {"str": "string", "int64": "int64", "float64": "double"}
        assert [str(field.type) for field in schema] == [kinds[c.dtype] for c in results.COLUMNS.values()]
        assert len(results.read(tmp_path)) == len(rows)


def test_the_order_of_rows_does_not_matter_and_numpy_values_are_taken(tmp_path: Path) -> None:
    confirm = ROW | {
        "phase": "confirm",
        "test_accuracy": np.float64(0.8),
        "seed": np.int64(7),
        "n_stages": 1,
        "position": 2,
    }
    results.write([ROW, FAILED, confirm], tmp_path)
    files = [(tmp_path / name).read_bytes() for name in ("results.parquet", "results.csv")]
    results.write([confirm, FAILED, ROW], tmp_path)
    assert files == [(tmp_path / name).read_bytes() for name in ("results.parquet", "results.csv")]
    assert results.read(tmp_path)["phase"].tolist() == ["search", "search", "confirm"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": None}, "seed must not be null"),
        ({"seed": 1.5}, "seed must be of type int64 in all rows, but is of double"),
        ({"seed": True}, "seed must be of type int64 in all rows, but is of bool"),
        ({"recipe": 3}, "recipe must be of type string in all rows, but is of int64"),
        ({"train_flops": math.inf}, "train_flops must be finite, but is inf in the search row of kd>rkd"),
        ({"val_accuracy": 91.2}, "fraction from 0 to 1"),
        ({"val_accuracy": math.nan}, "val_accuracy is of every complete row"),
        ({"test_accuracy": 0.8}, "test_accuracy belongs to phase confirm only"),
        ({"test_best_accuracy": 0.8}, "test_best_accuracy belongs to phase confirm only"),
        ({"position": None}, "position must not be null"),
        ({"phase": "test"}, "phase must be one of search, confirm"),
        ({"status": "running"}, "status must be one of complete, failed, pruned"),
        ({"Colour": "red"}, "'Colour' is neither a column nor a name that a setting can have"),
        ({"a.b.c.d": 1}, "'a.b.c.d' is neither a column nor a name"),
        ({"letter": "A"}, "'letter' is neither a column nor a name"),
        ({"learning_rate": math.inf}, "learning_rate must be finite, but is inf"),
        ({"learning_rate": [1]}, "learning_rate must be a text, a number or a truth value"),
    ],
)
def test_bad_rows_are_refused_and_nothing_is_written(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        results.write([ROW | change], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_row_may_not_occur_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one row per pair, recipe_id, seed, phase must hold"):
        results.write([ROW, ROW], tmp_path)


def test_a_position_is_of_one_row_of_a_pair(tmp_path: Path) -> None:
    results.write([ROW, ROW | {"pair": "other"}], tmp_path)
    with pytest.raises(ValueError, match=r"one row per pair, position must hold, but .* seed 0 and .* seed 1"):
        results.write([ROW, FAILED | {"position": 0}], tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results.write([ROW], tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        results.write([FAILED], tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_folders_that_are_no_runs_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        results.read(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"found: notes\.txt"):
        results.read(tmp_path)


def test_damaged_files_and_other_schemas_are_named(tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    results.write([ROW], tmp_path)
    whole, table = path.read_bytes(), pq.read_table(path)
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="half-written"):
            results.read(tmp_path)
    for metadata, found in (({b"smskd_schema": b"1"}, "'1'"), (None, "'none'")):
        pq.write_table(table.replace_schema_metadata(metadata), path)
        with pytest.raises(ValueError, match=f"schema version {found}, but this program reads 4; run the same search"):
            results.read(tmp_path)
    pq.write_table(table.drop_columns(["seed"]), path)
    with pytest.raises(ValueError, match=r"column seed .* no such column"):
        results.read(tmp_path)


def test_schema_page_is_the_columns() -> None:
    assert (Path(results.__file__).with_name("SCHEMA.md")).read_text() == results.schema_markdown()


def test_default_run_is_read(make_run: Callable[..., Path]) -> None:
    assert len(results.read(make_run())) == 45 * 3 + 5 * 5


SETTINGS: dict[str, tuple[str, list[Any]]] = {
    "learning_rate": ("float64", [0.05, 1, None]),
    "nesterov": ("boolean", [True, None, np.False_]),
    "precision": ("str", ["bf16", "float32", None]),
    "kd.temperature": ("float64", [None, math.nan, 2.0]),
    "stage_2.epochs": ("Int64", [60, pd.NA, np.int64(2**53 + 1)]),
    "stage_1.kd.temperature": ("Int64", [1, 2, 3]),
}


def test_settings_are_columns_behind_the_fixed_ones_with_null_where_idle(tmp_path: Path) -> None:
    rows = [
        ROW | {"seed": k, "position": k, "idle": None} | {name: values[k] for name, (_, values) in SETTINGS.items()}
        for k in range(3)
    ]
    del rows[2]["precision"]
    results.write(rows, tmp_path)
    table = results.read(tmp_path)
    assert list(table.columns) == [*results.COLUMNS, *SETTINGS] and results.setting_columns(table) == list(SETTINGS)
    for name, (dtype, values) in SETTINGS.items():
        assert table[name].dtype == dtype
        for found, value in zip(table[name], values, strict=True):
            assert pd.isna(found) if pd.isna(value) else found == value
    dtypes = {name: str(dtype) for name, dtype in table.dtypes.items()}
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "results.csv", dtype=dtypes), table)  # type: ignore[arg-type]
    before = (tmp_path / "results.parquet").read_bytes()
    results.write([{str(k): v for k, v in row.items()} for row in table.to_dict("records")][::-1], tmp_path)
    assert (tmp_path / "results.parquet").read_bytes() == before


def test_settings_differ_where_recipes_of_a_pair_have_two_values(tmp_path: Path) -> None:
    assert results.differing(pd.DataFrame([ROW | {"a": 1}]).iloc[:0]) == []
    rows = [ROW | {"weight": 2.0, "kd.temperature": 1}, ROW | {"seed": 1, "position": 1, "weight": 2.0}]
    rows += [ROW | {"pair": "other", "weight": 3.0, "kd.temperature": 1, "anchor": None, "lambda_base": 0.1}]
    results.write(rows, tmp_path)
    # of different pairs, or idle in one: no difference
    assert results.differing(results.read(tmp_path)) == []
    rows += [ROW | {"pair": "other", "position": 1, "seed": 1, "kd.temperature": 2, "anchor": "none", "teachers": 3}]
    rows += [ROW | {"pair": "other", "position": 2, "seed": 2, "kd.temperature": 2, "anchor": "ewc", "teachers": 3}]
    results.write(rows, tmp_path)
    expected = ["lambda_base", "anchor", "teachers", "kd.temperature"]
    assert results.differing(results.read(tmp_path)) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, "a"], "kd.weight must be of one type in all rows"),
        ([True, 1], "kd.weight must be of one type in all rows"),
        ([0.5, "a"], "kd.weight must be of one type in all rows"),
        ([0.5, -math.inf], "kd.weight must be finite, but is -inf in the search row"),
    ],
)
def test_a_setting_has_one_type(tmp_path: Path, values: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        results.write(
            [ROW | {"seed": k, "position": k, "kd.weight": value} for k, value in enumerate(values)], tmp_path
        )


def test_a_table_with_columns_that_are_no_settings_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    results.write([ROW], tmp_path)
    table = pq.read_table(path)
    for name, values, message in (
        ("<script>", [1.0], "'<script>' is neither a column nor a name that a setting can have"),
        ("front", [True], "'front' is neither a column"),
        ("kd.weight", [[1]], "has a column twice, or one of a type that no setting has"),
        ("kd.weight", [math.inf], "kd.weight must be finite"),
        ("seed", [1], "has a column twice"),
    ):
        pq.write_table(table.append_column(name, [values]), path)
        with pytest.raises(ValueError, match=f"{message}.*run the same search command again"):
            results.read(tmp_path)
