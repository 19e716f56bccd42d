"""What each stage kept: from stages.csv to the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from reports import build, results, stages

LABELS = {"b": "kd>rkd, λ 0.5", "a": "kd", "c": "kd>rkd, no anchor", "d": "rkd>kd, λ 0.5"}


def row(
    recipe_id: str, methods: str, seed: int, stage: int, losses: list[float], phase: str = "search"
) -> dict[str, object]:
    return {
        "methods": methods, "recipe_id": recipe_id, "seed": seed, "phase": phase, "stage": stage,
        "stage_methods": methods.split(">")[stage - 1], "val_accuracy": 0.9 + 0.02 * seed, "agreement_teacher": 0.8,
        "agreement_previous": None if stage == 1 else 0.95,
        **{f"loss_of_stage_{k}": loss for k, loss in enumerate(losses, 1)},
    }  # fmt: skip


def table() -> pd.DataFrame:
    rows = [row("a", "kd", seed, 1, [0.5]) for seed in (0, 1)]
    for name, after in (("b", 0.55), ("c", 0.8)):
        for seed in (0, 1):
            rows += [row(name, "kd>rkd", seed, 1, [0.5]), row(name, "kd>rkd", seed, 2, [after, 2.0])]
    rows += [row("b", "kd>rkd", 9, 1, [99.0], "confirm")]
    rows += [row("d", "rkd>kd", 0, 1, [3.0]), row("d", "rkd>kd", 0, 2, [3.0, 0.4])]
    return pd.DataFrame(rows)


def test_a_stages_loss_is_followed_through_the_later_ones() -> None:
    best, other = stages.groups(table(), LABELS, "b")
    assert (best["label"], other["label"]) == ("kd>rkd, λ 0.5", "kd>rkd, no anchor")
    assert [r["losses"] for r in best["rows"]] == [["0.5", ""], ["0.55 (+10 %)", "2"]]
    assert other["rows"][1]["losses"] == ["0.8 (+60 %)", "2"]
    assert best["rows"][1] | {"losses": []} == {
        "stage": 2, "methods": "rkd", "validation": "91.00", "teacher": "80.0", "previous": "95.0", "losses": [],
    }  # fmt: skip
    assert best["rows"][0]["previous"] == ""


def test_a_best_recipe_of_one_stage_gives_way_to_the_best_of_several() -> None:
    assert stages.groups(table(), LABELS, "a")[0]["label"] == "kd>rkd, λ 0.5"
    # the best of several stages ran with one anchor only: the sequence with most anchors follows
    assert [group["label"] for group in stages.groups(table(), LABELS, "d")] == [LABELS[name] for name in "dbc"]
    alone = table().query("recipe_id == 'a'")
    assert stages.groups(alone, LABELS, "a") == []


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    assert stages.read(tmp_path) is None
    (tmp_path / stages.NAME).write_text("\n")
    assert stages.read(tmp_path) is None
    (tmp_path / stages.NAME).write_text("recipe,seed\nkd,0\n")
    with pytest.raises(ValueError, match=r"stages.csv lacks the columns methods, recipe_id"):
        stages.read(tmp_path)


def test_the_page_shows_it_and_escapes_it(make_run: Callable[..., Path]) -> None:
    run = make_run()
    build.build(run)
    assert "What each stage kept" not in (run / "report.html").read_text()
    rows = results.read(run)
    several = rows[(rows["phase"] == "search") & (rows["n_stages"] > 1)].iloc[0]
    evil = "<script>alert(1)</script>"
    told = [row(several["recipe_id"], several["methods"], 0, k, [0.25] * k) | {"stage_methods": evil} for k in (1, 2)]
    pd.DataFrame(told).to_csv(run / stages.NAME, index=False)
    build.build(run)
    assert 'href="./stages.html"' in (run / "report.html").read_text()
    page = (run / "stages.html").read_text()
    assert "What each stage kept" in page and "0.25 (+0 %)" in page
    assert evil not in page and json.loads((run / "run.json").read_text())
