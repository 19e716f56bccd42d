"""The distillation methods, one a file: pure loss functions, and a class that holds settings and parameters.

A file in this folder is a method, under its own name; there is nothing to register. So is a file of one's own that
is in use (smskd.code) and defines `build`. Neither importing this package nor asking what a method's settings are
imports torch, so that the command line can tell them without waiting for it.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from smskd import code, names, settings
from smskd.settings import Setting

# Cross-entropy first, then the three of the paper, so that joint stages print in the usual order; others by name.
_CUSTOMARY = ("ce", "kd", "fitnets", "rkd")


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a method's file says of its settings, by name and by flat key (`kd.temperature`).

    ce: cross-entropy's weight in a stage of it.
    """

    settings: Mapping[str, Setting]
    by_flat_key: Mapping[str, Setting]
    ce: float


def available() -> tuple[str, ...]:
    """Names of all methods, in the order in which a joint stage prints them."""
    return (*shipped(), *own())


def shipped() -> tuple[str, ...]:
    """Names of the methods that come along."""
    return _within(tuple(__path__))


@functools.cache  # a recipe asks many times
def _within(folders: tuple[str, ...]) -> tuple[str, ...]:
    found = {m.name for m in pkgutil.iter_modules(folders) if m.name != "base"}
    return (*_CUSTOMARY, *sorted(found - {*_CUSTOMARY}))


def own() -> tuple[str, ...]:
    """Names of the methods in files of one's own."""
    return tuple(sorted(file.removesuffix(".py") for file in code.defining("build")))


def digest(name: str) -> str:
    """SHA-256 of a method in a file of one's own."""
    return code.digest(f"{name}.py")


def load(name: str) -> ModuleType:
    """The module of a method.

    Raises:
        ValueError: there is no such method, or its file can't be imported.
    """
    if name in own():
        loaded: ModuleType = code.load(f"{name}.py", "method")
        return loaded
    return importlib.import_module(f"{__name__}.{names.check('method', name, available())}")


def declaration(name: str) -> Declaration:
    """The settings of a method, from SETTINGS and CE_WEIGHT in its file, which isn't run.

    Raises:
        ValueError: there is no such method, or its file doesn't declare them in a way that can be read alone.
    """
    names.check("method", name, available())
    if name in own():
        return _declared(f"{name}.py", code.source_of(f"{name}.py"))
    return _of_shipped(name)


@functools.cache  # the files of the package don't change while it runs
def _of_shipped(name: str) -> Declaration:
    spec = importlib.util.find_spec(f"{__name__}.{name}")
    assert spec is not None and spec.origin is not None
    return _declared(f"smskd/methods/{name}.py", Path(spec.origin).read_text())


@functools.cache  # by what it says
def _declared(file: str, source: str) -> Declaration:
    found: dict[str, object] = {"SETTINGS": (), "CE_WEIGHT": 1.0}
    known = {key: getattr(settings, key) for key in ("Setting", "weight", "temperature")}
    try:
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in found:
                compiled = compile(ast.Expression(node.value), file, "eval")
                found[node.targets[0].id] = eval(compiled, {"__builtins__": {}}, known)
        by_name = {one.name: one for one in found["SETTINGS"]}  # type: ignore[attr-defined]
        for one in by_name.values():
            one.read(one.default)
        method = Path(file).stem
        flat = {f"{method}.{key}": replace(one, name=f"{method}.{key}") for key, one in by_name.items()}
        return Declaration(settings=by_name, by_flat_key=flat, ce=float(found["CE_WEIGHT"]))  # type: ignore[arg-type]
    except Exception as error:  # whatever a contributor's new file may raise
        raise ValueError(
            f"{file} must declare SETTINGS as a tuple of Setting(...), weight(...) and temperature(...) of plain "
            f"values, and CE_WEIGHT as a number, but: {type(error).__name__}: {error}"
        ) from error


def ce_weight(stage_methods: Sequence[str]) -> float:
    """Cross-entropy's weight in a stage of these methods: the least that one of them declares."""
    return min(declaration(name).ce for name in stage_methods)


def with_setting(name: str) -> list[str]:
    """The methods that have a setting of this name."""
    return [method for method in available() if name in declaration(method).settings]
