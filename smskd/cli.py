"""key=value on the command line, by the declarations of settings; errors name the nearest valid key."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from smskd import code, experiment, methods, names, training
from smskd import recipe as recipes
from smskd.settings import Setting, Value, declared, described, items, text_of

T = TypeVar("T")
# Keys whose value may be FILE.py or FILE.py:NAME; and those that may name methods by their files.
_OF_FILES, _OF_METHODS = ("student_model", "teacher_model", "data", "pair", "space"), ("methods", "recipe")
_METHOD = re.compile(r"[^>+,()\[\]=@]+?\.py\b")


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


def use_files(given: Mapping[str, str]) -> dict[str, str]:
    """Let the files run that the words name, and name them without their folders; `code` has those of the experiment.

    Raises:
        ValueError: as smskd.code.use.
    """
    found = dict(given)
    paths = {
        key: [one.partition(":")[0] for one in _listed(given.get(key, "")) if code.is_file(one)] for key in _OF_FILES
    }
    for key in filter(paths.get, _OF_FILES):
        named = [code.named(one) for one in _listed(given[key])]
        found[key] = text_of(named) if given[key].startswith("[") else named[0]
    for key in filter(given.get, _OF_METHODS):
        paths[key] = [path.strip() for path in _METHOD.findall(given[key])]
        found[key] = _METHOD.sub(lambda path: Path(path[0].strip()).stem, given[key])
    paths["code"] = _listed(given.get("code", ""))
    if every := [path for each in paths.values() for path in each]:
        code.use(*dict.fromkeys(every))
        for file in (Path(path).name for key in _OF_METHODS for path in paths.get(key, ())):
            if file not in code.defining("build"):
                raise ValueError(f"{file} must define build(task) -> Method to be a method, but doesn't")
            if not file.removesuffix(".py").isidentifier():
                raise ValueError(f"{file}: a method is called as its file, in letters, digits and _: rename it")
            if file.removesuffix(".py") in methods.shipped():
                raise ValueError(f"{file} has the name of a method that is there: rename it")
    kept = {Path(path).name for key, each in paths.items() for path in each if key != "space"}
    return found | ({"code": text_of(sorted(kept))} if kept else {})


def _listed(text: str) -> list[str]:
    return items(text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text)


def build(schema: type[T], given: Mapping[str, Value]) -> T:
    """A dataclass from values by name, each read as its setting says; None and what isn't given are the defaults."""
    known = declared(cast(Any, schema))
    return schema(**{key: known[key].read(value) for key, value in given.items() if value is not None})


def parse(schema: type[T], argv: Sequence[str]) -> T:
    """An instance of a dataclass of settings from words such as `seeds=5`.

    Raises:
        ValueError: as split; an unknown key; a value of the wrong type or out of bounds.
    """
    given, known = split(argv), declared(cast(Any, schema))
    for key in given:
        check(key, known)
    return build(schema, use_files(given) if "code" in known else given)


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


def help_of_settings(own: Collection[str] = ()) -> list[str]:
    """Lines of --help for what an experiment and its recipes can be set to. own: keys that mean something else."""
    theirs = {name: one for name, one in experiment.SETTINGS.items() if name not in own}
    networks, teachers = (
        described(one for name, one in theirs.items() if (name in training.TEACHER_SETTINGS) is of_teacher)
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
