"""plan.json: what a plan said of a run, left in its folder for the run to compare with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = "plan.json"
SCHEMA = 1


def read(folder: Path) -> dict[str, Any] | None:
    """The plan that was left in a run's folder; None if there is none that can be read."""
    try:
        plan = json.loads((folder / FILE).read_bytes())
        return dict(plan) if plan["schema"] == SCHEMA else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
