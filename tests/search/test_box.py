"""The box of hypervolume: the rule, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from search import bench, config
from search.box import decide
from smskd import data, pairs
from smskd.recipe import parse

BENCH: dict[str, Any] = {
    "teacher": {"val_accuracy": 0.9},
    "student": {"params": 100},
    "dataset": {"classes": 10},
    "latency_ms": 4.0,
    "epoch": {
        **{"train_flops": 30.0, "student_flops": 10.0, "teacher_flops": 50.0},
        **{"train_seconds": 3.0, "student_seconds": 1.0, "teacher_seconds": 2.0},
    },
}
RECIPES = [parse("kd"), parse("kd>rkd"), parse("kd+rkd teachers=2")]


@pytest.mark.parametrize(
    ("words", "recipes", "cost"),
    [
        # 2 epochs a stage: bare training of one stage, everything of two or three
        (["epochs=2"], RECIPES[:2], [0.5 * 30 * 2, 1.5 * (30 + 10 + 50) * 4]),
        (["epochs=2"], None, [0.5 * 30 * 2, 1.5 * (30 + 10 + 50) * 6]),
        (["epochs=2", "cost=seconds"], RECIPES[:2], [0.5 * 3 * 2 / 2, 1.5 * (3 + 1 + 2) * 4 * 2]),
        # a total is every recipe's, and an ensemble asks two teachers
        (["epochs_total=7"], RECIPES, [0.5 * 30 * 7, 1.5 * (30 + 10 + 2 * 50) * 7]),
        (["cost=params"], RECIPES, [50.0, 200.0]),
        (["cost=latency"], RECIPES, [2.0, 8.0]),
    ],
)
def test_the_rule(words: list[str], recipes: Any, cost: list[float]) -> None:
    settings = config.parse(words)
    box = decide(settings, BENCH, recipes)
    assert box["error"] == pytest.approx([0, 0.35]) and box["cost"] == pytest.approx(cost)
    assert box["cost_name"] == settings.costs[0]


def test_it_ends_at_the_error_of_guessing() -> None:
    bad = BENCH | {"teacher": {"val_accuracy": 0.2}}
    assert decide(config.parse([]), bad, RECIPES)["error"] == pytest.approx([0, 0.9])


def test_a_given_one_is_taken_as_it_is() -> None:
    box = decide(config.parse(["box=[0.1,0.5,1e3,1e6]"]), {}, None)
    assert box == {"error": [0.1, 0.5], "cost": [1e3, 1e6], "cost_name": "flops"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("[0,1,2]", "needs 4 numbers"),
        ("[0.5,0.2,1,2]", "error_low < error_high"),
        ("[0,2,1,2]", "error_high <= 1"),
        ("[0,1,0,2]", "0 < cost_low"),
        ("[0,1,1,nan]", "cost_low < cost_high"),
        ("[0,a,1,2]", "a list of numbers"),
    ],
)
def test_a_wrong_one_is_refused(given: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config.parse([f"box={given}"])


def test_an_epoch_is_counted_as_a_stage_is() -> None:
    digits = data.load("digits", train_size=200)
    pair = pairs.choose("tiny", None, None)
    found = bench.epoch(pair, digits, timed=True)
    assert found["train_flops"] == 3 * found["student_flops"] > 0
    # an incomplete last batch of an epoch is left out
    images = len(digits.train) // pair.student_schedule.batch_size * pair.student_schedule.batch_size
    assert found["student_flops"] % images == 0 and found["teacher_flops"] > found["student_flops"]
    assert found["train_seconds"] > 0 and found["teacher_seconds"] > 0
    assert torch.is_grad_enabled()
