"""The box of hypervolume: the rule, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from search import config, facts
from search.box import decide
from smskd import data
from smskd.experiment import Experiment
from smskd.notation import parse

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
RECIPES = ["kd", "kd>rkd", "kd+rkd teachers=2"]


@pytest.mark.parametrize(
    ("words", "recipes", "cost"),
    [
        # 2 epochs a stage: bare training of one stage, everything of two
        ([], ["kd epochs=2", "kd>rkd epochs=2"], [0.5 * 30 * 2, 1.5 * (30 + 10 + 50) * 4]),
        # stages of unequal length, and where nothing is said those of the pair
        ([], ["kd@epochs=2>rkd@epochs=5", "kd"], [0.5 * 30 * 7, 1.5 * (30 + 10 + 50) * 12]),
        (["cost=seconds"], ["kd epochs=2", "kd>rkd epochs=2"], [0.5 * 3 * 2 / 2, 1.5 * (3 + 1 + 2) * 4 * 2]),
        # a total is every recipe's, and an ensemble asks two teachers
        ([], [f"{one} epochs_total=7" for one in RECIPES], [0.5 * 30 * 7, 1.5 * (30 + 10 + 2 * 50) * 7]),
        (["cost=params"], RECIPES, [50.0, 200.0]),
        (["cost=latency"], RECIPES, [2.0, 8.0]),
    ],
)
def test_the_rule(words: list[str], recipes: list[str], cost: list[float]) -> None:
    settings = config.parse(words)
    box = decide(settings, BENCH, [parse(text) for text in recipes])
    assert box["error"] == pytest.approx([0, 0.35]) and box["cost"] == pytest.approx(cost)
    assert box["cost_name"] == settings.cost[0]


def test_it_ends_at_the_error_of_guessing() -> None:
    bad = BENCH | {"teacher": {"val_accuracy": 0.2}}
    assert decide(config.parse([]), bad, [parse("kd")])["error"] == pytest.approx([0, 0.9])


@pytest.mark.parametrize(("test", "error"), [(0.9, 0.35), (0.8, 0.65), (0.95, 0.35), (0.3, 0.9)])
def test_a_teacher_that_saw_validation_shuts_no_student_out(test: float, error: float) -> None:
    """What counts is its larger error."""
    seen = BENCH | {"teacher": {"val_accuracy": 0.9, "test_accuracy": test}}
    assert decide(config.parse([]), seen, [parse("kd")])["error"] == pytest.approx([0, error])


def test_a_given_one_is_taken_as_it_is() -> None:
    box = decide(config.parse(["box=[0.1,0.5,1e3,1e6]"]), {}, [])
    assert box == {"error": [0.1, 0.5], "cost": [1e3, 1e6], "cost_name": "flops"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("[0,1,2]", "needs 4 numbers"),
        ("[0.5,0.2,1,2]", "error_low < error_high"),
        ("[0,2,1,2]", "error_high <= 1"),
        ("[0,1,0,2]", "0 < cost_low"),
        ("[0,1,1,nan]", "box is finite"),
        ("[0,1,2,1]", "cost_low < cost_high"),
        ("[0,a,1,2]", "a list such as"),
    ],
)
def test_a_wrong_one_is_refused(given: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config.parse([f"box={given}"])


def test_an_epoch_is_counted_as_a_stage_is() -> None:
    digits, made = data.load("digits", train_size=200), Experiment()
    found = facts.epoch(made, digits, timed=True)
    assert found["train_flops"] == 3 * found["student_flops"] > 0
    # an incomplete last batch of an epoch is left out
    size = made.defaults["batch_size"]
    images = len(digits.train) // size * size
    assert found["student_flops"] % images == 0 and found["teacher_flops"] > found["student_flops"]
    assert found["train_seconds"] > 0 and found["teacher_seconds"] > 0
    assert torch.is_grad_enabled()
