"""Ranges on the command line, in Hydra's grammar, for any setting of a recipe. No Optuna, no torch.

    choice(1,2,4)   range(5,30,5)   interval(0.01,0.2)   tag(log,interval(0.01,0.2))

As there, a range leaves out its end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smskd.recipe import declaration
from smskd.settings import Setting, Value, items, text_of

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

_CALL = re.compile(r"\s*([a-z]+)\s*\(")
_FORMS = {"choice": "choice(A,B,...)", "range": "range(START,STOP,STEP)", "interval": "interval(LOW,HIGH)"}
_MOST = 10_000  # values of a range


@dataclass(frozen=True, kw_only=True)
class Range:
    """What a setting is drawn from: `values`, or whatever lies between `low` and `high`, by its logarithm if `log`.

    step: of evenly spaced values from low to high. text: as it was given.
    """

    setting: Setting
    text: str
    values: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False

    def suggest(self, trial: BaseTrial) -> Value:
        """A value, drawn under the setting's name."""
        key = self.setting.name
        if self.values:  # Optuna takes no lists
            plain = [text_of(value) if self.setting.many else value for value in self.values]
            return self.setting.read(trial.suggest_categorical(key, plain))
        if self.setting.kind is int:
            return trial.suggest_int(key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)


def is_range(text: str) -> bool:
    """Whether a value is meant as one."""
    return _CALL.match(text) is not None


def parse(key: str, text: str) -> Range:
    """Read a range of a setting of recipes.

    Raises:
        ValueError: it is no such range, is empty or upside down, or a value is out of the setting's bounds; the place
            is marked.
    """
    setting = declaration(key)
    assert setting is not None, f"{key} is a setting of recipes"
    return _Reader(setting, text).read(text, frozenset())


class _Reader:
    """Reads one range; errors mark a part of the whole text."""

    def __init__(self, setting: Setting, whole: str) -> None:
        self._setting, self._whole = setting, whole

    def read(self, text: str, tags: frozenset[str]) -> Range:
        found = _CALL.match(text)
        name = found.group(1) if found else text
        if found is None or name not in (*_FORMS, "tag"):
            raise self._wrong(name, f"a range is {', '.join(_FORMS.values())} or tag(log,interval(LOW,HIGH))")
        inner = text[found.end() :].rstrip()
        if inner[-1:] != ")" or inner.count("(") != inner.count(")") - 1 or inner.count("[") != inner.count("]"):
            raise self._wrong(text, "a bracket isn't closed, or is closed twice")
        parts = items(inner[:-1])
        if not parts or not all(parts):
            raise self._wrong(text, "a value is missing")
        if name == "tag":
            for tag in parts[:-1]:
                if tag not in ("log", "int"):
                    raise self._wrong(tag, "a tag is log or int")
            return self.read(parts[-1], tags | {*parts[:-1]})
        if "log" in tags and name != "interval":
            raise self._wrong("log", f"is of an interval, not of a {name}")
        if name == "choice":
            values = tuple(self._value(part, part.strip("'\"")) for part in parts)
            if len(set(values)) < len(values):
                raise self._wrong(text, "names a value twice")
            return Range(setting=self._setting, text=self._whole, values=values)
        if self._setting.kind not in (int, float) or self._setting.many:
            what = f"{self._setting.name} must be {self._setting.what}, which has no {name}: use choice(...)"
            raise self._wrong(text, what)
        if name == "interval":
            return self._interval(text, self._named(text, parts, ("start", "end")), "log" in tags)
        given = ["0", *parts] if len(parts) == 1 else parts
        return self._evenly(text, self._named(text, given, ("start", "stop", "step")))

    def _named(self, text: str, parts: Sequence[str], expected: Sequence[str]) -> Mapping[str, float]:
        """Numbers by name, given in order or as name=number; the last of three may be missing."""
        given = dict(part.split("=", 1) for part in parts if "=" in part)
        left = [name for name in expected if name not in given]
        plain = [part for part in parts if "=" not in part]
        given |= dict(zip(left, plain, strict=False))
        if len(plain) > len(left) or not {*expected[:2]} <= {*given} <= {*expected}:
            raise self._wrong(text, f"it takes {', '.join(expected)}")
        numbers = {}
        for name, value in given.items():
            try:
                numbers[name] = float(value)
            except ValueError:
                raise self._wrong(value, "must be a number") from None
            if not math.isfinite(numbers[name]):
                raise self._wrong(value, "must be finite")
        return numbers

    def _interval(self, text: str, numbers: Mapping[str, float], log: bool) -> Range:
        low, high = numbers["start"], numbers["end"]
        if not low < high:
            raise self._wrong(text, f"low < high must hold, but got low={low:g}, high={high:g}")
        if log and not low > 0:
            raise self._wrong(text, f"low > 0 must hold for a logarithm, but got low={low:g}")
        low, high = self._value(text, text_of(low)), self._value(text, text_of(high))
        return Range(setting=self._setting, text=self._whole, low=low, high=high, log=log)

    def _evenly(self, text: str, numbers: Mapping[str, float]) -> Range:
        low, stop, step = numbers["start"], numbers["stop"], numbers.get("step", 1.0)
        if not step > 0:
            raise self._wrong(text, f"step > 0 must hold, but got step={step:g}")
        if self._setting.kind is int and not step.is_integer():
            raise self._wrong(text, f"{self._setting.name} is a whole number, but step={step:g}")
        count = math.ceil((stop - low) / step - 1e-9)
        if not 1 <= count <= _MOST:
            raise self._wrong(text, "it is empty: start < stop must hold" if count < 1 else f"has over {_MOST} values")
        # without the rounding errors of sums, which Optuna would take for another step
        first, last = (self._value(text, f"{end:.12g}") for end in (low, low + (count - 1) * step))
        return Range(setting=self._setting, text=self._whole, low=first, high=last, step=step)

    def _value(self, part: str, text: str) -> Value:
        try:
            return self._setting.read(text)
        except ValueError as error:
            raise self._wrong(part, str(error)) from None

    def _wrong(self, part: str, why: str) -> ValueError:
        at = max(self._whole.rfind(part), 0)
        marked = f"{self._whole[:at]}-->{part}<--{self._whole[at + len(part) :]}"
        return ValueError(f"{self._setting.name}={marked}: {why}")
