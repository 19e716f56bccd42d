"""Several drivers on one store: no stage trained twice, none lost, none mixed up. A run's files behind a URL."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from search import mirror
from smskd.store import remote
from smskd.store.remote import Files
from tests import runs
from tests.s3 import Server, s3

__all__ = ["s3"]


WORDS = {"one": "methods=[kd,rkd]", "two": "methods=[kd,fitnets]"}  # both train kd


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    """The tables of these searches, one after another."""
    folder = tmp_path_factory.mktemp("alone")
    for name, word in WORDS.items():
        assert runs.search(folder / name, folder / "store", word, "log=[]").returncode == 0
    return {name: runs.table(folder / name) for name in WORDS}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_two_searches_share_a_store(tmp_path: Path, s3: Server, alone: dict[str, pd.DataFrame], kind: str) -> None:
    """Started together, on two machines."""
    store = s3.url(tmp_path.name) if kind == "s3" else str(tmp_path / "store")
    started = {
        name: runs.start(tmp_path / name, store, word, "log=[]", XDG_CACHE_HOME=str(tmp_path / f"machine {name}"))
        for name, word in WORDS.items()
    }
    said = {name: process.communicate(timeout=280)[0] for name, process in started.items()}
    assert {name: process.returncode for name, process in started.items()} == {"one": 0, "two": 0}, said
    infos = [json.loads((tmp_path / name / "run.json").read_bytes()) for name in WORDS]
    trained = sum(info["stage_runs"] + info["confirm"]["stage_runs"] for info in infos)
    if kind == "s3":
        files = Files(store)
        stages = {name.split("/")[2] for name in files.list("entries") if name.endswith("manifest.json")}
        assert files.list("claims") == {} and files.list("aside") == {}
    else:
        stages = set(runs.finished(Path(store)))
        assert not list((tmp_path / "store").glob("partial/*")) and not (tmp_path / "store" / "aside").exists()
    assert trained == len(stages) - 1  # the teacher is no run's
    for name, table in alone.items():
        pd.testing.assert_frame_equal(runs.table(tmp_path / name), table)


@pytest.mark.slow
def test_a_run_behind_a_url(tmp_path: Path, s3: Server) -> None:
    """Its files are copied there; a second driver is refused, and from another machine the run goes on."""
    out, study = s3.url(tmp_path.name), f"storage=sqlite:///{tmp_path / 'study.db'}"

    def search(machine: str, *more: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / machine).mkdir(exist_ok=True)
        command = runs.command(out, tmp_path / "store", study, "log=[]", *more)
        environment = runs.environment(PYTHONPATH=str(runs.ROOT))
        return subprocess.run(
            command, cwd=tmp_path / machine, env=environment, capture_output=True, text=True, timeout=240, check=False
        )

    with Files(out).lock("run", tmp_path):
        refused = search("one")
        assert refused.returncode == 2 and "another search is at work" in refused.stderr
    done = search("one")
    assert done.returncode == 0, done.stdout + done.stderr
    files = Files(out)
    there = set(files.list(""))
    assert {"run.json", "results.parquet", "report.html", "best.yaml", "student.safetensors"} <= there
    (folder,) = (tmp_path / "one" / "runs").glob("copied-*")
    assert there == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name[0] != "."}
    assert json.loads(files.read("run.json", 10**6)) == json.loads((folder / "run.json").read_bytes())
    again = search("two")
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads(files.read("run.json", 10**6))["stage_runs"] == 0
    assert files.list("claims") == {}


def test_a_bucket_that_is_not_there_is_refused(tmp_path: Path, s3: Server) -> None:
    url = s3.url("x").replace("s3://bucket/", "s3://nobody/")
    done = runs.search(tmp_path / "run", url)
    assert done.returncode == 2 and f"store={url} can't be written to" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_begins_with_a_dot_stays(tmp_path: Path, s3: Server) -> None:
    for name in (".lock", ".hidden/x", "run.json", "export/student.onnx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    mirror.copy(tmp_path, s3.url("dots"))
    assert set(Files(s3.url("dots")).list("")) == {"run.json", "export/student.onnx"}


def test_a_driver_that_was_cut_off_goes_on_at_once(tmp_path: Path, s3: Server) -> None:
    """On its machine; elsewhere its claim has to expire, and so one is told."""
    url = s3.url("cut")
    (tmp_path / "elsewhere").mkdir()
    Files(url).write(f"claims/run.{remote.owner_of(tmp_path)}", b"")
    with pytest.raises(ValueError, match="cut off less than 60 s ago"), mirror.held(tmp_path / "elsewhere", url):
        pass
    with mirror.held(tmp_path, url):
        pass
