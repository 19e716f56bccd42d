"""The fixed box that hypervolume is measured in: decided once, when a run begins, from what is known by then."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from search.config import Config
from smskd.recipe import Recipe

# Seconds are those of a few steps, timed beforehand: the box reaches farther, either way, than that of counted FLOPs.
_TIMING_IS_OFF_BY = 2


def decide(config: Config, bench: Mapping[str, Any], recipes: Collection[Recipe]) -> dict[str, Any]:
    """The box, as run.json has it: `error` [low, high] (fractions), `cost` [low, high], `cost_name`: the first cost.

    Given by box=, or else: errors from 0 to three times the teacher's on validation and 0.05 more, at most that of
    guessing among equally frequent classes; of a teacher that wasn't trained here its error on test, if that is larger,
    counts in place of it. Training costs from half of what the bare student's training takes in the
    shortest recipe, to 1.5 times the student's, its reference's and the teachers' in the longest. Costs that all
    recipes of a pair share from half to twice their value.

    Args:
        bench: what is known of teacher, student and data, as search.facts.describe has it.
        recipes: all of a finite space, some of an infinite one.
    """
    cost = config.cost[0]
    if config.box is not None:
        return {"error": list(config.box[:2]), "cost": list(config.box[2:]), "cost_name": cost}
    teacher = bench["teacher"]
    # one that has seen the validation split errs hardly ever there: three times that would shut every student out
    error = 1 - min(teacher["val_accuracy"], teacher.get("test_accuracy", 1.0))
    worst = min(1 - 1 / bench["dataset"]["classes"], 3 * error + 0.05)
    if cost in ("params", "latency"):
        value = bench["student"]["params"] if cost == "params" else bench["latency_ms"]
        ends = [0.5 * value, 2.0 * value]
    else:
        teachers = max(recipe.teachers for recipe in recipes)
        epochs = [sum(config.epochs(recipe)) for recipe in recipes]
        train, teaching, student = (bench["epoch"][f"{part}_{cost}"] for part in ("train", "teacher", "student"))
        wider = _TIMING_IS_OFF_BY if cost == "seconds" else 1
        full = train + student + teachers * teaching
        ends = [0.5 * train * min(epochs) / wider, 1.5 * full * max(epochs) * wider]
    return {"error": [0.0, worst], "cost": ends, "cost_name": cost}
