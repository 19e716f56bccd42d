"""Search spaces, one a file: a docstring, and suggest(trial, menu) -> Recipe. Nothing to register, and no torch.

A space is one of Optuna's: `trial` has all of `suggest_*`, and choices may hang on those before. A file may also say
MAX_STAGES, the number of stages it searches up to when nobody asks for more; and COMPARISON = True, if its recipes are
systems to be compared, at equal total epochs, and are all to be confirmed with fresh seeds.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from smskd import code, names
from smskd.notation import make
from smskd.recipe import Recipe, declaration
from smskd.settings import Value

if TYPE_CHECKING:
    from optuna.trial import BaseTrial as Trial
else:  # it takes half a second to import
    Trial = Any

__all__ = ["DEFAULT_MAX_STAGES", "Menu", "Trial", "available", "load"]
DEFAULT_MAX_STAGES = 3


@dataclass(frozen=True, kw_only=True)
class Menu:
    """What a search may choose from, and what the command line fixes.

    methods: stages in notation, such as `kd`, `kd+rkd` or `kd(temperature=2)`. max_stages: the longest recipe.
    defaults: the pair's settings, by flat key. fixed: settings of whole recipes, as `lambda_base`. taken: all that the
    command line sets or searches, so that a space can't. epochs_total: of each recipe, where that is given.
    """

    methods: tuple[str, ...]
    max_stages: int
    defaults: Mapping[str, Value] = field(default_factory=dict)
    fixed: Mapping[str, Value] = field(default_factory=dict)
    taken: frozenset[str] = frozenset()
    epochs_total: int | None = None

    def default(self, key: str) -> Value:
        """The value of a setting of methods or of the training where nobody sets it."""
        one = declaration(key)
        assert one is not None, f"{key} is a setting"
        return self.defaults.get(key, one.default)

    def recipe(self, stages: str, **searched: Value) -> Recipe:
        """A recipe of these stages (`kd>rkd`), with settings of the whole that the space chooses; others are as fixed.

        Raises:
            ValueError: one of them is set by the command line, too.
        """
        for key in searched:
            if key in self.taken:
                raise ValueError(f"{key}= is chosen by the space itself: leave it out, or take another space")
        return make(stages, dict(self.fixed) | searched)


def available() -> dict[str, str]:
    """Name -> first line of the docstring, of every space, by name. The files are read, not run."""
    return {name: _docstring(name).strip().partition("\n")[0] for name in _found()}


def load(name: str) -> ModuleType:
    """The module of a space: of this folder, or of a file that is in use, as `mine.py`.

    Raises:
        ValueError: there is no such space, or its file has no suggest(trial, menu).
    """
    if code.is_file(name):
        module: ModuleType = code.load(name, "space")
        file = name
    else:
        file = f"spaces/{names.check('space', name, _found())}.py"
        try:
            module = importlib.import_module(f"{__name__}.{name}")
        except Exception as error:  # whatever a user's new file may raise
            raise ValueError(f"{file} can't be imported: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, "suggest", None)):
        raise ValueError(f"{file} must define suggest(trial, menu) -> Recipe, but doesn't")
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
