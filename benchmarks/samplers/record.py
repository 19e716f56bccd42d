"""Trains the recorded table through the pipeline; what the store has already isn't trained again."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.samplers import table
from reports.results import write_atomically

PROCESSES = 2
EPOCHS = 6


def one_seed(seed: int, store: str) -> list[dict[str, Any]]:
    """Rows of one seed, from every recipe and its beginnings."""
    import torch

    from smskd import pipeline
    from smskd.experiment import Experiment

    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    for whole in table.longest():
        result = pipeline.run(whole.with_setting("epochs", EPOCHS), Experiment(), seed=seed, store=store)
        for prefix, stage in zip(whole.prefixes(), result.stages, strict=True):
            rows[prefix.id] = {
                "seed": seed,
                "methods": prefix.path,
                "lambda_base": prefix.lambda_base if len(prefix.stages) > 1 else table.LAMBDAS[0],
                "val_accuracy": round(stage.val_accuracy, 6),
                "stage_flops": int(stage.train_flops),
            }
    return sorted(rows.values(), key=lambda row: (row["methods"].count(">"), row["methods"], row["lambda_base"]))


def record(*, seeds: int, store: Path, path: Path = table.FILE) -> None:
    """Train all recipes with seeds 0, 1, ..., and write the table."""
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    started = time.monotonic()
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        rows = [row for found in pool.map(one_seed, range(seeds), [str(store)] * seeds) for row in found]
    write(rows, path)
    sys.stdout.write(f"{len(rows)} rows, {time.monotonic() - started:.0f} s: {path}\n")


def write(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The file of the table, with a head that says how it was made."""
    lines = [
        f"# Every recipe of benchmarks/samplers/table.py on digits, pair tiny, {EPOCHS} epochs a stage; 398 validation",
        f"# images; made by python -m benchmarks.samplers record; torch {importlib.metadata.version('torch')}, CPU.",
        "# lambda_base has no effect in recipes of one stage, which stand here once.",
        ",".join(table.COLUMNS),
        *(",".join(str(row[name]) for name in table.COLUMNS) for row in rows),
    ]
    write_atomically(path, ("\n".join(lines) + "\n").encode())
