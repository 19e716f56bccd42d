"""The page: right and honest for every state of a run, safe with hostile names, and made from the files alone."""

from __future__ import annotations

import ast
import html
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from reports import page, results
from reports.build import build, main, read_info
from reports.recipe_file import recipe_yaml
from reports.text import MINUS, NONE, TIMES, number

Make = Callable[..., Path]
KD = {"recipe": "kd", "weighting": "fixed", "lambda_base": 0.5, "anchor": "reference", "teachers": 1}


def text_of(run: Path) -> str:
    """The page as a reader sees it, without Vega and the embedded data."""
    source = build(run).read_text(encoding="utf-8")
    source = re.sub(r"<(script|style).*?</\1>", "", source, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", source)).split())


def data_of(run: Path) -> dict[str, Any]:
    source = build(run).read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', source, flags=re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


def contents(run: Path) -> dict[str, Any]:
    return page.contents(results.read(run), read_info(run), {"results.parquet": None})


def test_default_run_shows_its_numbers(make_run: Make) -> None:
    run = make_run()
    text = text_of(run)
    table = results.read(run)
    front = [r for r in contents(run)["entries"] if r["letter"]]
    for entry in front:
        rows = table[table["recipe_id"] == entry["id"]]
        assert f"{100 * rows[rows['phase'] == 'search']['val_accuracy'].mean():.2f}" in text
        assert f"{100 * rows[rows['phase'] == 'confirm']['test_accuracy'].mean():.2f}" in text
    assert "tiny_teacher → tiny_student, digits" in text
    assert f"45 recipes {TIMES} 3 search seeds; 5 front members confirmed with 5 fresh seeds" in text
    assert "opened once (2026-11-24 05:40 UTC)" in text
    assert "183 stage runs trained, 318 without sharing" in text and "unfinished" not in text.split("Accuracy")[0]


def test_gain_is_paired_by_seed(make_run: Make) -> None:
    run = make_run()
    table = results.read(run).set_index("seed")
    gains = contents(run)["gains"]
    assert [g["letter"] for g in gains] == [x for x in "EDCB" for _ in range(2)]
    for gain in gains:
        phase, column = {"test": ("confirm", "test_accuracy"), "validation": ("search", "val_accuracy")}[gain["split"]]
        rows = table[table["phase"] == phase]
        differences = rows[rows["recipe_id"] == gain["id"]][column] - rows[rows["recipe"] == "kd"][column]
        assert gain["gain"] == pytest.approx(100 * differences.mean())
        t = {5: 2.77645, 3: 4.30265}[len(differences)]
        assert gain["high"] - gain["gain"] == pytest.approx(
            100 * t * differences.std() / len(differences) ** 0.5, rel=1e-5
        )


def test_every_yaml_says_what_was_trained(make_run: Make) -> None:
    run = make_run()
    table = results.read(run).set_index("recipe_id")
    for entry in data_of(run)["recipes"]:
        loaded = yaml.safe_load(entry["yaml"])
        row = table[table["phase"] == "search"].loc[entry["id"]].iloc[0]
        expected = {
            key: row[key]
            for key in ("recipe", "anchor", "weighting", "lambda_base", "teachers", "pair", "data", "epochs")
        }
        assert loaded == expected | {"seed": 0, "train_size": 1000}


def test_yaml_quotes_what_it_must() -> None:
    recipe = {
        "recipe": "kd: [1]\n#",
        "anchor": "none",
        "weighting": "no",
        "lambda_base": 1e-05,
        "teachers": 3,
        "pair": "NULL",
        "epochs": 3,
    }
    config = {"data": "1e3", "data_dir": "/a b/ü", "teacher": None, "train_size": 10, "teacher_epochs": True}
    loaded = yaml.safe_load(recipe_yaml(recipe, config, 5))
    expected = recipe | {"seed": 5} | {key: value for key, value in config.items() if value is not None}
    assert float(loaded.pop("lambda_base")) == expected.pop("lambda_base")
    assert loaded == expected


def test_best_yaml_is_shown_for_the_winner_only_where_it_is_the_winners(make_run: Make) -> None:
    run = make_run()
    (run / "best.yaml").write_text("recipe: kd>rkd # as written\n")
    winner = contents(run)["data"]["pinned"]
    assert next(r for r in data_of(run)["recipes"] if r["id"] == winner)["yaml"] == "recipe: kd>rkd # as written\n"
    info = json.loads((run / "run.json").read_text()) | {"winner": "another"}
    (run / "run.json").write_text(json.dumps(info))
    assert "as written" not in build(run).read_text()


def test_settings_without_effect_are_a_dash(make_run: Make) -> None:
    entries = contents(make_run())["entries"]
    single = next(e for e in entries if e["name"] == "kd")
    free = next(e for e in entries if e["settings"] == "no anchor")
    assert (single["lambda"], single["weighting"], single["anchor"]) == (NONE,) * 3
    assert (free["lambda"], free["weighting"], free["anchor"]) == (NONE, NONE, "none")


def test_without_confirmation_there_is_no_test_number(make_run: Make) -> None:
    run = make_run(confirm=0)
    text, shown = text_of(run), contents(run)
    assert shown["panels"] == ["validation"] and shown["tiles"][1]["label"] == "Its validation accuracy, 95 % interval"
    assert "which flatters" in text and "not confirmed" in text and "Confirmed" not in text
    assert "Not opened." in text and "shrink" not in text


def test_one_seed_says_that_there_is_no_interval(make_run: Make) -> None:
    text = text_of(make_run(seeds=1, confirm=1))
    assert "One seed a recipe: no interval" in text and "±" not in text.split("How these numbers")[0]
    assert "One seed each: no interval can be given." in text


def test_unfinished_search_with_failures(make_run: Make) -> None:
    def break_some(rows: list[dict[str, Any]]) -> None:
        for row in (rows[0], rows[7]):
            row.update(status="failed", val_accuracy=None, error="CUDA out of memory: 3 GiB <wanted>")
        del rows[-20:]

    run = make_run(change=break_some, confirm=0, finished=None, winner=None)
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"front": [], "winner": None}))
    text = text_of(run)
    assert "unfinished" in text and "2 failed" in text and "37 of 45 recipes complete" in text
    assert "Failures (2)" in text and text.count("CUDA out of memory: 3 GiB <wanted>") == 2
    assert "not yet: this is what there is so far" in text and "Recipes differ in how many seeds" in text


def test_nothing_complete(make_run: Make) -> None:
    def fail(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row.update(status="failed", val_accuracy=None, error="NaN loss")

    text = text_of(make_run(change=fail, recipes=[KD], finished=None))
    assert "No recipe has finished yet" in text and "Failures (3)" in text and "Accuracy against cost" not in text
    assert "No recipe has finished yet" in text_of(make_run(recipes=[], finished=None))


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_recipe(make_run: Make, seeds: int) -> None:
    run = make_run(recipes=[KD], seeds=seeds)
    shown = contents(run)
    assert [tile["value"] for tile in shown["tiles"]][0::3] == ["A · kd", "1 of 1"]
    assert shown["gains"] == [] and "Gain over" not in text_of(run)


def test_equal_costs_are_said_and_drawn(make_run: Make) -> None:
    def level(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["train_flops"] = 1e12

    run = make_run(change=level, confirm=0)
    assert "All recipes cost the same" in text_of(run)
    assert contents(run)["costs"][0].axis.ticks


def test_poor_recipes_lie_below_the_axis_and_are_counted(make_run: Make) -> None:
    def spoil(rows: list[dict[str, Any]]) -> None:
        for row in rows[90:93]:
            row["val_accuracy"] = 0.1

    run = make_run(change=spoil)
    assert "1 recipe below the axis (▾), down to 10.00 %" in text_of(run)
    poor = [r for r in data_of(run)["recipes"] if r["validation_below"]]
    assert len(poor) == 1 and poor[0]["validation"] == pytest.approx(10) and poor[0]["validation_drawn"] > 80


def test_a_second_opening_of_the_test_split_is_said(make_run: Make) -> None:
    confirm = {"seeds": [100], "opened": "2026-11-24T05:40:00+00:00", "reopened": True}
    text = text_of(_with(make_run(), confirm=confirm))
    assert "test opened again" in text and "opened more than once" in text and "numbers flatter" in text


def test_a_front_other_than_the_frozen_one_is_said(make_run: Make) -> None:
    assert "frozen front differs" not in text_of(make_run())
    assert "frozen front differs" in text_of(_with(make_run(), front=["0123456789ab"]))


def _with(run: Path, **changes: Any) -> Path:
    info = json.loads((run / "run.json").read_text()) | changes
    (run / "run.json").write_text(json.dumps(info))
    return run


def test_hostile_names_stay_text(make_run: Make) -> None:
    evil = "</script><script>alert(1)</script><!--{{7*7}}&'\""
    recipes = [KD, KD | {"recipe": f"kd{evil}"}, KD | {"recipe": "kd>rkd", "anchor": evil}]

    def fail(rows: list[dict[str, Any]]) -> None:
        rows[-1].update(status="failed", val_accuracy=None, error=evil)

    run = make_run(recipes=recipes, change=fail)
    _with(run, teacher={"name": evil, "source": evil}, dataset={"name": evil}, versions={evil: evil}, commit=evil)
    (run / "best.yaml").write_text(evil)
    (run / "<img src=x onerror=alert(1)>").touch()
    vega = r'<script type="module">(?!\nconst root).*?</script>'
    source = re.sub(vega, "", build(run).read_text(), flags=re.DOTALL)
    assert source.count("<script") == source.count("</script>") == 2 and "<img" not in source
    assert "alert(1)&lt;/script" in source and "alert(1)\\u003c/script" in source
    assert "{{7*7}}" in source


def test_the_page_fetches_nothing(make_run: Make) -> None:
    source = build(make_run()).read_text()
    assert "default-src 'none'" in source and "connect-src" not in source
    own = re.sub(r'<script type="module">.*?</script>', "", source, flags=re.DOTALL)
    assert not re.search(r"https?://|\bsrc=|\bhref=|@import|url\(", own)


def test_two_thousand_recipes_in_under_five_seconds(make_run: Make) -> None:
    rng = np.random.default_rng(1)
    recipes = [
        {"recipe": "kd>fitnets>rkd", "weighting": "tcp", "lambda_base": float(x), "anchor": "reference", "teachers": 1}
        for x in rng.uniform(0, 1, 2000)
    ]
    run = make_run(recipes=recipes)
    start = time.monotonic()
    path = build(run)
    assert time.monotonic() - start < 5
    assert path.stat().st_size < 8e6


def test_bad_run_folders_are_named_in_one_line_and_leave_the_old_page(
    make_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    build(run)
    (run / "report.html").write_text("old")
    whole = (run / "run.json").read_text()
    for content, message in (
        (whole[:50], "damaged or half-written"),
        ("[]", "has schema 'list', but this program reads 1"),
        (json.dumps(json.loads(whole) | {"schema": 9}), "has schema 9, but this program reads 1"),
        (json.dumps(json.loads(whole) | {"config": None}), "config in .* must be an object"),
        (
            json.dumps(json.loads(whole) | {"config": {"cost": "money"}}),
            "must be one of flops, seconds, params, latency",
        ),
    ):
        (run / "run.json").write_text(content)
        assert main([f"run={run}"]) == 2
        out, err = capsys.readouterr()
        assert re.search(message, err) and err.count("\n") == 1 and not out
    assert (run / "report.html").read_text() == "old"
    for argv in ([], ["run="], ["folder"], [f"run={run}", "x=1"], [f"run={tmp_path / 'nowhere'}"]):
        assert main(argv) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_command_line_makes_the_page_from_a_copy_of_the_files(make_run: Make, tmp_path: Path) -> None:
    run = make_run()
    first = build(run).read_bytes()
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in run.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "reports.build", f"run={copy}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(page.__file__).parents[1])
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{copy / 'report.html'}\n", "")
    assert (copy / "report.html").read_bytes() == build(run).read_bytes() and len(first) > 5e5


def test_reports_imports_no_training_code() -> None:
    files = sorted(Path(page.__file__).parent.glob("*.py"))
    assert len(files) >= 7
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"torch", "ray", "smskd", "search", "optuna"}, file.name


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123"), (1.5, "1.5"), (99.96, "100"), (1234.5, "1,234"), (-0.5, MINUS + "0.5")],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text
