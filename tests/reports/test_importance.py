"""Shares against variances worked out by hand, and fANOVA against the exact decomposition of a known function."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pandas as pd
import pytest

from reports.importance import Importance, importance


def summary(rows: list[dict[str, object]]) -> pd.DataFrame:
    """A summary of recipes with what importance reads."""
    base = {"pair": "tiny", "lambda_base": 0.5, "weighting": "fixed", "anchor": "reference", "teachers": 1}
    base |= {"anchor_temperature": 4.0, "seeds": 3, "val_sd": 0.0, "train_flops": 1e9}
    table = pd.DataFrame([base | {"n_stages": str(row["methods"]).count(">") + 1} | row for row in rows])
    table = table.astype({"anchor": "str", "weighting": "str"})
    alone = table["n_stages"] == 1
    table.loc[alone, "anchor"] = None
    table.loc[alone | (table["anchor"] == "none"), ["weighting", "lambda_base", "anchor_temperature"]] = None
    return table


def shares(found: list[Importance], objective: str = "error") -> dict[str, float]:
    return {one.factor: one.share for one in found if one.objective == objective}


def test_shares_of_a_full_grid_by_hand() -> None:
    # two counts of two orders each, without anchor: means 0.5, 0.7 | 0.6, 1.0; between counts (0.1)^2, in all 0.035
    table = summary(
        [
            {"methods": name, "val_accuracy": accuracy, "anchor": "none", "train_flops": 1e9 * (1 + name.count(">"))}
            for name, accuracy in (("kd", 0.5), ("rkd", 0.7), ("kd>rkd", 0.6), ("rkd>kd", 1.0))
        ]
    )
    found = importance(table, cost_columns=["train_flops"])
    assert shares(found) == pytest.approx({"stage count": 0.01 / 0.035, "stage order": 0.025 / 0.035})
    assert shares(found, "train_flops") == pytest.approx({"stage count": 1, "stage order": 0})
    assert {(one.method, one.recipes) for one in found} == {("ANOVA", 4)}
    # no noise: bars of no width; of a cost the spread isn't known
    ends = [end for one in found if one.objective == "error" for end in (one.low, one.high)]
    assert ends == pytest.approx([0.01 / 0.035] * 2 + [0.025 / 0.035] * 2)
    assert all(one.low is None and one.high is None for one in found if one.objective == "train_flops")


def grid(effect: dict[str, float], lambdas: tuple[float, ...] = (0.1, 0.5, 2.0)) -> pd.DataFrame:
    """Orders of two methods, crossed with lambda and weighting where these have an effect."""
    rows: list[dict[str, object]] = []
    for name in ("kd", "rkd", "kd>rkd", "rkd>kd"):
        several = ">" in name
        for lam, weighting in itertools.product(lambdas, ("fixed", "tcp")):
            if not several and (lam, weighting) != (lambdas[0], "fixed"):
                continue
            accuracy = 0.7 + effect["count"] * several + effect["order"] * name.startswith("rkd")
            accuracy += several * (effect["lambda"] * lambdas.index(lam) + effect["weighting"] * (weighting == "tcp"))
            rows.append({"methods": name, "val_accuracy": accuracy, "lambda_base": lam, "weighting": weighting})
    return summary(rows)


def test_a_factor_without_effect_in_one_stage_stands_for_all_its_values() -> None:
    # over the 4 x 3 x 2 cells, the two one-stage recipes in six each: by hand from means of cells
    effect = {"count": 0.1, "order": 0.04, "lambda": 0.02, "weighting": 0.06}
    found = importance(grid(effect), cost_columns=[])
    cells = {
        (s, o, k, w): 0.1 * s + 0.04 * o + s * (0.02 * k + 0.06 * w)
        for s, o, k, w in itertools.product(range(2), range(2), range(3), range(2))
    }
    values = np.array(list(cells.values())).reshape(2, 2, 3, 2)
    whole = values.var()
    expected = {
        "stage count": values.mean(axis=(1, 2, 3)).var() / whole,
        "stage order": (values.mean(axis=(2, 3)).var() - values.mean(axis=(1, 2, 3)).var()) / whole,
        "λ_base": values.mean(axis=(0, 1, 3)).var() / whole,
        "weighting": values.mean(axis=(0, 1, 2)).var() / whole,
    }
    assert shares(found) == pytest.approx(expected)
    assert {one.method for one in found} == {"ANOVA"}


def test_no_grid_no_plain_analysis() -> None:
    effect = {"count": 0.1, "order": 0.0, "lambda": 0.0, "weighting": 0.0}
    whole = grid(effect)
    found = importance(whole.iloc[:-1], cost_columns=[])
    assert {one.method for one in found} == {"fANOVA"} and shares(found)["stage count"] > 0.5
    twice = pd.concat([whole, whole.iloc[-1:]], ignore_index=True)
    assert {one.method for one in importance(twice, cost_columns=[])} == {"fANOVA"}


def known_function(n: int) -> pd.DataFrame:
    """Random recipes of 1 to 4 stages. Error: 3 for a count, 2 for the first stage, 1 for log lambda where anchored."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for _ in range(n):
        stages = rng.choice(["kd", "rkd", "at"], size=rng.integers(1, 5)).tolist()
        lam = float(np.exp(rng.uniform(math.log(0.05), math.log(2))))
        accuracy = 0.7 + 0.03 * len(stages) + 0.05 * (stages[0] == "kd")
        weighting = str(rng.choice(["fixed", "tcp"]))
        rows.append(
            {"methods": ">".join(stages), "val_accuracy": accuracy, "lambda_base": lam, "weighting": weighting}
            | {"train_flops": 1e9 * len(stages), "val_sd": 0.004}
        )
    return summary(rows)


@pytest.mark.parametrize("n", [60, 400])
def test_forest_against_the_exact_decomposition(n: int) -> None:
    table = known_function(n)
    count, first = 0.03**2 * 15 / 12, 0.05**2 * 2 / 9
    found = importance(table, cost_columns=["train_flops"])
    by_factor = shares(found)
    assert list(by_factor) == ["stage count", "stage order", "λ_base", "weighting"]
    assert by_factor["stage count"] == pytest.approx(count / (count + first), abs=0.15)
    assert by_factor["stage order"] == pytest.approx(first / (count + first), abs=0.15)
    assert by_factor["λ_base"] < 0.05 and by_factor["weighting"] < 0.05
    assert shares(found, "train_flops")["stage count"] > 0.95
    for one in found:
        assert (one.method, one.recipes) == ("fANOVA", min(n, 200))
        if one.objective == "error":
            assert one.low is not None and one.high is not None
            assert 0 <= one.low <= one.share <= one.high <= 1 and one.low < one.high
    assert importance(table, cost_columns=["train_flops"]) == found  # the same numbers each time


def test_bars_grow_with_the_noise_and_hold_the_truth() -> None:
    effect = {"count": 0.01, "order": 0.01, "lambda": 0.0, "weighting": 0.0}
    truth = shares(importance(grid(effect), cost_columns=[]))
    rng = np.random.default_rng(0)
    widths = {}
    for sd in (0.001, 0.004):
        covered = []
        for _ in range(40):
            table = grid(effect)
            noisy = table["val_accuracy"] + rng.normal(0, sd / math.sqrt(3), len(table))
            count = importance(table.assign(val_accuracy=noisy, val_sd=sd), cost_columns=[])[0]
            assert count.low is not None and count.high is not None
            widths[sd] = count.high - count.low
            covered.append(count.low <= truth["stage count"] <= count.high)
        assert np.mean(covered) > 0.75  # about 0.87 to 0.97 in larger simulations
    assert widths[0.001] < widths[0.004]


def test_nothing_to_tell() -> None:
    one = summary([{"methods": "kd", "val_accuracy": 0.7}])
    assert importance(one, cost_columns=["train_flops"]) == []
    assert importance(one.iloc[:0], cost_columns=[]) == []
    same = summary([{"methods": "kd", "val_accuracy": 0.7}, {"methods": "rkd", "val_accuracy": 0.7}])
    assert importance(same, cost_columns=[]) == []
    seeds_of_one = grid({"count": 0.1, "order": 0.1, "lambda": 0.0, "weighting": 0.0}).assign(seeds=1, val_sd=math.nan)
    assert {(x.low, x.high) for x in importance(seeds_of_one, cost_columns=[])} == {(None, None)}
    with pytest.raises(ValueError, match="needs latency_ms of every recipe, but 1 lack it"):
        importance(one.assign(latency_ms=math.nan), cost_columns=["latency_ms"])


def test_two_thousand_recipes_are_quick() -> None:
    table = known_function(2000)
    importance(table.iloc[:30], cost_columns=[])  # imports
    started = time.process_time()
    importance(table, cost_columns=["train_flops"])
    assert time.process_time() - started < 3  # 1.5 s on an idle core


def tuned(n: int, **columns: object) -> pd.DataFrame:
    """Recipes of kd alone. Error: 3 for the logarithm of the learning rate, 1 for that of the temperature."""
    rng = np.random.default_rng(2)
    rates, temperatures = np.exp(rng.uniform(math.log(0.02), math.log(0.6), n)), rng.choice([1, 2, 4, 8], n)
    accuracy = 0.9 + 0.03 * np.log(rates / 0.02) / math.log(30) + 0.01 * np.log2(temperatures) / 3
    rows = [{"methods": "kd", "val_accuracy": value} for value in accuracy.tolist()]
    settings = {"learning_rate": rates, "kd.temperature": temperatures.astype(float)} | columns
    return summary(rows).assign(**settings)


def test_settings_of_one_method_are_ranked() -> None:
    # uniform in log: 1/12 of the range squared; four levels of log2 in steps of a third: 5/36
    rate, temperature = 0.03**2 / 12, 0.01**2 * 5 / 36
    for n in (12, 150):
        found = importance(tuned(n), cost_columns=["train_flops"])
        by_factor = shares(found)
        assert list(by_factor) == ["learning_rate", "kd.temperature"]
        assert by_factor["learning_rate"] > by_factor["kd.temperature"] > 0
        assert {one.method for one in found} == {"fANOVA"}
    assert by_factor["learning_rate"] == pytest.approx(rate / (rate + temperature), abs=0.1)
    assert by_factor["kd.temperature"] == pytest.approx(temperature / (rate + temperature), abs=0.1)


def test_settings_of_every_type_and_idle_ones_are_factors() -> None:
    n = 80
    rng = np.random.default_rng(3)
    nesterov = pd.Series(rng.choice([True, False], n), dtype="boolean")
    epochs = pd.Series(rng.choice([5, 10, 20], n), dtype="Int64")
    schedule = pd.Series(rng.choice(["step", "cosine"], n), dtype="str")
    nesterov[:20], epochs[20:40], schedule[40:50] = pd.NA, pd.NA, None
    table = tuned(n, **{"nesterov": nesterov, "stage_1.epochs": epochs, "schedule": schedule, "momentum": 0.9})
    table["val_accuracy"] = 0.5 + 0.1 * (schedule == "step") + 0.04 * nesterov.fillna(False).astype(float)
    by_factor = shares(importance(table, cost_columns=[]))
    assert list(by_factor) == ["learning_rate", "kd.temperature", "nesterov", "stage_1.epochs", "schedule"]
    assert sorted(by_factor, key=lambda name: -by_factor[name])[:2] == ["schedule", "nesterov"]


def test_a_grid_of_settings_is_plain_analysis_and_many_idle_ones_are_no_explosion() -> None:
    rows: list[dict[str, object]] = [
        {"methods": "kd", "val_accuracy": 0.7 + 0.02 * a + 0.01 * b, "learning_rate": 0.1 * (1 + a), "kd.weight": b}
        for a, b in itertools.product(range(3), range(4))
    ]
    found = importance(summary(rows), cost_columns=[])
    first, second = 0.02**2 * 8 / 12, 0.01**2 * 15 / 12
    assert shares(found) == pytest.approx(
        {"learning_rate": first / (first + second), "kd.weight": second / (first + second)}
    )
    assert {one.method for one in found} == {"ANOVA"}
    rng = np.random.default_rng(0)
    names = [f"m{k}.weight" for k in range(12)]
    idle: list[dict[str, object]] = [
        {"methods": "kd", "val_accuracy": rng.uniform(), names[k % 12]: rng.uniform()} for k in range(60)
    ]
    assert len(shares(importance(summary(idle), cost_columns=[]))) == 12
