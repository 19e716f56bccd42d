"""Recipes: what is trained, in which order, with which anchor. Values only; no torch, nothing is run here.

The notation: methods joined by `+` make a stage, stages joined by `>` make a recipe, and settings that differ from the
recommended ones follow as `key=value`: `kd>fitnets>rkd weighting=tcp`. A recipe prints as its notation and parses back
to itself.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property

from smskd import methods, names

ANCHORS = ("reference", "ewc", "none")
MAX_TEACHERS = 100
WEIGHTINGS = ("fixed", "tcp", "tcp_true")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: a set of methods, trained together.

    Cross-entropy on the labels is part of every stage (weight 0.1 beside `kd` or `logit_std`, else 1); a stage of `ce`
    alone trains without a teacher. The methods are kept in one customary order, so that `rkd+kd` equals `kd+rkd`.
    """

    methods: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("a stage needs at least one method, but got none")
        order = methods.available()
        for name in self.methods:
            names.check("method", name, order)
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"a stage is a set of methods, but {'+'.join(self.methods)!r} names one twice")
        object.__setattr__(self, "methods", tuple(sorted(self.methods, key=order.index)))

    @property
    def distils(self) -> tuple[str, ...]:
        """The methods that need a teacher: all but `ce`."""
        return tuple(name for name in self.methods if name != "ce")

    def __str__(self) -> str:
        return "+".join(self.methods)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A sequence of stages, how each after the first is anchored to the student before it, and how many teach it.

    anchor: `reference` (a frozen copy of the student as the stage before left it), `ewc` (its weights, each held by its
        Fisher information) or `none`.
    weighting: the per-sample weight lambda of the anchor: `fixed` (lambda_base), `tcp` ((1 - probability of the
        teacher's top class) * lambda_base) or `tcp_true` (the same with the true class).
    lambda_base: the largest weight, at least 0.
    anchor_temperature: the temperature of the reference's KL divergence, above 0.
    teachers: how many, trained from seeds of their own. The methods of a stage share them out in turn; a method that
        gets several takes the mean of their probabilities (logits) or of its losses.

    Raises:
        ValueError: a value is outside its range, or a name unknown.
    """

    stages: tuple[Stage, ...]
    anchor: str = "reference"
    weighting: str = "fixed"
    lambda_base: float = 0.5
    anchor_temperature: float = 4.0
    teachers: int = 1

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a recipe needs at least one stage, but got none")
        names.check("anchor", self.anchor, ANCHORS)
        names.check("weighting", self.weighting, WEIGHTINGS)
        object.__setattr__(self, "lambda_base", float(self.lambda_base))
        object.__setattr__(self, "anchor_temperature", float(self.anchor_temperature))
        if not (math.isfinite(self.lambda_base) and self.lambda_base >= 0):
            raise ValueError(f"lambda_base >= 0 must hold, but got lambda_base={self.lambda_base:g}")
        if not (math.isfinite(self.anchor_temperature) and self.anchor_temperature > 0):
            raise ValueError(
                f"anchor_temperature > 0 must hold, but got anchor_temperature={self.anchor_temperature:g}"
            )
        if not 1 <= self.teachers <= MAX_TEACHERS:
            raise ValueError(f"1 <= teachers <= {MAX_TEACHERS} must hold, but got teachers={self.teachers}")

    @property
    def notation(self) -> str:
        """The stages alone: `kd>fitnets>rkd`."""
        return ">".join(map(str, self.stages))

    @property
    def anchored(self) -> bool:
        """Whether stages after the first feel an anchor: one of weight 0 is none."""
        return self.anchor != "none" and self.lambda_base > 0

    @property
    def settings(self) -> dict[str, str | float]:
        """Everything but the stages, by name."""
        return {name: getattr(self, name) for name in _DEFAULTS}

    @property
    def anchoring(self) -> dict[str, str | float]:
        """What decides how a later stage is anchored, by name."""
        names = ["anchor", "weighting", "lambda_base"] + ["anchor_temperature"] * (self.anchor == "reference")
        return {name: getattr(self, name) for name in names}

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits that name what the recipe does.

        Two recipes that must train the same student have the same id: what has no effect (anchor settings of a single
        stage, a weighting without an anchor or of weight 0, the temperature of one that has none, several teachers
        where none is asked, `ce` named beside another method) isn't in it.
        """
        effect: dict[str, object] = {"stages": [list(s.distils) for s in self.stages]}
        asked = any(stage.distils for stage in self.stages)
        if len(self.stages) > 1 and self.anchored:
            effect |= self.anchoring
            asked |= self.weighting != "fixed"
        if self.teachers > 1 and asked:
            effect["teachers"] = self.teachers
        text = json.dumps(effect, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def prefixes(self) -> tuple[Recipe, ...]:
        """The recipes this one begins with, shortest first; the last is the recipe itself."""
        return tuple(replace(self, stages=self.stages[: k + 1]) for k in range(len(self.stages)))

    def __str__(self) -> str:
        changed = [f"{k}={_plain(v)}" for k, v in self.settings.items() if v != _DEFAULTS[k]]
        return " ".join([self.notation, *changed])


_DEFAULTS: dict[str, str | float] = {f.name: f.default for f in fields(Recipe) if f.name != "stages"}  # type: ignore[misc]


def parse(text: str) -> Recipe:
    """Read the notation, the inverse of str(recipe).

    Raises:
        ValueError: the text doesn't parse, or names an unknown method or setting.
    """
    head, *rest = text.split() or [""]
    settings: dict[str, str] = {}
    for word in rest:
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise ValueError(f"{word!r} in recipe {text!r} must be key=value, such as weighting=tcp")
        if key in settings:
            raise ValueError(f"recipe {text!r} sets {key} twice")
        settings[key] = value
    return make(head, settings)


def make(notation: str, settings: Mapping[str, str | float]) -> Recipe:
    """A recipe from the notation of its stages and its settings by name.

    Raises:
        ValueError: the notation doesn't parse, or a setting is unknown or out of range.
    """
    stages = []
    for part in notation.split(">"):
        if not all(part.split("+")):
            raise ValueError(
                f"recipe {notation!r} has an empty part: stages are joined by '>', methods of a stage by '+', "
                f"as in kd>fitnets+rkd; methods are {', '.join(methods.available())}"
            )
        stages.append(Stage(methods=tuple(part.split("+"))))
    typed: dict[str, str | float] = {}
    for key, value in settings.items():
        names.check("recipe setting", key, _DEFAULTS)
        kind = type(_DEFAULTS[key])
        try:
            typed[key] = kind(value)
        except ValueError:
            whole = "whole " if kind is int else ""
            raise ValueError(f"{key} must be a {whole}number, but got {value!r}") from None
        if kind is int and typed[key] != float(value):
            raise ValueError(f"{key} must be a whole number, but got {value!r}")
    return Recipe(stages=tuple(stages), **typed)  # type: ignore[arg-type]


def _plain(value: str | float) -> str:
    return repr(value) if isinstance(value, float) else value
