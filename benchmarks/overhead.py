"""What a search takes besides training: until its first step, and for each trial.

python -m benchmarks.overhead
"""

from __future__ import annotations

import functools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import made_up

TRIALS = 200
# What the driver imports before a search, and what a worker does; each in a process of its own.
STARTS = {
    "python and the command line's words": "from search import config; config.parse([])",
    "what the driver imports": "import search.several, search.searcher",
    "what a worker imports": "import torch, ray.tune, smskd.pipeline, search.trainable",
}


def nothing(benches: object, config: dict[str, Any]) -> None:
    """A trial that trains nothing."""
    from ray import tune

    record = made_up.result(config["recipe"], config["seed"], [made_up.stage()]).to_dict()
    tune.report({"outcome": json.dumps({"record": record, "trained": 0, "teacher": "t", "bench": None})})


def timed(run: Callable[[], object]) -> float:
    """Seconds."""
    started = time.monotonic()
    run()
    return time.monotonic() - started


def trials() -> tuple[float, float]:
    """Seconds of Ray's start and end, and of one of many trials that do nothing, on all cores."""
    from search import searcher, trainable
    from search.jobs import Job, ListSource
    from search.nodes import Nodes
    from search.progress import Phase, Progress

    jobs = [Job(pair="tiny", recipe="kd", seed=seed, test=False) for seed in range(TRIALS)]
    source = ListSource(jobs, lambda job, record: None)
    common = searcher.Trials(settings={}, epochs=lambda recipe: [1], digest=lambda: "t", meet=lambda told: None)
    phase = Phase(
        title="", counted="trainings", counts=lambda: (0, TRIALS), remaining=source.remaining, standings=list,
        causes={"tiny": Path()}, estimate=None, again="",
    )  # fmt: skip
    trainable.train = nothing
    whole = time.monotonic()
    with searcher.cluster(None):
        inside = timed(
            lambda: searcher.fit(
                source,
                trials={"tiny": common},
                demand=searcher.Demand(cpus=1, gpus=0, hang_after=3600),
                progress=Progress(Console(quiet=True), phase),
                on_end=lambda *told: None,
                nodes=Nodes(print),
            )
        )
    return time.monotonic() - whole - inside, inside / TRIALS


def main() -> None:
    """Measure, and print a table in Markdown."""
    lines = ["| | |", "|---|---|"]
    for name, code in STARTS.items():
        seconds = timed(functools.partial(subprocess.run, [sys.executable, "-c", code], check=True))
        lines.append(f"| {name} | {seconds:.2f} s |")
    with tempfile.TemporaryDirectory() as scratch:
        made = (
            "from smskd import bench, experiment, store; bench.prepare(experiment.Experiment(), store.open_store(it))"
        )
        command = [sys.executable, "-c", f"import sys; it = sys.argv[1]; {made}", str(Path(scratch) / "store")]
        first = timed(lambda: subprocess.run(command, check=True))
        again = timed(lambda: subprocess.run(command, check=True))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    lines.append(
        f"| data and teacher of the default search: trained, then from the store | {first:.1f} s, {again:.1f} s |"
    )
    lines.append(f"| a worker's peak memory with them | {peak:.0f} MiB |")
    ray, each = trials()
    lines.append(f"| Ray's start and end | {ray:.1f} s |")
    lines.append(f"| one of {TRIALS} trials that do nothing, on all cores | {1000 * each:.0f} ms; target 100 |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
