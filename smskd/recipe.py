"""Recipes: what is trained, in which order, with which settings and anchor. Values only: no torch, nothing is run.

A recipe has one written form, which parses back to it (smskd.notation reads it):

    kd(temperature=2)@epochs=60>fitnets(weight=50)@epochs=60,learning_rate=0.02>rkd weighting=tcp learning_rate=0.05

In brackets stand a method's own settings, after `@` the stage's training, after the stages what holds for the recipe;
a training setting there holds for all stages. Settings have flat keys, as on the command line: `kd.temperature`,
`epochs`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from smskd import methods, names, training
from smskd.settings import Setting, Value, check_all, declared, setting, text_of
from smskd.training import Training

ANCHORS = ("reference", "ewc", "none")
WEIGHTINGS = ("fixed", "tcp", "tcp_true")
MAX_TEACHERS = 100
# Of all stages together: written in a recipe or on the command line, and kept as the epochs of each stage.
SHORTHANDS: Mapping[str, Setting] = {
    one.name: one
    for one in (
        Setting(
            "epochs_total", None, "epochs of all stages together, in place of epochs=", kind=int, low=1, high=10**6
        ),
        Setting("split", None, "share of epochs_total= of each stage (default: equal)", kind=float, many=True, above=0),
    )
}
Defaults = Mapping[str, Value]  # by flat key, where a pair differs from what is declared


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: a set of methods, trained together, and the settings that are said of them and of the training.

    Cross-entropy on the labels is part of every stage; a stage of `ce` alone trains without a teacher. The methods are
    kept in one customary order, so that `rkd+kd` equals `kd+rkd`.

    settings: by flat key, in the order of declarations; what isn't said is the pair's default.

    Raises:
        ValueError: a method or a setting is unknown, a method named twice, a value out of bounds, or two values that
            don't go together.
    """

    methods: tuple[str, ...]
    settings: tuple[tuple[str, Value], ...] = ()

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("a stage needs at least one method, but got none")
        order = methods.available()
        for name in self.methods:
            names.check("method", name, order)
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"a stage is a set of methods, but {'+'.join(self.methods)!r} names one twice")
        object.__setattr__(self, "methods", tuple(sorted(self.methods, key=order.index)))
        given = dict(self.settings)
        for key in given:
            if self.declared.get(key) is None:
                raise ValueError(homeless(key, f"a stage of {'+'.join(self.methods)}"))
        read = {key: one.read(given[key]) for key, one in self.declared.items() if key in given}
        object.__setattr__(self, "settings", tuple(read.items()))

    @cached_property
    def declared(self) -> Mapping[str, Setting]:
        """Every setting that this stage can have, by flat key: its methods', then the training's."""
        return {**{key: one for name in self.methods for key, one in of_method(name).items()}, **training.SETTINGS}

    @property
    def distils(self) -> tuple[str, ...]:
        """The methods that need a teacher: all but `ce`."""
        return tuple(name for name in self.methods if name != "ce")

    @property
    def path(self) -> str:
        """The methods that make a difference, `kd+rkd`: `ce` is part of every stage."""
        return "+".join(self.distils or self.methods)

    def resolved(self, defaults: Defaults) -> dict[str, Value]:
        """The value of every setting that has an effect, said or default, by flat key."""
        values = self._usual(defaults) | dict(self.settings)
        without = training.idle(values)
        return {key: value for key, value in values.items() if key not in without}

    def _usual(self, defaults: Defaults) -> dict[str, Value]:
        own = {key: value for key, value in defaults.items() if key in self.declared}
        return {key: one.default for key, one in self.declared.items()} | {"ce": methods.ce_weight(self.methods)} | own

    def training(self, defaults: Defaults) -> Training:
        """The settings of the training, each with its value.

        Raises:
            ValueError: two of them don't go together.
        """
        return Training(**{key: v for key, v in self.resolved(defaults).items() if key in training.SETTINGS})

    def of_methods(self, defaults: Defaults) -> dict[str, dict[str, Value]]:
        """The settings of each method that distils, each with its value, by method and plain name."""
        values = self.resolved(defaults)
        return {m: {key.partition(".")[2]: values[key] for key in of_method(m)} for m in self.distils}

    def effective(self, defaults: Defaults) -> Stage:
        """The same stage with what makes a difference alone: no defaults, no idle settings, no needless `ce`."""
        plain = Stage(methods=self.distils or self.methods)
        usual, effect = plain._usual(defaults), self.resolved(defaults)
        kept = {key: value for key, value in self.settings if key in effect and value != usual.get(key)}
        return replace(plain, settings=tuple(kept.items()))

    def __str__(self) -> str:
        return self.written(frozenset())

    def written(self, lifted: frozenset[str]) -> str:
        """The notation, without the training settings that are said elsewhere."""
        parts = []
        for name in self.methods:
            own = [f"{key.partition('.')[2]}={text_of(v)}" for key, v in self.settings if key.startswith(f"{name}.")]
            parts.append(name + (f"({','.join(own)})" if own else ""))
        own = [f"{k}={text_of(v)}" for k, v in self.settings if k in training.SETTINGS and k not in lifted]
        return "+".join(parts) + (f"@{','.join(own)}" if own else "")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A sequence of stages, how each after the first is anchored to the student before it, and how many teach it.

    Raises:
        ValueError: a value is outside its range, or a name unknown.
    """

    stages: tuple[Stage, ...]
    anchor: str = setting(
        "reference",
        "what holds later stages: a frozen copy of the student before (reference), its weights by their Fisher "
        "information (ewc), or nothing",
        choices=ANCHORS,
    )
    weighting: str = setting(
        "fixed",
        "weight of the anchor per sample: lambda_base, or (1 - p) * lambda_base, with p the teacher's probability of "
        "its top class (tcp) or of the true class (tcp_true)",
        choices=WEIGHTINGS,
    )
    lambda_base: float = setting(0.5, "largest weight of the anchor", low=0)
    anchor_temperature: float = setting(4.0, "of the divergence from the reference", above=0)
    teachers: int = setting(
        1,
        "how many teachers, trained from seeds of their own, the methods of a stage share out",
        low=1,
        high=MAX_TEACHERS,
    )

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a recipe needs at least one stage, but got none")
        check_all(self)

    @property
    def path(self) -> str:
        """The stages' methods alone: `kd>fitnets>rkd`."""
        return ">".join(stage.path for stage in self.stages)

    @property
    def anchored(self) -> bool:
        """Whether stages after the first feel an anchor: one of weight 0 is none."""
        return self.anchor != "none" and self.lambda_base > 0

    @property
    def anchoring(self) -> dict[str, Value]:
        """What decides how a later stage is anchored, by name; what is idle is left out."""
        if len(self.stages) == 1:
            return {}
        if not self.anchored:
            return {"anchor": "none"}
        named = ["anchor", "weighting", "lambda_base"] + ["anchor_temperature"] * (self.anchor == "reference")
        return {name: getattr(self, name) for name in named}

    def idle(self, defaults: Defaults) -> list[str]:
        """What is said and has no effect here, as `key=value`."""
        own = [
            key for key, one in SETTINGS.items() if getattr(self, key) != one.default and not self.feels(key, defaults)
        ]
        of_stages = [
            f"stage_{number}.{key}={text_of(value)}"
            for number, stage in enumerate(self.stages, 1)
            for key, value in stage.settings
            if key not in stage.resolved(defaults)
        ]
        return [f"{key}={text_of(getattr(self, key))}" for key in own] + of_stages

    def effective(self, defaults: Defaults) -> Recipe:
        """The same recipe with what makes a difference alone; two that train the same student come out equal.

        defaults: the pair's, by flat key.
        """
        return self._of(stage.effective(defaults) for stage in self.stages)

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits that name what an effective recipe, or one that it begins with, does.

        Of the written form without what is idle whatever the defaults are, which aren't looked at.
        """
        plain = (replace(stage, methods=stage.distils or stage.methods) for stage in self.stages)
        return hashlib.sha256(str(self._of(plain)).encode()).hexdigest()[:12]

    def _of(self, stages: Iterable[Stage]) -> Recipe:
        """These stages, and of the recipe's own settings those that have an effect."""
        kept = self.anchoring | ({"teachers": self.teachers} if self._asks else {})
        return Recipe(stages=tuple(stages), **kept)

    @property
    def _asks(self) -> bool:
        """Whether a stage asks a teacher."""
        return any(stage.distils for stage in self.stages) or self.anchoring.get("weighting", "fixed") != "fixed"

    def prefixes(self) -> tuple[Recipe, ...]:
        """The recipes this one begins with, shortest first; the last is the recipe itself."""
        return tuple(replace(self, stages=self.stages[: k + 1]) for k in range(len(self.stages)))

    def says(self, key: str) -> bool:
        """Whether a stage says this setting itself (`stage_2.epochs`: that stage)."""
        return any(part in dict(stage.settings) for stage, part in self._holders(key))

    def feels(self, key: str, defaults: Defaults) -> bool:
        """Whether a setting would have an effect here."""
        if key in SHORTHANDS:
            return True
        if key == "lambda_base":  # at 0, too, where it makes the anchor none
            return len(self.stages) > 1 and self.anchor != "none"
        if key in SETTINGS:
            return key in self.anchoring or (key == "teachers" and self._asks)
        return any(part in stage.resolved(defaults) for stage, part in self._holders(key))

    def _holders(self, key: str) -> list[tuple[Stage, str]]:
        """The stages that can have a setting, with its key there."""
        number, part = stage_number(key)
        among = self.stages if number is None else self.stages[number - 1 : number]
        return [(stage, part) for stage in among if part in stage.declared]

    def with_setting(self, key: str, value: Value, *, over: bool = True) -> Recipe:
        """The recipe with a setting: its own, or of all stages that can have it, or of one (`stage_2.epochs`).

        over: also where a stage says another value itself.

        Raises:
            ValueError: it can have no such setting, or the value is out of bounds.
        """
        if key in SETTINGS:
            return replace(self, **{key: value})
        holders = self._holders(key)
        number, part = stage_number(key)
        if number is not None and number > len(self.stages):
            raise ValueError(f"{key}= is of stage {number}, but the recipe {self} has {len(self.stages)}")
        if not holders:
            raise ValueError(homeless(key, f"the recipe {self}"))
        found = []
        for at, stage in enumerate(self.stages, 1):
            if number in (None, at) and part in stage.declared and (over or part not in dict(stage.settings)):
                stage = replace(stage, settings=tuple({**dict(stage.settings), part: value}.items()))
            found.append(stage)
        return replace(self, stages=tuple(found))

    def __str__(self) -> str:
        lifted = _lifted(self.stages)
        stages = [
            stage.written(frozenset(k for k, v in lifted.items() if dict(stage.settings)[k] == v))
            for stage in self.stages
        ]
        own = {k: v for k, one in SETTINGS.items() if (v := getattr(self, k)) != one.default}
        return " ".join([">".join(stages), *(f"{k}={text_of(v)}" for k, v in (own | lifted).items())])


SETTINGS: Mapping[str, Setting] = declared(Recipe)


def _lifted(stages: Sequence[Stage]) -> dict[str, Value]:
    """Training settings that every stage says, most of them with one value, which is written once."""
    found = {}
    for key in training.SETTINGS:
        said = [dict(stage.settings).get(key) for stage in stages]
        value, count = Counter(said).most_common(1)[0]
        if None not in said and 2 * count > len(stages):
            found[key] = value
    return found


def of_method(name: str) -> Mapping[str, Setting]:
    """The settings of a method by flat key, `kd.temperature`."""
    return methods.declaration(name).by_flat_key


def stage_number(key: str) -> tuple[int | None, str]:
    """`stage_2.epochs` as (2, `epochs`); of a key that names no stage, (None, key)."""
    head, _, rest = key.partition(".")
    number = head.removeprefix("stage_")
    return (int(number), rest) if number != head and number.isdigit() and int(number) > 0 and rest else (None, key)


def declaration(key: str) -> Setting | None:
    """What is declared of a setting of recipes, by its key on the command line; None: there is no such setting."""
    if key in SETTINGS or key in SHORTHANDS:
        return SETTINGS.get(key) or SHORTHANDS[key]
    _, part = stage_number(key)
    method, _, own = part.partition(".")
    one = of_method(method).get(part) if own and method in methods.available() else training.SETTINGS.get(part)
    return one and replace(one, name=key)


def homeless(key: str, where: str) -> str:
    """What to say of a setting that isn't one of a place: where it belongs, or what comes near."""
    _, part = stage_number(key)
    method, _, own = part.partition(".")
    name = own or part
    if own and method in methods.available() and own in methods.declaration(method).settings:
        return f"{part} is a setting of {method}, which isn't in {where}"
    if name in training.SETTINGS and (own or part != key):
        use = f"{name}={text_of(training.SETTINGS[name].default)}"
        return f"{name} is a training setting: of a stage kd@{use}, of all stages {use} after them"
    if having := methods.with_setting(name):
        first = having[0]
        example = text_of(methods.declaration(first).settings[name].default)
        use = f"{first}({name}={example}), or {first}.{name}={example} for all stages"
        return f"{name} is a setting of {', '.join(having)}: {use}"
    if name in SETTINGS or name in SHORTHANDS:
        return f"{name} is a setting of the whole recipe, written after its stages: kd>rkd {name}=..."
    own_names = list(methods.declaration(method).settings) if own and method in methods.available() else []
    valid = own_names or [*training.SETTINGS, *SETTINGS, *SHORTHANDS]
    near = names.nearest(name, valid)
    of = f"; {method} has {', '.join(own_names)}" if own_names else ""
    return f"unknown setting {name!r} of {where}{of}" + (
        f". Did you mean {near!r}?" if near else f"; there are {', '.join(valid)}"
    )


def split_total(recipe: Recipe, total: int, shares: Sequence[float] | None = None) -> Recipe:
    """The recipe with a total of epochs split over its stages; what is over goes to the first, or to the largest rests.

    shares: of each stage, in any unit; None: equal. Of more shares than stages, the first count.

    Raises:
        ValueError: a stage says its own epochs, there are too few shares, or a stage would have no epoch.
    """
    count = len(recipe.stages)
    if any("epochs" in dict(stage.settings) for stage in recipe.stages):
        raise ValueError(f"epochs= is of each stage and epochs_total={total} of all of them: leave one out of {recipe}")
    if shares is not None and len(shares) < count:
        raise ValueError(f"split= needs a share for each of {count} stages, but got {text_of(tuple(shares))}")
    parts = [1.0] * count if shares is None else list(shares)[:count]
    exact = [total * part / sum(parts) for part in parts]
    each = [int(one) for one in exact]
    # rests that are equal but for rounding are equal
    for longer in sorted(range(count), key=lambda k: (round(each[k] - exact[k], 9), k))[: total - sum(each)]:
        each[longer] += 1
    if min(each) < 1:
        raise ValueError(f"each stage needs at least 1 epoch, but got epochs_total={total} for {count} stages")
    for number, epochs in enumerate(each, 1):
        recipe = recipe.with_setting(f"stage_{number}.epochs", epochs)
    return recipe


def columns(recipes: Iterable[Recipe], defaults: Defaults) -> list[dict[str, Value]]:
    """The columns of a table of effective recipes, beside those of Recipe's own settings: a row each, None where idle.

    There is a column for each setting that one of them says: `kd.temperature`, or one for each stage, `stage_2.epochs`,
    where a recipe has it differ between stages.
    """
    every = list(recipes)
    said = {key for recipe in every for stage in recipe.stages for key, _ in stage.settings}
    order = [key for name in methods.available() for key in of_method(name)] + list(training.SETTINGS)
    resolved = [[stage.resolved(defaults) for stage in recipe.stages] for recipe in every]
    rows: list[dict[str, Value]] = [{} for _ in every]
    for key in sorted(said, key=order.index):
        values = [[stage.get(key) for stage in stages] for stages in resolved]
        alike = all(len({value for value in own if value is not None}) <= 1 for own in values)
        longest = max(map(len, values))
        for row, own in zip(rows, values, strict=True):
            if alike:
                row[key] = next((value for value in own if value is not None), None)
            else:
                row |= {f"stage_{k}.{key}": own[k - 1] if k <= len(own) else None for k in range(1, longest + 1)}
    return rows
