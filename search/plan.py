"""`python -m search.plan key=value ...`: what a search would train, how long that takes, what it could tell. No Ray.

Takes the words of search.run. The time is estimated from steps timed here (search.rehearsal); nothing of the search is
started. What was estimated is left in the run's folder, so that the run can say how far off it was.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from search import config as configs
from search import storages
from search.config import Config, cores
from smskd import store

if TYPE_CHECKING:
    from search.estimate import Between, Cost, Rehearsal, Task, Work

DONE, BAD_INPUT, NOTHING, INTERRUPTED = 0, 2, 4, 130
FILE = "plan.json"
_SCHEMA = 1
# In points: of one training over its seed, where no run tells it.
_ASSUMED_SD = 0.2
_POWER_AT = (5, 10)
# Trials side by side of which the timed steps can't tell more.
_MOST_PROCESSES = 8
_PLAIN_WIDTH = 120


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    console = _console()
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


def read(folder: Path) -> dict[str, Any] | None:
    """The plan that was left in a run's folder; None if there is none that can be read."""
    try:
        plan = json.loads((folder / FILE).read_bytes())
        return dict(plan) if plan["schema"] == _SCHEMA else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was found of one pair.

    works: the courses that its search may take. slots: trials side by side; processes: how many timed the steps.
    whole, left: of the search's phase, a cost for each course: all of it, and without what is there already.
    confirm: of each course, recipes at most, and their cost. sd: in points, of the run `sd_from`, or assumed.
    """

    config: Config
    works: Sequence[Work]
    found: Rehearsal
    slots: int
    processes: int
    gpu: bool
    whole: Sequence[Cost]
    left: Sequence[Cost]
    confirm: Sequence[tuple[int, Cost]]
    sd: float
    sd_from: str | None


def _plan(config: Config) -> Plan:
    """Count, and time the steps.

    Raises:
        ValueError: a setting, data or teacher doesn't fit; as search.run.
        RuntimeError: a timing process died.
    """
    from search import estimate

    config.check_built_in()
    gpus = _gpus(config)
    config.check_resources(cores=cores(), gpus=gpus)
    each = (min(1.0, gpus) if config.gpus is None else config.gpus) or 0.0
    slots = max(1, int(min(cores() / config.cpus, gpus / each if each else math.inf)))
    processes = min(_MOST_PROCESSES, max(1, int(1 / each)) if each else slots, slots)
    known = _known(config)
    works = estimate.courses(config)
    certain = works[0] if len(works) == 1 else None
    looked_up = (
        [(recipe, tuple(config.stage_epochs(len(recipe.stages)))) for recipe in certain.trials] if certain else []
    )
    task = estimate.Task(
        settings=config.pipeline | {"device": "cuda" if each else "cpu"},
        recipes=estimate.to_rehearse(works),
        looked_up=looked_up,
        seeds=config.search_seeds,
        scratch=_existing(store.folder(config.store)),
    )
    found = estimate.together(_rehearse(task, processes, threads=max(1, int(config.cpus))))
    sd, sd_from = _pilot(config)
    return Plan(
        config=config,
        works=works,
        found=found,
        slots=slots,
        processes=processes,
        gpu=bool(each),
        whole=[estimate.search_cost(work, found, slots=slots, known=known, left=False) for work in works],
        left=[estimate.search_cost(work, found, slots=slots, known=known, left=True) for work in works],
        confirm=[estimate.confirm_cost(work, found, slots=slots) for work in works],
        sd=sd,
        sd_from=sd_from,
    )


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
    from search import study

    storage, file = config.storage, config.folder / "study.db"
    if storage is None and not file.is_file():
        return frozenset()
    return study.finished(storages.url(storage, config.folder), config.identity)


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
        same = (table["pair"] == config.pair) & (table["data"] == config.data) & (table["phase"] == "search")
        rows = table[same & table["val_accuracy"].notna()]
        spread = pooled_sd(values.tolist() for _, values in rows.groupby("recipe_id")["val_accuracy"])
        if spread.sd:
            return 100 * spread.sd, os.path.relpath(folder)
    return _ASSUMED_SD, None


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there and can be written to; else the system's for such files."""
    import tempfile

    near = next(path for path in (folder, *folder.parents) if path.is_dir())
    return near if os.access(near, os.W_OK) else Path(tempfile.gettempdir())


def _rehearse(task: Task, processes: int, *, threads: int) -> list[Rehearsal]:
    """What processes side by side find, since trials side by side slow each other down.

    Raises:
        ValueError: what is wrong with data or teacher.
        RuntimeError: a process died.
    """
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="1")
    context = multiprocessing.get_context("spawn")
    started = []
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is ours to tell; they inherit that
    try:
        for number in range(processes):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(task, theirs, threads, number == 0))
            process.start()
            theirs.close()
            started.append((process, ours))
        signal.signal(signal.SIGINT, heard)
        found = []
        for process, ours in started:
            try:
                told = ours.recv()
            except EOFError:
                process.join()
                raise RuntimeError(f"a process that timed steps ended with exit code {process.exitcode}") from None
            if isinstance(told, Exception):
                raise told
            found.append(told)
            process.join()
        return found
    finally:
        signal.signal(signal.SIGINT, heard)
        for process, _ in started:
            process.terminate()
            process.join()


def _run(task: Task, answer: Connection, threads: int, first: bool) -> None:
    """In a process of its own. first: look into the store, too."""

    def end(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(number)  # on the way out the scratch folder is removed

    signal.signal(signal.SIGTERM, end)
    import dataclasses

    import torch

    from search import rehearsal

    torch.set_num_threads(threads)
    try:
        answer.send(rehearsal.rehearse(task if first else dataclasses.replace(task, looked_up=())))
    except (ValueError, OSError) as error:
        answer.send(ValueError(str(error)))
    except Exception as error:
        answer.send(RuntimeError(f"the timed steps failed: {type(error).__name__}: {error}"))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing is left to remove


def _console() -> Console:
    """As wide as the terminal; wide enough for the table where there is none."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)


def _report(console: Console, plans: Sequence[Plan], argv: Sequence[str]) -> None:
    """Print it, and leave in each run's folder what it is compared with."""
    from search.progress import fitted

    first, many = plans[0], len(plans) > 1
    pairs = [plan.config.networks for plan in plans]
    parts = [[plan] for plan in plans] + ([list(plans)] if many else [])
    titles = [f"{pair.teacher.name} → {pair.student.name}" for pair in pairs] + ["total"]
    names = [
        "pair",
        "recipes",
        "seeds",
        "stage\nruns",
        "after\nsharing",
        "device\ntime",
        f"wall,\n{first.slots} at once",
        "disk",
    ]
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
    _say(console, _in_all(plans))
    left = [os.path.relpath(_leave(plan, _command_wall(plans))) for plan in plans]
    _say(console, f"Kept for the run to compare with: {', '.join(left)}.")
    again = storages.hidden(shlex.join(["python", "-m", "search.run", *argv]))
    console.print(Text("  Nothing was started. Run: ").append(again, style="bold"), soft_wrap=True)


def _row(plans: Sequence[Plan], *, ranges: bool) -> tuple[str, ...]:
    """Of a pair, or of all."""
    from reports.text import MINUS, duration
    from search.estimate import range_of, spread, total

    recipes = total(range_of(len(work.finished) for work in plan.works) for plan in plans)
    unshared = total(range_of(work.unshared for work in plan.works) for plan in plans)
    shared = total(range_of(cost.stage_runs for cost in plan.whole) for plan in plans)
    return (
        _count(recipes, ranges),
        str(plans[0].config.seeds),
        _count(unshared, ranges),
        f"{_count(shared, ranges)} ({MINUS}{round(100 * (1 - shared.mid / unshared.mid))} %)",
        _between(total(spread(cost.device for cost in plan.whole) for plan in plans), ranges),
        f"~{duration(_search_wall(plans, 'whole'))}",
        _bytes(sum(fmean(cost.disk for cost in plan.whole) for plan in plans)),
    )


def _notes(plan: Plan) -> list[str]:
    """What is to be said of a pair beside its row."""
    from reports.text import TIMES, duration, number, plural
    from search.estimate import BUSY_SHARE, detectable, range_of, spread

    config, found = plan.config, plan.found
    kinds, timed = len(found.kinds), min(len(timing.steps) for timing in found.kinds.values()) * found.timed
    side = f"in {plan.processes} processes side by side" if plan.processes > 1 else "in one process"
    lines = [
        f"Estimate: {plural(timed, 'timed step')} or more of each of {plural(kinds, 'kind')} of stage, {side}, now."
    ]
    if found.share < BUSY_SHARE:
        busy = f"they had {round(100 * found.share)} % of a core each, so that an idle machine is quicker"
        lines.append(f"Other work went on while the steps were timed: {busy}.")
    if len(plan.works) > 1:
        drawn = f"Means over {len(plan.works)} random draws of the space, from the lowest to the highest"
        lines.append(f"{drawn}; a sampler that learns may choose longer recipes.")
    missing = [place for place in _asked(plan) if place not in found.teachers]
    if missing:
        epochs = config.teacher_epochs or config.networks.teacher_epochs
        seconds = len(missing) * (found.teacher.seconds(epochs, found.steps).mid + found.teacher.around)
        which = "The teacher isn't" if len(missing) == 1 else f"{len(missing)} teachers aren't"
        lines.append(f"{which} in the store: training adds ~{duration(seconds)}, of {plural(epochs, 'epoch')} each.")
    held = plan.whole[0].stage_runs - plan.left[0].stage_runs
    if held:
        left = plan.left[0]
        rest = (
            f"{left.stage_runs:,} are left, {_between(left.device)}, ~{duration(_search_wall([plan], 'left'))} of wall"
        )
        lines.append(
            f"{held:,} of the {plan.whole[0].stage_runs:,} stage runs are there already; "
            + (f"{rest}." if left.stage_runs else "none is left to train.")
        )
    if config.confirm:
        members = range_of(count for count, _ in plan.confirm)
        device = spread(cost.device for _, cost in plan.confirm)
        at_most = "" if config.comparison else " at most"
        lines.append(
            f"Confirmation adds{at_most} {_count(members)} recipes {TIMES} {plural(config.confirm, 'fresh seed')}: "
            f"{duration(device.mid)}, ~{duration(_confirm_wall([plan]))} of wall."
        )
    recipes = round(range_of(len(work.finished) for work in plan.works).mid)
    seen = {n: detectable(plan.sd, recipes, n) for n in dict.fromkeys((config.seeds, *_POWER_AT))}
    said = f"standard deviation {number(plan.sd)} points, " + (f"from {plan.sd_from}" if plan.sd_from else "assumed")
    shown = [f"{plural(n, 'seed')}: {'unknown' if value is None else f'{value:.2f}'}" for n, value in seen.items()]
    lines.append(f"Smallest difference of two recipes seen with 80 % power, in points: {', '.join(shown)} ({said}).")
    return lines


def _in_all(plans: Sequence[Plan]) -> str:
    """Wall of the whole command: with what is left, and half of the largest confirmation."""
    from reports.text import duration

    half = " and half of the confirmation" if plans[0].config.confirm and not plans[0].config.comparison else ""
    return f"The whole command, with what is left of the search{half}: ~{duration(_command_wall(plans))} of wall."


def _asked(plan: Plan) -> range:
    """Places of the teachers that the search asks."""
    return range(max(recipe.teachers for work in plan.works for recipe in work.trials))


def _search_wall(plans: Sequence[Plan], part: str) -> float:
    from search.estimate import FILES_S, RAY_START_S, wall

    draws = [
        wall([costs[min(k, len(costs) - 1)] for plan in plans if (costs := getattr(plan, part))], plans[0].slots)
        for k in range(max(len(plan.works) for plan in plans))
    ]
    return fmean(draws) + (RAY_START_S + FILES_S if any(draws) else 0.0)


def _confirm_wall(plans: Sequence[Plan]) -> float:
    from search.estimate import wall

    draws = range(max(len(plan.works) for plan in plans))
    return fmean(
        wall([plan.confirm[min(k, len(plan.confirm) - 1)][1] for plan in plans], plans[0].slots) for k in draws
    )


def _command_wall(plans: Sequence[Plan]) -> float:
    whole = 1.0 if plans[0].config.comparison else 0.5
    return _search_wall(plans, "left") + whole * _confirm_wall(plans)


def _leave(plan: Plan, seconds: float) -> Path:
    """Write the estimate into the run's folder, for `read`. seconds: of the whole command, of all pairs together."""
    from reports.results import write_atomically
    from search.estimate import range_of, spread

    said = {
        "schema": _SCHEMA,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipes": range_of(len(work.finished) for work in plan.works).mid,
        "stage_runs": range_of(cost.stage_runs for cost in plan.whole).mid,
        "stage_runs_left": range_of(cost.stage_runs for cost in plan.left).mid,
        "device_seconds": spread(cost.device for cost in plan.whole),
        "device_seconds_left": spread(cost.device for cost in plan.left),
        "search_seconds": _search_wall([plan], "whole"),
        "confirm_device_seconds": spread(cost.device for _, cost in plan.confirm),
        "seconds": seconds,
    }
    folder = plan.config.folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(folder / FILE, json.dumps(said, indent=1, allow_nan=False).encode())
    return folder / FILE


def _say(console: Console, line: str) -> None:
    """A line, indented; broken where a terminal ends, and nowhere else."""
    if console.is_terminal:
        console.print(Padding(Text(line), (0, 0, 0, 2)))
    else:
        console.print(Text(f"  {line}"), soft_wrap=True)


def _count(value: Between, ranges: bool = True) -> str:
    return f"{value.mid:,.0f}" + (
        "" if value.low == value.high or not ranges else f" [{value.low:,.0f}, {value.high:,.0f}]"
    )


def _between(seconds: Between, ranges: bool = True) -> str:
    """Seconds with their range, in one unit."""
    divisor, unit = (1, "s") if seconds.mid < 120 else (60, "min") if seconds.mid < 7200 else (3600, "h")
    low, mid, high = (
        f"{value / divisor:.2g}" if value < 100 * divisor else f"{value / divisor:,.0f}" for value in seconds
    )
    return f"{mid} {unit}" + (f" [{low}, {high}]" if ranges else "")


def _bytes(size: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1e3:.0f} kB"


def _complain(error: Exception, code: int) -> int:
    text = storages.hidden(" ".join(str(error).split()))
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {text}", markup=False, style="red")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
