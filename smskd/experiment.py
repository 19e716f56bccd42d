"""Experiment: all that a result depends on beside recipe and seed. A value with one written form; no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from smskd import code, components, datasets, names, pairs
from smskd.components import Network
from smskd.numerics import COMPILES, PRECISIONS
from smskd.pairs import Pair
from smskd.recipe import Recipe
from smskd.settings import Setting, Value, check_all, declared, plain_yaml, setting
from smskd.training import SETTINGS as TRAINING
from smskd.training import TEACHER, TEACHER_SETTINGS, Training

_FILES = ("data_dir", "teacher", "student")
_NETWORKS = {"teacher_model": "teacher", "student_model": "student"}

# The teacher's training has the settings that a stage's has, where it is trained here; None: the pair's.
_TeacherTraining: Any = dataclasses.make_dataclass(
    "_TeacherTraining",
    [
        (
            name,
            tuple[one.kind, ...] if one.many else one.kind,  # type: ignore[name-defined]
            setting(None, one.help, **{key: getattr(one, key) for key in ("low", "high", "above", "below", "choices")}),
        )
        for name, one in TEACHER_SETTINGS.items()
    ],
    frozen=True,
    kw_only=True,
    namespace={"__module__": __name__},
)


@dataclass(frozen=True, kw_only=True)
class Experiment(_TeacherTraining):  # type: ignore[misc]
    """Networks, data, teacher and arithmetic. None means: chosen by the program, as the help says.

    Beside these fields there are `teacher_epochs`, `teacher_learning_rate` and so on, one for each setting of Training.

    Raises:
        ValueError: a value is out of bounds, a name unknown, or two settings don't go together.
    """

    pair: str | None = setting(
        None, "teacher and student (default: tiny), or a file such as my_pair.py: " + ", ".join(pairs.available())
    )
    teacher_model: str | None = setting(
        None,
        "in place of pair=, with student_model=: cifar/NAME, torchvision/NAME, timm/NAME, or FILE.py:NAME, a class or "
        "function (num_classes, in_channels) -> nn.Module",
    )
    student_model: str | None = setting(None, "as teacher_model=, such as cifar/resnet20 or nets.py:Student")
    teacher_layers: tuple[str, ...] | None = setting(
        None,
        "modules whose outputs are the teacher's feature maps, such as [layer1,layer2.0] (default: the last of each "
        "resolution; python -m smskd.models show lists them)",
    )
    student_layers: tuple[str, ...] | None = setting(None, "as teacher_layers=, of the student")
    data: str = setting(
        "digits",
        "data set: " + ", ".join(datasets.NAMES) + "; or FILE.py:NAME, a function that gives (train, test) or (train, "
        "validation, test), each (images, labels), a torch Dataset or a Hugging Face one",
    )
    data_dir: str | None = setting(None, "folder with the data set's files (default: runs/data, filled by download)")
    train_size: int | None = setting(None, "train on this many images, stratified (default: all)", low=2)
    image_size: int | None = setting(
        None, "pixels a side, for data=folder and FILE.py; the shorter one is resized, the middle cut out", low=1
    )
    pad: int | None = setting(
        None, "pixels of black around an image before it is cropped back at random (default: the data set's own)", low=0
    )
    flip: bool | None = setting(None, "whether images are mirrored at random (default: the data set's own)")
    train_on: str = setting(
        "train", "images that are trained on; all: those of the validation split, too", choices=("train", "all")
    )
    teacher: str | None = setting(
        None, "file with the teacher's weights (default: train one, and keep it in the store)"
    )
    student: str | None = setting(None, "file with the student's initial weights (default: drawn anew for each seed)")
    code: tuple[str, ...] | None = setting(
        None, "files of one's own whose code may run, such as [nets.py,cosine.py]; those that other words name needn't"
    )
    precision: str | None = setting(
        None, "of forward passes (default: bf16 on GPUs, float32 on CPUs)", choices=PRECISIONS
    )
    compile: str | None = setting(None, "compile the student (default: off)", choices=COMPILES)
    threads: int = setting(1, "threads of a training on a CPU", low=1, high=1024)
    objects: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in self.objects:  # networks have their names below
            object.__setattr__(self, name, components.OBJECT + name)
        check_all(self)
        for name, role in _NETWORKS.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, getattr(self.networks, role).name)
        in_file = self.pair is not None and code.is_file(self.pair)
        object.__setattr__(self, "pair", code.named(self.pair or "") if in_file else self.networks.name)
        if code.is_file(self.data):
            object.__setattr__(self, "data", ":".join(code.located(self.data, "data", functions=True)))
        datasets.check(self.data, data_dir=self.data_dir, image_size=self.image_size)
        object.__setattr__(self, "code", self._stamps())
        if self.train_on == "all" and self.train_size is not None:
            raise ValueError("train_on=all trains on all images, so train_size= has no use; leave one of them out")
        given = [name for name in TEACHER_SETTINGS if getattr(self, name) is not None]
        if self.teacher is not None and given:
            raise ValueError(f"teacher= names finished weights, so {given[0]}= has no use; leave one of them out")
        try:
            self.teacher_training  # noqa: B018 (its settings must go together)
        except ValueError as error:
            raise ValueError(f"the teacher's training: {error}") from None

    @cached_property
    def networks(self) -> Pair:
        """The teacher and student asked for, with their settings."""
        chosen = {role: self._network(name) for name, role in _NETWORKS.items()}
        layers = {"teacher": self.teacher_layers, "student": self.student_layers}
        return pairs.choose(self.pair, **chosen, layers=layers)

    def _network(self, name: str) -> Network | None:
        given = getattr(self, name)
        if name in self.objects:
            return components.of_object(self.objects[name])
        return None if given is None else components.network(given, key=name)

    def _stamps(self) -> tuple[str, ...] | None:
        """Which code from outside this is of; it must be in use, and be that which was said."""
        said = self.code or ()
        code.check_stamps(said)
        names = [self.pair or "", self.data, self.networks.teacher.name, self.networks.student.name]
        files = {code.named(one).partition(":")[0] for one in names if code.is_file(one)}
        files |= {code.named(one.partition("@")[0]) for one in said}
        return code.stamps(files) or None

    @cached_property
    def defaults(self) -> Mapping[str, Value]:
        """What holds where a recipe says nothing, by flat key."""
        return {key: value for key, value in self.networks.defaults.items() if key not in TEACHER_SETTINGS}

    @cached_property
    def teacher_training(self) -> Training:
        """How a teacher is trained: as asked for, or as the pair has it, or as its students are."""
        found = {name: value for name, value in self.defaults.items() if name in TRAINING}
        for source in (self.networks.defaults, vars(self)):
            own = {name.removeprefix(TEACHER): v for name in TEACHER_SETTINGS if (v := source.get(name)) is not None}
            found |= own
        return Training(**found, ce=1.0)

    def effective(self, recipe: Recipe) -> Recipe:
        """The recipe with what makes a difference here alone.

        Raises:
            ValueError: the settings of a stage don't go together.
        """
        found = recipe.effective(self.defaults)
        for number, stage in enumerate(found.stages, 1):
            try:
                stage.training(self.defaults)
            except ValueError as error:
                raise ValueError(f"stage {number} of {recipe}: {error}") from None
        return found

    def to_dict(self) -> dict[str, Value]:
        """The written form: pair and data, and what isn't default, by name."""
        networks = "teacher_model" if self.teacher_model else "pair"
        values = {name: getattr(self, name) for name in SETTINGS if name != "pair" or networks == "pair"}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if name in ("pair", "data") or value != SETTINGS[name].default
        }

    def with_absolute_paths(self) -> Experiment:
        """For processes in other folders."""
        found: dict[str, Any] = {
            name: str(Path(value).absolute()) for name in _FILES if (value := getattr(self, name)) is not None
        }
        downloads = datasets.downloads(self.data)
        if self.data_dir is None and downloads is not None:
            found["data_dir"] = str(downloads.absolute())
        return dataclasses.replace(self, **found)


_DECLARED = declared(Experiment)
SETTINGS: Mapping[str, Setting] = {
    name: _DECLARED[name] for name in sorted(_DECLARED, key=TEACHER_SETTINGS.__contains__)
}


def of_dict(values: Mapping[str, Value]) -> Experiment:
    """From the written form.

    Raises:
        ValueError: a setting is unknown; or as Experiment.
    """
    for name in values:
        names.check("setting", name, SETTINGS)
    return Experiment(**values)


def read_recipe_file(path: Path) -> dict[str, Value]:
    """The keys and values of a file such as best.yaml: `recipe`, an experiment's settings, `seed`.

    Raises:
        ValueError: no such file, too large, no YAML, or not flat.
    """
    try:
        with path.open("rb") as file:
            text = file.read(64 * 1024 + 1).decode()
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} must be text in UTF-8, such as best.yaml is") from None
    loaded = plain_yaml(str(path), text)
    flat = isinstance(loaded, dict) and all(
        isinstance(key, str) and all(isinstance(item, str | int | float | None) for item in _items(value))
        for key, value in loaded.items()
    )
    if not flat:
        raise ValueError(f"{path} must hold flat `key: value` lines in YAML, such as best.yaml has")
    if not isinstance(loaded.get("recipe"), str):
        raise ValueError(f"{path} must have a recipe: line, such as recipe: kd>fitnets>rkd")
    return {key: value for key, value in loaded.items() if value is not None}


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
