"""What other programs make of a run: optuna-dashboard, TensorBoard, MLflow, W&B, pandas, polars, duckdb, a notebook."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import duckdb
import mlflow
import numpy as np
import pandas as pd
import polars
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from reports import results
from search import config as configs
from search import export, loggers
from search.loggers import Loggers

ROOT = Path(__file__).parents[2]
SMALL = ["methods=[kd,rkd]", "train_size=100", "epochs=2", "seeds=2", "confirm=1", "teacher_epochs=1"]
LOG, NO_LOG = "log=[tensorboard,mlflow]", "log=[]"


def search(out: Path, *words: str) -> None:
    where = {"MLFLOW_TRACKING_URI": f"sqlite:///{out.parent / 'mlflow.db'}", "WANDB_MODE": "offline"}
    given = {word.partition("=")[0] for word in words}
    small = [word for word in SMALL if word.partition("=")[0] not in given]
    command = [sys.executable, "-m", "search.run", *small, f"out={out}", f"store={out.parent / 'store'}", *words]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | where, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "has ended" not in done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("interop") / "run"
    search(out, LOG)
    return out


def table(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "results.parquet")


# --- TensorBoard, MLflow, W&B


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    (events,) = folder.glob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    return {
        tag.removeprefix("ray/tune/"): [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def check_tensorboard(run: Path) -> None:
    rows = table(run)
    folders = {path.relative_to(run / "tensorboard") for path in run.glob("tensorboard/*/*")}
    assert {path.suffix for path in run.glob("tensorboard/**/*") if path.is_file()} <= {f".{os.uname().nodename}"}
    named = rows["methods"].str.replace(">", "-") + "-" + rows["recipe_id"] + "/seed-" + rows["seed"].astype(str)
    assert {str(folder) for folder in folders} == set(named)
    for row in rows.to_dict("records"):
        place = f"{row['methods'].replace('>', '-')}-{row['recipe_id']}/seed-{row['seed']}"
        found = scalars(run / "tensorboard" / place)
        stages, last = row["n_stages"], 2 * row["n_stages"]
        assert [step for step, _ in found["val_accuracy"]] == [2 * k for k in range(1, stages + 1)]
        assert found["stages_done"] == [(2 * k, float(k)) for k in range(1, stages + 1)]
        for tag, column in (("val_accuracy", "val_accuracy"), ("train_flops", "train_flops")):
            assert found[tag][-1][1] == pytest.approx(row[column], rel=1e-6)
        assert found["error"][-1][1] == pytest.approx(1 - row["val_accuracy"], rel=1e-6)
        assert [step for step, _ in found["loss/ce"]] == list(range(1, last + 1))
        assert ("loss/anchor" in found) == (stages == 2)
        assert ("test_accuracy" in found) == (row["phase"] == "confirm")
        if row["phase"] == "confirm":
            assert found["test_accuracy"] == [(last, pytest.approx(row["test_accuracy"], rel=1e-6))]


def test_tensorboard_has_the_scalars_of_each_training(run: Path) -> None:
    check_tensorboard(run)


def test_tensorboard_has_the_recipe_as_hyperparameters(run: Path) -> None:
    from tensorboard.plugins.hparams import metadata

    folder = next(run.glob("tensorboard/kd-rkd-*/seed-0"))
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    content = accumulator.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    told = metadata.parse_session_start_info_plugin_data(content).hparams
    assert told["recipe"].string_value == "kd>rkd epochs=2" and told["methods"].string_value == "kd>rkd"
    assert told["stage_2.epochs"].number_value == 2 and told["phase"].string_value == "search"
    assert told["lambda_base"].number_value == 0.5 and told["n_stages"].number_value == 2


def mlflow_runs(run: Path) -> list[Any]:
    client = mlflow.MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("smskd")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_has_a_finished_run_for_each_training(run: Path) -> None:
    rows = table(run)
    found = {(r.data.params["recipe_id"], int(r.data.params["seed"])): r for r in mlflow_runs(run)}
    assert len(mlflow_runs(run)) == len(rows)
    for row in rows.to_dict("records"):
        one = found[row["recipe_id"], row["seed"]]
        assert one.info.status == "FINISHED" and one.data.params["phase"] == row["phase"]
        assert one.data.metrics["val_accuracy"] == row["val_accuracy"]
        assert one.data.metrics.get("test_accuracy") == (
            None if np.isnan(row["test_accuracy"]) else row["test_accuracy"]
        )
        assert "loss/ce" in one.data.metrics


@pytest.mark.slow
def test_wandb_has_a_run_for_each_training_offline(tmp_path: Path) -> None:
    """Slow: W&B starts two processes for each training."""
    run = tmp_path / "run"
    search(run, "log=[wandb]", "seeds=1", "confirm=0")
    files = list((run / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == len(table(run))
    for file in files:
        content = file.read_bytes()
        assert b"val_accuracy" in content and b"recipe_id" in content and b"loss/ce" in content


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_search_taken_up_again_has_each_training_once(run: Path) -> None:
    """A killed driver leaves logs of trainings that it didn't tell the study of: they run again, and replace those."""
    before = {r.info.run_id: r.data.params["recipe_id"] for r in mlflow_runs(run)}
    cut_short = next((run / "tensorboard").glob("kd-rkd-*/seed-0/events*"))
    cut_short.write_bytes(cut_short.read_bytes()[:200])
    (cut_short.parent / f"{cut_short.name}.old").write_bytes(b"")
    with contextlib.closing(sqlite3.connect(run / "study.db")) as database, database:
        database.execute(
            "UPDATE trials SET state = 'RUNNING' WHERE trial_id = (SELECT trial_id FROM trial_user_attributes "
            "WHERE key = 'recipe' AND value_json = '\"kd>rkd epochs=2\"')"
        )
    search(run, LOG)
    check_tensorboard(run)
    after = {r.info.run_id: r.data.params["recipe_id"] for r in mlflow_runs(run)}
    assert len(after) == len(before) == len(table(run))
    again = {of for run_id, of in after.items() if run_id not in before}
    assert len(again) == 1, "the lost recipe alone was logged anew"


def trial(trial_id: str = "t", **changes: Any) -> SimpleNamespace:
    told = {"recipe": "kd>rkd", "seed": 3, "test": False, "pair": "tiny"} | changes
    told["worker"] = {"experiment": {"pair": "tiny", "data": "digits"}}
    return SimpleNamespace(trial_id=trial_id, config=told)


REPORT = {
    **{"stages_done": 1, "epochs_done": 2, "val_accuracy": 0.5, "error": 0.5, "train_flops": 1e6},
    **{"device_seconds": 1.0, "losses": json.dumps([{"ce": 2.0}, {"ce": 1.0}]), "pid": 7, "time_total_s": 3.0},
}


def test_a_logger_that_fails_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    of = Loggers(["tensorboard"], {"tiny": tmp_path}, said.append)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loggers.TBXLoggerCallback, "log_trial_result", full)
    of.on_trial_start(1, [], trial())
    of.on_trial_result(1, [], trial(), {"stage": 1, "epoch": 1, "epochs": 2})  # where it is, nothing to plot
    assert said == []
    of.on_trial_result(1, [], trial(), REPORT)
    assert said == ["log=[tensorboard] has ended, the search goes on: OSError: [Errno 28] No space left on device"]
    of.on_trial_result(1, [], trial(), REPORT | {"outcome": "{}"})
    of.on_trial_start(1, [], trial("u"))
    of.on_experiment_end([])
    assert len(said) == 1


def test_a_worker_that_dies_and_begins_anew_leaves_one_curve(tmp_path: Path) -> None:
    of = Loggers(["tensorboard"], {"tiny": tmp_path}, pytest.fail)
    for _ in range(2):
        of.on_trial_start(1, [], trial())
        of.on_trial_result(1, [], trial(), REPORT)
    of.on_trial_result(2, [], trial(), REPORT | {"outcome": "{}", "stages_done": 2, "epochs_done": 4})
    (folder,) = tmp_path.glob("tensorboard/*/*")
    assert [step for step, _ in scalars(folder)["loss/ce"]] == [1, 2, 3, 4]
    assert "pid" not in scalars(folder) and "time_total_s" not in scalars(folder)


def test_a_training_that_failed_is_marked_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []
    monkeypatch.setattr(
        loggers.TBXLoggerCallback, "log_trial_end", lambda self, trial, failed=False: ended.append(failed)
    )
    of = Loggers(["tensorboard"], {"tiny": tmp_path}, pytest.fail)
    # one that trained on validation images says nothing of these
    unseen = {name: value for name, value in REPORT.items() if name not in ("val_accuracy", "error")}
    for number, result in enumerate(({}, REPORT, unseen)):
        of.on_trial_start(1, [], trial(str(number)))
        of.on_trial_result(1, [], trial(str(number)), result | {"outcome": "{}"})
    of.on_trial_start(1, [], trial("dead"))
    of.on_trial_error(1, [], trial("dead"))
    assert ended == [True, False, False, True]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["log=[tensorbord]"], "Did you mean 'tensorboard'"),
        (["log=[tensorboard,tensorboard]"], "names one twice"),
        (["log=[tensorboard"], "tensorboard"),
    ],
)
def test_wrong_loggers(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        configs.parse(words)


@pytest.mark.parametrize(("name", "pip"), [("mlflow", "mlflow-skinny"), ("wandb", "wandb")])
def test_a_logger_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, name: str, pip: str) -> None:
    found = configs.importlib.util.find_spec
    monkeypatch.setattr(configs.importlib.util, "find_spec", lambda n: None if n == name else found(n))
    with pytest.raises(ValueError, match=rf"log=\[{name}\] needs {name}.*python -m pip install {pip}$"):
        configs.parse([f"log=[{name}]"])
    assert configs.parse([]).log == ("tensorboard",) and configs.parse(["log=[]"]).log == ()
    assert configs.parse(["log=tensorboard"]).log == ("tensorboard",)


def test_a_logger_that_cannot_be_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(self: Any) -> None:
        raise ConnectionError("no server answers")

    monkeypatch.setattr(loggers.TBXLoggerCallback, "setup", unreachable)
    with pytest.raises(ValueError, match=r"log=\[tensorboard\] can't be set up: no server answers"):
        Loggers(["tensorboard"], {"tiny": tmp_path}, pytest.fail)


def test_the_driver_imports_no_more_for_tensorboard_than_it_needs() -> None:
    code = (
        "import sys; from search import loggers; from pathlib import Path; "
        "loggers.Loggers(['tensorboard'], {'tiny': Path()}, print); "
        "print(sorted({'torch', 'mlflow', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


# --- optuna-dashboard


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def dashboard(run: Path) -> Iterator[str]:
    """The address of optuna-dashboard on this run's study."""
    from optuna_dashboard import wsgi

    with make_server("127.0.0.1", 0, wsgi(f"sqlite:///{run / 'study.db'}"), handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def get(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=30) as answer:
        assert answer.status == 200
        return bytes(answer.read())


# its importance looks at parameters that some recipes haven't, and says where few have one
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*[Ee]xperimental", "ignore:Some regimes for")
def test_optuna_dashboard_opens_the_study(run: Path, dashboard: str) -> None:
    before = (run / "study.db").read_bytes()
    (study,) = json.loads(get(f"{dashboard}/api/studies"))["study_summaries"]
    assert (study["study_name"], study["directions"]) == ("smskd", ["minimize", "minimize"])
    told = json.loads(get(f"{dashboard}/api/studies/{study['study_id']}"))
    assert told["objective_names"][0] == "error" and len(told["objective_names"]) == 2
    rows = table(run).query("phase == 'search'")
    means = rows.groupby("recipe")[["val_accuracy", "train_flops"]].mean()
    trials = {
        next(a["value"] for a in t["user_attrs"] if a["key"] == "recipe").strip('"'): t
        for t in told["trials"]
        if t["state"] == "Complete"
    }
    assert set(trials) == set(means.index)
    for recipe, one in trials.items():
        assert one["values"] == pytest.approx([1 - means.loc[recipe, "val_accuracy"], means.loc[recipe, "train_flops"]])
        assert one["params"] and {a["key"] for a in one["user_attrs"]} >= {"recipe", "records"}
    listed = get(f"{dashboard}/csv/{study['study_id']}").decode()
    assert listed.startswith("Number,State,error,") and all(recipe in listed for recipe in means.index)
    importances = json.loads(get(f"{dashboard}/api/studies/{study['study_id']}/param_importances"))
    assert len(importances["param_importances"]) == 2
    assert b"Optuna Dashboard" in get(f"{dashboard}/dashboard")
    assert (run / "study.db").read_bytes() == before


# --- results.parquet


def documented() -> list[tuple[str, str, bool]]:
    """Name, type and whether it may be null, of each column that SCHEMA.md lists."""
    text = (ROOT / "reports" / "SCHEMA.md").read_text()
    found = re.findall(r"^\| `(\w+)` \| (\w+) \| (yes|no) \|", text, flags=re.MULTILINE)
    assert len(found) > 20 and len(found) == text.count("\n| `")
    return [(name, kind, null == "yes") for name, kind, null in found]


def test_pandas_polars_and_duckdb_read_the_documented_columns(run: Path) -> None:
    path = run / "results.parquet"
    columns = documented()
    names = [name for name, *_ in columns]
    by_pandas, by_polars = pd.read_parquet(path), polars.read_parquet(path)
    by_duckdb = duckdb.sql(f"SELECT * FROM '{path}'")
    assert list(by_pandas.columns) == by_polars.columns == by_duckdb.columns
    # after the documented ones those of the settings, of types that the page names, too
    settings = {"epochs": "int64", "train_size": "int64", "teacher_epochs": "int64"}
    assert by_polars.columns == [*names, *by_polars.columns[len(names) :]]
    assert set(by_polars.columns[len(names) :]) == set(settings)
    columns += [(name, kind, True) for name, kind in settings.items()]
    of_polars = {"str": polars.String, "int64": polars.Int64, "float64": polars.Float64}
    of_duckdb = {"str": "VARCHAR", "int64": "BIGINT", "float64": "DOUBLE"}
    kinds = dict(zip(by_duckdb.columns, map(str, by_duckdb.types), strict=True))
    count = len(by_pandas)
    assert count == by_polars.height == len(by_duckdb.fetchall()) > 0
    for name, kind, nullable in columns:
        assert by_polars.schema[name] == of_polars[kind], name
        assert kinds[name] == of_duckdb[kind], name
        nulls = int(by_pandas[name].isna().sum())
        assert nulls == by_polars[name].null_count(), name
        assert duckdb.sql(f"SELECT count(*) - count({name}) FROM '{path}'").fetchall() == [(nulls,)], name
        if not nullable:
            assert nulls == 0, name
        assert str(results.read(run)[name].dtype) == (kind if name in names else kind.capitalize()), name
    mean = by_pandas.query("phase == 'search'")["val_accuracy"].mean()
    assert by_polars.filter(polars.col("phase") == "search")["val_accuracy"].mean() == pytest.approx(mean)
    ((found,),) = duckdb.sql(f"SELECT avg(val_accuracy) FROM '{path}' WHERE phase = 'search'").fetchall()
    assert found == pytest.approx(mean)


# --- the student


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_student_of_a_search_is_exported_and_its_card_loads_it(run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "search.export", f"run={run}"], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "opset 20, raw pixels in, logits within" in done.stdout and done.stdout.count("\n") == 2
    note = json.loads((run / export.NOTE).read_text())
    assert note["exports"].keys() == {export.PT2, export.ONNX}
    assert len(note["mean"]) == len(note["std"]) == note["channels"] == 1 and note["pixels"] == "float32"
    card = (run / "MODEL_CARD.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL)
    loaded = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=run, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert loaded.returncode == 0, loaded.stderr
    assert re.fullmatch(r"tensor\(\[\d\]\)\n", loaded.stdout)


def test_a_search_heals_a_damaged_student(run: Path) -> None:
    weights, note = (run / export.WEIGHTS).read_bytes(), json.loads((run / export.NOTE).read_text())
    (run / export.WEIGHTS).write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    (run / export.ONNX).touch()
    assert export.main([f"run={run}"]) == 2
    search(run, NO_LOG)
    assert (run / export.WEIGHTS).read_bytes() == weights
    again = json.loads((run / export.NOTE).read_text())
    assert again == {key: value for key, value in note.items() if key != "exports"}
    assert not (run / export.ONNX).exists(), "an export of what isn't there any more is removed"


# --- protocol=paper


@pytest.mark.slow
def test_the_papers_protocol_on_a_finished_run(run: Path) -> None:
    honest = table(run)
    assert honest["test_best_accuracy"].isna().all()
    shown = (run / "study.db").stat().st_mtime_ns
    search(run, NO_LOG, "protocol=paper")
    assert (run / "study.db").stat().st_mtime_ns > shown
    paper = table(run)
    confirmed = paper["phase"] == "confirm"
    assert (
        paper.loc[confirmed, "test_best_accuracy"].ge(paper.loc[confirmed, "test_accuracy"]).all() and confirmed.any()
    )
    assert paper.loc[~confirmed, "test_best_accuracy"].isna().all()
    # the training is the same, and nothing that was chosen has changed
    measured = ["test_best_accuracy", "device_seconds", "spent_seconds"]
    pd.testing.assert_frame_equal(paper.drop(columns=measured), honest.drop(columns=measured))
    info = json.loads((run / "run.json").read_text())
    assert info["confirm"]["reopened"] is False and info["config"]["protocol"] == "paper"
    search(run, NO_LOG, "protocol=paper")
    assert json.loads((run / "run.json").read_text())["confirm"]["stage_runs"] == 0
    search(run, NO_LOG)
    pd.testing.assert_frame_equal(table(run).drop(columns=measured), honest.drop(columns=measured))
    assert table(run)["test_best_accuracy"].isna().all()


def test_the_papers_protocol_needs_a_confirmation() -> None:
    with pytest.raises(ValueError, match=r"protocol=paper .* confirm >= 1 must hold, but got confirm=0"):
        configs.parse(["protocol=paper", "confirm=0"])
    with pytest.raises(ValueError, match="honest"):
        configs.parse(["protocol=papr"])
    assert configs.parse(["protocol=paper"]).identity == configs.parse([]).identity
