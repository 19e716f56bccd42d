"""Results and scopes of tests in which nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optuna.trial import BaseTrial

from search.draws import Scope, enumerate_space
from smskd.recipe import Recipe
from smskd.result import COMPLETE, Result, StageResult


def stage(key: str = "", **told: Any) -> StageResult:
    """A finished stage; told: as StageResult's."""
    plain: dict[str, Any] = {
        "key": key, "digest": "", "val_accuracy": 0.5, "train_flops": 1.0, "device_seconds": 1.0, "losses": (),
        "anchor_weights": {}, "agreement_teacher": 1.0, "agreement_previous": None, "stage_losses": (),
    }  # fmt: skip
    return StageResult(**plain | told)


def result(
    recipe: Recipe,
    seed: int,
    accuracy: float | Callable[[Recipe], float] = 0.5,
    *,
    status: str = COMPLETE,
    error: str | None = None,
    told: Callable[[Recipe], dict[str, Any]] = lambda prefix: {},
) -> Result:
    """A result whose stages have the ids of the recipe's beginnings as keys. accuracy, told: of each beginning."""
    stages = tuple(
        stage(prefix.id, **{"val_accuracy": accuracy(prefix) if callable(accuracy) else accuracy, **told(prefix)})
        for prefix in recipe.prefixes()
    )
    if error is None and status != COMPLETE:
        error = "broken"
    return Result(recipe=str(recipe), seed=seed, status=status, error=error, stages=stages, params=1)


def scope(space: Callable[[BaseTrial], Recipe]) -> Scope:
    """Of a space, walked through if it is finite."""
    points = enumerate_space(space)
    return Scope(space=space, points=points, recipes=[recipe for _, recipe in (points or {}).values()])
