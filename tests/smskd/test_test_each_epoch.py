"""Looking at the test split after every epoch: it changes nothing, and nobody meets what it saw unasked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smskd import pipeline
from smskd import stage as training
from smskd.data import Split
from smskd.result import Result
from tests.smskd import small


def run(text: str, store: Path, *, test_each_epoch: bool = False) -> Result:
    bench = small.prepare(store, teacher_epochs=1)
    return pipeline.distil(small.recipe(text, epochs=3), bench, seed=0, test_each_epoch=test_each_epoch)


@pytest.mark.parametrize("text", ["kd>fitnets>rkd weighting=tcp", "crd>kd+vid anchor=ewc"])  # crd draws while it trains
def test_training_is_bit_identical(tmp_path: Path, text: str) -> None:
    before = torch.random.get_rng_state()
    plain, watched = run(text, tmp_path / "a"), run(text, tmp_path / "b", test_each_epoch=True)
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b in zip(plain.stages, watched.stages, strict=True):
        assert (a.digest, a.val_accuracy, a.train_flops) == (b.digest, b.val_accuracy, b.train_flops)
        assert [dict(epoch) for epoch in a.losses] == [dict(epoch) for epoch in b.losses]
        assert replace(a, key="", test_accuracies=()) == replace(
            b, key="", test_accuracies=(), device_seconds=a.device_seconds
        )
    assert all(torch.equal(watched.weights[name], value) for name, value in plain.weights.items())


def test_one_accuracy_an_epoch_the_last_of_which_is_the_students(tmp_path: Path) -> None:
    result = run("kd>rkd", tmp_path, test_each_epoch=True)
    bench = small.prepare(tmp_path, teacher_epochs=1)
    assert [len(stage.test_accuracies) for stage in result.stages] == [3, 3]
    assert result.stages[-1].test_accuracies[-1] == pipeline.test_accuracy(result, bench)
    assert result.test_best_accuracy == max(result.stages[-1].test_accuracies)
    one = run("kd", tmp_path, test_each_epoch=True)  # the same training as the first stage
    assert (one.stages[0].trained, one.stages[0].test_accuracies) == (False, result.stages[0].test_accuracies)


def test_a_stage_stored_without_them_does_not_stand_in(tmp_path: Path) -> None:
    plain = run("kd>rkd", tmp_path)
    watched = run("kd>rkd", tmp_path, test_each_epoch=True)
    assert all(stage.trained and stage.test_accuracies for stage in watched.stages)
    assert [stage.digest for stage in watched.stages] == [stage.digest for stage in plain.stages]
    assert not {stage.key for stage in watched.stages} & {stage.key for stage in plain.stages}
    again = run("kd>rkd", tmp_path, test_each_epoch=True)
    assert not any(stage.trained for stage in again.stages)
    assert [stage.test_accuracies for stage in again.stages] == [stage.test_accuracies for stage in watched.stages]


def test_who_does_not_ask_reads_nothing_of_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("kd", tmp_path, test_each_epoch=True)
    looked: list[Split] = []
    original = training.accuracy

    def watched(network: Any, data: Any, split: Split) -> float:
        looked.append(split)
        return original(network, data, split)

    monkeypatch.setattr(training, "accuracy", watched)
    plain = run("kd", tmp_path)
    bench = small.prepare(tmp_path, teacher_epochs=1)
    assert plain.stages[0].trained and plain.test_best_accuracy is None and plain.stages[0].test_accuracies == ()
    assert looked and all(torch.equal(split.images, bench.data.validation.images) for split in looked)
    assert not torch.equal(bench.data.validation.images, bench.data.test.images)
    manifests = [json.loads(path.read_text()) for path in tmp_path.glob("entries/*/*/manifest.json")]
    of_kd = {m["key"]: "test_accuracies" in m["facts"] for m in manifests if list(m["identity"]["methods"]) == ["kd"]}
    assert len(of_kd) == 2 and of_kd[plain.stages[0].key] is False and sum(of_kd.values()) == 1


def test_looking_is_not_counted_as_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    original = training.accuracy

    def slow(network: Any, data: Any, split: Split) -> float:
        clock[0] += 1000.0
        return original(network, data, split)

    monkeypatch.setattr(training, "accuracy", slow)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    assert run("kd", tmp_path, test_each_epoch=True).device_seconds == 0.0
