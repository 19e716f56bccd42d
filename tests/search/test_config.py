from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import spaces
from search import config, draws
from smskd import experiment, methods, recipe
from smskd.training import SETTINGS as TRAINING

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["space=stage_ordr"], "stage_order"),
        (["pair=tinny"], "'tiny'"),
        (["data=mnist"], "fashion_mnist"),
        (["methods=[kd,rkdd]"], "'rkd'"),
        (["stage_order"], "key=value"),
        (["seedz=3"], "unknown key 'seedz'"),
        (["seeds=abc"], "whole number"),
        (["seeds=0"], "seeds=0"),
        (["lambda_base=-1"], "lambda_base >= 0"),
        (["lambda_base=nan"], "lambda_base >= 0"),
        (["methods=[kd"], "list"),
        (["seeds=1", "seeds=2"], "twice"),
        (["cpus=0"], "cpus > 0"),
        (["data_dir=x"], "digits"),
        (["store=s3://me:secret@bucket/x"], "s3://bucket/x must be given without user:secret@"),
        (["store=s3:///x"], "must name a bucket"),
        (["store_key=/nowhere"], "store_key=/nowhere can't be read"),
        (["out=s3://bucket/run"], "give storage= too"),
        (["out=s3://me:secret@bucket/run", "storage=sqlite:///x.db"], "without user:secret@"),
    ],
)
def test_bad_input_is_refused_with_the_mend(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        config.parse(words)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_same_settings_same_folder_and_free_settings_do_not_move_it() -> None:
    assert config.parse([]).folder == config.parse(["trials=3", "cpus=2", "threads=1", "confirm=0"]).folder
    # as many cores, as many threads, on which the bits of a result depend
    assert config.parse(["cpus=2"]).folder == config.parse(["threads=2"]).folder != config.parse([]).folder
    assert config.parse(["cpus=0.5"]).folder == config.parse([]).folder
    assert config.parse([]).folder != config.parse(["epochs=1"]).folder


def test_urls_are_not_taken_for_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config_ = config.parse(["store=s3://bucket/store", "out=s3://bucket/run", "storage=sqlite:///x.db"])
    assert config_.worker("search")["store"] == "s3://bucket/store"
    assert config_.folder.parent == tmp_path / "runs" and config_.mirrored == "s3://bucket/run"
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(32))
    secret.chmod(0o600)
    signed = config.parse(["store=x", "store_key=secret"])
    told = signed.worker("search")
    assert (told["store"], told["store_key"]) == (str(tmp_path / "x"), str(secret))
    assert signed.identity == config.parse([]).identity and signed.mirrored is None


def test_workers_look_for_a_set_where_the_driver_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folder(*words: str) -> str | None:
        found: str | None = config.parse(words).worker("search")["experiment"].get("data_dir")
        return found

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("smskd.datasets.DEBIAN_FASHION_MNIST", tmp_path / "none")
    for data in ("cifar10", "cifar100", "fashion_mnist"):
        assert folder(f"data={data}") == str(tmp_path / "runs" / "data")
    assert folder("data=cifar100", "data_dir=x") == str(tmp_path / "x")
    assert folder("data=digits") is None
    monkeypatch.setattr("smskd.datasets.DEBIAN_FASHION_MNIST", tmp_path)
    assert folder("data=fashion_mnist") is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pair=[tiny,tinny]"], "'tiny'"),
        (["pair=[tiny,resnet56_resnet20,tiny]"], "names one twice"),
        (["pair=[]"], "at least one"),
        (["pair=[tiny"], "list"),
        (["pair=[tiny,resnet56_resnet20]", "teacher=weights.pt"], "teacher= can't be given with several pairs"),
        (["pair=[tiny,resnet56_resnet20]", "storage=sqlite:///x.db"], "storage= can't be given with several pairs"),
        (["pair=[tiny,resnet56_resnet20]", "teacher_model=resnet18", "student_model=resnet18"], "leave pair="),
        (["pair=[tiny,resnet56_resnet20]", "pair=tiny"], "twice"),
        (["pair=[tiny,resnet56_resnet20]", "out=s3://b/r", "storage=sqlite:///x.db"], "the run of one pair"),
    ],
)
def test_bad_pairs_are_refused_with_the_mend(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        config.parse_pairs(words)
    assert said in str(error.value)


def test_one_pair_in_brackets_is_the_pair() -> None:
    assert config.parse_pairs(["pair=[tiny]", "epochs=1"]) == config.parse_pairs(["pair=tiny", "epochs=1"])
    assert config.parse_pairs(["epochs=1"]) == [config.parse(["epochs=1"])]


def test_several_pairs_are_a_config_each_that_differ_in_nothing_else() -> None:
    words = ["seeds=4", "space=systems"]
    several = config.parse_pairs(["pair=[tiny,resnet56_resnet20]", *words])
    assert [one.pair for one in several] == ["tiny", "resnet56_resnet20"]
    for one in several:
        assert one.identity == config.parse([f"pair={one.pair}", *words]).identity
        assert one.folder.name == one.pair
    (top,) = {one.folder.parent for one in several}
    assert top.name.startswith("systems-2pairs-digits-")
    assert {one.folder.parent for one in config.parse_pairs(["pair=[resnet56_resnet20,tiny]", *words])} == {top}
    assert {one.folder.parent for one in config.parse_pairs(["pair=[tiny,resnet56_resnet20]"])} != {top}


def test_fresh_seeds_are_fresh_in_every_study() -> None:
    seen: set[int] = set()
    for seed in range(3):
        one = config.parse([f"seed={seed}"])
        mine = {*one.search_seeds, *one.confirm_seeds}
        assert len(mine) == 8
        assert not mine & seen
        seen |= mine


def test_bad_input_exits_2_at_once_and_without_a_traceback() -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "search.run", "pair=tinny"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "tiny" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert time.monotonic() - started < 15  # about two seconds on an idle machine


def test_help_lists_every_space_and_every_setting() -> None:
    text = config.help_text()
    for name in spaces.available():
        assert name in text
    of_methods = [key for name in methods.available() for key in recipe.of_method(name)]
    declared = [*recipe.SETTINGS, *recipe.SHORTHANDS, *TRAINING, *experiment.SETTINGS, *config.SETTINGS_OF_SEARCH]
    for key in [*declared, *of_methods]:
        assert re.search(rf"^  {re.escape(key)}=", text, flags=re.MULTILINE), key


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["space=systems", "epochs=3"], "compares at equal totals: give epochs_total="),
        (["space=systems", "epochs=choice(3,4)"], "compares at equal totals: give epochs_total="),
        (["space=systems", "anchor=none"], "anchor= is chosen by the space itself"),
        (["space=systems", "weighting=tcp"], "weighting= is chosen by the space itself"),
        (["space=systems", "max_stages=2"], "max_stages= has no effect in space=systems"),
        (["space=systems", "methods=[kd]"], "at least 2 methods"),
        (["space=weighting", "weighting=tcp"], "weighting= is chosen by the space itself"),
        (["space=weighting", "lambda_base=choice(0,1)"], "lambda_base= is chosen by the space itself"),
    ],
)
def test_what_a_space_chooses_or_does_not_use_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        draws.look(config.parse(words).search_space())


def test_a_comparison_has_a_total_of_three_stages() -> None:
    assert config.parse(["space=systems"]).settings["epochs_total"] == 36
    given = config.parse(["space=systems", "epochs_total=150", "lambda_base=1"])
    epochs = {tuple(given.epochs(recipe)) for recipe in draws.look(given.search_space()).recipes}
    assert epochs == {(150,), (75, 75), (50, 50, 50), (38, 38, 37, 37)}
    ten = config.parse(["epochs_total=10", "max_stages=3"])
    assert next(ten.epochs(one) for one in draws.look(ten.search_space()).recipes if len(one.stages) == 3) == [4, 3, 3]
    with pytest.raises(ValueError, match="leave one out"):
        config.parse(["epochs_total=10", "epochs=2"])


# --- settings of recipes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["learning_rat=0.1"], "Did you mean 'learning_rate'"),
        (["temperature=2"], "temperature is a setting of kd"),
        (["temperature=2"], "kd(temperature=4)"),
        (["kd.temprature=2"], "Did you mean 'temperature'"),
        (["rkd.temperature=2"], "temperature is a setting of kd"),
        (["at.weight=2"], "at.weight= has no effect: at is in no stage of methods=[kd,fitnets,rkd]"),
        (["at.weight=choice(1,2)"], "at.weight= has no effect"),
        (["learning_rate=0"], "learning_rate > 0 must hold, but got learning_rate=0"),
        (["learning_rate=fast"], "learning_rate must be a number"),
        (["stage_2.epochs=0"], "1 <= stage_2.epochs"),
        (["stage_0.epochs=3"], "stage_0.epochs"),
        (["schedule=cosin"], "Did you mean 'cosine'"),
        (["milestones=[0.5,1]"], "0 < milestones < 1"),
        (["epochs=2", "epochs_total=6"], "leave one out of epochs=2 and epochs_total=6"),
        (["stage_2.epochs=2", "epochs_total=6"], "stage_2.epochs= is for each stage"),
        (["epochs=choice(1,2)", "epochs_total=6"], "leave one out of epochs=choice(1,2)"),
        (["split=[1,2,3]"], "split= divides epochs_total="),
        (["stop=dominated", "epochs_total=6"], "leave stop= out"),
        (["teacher_learning_rate=-1"], "teacher_learning_rate > 0 must hold"),
        (["teacher=x.safetensors", "teacher_epochs=3"], "teacher_epochs= has no use"),
        (["methods=[kd(temperature=0)]"], "kd.temperature > 0 must hold"),
        (["methods=[kd(temperature=2]"], "this bracket isn't closed"),
    ],
)
def test_settings_that_are_wrong_are_refused_with_the_mend(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        config.parse(words)
    assert "\n" not in str(error.value)


def test_settings_are_part_of_the_identity_and_the_folder() -> None:
    plain = config.parse([])
    for words in (["learning_rate=0.05"], ["kd.temperature=2"], ["kd.temperature=choice(2,4)"], ["teacher_epochs=3"]):
        given = config.parse(words)
        assert given.identity != plain.identity and given.folder != plain.folder
        key, _, value = words[0].partition("=")
        assert str(given.identity[key]) == value
    assert config.parse(["learning_rate=0.05"]).told == {"learning_rate": "0.05"}
    assert config.parse(["kd.temperature=choice(2,4)"]).told == {"kd.temperature": "choice(2,4)"}
