"""Searches replayed over the recorded table: one recipe at a time, through the project's Study, or stock OptunaSearch.

What a search is told is the mean over all recorded seeds, and it is judged by the same numbers: samplers are compared
here, not the noise of a search (tests/reports/test_simulation.py is about that).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import moocore
import numpy as np
import optuna
import pandas as pd

from benchmarks import made_up
from benchmarks.samplers import table
from reports.budget import Box, over_budget
from search.draws import Scope, enumerate_space
from search.study import Design, Goal, Study
from smskd.recipe import Recipe
from smskd.result import COMPLETE, Result

OURS = ("exhaustive", "tpe", "nsga2", "gp", "random")
STOCK = "OptunaSearch"
TOLD = ["trial", "position", "recipe_id", "status", "val_accuracy", "train_flops", "spent_flops"]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What the table says of each recipe, by id. accuracy: mean over seeds. stage_flops: of the last stage alone."""

    accuracy: dict[str, float]
    stage_flops: dict[str, float]

    def train_flops(self, recipe: Recipe) -> float:
        """Of all stages, as if none were shared."""
        return sum(self.stage_flops[prefix.id] for prefix in recipe.prefixes())

    def result(self, recipe: Recipe) -> Result:
        """As a training would have been recorded."""
        stages = [
            made_up.stage(prefix.id, accuracy=self.accuracy[prefix.id], flops=self.stage_flops[prefix.id])
            for prefix in recipe.prefixes()
        ]
        return made_up.result(str(recipe), 0, stages)


def recorded(rows: pd.DataFrame) -> Recorded:
    """From the rows of the table, as table.read has them."""
    means = rows.groupby("recipe_id")[["val_accuracy", "stage_flops"]].mean()
    return Recorded(
        accuracy={str(key): float(value) for key, value in means["val_accuracy"].items()},
        stage_flops={str(key): float(value) for key, value in means["stage_flops"].items()},
    )


def replay(
    world: Recorded,
    sampler: str,
    *,
    seed: int,
    trials: int = sys.maxsize,
    recipes: int | None = None,
    margin: float | None = None,
) -> pd.DataFrame:
    """What a search with one of our samplers was told, a row per recipe; columns as in TOLD.

    A trial trains the stages that no earlier one has, and settles the recipes that it passes on its way. Recipes that
    are given up before any of their stages is trained come with the trial that follows.

    Args:
        world: the table.
        sampler: one of OURS.
        seed: of the sampler.
        trials: how many recipes are asked for; fewer where the space has no more.
        recipes: how many are to be settled, as trials= of a search; None: all.
        margin: of the early stopping at stage boundaries, in the unit of the error; None: off.
    """
    points = enumerate_space(table.suggest)
    assert points is not None, "the space of the table is finite"
    study = Study(
        Scope(space=table.suggest, points=points, recipes=[recipe for _, recipe in points.values()]),
        optuna.storages.InMemoryStorage(),  # a file would take most of the time
        identity={},
        goal=Goal(values=lambda told: (1 - told.val_accuracy, told.train_flops)),
        design=Design(seeds=(0,), sampler=sampler, trials=recipes, seed=seed, margin=margin),
    )
    rows: list[dict[str, Any]] = []
    paid: set[str] = set()
    for trial in range(min(trials, len(world.accuracy))):
        asked = study.ask()
        while asked is not None and not study.tell(asked, world.result(asked.now)):
            pass
        for key, (recipe, records) in list(study.settled.items())[len(rows) :]:
            complete = records[0].status == COMPLETE
            new = [stage for stage in records[0].stages if stage.key not in paid]
            paid.update(stage.key for stage in new)
            rows.append(
                {
                    "trial": trial,
                    "position": len(rows),
                    "recipe_id": key,
                    "status": records[0].status,
                    "val_accuracy": world.accuracy[key] if complete else None,
                    "train_flops": world.train_flops(recipe) if complete else None,
                    "spent_flops": sum(stage.train_flops for stage in new),
                }
            )
        if asked is None:
            break
    return pd.DataFrame(rows, columns=TOLD).astype({"val_accuracy": "float64", "train_flops": "float64"})


def replay_stock(world: Recorded, *, seed: int, trials: int) -> pd.DataFrame:
    """The same with Tune's OptunaSearch as it comes, on the same space; recipe_id is followed by the trial's number.

    It knows nothing of shared stages or of beginnings: each trial trains all of its recipe, also one that was trained
    before, and settles that recipe alone.
    """
    from search import searcher  # sets Ray's environment before it is imported

    assert searcher
    from ray.tune.search.optuna import OptunaSearch

    def suggest(trial: Any) -> dict[str, Any]:
        return {"recipe": table.suggest(trial)}

    search = OptunaSearch(
        space=cast(Any, suggest), metric=["error", "flops"], mode=cast(Any, ["min", "min"]), seed=seed
    )
    rows: list[dict[str, Any]] = []
    for trial in range(trials):
        suggested = search.suggest(str(trial))
        assert suggested is not None
        recipe = suggested["recipe"]
        accuracy, flops = world.accuracy[recipe.id], world.train_flops(recipe)
        search.on_trial_complete(str(trial), {"error": 1 - accuracy, "flops": flops})
        rows.append(
            {
                **{"trial": trial, "position": trial, "recipe_id": f"{recipe.id} {trial}", "status": "complete"},
                **{"val_accuracy": accuracy, "train_flops": flops, "spent_flops": flops},
            }
        )
    return pd.DataFrame(rows, columns=TOLD)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One replayed search. trials, recipes: when it ends. margin: of early stopping, None: off."""

    sampler: str
    seed: int
    trials: int = sys.maxsize
    recipes: int | None = None
    margin: float | None = None


def run(job: Job) -> pd.DataFrame:
    """What the search was told; in a process of its own, so it isn't in the command's file."""
    import torch

    torch.set_num_threads(1)
    world = recorded(table.read())
    if job.sampler == STOCK:
        return replay_stock(world, seed=job.seed, trials=job.trials)
    return replay(world, job.sampler, seed=job.seed, trials=job.trials, recipes=job.recipes, margin=job.margin)


def smallest_box(world: Recorded, recipes: Sequence[Recipe]) -> Box:
    """The box that holds all these recipes."""
    errors = [1 - world.accuracy[recipe.id] for recipe in recipes]
    costs = [world.train_flops(recipe) for recipe in recipes]
    return Box(error=(min(errors), max(errors)), cost=(min(costs), max(costs)))


def growth(told: pd.DataFrame, box: Box) -> pd.DataFrame:
    """After each trial: `trial` (1, 2, ...), `spent` FLOPs and `hypervolume`."""
    grown = over_budget(told.assign(phase="search", pair="tiny", seed=0), "flops", box)
    last = grown.assign(trial=told["trial"].to_numpy() + 1).groupby("trial", as_index=False).last()
    return last[["trial", "spent", "hypervolume"]]


def front(told: pd.DataFrame) -> np.ndarray:
    """Points [n, 2] of error and cost of what is complete."""
    complete = told[told["status"] == "complete"]
    return np.column_stack([1 - complete["val_accuracy"], complete["train_flops"]])


def attainment(runs: Sequence[np.ndarray], percent: float) -> np.ndarray:
    """Corners [k, 2] of the surface of (error, cost) that this percentage of the runs attain, by rising cost.

    A run attains what one of its points is as good as in both; both are minimised, which is all that moocore.eaf can.

    Raises:
        ValueError: a run is empty or has a value that isn't finite, or percent is outside (0, 100].
    """
    if not 0 < percent <= 100:
        raise ValueError(f"0 < percent <= 100 must hold, but got percent={percent:g}")
    for number, run in enumerate(runs):
        if not len(run) or not np.isfinite(run).all():
            raise ValueError(f"every run needs finite points, but run {number} has {run.tolist()}")
    sets = np.repeat(np.arange(len(runs)), [len(run) for run in runs])
    corners = np.asarray(moocore.eaf(np.vstack(list(runs)), sets, percentiles=[percent]), dtype=np.float64)[:, :2]
    ordered: np.ndarray = corners[np.argsort(corners[:, 1], kind="stable")]
    return ordered
