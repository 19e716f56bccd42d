"""What came of a training: the one record of a stage and of a recipe, from the worker to the table. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

COMPLETE, FAILED, PRUNED = "complete", "failed", "pruned"


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """One finished stage.

    key: in the store. digest: SHA-256 of the student's weights. val_accuracy: after the last epoch, a fraction.
    train_flops, device_seconds: of this stage alone. losses: per epoch, the mean of each named term. anchor_weights:
    lambda in the last epoch, its mean and quantiles; empty without an anchor. agreement_teacher, agreement_previous,
    stage_losses: as smskd.forgetting.Kept has them. trained: by this call, and not found in the store. test_accuracies:
    after each epoch, fractions; empty unless asked for.
    """

    key: str
    digest: str
    val_accuracy: float
    train_flops: float
    device_seconds: float
    losses: tuple[dict[str, float], ...]
    anchor_weights: dict[str, float]
    agreement_teacher: float
    agreement_previous: float | None
    stage_losses: tuple[float, ...]
    trained: bool = False
    test_accuracies: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """One recipe with one seed.

    recipe: its written form. error: the cause, where status isn't `complete`; traceback: of a mistake in the code.
    stages: those that finished. params: of the student. test_accuracy: of the last stage, where the test split was
    opened. extra_teacher_flops: what training its teachers cost beyond the first. weights: of the student; not written.
    """

    recipe: str
    seed: int
    status: str = COMPLETE
    error: str | None = None
    traceback: str | None = None
    stages: tuple[StageResult, ...] = ()
    params: int | None = None
    test_accuracy: float | None = None
    extra_teacher_flops: float = 0.0
    weights: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def val_accuracy(self) -> float:
        """Of the last stage's last epoch, a fraction."""
        return self.stages[-1].val_accuracy

    @property
    def test_best_accuracy(self) -> float | None:
        """The highest test accuracy of any epoch of the last stage, flattered by its choice; None unless asked for."""
        return max(self.stages[-1].test_accuracies, default=None) if self.stages else None

    @property
    def train_flops(self) -> float:
        """Of all stages, as if nothing were shared; the teacher's and the reference's forward passes are in it."""
        return sum(stage.train_flops for stage in self.stages)

    @property
    def device_seconds(self) -> float:
        """Of all stages, as measured when each was trained, as if nothing were shared."""
        return sum(stage.device_seconds for stage in self.stages)

    def of_prefix(self, recipe: str, stages: int) -> Result:
        """The result of a recipe that this one begins with."""
        return dataclasses.replace(self, recipe=recipe, stages=self.stages[:stages])

    def to_dict(self) -> dict[str, Any]:
        """The written form: plain values, without the weights."""
        told: dict[str, Any] = msgspec.to_builtins(dataclasses.replace(self, weights={}))
        del told["weights"]
        return told


def of_dict(told: Mapping[str, Any]) -> Result:
    """From the written form.

    Raises:
        ValueError: it is none.
    """
    try:
        return msgspec.convert(told, Result)
    except msgspec.ValidationError as error:
        raise ValueError(f"a record isn't one of this program: {error}") from None


def failure(recipe: str, seed: int, cause: str, traceback: str | None = None) -> Result:
    """Of a training that failed."""
    return Result(recipe=recipe, seed=seed, status=FAILED, error=cause, traceback=traceback)
