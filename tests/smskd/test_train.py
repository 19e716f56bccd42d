"""The command line of one training: what it takes, what it refuses, and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
import yaml

from smskd import experiment, methods, recipe, train, training
from smskd.experiment import Experiment
from smskd.notation import parse
from smskd.recipe import of_method
from tests.smskd import small

ROOT = Path(__file__).parents[2]
QUICK = ["train_size=100", "teacher_epochs=1", "epochs=1"]


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said on standard error: one line; the code is 2, and it took no time."""
    started = time.monotonic()
    assert train.main(words) == train.BAD_INPUT
    assert time.monotonic() - started < 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["kd"], "'kd' must be key=value"),
        (["recipe=kd", "recipe=rkd"], "recipe= is given twice"),
        (["recipe="], "recipe= needs a value"),
        (["recipe=kd>fitnet"], "recipe kd>-->fitnet<--: unknown method 'fitnet'"),
        (["recipe=kd(temperature=2"], "recipe kd-->(<--temperature=2: this bracket isn't closed"),
        (["recipe=kd", "temperature=2"], "temperature is a setting of kd, "),
        (["recipe=rkd", "kd.temperature=2"], "kd.temperature is a setting of kd, which isn't in the recipe rkd"),
        (["recipe=kd", "kd.temprature=2"], "unknown setting 'temprature' of recipes; kd has weight, temperature."),
        (["recipe=kd", "learning_rte=2"], "unknown key 'learning_rte': --help lists the keys. Did you mean 'learning_"),
        (["recipe=kd", "trian_size=2"], "Did you mean 'train_size'?"),
        (["recipe=kd", "learning_rate=0"], "learning_rate > 0 must hold, but got learning_rate=0"),
        (["recipe=kd", "kd.weight=-1"], "kd.weight >= 0 must hold, but got kd.weight=-1"),
        (["recipe=kd", "stage_2.epochs=3"], "stage_2.epochs= is of stage 2, but the recipe kd has 1"),
        (["recipe=kd", "stage_1.epochs=0"], "must hold, but got stage_1.epochs=0"),
        (["recipe=kd@epochs=3>rkd", "epochs_total=9"], "leave one out"),
        (["recipe=kd>rkd", "epochs_total=9", "split=[1]"], "split= needs a share for each of 2 stages"),
        (["recipe=kd>rkd", "split=[1,2]"], "split= divides epochs_total=, which is missing"),
        (["recipe=kd", "warmup_epochs=3"], "stage 1 of kd warmup_epochs=3: schedule=one_cycle climbs by itself"),
        (["recipe=kd", "teacher_warmup_epochs=3"], "the teacher's training: schedule=one_cycle climbs by itself"),
        (["recipe=kd", "milestones=0.5,x"], "milestones must be a list such as"),
        (["recipe=kd", "pair=tony"], "unknown pair 'tony'"),
        (["recipe=kd", "seed=-1"], "seed >= 0 must hold"),
        (["recipe=none.yaml"], "none.yaml can't be read: No such file"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(words, capsys)


def test_a_wrong_word_is_told_before_torch_is_there() -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "smskd.train", "recipe=kd", "kd.temperature=0"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert time.monotonic() - started < 10  # 0.3 s on an idle machine
    assert done.returncode == 2 and "kd.temperature > 0 must hold" in done.stderr
    assert " torch\n" not in done.stderr and " numpy\n" not in done.stderr


def test_help_lists_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    keys = [line.split("=")[0].strip() for line in lines if line.startswith("  ")]
    own = [key for name in methods.available() for key in of_method(name)]
    wanted = [*experiment.SETTINGS, *recipe.SETTINGS, *recipe.SHORTHANDS, *training.SETTINGS, *own]
    assert set(wanted) <= set(keys) and len(keys) == len(set(keys))
    assert any(line.startswith("  kd.temperature=4 ") and line.endswith("(> 0)") for line in lines)
    assert all(len(line.split(None, 1)) == 2 for line in lines if line.startswith("  "))


def test_a_recipe_is_trained_and_its_file_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "recipe=kd(temperature=2)>rkd@learning_rate=0.1", *QUICK, "stage_2.epochs=2", "weighting=tcp", "seed=3",
        "kd.weight=0.5", "milestones=[0.5]", f"store={tmp_path / 'store'}", f"out={tmp_path / 'a.safetensors'}",
    ]  # fmt: skip
    assert train.main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "stage_1.milestones=[0.5] has no effect in this recipe, and is left out"
    assert said[1] == "stage_2.milestones=[0.5] has no effect in this recipe, and is left out"
    written = "kd(weight=0.5,temperature=2)@epochs=1>rkd@epochs=2,learning_rate=0.1 weighting=tcp"
    assert said[-1].startswith(f"{written}, seed 3: ")
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        told = file.metadata()
    made = Experiment(train_size=100, teacher_epochs=1)
    assert told == {"recipe": written, "experiment": json.dumps(made.to_dict()), "seed": "3"}
    # from what it says it is trained again, elsewhere, bit for bit
    (tmp_path / "again.yaml").write_text(yaml.safe_dump({"recipe": written} | made.to_dict() | {"seed": 3}))
    again = [f"recipe={tmp_path / 'again.yaml'}", f"store={tmp_path / 'other'}", f"out={tmp_path / 'b.safetensors'}"]
    assert train.main(again) == 0
    first, second = (safetensors.torch.load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)
    by_hand = small.run(str(parse(written)), tmp_path / "store", seed=3, teacher_epochs=1)
    assert all(torch.equal(first[name], value) for name, value in by_hand.weights.items())


def test_words_are_over_what_a_file_and_a_recipe_say(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text("recipe: kd(temperature=2)@epochs=3>rkd learning_rate=0.1\ntrain_size: 100\nseed: 4\n")
    config, made, found = train._read([f"recipe={path}", "epochs=5", "stage_2.epochs=6", "kd.temperature=3", "seed=5"])
    assert (config.seed, made.train_size) == (5, 100)
    assert str(found) == "kd(temperature=3)@epochs=5>rkd@epochs=6 learning_rate=0.1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("recipe: kd\nlearning_rate: 0.1\n", "has learning_rate: beside recipe:"),
        ("recipe: kd\ntrain_sise: 100\n", "Did you mean 'train_size'?"),
        ("recipe: kd(temperature=0)\n", "recipe kd(-->temperature=0<--)"),
        ("recipe: kd\ntrain_size: [1, 2]\n", "train_size must be a whole number"),
        ("seed: 3\n", "must have a recipe: line"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "best.yaml"
    path.write_text(text)
    assert says in refused([f"recipe={path}"], capsys)


def test_a_folder_is_no_file_for_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"such as {tmp_path}/student.safetensors" in refused(["recipe=kd", f"out={tmp_path}"], capsys)


def test_a_mistake_in_a_methods_code_keeps_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def typo(*_: object) -> None:
        raise AttributeError("'Output' object has no attribute 'logts'")

    monkeypatch.setattr("smskd.methods.kd.kd_loss", typo)
    words = ["recipe=kd", *QUICK, f"store={tmp_path / 'store'}", f"out={tmp_path / 'a.safetensors'}"]
    assert train.main(words) == train.FAILED
    said = capsys.readouterr().err
    assert "Traceback" in said and "smskd/methods/kd.py" in said
    assert said.splitlines()[-1].startswith("error: AttributeError: 'Output' object has no attribute 'logts'")
    assert not (tmp_path / "a.safetensors").exists()
