"""`python -m search.plan key=value ...`: what a search would train, how long that takes, what it could tell. No Ray.

Takes the words of search.run. The time is estimated from steps timed here (search.rehearsal); nothing of the search is
started. What was estimated is left in the run's folder, so that the run can say how far off it was.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from statistics import fmean
from typing import Any

from rich import filesize
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from search import config as configs
from search import estimate, plan_file, storages
from search.config import Config, cores
from search.estimate import BUSY_SHARE, Between, Cost, Rehearsal, Work
from smskd import code, store

DONE, BAD_INPUT, NOTHING, INTERRUPTED = 0, 2, 4, 130
# In points: of one training over its seed, where no run tells it.
_ASSUMED_SD = 0.2
_POWER_AT = (5, 10)
# Trials side by side of which the timed steps can't tell more.
_MOST_PROCESSES = 8
_PLAIN_WIDTH = 120


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    # as wide as the terminal; wide enough for the table where there is none
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    if any(word in ("--help", "-h", "help") for word in argv):
        console.print(
            "What a search would train, how long that would take, and what it could tell. Nothing is started.\n\n"
            "  python -m search.plan space=stage_order pair=tiny data=digits\n\n"
            "Takes the words of search.run, which python -m search.run --help lists.\n\n"
            "exit codes: 0 done; 2 bad input; 4 the timed steps failed; 130 interrupted",
            markup=False,
        )
        return DONE
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        pairs = configs.parse_pairs(argv)
        _report(console, [_plan(config) for config in pairs], argv)
        return DONE
    except KeyboardInterrupt:
        console.print("interrupted; nothing was started, and nothing is left")
        return INTERRUPTED
    except (ValueError, OSError) as error:
        return _complain(error, BAD_INPUT)
    except RuntimeError as error:
        return _complain(error, NOTHING)


@dataclass(frozen=True, kw_only=True)
class Course:
    """What one course of a search would take.

    whole, left: of the search's phase, all of it, and without what is there already. confirm: of the confirmation, at
    most.
    """

    work: Work
    whole: Cost
    left: Cost
    confirm: Cost


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was found of one pair.

    courses: those that its search may take. slots: trials side by side; processes: how many timed the steps.
    sd: in points, of the run `sd_from`, or assumed.
    """

    config: Config
    courses: Sequence[Course]
    found: Rehearsal
    slots: int
    processes: int
    sd: float
    sd_from: str | None


def _plan(config: Config) -> Plan:
    """Count, and time the steps.

    Raises:
        ValueError: a setting, data or teacher doesn't fit; as search.run.
        RuntimeError: a timing process died.
    """
    config.check_built_in()
    gpus = _gpus(config)
    config.check_resources(cores=cores(), gpus=gpus)
    each = min(1.0, gpus) if config.gpus is None else config.gpus
    slots = max(1, int(min(cores() / (config.cpus or 1.0), gpus / each if each else math.inf)))
    processes = min(_MOST_PROCESSES, max(1, int(1 / each)) if each else slots, slots)
    known = _known(config)
    works = estimate.courses(config)
    looked_up = works[0].trials if len(works) == 1 else ()
    with tempfile.TemporaryDirectory(prefix=".smskd-plan-", dir=_existing(store.folder(config.store))) as scratch:
        what = config, "cuda" if each else "cpu", estimate.to_rehearse(works), looked_up
        found = estimate.together(_rehearse(what, processes, Path(scratch)))
    courses = [
        Course(
            work=work,
            whole=estimate.search_cost(work, found, slots=slots),
            left=estimate.search_cost(work, found, slots=slots, known=known, held=found.held),
            confirm=estimate.confirm_cost(work, found, slots=slots),
        )
        for work in works
    ]
    sd, sd_from = _pilot(config)
    return Plan(config=config, courses=courses, found=found, slots=slots, processes=processes, sd=sd, sd_from=sd_from)


def _gpus(config: Config) -> int:
    """How many there are; torch, which takes seconds to import, is asked only where there may be any."""
    if not (config.gpus or Path("/dev/nvidiactl").exists()):
        return 0
    import torch

    return torch.cuda.device_count()


def _known(config: Config) -> frozenset[str]:
    """Ids of the recipes that the run's study has finished. The study is read alone: a search may be at work in it.

    Raises:
        ValueError: the study is of another search, as search.run says.
    """
    if config.storage is None and not (config.folder / "study.db").is_file():
        return frozenset()
    from search import study_file  # Optuna takes half a second to import

    return study_file.finished(storages.url(config.storage, config.folder), config.identity)


def _pilot(config: Config) -> tuple[float, str | None]:
    """Standard deviation of a training over its seed, in points, and the folder of the run that tells it.

    That is this run, or else the latest beside it of the same pair and data.
    """
    from reports import results
    from reports.statistics import pooled_sd

    beside = sorted(config.folder.parent.glob("*/results.parquet"), key=lambda file: -file.stat().st_mtime)
    for folder in (config.folder, *(file.parent for file in beside)):
        try:
            table = results.read(folder)
        except (ValueError, OSError):
            continue
        same = (table["pair"] == config.pair) & (table["data"] == config.experiment.data) & (table["phase"] == "search")
        rows = table[same & table["val_accuracy"].notna()]
        spread = pooled_sd(values.tolist() for _, values in rows.groupby("recipe_id")["val_accuracy"])
        if spread.sd:
            return 100 * spread.sd, os.path.relpath(folder)
    return _ASSUMED_SD, None


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there and can be written to; else the system's for such files."""
    near = next(path for path in (folder, *folder.parents) if path.is_dir())
    return near if os.access(near, os.W_OK) else Path(tempfile.gettempdir())


def _rehearse(what: tuple[Any, ...], processes: int, scratch: Path) -> list[Rehearsal]:
    """What processes side by side find, since trials side by side slow each other down. what: for `rehearse`.

    Raises:
        ValueError: what is wrong with data or teacher.
        RuntimeError: a process died.
    """
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="1")
    resource_tracker.ensure_running()  # which would end the blocking below
    # an interruption is ours to tell, and waits until they have started: they inherit what is blocked
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, spawned, code.install, (code.bundle(),)) as pool:
            try:
                started = [pool.submit(_answer, *what, scratch / str(number)) for number in range(processes)]
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
                return [one.result() for one in started]
            except BaseException:
                for process in multiprocessing.active_children():
                    process.kill()
                raise
    except BrokenProcessPool:
        raise RuntimeError("a process that timed steps was killed, or ran out of memory") from None


def _answer(*what: Any) -> Rehearsal:
    """In a process of its own. What it raises can be told to another."""
    from search import rehearsal  # imports torch

    try:
        return rehearsal.rehearse(*what)
    except (ValueError, OSError) as error:
        raise ValueError(str(error)) from None
    except Exception as error:
        raise RuntimeError(f"the timed steps failed: {type(error).__name__}: {error}") from None


def _report(console: Console, plans: Sequence[Plan], argv: Sequence[str]) -> None:
    """Print it, and leave in each run's folder what it is compared with."""
    from reports.text import duration
    from search.progress import fitted

    first, many = plans[0], len(plans) > 1
    pairs = [plan.config.networks for plan in plans]
    parts = [[plan] for plan in plans] + ([list(plans)] if many else [])
    titles = [f"{pair.teacher.name} → {pair.student.name}" for pair in pairs] + ["total"]
    slots = f"wall,\n{first.slots} at once"
    names = ["pair", "recipes", "seeds", "stage\nruns", "after\nsharing", "device\ntime", slots, "disk"]
    for ranges in (True, False):  # without them where a terminal is narrow
        rows = [[title, *_row(some, ranges=ranges)] for title, some in zip(titles, parts, strict=False)]
        table = fitted(names, rows, console.width, left=(0,), flexible=(0,))
        if sum(column.width or 0 for column in table.columns) + 2 * (len(names) - 1) <= console.width:
            break
    if many:
        table.rows[-1].style = "bold"
    console.print()
    console.print(table)
    console.print()
    for plan in plans:
        for line in _notes(plan):
            _say(console, f"{plan.config.pair}: {line}" if many else line)
    half = " and half of the confirmation" if first.config.confirm and not first.config.comparison else ""
    wall = duration(_command_wall(plans))
    _say(console, f"The whole command, with what is left of the search{half}: ~{wall} of wall.")
    left = [os.path.relpath(_leave(plan, _command_wall(plans))) for plan in plans]
    _say(console, f"Kept for the run to compare with: {', '.join(left)}.")
    again = storages.hidden(shlex.join(["python", "-m", "search.run", *argv]))
    console.print(Text("  Nothing was started. Run: ").append(again, style="bold"), soft_wrap=True)


def _row(plans: Sequence[Plan], *, ranges: bool) -> tuple[str, ...]:
    """Of a pair, or of all."""
    from reports.text import MINUS, duration

    unshared = _sum(plans, lambda course: course.work.unshared)
    shared = _sum(plans, lambda course: course.whole.stage_runs)
    return (
        _count(_sum(plans, lambda course: len(course.work.finished)), ranges),
        str(plans[0].config.seeds),
        _count(unshared, ranges),
        f"{_count(shared, ranges)} ({MINUS}{round(100 * (1 - shared.mid / unshared.mid))} %)",
        _between(_sum(plans, lambda course: course.whole.device), ranges),
        f"~{duration(_search_wall(plans, lambda course: course.whole))}",
        filesize.decimal(round(_sum(plans, lambda course: course.whole.disk).mid)),
    )


def _notes(plan: Plan) -> list[str]:
    """What is to be said of a pair beside its row."""
    from reports.text import TIMES, duration, number, plural

    config, found = plan.config, plan.found
    kinds, timed = len(found.kinds), min(len(timing.steps) for timing in found.kinds.values()) * found.timed
    side = f"in {plan.processes} processes side by side" if plan.processes > 1 else "in one process"
    lines = [
        f"Estimate: {plural(timed, 'timed step')} or more of each of {plural(kinds, 'kind')} of stage, {side}, now."
    ]
    if found.share < BUSY_SHARE:
        busy = f"they had {round(100 * found.share)} % of a core each, so that an idle machine is quicker"
        lines.append(f"Other work went on while the steps were timed: {busy}.")
    if len(plan.courses) > 1:
        drawn = f"Means over {len(plan.courses)} random draws of the space, from the lowest to the highest"
        lines.append(f"{drawn}; a sampler that learns may choose longer recipes.")
    asked = max(recipe.teachers for course in plan.courses for recipe in course.work.trials)
    if missing := len(set(range(asked)) - found.teachers):
        which = "The teacher isn't" if missing == 1 else f"{missing} teachers aren't"
        epochs = plural(config.experiment.teacher_training.epochs, "epoch")
        seconds = duration(estimate.teacher_seconds(config, found, asked))
        lines.append(f"{which} in the store: training adds ~{seconds}, of {epochs} each.")
    whole, left = plan.courses[0].whole, plan.courses[0].left
    if held := whole.stage_runs - left.stage_runs:
        wall = duration(_search_wall([plan], lambda course: course.left))
        rest = f"{left.stage_runs:,} are left, {_between(left.device)}, ~{wall} of wall"
        lines.append(
            f"{held:,} of the {whole.stage_runs:,} stage runs are there already; "
            + (f"{rest}." if left.stage_runs else "none is left to train.")
        )
    if config.confirm:
        members = _count(_sum([plan], lambda course: course.confirm.recipes))
        device = _sum([plan], lambda course: course.confirm.device)
        on_more = ", on validation images, too, with a teacher of its own" if config.train_on == "all" else ""
        at_most, recipes = "" if config.comparison else " at most", "recipe" if members == "1" else "recipes"
        lines.append(
            f"Confirmation adds{at_most} {members} {recipes} {TIMES} {plural(config.confirm, 'fresh seed')}{on_more}: "
            f"{duration(device.mid)}, ~{duration(_wall([plan], lambda course: course.confirm))} of wall."
        )
    pooled = round(_sum([plan], lambda course: len(course.work.finished)).mid)
    seen = {n: estimate.detectable(plan.sd, pooled, n) for n in dict.fromkeys((config.seeds, *_POWER_AT))}
    said = f"standard deviation {number(plan.sd)} points, " + (f"from {plan.sd_from}" if plan.sd_from else "assumed")
    shown = [f"{plural(n, 'seed')}: {'unknown' if value is None else f'{value:.2f}'}" for n, value in seen.items()]
    lines.append(f"Smallest difference of two recipes seen with 80 % power, in points: {', '.join(shown)} ({said}).")
    return lines


def _sum(plans: Sequence[Plan], of: Callable[[Course], float | Between]) -> Between:
    """Of all pairs, from the lowest course of each to the highest."""
    return Between.total(Between.over(of(course) for course in plan.courses) for plan in plans)


def _wall(plans: Sequence[Plan], phase: Callable[[Course], Cost]) -> float:
    """Of a phase of all pairs, the mean over their courses."""
    draws = range(max(len(plan.courses) for plan in plans))
    phases = [[phase(plan.courses[k % len(plan.courses)]) for plan in plans] for k in draws]
    return fmean(estimate.wall(costs, plans[0].slots) for costs in phases)


def _search_wall(plans: Sequence[Plan], phase: Callable[[Course], Cost]) -> float:
    seconds = _wall(plans, phase)
    return seconds + estimate.RAY_START_S + estimate.FILES_S if seconds else 0.0


def _command_wall(plans: Sequence[Plan]) -> float:
    whole = 1.0 if plans[0].config.comparison else 0.5
    return _search_wall(plans, lambda course: course.left) + whole * _wall(plans, lambda course: course.confirm)


def _leave(plan: Plan, seconds: float) -> Path:
    """Write the estimate into the run's folder. seconds: of the whole command, of all pairs together."""
    said: dict[str, Any] = {
        "recipes": _sum([plan], lambda course: len(course.work.finished)).mid,
        "stage_runs": _sum([plan], lambda course: course.whole.stage_runs).mid,
        "stage_runs_left": _sum([plan], lambda course: course.left.stage_runs).mid,
        "device_seconds": _sum([plan], lambda course: course.whole.device),
        "device_seconds_left": _sum([plan], lambda course: course.left.device),
        "search_seconds": _search_wall([plan], lambda course: course.whole),
        "confirm_device_seconds": _sum([plan], lambda course: course.confirm.device),
        "seconds": seconds,
    }
    return plan_file.write(plan.config.folder, said)


def _say(console: Console, line: str) -> None:
    """A line, indented; broken where a terminal ends, and nowhere else."""
    if console.is_terminal:
        console.print(Padding(Text(line), (0, 0, 0, 2)))
    else:
        console.print(Text(f"  {line}"), soft_wrap=True)


def _count(value: Between, ranges: bool = True) -> str:
    low, mid, high = (f"{one:,.0f}" for one in value)
    return f"{mid} [{low}, {high}]" if ranges and low != high else mid


def _between(seconds: Between, ranges: bool = True) -> str:
    """Seconds with their range, in one unit."""
    divisor, unit = (1, "s") if seconds.mid < 120 else (60, "min") if seconds.mid < 7200 else (3600, "h")
    low, mid, high = (
        f"{value / divisor:.2g}" if value < 100 * divisor else f"{value / divisor:,.0f}" for value in seconds
    )
    return f"{mid} {unit}" + (f" [{low}, {high}]" if ranges else "")


def _complain(error: Exception, code: int) -> int:
    text = storages.hidden(" ".join(str(error).split()))
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {text}", markup=False, style="red")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
