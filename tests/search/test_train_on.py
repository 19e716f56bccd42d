"""train_on=all: the confirmation and its teacher train on validation images, too, and nothing is told of these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from reports import provenance, results
from search import config, outputs, trainable
from smskd import bench, job, reproduce, train
from smskd.experiment import Experiment
from smskd.notation import parse
from smskd.numerics import FLOAT32
from smskd.result import Result, StageResult
from smskd.store import Store, address
from tests import runs


def test_it_is_of_the_confirmation_alone() -> None:
    made, plain = config.parse(["train_on=all", "confirm=2"]), config.parse(["confirm=2"])
    assert (made.train_on, made.experiment.train_on) == ("all", "train")
    assert made.experiment_of("search") == plain.experiment == plain.experiment_of("confirm")
    assert made.experiment_of("confirm") == Experiment(train_on="all")
    assert made.worker("search") == plain.worker("search") == plain.worker("confirm")
    assert made.worker("confirm")["experiment"] == {"pair": "tiny", "data": "digits", "train_on": "all"}
    assert made.identity == plain.identity | {"train_on": "all"}, "one folder doesn't hold confirmations of two kinds"
    assert config.help_text().count("\n  train_on=") == 1


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["confirm=0"], "train_on=all is of the confirmation, so confirm >= 1 must hold, but got confirm=0"),
        (["train_size=100"], "train_on=all trains on all images, so train_size= has no use"),
    ],
)
def test_refusals(words: list[str], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        config.parse(["train_on=all", *words])


def test_a_search_does_not_choose_by_images_it_trains_on() -> None:
    with pytest.raises(ValueError, match="a search chooses by validation images"):
        config.Config(experiment=Experiment(train_on="all"))


def test_it_is_in_the_keys_of_teacher_and_stages() -> None:
    keys = []
    for train_on in ("train", "all"):
        made = Experiment(train_on=train_on)
        data = bench.load_data(made)
        jobs = [job.of_teacher(made, FLOAT32)]
        jobs += [job.of_student(parse("kd"), made, FLOAT32, seed=0, parent=None, teachers=["0" * 64])]
        keys.append({address(one.identity(data)) for one in jobs})
    assert not keys[0] & keys[1]


def _record(seed: int, **more: Any) -> Result:
    stage = StageResult(
        key=f"{seed:064}", digest="0" * 64, val_accuracy=0.75, train_flops=1e6, device_seconds=1.0,
        losses=({"ce": 1.0},), anchor_weights={}, agreement_teacher=0.5, agreement_previous=None, stage_losses=(1.0,),
    )  # fmt: skip
    return Result(recipe="kd", seed=seed, stages=(stage,), params=10, **more)


def test_tables_leave_empty_what_was_measured_on_trained_images(tmp_path: Path) -> None:
    recipe = parse("kd")
    search, confirm = {recipe.id: (recipe, [_record(0)])}, {recipe.id: (recipe, [_record(50000, test_accuracy=0.5)])}
    known = {"student": {"params": 10}, "latency_ms": None}
    for words, seen in (([], False), (["train_on=all"], True)):
        made = config.parse([f"out={tmp_path / 'run'}", *words])
        results.write(outputs.rows(made, known, search, confirm), tmp_path)
        table = results.read(tmp_path).set_index("phase")
        by_stage = pd.DataFrame(outputs.stage_rows(made, search, confirm)).set_index("phase")
        assert table["val_accuracy"]["search"] == by_stage["val_accuracy"]["search"] == 0.75
        assert table["test_accuracy"]["confirm"] == 0.5
        assert pd.isna(table["val_accuracy"]["confirm"]) == seen
        for name in ("val_accuracy", "agreement_teacher", "loss_of_stage_1"):
            assert pd.isna(by_stage[name]["confirm"]) == seen


def test_a_row_without_any_accuracy_is_refused() -> None:
    recipe = parse("kd")
    made = config.parse([])
    known = {"student": {"params": 10}, "latency_ms": None}
    rows = outputs.rows(made, known, {}, {recipe.id: (recipe, [_record(50000)])})
    rows[0]["val_accuracy"] = None
    with pytest.raises(ValueError, match="val_accuracy is of every complete row without test_accuracy"):
        results.write(rows, Path("nowhere"))


@pytest.mark.parametrize("seen", [False, True])
def test_a_trial_tells_nothing_of_images_it_trains_on(seen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[dict[str, Any]] = []
    monkeypatch.setattr(trainable.tune, "report", reported.append)
    told = trainable._Told(2, log=True, seen=seen)
    told.on_stage(1, _record(0).stages[0])
    of_validation = {"error": 0.25, "agreement_teacher": 0.5, "agreement_previous": None}
    assert reported[0].items() >= {"val_accuracy": None if seen else 0.75, "train_flops": 1e6, "stages_done": 1}.items()
    assert all((name in reported[0]) != seen for name in of_validation)


def test_it_is_said() -> None:
    info: dict[str, Any] = {"dataset": {"train": 45_000, "validation": 5_000}}
    said = provenance.trained_on_more(info | {"confirm": {"opened": "2026-01-01", "train_on": "all"}})
    assert "and its teacher, was trained on training and validation images together, 50,000 of them" in said
    for confirm in ({}, {"train_on": "all"}, {"opened": "2026-01-01"}, {"opened": "2026-01-01", "train_on": "train"}):
        assert provenance.trained_on_more(info | {"confirm": confirm}) == ""


def test_one_training_says_what_its_accuracy_is_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["recipe=kd", "epochs=1", "teacher_epochs=1", "train_on=all", f"store={tmp_path / 'store'}"]
    assert train.main([*words, f"out={tmp_path / 'a.safetensors'}"]) == 0
    teacher, stage, last = capsys.readouterr().out.splitlines()
    assert all("% on validation images, which are trained on, too" in line for line in (teacher, stage))
    assert "%" not in last


@pytest.mark.slow
def test_a_whole_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, store = tmp_path / "run", tmp_path / "store"
    words = ["train_size=", "max_stages=2", "seeds=1", "log=[]"]
    first = runs.search(out, store, *words, "confirm=1", "train_on=all")
    assert first.returncode == 0, first.stdout + first.stderr
    told = [line for line in first.stdout.splitlines() if ", seed 50000: " in line]
    assert told
    assert all("validation" not in line and "test " in line for line in told)
    info = json.loads((out / "run.json").read_text())
    assert (info["confirm"]["train_on"], info["dataset"]["train"]) == ("all", 1000)
    table = results.read(out)
    confirmed = table[table["phase"] == "confirm"]
    assert confirmed["val_accuracy"].isna().all() and confirmed["test_accuracy"].notna().all()
    assert table.loc[table["phase"] == "search", "val_accuracy"].notna().all()
    # 1,398 images in place of 1,000, in batches of 50: 27 in place of 20
    flops = table.pivot_table("train_flops", "recipe_id", "phase").dropna()
    assert (flops["confirm"] / flops["search"]).tolist() == pytest.approx([27 / 20] * len(flops))
    entries = Store(store).entries()
    every = [Store(store).verified(entry.key) for entry in entries]
    teachers = [one[0] for one in every if one is not None and one[0]["identity"]["network"].endswith("tiny_teacher")]
    data = {bench.load_data(Experiment(train_on=train_on)).fingerprint for train_on in ("train", "all")}
    assert {one["identity"]["data"] for one in teachers} == data and len(teachers) == 2
    for name in ("report.html", "MODEL_CARD.md"):
        assert "trained on training and validation images together, 1,398 of them" in (out / name).read_text()
    # again: all is there; one more fresh seed meets the same teacher
    before = runs.finished(store)
    again = runs.search(out, store, *words, "confirm=2", "train_on=all")
    assert again.returncode == 0, again.stdout + again.stderr
    assert {key: runs.finished(store)[key] for key in before} == before
    assert len(results.read(out)) == len(table) + len(confirmed)
    assert reproduce.main([f"run={out}", "sample=20"]) == 0
    assert "stages identical" in capsys.readouterr().out
    refused = runs.search(out, store, *words, "confirm=2")
    assert refused.returncode == 2, "the same folder without train_on=all"
