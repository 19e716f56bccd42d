"""Bad input: refused within seconds, with the mend, before anything starts."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from search import run
from search.config import parse_pairs
from tests import runs
from tests.faults.conftest import Score

ROW = 14
# words, and what the refusal says: the valid choices, or the bound, or the mend
WORDS: list[tuple[list[str], str]] = [
    (["space=stage_odrer"], "stage_order"),
    (["space=../spaces"], "stage_order"),
    (["space="], "needs a value"),
    (["pair=tony"], "tiny"),
    (["pair=[tiny,tony]"], "tiny"),
    (["pair=[a,b,c]"], "tiny"),
    (["pair=[]"], "at least one pair"),
    (["pair=[tiny,tiny]"], "twice"),
    (["pair=[tiny"], "list"),
    (["pair=[tiny,resnet56_resnet20]", "teacher=t.safetensors"], "leave it out, or name one pair"),
    (["pair=[tiny,resnet56_resnet20]", "storage=sqlite:///s.db"], "leave it out, or name one pair"),
    (["pair=tiny", "teacher_model=resnet18", "student_model=resnet18"], "pair="),
    (["teacher_model=resnet18"], "student_model"),
    (["teacher_model=resnet", "student_model=resnet18"], "resnet"),
    (["data=digit"], "digits"),
    (["data=folder"], "data_dir="),
    (["data=digits", "data_dir=/tmp"], "data_dir"),
    (["methods=[]"], "at least one method"),
    (["methods=[kd,kt]"], "kd"),
    (["methods=[kd,kd]"], "twice"),
    (["methods=[kd+kd]"], "twice"),
    (["methods=[kd,rkd+]"], "method"),
    (["methods=[kd"], "list such as [kd,rkd]"),
    (["methods=[[kd]]"], "kd"),
    (["methods={kd: 1}"], "list"),
    (["methods=[\u043ad]"], "kd"),
    (["wat=1"], "key"),
    (["Seeds=1"], "seeds"),
    (["\u0455eeds=1"], "seeds"),
    (["seeds"], "seeds=..."),
    (["--seeds=3"], "seeds"),
    (["=3"], "key"),
    (["seeds=1", "seeds=2"], "twice"),
    (["seeds=0"], "1 <= seeds"),
    (["seeds=-1"], "1 <= seeds"),
    (["seeds=1.5"], "whole number"),
    (["seeds=three"], "whole number"),
    (["seeds=nan"], "whole number"),
    (["seeds=[1]"], "whole number"),
    (["seeds=null"], "whole number"),
    (["seeds=" + "9" * 30], "seeds <= 50000"),
    (["seeds=" + "9" * 5000], "whole number"),
    (["confirm=-1"], "0 <= confirm"),
    (["seed=-1"], "seed >= 0"),
    (["seed=1e400"], "whole number"),
    (["epochs=0"], "epochs >= 1"),
    (["epochs=inf"], "whole number"),
    (["epochs=1", "epochs_total=1"], "epochs"),
    (["epochs_total=0"], "epochs_total >= 1"),
    (["max_stages=0"], "1 <= max_stages"),
    (["max_stages=1000"], "max_stages <= 100"),
    (["trials=0"], "trials >= 1"),
    (["train_size=1"], "train_size >= 2"),
    (["gpus=-1"], "gpus >= 0"),
    (["gpus=nan"], "gpus >= 0"),
    (["cpus=0"], "cpus > 0"),
    (["cpus=nan"], "cpus > 0"),
    (["cpus=inf"], "cpus > 0"),
    (["lambda_base=nan"], "lambda_base"),
    (["lambda_base=-1"], "lambda_base"),
    (["lambda_base=inf"], "lambda_base"),
    (["max_flops=nan"], "max_flops > 0"),
    (["max_flops=inf"], "max_flops > 0"),
    (["max_params=0"], "max_params > 0"),
    (["max_latency_ms=-1"], "max_latency_ms > 0"),
    (["stop=maybe"], "dominated"),
    (["stop=dominated", "stop_margin=nan"], "stop_margin"),
    (["stop_margin=3"], "stop=dominated"),
    (["box=[0,nan,1,2]"], "error_low < error_high"),
    (["box=[0,1,1,inf]"], "cost_low < cost_high"),
    (["box=[0,1]"], "4 numbers"),
    (["box=[a,b,c,d]"], "list of numbers"),
    (["cost=dollars"], "flops"),
    (["cost=[flops,flops]"], "different"),
    (["cost=[flops,seconds,params]"], "one or two"),
    (["cost=[]"], "needs a value"),
    (["sampler=annealing"], "tpe"),
    (["anchor=chain"], "reference"),
    (["weighting=heavy"], "tcp"),
    (["space=weighting", "weighting=tcp"], "leave it out"),
    (["precision=fp8"], "bf16"),
    (["compile=yes please"], "off"),
    (["log=[stdout]"], "tensorboard"),
    (["log=[tensorboard,tensorboard]"], "twice"),
    (["protocol=dishonest"], "honest"),
    (["protocol=paper", "confirm=0"], "confirm >= 1"),
    (["reopen_test=perhaps"], "true or false"),
    (["teacher=a.safetensors", "teacher_epochs=3"], "leave one of them out"),
]


@pytest.mark.parametrize(("words", "told"), WORDS, ids=lambda value: str(value)[:40])
def test_words_are_refused(score: Score, words: list[str], told: str) -> None:
    with score.fault():
        started = time.monotonic()
        with pytest.raises(ValueError) as error:
            parse_pairs(words)
        assert told in str(error.value)
        assert len(str(error.value)) < 2000, "one can read it"
        score.went_on(time.monotonic() - started)


def test_places_that_cannot_be_written_to_or_read(
    score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    (tmp_path / "fine").mkdir()
    fine, database = f"out={tmp_path / 'fine'}", tmp_path / "text.db"
    database.write_text("no database " * 100)
    for words, told in (
        ([f"out={file}"], "choose another place"),
        ([f"out={file}/run"], "choose another place"),
        (["out=/proc/run"], "choose another place"),
        ([fine, f"store={file}"], "choose another place"),
        ([fine, "store=/proc/store"], "choose another place"),
        ([f"out={tmp_path / ('x' * 300)}"], "choose another place"),
        ([fine, "teacher=/no/such/file"], "there is no such file"),
        ([fine, f"teacher={file}"], "neither safetensors nor"),
        ([fine, f"storage=sqlite:///{database}"], "is no study"),
        ([fine, "storage=sqlite:////no/such/folder/study.db"], "can't be read as a study"),
        ([fine, "storage=nosql://x"], "no other database"),
        ([fine, "sampler=tpe", f"warm_start={tmp_path / 'nowhere'}"], "there is no study.db"),
        ([fine, "data=folder", "data_dir=/no/such/folder"], "/no/such/folder"),
        ([fine, "train_size=7"], "train_size"),
        ([fine, "train_size=100000"], "train_size"),
        ([fine, "cpus=10000"], "what there is"),
        ([fine, "gpus=64"], "what there is"),
    ):
        given = {word.partition("=")[0] for word in words}
        store = [] if "store" in given else [f"store={tmp_path / 'store'}"]
        with score.fault():
            assert run.main([*words, *store]) == run.BAD_INPUT, words
            error = capsys.readouterr().err
            assert error.startswith("error: ") and told in error and len(error.splitlines()) == 1, error


@pytest.mark.parametrize(
    "words",
    [["space=nowhere"], ["pair=[tiny,tony]"], ["box=[0,nan,1,2]"], ["out=/proc/run"], ["data=folder", "data_dir=/no"]],
    ids=str,
)
def test_the_command_ends_at_once(score: Score, tmp_path: Path, words: list[str]) -> None:
    mark = tmp_path.name
    with score.fault():
        running = runs.start(tmp_path / "run", tmp_path / "store", *words, mark=mark)
        seconds: float | None = None
        started = time.monotonic()
        seen: dict[int, str] = {}
        while seconds is None:
            seen |= runs.marked(mark)
            try:
                running.wait(0.2)
                seconds = time.monotonic() - started
            except subprocess.TimeoutExpired:
                assert time.monotonic() - started < 30, "seconds, on a busy machine as well"
        told, _ = running.communicate()
        score.went_on(seconds)
        assert running.returncode == 2 and told.startswith("error: "), told
        assert not [command for command in seen.values() if "raylet" in command or "gcs_server" in command]
        score.no_orphans(mark)
