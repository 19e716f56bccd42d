"""What it takes to suggest a recipe and to tell what came of it, by how many are known: in SQLite, and in memory.

Recipes of space=everything with drawn results; nothing is trained. In memory: what the sampler itself takes.
    python -m benchmarks.suggestions [most=N]
"""

from __future__ import annotations

import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import optuna

from benchmarks import made_up
from search import config, draws
from search.study import Design, Goal, Study
from smskd.recipe import Recipe
from smskd.result import Result

SAMPLERS = ("tpe", "nsga2", "random")
SIZES = (100, 1000, 5000)
ROUNDS, SEEDS = 15, 3
WORDS = ("space=everything", "methods=[kd,fitnets,rkd,at]", "max_stages=4")


def drawn(recipe: Recipe, seed: int, accuracy: float) -> Result:
    """One training that never was."""
    stages = [made_up.stage("0" * 64, accuracy=accuracy)] * len(recipe.stages)
    return made_up.result(str(recipe), seed, stages)


def opened(storage: str | optuna.storages.BaseStorage, sampler: str) -> Study:
    """The study of a search without end."""
    scope = draws.look(config.parse(WORDS).search_space())
    goal = Goal(values=lambda told: (1 - told.val_accuracy, told.train_flops))
    return Study(
        scope, storage, identity={}, goal=goal, design=Design(seeds=range(SEEDS), sampler=sampler, trials=10**6)
    )


def rounds(study: Study, until: Callable[[int], bool], draw: random.Random) -> tuple[list[float], list[float]]:
    """Ask and tell, until this many rounds are enough; milliseconds of each ask and each tell."""
    asked: list[float] = []
    told: list[float] = []
    while not until(len(asked)):
        started = time.perf_counter()
        suggestion = study.ask()
        asked.append(1000 * (time.perf_counter() - started))
        assert suggestion is not None, "the space has no end"
        results = [drawn(suggestion.recipe, seed, draw.random()) for seed in range(SEEDS)]
        started = time.perf_counter()
        for result in results:
            study.tell(suggestion, result)
        told.append(1000 * (time.perf_counter() - started))
    return asked, told


def measured(study: Study, draw: random.Random) -> str:
    """A cell of the table: medians of what a suggestion and what its result take."""
    rounds(study, lambda count: count == 2, draw)
    asked, told = rounds(study, lambda count: count == ROUNDS, draw)
    return f"{statistics.median(asked):.0f} + {statistics.median(told):.0f} ms"


def main(argv: list[str]) -> None:
    """Fill studies, and print a table in Markdown."""
    most = argv[0].removeprefix("most=") if argv else str(SIZES[-1])
    if len(argv) > 1 or not most.isdigit() or int(most) < SIZES[0]:
        sys.exit(f"one argument most=N with N >= {SIZES[0]} is expected, but got {' '.join(argv)}")
    draw = random.Random(0)
    sys.stdout.write("| recipes known | sampler | in SQLite, ask + tell | in memory |\n|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as scratch:
        file, memory = Path(scratch) / "study.db", optuna.storages.InMemoryStorage()
        for size in (size for size in SIZES if size <= int(most)):
            for storage in (f"sqlite:///{file}", memory):  # the quickest sampler fills them
                filled = opened(storage, "random")
                rounds(filled, lambda count, filled=filled, size=size: len(filled.settled) >= size, draw)  # type: ignore[misc]
            for sampler in SAMPLERS:
                copy = Path(shutil.copy(file, Path(scratch) / f"{sampler}.db"))
                cells = [measured(opened(where, sampler), draw) for where in (f"sqlite:///{copy}", memory)]
                sys.stdout.write(f"| {size:,} | `{sampler}` | {' | '.join(cells)} |\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
