"""A search of 1,000 recipes: peak memory of driver and workers, the store's size, and what a trial costs in all.

Recipes are drawn from space=everything and hardly trained: what is kept of one doesn't depend on how long it learned.
    python -m benchmarks.memory [recipes=N]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARK = "SMSKD_BENCHMARK"


def peak_mib(marked: str) -> float:
    """The largest peak of resident memory among Ray's workers that have this mark in their environment, in MiB."""
    peaks = [0.0]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            worker = b"ray::" in (process / "cmdline").read_bytes()
            if worker and f"{MARK}={marked}".encode() in (process / "environ").read_bytes():
                status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
                peaks.append(float(status["VmHWM"].split()[0]) / 1024)
        except (OSError, KeyError):  # it has ended meanwhile
            continue
    return max(peaks)


def main(argv: list[str]) -> None:
    """Search, look on, and print a table in Markdown."""
    count = argv[0].removeprefix("recipes=") if argv else "1000"
    if len(argv) > 1 or not count.isdigit() or int(count) < 1:
        sys.exit(f"one argument recipes=N with N >= 1 is expected, but got {' '.join(argv)}")
    mark = uuid.uuid4().hex
    environment = os.environ | {MARK: mark, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        words = [
            "space=everything",
            f"trials={count}",
            "seeds=1",
            "confirm=0",
            "train_size=50",
            "epochs=1",
            "sampler=random",
        ]
        words += ["teacher_epochs=1", f"out={out}", f"store={Path(scratch) / 'store'}"]
        started = time.monotonic()
        command = [sys.executable, "-m", "search.run", *words]
        search = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        worker = 0.0
        while search.poll() is None:
            worker = max(worker, peak_mib(mark))
            time.sleep(0.5)
        if search.returncode:
            sys.exit(f"the search ended with exit code {search.returncode}")
        seconds = time.monotonic() - started
        run = json.loads((out / "run.json").read_text())
        files = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    sys.stdout.write(
        f"| {run['recipes']} recipes, {run['stage_runs']} stages | {seconds:.0f} s |\n|---|---|\n"
        f"| driver's peak | {run['driver_peak_bytes'] / 2**20:.0f} MiB |\n| a worker's peak | {worker:.0f} MiB |\n"
        f"| store | {run['store_bytes'] / 2**20:.1f} MiB |\n| the run's own files | {files / 2**20:.1f} MiB |\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
