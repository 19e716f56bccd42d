"""The page: right and honest for every state of a run, safe with hostile names, and made from the files alone."""

from __future__ import annotations

import ast
import html
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pytest
import yaml

from reports import figures, load, page, results
from reports.build import build, main
from reports.figure_files import FORMATS, rows_of
from reports.naming import recipe_yaml
from reports.text import MINUS, NONE, TIMES, number

Make = Callable[..., Path]
KD = {"methods": "kd", "weighting": "fixed", "lambda_base": 0.5, "anchor": "reference", "teachers": 1}


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


def recipes_of(run: Path) -> list[dict[str, Any]]:
    """What is drawn of each recipe, as the page's script reads it."""
    data = data_of(run)
    return [row | {"yaml": row["yaml"] + data["yaml_end"]} for row in rows_of(data["columns"])]


def contents(run: Path) -> dict[str, Any]:
    return page.contents(load.run(run), {"results.parquet": None})


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
    assert (
        "of training were spent, with first stages trained once" in text
        and "unfinished" not in text.split("Accuracy")[0]
    )


def test_warnings_of_a_teacher_from_a_file_stand_on_top_and_where_numbers_come_from(make_run: Make) -> None:
    run = make_run()
    assert "Warning" not in text_of(run)
    told = {"name": "t", "val_accuracy": 0.99, "test_accuracy": 0.7, "train_accuracy": 1.0}
    _with(run, teacher=told | {"warnings": ["the teacher <is> doubtful"]})
    terms = contents(run)["provenance"]
    assert terms[0] == ("Warning", "The teacher <is> doubtful.")
    assert "99.00 % on validation, 70.00 % on test, 100.00 % on training images" in dict(terms)["Teacher"]
    text = text_of(run)
    assert text.index("Warning: the teacher <is> doubtful") < text.index("How these numbers came to be")


def test_gain_is_paired_by_seed(make_run: Make) -> None:
    run = make_run()
    table = results.read(run).set_index("seed")
    gains = contents(run)["data"]["gains"]
    assert [g["letter"] for g in gains] == [x for x in "EDCB" for _ in range(2)]
    for gain in gains:
        phase, column = {"test": ("confirm", "test_accuracy"), "validation": ("search", "val_accuracy")}[gain["split"]]
        rows = table[table["phase"] == phase]
        differences = rows[rows["recipe_id"] == gain["id"]][column] - rows[rows["methods"] == "kd"][column]
        assert gain["gain"] == pytest.approx(100 * differences.mean())
        t = {5: 2.77645, 3: 4.30265}[len(differences)]
        assert gain["high"] - gain["gain"] == pytest.approx(
            100 * t * differences.std() / len(differences) ** 0.5, rel=1e-5
        )


def test_every_yaml_says_what_was_trained(make_run: Make) -> None:
    run = make_run()
    table = results.read(run).set_index("recipe_id")
    for entry in recipes_of(run):
        loaded = yaml.safe_load(entry["yaml"])
        row = table[table["phase"] == "search"].loc[entry["id"]].iloc[0]
        experiment = {"pair": "tiny", "data": "digits", "train_size": 1000}
        assert loaded == {"recipe": row["recipe"], **experiment, "seed": 0}
        assert list(loaded) == ["recipe", *experiment, "seed"] and entry["yaml"].count("\n") == len(loaded)


def test_yaml_quotes_what_it_must() -> None:
    line = "kd(temperature=2)@epochs=60>rkd: [1]\n# " + "weight=1 " * 100
    told = {"pair": "NULL", "data": "1e3", "data_dir": "/a b/ü", "precision": "no", "train_size": 10, "compile": True}
    told |= {"teacher_learning_rate": 1e-05}
    text = recipe_yaml(line, told, 5)
    assert yaml.safe_load(text) == {"recipe": line, **told, "seed": 5}
    assert all(re.match(r"\w+: ", line) for line in recipe_yaml("kd>rkd " * 99, told, 5).splitlines())


def test_best_yaml_is_shown_for_the_winner_only_where_it_is_the_winners(make_run: Make) -> None:
    run = make_run()
    (run / "best.yaml").write_text("recipe: kd>rkd # as written\n")
    winner = contents(run)["data"]["pinned"]
    assert next(r for r in recipes_of(run) if r["id"] == winner)["yaml"] == "recipe: kd>rkd # as written\n"
    info = json.loads((run / "run.json").read_text()) | {"winner": "another"}
    (run / "run.json").write_text(json.dumps(info))
    assert "as written" not in build(run).read_text()


def test_settings_without_effect_are_a_dash(make_run: Make) -> None:
    entries = contents(make_run())["entries"]
    single = next(e for e in entries if e["name"] == "kd")
    free = next(e for e in entries if e["anchoring"] == "no anchor")
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
    assert "One seed a recipe: no interval" in text and not re.search(r"\d ± \d", text)
    assert "one seed each: no interval can be given" in text and "With one seed a recipe there is no P(front)" in text


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
    assert shown["gains"] == [] and "so there is no gain over 1-stage kd to show" in text_of(run)


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
    poor = [r for r in recipes_of(run) if r["validation_below"]]
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
    recipes = [KD, KD | {"methods": f"kd{evil}"}, KD | {"methods": "kd>rkd", "anchor": evil}]

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


def test_two_thousand_recipes_take_seconds_and_a_page_that_can_be_sent(make_run: Make) -> None:
    rng = np.random.default_rng(1)
    recipes = [
        {"methods": "kd>fitnets>rkd", "weighting": "tcp", "lambda_base": float(x), "anchor": "reference", "teachers": 1}
        for x in rng.uniform(0, 1, 2000)
    ]
    run = make_run(recipes=recipes)
    command = [sys.executable, "-m", "reports.build", f"run={run}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, cwd=Path(page.__file__).parents[1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, since others may use the machine: a second or more of it, Vega's, is spent beside the rest.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
    assert (run / "report.html").stat().st_size < 3e6


def test_bad_run_folders_are_named_in_one_line_and_leave_the_old_page(
    make_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    build(run)
    (run / "report.html").write_text("old")
    whole = (run / "run.json").read_text()
    told = json.loads(whole)
    upside_down = {"error": [1, 0], "cost": [1, 2], "cost_name": "flops"}
    for content, message in (
        (whole[:50], "damaged or half-written"),
        ([], "has schema 'list', but this program reads 2"),
        (told | {"schema": 9}, "has schema 9, but this program reads 2"),
        (told | {"config": None}, r"isn't as a search writes it: Expected `object`, got `null` - at `\$\.config`"),
        (told | {"box": {"error": [0, 1]}}, r"missing required field `cost` - at `\$\.box`"),
        (told | {"box": upside_down | {"error": [1]}}, r"Expected `array` of length 2.* - at `\$\.box\.error`"),
        (told | {"box": upside_down}, "low < high"),
        (told | {"objectives": ["error", "money"]}, r"Invalid enum value 'money' - at `\$\.objectives\[1\]`"),
        (told | {"objectives": ["flops", "error"]}, "objectives must be error and then costs"),
        (told | {"limits": {"flops": "few"}}, r"Expected `float \| null`, got `str` - at `\$\.limits"),
        (told | {"dataset": {"test": "many"}}, r"Expected `int \| null`, got `str` - at `\$\.dataset\.test`"),
        (told | {"versions": [1]}, r"Expected `object \| null`, got `array` - at `\$\.versions`"),
        (told | {"settings": {"learning_rate": 1}}, r"Expected `str`, got `int` - at `\$\.settings"),
    ):
        content = content if isinstance(content, str) else json.dumps(content)
        (run / "run.json").write_text(content)
        assert main([f"run={run}"]) == 2
        out, err = capsys.readouterr()
        assert re.search(message, err) and err.count("\n") == 1 and not out
    assert (run / "report.html").read_text() == "old"
    (run / "run.json").write_text(whole)
    for argv in (
        *([], ["run="], ["folder"], [f"run={run}", "x=1"], [f"run={tmp_path / 'nowhere'}"]),
        *([f"run={run}", "figures=[gif]"], [f"run={run}", f"run={run}"]),
    ):
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
            assert not {name.split(".")[0] for name in names} & {"torch", "ray", "smskd", "search"}, file.name
            # fANOVA's forest is Optuna's, and slow to import
            assert "optuna" not in {n.split(".")[0] for n in names} or file.name == "importance.py", file.name


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123"), (1.5, "1.5"), (99.96, "100"), (1234.5, "1,234"), (-0.5, MINUS + "0.5")],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_figures_are_written_as_files_and_declared_as_vega_lite_wants_it(make_run: Make) -> None:
    run = make_run()
    assert main([f"run={run}", "figures=[png,svg,pdf]"]) == 0
    names = {f"accuracy-{panel}-{cost}" for panel in ("validation", "test") for cost in ("flops", "seconds")}
    names |= {"gains", "hypervolume", "importance"}
    files = {path.name: path for path in (run / "figures").iterdir()}
    assert set(files) == {f"{name}.{suffix}" for name in names for suffix in FORMATS}
    heads = {"png": b"\x89PNG", "svg": b"<svg", "pdf": b"%PDF-"}
    for name, path in files.items():
        content = path.read_bytes()
        assert content.startswith(heads[name.partition(".")[2]]) and len(content) > 4000, name
    for name in names:
        text = files[f"{name}.svg"].read_text()
        assert "var(" not in text and figures.PALETTE["light"]["muted"] in text
    assert ">E<" in files["accuracy-test-flops.svg"].read_text() and "no such" not in text
    for spec in data_of(run)["figures"].values():
        for one in spec.values() if "layer" not in spec else [spec]:
            alt.LayerChart.from_dict(one, validate=True)


def test_a_figure_on_another_axis_is_the_one_declared_anew() -> None:
    old = figures.cost_axis("flops", "work", [1.0, 2.0, 30.0])
    new = figures.cost_axis("seconds", "time", [-1.0, 2.0])
    both = [figures.accuracy(panel="test", axis=axis, low=1, high=2, teacher=1.5, recipes=3) for axis in (old, new)]
    assert figures.on_axis(both[0], old, new) == both[1] != both[0]


def test_limits_and_three_objectives_are_said(make_run: Make) -> None:
    limits = {"params": 10_000, "latency_ms": None, "flops": 2.5e10}
    run = make_run(objectives=["error", "flops", "seconds"], limits=limits)
    _with(run, config=json.loads((run / "run.json").read_text())["config"] | {"cost": "flops,seconds"})
    text, table = text_of(run), results.read(run)
    over = table[table["phase"] == "search"].groupby("recipe_id")["train_flops"].mean() > 2.5e10
    assert 0 < over.sum() < len(over)
    assert f"{over.sum()} recipes over a limit (10,000 parameters at most, 25 GFLOP at most)" in text
    assert "grey, hollow: over a limit" in text and text.count("over a limit") > over.sum()
    assert "non-dominated in error, FLOPs and device time together" in text
    shown = recipes_of(run)
    assert {r["id"] for r in shown if not r["feasible"]} == set(over[over].index)
    assert not any(r["letter"] for r in shown if not r["feasible"])


def test_a_run_without_a_recipe_within_the_limits_has_a_page_and_no_winner(make_run: Make) -> None:
    run = make_run(limits={"params": 1, "latency_ms": None, "flops": None}, confirm=0)
    text = text_of(run)
    assert "no finished recipe keeps to the limits" in text and "There is no front" in text
    assert contents(run)["data"]["lines"] == [] and "P(front) 0" not in text


def test_pruned_recipes_and_warm_starts_are_said(make_run: Make) -> None:
    def prune(rows: list[dict[str, Any]]) -> None:
        for row in rows[-6:]:
            row.update(status="pruned", val_accuracy=None, error="dominated after stage 1")

    run = make_run(change=prune, confirm=0)
    info = json.loads((run / "run.json").read_text())
    _with(run, config=info["config"] | {"warm_start": ["runs/before"]})
    text = text_of(run)
    assert "2 recipes given up or not begun (pruned)" in text and "dominated after stage 1" in text
    assert "6 pruned" in text and "(warm_start): runs/before" in text


def test_without_a_baseline_or_a_box_the_page_says_so(make_run: Make) -> None:
    run = make_run(recipes=[KD | {"methods": "kd>rkd"}, KD | {"methods": "rkd>kd>fitnets"}], box=None)
    text = text_of(run)
    assert "there is no baseline to take gains over" in text and "holds no box" in text


def test_a_baseline_that_was_not_confirmed_leaves_gains_on_validation(make_run: Make) -> None:
    run = make_run()
    table = results.read(run)
    kept = table[(table["phase"] == "search") | (table["methods"] != "kd")]
    results.write([{str(k): v for k, v in row.items()} for row in kept.to_dict("records")], run)
    assert {g["split"] for g in data_of(run)["gains"]} == {"validation"}
    assert "The baseline wasn't confirmed, so there is no gain on test" in text_of(run)
