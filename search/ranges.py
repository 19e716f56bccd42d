"""Ranges on the command line, in Hydra's grammar, for any setting of a recipe. No Optuna, no torch.

    choice(1,2,4)   range(5,30,5)   interval(0.01,0.2)   tag(log,interval(0.01,0.2))

As there, a range leaves out its end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smskd.recipe import declaration
from smskd.settings import Setting, Value, items, text_of

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

_CALL = re.compile(r"\s*([a-z]+)\s*\(")
_FORMS = ("choice", "range", "interval", "tag")
_MOST = 10_000  # values of a range
Wrong = Callable[[str, str], ValueError]  # from a part of the text and why it is wrong


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
        ValueError: it is no such range, is empty or upside down, or a value is out of the setting's bounds; marked.
    """
    setting = declaration(key)
    assert setting is not None, f"{key} is a setting of recipes"
    return _parsed(setting, text, text, frozenset())


def _parsed(setting: Setting, whole: str, text: str, tags: frozenset[str]) -> Range:
    def wrong(part: str, why: str) -> ValueError:
        at = whole.find(part) if part else len(whole)
        return ValueError(f"{setting.name}={whole[:at]}-->{part}<--{whole[at + len(part) :]}: {why}")

    found = _CALL.match(text)
    name = found.group(1) if found else text
    if found is None or name not in _FORMS:
        raise wrong(name, f"a range is {', '.join(f'{form}(...)' for form in _FORMS)}")
    inner = text[found.end() :].rstrip()
    if not inner.endswith(")") or inner.count("(") != inner.count(")") - 1 or inner.count("[") != inner.count("]"):
        raise wrong(text, "a bracket isn't closed, or is closed twice")
    parts = items(inner[:-1])
    if not all(parts) or not parts:
        raise wrong(text, "a value is missing")
    if name == "tag":
        *named, of = parts
        for tag in named:
            if tag not in ("log", "int"):
                raise wrong(tag, "a tag is log or int")
        return _parsed(setting, whole, of, tags | set(named))
    if name == "choice":
        if "log" in tags:
            raise wrong("log", "is of an interval, not of a choice")
        return Range(setting=setting, text=whole, values=_choice(setting, parts, wrong, text))
    if setting.kind not in (int, float) or setting.many:
        raise wrong(text, f"{setting.name} must be {setting.what}, which has no {name}: use choice(...)")
    given = dict(part.split("=", 1) for part in parts if "=" in part)
    expected = ("start", "stop", "step") if name == "range" else ("start", "end")
    plain = [part for part in parts if "=" not in part]
    if name == "range" and len(plain) == 1 and not given:
        plain = ["0", *plain]
    given |= dict(zip((one for one in expected if one not in given), plain, strict=False))
    if len(given) > len(expected) or len(plain) > len(expected) or not {*expected[:2]} <= {*given} <= {*expected}:
        raise wrong(text, f"{name} takes {', '.join(expected)}")
    numbers = {one: _number(setting, value, wrong) for one, value in given.items()}
    if name == "interval":
        return _interval(setting, whole, numbers, "log" in tags, wrong, text)
    if "log" in tags:
        raise wrong("log", "is of an interval, not of a range")
    return _evenly(setting, whole, numbers, wrong, text)


def _choice(setting: Setting, parts: Sequence[str], wrong: Wrong, text: str) -> tuple[Value, ...]:
    values = []
    for part in parts:
        try:
            values.append(setting.read(part.strip("'\"")))
        except ValueError as error:
            raise wrong(part, str(error)) from None
    if len(set(values)) < len(values):
        raise wrong(text, "names a value twice")
    return tuple(values)


def _interval(setting: Setting, whole: str, numbers: dict[str, float], log: bool, wrong: Wrong, text: str) -> Range:
    low, high = numbers["start"], numbers["end"]
    if not low < high:
        raise wrong(text, f"low < high must hold, but got low={low:g}, high={high:g}")
    if log and not low > 0:
        raise wrong(text, f"low > 0 must hold for a logarithm, but got low={low:g}")
    for end in (low, high):
        _read(setting, end, wrong, text)
    return Range(setting=setting, text=whole, low=low, high=high, log=log)


def _evenly(setting: Setting, whole: str, numbers: dict[str, float], wrong: Wrong, text: str) -> Range:
    low, stop, step = numbers["start"], numbers["stop"], numbers.get("step", 1.0)
    if not step > 0:
        raise wrong(text, f"step > 0 must hold, but got step={step:g}")
    count = 0
    while count <= _MOST and low + count * step < stop - 1e-9 * step:
        count += 1
    if not 1 <= count <= _MOST:
        raise wrong(text, "it is empty: start < stop must hold" if not count else f"it has over {_MOST} values")
    high = low + (count - 1) * step
    for end in (low, high, step) if setting.kind is int else (low, high):
        if setting.kind is int and not float(end).is_integer():
            raise wrong(text, f"{setting.name} is a whole number")
        if end != step or setting.kind is not int:
            _read(setting, end, wrong, text)
    return Range(setting=setting, text=whole, low=low, high=high, step=step)


def _read(setting: Setting, value: float, wrong: Wrong, text: str) -> None:
    try:
        setting.read(int(value) if setting.kind is int and float(value).is_integer() else value)
    except ValueError as error:
        raise wrong(text, str(error)) from None


def _number(setting: Setting, text: str, wrong: Wrong) -> float:
    try:
        value = float(text)
    except ValueError:
        raise wrong(text, "must be a number") from None
    if not abs(value) < 1e300:
        raise wrong(text, "must be finite")
    return value
