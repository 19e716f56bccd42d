"""plan.json: what a plan said of a run, left in its folder for the run to compare with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FILE = "plan.json"
SCHEMA = 1


def write(folder: Path, said: Mapping[str, Any]) -> Path:
    """Leave a plan in a run's folder, which is made if need be."""
    from reports.results import write_atomically  # imports pandas

    told = {"schema": SCHEMA, "made": datetime.now(UTC).isoformat(timespec="seconds"), **said}
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(folder / FILE, json.dumps(told, indent=1, allow_nan=False).encode())
    return folder / FILE


def read(folder: Path) -> dict[str, Any] | None:
    """The plan that was left in a run's folder; None if there is none that can be read."""
    try:
        plan = json.loads((folder / FILE).read_bytes())
        return dict(plan) if plan["schema"] == SCHEMA else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
