"""An upgrade of code or library: old stages don't match, and stay; old run folders are read, or refused clearly."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from reports import build
from search import run
from smskd import job, pairs, pipeline, train
from smskd.experiment import Experiment
from tests import runs
from tests.faults.conftest import Score

ROW = 13


def upgraded_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", torch.__version__ + ".upgraded")


def upgraded_code(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = job.inspect.getsource
    monkeypatch.setattr(job.inspect, "getsource", lambda source: genuine(source) + "\nUPGRADED = True\n")
    monkeypatch.setattr(job, "_of_package", job._of_package.__wrapped__)


def trained(store: Path, recipe: str = "kd>rkd") -> tuple[list[bool], list[str]]:
    """Which stages of a recipe were trained, and the digests of all."""
    small = Experiment(train_size=60, teacher_epochs=1)
    result = pipeline.run(f"{recipe} epochs=1", small, store=store, device="cpu")
    return [stage.trained for stage in result.stages], [stage.digest for stage in result.stages]


@pytest.mark.parametrize("upgrade", [upgraded_torch, upgraded_code])
def test_stages_of_before_are_not_taken_and_stay(
    score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upgrade: Callable[[pytest.MonkeyPatch], None]
) -> None:
    first = trained(tmp_path)
    assert first[0] == [True, True]
    before = runs.finished(tmp_path)
    with score.fault():
        upgrade(monkeypatch)
        assert trained(tmp_path) == first, "anew, and the same bits, since nothing that counts has changed"
        assert len(runs.finished(tmp_path)) == 2 * len(before)
        monkeypatch.undo()
        score.kept(before, tmp_path)
        assert trained(tmp_path) == ([False, False], first[1]), "back to the old version: its stages are there"


def test_a_default_that_was_changed(score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that doesn't say it means another training now; one that says the old value is found."""
    first = trained(tmp_path)
    before = runs.finished(tmp_path)
    with score.fault():
        defaults = {**pairs.get("tiny").defaults, "rkd.weight": 3.0}
        monkeypatch.setattr("smskd.pairs.tiny.PAIR", replace(pairs.get("tiny"), defaults=defaults))
        assert trained(tmp_path, "kd>rkd(weight=1)") == ([False, False], first[1])
        flags, digests = trained(tmp_path)
        assert flags == [False, True] and digests[1] != first[1][1]
        assert trained(tmp_path, "kd>rkd(weight=3)") == ([False, False], digests)
        score.kept(before, tmp_path)


def test_a_recipe_s_file_of_before_is_refused(score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "best.yaml"
    places = [f"out={tmp_path / 'student.safetensors'}", f"store={tmp_path / 'store'}"]
    for line in ("lambda_base: 0.5", "epochs: 12", "weighting: fixed"):  # as settings of recipes stood there
        with score.fault():
            file.write_text(f"recipe: kd>rkd\npair: tiny\ndata: digits\n{line}\nseed: 0\n")
            assert train.main([f"recipe={file}", *places]) == train.BAD_INPUT
            error = capsys.readouterr().err
            key = line.partition(":")[0]
            assert f"{file} has {key}: " in error and f"kd>rkd {key}=" in error and len(error.splitlines()) == 1, error


@pytest.mark.slow
def test_a_search_with_upgraded_code_on_the_old_store(
    score: Score, undisturbed: tuple[Path, Path], checkout: Path, tmp_path: Path
) -> None:
    out, store, mark = tmp_path / "run", tmp_path / "store", tmp_path.name
    for method in ("kd", "rkd"):
        with (checkout / "smskd" / "methods" / f"{method}.py").open("a") as file:
            file.write("\nUPGRADED = True\n")
    shutil.copytree(undisturbed[1], store)
    before = runs.finished(store)
    with score.fault():
        started = time.monotonic()
        done = subprocess.run(
            runs.command(out, store), cwd=checkout, env=runs.environment(mark), capture_output=True, text=True,
            timeout=240, check=False,
        )  # fmt: skip
        score.went_on(time.monotonic() - started)
        assert done.returncode == 0, done.stdout + done.stderr
        score.kept(before, store)
        score.same(out, runs.table(undisturbed[0]))
        assert json.loads((out / "run.json").read_text())["stage_runs"] == 8, "none is from the old store"
        score.no_orphans(mark)


def _older_table(out: Path) -> None:
    table = pq.read_table(out / "results.parquet")
    pq.write_table(table.replace_schema_metadata({b"smskd_schema": b"3"}), out / "results.parquet")


def _fewer_columns(out: Path) -> None:
    table = pq.read_table(out / "results.parquet")
    pq.write_table(table.drop_columns(["position", "teachers"]), out / "results.parquet")


def _older_info(out: Path) -> None:
    info = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(info | {"schema": 0}))


def _missing_parts(out: Path) -> None:
    info = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({key: info[key] for key in ("schema", "config")}))


def _sql(statement: str) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        database = sqlite3.connect(out / "study.db")
        with database:
            assert database.execute(statement).rowcount > 0
        database.close()

    return change


@pytest.mark.slow
@pytest.mark.parametrize("change", [_older_table, _fewer_columns, _older_info, _missing_parts])
def test_files_of_another_version_are_refused_by_the_report_and_written_anew_by_the_search(
    score: Score,
    undisturbed: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed[0], out)
    with score.fault():
        change(out)
        assert build.main([f"run={out}"]) == 2
        error = capsys.readouterr().err
        assert "run the same search command again" in error and len(error.splitlines()) == 1, error
        assert run.main(runs.command(out, undisturbed[1])[3:]) == run.DONE, capsys.readouterr().err
        score.same(out, runs.table(undisturbed[0]))
        assert build.main([f"run={out}"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_sql("UPDATE study_user_attributes SET value_json = '0' WHERE key = 'schema'"), "study of schema 0"),
        (_sql("DELETE FROM study_user_attributes WHERE key = 'schema'"), "study of schema None"),
        (_sql("UPDATE alembic_version SET version_num = 'v99.0.0'"), "can't be read as a study"),
    ],
)
def test_a_study_of_another_version_is_refused(
    score: Score,
    undisturbed: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
    told: str,
) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed[0], out)
    table = (out / "results.parquet").read_bytes()
    with score.fault():
        change(out)
        study = (out / "study.db").read_bytes()
        assert run.main(runs.command(out, undisturbed[1])[3:]) == run.BAD_INPUT
        error = capsys.readouterr().err
        assert told in error and "use another out=" in error and len(error.splitlines()) == 1, error
        assert (out / "study.db").read_bytes() == study and (out / "results.parquet").read_bytes() == table
