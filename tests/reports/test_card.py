"""The model card and the tables of a run: numbers recomputed by other means, honest in every state, safe with names."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from reports import card, load, results
from reports.build import build, main
from reports.tables import markdown_text
from reports.text import MINUS, cost_text, duration

Make = Callable[..., Path]
KD = {"methods": "kd", "weighting": "fixed", "lambda_base": 0.5, "anchor": "reference", "teachers": 1}
STUDENT = {
    **{"network": "tiny_student", "recipe": "kd", "seed": 2, "val_accuracy": 0.9321, "key": "k" * 64, "classes": 10},
    **{"channels": 1, "height": 8, "width": 8, "mean": [0.3], "std": [0.4], "pixels": "float32", "sha256": "0" * 64},
}


def text_of(run: Path) -> str:
    build(run)
    return (run / card.NAME).read_text()


def matter(text: str) -> dict[str, Any]:
    """The YAML block on top."""
    found = re.match(r"---\n(.*?)\n---\n", text, flags=re.DOTALL)
    assert found
    return dict(yaml.safe_load(found[1]))


def interval(groups: list[np.ndarray], n: int) -> float:
    """Half of the 95 % interval of a mean of n, the deviation pooled."""
    degrees = sum(len(g) - 1 for g in groups)
    pooled = math.sqrt(sum(((g - g.mean()) ** 2).sum() for g in groups) / degrees)
    return float(stats.t.ppf(0.975, degrees)) * pooled / math.sqrt(n)


def grid(text: str, header: str) -> list[list[str]]:
    """Cells of the table of Markdown whose header begins so."""
    lines = text.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith(header))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def best_of(table: pd.DataFrame) -> str:
    return str(table[table["phase"] == "search"].groupby("recipe_id")["val_accuracy"].mean().idxmax())


def test_its_numbers_recomputed(make_run: Make) -> None:
    run = make_run()
    text, table = text_of(run), results.read(run)
    best = best_of(table)
    cells = grid(text, "| split | accuracy")
    wanted = (("search", "val_accuracy", 3), ("confirm", "test_accuracy", 5))
    for line, (phase, column, n) in zip(cells, wanted, strict=True):
        rows = table[table["phase"] == phase]
        groups = [group.to_numpy() for _, group in rows.groupby("recipe_id")[column]]
        mean = rows[rows["recipe_id"] == best][column].mean()
        assert line[1] == f"{100 * mean:.2f} ± {100 * interval(groups, n):.2f}" and line[2] == str(n)
    recipe = table.loc[table["recipe_id"] == best, "recipe"].iloc[0]
    test = table[(table["phase"] == "confirm") & (table["recipe_id"] == best)]["test_accuracy"].mean()
    model = matter(text)["model-index"][0]
    assert model["name"] == f"tiny_student ({recipe})"
    (of_test,) = model["results"]
    assert of_test["dataset"] == {"name": "digits", "type": "digits", "split": "test"}
    assert of_test["metrics"][0]["value"] == pytest.approx(test, abs=1e-6)
    assert "licence" not in matter(text) and "license" not in matter(text)
    sampling = 1.959964 * math.sqrt(test * (1 - test) / 399)
    assert f"± {100 * sampling:.2f} points (95 %), beside the seeds" in text
    assert "The test split was opened once, on 2026-11-24 05:40 UTC, for the frozen front." in text
    assert "of 45 candidates, each trained with 3 seeds" in text and "the best on validation of 45 recipes" in text
    spread = np.sqrt(table[table["phase"] == "search"].groupby("recipe_id")["val_accuracy"].var().mean())
    assert f"standard deviation of {100 * spread:.2f} points on validation" in text
    assert "1,000 training, 398 validation and 399 test images of 10 classes" in text
    assert f"```yaml\n{(run / 'best.yaml').read_text()}```" in text
    parts = ("Model details", "Intended use", "Training data", "Training procedure", "Evaluation", "Limitations")
    for part in (*parts, "How it was chosen", "Provenance"):
        assert text.count(f"\n## {part}\n") == 1
    assert "commit `abc1234def5678`" in text and "torch 2.14.1" in text
    spent = table["spent_seconds"].sum()
    assert f"{duration(spent)} on the device" in text and f"{spent // 60:.0f} min {round(spent % 60):02d} s" in text


def test_the_gain_recomputed(make_run: Make) -> None:
    run = make_run()
    text, table = text_of(run), results.read(run)
    best = best_of(table)
    confirm = table[table["phase"] == "confirm"].pivot(index="seed", columns="recipe_id", values="test_accuracy")
    base = table.loc[table["methods"] == "kd", "recipe_id"].iloc[0]
    difference = confirm[best] - confirm[base]
    half = stats.t.ppf(0.975, 4) * difference.std(ddof=1) / math.sqrt(5)
    shown = f"{100 * difference.mean():+.2f} ± {100 * half:.2f}"
    assert f"Gain over kd on test: {shown.replace('-', MINUS)} points (5 seeds in pairs, Holm's p" in text


def test_with_and_without_a_student(make_run: Make) -> None:
    run = make_run()
    text = text_of(run)
    assert "weights: none are in this folder" in text and "```python" not in text
    (run / "student.json").write_text(json.dumps(STUDENT))
    (run / "student.safetensors").touch()
    (run / "student.onnx").touch()
    text = text_of(run)
    assert (
        "of the training with seed 2, the best of this recipe's on validation (93.21 %): that number flatters" in text
    )
    assert "- `student.onnx`" in text and "- `student.pt2`" not in text
    (code,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    compile(code, "card", "exec")
    assert "(floating point)" in text
    (run / "student.json").write_text(json.dumps(STUDENT | {"pixels": "uint8"}))
    assert "(0 to 255)" in text_of(run)
    (run / "student.json").write_text("{")
    assert main([f"run={run}"]) == 2


def test_a_test_split_that_was_not_opened_and_one_opened_again(make_run: Make) -> None:
    text = text_of(make_run(confirm=0))
    assert "**The test split was not opened: the accuracy on validation flatters its winner.**" in text
    assert "It was not confirmed" in text and len(grid(text, "| split")) == 1
    assert matter(text)["model-index"][0]["results"][0]["dataset"]["split"] == "validation"
    again = {"seeds": [100], "opened": "2026-11-25T05:40:00+00:00", "reopened": True}
    text = text_of(make_run(confirm=2, recipes=[KD]))
    assert "opened once" in text and "more than once" not in text
    run = make_run()
    (run / "run.json").write_text(json.dumps(json.loads((run / "run.json").read_text()) | {"confirm": again}))
    text = text_of(run)
    assert "**The test split was opened more than once**, last on 2026-11-25 05:40 UTC" in text
    assert "opened once" not in text and "not free of the choice" in text


def test_one_seed_and_an_unfinished_search(make_run: Make) -> None:
    text = text_of(make_run(seeds=1, confirm=1, finished=None))
    assert "The search had one seed a recipe, so that there is no interval on validation." in text
    assert "There was one fresh seed, so that there is no interval on test." in text
    assert all("±" not in row[1] for row in grid(text, "| split"))
    assert "**The search hasn't finished: this card is of what it had.**" in text


def test_the_papers_protocol_is_a_row_of_its_own(make_run: Make) -> None:
    run = make_run()
    assert "paper's protocol" not in text_of(run)
    rows = results.read(run)
    rows["test_best_accuracy"] = (rows["test_accuracy"] + 0.01).where(rows["phase"] == "confirm")
    results.write(rows.astype(object).where(rows.notna(), None).to_dict("records"), run)  # type: ignore[arg-type]
    confirmed = rows[(rows["recipe_id"] == best_of(rows)) & (rows["phase"] == "confirm")]
    line = grid(text_of(run), "| split")[2]
    assert line[0] == "test, best epoch" and line[1] == f"{100 * confirmed['test_best_accuracy'].mean():.2f}"
    assert "flatters" in line[3]


def test_a_teacher_from_a_file_with_its_warnings(make_run: Make) -> None:
    told = {"name": "t", "params": 7, "source": "file t.pth", "val_accuracy": 0.99, "test_accuracy": 0.7}
    text = text_of(make_run(teacher=told | {"train_accuracy": 1.0, "warnings": ["the teacher is doubtful"]}))
    assert "file t.pth, 99.00 % on validation, 70.00 % on test, 100.00 % on training images\n" in text
    assert "- warning: the teacher is doubtful" in text


def test_nothing_finished_is_no_card_and_tables_that_say_so(make_run: Make) -> None:
    def fail(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row |= {"status": "failed", "error": "NaN", "val_accuracy": None}

    run = make_run()
    text_of(run)
    run = make_run(change=fail, confirm=0)
    build(run)
    assert not (run / card.NAME).exists(), "the card of an earlier state is no card of this one"
    assert "No recipe has finished." in (run / "tables.md").read_text()
    assert "No recipe has finished." in (run / "tables.tex").read_text()


EVIL = "<script>alert(1)</script> `x` | *b* [l](http://e) \n# h\n---\n"


def test_every_text_is_escaped(make_run: Make) -> None:
    run = make_run(
        teacher={"name": EVIL, "params": 10, "val_accuracy": 0.9, "source": EVIL, "digest": EVIL},
        student={"name": EVIL, "params": 10},
        commit=EVIL,
        versions={EVIL: EVIL},
        machine={"cpu": EVIL, "cores": 2, "gpus": [EVIL]},
    )
    info = json.loads((run / "run.json").read_text())
    info["dataset"]["name"] = info["config"]["space"] = info["sampler"] = EVIL
    (run / "run.json").write_text(json.dumps(info))
    (run / "best.yaml").write_text(f"data: '```\n{EVIL}'\n")
    (run / "student.json").write_text(json.dumps(STUDENT | {"seed": EVIL, "key": EVIL}))
    (run / "student.safetensors").touch()
    text = text_of(run)
    assert matter(text)["model-index"][0]["results"][0]["dataset"]["name"] == EVIL
    body = re.sub(r"^---\n.*?\n---\n", "", text, flags=re.DOTALL)
    body = re.sub(r"^(`{3,})\w+\n.*?^\1$", "", body, flags=re.DOTALL | re.MULTILINE)  # code shows what it holds
    body = re.sub(r"(?<!\\)`[^`\n]*`", "", body)
    assert "alert" in body and not re.search(r"(?<!\\)<", body)
    assert not re.search(r"(?<!\\)\[l", body) and "\n# h" not in body and "\n---" not in body
    for line in body.splitlines():
        assert not line.startswith("#") or re.match(r"##? \S", line)
    assert len(re.findall(r"^# ", body, flags=re.MULTILINE)) == 1
    md, tex = ((run / name).read_text() for name in ("tables.md", "tables.tex"))
    assert not re.search(r"(?<!\\)<", md) and markdown_text(EVIL) in md
    assert "<script>" not in tex and r"\textless{}script\textgreater{}" in tex


# --- tables.md and tables.tex


def test_the_front_table_recomputed(make_run: Make) -> None:
    run = make_run()
    build(run)
    md, table = (run / "tables.md").read_text(), results.read(run)
    search, confirm = (table[table["phase"] == phase] for phase in ("search", "confirm"))
    by_recipe = search.groupby("recipe_id").agg({"val_accuracy": "mean", "train_flops": "mean", "methods": "first"})
    front = [
        of
        for of, row in by_recipe.iterrows()
        if not (
            (by_recipe["val_accuracy"] >= row["val_accuracy"])
            & (by_recipe["train_flops"] <= row["train_flops"])
            & ((by_recipe["val_accuracy"] > row["val_accuracy"]) | (by_recipe["train_flops"] < row["train_flops"]))
        ).any()
    ]
    groups = [group.to_numpy() for _, group in search.groupby("recipe_id")["val_accuracy"]]
    lines = {line[0]: line for line in grid(md, "|  | recipe | anchor")}
    ordered = sorted(front, key=lambda of: by_recipe.loc[of, "train_flops"])
    assert [letter for letter in lines if letter.isalpha()] == [chr(ord("A") + k) for k in range(len(front))]
    for letter, of in zip("ABCDEFGHIJ", ordered, strict=False):
        line = lines[letter]
        assert line[1].startswith(by_recipe.loc[of, "methods"].replace(">", " → "))
        assert line[3] == f"{100 * by_recipe.loc[of, 'val_accuracy']:.2f} ± {100 * interval(groups, 3):.2f}"
        tested = confirm[confirm["recipe_id"] == of]["test_accuracy"]
        assert line[6].startswith(f"{100 * tested.mean():.2f} ± ") and line[7] == "5"
        assert 0 <= float(line[5]) <= 1
        assert line[9] == cost_text("flops", by_recipe.loc[of, "train_flops"])
    assert sum("winner" in line[1] for line in lines.values()) == 1
    assert sum("baseline" in line[1] for line in lines.values()) == 1
    gains = grid(md, "|  | recipe | split")
    others = [of for of in front if by_recipe.loc[of, "methods"] != "kd"]
    assert {line[8] for line in gains} <= {"above", "below", "unclear"} and len(gains) == 2 * len(others) > 0
    base = by_recipe.index[by_recipe["methods"] == "kd"][0]
    seeds = confirm.pivot(index="seed", columns="recipe_id", values="test_accuracy")
    for line in (line for line in gains if line[2] == "test"):
        difference = seeds[ordered[ord(line[0]) - ord("A")]] - seeds[base]
        found = stats.ttest_1samp(difference, 0)
        assert line[3].startswith(f"{100 * difference.mean():+.2f} ± ".replace("-", MINUS))
        assert line[5] == f"{(difference > 0).mean():.2f}"
        assert line[6] == (r"\< 0.001" if found.pvalue < 0.001 else f"{found.pvalue:.3f}")


def test_latex_has_the_numbers_of_markdown(make_run: Make) -> None:
    run = make_run()
    build(run)
    md, tex = ((run / name).read_text() for name in ("tables.md", "tables.tex"))
    of_md = [re.findall(r"\d+\.\d+", line) for line in md.splitlines() if line.startswith("| ") and "---" not in line]
    of_tex = [re.findall(r"\d+\.\d+", line) for line in tex.splitlines() if line.endswith(r" \\")]
    assert of_md == of_tex and sum(map(len, of_md)) > 40


@pytest.mark.parametrize(
    ("cost", "value", "text"),
    [
        ("flops", 3.852e8, "385 MFLOP"), ("flops", 12.0, "12 FLOP"), ("flops", 2.5e18, "2.5 EFLOP"),
        ("params", 1442, "1.44 k parameters"), ("params", 12, "12 parameters"), ("seconds", 90.0, "1 min 30 s"),
        ("latency", 0.3123, "0.312 ms"), ("latency", None, "–"),  # noqa: RUF001
    ],
)  # fmt: skip
def test_costs_in_words(cost: str, value: float | None, text: str) -> None:
    assert cost_text(cost, value) == text


def test_2000_recipes_take_no_longer_than_the_page(make_run: Make) -> None:
    import time

    from reports import gains

    recipes = [KD | {"methods": "kd>rkd", "lambda_base": k / 2000, "weighting": "tcp"} for k in range(1999)]
    run = make_run(recipes=[KD, *recipes])
    read = load.run(run)
    started = time.process_time()
    gains.write(run, read)
    card.write(run, read)
    assert time.process_time() - started < 3
