"""Reads the notation of recipes; errors mark the place. The grammar, spaces being allowed around `>`, `+` and `,`:

recipe := stage (">" stage)* (" " key=value)*
stage  := method ("+" method)* ["@" key=value ("," key=value)*]
method := NAME ["(" key=value ("," key=value)* ")"]
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from smskd import methods, names
from smskd.recipe import (
    SETTINGS,
    SHORTHANDS,
    Recipe,
    Stage,
    declaration,
    homeless,
    of_method,
    split_total,
    stage_number,
)
from smskd.settings import Value
from smskd.training import SETTINGS as TRAINING

_NAME = re.compile(r"[A-Za-z0-9_.]+")
_MOST = 10_000  # characters of a recipe


def parse(text: str) -> Recipe:
    """Read the notation, the inverse of str(recipe).

    Raises:
        ValueError: the text doesn't parse, or names an unknown method or setting; the place is marked.
    """
    return _Reader(text).recipe()


def make(stages: str, settings: Mapping[str, Value]) -> Recipe:
    """A recipe from the notation of its stages and settings of the whole, as `lambda_base` or `learning_rate`.

    Raises:
        ValueError: the notation doesn't parse, or a setting is unknown or out of range.
    """
    return settled(parse(stages), settings)


def settled(recipe: Recipe, settings: Mapping[str, Value]) -> Recipe:
    """The recipe with settings that hold for the whole of it; what a stage says itself stays.

    Raises:
        ValueError: a setting is unknown or out of range, or epochs are given twice.
    """
    for key, value in settings.items():
        if (one := declaration(key)) is None:
            raise ValueError(homeless(key, "recipes"))
        if key not in SHORTHANDS:
            recipe = recipe.with_setting(key, one.read(value), over=stage_number(key)[0] is not None)
    given = {key: one.read(settings[key]) for key, one in SHORTHANDS.items() if key in settings}
    if "split" in given and "epochs_total" not in given:
        raise ValueError("split= divides epochs_total=, which is missing: add it, or give each stage its epochs")
    return split_total(recipe, given["epochs_total"], given.get("split")) if given else recipe


class _Reader:
    """Goes through a text from left to right."""

    def __init__(self, text: str) -> None:
        if len(text) > _MOST:
            raise ValueError(f"a recipe must have at most {_MOST} characters, but has {len(text)}")
        self._text, self._at = text, 0

    def recipe(self) -> Recipe:
        stages = [self._stage()]
        while self._take(">"):
            stages.append(self._stage())
        settings: dict[str, Value] = {}
        while self._at < len(self._text.rstrip()):
            if not self._text[self._at].isspace():
                mend = "; a bracket is closed that wasn't opened" if self._text[self._at] in ")]" else ""
                raise self._wrong("stages are joined by '>', methods by '+', settings follow after a space" + mend)
            self._space()
            start = self._at
            key, value = self._pair(" ")
            self._once(key, settings, start)
            with _Marked(self, start):
                if key not in SETTINGS and key not in SHORTHANDS and key not in TRAINING and "." not in key:
                    raise ValueError(homeless(key, "recipes"))
                settings[key] = value
                if key not in SHORTHANDS:
                    settled(Recipe(stages=tuple(stages)), {key: value})
        with _Marked(self, 0):
            if "split" in settings and "epochs_total" in settings:
                shares = SHORTHANDS["split"].read(settings["split"])
                if len(shares) != len(stages):
                    raise ValueError(
                        f"split= must have a share for each of {len(stages)} stages, but has {len(shares)}"
                    )
            return settled(Recipe(stages=tuple(stages)), settings)

    def _stage(self) -> Stage:
        start = self._at
        found: list[str] = []
        settings: dict[str, Value] = {}
        while True:
            self._space()
            at = self._at
            name = self._name(
                f"a method is expected: stages are joined by '>', methods of a stage by '+', as in kd>fitnets+rkd; "
                f"methods are {', '.join(methods.available())}"
            )
            with _Marked(self, at):
                names.check("method", name, methods.available())
            found.append(name)
            if self._take("("):
                opened = self._at - 1
                own = of_method(name)
                while True:
                    self._space()
                    at = self._at
                    key, value = self._pair(",)>@")
                    self._once(f"{name}.{key}", settings, at)
                    with _Marked(self, at):
                        if (one := own.get(f"{name}.{key}")) is None:
                            raise ValueError(homeless(f"{name}.{key}", name))
                        settings[f"{name}.{key}"] = one.read(value)
                    if self._take(")"):
                        break
                    if not self._take(","):
                        raise self._wrong("this bracket isn't closed", opened, opened + 1)
            if not self._take("+"):
                break
        if self._take("@"):
            while True:
                self._space()
                at = self._at
                key, value = self._pair(",>")
                self._once(key, settings, at)
                with _Marked(self, at):
                    if (one := TRAINING.get(key)) is None:
                        raise ValueError(homeless(key, "a stage's training"))
                    settings[key] = one.read(value)
                if not self._take(","):
                    break
        with _Marked(self, start):
            return Stage(methods=tuple(found), settings=tuple(settings.items()))

    def _pair(self, ends: str) -> tuple[str, str]:
        """A key and the text of its value, which ends at one of these, or at a space, outside of square brackets."""
        key = self._name("key=value is expected, such as epochs=60")
        if not self._take("=", spaced=False):
            raise self._wrong(f"{key} needs a value: {key}=...", self._at - len(key), self._at)
        start, depth = self._at, 0
        while self._at < len(self._text):
            character = self._text[self._at]
            if not depth and (character in ends or character in ")]" or character.isspace()):
                break
            depth += (character in "[(") - (character in "])")
            self._at += 1
        if depth:
            raise self._wrong("this bracket isn't closed", start, self._at)
        if start == self._at:
            raise self._wrong(f"{key}= needs a value")
        return key, self._text[start : self._at]

    def _name(self, expected: str) -> str:
        found = _NAME.match(self._text, self._at)
        if found is None:
            raise self._wrong(expected)
        self._at = found.end()
        return found.group()

    def _take(self, character: str, *, spaced: bool = True) -> bool:
        """Go past this character, and spaces before it, if it is next."""
        at = self._at
        if spaced:
            self._space()
        if self._text[self._at : self._at + 1] == character:
            self._at += 1
            return True
        self._at = at
        return False

    def _space(self) -> None:
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1

    def _once(self, key: str, settings: Mapping[str, Value], start: int) -> None:
        if key in settings:
            raise self._wrong(f"{key} is set twice", start, self._at)

    def _wrong(self, why: str, start: int | None = None, end: int | None = None) -> ValueError:
        at = self._at if start is None else start
        return ValueError(f"recipe {self.marked(at, at + 1 if end is None else end)}: {why}")

    def marked(self, start: int, end: int | None = None) -> str:
        """The text with a part of it between arrows, up to here if no end is given."""
        end = self._at if end is None else end
        return f"{self._text[:start]}-->{self._text[start:end]}<--{self._text[end:]}"


class _Marked:
    """Adds to an error the text, with the part marked that was read since `start`."""

    def __init__(self, reader: _Reader, start: int) -> None:
        self._reader, self._start = reader, start

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError):
            raise ValueError(f"recipe {self._reader.marked(self._start)}: {error}") from None
