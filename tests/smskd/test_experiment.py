"""Experiments: valid from construction, one written form, and the training of teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from smskd import experiment, pairs, train
from smskd.experiment import Experiment, of_dict, read_recipe_file
from smskd.notation import parse
from smskd.settings import text_of
from smskd.training import SETTINGS as TRAINING
from smskd.training import TEACHER_SETTINGS, Training


@st.composite
def experiments(draw: st.DrawFn) -> Experiment:
    folder = draw(st.booleans())
    given: dict[str, Any] = {"pair": draw(st.sampled_from(pairs.available()))}
    given |= {"data": "folder", "data_dir": "x/y", "image_size": draw(st.integers(1, 500))} if folder else {}
    options: dict[str, st.SearchStrategy[Any]] = {
        "train_size": st.integers(2, 10**6), "precision": st.sampled_from(["float32", "bf16"]),
        "compile": st.sampled_from(["off", "on"]), "threads": st.integers(1, 64),
        "teacher_epochs": st.integers(1, 500), "teacher_learning_rate": st.floats(1e-6, 10),
        "teacher_schedule": st.sampled_from(["step", "cosine"]), "teacher_milestones": st.just((0.25, 0.5)),
        "teacher_nesterov": st.booleans(),
    }  # fmt: skip
    for name in draw(st.lists(st.sampled_from(list(options)), unique=True)):
        given[name] = draw(options[name])
    return Experiment(**given)


@settings(deadline=None)
@given(one=experiments())
def test_the_written_form_reads_back(one: Experiment) -> None:
    written = one.to_dict()
    assert of_dict(written) == one
    assert {"pair", "data"} <= set(written)
    assert of_dict(yaml.safe_load(yaml.safe_dump(written))) == one
    assert of_dict({name: text_of(value) for name, value in written.items()}) == one
    assert set(written) - {"pair", "data"} == {
        name for name, default in experiment.SETTINGS.items()
        if name not in ("pair", "data") and getattr(one, name) != default.default
    }  # fmt: skip


def test_what_is_default_is_not_written() -> None:
    assert Experiment().to_dict() == {"pair": "tiny", "data": "digits"}
    assert Experiment(train_size=100, teacher_milestones=[0.5]).to_dict() == {
        "pair": "tiny", "data": "digits", "train_size": 100, "teacher_milestones": [0.5],
    }  # fmt: skip
    assert Experiment() == Experiment(pair="tiny") and hash(Experiment()) == hash(Experiment(pair="tiny"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"pair": "tony"}, r"unknown pair 'tony'.*Did you mean 'tiny'\?"),
        ({"data": "digit"}, r"unknown data\w* '?digit.*digits"),
        ({"train_size": 1}, "train_size >= 2 must hold, but got train_size=1"),
        ({"train_size": "many"}, "train_size must be a whole number"),
        ({"image_size": 8}, "image_size= is for data=folder"),
        ({"data": "folder"}, "needs data_dir="),
        ({"precision": "float16"}, "float32, bf16"),
        ({"compile": "yes"}, "off, on, graphs"),
        ({"threads": 0}, "1 <= threads <= 1024 must hold"),
        ({"teacher_model": "resnet18"}, "student_model= is missing"),
        ({"teacher": "t.safetensors", "teacher_epochs": 3}, "teacher_epochs= has no use; leave one of them out"),
        ({"teacher_epochs": 0}, "must hold, but got teacher_epochs=0"),
        ({"teacher_schedule": "steps"}, r"unknown teacher_schedule 'steps'.*Did you mean 'step'\?"),
        ({"teacher_learning_rate": float("nan")}, "teacher_learning_rate > 0 must hold"),
        ({"teacher_warmup_epochs": 2}, "the teacher's training: schedule=one_cycle climbs by itself"),
        ({"teacher_momentum": 0}, "the teacher's training: momentum > 0 with nesterov"),
        ({"teacher_milestones": 0.5}, "teacher_milestones must be a list"),
    ],
)
def test_an_experiment_is_valid_from_construction(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        Experiment(**given)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=says):
        of_dict(given)


def test_an_unknown_setting_is_told_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown setting 'train_sise'.*Did you mean 'train_size'\?"):
        of_dict({"train_sise": 100})
    with pytest.raises(ValueError, match="unknown setting 'teacher_ce'"):
        of_dict({"teacher_ce": 1})


# --- the teacher's training


@pytest.mark.parametrize("name", [name for name in TRAINING if name != "ce"])
def test_every_setting_of_a_training_is_one_of_the_teachers(name: str) -> None:
    tried: dict[str, Any] = {
        "epochs": 4, "learning_rate": 0.3, "schedule": "step", "milestones": (0.4,), "warmup_epochs": 2,
        "optimizer": "adamw", "momentum": 0.5, "nesterov": False, "weight_decay": 0.1, "batch_size": 20,
        "label_smoothing": 0.1, "clip_norm": 2.0,
    }  # fmt: skip
    own = experiment.SETTINGS[f"teacher_{name}"]
    assert (own.low, own.high, own.above, own.below, own.choices) == tuple(
        getattr(TRAINING[name], bound) for bound in ("low", "high", "above", "below", "choices")
    )
    assert TRAINING[name].help in own.help
    beside = {"teacher_schedule": "cosine"} if name == "warmup_epochs" else {}
    made = Experiment(**{f"teacher_{name}": tried.get(name, TRAINING[name].default)}, **beside)
    assert getattr(made.teacher_training, name) == tried.get(name, TRAINING[name].default)
    # students are trained as before
    assert made.defaults == Experiment().defaults
    assert made != Experiment()


def test_the_teachers_training_is_its_own_then_the_pairs_then_the_students() -> None:
    tiny = Experiment()
    assert tiny.teacher_training.learning_rate == 0.05 and tiny.defaults["learning_rate"] == 0.2
    assert tiny.teacher_training.batch_size == tiny.defaults["batch_size"] == 50
    assert Experiment(teacher_learning_rate=0.01).teacher_training.learning_rate == 0.01
    assert Experiment().teacher_training.ce == 1
    assert isinstance(tiny.teacher_training, Training)
    assert not set(tiny.defaults) & set(TEACHER_SETTINGS)


# --- files


def test_a_recipes_file_gives_recipe_and_experiment(tmp_path: Path) -> None:
    made = Experiment(train_size=100, precision="bf16", teacher_milestones=[0.5], teacher_schedule="step")
    recipe = made.effective(parse("kd(temperature=2)@epochs=3>rkd weighting=tcp milestones=[0.5,0.7] schedule=step"))
    path = tmp_path / "best.yaml"
    path.write_text(yaml.safe_dump({"recipe": str(recipe)} | made.to_dict() | {"seed": 7}))
    config, again, read = train._read([f"recipe={path}"])
    assert (config.seed, again, again.effective(read)) == (7, made, recipe)
    assert again.effective(read).id == recipe.id
    config, again, read = train._read([f"recipe={path}", "seed=8", "train_size=200", "learning_rate=0.1"])
    assert (config.seed, again.train_size) == (8, 200)
    assert all(stage.training(again.defaults).learning_rate == 0.1 for stage in read.stages)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must hold flat"),
        ("- kd", "must hold flat"),
        ("recipe: {kd: 2}", "must hold flat"),
        ("recipe: [kd]", "must have a recipe: line"),
        ("pair: tiny", "must have a recipe: line"),
        ("recipe: &a kd\nseed: *a", "YAML aliases"),
        ("recipe: kd\n" + "x" * 70_000, "must be shorter"),
        ("recipe: 'kd", "must be plain YAML"),
    ],
)
def test_files_that_are_no_recipes_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "best.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        read_recipe_file(path)
    with pytest.raises(ValueError, match="can't be read: No such file"):
        read_recipe_file(tmp_path / "none.yaml")


def test_paths_are_made_absolute_for_processes_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = Experiment(data="folder", data_dir="images", teacher="t.safetensors", image_size=8).with_absolute_paths()
    assert (made.data_dir, made.teacher) == (str(tmp_path / "images"), str(tmp_path / "t.safetensors"))
    assert Experiment().with_absolute_paths() == Experiment()
    assert Experiment(data="cifar100").with_absolute_paths().data_dir == str(tmp_path / "runs" / "data")
