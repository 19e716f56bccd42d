"""Trains the recorded table through the pipeline; what the store has already isn't trained again."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.samplers import table
from reports.results import write_atomically

PROCESSES = 2


def one_seed(seed: int, store: str) -> list[dict[str, Any]]:
    """Rows of one seed, from every recipe and its beginnings."""
    import torch

    from smskd import pipeline

    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    for whole in table.longest():
        result = pipeline.run(whole, pair="tiny", data="digits", seed=seed, store=store)
        for prefix, stage in zip(whole.prefixes(), result.stages, strict=True):
            rows[prefix.id] = {
                "seed": seed,
                "recipe": prefix.notation,
                "lambda_base": prefix.lambda_base if len(prefix.stages) > 1 else table.LAMBDAS[0],
                "val_accuracy": round(stage.val_accuracy, 6),
                "stage_flops": int(stage.train_flops),
            }
    return sorted(rows.values(), key=lambda row: (row["recipe"].count(">"), row["recipe"], row["lambda_base"]))


def record(*, seeds: int, store: Path, path: Path = table.FILE) -> None:
    """Train all recipes with seeds 0, 1, ..., and write the table."""
    import importlib.metadata

    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    started = time.monotonic()
    # the teacher first, and alone: every process wants it
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        rows = [row for found in pool.map(one_seed, range(seeds), [str(store)] * seeds) for row in found]
    lines = [
        "# Every recipe of benchmarks/samplers/table.py on digits, pair tiny, its schedule and 12 epochs a stage,",
        "# validation split of 398 images; python -m benchmarks.samplers record; "
        f"torch {importlib.metadata.version('torch')}, one CPU thread.",
        "# lambda_base has no effect in recipes of one stage, which stand here once.",
        ",".join(table.COLUMNS),
        *(",".join(str(row[name]) for name in table.COLUMNS) for row in rows),
    ]
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    sys.stdout.write(f"{len(rows)} rows, {time.monotonic() - started:.0f} s: {path}\n")
