"""A run whose recipes differ in settings: what differs is shown of each, what doesn't is told once, in every file."""

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
import yaml

from reports import gains, load, naming, paper, results
from reports.build import build
from reports.front import summarise
from tests.reports.test_paper import claim, measured, rows_of, run, table

Make = Callable[..., Path]
KD = {"methods": "kd", "weighting": "fixed", "lambda_base": 0.5, "anchor": "reference", "teachers": 1}
EXPERIMENT = {"pair": "tiny", "data": "digits", "train_size": 1000, "precision": "bf16"}
GIVEN = {"learning_rate": "tag(log,interval(0.02,0.6))", "kd.temperature": "choice(1,2,4,8)", "momentum": "0.85"}


def tuned() -> list[dict[str, Any]]:
    rates = np.exp(np.random.default_rng(1).uniform(np.log(0.02), np.log(0.6), 8)).tolist()
    same = {"precision": "bf16", "momentum": 0.85}
    out = [KD | same | {"learning_rate": rate, "kd.temperature": 2.0 ** (k % 4)} for k, rate in enumerate(rates)]
    return [*out, KD | same | {"methods": "fitnets>rkd", "learning_rate": rates[0], "nesterov": True}]


@pytest.fixture
def folder(make_run: Make) -> Path:
    return make_run(recipes=tuned(), experiment=EXPERIMENT, settings=GIVEN)


def text_of(page: Path) -> str:
    source = re.sub(r"<(script|style).*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", source)).split())


def test_every_file_shows_what_differs_and_tells_the_rest_once(folder: Path) -> None:
    text = text_of(build(folder))
    card, md = (re.sub(r"\\(.)", r"\1", (folder / name).read_text()) for name in ("MODEL_CARD.md", "tables.md"))
    run = load.run(folder)
    shown = naming.named(summarise(run.table, ["flops"]), run.table)
    for row in shown.to_dict("records"):
        expected = f"learning rate {row['learning_rate']:.4g}"
        expected += "" if pd.isna(row["kd.temperature"]) else f", kd.temperature {row['kd.temperature']:g}"
        assert row["settings"] == expected
        assert row["name"] == f"{row['methods'].replace('>', ' → ')} · {expected}"
        assert text.count(expected) >= 1 and (not row["letter"] or (expected in md and row["anchoring"] in md))
    for name in ("momentum", "precision", "nesterov", "train size"):
        assert not shown["name"].str.contains(name).any() and name not in md
    body = card.split("```yaml")[0] + card.split("```")[2]
    for told in ("momentum 0.85", "precision bf16", "train size 1000", "nesterov yes"):
        shown_in_yaml = text.count(told) - text.split("How these numbers came to be")[1].count(told)
        assert text.split("How these numbers came to be")[1].count(told) == 1 and shown_in_yaml == 0
        assert body.count(told) == 1
    assert "Searched learning_rate: tag(log,interval(0.02,0.6)); kd.temperature: choice(1,2,4,8)" in text
    assert "momentum: 0.85" not in text
    front = pd.read_csv(folder / "front.csv")
    assert {"learning_rate", "kd.temperature", "momentum", "precision", "nesterov"} <= set(front.columns)
    assert yaml.safe_load((folder / "best.yaml").read_text()).keys() == {"recipe", *EXPERIMENT, "seed"}
    factors = re.findall(r'"factor":"([^"]+)"', (folder / "report.html").read_text())
    assert {"learning_rate", "kd.temperature"} <= set(factors) and not {"momentum", "precision"} & set(factors)


def test_a_run_of_defaults_shows_no_settings(make_run: Make) -> None:
    text = text_of(build(make_run()))
    assert "Settings The same for all recipes: pair tiny, data digits, train size 1000." in text
    assert " settings λ weight" not in text and "Searched" not in text


def test_hostile_settings_stay_text(make_run: Make) -> None:
    evil = "<script>alert(1)</script>|`x`"
    recipes = [KD | {"schedule": evil}, KD | {"schedule": "step", "optimizer": evil}]
    folder = make_run(recipes=recipes, experiment=EXPERIMENT | {evil: evil}, settings={evil: evil, "schedule": evil})
    page = build(folder).read_text()
    assert page.count("<script") == page.count("</script>") and "<script>alert" not in page
    assert "schedule &lt;script&gt;alert(1)" in page and "optimizer &lt;script&gt;alert(1)" in page
    for name in ("MODEL_CARD.md", "tables.md"):
        text = re.sub(r"^---\n.*?\n---\n|```.*?```", "", (folder / name).read_text(), flags=re.DOTALL)
        assert "alert" in text and not re.search(r"(?<!\\)<script", text)
    assert r"\textless{}script\textgreater{}" in (folder / "tables.tex").read_text()


def test_a_name_of_many_settings_is_cut_between_two_of_them() -> None:
    rows = [
        {"pair": "p", "methods": "kd>rkd", "n_stages": 2, "anchor": "none", "lambda_base": None, "teachers": 1 + 2 * k}
        | {f"method_{i}.weight": 1.5 * k + i for i in range(8)} | {"stage_2.epochs": 10 * k, "nesterov": bool(k)}
        for k in range(2)
    ]  # fmt: skip
    first, second = naming.named(pd.DataFrame(rows), pd.DataFrame(rows)).to_dict("records")
    assert first["settings"].startswith("1 teacher, method 0.weight 0, ") and first["anchoring"] == "no anchor"
    assert second["settings"].startswith("3 teachers, method 0.weight 1.5, method 1.weight 2.5, ")
    assert second["settings"].endswith(", stage 2 epochs 10, nesterov yes")
    assert second["name"] == "kd → rkd · 3 teachers, method 0.weight 1.5, method 1.weight 2.5, …"


def test_the_baseline_has_the_fewest_settings_then_the_least_cost(make_run: Make) -> None:
    summary = summarise(results.read(make_run(recipes=tuned())), ["flops"])
    single = summary[summary["methods"] == "kd"]
    lengths = single["recipe"].str.len()
    shortest = single[lengths == lengths.min()].sort_values(["cost", "recipe_id"])
    assert gains.baseline(summary) == shortest["recipe_id"].iloc[0]
    plain = summary.assign(recipe=summary["recipe"].where(summary.index != single.index[3], "kd"))
    assert gains.baseline(plain) == single["recipe_id"].iloc[3]
    others = summary.assign(methods=summary["methods"].str.replace("kd", "at"), n_stages=1)
    assert gains.baseline(others) == summary.sort_values(["cost", "recipe_id"])["recipe_id"].iloc[0]


# --- next to the published numbers


def with_settings(rows: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    return [each | settings | {"recipe_id": f"{each['recipe_id']} {settings}"} for each in rows]


def test_settings_that_a_whole_run_shares_keep_nothing_from_being_compared() -> None:
    rows = rows_of(paper.THREE, 92.0, "fixed") + rows_of(paper.THREE, 90.0, "none")
    found = claim(
        paper.tables([run(with_settings(rows, learning_rate=0.1))]), "Ablation 1", "a reference with fixed λ above none"
    )
    assert found["verdict"] == "holds"


def test_recipes_of_other_settings_are_not_thrown_together() -> None:
    text = "a reference with fixed λ above none"
    fixed, free = rows_of(paper.THREE, 92.0, "fixed"), rows_of(paper.THREE, 90.0, "none")
    both = with_settings(fixed, learning_rate=0.1) + with_settings(fixed, learning_rate=0.2)
    found = paper.tables([run(both + with_settings(free, learning_rate=0.1))])
    assert measured(found, "Ablation 1", "SMSKD, fixed λ")[0]["ours, %"] == "2 recipes that differ in other settings"
    assert claim(found, "Ablation 1", text)["verdict"].startswith("2 recipes that differ in other settings: SMSKD")
    unlike = paper.tables([run(with_settings(fixed, learning_rate=0.1) + with_settings(free, learning_rate=0.2))])
    assert claim(unlike, "Ablation 1", text)["verdict"] == "unequal settings: learning_rate"
    idle = with_settings(fixed, **{"learning_rate": 0.1, "kd.temperature": 2.0}) + with_settings(
        free, learning_rate=0.1
    )
    other = with_settings(rows_of("kd", 80.0), **{"learning_rate": 0.1, "kd.temperature": 4.0})
    found = paper.tables([run(idle + other)])
    assert claim(found, "Ablation 1", text)["verdict"] == "holds"
    assert table(found, "Ablation 1").judged == 1


def test_run_json_without_what_the_page_needs_is_named(folder: Path) -> None:
    info = json.loads((folder / "run.json").read_text())
    del info["experiment"]
    (folder / "run.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"run\.json isn't as a search writes it: .*`experiment`.*again"):
        build(folder)
