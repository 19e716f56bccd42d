"""key=value on the command line, onto one flat dataclass, with errors that name the nearest valid key."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import omegaconf
from omegaconf import OmegaConf

from smskd import names

T = TypeVar("T")
_FILE_BYTES = 64 * 1024
_SHOWN = 200


def key(default: Any, help: str) -> Any:
    """A field of a dataclass that is a key of the command line, with what it is for."""
    return dataclasses.field(default=default, metadata={"help": help})


def parse(schema: type[T], argv: Sequence[str], *, base: Mapping[str, Any] | None = None) -> T:
    """An instance of a dataclass from words such as `seeds=5`; `base` holds values that the words may override.

    Raises:
        ValueError: a bare word, an unknown key, a key given twice, or a value of the wrong type.
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
        given.add(key)
    config = OmegaConf.structured(schema)
    try:
        for key, value in (base or {}).items():
            names.check("key", key, keys)
            config = OmegaConf.merge(config, {key: value})
        for word in argv:
            key, _, value = word.partition("=")
            config = OmegaConf.merge(config, _read(word))
        return cast(T, OmegaConf.to_object(config))
    except (omegaconf.errors.OmegaConfBaseException, TypeError):
        pass
    except Exception as error:  # PyYAML's errors, of values such as [kd
        if type(error).__module__.split(".")[0] != "yaml":
            raise
    wanted = {f.name: f.type for f in dataclasses.fields(cast(Any, schema))}[key]
    raise ValueError(f"{key} must be {_readable(str(wanted))}, but got {repr(value)[:_SHOWN]}")


def _read(word: str) -> Any:
    try:
        return OmegaConf.from_dotlist([word])
    except ValueError:  # Python reads no whole number of thousands of digits
        raise TypeError(word) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a small, flat YAML file such as best.yaml.

    Raises:
        ValueError: no such file, too large, no YAML, or not flat.
    """
    import yaml  # here, since only `recipe=file.yaml` needs it

    try:
        with path.open("rb") as file:
            text = file.read(_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    if len(text) > _FILE_BYTES or b"&" in text or b"*" in text:
        raise ValueError(
            f"{path} must be a flat YAML file of less than {_FILE_BYTES} bytes, without anchors and aliases"
        )
    loaded: Any = None
    with contextlib.suppress(yaml.YAMLError, RecursionError, UnicodeDecodeError):
        loaded = yaml.safe_load(text)
    flat = isinstance(loaded, dict) and all(
        isinstance(key, str) and (value is None or isinstance(value, str | int | float))
        for key, value in loaded.items()
    )
    if not flat:
        raise ValueError(f"{path} must hold flat `key: value` lines in YAML, such as best.yaml has")
    return {key: value for key, value in loaded.items() if value is not None}


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
