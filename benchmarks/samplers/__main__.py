"""The command line of the sampler benchmark."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.samplers import record

SEEDS = 6


def main(argv: list[str]) -> None:
    """Replay, or record."""
    if argv[:1] == ["record"]:
        record.record(seeds=int(argv[1]) if len(argv) > 1 else SEEDS, store=Path("runs/store-samplers"))


if __name__ == "__main__":
    main(sys.argv[1:])
