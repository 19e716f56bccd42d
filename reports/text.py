"""Numbers, costs and times as the reports, and the terminal, print them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from reports.statistics import Gain

NONE = "–"  # noqa: RUF001 (en dash: not measured, or without effect)
NOT = "not recorded"
MINUS, TIMES = "−", "×"  # noqa: RUF001 (what a reader expects in a printed number)
# Of a cost, a key of reports.front.COSTS: its units by size.
UNITS: dict[str, dict[float, str]] = {
    "flops": {10.0 ** (3 * k): f"{prefix}FLOP" for k, prefix in enumerate(("", "k", "M", "G", "T", "P", "E"))},
    "seconds": {1: "s", 60: "min", 3600: "h"},
    "params": {1: "parameters", 1e3: "k parameters", 1e6: "M parameters", 1e9: "G parameters"},
    "latency": {1: "ms"},
}


def number(value: float) -> str:
    """Three significant digits, whole from 100 on, with a true minus sign."""
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}").replace("-", MINUS)


def percent(mean: Any, half_width: Any = None) -> str:
    """A fraction in per cent, without the sign, with its interval where there is one."""
    if not known(mean):
        return NONE
    return f"{100 * float(mean):.2f}" + (f" ± {100 * float(half_width):.2f}" if known(half_width) else "")


def points(gain: Gain) -> str:
    """A difference of fractions in points, signed, with its interval where there is one."""
    text = f"{100 * gain.mean:+.2f}".replace("-", MINUS)
    return text + (f" ± {100 * gain.half_width:.2f}" if gain.half_width is not None else "")


def cost_text(cost: str, value: Any) -> str:
    """A cost (a key of reports.front.COSTS) with its unit, as people say it."""
    if not known(value):
        return NONE
    if cost == "seconds":
        return duration(value)
    scale, unit = unit_of(cost, float(value))
    return f"{number(float(value) / scale)} {unit}"


def unit_of(cost: str, value: float) -> tuple[float, str]:
    """The largest unit of a cost that is no more than the value: its size, and its name."""
    units = UNITS[cost]
    scale = max((step for step in units if value >= step), default=min(units))
    return scale, units[scale]


def plural(n: int, noun: str) -> str:
    """1 recipe, 2 recipes."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def span(counts: Iterable[int], noun: str) -> str:
    """3 seeds where all counts are alike, else 2 to 3 seeds."""
    least, most = min(whole := [int(n) for n in counts]), max(whole)
    return plural(most, noun) if least == most else f"{least} to {plural(most, noun)}"


def duration(seconds: Any) -> str:
    """Seconds as people say them: 0.35 s, 8 s, 3 min 20 s, 2 h 05 min."""
    if not known(seconds):
        return NOT
    whole = round(float(seconds))
    if whole < 10:
        return f"{number(float(seconds))} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def when(iso: object) -> str:
    """An ISO time as 2026-11-24 05:40 UTC; other text as it is."""
    try:
        time = datetime.fromisoformat(str(iso))
    except ValueError:
        return str(iso)
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if time.tzinfo else f"{time:%Y-%m-%d %H:%M}"


def known(value: Any) -> bool:
    """Whether there is a value: neither None nor NaN."""
    return isinstance(value, list) or (value is not None and bool(pd.notna(value)))


def accuracies(teacher: Mapping[str, Any]) -> str:
    """A teacher's, in words: on validation, and where it was looked at on the other splits, too."""
    others = {"test": "test_accuracy", "training images": "train_accuracy"}
    known = {split: teacher[key] for split, key in others.items() if teacher.get(key) is not None}
    shown = {"validation": teacher.get("val_accuracy"), **known}
    return ", ".join(f"{percent(value)} % on {split}" for split, value in shown.items())
