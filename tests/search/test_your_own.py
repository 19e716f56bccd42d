"""docs/your-own.md, in an empty folder: its files, its commands, its notebook, as they stand there."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from search import run
from tests import runs
from tests.own import FILES, PAGE, no_files  # noqa: F401 (a fixture)

COMMANDS = re.findall(r"^(python -m .*)$", PAGE, flags=re.M)


def folder(place: Path) -> Path:
    """With the files of the page."""
    assert {"nets.py", "data.py", "cosine.py", "mine.py", "my_pair.py", "notebook.py"} == {*FILES}
    for name, text in FILES.items():
        (place / name).write_text(text)
    return place


def call(words: list[str], place: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = runs.environment() | {"PYTHONPATH": str(runs.ROOT)} | more
    return subprocess.run(
        [sys.executable, *words], cwd=place, env=environment, capture_output=True, text=True, timeout=280
    )


def ran(words: list[str], place: Path) -> str:
    done = call(words, place)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def module(words: str, **changes: str) -> list[str]:
    """A command of the page as words for Python, with other values of some keys."""
    found = [word for word in shlex.split(words)[1:] if word.partition("=")[0] not in changes]
    return [*found, *(f"{key}={value}" for key, value in changes.items())]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's search has run."""
    made = folder(tmp_path_factory.mktemp("own"))
    ran(module(COMMANDS[0]), made)
    return made


@pytest.mark.slow
def test_the_search_of_the_page(place: Path) -> None:
    table = pd.read_parquet(place / "run" / "results.parquet")
    assert {*table["pair"]} == {"my_pair"} and {*table["data"]} == {"data.py:arrays"}
    assert {"search", "confirm"} == {*table["phase"]} and (table["status"] == "complete").all()
    assert table["methods"].str.contains("cosine").any()
    page = (place / "run" / "report.html").read_text()
    assert "Own code" in page and "code=[cosine.py,data.py,my_pair.py,nets.py]" in page
    told = yaml.safe_load((place / "run" / "best.yaml").read_text())
    assert [stamp.partition("@")[0] for stamp in told["code"]] == ["cosine.py", "data.py", "my_pair.py", "nets.py"]


@pytest.mark.slow
def test_the_commands_after_it(place: Path) -> None:
    """Each as it stands there: the student is the same bit for bit, stages too, and exports agree with PyTorch."""
    assert len(COMMANDS) == 5
    for words in COMMANDS[1:]:
        out = ran(module(words), place)
        assert out
        if "reproduce" in words:
            assert "stages identical" in out
    one, other = load_file(place / "again.safetensors"), load_file(place / "run" / "student.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in {*one, *other})
    assert (place / "run" / "student.onnx").is_file()


@pytest.fixture
def refused(
    place: Path,
    no_files: None,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str], str]:
    """What a command of the page says that is refused, in one line."""
    monkeypatch.chdir(place)

    def told(command: str) -> str:
        _, name, *words = module(command)
        assert importlib.import_module(name).main(words) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1
        return said

    return told


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS[1:4])
def test_code_runs_only_where_it_is_named(refused: Callable[[str], str], command: str) -> None:
    without = " ".join(word for word in command.split() if not word.startswith("code="))
    assert "its code runs only if the file is named: add code=[" in refused(without)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS[1:4])
def test_another_digest_is_refused(refused: Callable[[str], str], place: Path, command: str) -> None:
    nets = place / "nets.py"
    try:
        nets.write_text(FILES["nets.py"] + "\n# changed\n")
        assert "nets.py must be the file with the digest" in refused(command)
    finally:
        nets.write_text(FILES["nets.py"])


def test_the_notebook(tmp_path: Path) -> None:
    assert float(ran(["notebook.py"], folder(tmp_path))) > 0


@pytest.mark.slow
@pytest.mark.parametrize("data", ["dataset", "hugging_face"])
def test_other_forms_of_data(tmp_path: Path, data: str) -> None:
    if data == "hugging_face" and importlib.util.find_spec("datasets") is None:
        pytest.skip("datasets isn't installed")
    words = [
        "-m",
        "smskd.train",
        "recipe=kd",
        "pair=my_pair.py",
        f"data=data.py:{data}",
        "epochs=1",
        "teacher_epochs=1",
    ]
    assert "on validation" in ran(words, folder(tmp_path))


BROKEN = {
    "nets.py": ("import nothing_like_it", "nets.py can't be imported: ModuleNotFoundError"),
    "data.py": ("def arrays(): raise KeyError('gone')", "data.py, line 1"),
    "cosine.py": ("READS = {'logits'}\ndef build(task): return 1 / 0", "ZeroDivisionError"),
    "mine.py": ("def suggest(trial, menu):\n    return trial.no_such()", "mine.py, line 2"),
    "my_pair.py": ("PAIR = None", "my_pair.py must say PAIR"),
}


@pytest.mark.usefixtures("no_files")
@pytest.mark.parametrize("name", BROKEN)
def test_a_mistake_in_a_file_is_told_before_work_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(folder(tmp_path))
    text, said = BROKEN[name]
    (tmp_path / name).write_text(
        text + ("\ndef teacher(n, c): ...\ndef student(n, c): ..." if name == "nets.py" else "")
    )
    monkeypatch.setattr("search.several.Search.work", lambda search: pytest.fail("work has started"))
    assert run.main(module(COMMANDS[0])[2:]) == run.BAD_INPUT
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1 and said in told


@pytest.mark.slow
def test_an_edited_file_is_another_search(refused: Callable[[str], str], place: Path) -> None:
    loss = place / "cosine.py"
    try:
        loss.write_text(FILES["cosine.py"] + "\n# changed\n")
        assert "holds another search (code of cosine.py: " in refused(COMMANDS[0])
    finally:
        loss.write_text(FILES["cosine.py"])


@pytest.mark.slow
def test_a_plan_of_the_page(place: Path) -> None:
    words = module(COMMANDS[0].replace("search.run", "search.plan"), out="planned")
    assert "Nothing was started" in ran(words, place)


@pytest.mark.slow
def test_killed_with_two_workers_and_taken_up_again(tmp_path: Path) -> None:
    place = folder(tmp_path)
    words = module(COMMANDS[0], cpus="1")
    environment = runs.environment() | {"PYTHONPATH": str(runs.ROOT)}
    with (place / "log").open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, *words], cwd=place, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        ends = time.monotonic() + 200
        while "[2/" not in (place / "log").read_text() and time.monotonic() < ends:
            time.sleep(0.2)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    (place / "nets.py").rename(place / "kept.py")
    done = call(words, place)
    assert done.returncode == 2 and "nets.py" in done.stderr  # it can't go on with nothing
    (place / "kept.py").rename(place / "nets.py")
    assert "reused" in ran(words, place)
    assert (pd.read_parquet(place / "run" / "results.parquet")["status"] == "complete").all()
