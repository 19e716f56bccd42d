from __future__ import annotations

import json
from typing import Any

import pytest

from search import searcher
from smskd import pipeline


def outcome(monkeypatch: pytest.MonkeyPatch, run: Any) -> tuple[dict[str, Any], int]:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(searcher.tune, "report", told.append)
    monkeypatch.setattr(searcher, "_REPORT_EVERY_S", 0.0)
    monkeypatch.setattr(pipeline, "run", run)
    config = {"cpus": 1, "recipe": "kd>rkd>kd", "seed": 4, "test": False, "epochs": 2, "pipeline": {}}
    searcher.train(config)
    record, trained = json.loads(told[-1]["outcome"])
    return record, trained


@pytest.mark.parametrize("reported", [False, True])
@pytest.mark.parametrize("finished", [0, 1, 2])
def test_a_failure_names_the_stage_it_happened_in(
    monkeypatch: pytest.MonkeyPatch, finished: int, reported: bool
) -> None:
    def run(recipe: str, *, on_stage: Any, on_epoch: Any, **settings: Any) -> None:
        for number in range(1, finished + 1):
            result = pipeline.StageResult(
                key="k", digest="d", val_accuracy=0.5, train_flops=1, device_seconds=1, losses=(), trained=True
            )
            on_stage(number, result)
        if reported:
            on_epoch(finished + 1, 1, 2)
        raise RuntimeError("broken")

    record, trained = outcome(monkeypatch, run)
    assert record["status"] == "failed"
    assert record["seed"] == 4
    assert record["error"] == f"stage {finished + 1} of 3: RuntimeError: broken"
    assert trained == finished
