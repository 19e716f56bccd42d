"""Bad input: refused within seconds, with the mend, before anything starts."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import spaces
from search import plan, run, several
from search.config import parse_pairs
from smskd import train
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
    (["methods={kd: 1}"], "a method is expected"),
    (["methods=[\u043ad]"], "kd"),
    (["wat=1"], "key"),
    (["Seeds=1"], "seeds"),
    (["\u0455eeds=1"], "seeds"),
    (["seeds"], "such as seeds=5"),
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
    (["epochs=0"], "1 <= epochs"),
    (["epochs=inf"], "whole number"),
    (["epochs=1", "epochs_total=1"], "epochs"),
    (["epochs_total=0"], "1 <= epochs_total"),
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
    (["box=[0,nan,1,2]"], "box is finite"),
    (["box=[0,1,1,inf]"], "box is finite"),
    (["box=[1,0,1,2]"], "error_low < error_high"),
    (["box=[0,1,2,1]"], "cost_low < cost_high"),
    (["box=[0,1]"], "4 numbers"),
    (["box=[a,b,c,d]"], "list such as [0.5,0.75]"),
    (["cost=dollars"], "flops"),
    (["cost=[flops,flops]"], "different"),
    (["cost=[flops,seconds,params]"], "one or two"),
    (["cost=[]"], "one or two different costs"),
    (["sampler=annealing"], "tpe"),
    (["anchor=chain"], "reference"),
    (["weighting=heavy"], "tcp"),
    (["precision=fp8"], "bf16"),
    (["compile=yes please"], "off"),
    (["log=[stdout]"], "tensorboard"),
    (["log=[tensorboard,tensorboard]"], "twice"),
    (["protocol=dishonest"], "honest"),
    (["protocol=paper", "confirm=0"], "confirm >= 1"),
    (["reopen_test=perhaps"], "true or false"),
    (["teacher=a.safetensors", "teacher_epochs=3"], "leave one of them out"),
    # settings of recipes: where they belong, their bounds, and what of them goes together
    (
        ["temperature=2"],
        "temperature is a setting of kd, crd, dist, dkd, logit_std: kd(temperature=4), or kd.temperature=4",
    ),
    (["kd.temprature=2"], "kd has weight, temperature. Did you mean 'temperature'?"),
    (["learning_rat=0.1"], "Did you mean 'learning_rate'?"),
    (["stage_2.epoch=3"], "Did you mean 'stage_2.epochs'?"),
    (["stage_0.epochs=3"], "unknown key 'stage_0.epochs'"),
    (["kt.temperature=2"], "unknown key 'kt.temperature'"),
    (["learning_rate=-1"], "learning_rate > 0 must hold, but got learning_rate=-1"),
    (["learning_rate=nan"], "learning_rate > 0 must hold"),
    (["learning_rate=fast"], "learning_rate must be a number, but got 'fast'"),
    (["momentum=1"], "0 <= momentum < 1 must hold"),
    (["kd.temperature=0"], "kd.temperature > 0 must hold, but got kd.temperature=0"),
    (["kd.weight=-1"], "kd.weight >= 0 must hold"),
    (["stage_2.batch_size=0"], "1 <= stage_2.batch_size"),
    (["milestones=[0.5,2]"], "0 < milestones < 1"),
    (["milestones=[0.5"], "a bracket is missing in '[0.5'"),
    (["schedule=steep"], "Did you mean 'step'?"),
    (["optimizer=adam"], "Did you mean 'adamw'?"),
    (["nesterov=perhaps"], "true or false"),
    (["dkd.temperature=2"], "dkd is in no stage of methods=[kd,fitnets,rkd]"),
    (["stage_1.dkd.temperature=2"], "dkd is in no stage of methods=[kd,fitnets,rkd]"),
    (["kd.temperature=2", "kd.temperature=3"], "kd.temperature= is given twice"),
    (["methods=[kd(temperature=2),rkd]", "kd.temperature=4"], "both say kd.temperature: leave one out"),
    (["epochs=3", "epochs_total=12"], "leave one out of epochs=3 and epochs_total=12"),
    (["stage_2.epochs=3", "epochs_total=12"], "leave one out of stage_2.epochs=3 and epochs_total=12"),
    (["epochs=choice(1,2)", "epochs_total=12"], "leave one out of epochs=choice(1,2) and epochs_total=12"),
    (["methods=[kd@epochs=3,rkd]", "epochs_total=12"], "epochs_total=12 and methods=[kd@epochs=3] both say epochs"),
    (["split=[0.5,0.5]"], "split= divides epochs_total=, which is missing"),
    # ranges: the part that is wrong is marked
    (["epochs=interval(5,2)"], "epochs=-->interval(5,2)<--: low < high must hold, but got low=5, high=2"),
    (["learning_rate=tag(log,interval(0.2,0.01))"], "tag(log,-->interval(0.2,0.01)<--): low < high must hold"),
    (["learning_rate=tag(log,interval(0,0.2))"], "tag(log,-->interval(0,0.2)<--): low > 0 must hold for a logarithm"),
    (["epochs=range(5,5,1)"], "epochs=-->range(5,5,1)<--: it is empty"),
    (["epochs=range(1,30000)"], "epochs=-->range(1,30000)<--: has over 10000 values"),
    (["epochs=range(5,30,-5)"], "epochs=-->range(5,30,-5)<--"),
    (["learning_rate=choice()"], "learning_rate=-->choice()<--: a value is missing"),
    (["learning_rate=interval(0.1,0.2"], "learning_rate=-->interval(0.1,0.2<--: a bracket isn't closed"),
    (["learning_rate=tag(log,interval(0.1,0.2)"], "-->tag(log,interval(0.1,0.2)<--: a bracket isn't closed"),
    (["learning_rate=interval(0.1,0.2))"], "-->interval(0.1,0.2))<--: a bracket isn't closed, or is closed twice"),
    (["learning_rate=interval(0.1)"], "learning_rate=-->interval(0.1)<--"),
    (["learning_rate=intervall(0.1,0.2)"], "learning_rate=-->intervall<--(0.1,0.2): a range is choice("),
    (["lambda_base=choice(0,-1)"], "lambda_base=choice(0,-->-1<--): lambda_base >= 0 must hold"),
    (["epochs=choice(1.5,2)"], "epochs=choice(-->1.5<--,2): epochs must be a whole number"),
    (["learning_rate=choice(0.1,0.1)"], "learning_rate=-->choice(0.1,0.1)<--: names a value twice"),
    (["optimizer=interval(0,1)"], "optimizer=-->interval(0,1)<--"),
    *(([f"{key}=choice(1,2)"], f"{key} can't be a range") for key in ("seeds", "pair", "data", "out", "train_size")),
    # the notation: the place is marked
    (["methods=[kd(temperature=2]"], "recipe kd-->(<--temperature=2: this bracket isn't closed"),
    (["methods=[kd(temperature=2,rkd]"], "recipe kd(temperature=2,-->rkd<--: rkd needs a value"),
    (["methods=[kd),rkd]"], "recipe kd-->)<--"),
    (["methods=[kd(temperature=)]"], "recipe kd(temperature=-->)<--: temperature= needs a value"),
    (["methods=[kd@epochs=]"], "recipe kd@epochs=--><--: epochs= needs a value"),
    (["methods=[kd(temprature=2)]"], "recipe kd(-->temprature=2<--): unknown setting 'temprature' of kd"),
    (
        ["methods=[kd(learning_rate=2)]"],
        "recipe kd(-->learning_rate=2<--): learning_rate is a training setting: of a stage kd@",
    ),
    (["methods=[kd@temperature=2]"], "recipe kd@-->temperature=2<--: temperature is a setting of kd, "),
    (["methods=[rkd(temperature=2)]"], "recipe rkd(-->temperature=2<--): temperature is a setting of kd, "),
    (["methods=[kd(temperature=0)]"], "recipe kd(-->temperature=0<--): kd.temperature > 0 must hold"),
    (["methods=[kd@momentum=1]"], "recipe kd@-->momentum=1<--: 0 <= momentum < 1 must hold"),
    (["methods=[kd(weight=1,weight=2)]"], "recipe kd(weight=1,-->weight=2<--): kd.weight is set twice"),
    (["methods=[kd>rkd]"], "what one stage can be"),
    (["methods=[kd weighting=tcp]"], "what one stage can be"),
]
# of searches that can be read, and have no such recipe
SPACES: list[tuple[list[str], str]] = [
    (["space=weighting", "weighting=tcp"], "leave it out"),
    (["space=budget", "epochs=3"], "leave it out"),
    (["stage_9.epochs=3"], "stage_9.epochs= has no effect in any recipe of this search"),
    (["max_stages=1", "lambda_base=2"], "lambda_base= has no effect in any recipe of this search"),
    (["optimizer=adamw", "momentum=0.5"], "momentum= has no effect in any recipe of this search"),
    (["schedule=cosine", "milestones=[0.5]"], "milestones= has no effect in any recipe of this search"),
    (["warmup_epochs=50", "epochs=3"], "warmup_epochs < epochs must hold, but got warmup_epochs=50, epochs=3"),
    (["warmup_epochs=1"], "schedule=one_cycle climbs by itself"),
    (["nesterov=true", "momentum=0"], "momentum > 0 with nesterov must hold"),
    (["space=systems", "epochs_total=2"], "each stage needs at least 1 epoch, but got epochs_total=2 for 3 stages"),
    (["epochs_total=12", "split=[0.5,0.5]"], "split= needs a share for each of 3 stages, but got [0.5,0.5]"),
    (["epochs=range(1,9000)"], "this space has over 20000 points"),
]
# of one training
RECIPES: list[tuple[list[str], str]] = [
    (["recipe=kd(temperature=2>rkd"], "recipe kd-->(<--temperature=2>rkd: this bracket isn't closed"),
    (["recipe=kd>rkd)"], "recipe kd>rkd-->)<--: "),
    (["recipe=kd>>rkd"], "recipe kd>-->><--rkd: a method is expected"),
    (["recipe=kd>rkd@epoch=3"], "recipe kd>rkd@-->epoch=3<--: unknown setting 'epoch'"),
    (["recipe=kd>rkd wieghting=tcp"], "recipe kd>rkd -->wieghting=tcp<--: unknown setting 'wieghting'"),
    (["recipe=kd>rkd temperature=2"], "recipe kd>rkd -->temperature=2<--: temperature is a setting of kd, "),
    (["recipe=kd>rkd dkd.temperature=2"], "dkd, which isn't in the recipe kd>rkd"),
    (["recipe=kd>rkd", "dkd.temperature=2"], "dkd, which isn't in the recipe kd>rkd"),
    (["recipe=kd>rkd", "temperature=2"], "temperature is a setting of kd, "),
    (["recipe=kd>rkd", "stage_3.epochs=2"], "stage_3.epochs= is of stage 3, but the recipe kd>rkd has 2"),
    (["recipe=kd@epochs=3>rkd", "epochs_total=12"], "leave one out"),
    (["recipe=kd>rkd epochs=3 epochs_total=12"], "leave one out"),
    (["recipe=kd>rkd epochs_total=12 split=[1,2,3]"], "a share for each of 2 stages, but has 3"),
    (["recipe=kd>rkd", "split=[1,2]"], "split= divides epochs_total=, which is missing"),
    (["recipe=kd>rkd learning_rate=0.1 learning_rate=0.2"], "-->learning_rate=0.2<--: learning_rate is set twice"),
    (["recipe=kd>rkd", "learning_rate=interval(0.1,0.2)"], "learning_rate must be a number"),
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


@pytest.mark.parametrize(("words", "told"), SPACES, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("command", [run, plan], ids=["run", "plan"])
def test_searches_are_refused(
    score: Score,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: Any,
    words: list[str],
    told: str,
) -> None:
    monkeypatch.setattr(several.Search, "work", lambda self: pytest.fail("Ray would be started"))
    monkeypatch.setattr(several.Search, "check_inputs", lambda self: pytest.fail("too late: data would be loaded"))
    places = [f"out={tmp_path / 'run'}", f"store={tmp_path / 'store'}"]
    _refused(score, capsys, command.main, [*words, *places], told)


@pytest.mark.parametrize(("words", "told"), RECIPES, ids=lambda value: str(value)[:60])
def test_recipes_are_refused(
    score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    places = [f"out={tmp_path / 'student.safetensors'}", f"store={tmp_path / 'store'}"]
    _refused(score, capsys, train.main, [*words, *places], told)
    assert not list(tmp_path.iterdir())


def _refused(
    score: Score, capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], int], words: list[str], told: str
) -> None:
    """Exit 2, and one line that says this."""
    with score.fault():
        started = time.monotonic()
        assert main(words) == run.BAD_INPUT, words
        error = capsys.readouterr().err
        assert error.startswith("error: ") and told in error and len(error.splitlines()) == 1, error
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
        _refused(score, capsys, run.main, [*words, *store], told)


@pytest.mark.parametrize(
    "words",
    [
        *(["space=nowhere"], ["pair=[tiny,tony]"], ["box=[0,nan,1,2]"], ["out=/proc/run"]),
        *(["data=folder", "data_dir=/no"], ["temperature=2"], ["learning_rate=interval(0.2,0.1)"]),
        *(["methods=[kd(temperature=2]"], ["methods=[kd@epochs=3]", "epochs_total=6", "epochs="], ["stage_9.epochs=3"]),
    ],
    ids=str,
)
def test_the_command_ends_at_once(score: Score, tmp_path: Path, words: list[str]) -> None:
    _ends_at_once(score, tmp_path, *words)


def _ends_at_once(score: Score, tmp_path: Path, *words: str, checkout: Path = runs.ROOT) -> str:
    """A search that exits with 2 before anything of Ray's has started; what it said."""
    mark = tmp_path.name
    with score.fault():
        running = subprocess.Popen(
            runs.command(tmp_path / "run", tmp_path / "store", *words), cwd=checkout, env=runs.environment(mark),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
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
        assert running.returncode == 2 and told.startswith("error: ") and len(told.splitlines()) == 1, told
        assert not [command for command in seen.values() if "raylet" in command or "gcs_server" in command]
        score.no_orphans(mark)
    return told


# --- mistakes of those who add something

SPACE = """
def suggest(trial, menu):
    first = trial.suggest_categorical("first", menu.methods)
    much = trial.suggest_float("much", 0, 1{step})
    if first == "rkd" and much > 0.7:
        {line}
    return menu.recipe(first)
"""


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("return menu.recpie(first)", "'Menu' object has no attribute 'recpie'"),
        ("return menu.recipe('kd>rdk')", "recipe kd>-->rdk<--: unknown method 'rdk'"),
        ("return menu.recipe(first, lambda_bse=much)", "lambda_bse"),
        ("return menu.recipe(first, lambda_base=-much)", "lambda_base >= 0 must hold"),
        ("return menu.recipe('kd(temperature=-1)')", "kd.temperature > 0 must hold"),
        ("return menu.recipe('kd(temperature=2')", "recipe kd-->(<--temperature=2: this bracket isn't closed"),
        ("trial.suggest_int('few', 3, 1)", "`low <= high` must hold, but got (low=3, high=1)"),
        ("return None", "must return a Recipe, made by menu.recipe(...), but returned None"),
        ("return first", "must return a Recipe, made by menu.recipe(...), but returned 'rkd'"),
    ],
)
@pytest.mark.parametrize("step", ["", ", step=0.25"], ids=["infinite", "finite"])
def test_a_mistake_on_a_branch_of_a_space(
    score: Score,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    line: str,
    told: str,
) -> None:
    (tmp_path / "mine.py").write_text('"""A space of one\'s own."""\n' + SPACE.format(step=step, line=line))
    monkeypatch.setattr(spaces, "__path__", [*spaces.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "spaces.mine", raising=False)
    monkeypatch.setattr(several.Search, "work", lambda self: pytest.fail("Ray would be started"))
    words = ["space=mine", f"out={tmp_path / 'run'}", f"store={tmp_path / 'store'}"]
    with score.fault():
        assert run.main(words) == run.BAD_INPUT
        error = capsys.readouterr().err
        assert error.startswith("error: ") and told in error and len(error.splitlines()) == 1, error
        assert "mine.py" in error
        if not line.startswith(("return None", "return first")):  # no line of it is wrong
            assert "line 7" in error and str(tmp_path / "run" / "errors" / "space.txt") in error, error
            kept = (tmp_path / "run" / "errors" / "space.txt").read_text()
            assert "Traceback (most recent call last)" in kept and 'mine.py", line 7, in suggest' in kept


@pytest.mark.parametrize(
    ("file", "text", "words", "told"),
    [
        ("spaces/mine.py", SPACE.format(step="", line="return menu.recpie(first)"), ["space=mine"], "line 6"),
        ("spaces/mine.py", "def suggest(trial, menu)", ["space=mine"], "SyntaxError"),
        ("spaces/mine.py", "sugest = print", ["space=mine"], "must define suggest(trial, menu)"),
        ("smskd/methods/mine.py", "SETTINGS = (weigth(1.0),)", ["methods=[mine]"], "name 'weigth' is not defined"),
        ("smskd/methods/mine.py", "SETTINGS = weight(1.0)", ["methods=[mine]"], "must declare SETTINGS as a tuple"),
        ("smskd/pairs/mine.py", "PAIR = None", ["pair=mine"], "must say PAIR = Pair(name='mine', ...)"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_file_with_a_mistake(
    score: Score, checkout: Path, tmp_path: Path, file: str, text: str, words: list[str], told: str
) -> None:
    (checkout / file).write_text(text)
    said = _ends_at_once(score, tmp_path, *words, checkout=checkout)
    assert told in said and file in said


METHOD = '''"""A method of one's own."""

from smskd.methods.base import Method
from smskd.settings import weight

READS = frozenset({"logits"})
SETTINGS = (weight(1.0),)


class Mine(Method):
    def forward(self, student, teacher, batch):
        difference = student.output.logits - teacher.output.logts
        return {"mine": self.settings["weight"] * difference.float().square().mean()}


def build(task):
    return Mine(task.settings)
'''


@pytest.mark.slow
def test_a_mistake_in_a_method(score: Score, checkout: Path, tmp_path: Path) -> None:
    file = checkout / "smskd" / "methods" / "mine.py"
    out, store, mark = tmp_path / "run", tmp_path / "store", tmp_path.name
    command = runs.command(out, store, "methods=[kd,mine]", "max_stages=1")

    def search() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=checkout, env=runs.environment(mark), capture_output=True, text=True, timeout=240, check=False
        )

    file.write_text(METHOD)
    with score.fault():
        done = search()
        assert done.returncode == 3, done.stdout + done.stderr
        rows = pd.read_parquet(out / "results.parquet").query("phase == 'search'").set_index("methods")
        assert set(rows.loc["kd", "status"]) == {"complete"} and set(rows.loc["mine", "status"]) == {"failed"}
        place = "(methods/mine.py, line 12)"
        cause = f"stage 1 of 1: AttributeError: 'Output' object has no attribute 'logts' {place}"
        assert set(rows.loc["mine", "error"]) == {cause}
        assert cause in done.stdout, "by file and line on the terminal"
        kept = sorted((out / "errors").iterdir())
        assert len(kept) == 2, "a file for each training that failed"
        for seed, one in enumerate(kept):
            text = one.read_text()
            assert f", seed {seed}\n" in text and "Traceback (most recent call last)" in text
            assert f'File "{file}", line 12, in forward' in text and "teacher.output.logts" in text
            assert text.rstrip().endswith("AttributeError: 'Output' object has no attribute 'logts'")
        score.no_orphans(mark)
    before = runs.finished(store)
    file.write_text(METHOD.replace("logts", "logits"))
    with score.fault():
        started = time.monotonic()
        done = search()
        score.went_on(time.monotonic() - started)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not list((out / "errors").iterdir()), "it was mended"
        assert set(pd.read_parquet(out / "results.parquet")["status"]) == {"complete"}
        score.kept(before, store)
        score.no_orphans(mark)
