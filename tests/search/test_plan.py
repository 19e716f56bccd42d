"""What a plan says: counts against those of a run and by hand, times from made-up timings, and the command itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import spaces
from search import config, estimate, plan, plan_file
from search.estimate import Between, Kind, Rehearsal, Timing, Work
from smskd import notation
from smskd.bench import load_data
from smskd.experiment import Experiment
from smskd.job import of_student
from smskd.notation import parse
from smskd.numerics import FLOAT32
from smskd.store import address
from tests.runs import ROOT, SMALL, environment, marked


def run(module: str, *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *words], cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def timing(step: float, *, flops: float = 1.0, once: float = 0.0, size: int = 100, tables: str = "") -> Timing:
    return Timing(
        steps=(step,), setup=0.5, around=0.25, reused=0.125, size=size, flops=flops, flops_once=once,
        tables=frozenset(tables.split()),
    )  # fmt: skip


def rehearsal(kinds: dict[Kind, Timing], **changed: object) -> Rehearsal:
    settings: dict[str, object] = {
        "kinds": kinds, "teacher": timing(2.0, size=7), "prepare": 3.0, "share": 1.0, "test": 0.0625,
        "timed": 10, "images": 500, "validation": 100, "views": 1, "fills": {}, "held": {}, "teachers": frozenset({0}),
    }  # fmt: skip
    return Rehearsal(**settings | changed)  # type: ignore[arg-type]


def work(*recipes: str, words: tuple[str, ...] = ()) -> Work:
    """Of 10 steps an epoch, 2 epochs a stage."""
    settings = config.parse(["seeds=2", "confirm=3", *words])
    found = [settings.experiment.effective(notation.settled(parse(recipe), {"epochs": 2})) for recipe in recipes]
    return Work(config=settings, trials=found, finished=found)


DEFAULTS = Experiment().defaults
KD, RKD, ANCHORED = (estimate.kind(parse(recipe), DEFAULTS) for recipe in ("kd", "rkd", "kd>rkd"))
KINDS = {KD: timing(1.0, flops=1), RKD: timing(2.0, flops=2), ANCHORED: timing(4.0, flops=4)}


FINITE = [f"space={space}" for space in spaces.available() if space not in ("everything", "weights")]
UNEQUAL = ["stage_2.epochs=range(2,8,2)", "batch_size=choice(25,50,100)", "stage_1.learning_rate=choice(0.1,0.2)"]


@pytest.mark.parametrize("word", [*FINITE, *UNEQUAL])
def test_stages_are_counted_as_the_store_tells_them_apart(word: str) -> None:
    settings = config.parse([word, "methods=[kd,rkd]"])
    (only,) = estimate.courses(settings)
    recipes = only.finished
    assert len({recipe.id for recipe in recipes}) == len(recipes) > 1
    assert only.unshared == 3 * sum(recipe.path.count(">") + 1 for recipe in recipes)
    data = load_data(settings.experiment)
    keys: dict[str, str] = {}
    for recipe in recipes:
        parent = None
        for prefix, part in zip(recipe.prefixes(), only.parts[recipe.id], strict=True):
            assert part.unit == prefix.id and part.epochs == settings.epochs(prefix)[-1]
            teachers = [str(number) for number in range(prefix.teachers)]
            job = of_student(prefix, settings.experiment, FLOAT32, seed=0, parent=parent, teachers=teachers)
            parent = address(job.identity(data))  # a stage's weights, of which the digest is, hang on its key alone
            assert keys.setdefault(part.unit, parent) == parent
    assert len(set(keys.values())) == len(keys)
    found = rehearsal({part.kind: timing(1.0) for parts in only.parts.values() for part in parts})
    cost = estimate.search_cost(only, found, slots=2)
    assert cost.stage_runs == 3 * len(keys)


def test_few_recipes_have_all_kinds_of_stage() -> None:
    for space in spaces.available():
        settings = config.parse([f"space={space}"])
        works = estimate.courses(settings)
        wanted = {part.kind for one in works for parts in one.parts.values() for part in parts}
        chosen = estimate.to_rehearse(works)
        kinds = [estimate.kind(prefix, DEFAULTS) for recipe in chosen for prefix in recipe.prefixes()]
        assert set(kinds) == wanted and len(chosen) <= len(wanted)


def test_an_infinite_space_is_drawn_from_several_times_and_beginnings_count() -> None:
    works = estimate.courses(config.parse(["space=everything", "trials=12"]))
    assert len(works) > 1 and len({tuple(map(str, one.trials)) for one in works}) == len(works)
    for one in works:
        assert len({recipe.id for recipe in one.finished}) == len(one.finished) == 12
        assert {recipe.id for recipe in one.trials} <= {recipe.id for recipe in one.finished}
        assert all(any(r in t.prefixes() for t in one.trials) for r in one.finished)


def test_what_fewer_trials_of_a_finite_space_are_is_certain() -> None:
    (only,) = estimate.courses(config.parse(["trials=4"]))
    assert [len(recipe.stages) for recipe in only.trials] == [1, 1, 1, 2]
    assert len(estimate.courses(config.parse(["trials=4", "sampler=tpe"]))) > 1


def test_a_course_costs_each_stage_once_and_each_reuse_a_little() -> None:
    found = rehearsal(KINDS)
    cost = estimate.search_cost(work("kd", "kd>rkd"), found, slots=2)
    # 2 seeds of kd, then of rkd after it: 0.5 + 2 epochs of 10 steps of 1 or 4 seconds
    assert cost.device.mid == pytest.approx(2 * (20.5 + 80.5))
    assert cost.stage_runs == 4
    trial = estimate.TRIAL_S
    assert cost.jobs == pytest.approx([20.75 + trial] * 2 + [0.125 + 80.75 + trial] * 2)
    assert cost.once == pytest.approx(3.0)
    assert cost.device.low < cost.device.mid < cost.device.high


def test_what_is_there_is_left_out_of_what_is_left() -> None:
    both = work("kd", "kd>rkd")
    kd, _ = both.trials
    some = estimate.search_cost(both, rehearsal(KINDS), slots=2, held={kd.id: 1})
    assert some.stage_runs == 3 and some.device.mid == pytest.approx(20.5 + 2 * 80.5)
    known = estimate.search_cost(both, rehearsal(KINDS), slots=2, known={kd.id})
    assert len(known.jobs) == 2 and known.stage_runs == 4
    everything = frozenset(recipe.id for recipe in both.trials)
    none = estimate.search_cost(both, rehearsal(KINDS), slots=2, known=everything)
    assert none.stage_runs == 0 and estimate.wall([none], 2) == 0


def test_teachers_that_are_missing_are_trained_first_and_a_table_is_filled_once() -> None:
    one = work("kd", words=("teacher_epochs=3",))
    cost = estimate.search_cost(one, rehearsal(KINDS, teachers=frozenset()), slots=2)
    assert cost.once == pytest.approx(3.0 + 0.5 + 3 * 10 * 2.0 + 0.25)
    kinds = {KD: timing(1.0, tables="ends")}
    filled = estimate.search_cost(one, rehearsal(kinds, fills={"ends": 0.01}, views=1), slots=2)
    assert filled.device.mid == pytest.approx(2 * 20.5 + 2 * 500 * 0.01)  # each of two processes asks for all


def test_the_largest_front_has_one_recipe_of_each_cost_and_the_baseline() -> None:
    every = work(*(f"{path} anchor=none" for path in ("kd", "rkd", "kd>kd", "rkd>kd", "kd>rkd")))
    # kd 1, rkd 2 and kd>kd 2, the last two 3
    assert [recipe.path for recipe in estimate.confirmable(every, rehearsal(KINDS))] == ["kd", "kd>kd", "kd>rkd"]
    cost = estimate.confirm_cost(every, rehearsal(KINDS), slots=2)
    assert (
        cost.recipes == 3 and len(cost.jobs) == 9 and cost.jobs[0] == pytest.approx(20.75 + 0.0625 + estimate.TRIAL_S)
    )


def test_a_confirmation_on_more_images_has_a_teacher_of_its_own(tmp_path: Path) -> None:
    word = "train_on=all"
    both = work("kd", "kd>kd anchor=none", words=(word, "teacher_epochs=3"))
    plain = estimate.confirm_cost(work("kd", "kd>kd anchor=none"), rehearsal(KINDS), slots=2)
    cost = estimate.confirm_cost(both, rehearsal(KINDS), slots=2)
    # 600 images in place of 500: 12 steps an epoch in place of 10
    assert (cost.recipes, cost.stage_runs) == (plain.recipes, plain.stage_runs) == (2, 6)
    assert plain.device.mid == pytest.approx(6 * 20.5) and cost.device.mid == pytest.approx(6 * 24.5)
    assert plain.once == 3.0 and cost.once == pytest.approx(3.0 + 0.5 + 3 * 12 * 2.0 + 0.25)
    assert cost.disk == plain.disk + 7
    weights = tmp_path / "teacher.safetensors"
    weights.touch()
    given = estimate.confirm_cost(work("kd", words=(word, f"teacher={weights}")), rehearsal(KINDS), slots=2)
    assert given.once == 3.0, "a teacher from a file is the same in both phases"


def test_a_front_tells_stages_of_unequal_length_apart_by_what_they_cost() -> None:
    tells = rehearsal(KINDS | {ANCHORED: timing(4.0, flops=4, once=8)})
    # of two stages the first is 1 + 2 * 4 + 8, the others are 21
    paths = ("kd@epochs=1>rkd", "kd@epochs=1>rkd@epochs=3", "kd@epochs=9>rkd@epochs=1", "kd@epochs=5>rkd")
    unequal = work("kd", *paths)
    found = estimate.confirmable(unequal, tells)
    assert [recipe.id for recipe in found[:2]] == [unequal.trials[k].id for k in (0, 1)] and len(found) == 3


def test_of_costs_that_all_share_one_recipe_is_confirmed_beside_the_baseline() -> None:
    one = work("kd", "kd>rkd", words=("cost=params",))
    assert [recipe.path for recipe in estimate.confirmable(one, rehearsal(KINDS))] == ["kd", "kd>rkd"]


def test_stages_cost_what_their_own_epochs_and_batches_take() -> None:
    larger = {KD._replace(batch_size=100): timing(8.0)}
    some = work("kd@epochs=4>rkd@epochs=1", "kd@epochs=4>rkd@epochs=3", "kd@batch_size=100,epochs=3")
    cost = estimate.search_cost(some, rehearsal(KINDS | larger), slots=2)
    # of each seed: kd once, rkd twice, kd in half as many steps
    assert cost.stage_runs == 2 * 4
    assert cost.device.mid == pytest.approx(2 * (4 * 0.5 + 4 * 10 * 1.0 + (1 + 3) * 10 * 4.0 + 3 * 5 * 8.0))


def test_what_only_scales_a_loss_or_a_rate_makes_no_kinds_and_what_is_computed_does() -> None:

    def kinds(*words: str) -> set[Kind]:
        works = estimate.courses(config.parse([*words, "trials=12", "methods=[kd,fitnets]"]))
        return {part.kind for one in works for parts in one.parts.values() for part in parts}

    alone = len(kinds("max_stages=1"))
    assert alone == 2
    for searched in ("learning_rate=tag(log,interval(0.02,0.6))", "kd.temperature=interval(1,9)", "epochs=range(2,8)"):
        assert len(kinds("max_stages=1", searched)) == alone, searched
    assert len(kinds("max_stages=1", "batch_size=choice(25,50,100)")) == 3 * alone
    assert len(kinds("max_stages=1", "optimizer=choice(sgd,adamw)")) == 2 * alone
    first, other = (estimate.kind(parse(f"fitnets(layer={layer})"), DEFAULTS) for layer in (0, -1))
    assert first != other
    assert estimate.kind(parse("kd@clip_norm=1"), DEFAULTS) != KD


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_makespan_is_that_of_a_simulated_queue(slots: int) -> None:
    jobs = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]
    ends = [0.0] * slots
    for job in jobs:
        first = min(range(slots), key=ends.__getitem__)
        ends[first] += job
    assert estimate.makespan(jobs, slots) == max(ends)


def test_pairs_take_turns() -> None:
    costs = [
        estimate.Cost(recipes=1, stage_runs=1, device=Between(0, 0, 0), jobs=jobs, once=once, disk=0)
        for jobs, once in (([10.0, 10.0], 4.0), ([1.0, 1.0], 2.0))
    ]
    expected = estimate.WORKERS_START_S + (4.0 + 2.0) / 2 + estimate.makespan([10, 1, 10, 1], 2)
    assert estimate.wall(costs, 2) == pytest.approx(expected)


def test_smallest_differences_are_those_of_the_protocol() -> None:
    # 60 recipes, standard deviation 0.2 points: 0.46 with 3 seeds, 0.36 with 5, 0.25 with 10
    assert [round(estimate.detectable(0.2, 60, n) or 0, 2) for n in (3, 5, 10)] == [0.46, 0.36, 0.25]
    assert estimate.detectable(0.2, 60, 1) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a small search was planned, and then run."""
    place = tmp_path_factory.mktemp("plan")
    words = [*SMALL, "out=run", "store=store"]
    planned = run("search.plan", *words, cwd=place)
    assert planned.returncode == 0, planned.stderr
    (place / "planned").write_text(planned.stdout)
    (place / "left").write_text(json.dumps(sorted(str(p.relative_to(place)) for p in place.rglob("*"))))
    done = run("search.run", *words, cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    (place / "done").write_text(done.stdout)
    return place


def test_a_plan_leaves_its_estimate_and_nothing_else(folder: Path) -> None:
    left = set(json.loads((folder / "left").read_text()))
    assert left == {"planned", "run", "run/plan.json"}


def test_a_plan_says_what_the_run_then_does(folder: Path) -> None:
    said = (folder / "planned").read_text()
    info = json.loads((folder / "run" / "run.json").read_text())
    row = next(line for line in said.splitlines() if line.startswith("cifar/tiny_teacher → cifar/tiny_student"))
    assert re.split(r" {2,}", row)[1:5] == ["4", "2", "12", "8 (−33 %)"]  # noqa: RUF001
    assert (info["recipes"], info["stage_runs_unshared"], info["stage_runs"]) == (4, 12, 8)
    assert "\x1b" not in said and "Nothing was started. Run: python -m search.run 'methods=[kd,rkd]'" in said
    assert "The teacher isn't in the store: training adds" in said
    members = {recipe for recipe in info["front"]}
    at_most = int(re.search(r"Confirmation adds at most (\d+) recipes", said)[1])  # type: ignore[index]
    assert len(members) <= at_most <= 4


def test_the_run_compares_what_it_spent_with_the_plan(folder: Path) -> None:
    info = json.loads((folder / "run" / "run.json").read_text())
    left = plan_file.read(folder / "run")
    assert left is not None and info["plan"] == left | {"spent_device_seconds": info["plan"]["spent_device_seconds"]}
    assert left["stage_runs"] == left["stage_runs_left"] == 8
    assert "the plan said" in (folder / "done").read_text()
    low, mid, high = left["device_seconds"]
    assert 0 < low <= mid <= high and left["seconds"] > left["search_seconds"] > 0


@pytest.mark.slow
def test_what_the_store_has_is_not_planned_again(folder: Path) -> None:
    again = run("search.plan", *SMALL, "out=other", "store=store", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert "8 of the 8 stage runs are there already; none is left to train." in again.stdout
    assert "isn't in the store" not in again.stdout
    # the standard deviation comes from the run beside it
    assert re.search(r"standard deviation [\d.]+ points, from run\)", again.stdout)
    more = run("search.plan", *SMALL[:3], "seeds=3", *SMALL[4:], "out=third", "store=store", cwd=folder)
    assert "8 of the 12 stage runs are there already; 4 are left" in more.stdout


def test_another_search_in_the_folder_is_refused_as_the_run_does(folder: Path) -> None:
    refused = run("search.plan", *SMALL, "cost=params", "out=run", "store=store", cwd=folder)
    assert refused.returncode == 2 and "another search" in refused.stderr


@pytest.mark.slow
def test_several_pairs_have_a_row_each_and_a_total(tmp_path: Path) -> None:
    words = ["pair=[tiny,resnet56_resnet20]", "max_stages=1", *SMALL, "out=run", "store=store"]
    done = run("search.plan", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, recipes, stages in (
        ("cifar/tiny_teacher → cifar/tiny_student", 2, 4), ("cifar/resnet56 → cifar/resnet20", 2, 4), ("total", 4, 8),
    ):  # fmt: skip
        row = next(line for line in done.stdout.splitlines() if line.startswith(name))
        cells = re.split(r" {2,}", row)
        assert (int(cells[1]), int(cells[3])) == (recipes, stages)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"tiny", "resnet56_resnet20"}


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["space=budget", "max_stages=2", "methods=[kd,rkd]", "epochs_total=16"]])
def test_the_estimate_is_near_what_the_run_spends(words: list[str], tmp_path: Path) -> None:
    """Loosely, since other work may start or end in between; LOG.md has the ratios of an idle machine."""
    words = [*words, "out=run", "store=store", "confirm=0"]
    assert run("search.plan", *words, cwd=tmp_path).returncode == 0
    assert run("search.run", *words, cwd=tmp_path).returncode == 0
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    said = info["plan"]
    assert said["stage_runs"] == info["stage_runs"]
    assert said["device_seconds"][1] / 2 < said["spent_device_seconds"] < said["device_seconds"][1] * 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["space=stage_ordr"], "stage_order"),
        (["seedz=3"], "unknown key 'seedz'"),
        (["cpus=1000"], "cpus <="),
        (["teacher_model=resnet18", "student_model=resnet18"], "choose another pair"),
        (["teacher=nowhere.pt"], "there is no such file"),
        (["data=folder", "data_dir=nowhere"], "nowhere"),
        (["space=everything", "sampler=exhaustive"], "needs a finite space"),
        (["train_size=3"], "train_size must be from 10"),
    ],
)
def test_bad_input_exits_2_and_leaves_nothing(words: list[str], said: str, tmp_path: Path) -> None:
    done = run("search.plan", *words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_plan_exits_130_and_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    mark = f"{tmp_path.name}-{os.getpid()}"
    running = subprocess.Popen(
        [sys.executable, "-m", "search.plan"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(mark, PYTHONPATH=str(ROOT)), start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".smskd-plan-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)  # as Ctrl-C does
    told, errors = running.communicate(timeout=60)
    assert running.returncode == 130 and "interrupted" in told and errors == ""
    assert list(tmp_path.iterdir()) == []
    assert marked(mark) == {}


def test_a_process_that_dies_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def dies(settings: object) -> None:
        raise RuntimeError("a process that timed steps ended with exit code -9")

    monkeypatch.setattr(plan, "_plan", dies)
    assert plan.main([]) == 4
    assert "ended with exit code -9" in capsys.readouterr().err


def test_imports_are_light() -> None:
    heavy = {"torch", "ray", "optuna", "pandas", "scipy"}
    code = f"import sys, search.plan; print(sorted({heavy!r} & set(sys.modules)))"
    assert run("search.plan", "--help").returncode == 0
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_counts_and_times_are_readable() -> None:
    assert plan._between(Between(17, 21, 26)) == "21 s [17, 26]"
    assert plan._between(Between(49 * 3600, 61 * 3600, 74 * 3600), ranges=False) == "61 h"
    assert plan._count(Between(1010, 1234, 1500)) == "1,234 [1,010, 1,500]"
