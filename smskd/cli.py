"""key=value on the command line, onto one flat dataclass, with errors that name the nearest valid key."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import omegaconf
import yaml
from omegaconf import OmegaConf

from smskd import names

T = TypeVar("T")
# Of a file, or of a word: no setting comes near.
_BYTES, _DEPTH = 64 * 1024, 8
_SHOWN = 200
# The one that OmegaConf takes: what is checked is what is read.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SHOWN = 200  # characters of a wrong value, in the message


def key(default: Any, help: str) -> Any:
    """A field of a dataclass that is a key of the command line, with what it is for."""
    return dataclasses.field(default=default, metadata={"help": help})


def parse(schema: type[T], argv: Sequence[str], *, base: Mapping[str, Any] | None = None) -> T:
    """An instance of a dataclass from words such as `seeds=5`; `base` holds values that the words may override.

    Raises:
        ValueError: a bare word, an unknown key, a key given twice, a value of the wrong type, or one that isn't plain:
            with an alias, nested deeply, or `${...}`, which OmegaConf would replace by what it names.
    """
    keys = [field.name for field in dataclasses.fields(cast(Any, schema))]
    given: set[str] = set()
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals:
            near = names.nearest(word.lstrip("-"), keys)
            hint = f" Did you mean {near}=...?" if near else ""
            raise ValueError(f"{word!r} must be key=value, with one of the keys {', '.join(keys)}.{hint}")
        names.check("key", key, keys)
        if key in given:
            raise ValueError(f"{key}= is given twice")
        if value == "":
            raise ValueError(f"{key}= needs a value")
        if (wrong := _not_plain(value)) is not None:
            raise ValueError(f"{key}= {wrong}")
        given.add(key)
    config = OmegaConf.structured(schema)
    try:
        for key, value in (base or {}).items():
            names.check("key", key, keys)
            config = OmegaConf.merge(config, {key: value})
        for word in argv:
            key, _, value = word.partition("=")
            config = OmegaConf.merge(config, _loaded(word))
        return cast(T, OmegaConf.to_object(config))
    except (omegaconf.errors.OmegaConfBaseException, TypeError, yaml.YAMLError):  # YAML's, of values such as [kd
        wanted = {f.name: f.type for f in dataclasses.fields(cast(Any, schema))}[key]
        raise ValueError(f"{key} must be {_readable(str(wanted))}, but got {repr(value)[:_SHOWN]}") from None


def _loaded(word: str) -> omegaconf.DictConfig:
    try:
        return OmegaConf.from_dotlist([word])
    except ValueError:  # a number of thousands of digits, or a text that isn't Unicode
        raise TypeError from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a small, flat YAML file such as best.yaml.

    Raises:
        ValueError: no such file, too large, no YAML, not flat, or its values aren't plain, as in parse().
    """
    try:
        with path.open("rb") as file:
            content = file.read(_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} must be text in UTF-8, such as best.yaml is") from None
    if (wrong := _not_plain(text)) is not None:
        raise ValueError(f"{path} {wrong}")
    loaded: Any = None
    with contextlib.suppress(yaml.YAMLError, ValueError):  # a date or a number that is none
        loaded = yaml.load(text, Loader=_LOADER)
    flat = isinstance(loaded, dict) and all(
        isinstance(key, str) and (value is None or isinstance(value, str | int | float))
        for key, value in loaded.items()
    )
    if not flat:
        raise ValueError(f"{path} must hold flat `key: value` lines in YAML, such as best.yaml has")
    return {key: value for key, value in loaded.items() if value is not None}


def _not_plain(text: str) -> str | None:
    """What is wrong with YAML that must be plain, seen before anything is made of it; None: nothing, or it is no YAML.

    Values are looked at as YAML reads them, after its escapes.
    """
    if len(text) > _BYTES:
        return f"must be shorter than {_BYTES} characters, but has {len(text)}"
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEPTH:
                return f"must be nested at most {_DEPTH} deep: give a plain value, or a flat list"
            if isinstance(event, yaml.AliasEvent):
                return "must have no YAML aliases (*name): write the value itself"
            if isinstance(event, yaml.ScalarEvent) and ("${" in event.value or event.value == "???"):
                return f"is taken as it stands, so that {event.value[:40]!r} can't be: write the value itself"
    except (yaml.YAMLError, UnicodeError):
        return None  # whoever reads it says so
    return None


def describe(schema: type) -> list[str]:
    """One line a key: its default and what it is for, from the fields' metadata."""
    lines = []
    for f in dataclasses.fields(schema):
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        shown = f"[{','.join(default)}]" if isinstance(default, list) else "" if default is None else str(default)
        lines.append(f"  {f.name + '=' + shown:26} {f.metadata['help']}")
    return lines


def _readable(annotation: str) -> str:
    base = annotation.removesuffix(" | None")
    return {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "str": "text",
        "list[str]": "a list such as [kd,rkd]",
        "list[float]": "a list of numbers such as [0,0.3,1e9,1e11]",
    }.get(base, base)
