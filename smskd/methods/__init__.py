"""The distillation methods, one a file: pure loss functions, and a class that holds weights and parameters.

A file in this folder is a method, under its own name; there is nothing to register. Importing this package doesn't
import torch, so that the command line can name the methods without waiting for it.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from smskd import names

# Cross-entropy first, then the three of the paper, so that joint stages print in the usual order; others by name.
_CUSTOMARY = ("ce", "kd", "fitnets", "rkd")


def available() -> tuple[str, ...]:
    """Names of all methods, in the order in which a joint stage prints them."""
    found = {m.name for m in pkgutil.iter_modules(__path__) if m.name != "base"}
    return tuple(
        sorted(
            found, key=lambda name: (name not in _CUSTOMARY, _CUSTOMARY.index(name) if name in _CUSTOMARY else 0, name)
        )
    )


def load(name: str) -> ModuleType:
    """The module of a method.

    Raises:
        ValueError: there is no such method.
    """
    return importlib.import_module(f"{__name__}.{names.check('method', name, available())}")
