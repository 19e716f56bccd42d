"""A teacher from a file, looked at: what its accuracies give away, and where that is said."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from search import facts
from smskd import train
from smskd.given_teacher import Accuracies, accuracies
from tests.smskd import small

CIFAR = Accuracies(
    train=0.99, validation=0.73, test=0.72, guessing=0.01, validation_images=5_000, test_images=10_000
)  # fmt: skip


def _with(**changes: Any) -> Accuracies:
    return dataclasses.replace(CIFAR, **changes)


@pytest.mark.parametrize(
    ("teacher", "chance"),
    [
        (CIFAR, False),
        (_with(validation=0.0), True),
        (_with(validation=0.0199), True),
        (_with(validation=0.021), False),
        (_with(validation=0.19, guessing=0.1), True),
        (_with(validation=0.2, guessing=0.1), False),
        # three standard errors of 50 images are 0.127
        (_with(validation=0.22, guessing=0.1, validation_images=50), True),
        (_with(validation=0.23, guessing=0.1, validation_images=50), False),
        # of two classes; and of two of which one is the rule
        (_with(validation=0.55, guessing=0.5), True),
        (_with(validation=0.56, guessing=0.5), False),
        (_with(validation=0.9, guessing=0.9), True),
        (_with(validation=0.93, guessing=0.9), False),
    ],
)
def test_chance(teacher: Accuracies, chance: bool) -> None:
    assert teacher.at_chance == chance
    assert any("guessing" in warning for warning in teacher.warnings) == chance


@pytest.mark.parametrize(
    ("teacher", "saw"),
    [
        (CIFAR, False),
        (_with(validation=0.995), True),
        (_with(validation=0.755), True),
        (_with(validation=0.745), False),  # three points and more
        # four standard errors of 100 and 200 images are some 18 points
        (_with(validation=0.88, validation_images=100, test_images=200), False),
        (_with(validation=0.95, validation_images=100, test_images=200), True),
        (_with(validation=1.0, test=1.0), False),
        (_with(validation=0.72, test=0.8), False),
    ],
)
def test_memory(teacher: Accuracies, saw: bool) -> None:
    assert teacher.saw_validation == saw
    assert any("trained on validation" in warning for warning in teacher.warnings) == saw


def _file(tmp_path: Path, *, trained: bool, also_on_validation: bool = False) -> Path:
    bench = small.prepare(tmp_path / "store", teacher_epochs=1)
    network, data = bench.teacher.network, bench.data
    if also_on_validation:
        network.requires_grad_(True).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        images = data.normalised(data.validation.images)
        for _ in range(25):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(images).logits, data.validation.labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    elif not trained:
        torch.nn.init.zeros_(network.classifier.weight)  # type: ignore[union-attr, arg-type]
    path = tmp_path / "t.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    return path


def test_what_is_trained_here_is_not_looked_at(tmp_path: Path) -> None:
    bench = small.prepare(tmp_path / "store", teacher_epochs=1)
    assert accuracies(bench) is None
    assert not {"test_accuracy", "train_accuracy", "warnings"} & set(
        facts.describe(bench, latency=False, timed=False)["teacher"]
    )


def test_one_that_guesses_is_said_to_by_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file(tmp_path, trained=False)
    words = [f"teacher={path}", "recipe=kd", "epochs=1", "train_size=100", f"store={tmp_path / 's'}"]
    assert train.main([*words, f"out={tmp_path / 'o.safetensors'}"]) == 0
    out, err = capsys.readouterr()
    assert "% on test" in out and "% on training images" in out
    assert err.startswith("warning: the teacher is right on ") and err.count("\n") == 1


def test_one_that_saw_validation_is_told_in_the_facts(tmp_path: Path) -> None:
    path = _file(tmp_path, trained=True, also_on_validation=True)
    bench = small.prepare(tmp_path / "other", teacher=str(path))
    told = facts.describe(bench, latency=False, timed=False)["teacher"]
    assert told["val_accuracy"] > told["test_accuracy"] + 0.03
    assert len(told["warnings"]) == 1 and "trained on validation images" in told["warnings"][0]
    assert 0 < told["train_accuracy"] <= 1
