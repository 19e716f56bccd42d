"""Every setting that is declared, wherever: part of id and key, in the files of a run, and in what is retrained.

No setting is listed here: they are found by their declarations, and so is a value that isn't the default. As many as
go together are set in one search.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

import spaces
from reports import results
from search import config, draws
from smskd import bench, experiment, job, methods, models, numerics, pairs, recipe, train
from smskd.data import Data
from smskd.experiment import Experiment
from smskd.notation import parse
from smskd.recipe import SHORTHANDS, Recipe, of_method
from smskd.settings import Setting, Value, text_of
from smskd.store.entries import address
from smskd.testing.methods import other_values
from smskd.training import SETTINGS as TRAINING
from tests import runs

OF_METHODS = {key: one for name in methods.available() for key, one in of_method(name).items()}
OF_RECIPES = {**OF_METHODS, **TRAINING, **recipe.SETTINGS, **SHORTHANDS}
# train_on= of a search is of its confirmation.
# code= names files, which count by what is in them (test_your_own.py).
OF_EXPERIMENTS = {
    key: one for key, one in experiment.SETTINGS.items() if key not in config.SETTINGS_OF_SEARCH and key != "code"
}
EVERY: dict[str, Setting] = {**OF_RECIPES, **OF_EXPERIMENTS}
# what compiles takes a minute
KEYS = [pytest.param(key, marks=pytest.mark.slow) if key == "compile" else key for key in EVERY]
Words = Mapping[str, str]

# One recipe: all methods in one stage, and another stage that feels the anchor.
SPACE = '''"""The methods in the order given, one recipe."""


def suggest(trial, menu):
    return menu.recipe(">".join(menu.methods))
'''
JOINT = "+".join(name for name in methods.available() if name != "ce")
BASE: Words = {
    "space": "in_order", "methods": f"[{JOINT},kd]", "train_size": "100", "epochs": "2", "teacher_epochs": "2",
    "seeds": "1", "confirm": "0", "log": "[]",
}  # fmt: skip
TWO = {"methods": "[kd,rkd]"}

# What a setting needs beside it to have an effect, or to be allowed at all; an empty word leaves one of BASE out.
IMAGES = {
    **TWO, "data": "folder", "data_dir": "{files}/images", "image_size": "32", "train_size": "20",
    "teacher_model": "squeezenet1_1", "student_model": "mobilenet_v3_small",
}  # fmt: skip
COMPANY: Mapping[str, Words] = {
    "milestones": {"schedule": "step"},
    "warmup_epochs": {"schedule": "step"},
    "teacher_milestones": {"teacher_schedule": "step"},
    "teacher_warmup_epochs": {"teacher_schedule": "step", "teacher_epochs": "3"},
    "split": {"epochs_total": "5", "epochs": ""},
    "epochs_total": {"epochs": ""},
    **dict.fromkeys(("data", "data_dir", "image_size", "teacher_model", "student_model"), IMAGES),
    "pair": TWO,
    "compile": {"methods": "[kd]"},  # which takes long, once a stage
    "teacher": {"methods": "[kd]", "teacher_epochs": ""},
}
# Values that no declaration says: names of files and networks.
VALUES: Mapping[str, Sequence[str]] = {
    "data": ["folder"],
    "data_dir": ["{files}/others"],
    "image_size": ["40"],
    "pad": ["2"],
    "teacher_model": ["torchvision/squeezenet1_0"],
    "student_model": ["torchvision/mobilenet_v3_large"],
    "teacher": ["{files}/teacher.safetensors"],
    "student": ["{files}/student.safetensors"],
    "teacher_layers": ["[stages.0,stages.2]"],
    "student_layers": ["[stages.0,stages.1]"],
    "pair": [name for name in pairs.available() if pairs.get(name).min_size <= 8 and name != "tiny"],
}


def candidates(key: str) -> list[str]:
    """Other values than the default, or than that of BASE, as words; some may not fit."""
    one = EVERY[key]
    if key in VALUES:
        return list(VALUES[key])
    if one.many:
        return ["[0.3,0.6]", "[1,2]"]
    if one.kind is str:
        return list(one.choices)
    usual = one.read(BASE[key]) if key in BASE else Experiment().defaults.get(key, one.default)
    guess = {int: 5, float: 0.3, bool: False}[one.kind or str]
    usual = guess if usual is None else usual
    return [text_of(value) for value in (*other_values(replace(one, default=usual)), guess)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two folders of images, weights for tiny's teacher, and the space."""
    folder = tmp_path_factory.mktemp("files")
    for number, name in enumerate(("images", "others")):
        random = np.random.default_rng(number)
        for split, count in (("train", 20), ("test", 4)):
            for label in ("cats", "dogs"):
                place = folder / name / split / label
                place.mkdir(parents=True)
                for k in range(count):
                    Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(place / f"{k}.png")
    torch.manual_seed(0)
    network = models.build("cifar/tiny_teacher", num_classes=10, image=(1, 8, 8))
    safetensors.torch.save_file(network.state_dict(), folder / "teacher.safetensors")
    network = models.build("cifar/tiny_student", num_classes=10, image=(1, 8, 8))
    safetensors.torch.save_file(network.state_dict(), folder / "student.safetensors")
    (folder / "spaces").mkdir()
    (folder / "spaces" / "in_order.py").write_text(SPACE)
    before = list(spaces.__path__)
    spaces.__path__ = [*before, str(folder / "spaces")]
    yield folder
    spaces.__path__ = before


def words(given: Words, files: Path) -> list[str]:
    return [f"{key}={value.format(files=files)}" for key, value in given.items() if value]


@dataclass(frozen=True, kw_only=True)
class Made:
    """What some words stand for."""

    recipe: Recipe
    experiment: Experiment

    @functools.cached_property
    def keys(self) -> list[str]:
        """Of its stages, after a teacher that is known by its own key."""
        made = self.experiment
        arithmetic = numerics.choose(made.precision, made.compile, cuda=False)
        data, before = loaded(made), torch.get_num_threads()
        torch.set_num_threads(made.threads)  # as whoever trains does
        try:
            teacher = made.teacher or address(job.of_teacher(made, arithmetic).identity(data))
            taught = [f"{teacher} {number}" for number in range(self.recipe.teachers)]
            found: list[str] = []
            for prefix in self.recipe.prefixes():
                parent = found[-1] if found else None
                # weights of a file are known by their own digest
                stage = job.of_student(
                    prefix, made, arithmetic, seed=0, parent=parent, teachers=taught, initial=made.student
                )
                found.append(address(stage.identity(data)))
            return found
        finally:
            torch.set_num_threads(before)


def made(given: Words, files: Path) -> Made:
    """Of a command line.

    Raises:
        ValueError: a word has no effect, or they don't go together.
    """
    settings = config.parse(words(given, files))
    (found,) = draws.look(settings.search_space()).recipes
    return Made(recipe=found, experiment=settings.experiment)


def loaded(made: Experiment) -> Data:
    wanted = ("pair", "teacher_model", "student_model", "data", "data_dir", "train_size", "image_size", "pad", "flip")
    return _loaded(json.dumps({key: value for key, value in made.to_dict().items() if key in wanted}))


@functools.cache
def _loaded(settings: str) -> Data:
    return bench.load_data(experiment.of_dict(json.loads(settings)))


@functools.cache
def changed(key: str, files: Path) -> tuple[Words, Words]:
    """Words without a setting, and the same with it, at a value that changes the keys of the stages."""
    base = BASE | COMPANY.get(key, {})
    tried = []
    for value in candidates(key):
        plain = BASE | TWO if base.get(key) == value else base
        try:
            before, after = made(plain, files), made(base | {key: value}, files)
        except ValueError as error:
            tried.append(f"{value}: {error}")
            continue
        if before.keys != after.keys:
            return plain, base | {key: value}
        tried.append(f"{value}: the same keys")
    pytest.fail(f"no other value of {key} counts: {tried}")


@pytest.mark.parametrize("key", KEYS)
def test_it_is_part_of_id_and_key(key: str, files: Path) -> None:
    plain, other = (made(given, files) for given in changed(key, files))
    assert plain.keys[-1] != other.keys[-1]
    assert (plain.recipe.id != other.recipe.id) == (key in OF_RECIPES)
    assert parse(str(other.recipe)) == other.recipe


# --- in real searches


@dataclass
class Group:
    """A search: its words, and the keys whose values are tried in it."""

    words: dict[str, str]
    keys: list[str]

    def with_key(self, key: str, given: Words) -> Group:
        """With one more; what it needs gives way to what is tried."""
        tried = {own: self.words[own] for own in self.keys}
        return Group({**self.words, **given, **tried, key: given[key]}, [*self.keys, key])


@functools.cache
def groups(files: Path) -> list[Group]:
    """Few searches in which each setting is once at another value: each goes into the first where it can."""
    found: list[Group] = []
    for key in EVERY:
        _, given = changed(key, files)
        for number, group in enumerate(found):
            both = group.with_key(key, given)
            if group.words["methods"] != given["methods"]:
                continue
            try:
                made(both.words, files)
            except ValueError:
                continue
            found[number] = both
            break
        else:
            found.append(Group(dict(given), [key]))
    assert len(found) < 10, "too many searches: say in COMPANY what goes together"
    return found


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A search that has ended: its folder, its words, and what these stand for."""

    out: Path
    words: Words
    made: Made


@pytest.fixture(scope="module")
def ran(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ran]:
    """The search that tries a setting."""
    folder = tmp_path_factory.mktemp("ran")
    code = f"import sys, spaces; spaces.__path__.append({str(files / 'spaces')!r}); from search import run; "
    code += "sys.exit(run.main(sys.argv[1:]))"

    @functools.cache
    def search(number: int) -> Ran:
        given, out = groups(files)[number].words, folder / str(number)
        command = [sys.executable, "-c", code, *words(given, files), f"out={out}", f"store={out / 'store'}"]
        done = subprocess.run(
            command, cwd=runs.ROOT, env=runs.environment(), capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return Ran(out=out, words=given, made=made(given, files))

    return lambda key: search(next(n for n, group in enumerate(groups(files)) if key in group.keys))


def value_of(key: str, found: Made) -> Value:
    """As it was asked for, from the values themselves."""
    if key in experiment.SETTINGS:
        return getattr(found.experiment, key)
    if key in recipe.SETTINGS:
        return getattr(found.recipe, key)
    if key in SHORTHANDS:
        return [stage.training(found.experiment.defaults).epochs for stage in found.recipe.stages]
    values = [stage.resolved(found.experiment.defaults) for stage in found.recipe.stages]
    return next(own[key] for own in values if key in own)


@pytest.mark.parametrize("key", KEYS)
def test_it_is_in_table_yaml_and_page(key: str, files: Path, ran: Callable[[str], Ran]) -> None:
    run = ran(key)
    value = value_of(key, run.made)
    assert key in SHORTHANDS or value == EVERY[key].read(run.words[key].format(files=files))
    (row,) = results.read(run.out).to_dict("records")
    assert row["recipe"] == str(run.made.recipe) and row["recipe_id"] == run.made.recipe.id
    if key in SHORTHANDS:
        assert row["epochs_total"] == sum(value)
        assert [row[f"stage_{k}.epochs"] for k in range(1, len(value) + 1)] == value or len(set(value)) == 1
    elif key in ("teacher_model", "student_model"):
        assert value.rpartition("/")[2] in row["pair"] and row[key] == value
    else:
        assert row[key] == (text_of(value) if isinstance(value, tuple) else value)

    told = yaml.safe_load((run.out / "best.yaml").read_text())
    held = {name: one for name, one in told.items() if name not in ("recipe", "seed")}
    again = experiment.of_dict(held)
    read = Made(recipe=again.effective(parse(told["recipe"])), experiment=again)
    assert value_of(key, read) == value
    assert key in held or key not in experiment.SETTINGS

    info = json.loads((run.out / "run.json").read_text())
    assert key in {**info["experiment"], **info["settings"]}
    page = (run.out / "report.html").read_text()
    shown = re.sub(r"<[^>]*>", " ", page.partition("<body")[2])
    assert key.replace("_", " ") in shown.replace("_", " "), "the page says what was set"


@pytest.fixture(scope="module")
def retrained(ran: Callable[[str], Ran]) -> Callable[[str], tuple[Ran, str, Path]]:
    """Trains best.yaml of the search that tries a setting, from nothing: what was printed, and the file of weights."""

    @functools.cache
    def train_again(out: Path) -> tuple[str, Path]:
        weights, store = out / "again.safetensors", out / "store of its own"
        command = [sys.executable, "-m", "smskd.train", f"recipe={out / 'best.yaml'}", f"store={store}"]
        done = subprocess.run(
            [*command, f"out={weights}"], cwd=runs.ROOT, env=runs.environment(), capture_output=True, text=True,
            timeout=280,
        )  # fmt: skip
        assert done.returncode == train.DONE, done.stderr
        return done.stdout, weights

    return lambda key: (ran(key), *train_again(ran(key).out))


@pytest.mark.parametrize("key", KEYS)
def test_best_yaml_trains_the_same_student(key: str, retrained: Callable[[str], tuple[Ran, str, Path]]) -> None:
    run, said, weights = retrained(key)
    assert "from the store" not in said and "has no effect" not in said
    (row,) = results.read(run.out).to_dict("records")
    assert f"seed {row['seed']}: {100 * row['val_accuracy']:.2f} %," in said
    found, wanted = (safetensors.torch.load_file(file) for file in (weights, run.out / "student.safetensors"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
