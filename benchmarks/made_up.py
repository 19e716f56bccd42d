"""Results of trainings that never were, for what is timed without training."""

from __future__ import annotations

from collections.abc import Sequence

from smskd.result import Result, StageResult


def stage(key: str = "", *, accuracy: float = 0.9, flops: float = 1e9) -> StageResult:
    """One finished stage."""
    return StageResult(
        key=key, digest=key, val_accuracy=accuracy, train_flops=flops, device_seconds=0.0, losses=(),
        anchor_weights={}, agreement_teacher=0.0, agreement_previous=None, stage_losses=(),
    )  # fmt: skip


def result(recipe: str, seed: int, stages: Sequence[StageResult]) -> Result:
    """One training that came to its end."""
    return Result(recipe=recipe, seed=seed, stages=tuple(stages), params=1)
