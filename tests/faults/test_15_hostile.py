"""Hostile files: refused or escaped, and nothing in them is executed; and what a run leaves is its owner's alone."""

from __future__ import annotations

import json
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models

import spaces
from reports import build
from reports.load import NAME
from search import config, run, several
from smskd import components, datasets, methods, pairs, pipeline, train
from smskd.experiment import Experiment
from smskd.store import MANIFEST, Store
from tests.faults.conftest import Score
from tests.reports.conftest import make_run as make_run

ROW = 15
SMALL = Experiment(train_size=100, teacher_epochs=1)


class _Runs:
    """Unpickled, it runs a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def refused(
    score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """refused(main, words, says): exit code 2, a message in one line, nothing executed, nothing told of a secret."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "hush-hush")

    def check(main: Callable[[list[str]], int], words: list[str], says: str) -> None:
        with score.fault():
            assert main(words) == 2
            out, err = capsys.readouterr()
            assert says in err and err.startswith("error: ") and err.count("\n") == 1, err
            assert "hush-hush" not in out + err
            assert not (tmp_path / "ran").exists() and not list(tmp_path.glob("out/*"))

    return check


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"state_dict": {"conv.weight": evil}}])
@pytest.mark.parametrize("name", ["t.pt", "t.safetensors"])
def test_pickle_in_a_file_of_weights(
    refused: Callable[..., None], tmp_path: Path, name: str, wrap: Callable[[Any], Any]
) -> None:
    torch.save(wrap(_Runs(tmp_path / "ran")), tmp_path / name)
    words = [f"teacher={tmp_path / name}", "out=out/s", "store=store"]
    refused(train.main, words, "neither safetensors nor a weights-only checkpoint")
    (tmp_path / name).write_bytes(pickle.dumps(wrap(_Runs(tmp_path / "ran"))))
    refused(train.main, words, "neither safetensors nor a weights-only checkpoint")


def test_pickle_in_data(refused: Callable[..., None], tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / name).write_bytes(pickle.dumps({"data": _Runs(tmp_path / "ran"), "fine_labels": [0]}))
    words = ["data=cifar100", f"data_dir={tmp_path}", "pair=resnet56_resnet20", "out=out/s", "store=store"]
    refused(train.main, words, "which no CIFAR file has")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("recipe: ${oc.env:SECRET}", "recipe -->$<--{oc.env:SECRET}: a method is expected"),
        ('recipe: "\\x24{oc.env:SECRET}"', "recipe -->$<--{oc.env:SECRET}: a method is expected"),
        ("recipe: kd\nteacher: ${oc.env:SECRET}", "${oc.env:SECRET}"),
        ("recipe: !!python/object/apply:os.system [touch ran]", "must be plain YAML"),
        ("a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]", "must have no YAML aliases"),
        ("recipe: " + "[" * 5000 + "]" * 5000, "must be nested at most 8 deep"),
        ("recipe: kd\n#" + "x" * 70_000, "must be shorter than"),
        ("recipe: " + "9" * 5000, "best.yaml has a date or a number that is none"),
    ],
    ids=["variable", "escaped", "another key", "code", "bomb", "deep", "large", "digits"],
)
def test_yaml(refused: Callable[..., None], tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "best.yaml").write_text(text)
    refused(train.main, ["recipe=best.yaml", "out=out/s", "store=store"], says)


def test_words(refused: Callable[..., None]) -> None:
    """They are taken as they stand."""
    asks = "${oc.env:SECRET}"
    refused(run.main, [f"teacher={asks}", "out=run", "store=store"], f"teacher={asks}")
    refused(run.main, [f"methods=[kd,{asks}]"], "recipe -->$<--{oc.env:SECRET}: a method is expected")
    refused(run.main, [f"learning_rate={asks}"], f"learning_rate must be a number, but got '{asks}'")
    refused(run.main, ["kd.temperature=choice(1,__import__('os').system('touch ran'))"], "must be a number")
    for text in (asks, "???", "!!python/object/apply:os.system [touch ran]"):
        assert config.parse([f"out={text}"]).out == text


@pytest.mark.parametrize("name", ["../tiny", "..", "/etc", "tiny/..", "<script>", "tiny\x00"])
def test_names_that_could_leave_a_folder(refused: Callable[..., None], name: str) -> None:
    for word in (f"pair={name}", f"pair=[tiny,{name}]", f"space={name}", f"data={name}", f"methods=[{name}]"):
        refused(run.main, [word, "out=out", "store=store"], "")


def test_names_of_the_tables_are_names_of_folders() -> None:
    models = torchvision.models.list_models(module=torchvision.models)
    known = [*pairs.available(), *spaces.available(), *datasets.NAMES, *methods.available(), *models]
    assert len(known) > 100
    longest = sorted(models, key=len)[-2:]
    made = pairs.of_networks(*map(components.network, longest)).name
    assert [name for name in (*known, made) if not NAME.fullmatch(name)] == []


def test_keys_that_could_leave_the_store(score: Score, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "store" / "entries" / "junk" / "folder").mkdir(parents=True)
    for key in ("..", "../../x", "/etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n", ""):
        with score.fault():
            for ask in (store.verified, store.get, store.path, store.set_aside):
                with pytest.raises(ValueError, match="64 hexadecimal digits"):
                    ask(key)
    assert store.entries() == [] and store.keys() == []


def test_names_in_a_report(score: Score, make_run: Callable[..., Path]) -> None:
    evil = "</script><script>alert(1)</script>\\input{/etc/passwd}"
    kd = {"methods": "kd", "weighting": "fixed", "lambda_base": 0.5, "anchor": "reference", "teachers": 1}
    others = {"methods": evil}, {"methods": "kd>rkd", "anchor": evil}, {"methods": "kd>rkd", "optimizer": evil}
    folder = make_run(
        recipes=[kd | {"optimizer": "sgd"}, *(kd | {"optimizer": "sgd"} | one for one in others)], seeds=2
    )
    info = json.loads((folder / "run.json").read_text())
    info["teacher"]["name"] = info["student"]["name"] = info["commit"] = info["config"]["space"] = evil
    (folder / "run.json").write_text(json.dumps(info))
    (folder / "best.yaml").write_text(evil)
    with score.fault():
        page = build.build(folder).read_text()
        assert "alert(1)" in page and "<script>alert" not in page
        for name in ("tables.md", "MODEL_CARD.md"):
            assert "\n<script>" not in (folder / name).read_text()
        tex = (folder / "tables.tex").read_text()
        assert "alert(1)" in tex and "\\input" not in tex and "<script>" not in tex


def test_a_report_of_several_pairs_stays_in_its_folder(
    refused: Callable[..., None], make_run: Callable[..., Path]
) -> None:
    folder = make_run(seeds=2)
    info = json.loads((folder / "run.json").read_text())
    info |= {"pairs": {}, "experiment": info["experiment"] | {"pair": ["tiny", "../../other"]}}
    (folder / "run.json").write_text(json.dumps(info))
    refused(build.main, [f"run={folder}"], "regex '^[a-z0-9][a-z0-9._-]{0,63}\\\\Z' - at `$.experiment.pair[1]`")


@pytest.mark.parametrize("name", ["run.json", "stages.csv", "results.parquet", "student.json"])
def test_a_report_of_odd_files(refused: Callable[..., None], make_run: Callable[..., Path], name: str) -> None:
    folder = make_run(seeds=2, confirm=0)
    (folder / "student.safetensors").touch()
    for content in (
        b"[" * 100_000,
        pickle.dumps(_Runs(folder / "ran")),
        b"\x00",
        b'{"schema": 1' + b"0" * 10_000 + b"}",
    ):
        (folder / name).write_bytes(content)
        refused(build.main, [f"run={folder}"], str(folder / name))


def test_manifests_are_set_aside_and_trained_anew(score: Score, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    wanted = pipeline.run("kd epochs=1", SMALL, store=tmp_path / "store", device="cpu")
    (stage,) = wanted.stages
    place = Store(tmp_path / "store").path(stage.key)
    for number, content in enumerate((b"[" * 100_000, b"[]", b'{"check": {}}', b"null", b"\x00", b"9" * 10_000), 1):
        with score.fault():
            (place / MANIFEST).write_bytes(content)
            found = pipeline.run("kd epochs=1", SMALL, store=tmp_path / "store", device="cpu")
            assert found.stages[0].trained and found.stages[0].digest == stage.digest
            assert len(list((tmp_path / "store" / "aside").iterdir())) == number


def test_folders_are_their_owner_s_alone(score: Score, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with score.fault(), several.held([config.parse([f"out={tmp_path / 'run'}", f"store={tmp_path / 'store'}"])]):
            for name in ("run", "store"):
                assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700
    finally:
        os.umask(before)
