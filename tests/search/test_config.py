from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from search import config

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
        (["space=weighting", "weighting=tcp"], "no effect"),
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
    assert config.parse([]).folder == config.parse(["trials=3", "cpus=2", "confirm=0"]).folder
    assert config.parse([]).folder != config.parse(["epochs=1"]).folder


def test_urls_are_not_taken_for_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config_ = config.parse(["store=s3://bucket/store", "out=s3://bucket/run", "storage=sqlite:///x.db"])
    assert config_.pipeline["store"] == "s3://bucket/store"
    assert config_.folder.parent == tmp_path / "runs" and config_.mirrored == "s3://bucket/run"
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(32))
    secret.chmod(0o600)
    signed = config.parse(["store=x", "store_key=secret"])
    assert (signed.pipeline["store"], signed.pipeline["store_key"]) == (str(tmp_path / "x"), str(secret))
    assert signed.identity == config.parse([]).identity and signed.mirrored is None


def test_workers_look_for_a_set_where_the_driver_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("smskd.datasets.DEBIAN_FASHION_MNIST", tmp_path / "none")
    for data in ("cifar10", "cifar100", "fashion_mnist"):
        assert config.parse([f"data={data}"]).pipeline["data_dir"] == str(tmp_path / "runs" / "data")
    assert config.parse(["data=cifar100", "data_dir=x"]).pipeline["data_dir"] == str(tmp_path / "x")
    assert config.parse(["data=digits"]).pipeline["data_dir"] is None
    monkeypatch.setattr("smskd.datasets.DEBIAN_FASHION_MNIST", tmp_path)
    assert config.parse(["data=fashion_mnist"]).pipeline["data_dir"] is None


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


def test_help_lists_every_space() -> None:
    text = config.help_text()
    for file in (ROOT / "spaces").glob("[a-z]*.py"):
        assert file.stem in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["epochs=3"], "compares at equal totals: give epochs_total="),
        (["anchor=none"], "anchor= has no effect in space=systems"),
        (["weighting=tcp"], "weighting= has no effect in space=systems"),
        (["max_stages=2"], "max_stages= has no effect in space=systems"),
        (["methods=[kd]"], "at least 2 methods"),
    ],
)
def test_what_does_not_fit_a_comparison_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.parse(["space=systems", *words])


def test_a_comparison_has_a_total_of_three_stages() -> None:
    assert config.parse(["space=systems"]).epochs_total == 36
    given = config.parse(["space=systems", "epochs_total=150", "lambda_base=1"])
    assert [given.stage_epochs(n) for n in (1, 4)] == [[150], [38, 38, 37, 37]]
    assert config.parse(["epochs_total=10"]).stage_epochs(3) == [4, 3, 3]
    with pytest.raises(ValueError, match="leave one out"):
        config.parse(["epochs_total=10", "epochs=2"])
