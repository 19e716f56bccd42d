"""key=value on the command line, by the declarations of settings; errors name the nearest valid key."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

from smskd import experiment, methods, names, training
from smskd import recipe as recipes
from smskd.settings import Setting, Value, declared, described

T = TypeVar("T")


def split(argv: Sequence[str]) -> dict[str, str]:
    """The words by key.

    Raises:
        ValueError: a bare word, a key without a value, or one given twice.
    """
    found: dict[str, str] = {}
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} must be key=value, such as seeds=5; --help lists the keys")
        if key in found:
            raise ValueError(f"{key}= is given twice")
        if value == "":
            raise ValueError(f"{key}= needs a value")
        found[key] = value
    return found


def build(schema: type[T], given: Mapping[str, Value]) -> T:
    """A dataclass from values by name, each read as its setting says; None and what isn't given are the defaults."""
    known = declared(cast(Any, schema))
    return schema(**{key: known[key].read(value) for key, value in given.items() if value is not None})


def parse(schema: type[T], argv: Sequence[str]) -> T:
    """An instance of a dataclass of settings from words such as `seeds=5`.

    Raises:
        ValueError: as split; an unknown key; a value of the wrong type or out of bounds.
    """
    given = split(argv)
    for key in given:
        check(key, declared(cast(Any, schema)))
    return build(schema, given)


def check(key: str, valid: Iterable[str], *, recipes_too: bool = False) -> None:
    """Refuse a key that isn't valid. recipes_too: settings of recipes are.

    Raises:
        ValueError: told with the nearest one, or with where a setting of this name belongs.
    """
    known = list(valid)
    if key in known or (recipes_too and recipes.declaration(key) is not None):
        return
    if not recipes_too:
        names.check("key", key, known)
    _, part = recipes.stage_number(key)
    method, dot, _ = part.partition(".")
    if methods.with_setting(key) or (dot and method in methods.available()):
        raise ValueError(recipes.homeless(key, "recipes"))
    of_stage = key.removesuffix(part)
    others = [] if of_stage else [*known, *recipes.SETTINGS, *recipes.SHORTHANDS]
    near = names.nearest(part, [*others, *training.SETTINGS])
    hint = f" Did you mean {of_stage + near!r}?" if near else ""
    raise ValueError(f"unknown key {key!r}: --help lists the keys.{hint}")


def describe(schema: type) -> list[str]:
    """Lines of --help for a dataclass of settings."""
    return described(declared(schema).values())


def help_of_settings() -> list[str]:
    """Lines of --help for what an experiment and its recipes can be set to."""
    networks, teachers = (
        described(one for name, one in experiment.SETTINGS.items() if (name in training.TEACHER_SETTINGS) is of_teacher)
        for of_teacher in (False, True)
    )
    lines = ["networks, data and arithmetic:", *networks, "a teacher that is trained here (defaults: the pair's):"]
    return [*lines, *teachers, "", *_help_of_recipes()]


def _help_of_recipes() -> list[str]:
    whole = [*recipes.SETTINGS.values(), *recipes.SHORTHANDS.values()]
    lines = ["a recipe:", *described(whole)]
    lines += ["training, of all stages, or of one as stage_2.epochs= (defaults: the pair's):"]
    lines += described(dataclasses.replace(one, default=None) for one in training.SETTINGS.values())
    own: list[Setting] = [one for name in methods.available() for one in recipes.of_method(name).values()]
    return [*lines, "methods (defaults: published, or the pair's):", *described(own)]
