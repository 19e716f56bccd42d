"""Several pairs: gains and their mean against scipy, what is missing, and a page that is safe and whole."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reports import index, load, results
from reports.build import build, main

PAIRS = ["one", "two", "three"]


@pytest.fixture
def rows(table: pd.DataFrame) -> pd.DataFrame:
    """The made-up table three times, each with noise of its own."""
    rng = np.random.default_rng(1)
    parts = []
    for shift, pair in enumerate(PAIRS):
        noise = {column: rng.normal(0, 0.004, len(table)) for column in ("val_accuracy", "test_accuracy")}
        changed = {column: table[column] - 0.05 * shift + noise[column] for column in noise}
        parts.append(table.assign(pair=pair, **changed))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def make(tmp_path: Path, make_run: Callable[..., Path]) -> Callable[..., Path]:
    """make(rows, names, **run_json) writes the folder of a search of several pairs and returns it."""
    one = json.loads((make_run() / "run.json").read_text())

    def write(rows: pd.DataFrame, names: list[str], **changes: Any) -> Path:
        folder = tmp_path / "several"
        folder.mkdir(exist_ok=True)
        results.write([{str(k): v for k, v in row.items()} for row in rows.to_dict("records")], folder)
        parts = {pair: {key: one[key] for key in ("teacher", "student", "confirm")} for pair in names}
        info = one | {"experiment": one["experiment"] | {"pair": names}, "pairs": parts} | changes
        (folder / "run.json").write_text(json.dumps(info))
        return folder

    return write


def gains_by_hand(rows: pd.DataFrame, base: str, phase: str, column: str) -> dict[str, list[float]]:
    """Pair -> differences of the best recipe on validation and the named baseline, seed by seed."""
    out = {}
    for pair, own in rows.groupby("pair"):
        found = own[own["phase"] == "search"].groupby("recipe_id")["val_accuracy"].mean()
        values = own[own["phase"] == phase].pivot(index="seed", columns="recipe_id", values=column)
        base_id = own.loc[own["methods"] == base, "recipe_id"].iloc[0]
        out[str(pair)] = (values[found.idxmax()] - values[base_id]).tolist()
    return out


def test_gains_and_their_mean_are_those_of_scipy(rows: pd.DataFrame) -> None:
    rows = rows[~rows["methods"].isin(["fitnets", "rkd"])]
    rows = rows[~rows["methods"].str.fullmatch("[^>]*[+][^>]*")]  # kd is the only recipe of one stage
    for drop_test, split, of in (
        (False, "test", ("confirm", "test_accuracy")),
        (True, "validation", ("search", "val_accuracy")),
    ):
        if drop_test:  # of one pair alone: all gains are then on validation
            rows = rows[(rows["pair"] != "two") | (rows["phase"] == "search")]
        # the best of each pair must be confirmed, as a search does
        best = index.table(rows, PAIRS, ["flops"]).set_index("pair").loc[PAIRS, "recipe_id"]
        if not drop_test:
            fresh = [
                rows[(rows["pair"] == pair) & (rows["phase"] == "search") & (rows["recipe_id"] == recipe)].assign(
                    phase="confirm", test_accuracy=lambda r: r["val_accuracy"], seed=lambda r: r["seed"] + 100
                )
                for pair, recipe in best.items()
            ]
            known = rows["recipe_id"].isin(best) & (rows["phase"] == "confirm")
            rows = pd.concat([rows[~known], *fresh], ignore_index=True)
        found = index.table(rows, PAIRS, ["flops"]).set_index("pair")
        by_hand = gains_by_hand(rows, "kd", *of)
        means = []
        for pair in PAIRS:
            differences = [d for d in by_hand[pair] if not np.isnan(d)]
            half = stats.sem(differences) * stats.t.ppf(0.975, len(differences) - 1)
            assert found.loc[pair, "baseline"] == "kd" and found.loc[pair, "split"] == split
            assert found.loc[pair, "gain"] == pytest.approx(np.mean(differences))
            assert found.loc[pair, "gain_half_width"] == pytest.approx(half)
            assert found.loc[pair, "differences"] == len(differences)
            means.append(np.mean(differences))
        mean = found.loc[index.MEAN]
        assert mean["gain"] == pytest.approx(np.mean(means)) and mean["differences"] == 3
        assert mean["gain_half_width"] == pytest.approx(stats.sem(means) * stats.t.ppf(0.975, 2))


def test_the_baseline_is_the_student_alone_where_it_was_searched(rows: pd.DataFrame) -> None:
    alone = rows[rows["methods"] == "kd"].assign(methods="ce", recipe="ce", recipe_id="c" * 12)
    alone["val_accuracy"] -= 0.1
    table = index.table(pd.concat([rows, alone], ignore_index=True), PAIRS, ["flops"])
    assert table["baseline"].tolist()[:3] == ["ce"] * 3
    one_stage = index.table(rows, PAIRS, ["flops"])
    assert "ce" not in one_stage["baseline"].tolist() and one_stage["baseline"].notna()[:3].all()


def test_a_best_recipe_that_is_the_baseline_gains_nothing_and_claims_no_interval(rows: pd.DataFrame) -> None:
    table = index.table(rows[rows["methods"] == "kd"], PAIRS, ["flops"])
    assert table["gain"].tolist() == [0.0] * 4
    assert table["gain_half_width"].isna().all()
    assert index.gain_text(table.to_dict("records")[0]) == "it is the baseline itself"


def test_a_pair_without_results_keeps_its_row(rows: pd.DataFrame) -> None:
    table = index.table(rows[rows["pair"] != "two"], PAIRS, ["flops"]).set_index("pair")
    assert table.loc["two"].isna().all()
    assert table.loc[index.MEAN, "differences"] == 2


def test_recipes_are_averaged_only_where_all_pairs_finished_them(rows: pd.DataFrame, make: Callable[..., Path]) -> None:
    gone = rows.loc[rows["methods"] == "kd>rkd", "recipe_id"].iloc[0]
    rows = rows[(rows["recipe_id"] != gone) | (rows["pair"] != "three")]
    folder = make(rows, PAIRS)
    listed = index.contents(results.read(folder), json.loads((folder / "run.json").read_text()))["recipes"]
    assert len(listed) == rows["recipe_id"].nunique() - 1
    search = rows[rows["phase"] == "search"]
    for line in listed:
        if line["name"] == "kd":
            means = search[search["methods"] == "kd"].groupby("pair")["val_accuracy"].mean()
            assert line["val"] == f"{100 * means.mean():.2f}"
            assert line["each"] == [f"{100 * means[pair]:.2f}" for pair in PAIRS]


def test_the_page_escapes_names_and_fetches_nothing(rows: pd.DataFrame, make: Callable[..., Path]) -> None:
    hostile = '"><script>alert(1)</script><img src=//x onerror=y>'
    rows["methods"] = rows["methods"].replace("kd", hostile)
    folder = make(rows, PAIRS)
    info = json.loads((folder / "run.json").read_text())
    info["pairs"]["two"]["teacher"]["name"] = info["config"]["space"] = info["commit"] = hostile
    (folder / "run.json").write_text(json.dumps(info))
    page = build(folder).read_text(encoding="utf-8")
    assert "alert(1)" in page and "<script>alert" not in page and "<img" not in page
    assert re.findall(r'href="([^"]*)"', page) == [f"./{pair}/report.html" for pair in PAIRS]
    assert "<link" not in page and "@import" not in page and "url(" not in page and "http:" not in page
    assert len(page) < 100_000  # no Vega
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    table = index.table(results.read(folder), PAIRS, ["flops"])
    mean = table.iloc[-1]
    shown = f"{100 * mean['gain']:+.2f} ± {100 * mean['gain_half_width']:.2f}"
    assert re.search(rf"mean over pairs +{re.escape(shown)} +3 pairs", text)
    assert "trained for more epochs than the baseline" in text


@pytest.mark.parametrize("name", ["..", "../one", "/one", "a/b", "", ".one", "One", "-one", "x" * 65, "one\n"])
def test_a_name_that_is_no_folder_s_is_refused(
    rows: pd.DataFrame, make: Callable[..., Path], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main([f"run={make(rows, ['one', name])}"]) == 2
    assert "`$.experiment.pair[1]`" in capsys.readouterr().err


def test_an_unfinished_search_says_so(rows: pd.DataFrame, make: Callable[..., Path]) -> None:
    folder = make(rows[rows["pair"] == "one"], PAIRS, finished=None)
    page = build(folder).read_text(encoding="utf-8")
    assert '<span class="badge">unfinished</span>' in page
    assert page.count("nothing finished") == 2 and "No recipe has finished for every pair yet" in page


def test_the_forest_keeps_to_its_scale(rows: pd.DataFrame) -> None:
    table = index.table(rows, PAIRS, ["flops"]).to_dict("records")
    forest = index.forest(table)
    assert forest is not None
    scale = [(mark["x"] - forest["zero"]) / row["gain"] for mark, row in zip(forest["rows"], table, strict=True)]
    assert max(scale) == pytest.approx(min(scale), rel=0.02)
    for mark in forest["rows"]:
        assert 210 <= mark["low"] <= mark["x"] <= mark["high"] <= 700
    assert not any(mark["cut_low"] or mark["cut_high"] for mark in forest["rows"] if not mark["mean"])
    assert index.forest([]) is None


def test_a_folder_of_several_is_no_run_of_one(
    rows: pd.DataFrame, make: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(rows, PAIRS)
    assert main([f"run={folder}"]) == 0
    with pytest.raises(ValueError, match="several pairs: give the folder of one"):
        load.info(folder)
    folder = make(rows, PAIRS, pairs=None)
    assert main([f"run={folder}"]) == 2
    assert "pairs" in capsys.readouterr().err


def test_rows_of_two_pairs_may_share_recipe_and_seed_but_not_of_one(rows: pd.DataFrame, tmp_path: Path) -> None:
    records = [{str(k): v for k, v in row.items()} for row in rows.to_dict("records")]
    results.write(records, tmp_path)
    assert results.read(tmp_path)["pair"].unique().tolist() == sorted(PAIRS)
    with pytest.raises(ValueError, match="one row per pair, recipe_id, seed, phase"):
        results.write([*records, records[0]], tmp_path)
