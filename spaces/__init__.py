"""Search spaces, one a file: a docstring, and suggest(trial, menu) -> Recipe. Nothing to register, and no torch.

A file may also say MAX_STAGES, the number of stages it searches up to when nobody asks for more; and COMPARISON = True,
if its recipes are systems to be compared, at equal total epochs, and are all to be confirmed with fresh seeds.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

from smskd import names
from smskd.recipe import Recipe, make

DEFAULT_MAX_STAGES = 3


class Trial(Protocol):
    """What a space draws from: the part of optuna.trial.Trial that has a fixed number of parameters.

    Choices are strings or numbers. A name must stand for the same choices in every call. Of the parameters `stage_1`,
    `stage_2`, ... those past `n_stages` must have no effect, where a space has these names: nobody walks through them.
    """

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str: ...

    def suggest_int(self, name: str, low: int, high: int) -> int: ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Menu:
    """What a search may choose from, and what stays fixed where a space doesn't search it.

    methods: stages in notation, such as `kd` or `kd+rkd`. max_stages: the longest recipe.
    """

    methods: tuple[str, ...]
    max_stages: int
    anchor: str
    weighting: str
    lambda_base: float

    def recipe(self, stages: str, **searched: str | float) -> Recipe:
        """A recipe of these stages (`kd>rkd`); what isn't searched is as the menu says."""
        kept = {name: getattr(self, name) for name in ("anchor", "weighting", "lambda_base") if name not in searched}
        return make(stages, kept | searched)


def available() -> dict[str, str]:
    """Name -> first line of the docstring, of every space, by name. The files are read, not run."""
    return {name: _docstring(name).strip().partition("\n")[0] for name in _found()}


def load(name: str) -> ModuleType:
    """The module of a space.

    Raises:
        ValueError: there is no such space, or its file has no suggest(trial, menu).
    """
    names.check("space", name, _found())
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except Exception as error:  # whatever a user's new file may raise
        raise ValueError(f"spaces/{name}.py can't be imported: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, "suggest", None)):
        raise ValueError(f"spaces/{name}.py must define suggest(trial, menu) -> Recipe, but doesn't")
    return module


def _found() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def _docstring(name: str) -> str:
    spec = importlib.util.find_spec(f"{__name__}.{name}")
    assert spec is not None and spec.origin is not None
    try:
        return ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""
    except (SyntaxError, UnicodeDecodeError):
        return "(this file doesn't parse)"
