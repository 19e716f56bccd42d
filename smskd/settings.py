"""What can be set: how a setting is declared, read from text and written. No torch; nothing is set here.

A setting is declared once, with name, default, help and bounds: in a method's file (SETTINGS), or as a field of a
frozen dataclass (Training, Recipe, Experiment, and the search's own Config). Command line, help, ranges, ids, keys and
the columns of tables come from that declaration.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import yaml

from smskd import names

Value = Any  # a number, a truth value, a text, a tuple of these; None: not set
_SHOWN = 200  # characters of a wrong value, in the message
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Setting:
    """One setting: its name, default and what it is for.

    low, high: bounds that are allowed themselves; above, below: bounds that aren't. choices: of a text. kind: the type,
    that of the default if not given; of a list, its items'. many: the value is a list.
    """

    name: str
    default: Value
    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    kind: type | None = None
    many: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", self.kind or type(self.default))

    def read(self, value: object) -> Value:
        """The value in its type, from text or from another type that means the same.

        Raises:
            ValueError: it is of another type, or out of bounds.
        """
        if self.many and isinstance(value, str):
            if value.count("[") != value.count("]"):
                raise ValueError(f"{self.name} must be {self.what}, but a bracket is missing in {shown(value)}")
            inner = value[1:-1] if value[:1] == "[" and value[-1:] == "]" else value
            value = [item.strip("'\"") for item in items(inner)]
        if self.many and not isinstance(value, list | tuple):
            raise ValueError(f"{self.name} must be {self.what}, but got {shown(value)}")
        made = []
        for item in list(value) if self.many else [value]:  # type: ignore[call-overload]
            try:
                made.append(msgspec.convert(item, self.kind, strict=isinstance(item, bool)))
            except (msgspec.ValidationError, ValueError):
                raise ValueError(f"{self.name} must be {self.what}, but got {shown(value)}") from None
            self._check(made[-1])
        return tuple(made) if self.many else made[0]

    @property
    def what(self) -> str:
        """What a value must be, in words."""
        kind = _KINDS[self.kind or str]
        return f"a list such as [{'kd,rkd' if self.kind is str else '0.5,0.75'}]" if self.many else kind

    def _check(self, value: Value) -> None:
        if self.kind is str:
            if self.choices:
                names.check(self.name, value, self.choices)
            return
        finite = not isinstance(value, float) or math.isfinite(value)
        low = self.above if self.low is None else self.low
        high = self.below if self.high is None else self.high
        below = low is not None and (value < low or (value == low and self.low is None))
        over = high is not None and (value > high or (value == high and self.high is None))
        if finite and not below and not over:
            return
        left = "" if low is None else f"{low:g} {'<' if self.low is None else '<='} "
        right = "" if high is None else f" {'<' if self.high is None else '<='} {high:g}"
        if left and not right:
            bound = f"{self.name} {'>' if self.low is None else '>='} {low:g}"
        else:
            bound = f"{left}{self.name}{right}" if left or right else f"{self.name} is finite"
        raise ValueError(f"{bound} must hold, but got {self.name}={text_of(value)}")

    def described(self) -> str:
        """The help, with bounds and choices."""
        if self.choices:
            return f"{self.help}: {', '.join(self.choices)}"
        if self.kind is str or self.kind is bool:
            return self.help
        ends = [f">= {self.low:g}"] if self.low is not None else [f"> {self.above:g}"] if self.above is not None else []
        ends += (
            [f"<= {self.high:g}"] if self.high is not None else [f"< {self.below:g}"] if self.below is not None else []
        )
        return f"{self.help} ({', '.join(ends)})" if ends else self.help


def weight(default: float, help: str = "weight of its loss") -> Setting:
    """The setting `weight`, which every method has: of its one term, or a factor of all its terms (default 1)."""
    return Setting("weight", default, help, low=0)


def temperature(default: float) -> Setting:
    """The setting `temperature` of a method that softens logits."""
    return Setting("temperature", default, "softens the logits of teacher and student", above=0)


def setting(default: Value, help: str, **bounds: Any) -> Any:
    """A field of a dataclass that is a setting; bounds as in Setting. Its type is the field's."""
    return dataclasses.field(default=default, metadata={"help": help, "bounds": bounds})


@functools.cache
def declared(schema: Any) -> Mapping[str, Setting]:
    """The settings of a dataclass, by name, in the order of its fields."""
    hints = typing.get_type_hints(schema)
    found = {}
    for field in dataclasses.fields(schema):
        if "help" not in field.metadata:
            continue
        hint = hints[field.name]
        if isinstance(hint, types.UnionType):  # X | None
            hint = next(one for one in typing.get_args(hint) if one is not types.NoneType)
        many = typing.get_origin(hint) is tuple
        kind = typing.get_args(hint)[0] if many else hint
        found[field.name] = Setting(
            field.name, field.default, field.metadata["help"], kind=kind, many=many, **field.metadata["bounds"]
        )
    return found


def check_all(values: Any) -> None:
    """Read every setting of a frozen dataclass in place, from its __post_init__; None is what is not set.

    Raises:
        ValueError: as Setting.read.
    """
    for name, one in declared(type(values)).items():  # type: ignore[arg-type]
        value = getattr(values, name)
        if value is not None:
            object.__setattr__(values, name, one.read(value))


def described(settings: Iterable[Setting]) -> list[str]:
    """One line a setting for --help: its default and what it is for."""
    return [
        f"  {one.name + '=' + ('' if one.default is None else text_of(one.default)):26} {one.described()}"
        for one in settings
    ]


def text_of(value: Value) -> str:
    """A value as it is written on the command line, in a recipe, and in tables."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(text_of, value))}]"
    if isinstance(value, float):
        return f"{value + 0:.0f}" if value.is_integer() and abs(value) < 1e6 else repr(value)  # + 0: of -0, 0
    return str(value)


def items(text: str) -> list[str]:
    """The parts between commas, those in brackets left whole; [] of an empty text."""
    found, depth = [""], 0
    for character in text:
        depth += (character in "[(") - (character in "])")
        if character == "," and not depth:
            found.append("")
        else:
            found[-1] += character
    return [part.strip() for part in found] if text.strip() else []


def shown(value: object) -> str:
    """A wrong value, in a message."""
    return repr(value)[:_SHOWN]


def plain_yaml(what: str, text: str, *, most_bytes: int = 64 * 1024, depth: int = 8) -> Any:
    """What YAML makes of a text that must be plain: no alias, not nested deeply, and not long.

    Raises:
        ValueError: it isn't, or is no YAML; told with `what` it is.
    """
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if len(text) > most_bytes:
        raise ValueError(f"{what} must be shorter than {most_bytes} characters, but has {len(text)}")
    nested = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            nested += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if nested > depth:
                raise ValueError(f"{what} must be nested at most {depth} deep: give a plain value, or a flat list")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"{what} must have no YAML aliases (*name): write the value itself")
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, UnicodeError, RecursionError):
        raise ValueError(f"{what} must be plain YAML, but got {shown(text)}") from None
    except ValueError as error:  # of a date or a number that is none, too
        raise ValueError(
            str(error) if str(error).startswith(what) else f"{what} has a date or a number that is none: {shown(text)}"
        ) from None
