"""The front against brute force, and the summary against plain loops over the rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports import results
from reports.front import SUMMARY, letter, nondominated, objectives, summarise, winner, write_front


def brute_force(points: list[list[float]]) -> list[bool]:
    return [
        not any(
            all(b <= a for a, b in zip(p, q, strict=True)) and q != p for q in points
        )  # equal points stand together
        for p in points
    ]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda m: st.lists(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1e9]), min_size=m, max_size=m), max_size=12)
    )
)
def test_front_equals_brute_force(points: list[list[float]]) -> None:
    array = np.array(points) if points else np.zeros((0, 2))
    assert nondominated(array).tolist() == brute_force(points)


def test_front_refuses_what_would_evict_valid_points() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="the first at row 1"):
            nondominated(np.array([[0.1, 1.0], [bad, 2.0]]))
    with pytest.raises(ValueError, match=r"shape \[n, m\], but have shape \[2\]"):
        nondominated(np.array([1.0, 2.0]))


def test_summary_equals_plain_loops(table: pd.DataFrame) -> None:
    summary = summarise(table, ["flops"])
    assert list(summary.columns) == SUMMARY and len(summary) == 45
    records = table.to_dict("records")
    found = []
    for row in summary.to_dict("records"):
        values = [r["val_accuracy"] for r in records if r["recipe_id"] == row["recipe_id"] and r["phase"] == "search"]
        assert row["seeds"] == len(values) == 3
        assert row["val_accuracy"] == pytest.approx(sum(values) / 3)
        tests = [r["test_accuracy"] for r in records if r["recipe_id"] == row["recipe_id"] and r["phase"] == "confirm"]
        assert bool(tests) == bool(row["letter"] or row["methods"] == "kd")
        if tests:
            assert row["test_accuracy"] == pytest.approx(sum(tests) / 5) and row["confirm_seeds"] == 5
        else:
            assert pd.isna(row["test_accuracy"]) and pd.isna(row["holds"]) and pd.isna(row["confirm_seeds"])
        found.append([1 - row["val_accuracy"], row["train_flops"]])
    assert summary["front"].tolist() == brute_force(found)
    assert summary.loc[summary["front"], "letter"].tolist() == list("ABCDE")
    assert summary["cost"].is_monotonic_increasing
    tested = summary[summary["test_accuracy"].notna()]
    on_test = np.column_stack([1 - tested["test_accuracy"], tested["train_flops"]]).tolist()
    assert tested["holds"].tolist() == brute_force(on_test)
    # pooled by hand: 45 recipes of 3 seeds, 90 degrees of freedom, t = 1.987
    variances = table[table["phase"] == "search"].groupby("recipe_id")["val_accuracy"].var(ddof=1)
    assert np.allclose(summary["val_half_width"], 1.98667 * math.sqrt(variances.mean() / 3), rtol=1e-5)


def small(*rows: tuple[str, float, float], **changes: Any) -> pd.DataFrame:
    """A table of one-seed recipes: (id, validation accuracy, flops)."""
    base = {name: {"str": "x", "int64": 1, "float64": math.nan}[c.dtype] for name, c in results.COLUMNS.items()}
    base |= {"phase": "search", "status": "complete", "seed": 0} | changes
    table = [base | {"recipe_id": i, "val_accuracy": a, "train_flops": c} for i, a, c in rows]
    return pd.DataFrame(table, columns=list(results.COLUMNS)).astype(
        {name: c.dtype for name, c in results.COLUMNS.items()}
    )


def test_one_seed_has_no_interval_and_no_confirmation_no_test() -> None:
    summary = summarise(small(("a", 0.8, 1.0), ("b", 0.9, 2.0)), ["flops"])
    columns = ["val_half_width", "val_sd", "test_accuracy", "test_half_width", "confirm_seeds", "holds"]
    assert summary[columns].isna().all(axis=None)


def test_winner_ties_go_to_lower_cost_then_id() -> None:
    assert winner(summarise(small(("c", 0.9, 2.0), ("b", 0.9, 1.0), ("a", 0.9, 1.0)), ["flops"])) == "a"
    assert winner(summarise(small(), ["flops"])) is None
    equal = summarise(small(("b", 0.9, 1.0), ("a", 0.9, 1.0)), ["flops"])
    assert equal["letter"].tolist() == ["A", "B"] and equal["recipe_id"].tolist() == ["a", "b"]


def test_recipes_with_a_failed_or_pruned_seed_are_left_out(table: pd.DataFrame) -> None:
    best = winner(summarise(table, ["flops"]))
    for status in ("failed", "pruned"):
        broken = table.copy()
        broken.loc[broken.index[broken["recipe_id"] == best][0], ["status", "val_accuracy"]] = [status, math.nan]
        summary = summarise(broken, ["flops"])
        assert len(summary) == 44 and best not in summary["recipe_id"].tolist()


def test_an_unknown_or_unmeasured_cost_is_named(table: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="cost must be one of flops, seconds, params, latency, but got 'money'"):
        summarise(table, ["money"])
    with pytest.raises(ValueError, match="costs measured for all are flops, seconds, params"):
        summarise(table, ["latency"])
    assert summarise(table, ["params"])["front"].sum() == 1
    assert (summarise(table, ["seconds"])["cost"] == summarise(table, ["seconds"])["device_seconds"]).all()


def test_the_front_of_two_costs_is_in_all_of_them(table: pd.DataFrame) -> None:
    summary = summarise(table, ["flops", "seconds"])
    points = [[1 - r["val_accuracy"], r["train_flops"], r["device_seconds"]] for r in summary.to_dict("records")]
    assert summary["front"].tolist() == brute_force(points)
    assert summary["front"].sum() >= summarise(table, ["flops"])["front"].sum()
    assert (summary["cost"] == summary["train_flops"]).all() and summary["cost"].is_monotonic_increasing
    tested = summary[summary["test_accuracy"].notna()]
    on_test = [[1 - r["test_accuracy"], r["train_flops"], r["device_seconds"]] for r in tested.to_dict("records")]
    assert tested["holds"].tolist() == brute_force(on_test)
    with pytest.raises(ValueError, match="cost=latency needs latency_ms"):
        summarise(table, ["flops", "latency"])


def test_what_breaks_a_limit_is_listed_but_neither_on_the_front_nor_the_winner(table: pd.DataFrame) -> None:
    free = summarise(table, ["flops"])
    bound = float(free["train_flops"].median())
    summary = summarise(table, ["flops"], {"flops": bound, "params": None})
    assert summary["recipe_id"].tolist() == free["recipe_id"].tolist()
    assert summary["feasible"].tolist() == [flops <= bound for flops in summary["train_flops"]]
    allowed = summary[summary["feasible"]]
    assert allowed["front"].tolist() == brute_force([[1 - a, c] for a, c in allowed[["val_accuracy", "cost"]].values])
    assert not summary.loc[~summary["feasible"], "front"].any()
    assert winner(free) not in allowed["recipe_id"].tolist()
    assert winner(summary) == allowed.sort_values("val_accuracy")["recipe_id"].iloc[-1]
    nothing = summarise(table, ["flops"], {"params": 1})
    assert winner(nothing) is None and not nothing["front"].any() and len(nothing) == len(free)
    with pytest.raises(ValueError, match="max_latency_ms= needs latency_ms"):
        summarise(table, ["flops"], {"latency_ms": 1.0})


def test_costs_and_limits_are_those_of_run_json() -> None:
    info: dict[str, Any] = {"objectives": ["error", "params"]}
    assert objectives(info) == (["params"], {})
    info |= {"objectives": ["error", "flops", "seconds"], "limits": {"flops": 3.0}}
    assert objectives(info) == (["flops", "seconds"], {"flops": 3.0})


def test_letters_go_on_after_z() -> None:
    assert [letter(i) for i in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]


def test_front_file_holds_the_front(make_run: Callable[..., Path]) -> None:
    run = make_run()
    summary = summarise(results.read(run), ["flops"])
    write_front(summary, run / "front.csv")
    front = pd.read_csv(run / "front.csv")
    assert front.columns[:3].tolist() == ["letter", "recipe", "recipe_id"] and set(front.columns) == set(SUMMARY)
    assert front["recipe_id"].tolist() == summary.loc[summary["front"], "recipe_id"].tolist()
