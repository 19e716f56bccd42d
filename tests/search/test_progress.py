"""The terminal: what it shows at every width, that it stays cheap, and what stands where there is no terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from search import progress
from search.jobs import Job
from search.progress import FrontLine, Phase, Progress, Standing, brief, fitted, shortened
from smskd.notation import parse
from smskd.result import Result, StageResult

LONG = "kd+fitnets>fitnets+rkd>rkd+at>kd+fitnets+rkd lambda_base=0.25 weighting=tcp_true"


def standing(recipes: int, volume: float | None, pair: str = "tiny") -> Standing:
    names = ("fitnets", "kd", LONG)
    front = [
        FrontLine(
            letter="ABC"[k], recipe=brief(parse(name)), val_accuracy=0.9 + k / 100, val_half_width=0.0134,
            cost="33.1 GFLOP", seeds="3/3",
        )
        for k, name in enumerate(names)
    ]  # fmt: skip
    return Standing(pair=pair, recipes=recipes, front=front, hypervolume=volume)


class Shown:
    """A Progress on a console of some width, told of a made-up search."""

    def __init__(self, width: int, *, terminal: bool = True, pairs: int = 1, height: int = 40, **changed: Any) -> None:
        self.file = io.StringIO()
        self.console = Console(
            file=self.file, width=width, height=height, force_terminal=terminal, highlight=False, color_system=None,
            soft_wrap=not terminal,
        )  # fmt: skip
        self.now, self.looks, self.recipes = 0.0, 0, 4
        named = ["tiny", "wrn40_2_shufflenetv2", "resnet56_resnet20"][:pairs]
        settings: dict[str, Any] = {
            "title": "search · tiny_teacher → tiny_student on digits", "counted": "recipes",
            "counts": lambda: (self.recipes, 15), "remaining": lambda: 31, "standings": self.stand,
            "estimate": (90.0, 10.0), "again": "python -m search.run 'methods=[kd,rkd]'",
            "causes": {pair: Path(f"runs/{pair}/results.csv") for pair in named},
        }  # fmt: skip
        self.pairs = named
        self.progress = Progress(self.console, Phase(**settings | changed))

    def stand(self) -> list[Standing]:
        self.looks += 1
        return [standing(self.recipes, 0.8 + self.recipes / 1000, pair) for pair in self.pairs]

    def start(self) -> None:
        for k, recipe in enumerate((LONG, "kd>rkd")):
            job = Job(pair=self.pairs[-1], recipe=recipe, seed=100_000 + k, test=False)
            self.progress.trial_started(str(k), job, [12] * (recipe.count(">") + 1))
        said = {"stage": 2, "epoch": 3, "epochs": 12, "val_accuracy": 0.9123, "reused": 1}
        self.progress.trial_reported("0", said)

    def end(self, recipe: str = "kd>rkd", *, status: str = "complete", trained: int = 1, stages: int = 2) -> None:
        error = None if status == "complete" else "stage 2 of 2: Diverged: NaN"
        stage = StageResult(
            key="k", digest="d", val_accuracy=0.91, train_flops=1.0, device_seconds=4.0, losses=(), anchor_weights={},
            agreement_teacher=1.0, agreement_previous=None, stage_losses=(1.0,),
        )  # fmt: skip
        told = Result(recipe=recipe, seed=1, status=status, error=error, params=1, stages=(stage,) * stages)
        self.progress.ended(Job(pair=self.pairs[-1], recipe=recipe, seed=1, test=False), told, trained)

    def lines(self) -> list[str]:
        with self.console.capture() as captured:
            self.console.print(self.progress)
        return captured.get().splitlines()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("pairs", [1, 3])
@pytest.mark.parametrize("width", [80, 100, 140])
def test_nothing_is_wider_than_the_terminal_or_wraps(width: int, pairs: int, clock: list[float]) -> None:
    shown = Shown(width, pairs=pairs)
    shown.start()
    clock[0] += 20
    shown.end()
    lines = shown.lines()
    assert {cell_len(line) for line in lines} == {width}
    # frame, head, blank, trials with their header, blank, label, front with its header, blank, counts, frame
    assert len(lines) == 2 + 1 + 1 + 3 + 1 + 1 + 4 + 1 + 1
    head = lines[1]
    assert "4/15" in head and "14 s of ~1 min 30 s" in head and "left" in head
    assert "…" in "".join(lines[3:6]) or width == 140
    assert "1 done · 2 running · 0 failed · 29 waiting" in lines[-2]


def test_the_head_has_the_hypervolume_and_its_recent_gain(clock: list[float]) -> None:
    shown = Shown(140)
    for recipes in (2, 4, 15):
        shown.recipes = recipes
        shown.end()
        clock[0] += 30
    head = shown.lines()[1]
    assert "hypervolume 0.815 (+0.011 in the last 11)" in head
    narrow = Shown(80)
    narrow.end()
    assert "(" not in narrow.lines()[1] and "4/15" in narrow.lines()[1]


def test_a_running_trial_says_where_it_is_and_when_it_ends(clock: list[float]) -> None:
    shown = Shown(140)
    shown.start()
    clock[0] += 30
    shown.progress.trial_reported("0", {"stage": 2, "epoch": 9, "epochs": 12, "val_accuracy": 0.9123, "reused": 1})
    row = next(line for line in shown.lines() if "91.23" in line)
    # 6 epochs took 30 s; 3 of this stage and two stages of 12 are left
    for said in ("2/4", "9/12", "30 s", "2 min 15 s", "kd+fitnets re"):
        assert said in row
    assert "1/2 kd" in next(line for line in shown.lines() if "100001" in line)


def test_the_end_is_foreseen_for_stages_of_unequal_length(clock: list[float]) -> None:
    shown = Shown(140)
    shown.progress.trial_started("0", Job(pair="tiny", recipe="kd@epochs=2>rkd@epochs=30", seed=0, test=False), [2, 30])
    shown.progress.trial_reported("0", {"stage": 1, "epoch": 1, "epochs": 2, "val_accuracy": None, "reused": 0})
    clock[0] += 10
    shown.progress.trial_reported("0", {"stage": 2, "epoch": 4, "epochs": 30, "val_accuracy": 0.9, "reused": 0})
    # 5 epochs took 10 s, and 26 are left
    assert "52 s" in next(line for line in shown.lines() if "4/30" in line)


def test_a_teacher_that_is_trained_is_told(clock: list[float]) -> None:
    shown = Shown(100)
    shown.start()
    shown.progress.trial_reported("1", {"stage": 0, "epoch": 3, "epochs": 12, "val_accuracy": None, "reused": 0})
    row = next(line for line in shown.lines() if "its teacher" in line)
    assert "3/12" in row


def test_time_left_is_the_plans_or_else_that_of_the_trials(clock: list[float]) -> None:
    planned, other = Shown(140), Shown(140, estimate=None)
    for shown in (planned, other):
        assert "starting" in shown.lines()[1]
    clock[0] += 10
    for shown in (planned, other):
        shown.end(trained=2)
    # 8 s of training in 10 s; 90 s were planned, 10 of them there before: 72 are left, at that pace
    assert "18 s of ~1 min 30 s" in planned.lines()[1] and "1 min 30 s left" in planned.lines()[1]
    assert "8 s of training" in other.lines()[1] and "5 min 10 s left" in other.lines()[1]


def test_many_running_trials_fit_the_screen() -> None:
    shown = Shown(100, height=24)
    for k in range(64):
        shown.progress.trial_started(str(k), Job(pair="tiny", recipe="kd", seed=k, test=False), [12])
    lines = shown.lines()
    assert len(lines) <= 24 and any("more" in line for line in lines)


def test_the_front_is_summed_up_seldom(clock: list[float]) -> None:
    def slow() -> list[Standing]:
        clock[0] += 0.2
        return [standing(1, 0.5)]

    shown = Shown(100, standings=slow)
    began = clock[0]
    for _ in range(1000):
        clock[0] += 0.01
        shown.end()
    summed = clock[0] - began - 10
    assert (summed - 0.2) / (clock[0] - began) < 1 / progress._LOOK_SHARE  # the first is at once
    assert summed >= 0.2


def test_where_there_is_no_terminal_each_trial_is_one_plain_line() -> None:
    shown = Shown(80, terminal=False)
    with shown.progress:
        shown.start()
        shown.end()
        shown.end(LONG, stages=4, trained=4)
        shown.end(stages=1, trained=1)
        shown.end(status="failed", stages=0, trained=0)
    told = shown.file.getvalue()
    assert "\x1b" not in told and "\r" not in told
    first, second, third, fourth = told.splitlines()
    assert first == "[1/32] kd>rkd, seed 1: validation 91.00 %, 1 of 2 stages reused"
    assert second.startswith(f"[2/33] {LONG}, seed 1:") and cell_len(second) > 80
    assert third.endswith("given up after stage 1 of 2")
    assert fourth == "failed kd>rkd, seed 1: stage 2 of 2: Diverged: NaN"
    assert shown.looks == 0


def test_a_failure_says_where_its_cause_is_and_what_to_do() -> None:
    shown = Shown(100)
    with shown.progress:
        shown.end(status="failed", stages=0, trained=0)
    told = " ".join(shown.file.getvalue().split())
    assert "failed kd>rkd, seed 1: stage 2 of 2: Diverged: NaN" in told
    assert "runs/tiny/results.csv" in told and "python -m search.run 'methods=[kd,rkd]'" in told


def test_a_text_is_cut_with_an_ellipsis() -> None:
    assert shortened("kd→rkd", 6) == "kd→rkd"
    assert shortened("kd→rkd→at", 6) == "kd→rk…"
    assert cell_len(shortened("漢字漢字", 5)) <= 5
    table = fitted(["a", "b"], [["1234567890123456", "x" * 40]], 40, left=(0, 1), flexible=(1,))
    assert [column.width for column in table.columns] == [16, 22]


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("kd", "kd"),
        ("kd>rkd", "kd→rkd"),
        ("kd weighting=tcp lambda_base=1", "kd"),
        ("kd>rkd weighting=tcp lambda_base=0.25", "kd→rkd tcp λ0.25"),
        ("kd>rkd anchor=none", "kd→rkd no anchor"),
        ("kd>rkd anchor=ewc", "kd→rkd ewc"),
        ("kd+rkd teachers=2", "kd+rkd 2 teachers"),
        ("kd(temperature=2)@epochs=5>rkd", "kd(temperature=2)@epochs=5→rkd"),
    ],
)
def test_a_recipe_is_told_shortly(recipe: str, said: str) -> None:
    assert brief(parse(recipe).effective({})) == said


def outcome(**changed: Any) -> progress.Outcome:
    settings: dict[str, Any] = {
        "recipes": 15, "trained": 45, "unshared": 99, "shared": 45, "spent_seconds": 20.0, "saved_seconds": 25.0,
        "failed": 0, "planned": None, "seconds": 36.0, "again": "python -m search.run",
    }  # fmt: skip
    return progress.Outcome(**settings | changed)


def test_the_closing_says_what_sharing_saved_and_how_far_off_the_plan_was() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, soft_wrap=True, highlight=False)
    planned = {"device_seconds": [17, 25, 31], "stage_runs_left": 45, "seconds": 40.0, "trained": 45}
    progress._say_done(console, "15 recipes", outcome(planned=planned))
    done, plan = file.getvalue().splitlines()
    assert done.startswith("done   15 recipes, 45 stages trained now · 20 s of training in the search")
    assert "sharing saved 25 s, 54 of 99 stage runs" in done
    assert plan.strip() == (
        "the plan said 25 s of training, from 17 s to 31 s: 20 % less was spent; and ~40 s of wall, it took 36 s"
    )


def test_wall_is_not_compared_where_the_plan_was_of_another_invocation() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, soft_wrap=True, highlight=False)
    planned = {"device_seconds": [17, 25, 31], "stage_runs_left": 45, "seconds": 40.0, "trained": 3}
    progress._say_done(console, "15 recipes", outcome(planned=planned))
    assert "of wall" not in file.getvalue() and "the plan said" in file.getvalue()
