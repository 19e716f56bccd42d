"""The terminal while a search runs: a live table, or one line per finished trial where there is no terminal."""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from reports.front import winner
from reports.index import MEAN, gain_text
from reports.text import cost_text, duration, known
from search.config import Config
from search.jobs import Job
from smskd.notation import parse
from smskd.recipe import WEIGHTINGS, Recipe
from smskd.result import FAILED, Result

_FRONT_LINES = 8
# The front is summed up again after so long, and after so many times what it took: its share stays small.
_LOOK_EVERY_S, _LOOK_SHARE = 1.0, 20
# Over how many recipes the recent gain of the hypervolume is.
_RECENT = 10
# Lines of the panel that are neither trials nor front.
_FRAME_LINES = 11


@dataclass(frozen=True, kw_only=True)
class FrontLine:
    """One member of a pair's front so far, ready to show. seeds: how many of those wanted."""

    letter: str
    recipe: str
    val_accuracy: float
    val_half_width: float
    cost: str
    seeds: str


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How the search of one pair stands. recipes: finished. hypervolume: None before there is any."""

    pair: str
    recipes: int
    front: Sequence[FrontLine]
    hypervolume: float | None


@dataclass
class _Running:
    pair: str
    recipe: Recipe
    seed: int
    epochs: Sequence[int]  # of each stage
    started: float
    said: dict[str, Any] = field(default_factory=dict)
    # when its own training was first heard of, and how many epochs of it had been done
    heard: tuple[float, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What a phase of a search has to show. Its functions are called by the thread that tells of trials.

    counted: what `counts` counts, done and in all: `recipes`, or `trainings` where a phase has no more to say.
    remaining: how many trials are still to end. standings: how the pairs stand; it takes time, and is asked for seldom.
    causes: by pair, the file of the causes of failures; of several pairs, each is named. estimate: device seconds, of
    the whole phase and of what was there before, by a plan. again: the command that tries failed trials again.
    seen: validation images are trained on, so that accuracies there aren't shown.
    """

    title: str
    counted: str
    counts: Callable[[], tuple[int, int]]
    remaining: Callable[[], int]
    standings: Callable[[], list[Standing]]
    causes: Mapping[str, Path]
    estimate: tuple[float, float] | None
    again: str
    seen: bool = False


class Progress:
    """Shows one phase of a search. Knows nothing of Ray: it is told when a trial starts, reports and ends."""

    def __init__(self, console: Console, phase: Phase) -> None:
        self._console, self._phase, self._several = console, phase, len(phase.causes) > 1
        self._running: dict[str, _Running] = {}
        self._done = self._failed = self._trained = 0
        self._spent = 0.0
        self._started = time.monotonic()
        self._stand: list[Standing] = []
        self._volumes: deque[tuple[int, float]] = deque(maxlen=_RECENT + 1)
        self._next_look = 0.0
        self._changed = True
        self._left, self._count = phase.remaining(), phase.counts()
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._look()
            self._live = Live(self, console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def trial_started(self, trial_id: str, job: Job, epochs: Sequence[int]) -> None:
        """A trial has got its device. epochs: of each of its stages."""
        self._running[trial_id] = _Running(job.pair, parse(job.recipe), job.seed, epochs, time.monotonic())

    def trial_reported(self, trial_id: str, said: dict[str, Any]) -> None:
        """A trial says where it is: stage, epoch, epochs, val_accuracy, reused."""
        one = self._running.get(trial_id)
        if one is not None:
            one.said = said
            if one.heard is None and said.get("epochs") and said.get("stage"):
                one.heard = time.monotonic(), _epochs_done(one)
        self._look()

    def trial_stopped(self, trial_id: str) -> None:
        """A trial holds its device no longer."""
        self._running.pop(trial_id, None)

    def ended(self, job: Job, record: Result, trained: int) -> None:
        """Take the outcome of a trial, and print it: failures always, the others where there is no live table."""
        self._done += 1
        self._trained += trained
        stages = record.stages
        self._spent += sum(stage.device_seconds for stage in stages[len(stages) - trained :])
        self._left, self._count, self._changed = self._phase.remaining(), self._phase.counts(), True
        name = f"{job.pair}: {job.recipe}" if self._several else job.recipe
        if record.status == FAILED:
            self._failed += 1
            failure = Text(f"{name}, seed {job.seed}: {record.error}")
            if self._live is not None:
                failure.append(f"\nkept in {self._phase.causes[job.pair]}; to try it again, the same command: ")
                failure.append(self._phase.again, style="bold")
            _tell(self._console, failure, label=Text("failed", "bold red"))
        elif self._live is None:
            shared = len(stages) - trained
            shown = {
                "validation": None if self._phase.seen else record.val_accuracy,
                "test": record.test_accuracy,
            }
            accuracy = ", ".join(f"{split} {100 * one:.2f} %" for split, one in shown.items() if one is not None)
            reused = f", {shared} of {len(stages)} stages reused" if shared else ""
            wanted = len(parse(job.recipe).stages)
            reused += f", given up after stage {len(stages)} of {wanted}" if len(stages) < wanted else ""
            self._console.print(
                f"[{self._done}/{self._done + self._left}] {name}, seed {job.seed}: {accuracy}{reused}",
                markup=False,
                highlight=False,
            )
        self._look()

    def _look(self) -> None:
        """Sum up the recipes so far: if somebody sees it, something has changed, and the last time is long ago."""
        began = time.monotonic()
        if not self._console.is_terminal or not self._changed or began < self._next_look:
            return
        self._stand, self._changed = self._phase.standings(), False
        if len(self._stand) == 1 and self._stand[0].hypervolume is not None:
            self._volumes.append((self._stand[0].recipes, self._stand[0].hypervolume))
        took = time.monotonic() - began
        self._next_look = began + took + max(_LOOK_EVERY_S, _LOOK_SHARE * took)

    def _gain(self) -> tuple[float, int] | None:
        """How the hypervolume grew, and over how many recipes: some ten, or all there were."""
        if len(self._volumes) < 2:
            return None
        now, volume = self._volumes[-1]
        recipes, before = next((v for v in reversed(self._volumes) if now - v[0] >= _RECENT), self._volumes[0])
        return (volume - before, now - recipes) if now > recipes else None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width - 4  # of the panel's inside
        running = list(self._running.values())
        stand = self._stand
        front = self._front_rows(stand)
        rows = max(2, (options.height or console.height) - _FRAME_LINES - len(front))
        parts: list[Any] = [self._head(width, stand), "", self._trials(running[:rows], width)]
        if len(running) > rows:
            parts.append(Text(f"and {len(running) - rows} more", style="dim"))
        if front:
            so_far = " so far" if self._phase.counted == "recipes" else ""
            what = ("best of each pair" if self._several else "front") + so_far
            parts += ["", Text(f"{what}, validation, mean ± 95 % interval", style="dim"), self._front(front, width)]
        tail = f"{self._done} done · {len(running)} running · {self._failed} failed · "
        tail += f"{max(0, self._left - len(running))} waiting"
        keys = "ctrl-c stops, finished stages are kept"
        line = f"{tail}      {keys}" if cell_len(tail) + 6 + len(keys) <= width else tail
        parts += ["", Text(shortened(line, width), style="dim")]
        title = shortened(self._phase.title, width - 2)
        yield Panel(Group(*parts), title=Text(title), title_align="left", border_style="dim")

    def _head(self, width: int, stand: Sequence[Standing]) -> Table:
        """One line, whatever the width: its less needed parts go first."""
        done, total = self._count
        parts = [f"{duration(self._spent)} of training"]
        if self._phase.estimate is not None:
            whole, before = self._phase.estimate
            parts = [f"{duration(before + self._spent)} of ~{duration(whole)} of training"]
        parts.append(f"{duration(left)} left" if (left := self._time_left()) is not None else "starting")
        if len(stand) == 1 and stand[0].hypervolume is not None:
            parts.append(f"hypervolume {stand[0].hypervolume:.3f}")
            if (gain := self._gain()) is not None:
                parts[-1] += f" ({gain[0]:+.3f} in the last {gain[1]})"
        count = f"{done}/{total}"

        def text() -> str:
            return " · ".join(["", *parts]).strip()

        room = width - len(self._phase.counted) - len(count) - 2
        if cell_len(text()) > room and "(" in parts[-1]:
            parts[-1] = parts[-1].partition(" (")[0]
        if cell_len(text()) > room:
            parts[0] = parts[0].removesuffix(" of training")
        while cell_len(text()) > room and len(parts) > 1:
            parts.pop()
        bar = min(30, room - cell_len(text()) - 1)
        head = Table.grid(padding=(0, 1, 0, 0))
        shown = ProgressBar(total=max(1, total), completed=done, width=bar) if bar >= 5 else ""
        cells: list[Any] = [self._phase.counted, shown, Text(count, style="bold green"), Text(shortened(text(), room))]
        head.add_row(*(cell for cell in cells if cell != ""))
        return head

    def _time_left(self) -> float | None:
        """Seconds: by the plan where there is one and training is under way, else as fast as the trials so far."""
        elapsed = time.monotonic() - self._started
        if self._phase.estimate is not None and self._spent > 0:
            whole, before = self._phase.estimate
            rest = whole - before - self._spent
            if rest > 0 or not self._left:
                return max(0.0, rest) * elapsed / self._spent
        return elapsed / self._done * self._left if self._done else None

    def _trials(self, running: Sequence[_Running], width: int) -> Table:
        rows = [([one.pair] if self._several else []) + _row(one) for one in running]
        names = (["pair"] if self._several else []) + ["recipe", "seed", "stage", "epoch", "val %", "time", "ETA", ""]
        first = 1 if self._several else 0
        return fitted(names, rows, width, left=(0, first, len(names) - 1), flexible=(len(names) - 1, 0, first))

    def _front_rows(self, stand: Sequence[Standing]) -> list[list[str]]:
        if not self._several:
            return [_front_row(line) for one in stand for line in one.front[-_FRONT_LINES:]]
        return [
            [one.pair, *_front_row(one.front[-1])[1:], "" if one.hypervolume is None else f"{one.hypervolume:.3f}"]
            for one in stand
            if one.front
        ]

    def _front(self, rows: Sequence[list[str]], width: int) -> Table:
        names = ["pair" if self._several else "", "recipe", "val %", "cost", "seeds"]
        names += ["hypervolume"] if self._several else []
        return fitted(names, rows, width, left=(0, 1), flexible=(0, 1) if self._several else (1,))


def fitted(
    names: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, left: Sequence[int], flexible: Sequence[int]
) -> Table:
    """A table no wider than so many columns: the flexible ones, in this order, are cut with an ellipsis.

    names: of the columns, of several lines where they contain line breaks.
    """
    heads = [max(map(cell_len, name.split("\n"))) for name in names]
    widths = [max(heads[k], *(cell_len(row[k]) for row in rows), 0) for k in range(len(names))]
    over = sum(widths) + 2 * (len(names) - 1) - width
    for k in flexible:
        if over > 0:
            cut = min(over, max(0, widths[k] - max(8, heads[k])) if names[k] else widths[k])
            widths[k], over = widths[k] - cut, over - cut
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for k, name in enumerate(names):
        table.add_column(
            name, justify="left" if k in left else "right", no_wrap=True, width=widths[k], vertical="bottom"
        )
    for row in rows:
        table.add_row(*(Text(shortened(cell, widths[k])) for k, cell in enumerate(row)))
    return table


def brief(recipe: Recipe) -> str:
    """A recipe as it is told on a screen: its line, with arrows."""
    stages, *settings = str(recipe).split(" ")
    words = {"anchor=none": "no anchor"} | {f"weighting={name}": name for name in WEIGHTINGS}
    told = [words.get(one, one.replace("lambda_base=", "λ").replace("anchor=", "")) for one in settings]
    told = [re.sub(r"^teachers=(.*)", r"\1 teachers", one) for one in told]
    return " ".join([stages.replace(">", "→"), *told])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a search has come to, of one pair or summed over several.

    recipes: finished. trained: stages, by this invocation. unshared, shared: stage runs of the search, if every recipe
    trained its own, and as they were; saved_seconds: of training, by sharing. failed: trials. planned: as
    Session.planned has it; None: no plan was made, or the search isn't complete. seconds: of wall. again: the command.
    """

    recipes: int
    trained: int
    unshared: int
    shared: int
    spent_seconds: float
    saved_seconds: float
    failed: int
    planned: Mapping[str, Any] | None
    seconds: float
    again: str


def closing(console: Console, config: Config, summary: pd.DataFrame, outcome: Outcome) -> None:
    """What a search ends with: the front, the winner, what sharing saved, the report."""
    if summary.empty:
        _say_failed(console, "nothing finished", outcome, config.folder)
        return
    rows = []
    best = winner(summary)
    for row in summary[summary["front"]].to_dict("records"):
        rows.append(
            [
                row["letter"], brief(parse(row["recipe"])),
                _accuracy(row["val_accuracy"], row["val_half_width"]),
                _accuracy(row["test_accuracy"], row["test_half_width"]),
                cost_text(config.cost[0], row["cost"]), f"{row['seeds']}/{config.seeds}",
            ]
        )  # fmt: skip
    names = ["", "recipe", "validation %", "test %", "cost", "seeds"]
    front = fitted(names, rows, console.width, left=(0, 1), flexible=(1,))
    for styled, row in zip(front.rows, summary[summary["front"]]["recipe_id"], strict=True):
        styled.style = "bold" if row == best else ""
    console.print(Text("front, mean ± 95 % interval", style="dim"))
    console.print(front)
    console.print()
    _say_done(console, f"{outcome.recipes} recipes", outcome)
    if best is None:
        _tell(console, "no recipe keeps the limits, so there is no winner")
    else:
        chosen = summary[summary["recipe_id"] == best].iloc[0]
        tested = _accuracy(chosen["test_accuracy"], chosen["test_half_width"])
        name = f"{chosen['letter']}  {brief(parse(chosen['recipe']))}"
        told = Text("best on validation: ").append(name, style="bold")
        told.append(f"  test {tested} %" if tested != "-" else "")
        told.append(f"  {cost_text(config.cost[0], chosen['cost'])} → {config.folder / 'best.yaml'}")
        _tell(console, told)
        if not summary["test_accuracy"].notna().any():
            advice = "confirm=5 runs the front again, on fresh seeds and the test split"
            _tell(console, f"validation flatters its winner: {advice}")
    if outcome.failed:
        _say_failed(console, f"{outcome.failed} trials failed", outcome, config.folder)
    _tell(console, f"report: {config.folder / 'report.html'}")


def closing_several(console: Console, folder: Path, table: pd.DataFrame, outcome: Outcome) -> None:
    """What a search of several pairs ends with: a line a pair, their mean, what was trained, the report.

    table: as reports.index.table has it.
    """
    for row in table.to_dict("records"):
        if row["pair"] == MEAN:
            continue
        if not known(row["recipe"]):
            console.print(f"{row['pair']}: nothing finished", markup=False)
            continue
        accuracy = f"validation {_accuracy(row['val_accuracy'], row['val_half_width'])} %"
        if not math.isnan(row["test_accuracy"]):
            accuracy += f", test {_accuracy(row['test_accuracy'], row['test_half_width'])} %"
        gained = f"; {text}" if (text := gain_text(row)) else ""
        console.print(f"{row['pair']}: best on validation {row['recipe']}, {accuracy}{gained}", markup=False)
    mean = gain_text(table.to_dict("records")[-1])
    console.print(f"{MEAN}: {mean or 'no gain to average'}", markup=False)
    _say_done(console, f"{len(table) - 1} pairs, {outcome.recipes} recipes", outcome)
    if outcome.failed:
        _say_failed(console, f"{outcome.failed} trials failed", outcome, folder)
    _tell(console, f"report: {folder / 'report.html'}")


def _say_done(console: Console, what: str, outcome: Outcome) -> None:
    """What was trained, what sharing saved, and how far off the plan was."""
    text = f"{what}, {outcome.trained} stages trained now · {duration(outcome.spent_seconds)} of training in the search"
    if outcome.saved_seconds > 0:
        saved = f"sharing saved {duration(outcome.saved_seconds)}, {outcome.unshared - outcome.shared}"
        text += f" · {saved} of {outcome.unshared} stage runs"
    _tell(console, text, label=Text("done", "bold green"))
    if outcome.planned is None:
        return
    low, mid, high = outcome.planned["device_seconds"]
    off = (outcome.spent_seconds / mid - 1) * 100 if mid else 0.0
    said = f"the plan said {duration(mid)} of training, from {duration(low)} to {duration(high)}: "
    said += f"{abs(off):.0f} % {'more' if off >= 0 else 'less'} was spent"
    if round(outcome.planned["stage_runs_left"]) == outcome.planned["trained"]:  # the plan was of this invocation
        said += f"; and ~{duration(outcome.planned['seconds'])} of wall, it took {duration(outcome.seconds)}"
    _tell(console, said)


def _say_failed(console: Console, what: str, outcome: Outcome, folder: Path) -> None:
    told = Text(f"{what}; the causes are in {folder / 'results.csv'}. To try again: ")
    _tell(console, told.append(outcome.again, style="bold"), label=Text("failed", "bold red"))


def _tell(console: Console, said: Text | str, label: Text | None = None) -> None:
    """A line behind a margin, or a label in it; broken where a terminal ends, and nowhere else."""
    label = Text() if label is None else label
    text = Text(said) if isinstance(said, str) else said
    if console.is_terminal:
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=6)
        grid.add_column(overflow="fold")
        grid.add_row(label, text)
        console.print(grid)
    else:
        console.print(Text(label.plain.ljust(7)).append_text(text), soft_wrap=True)


def _accuracy(mean: float, half_width: float) -> str:
    if math.isnan(mean):
        return "-"
    return f"{100 * mean:.2f}" + ("" if math.isnan(half_width) else f" ± {100 * half_width:.2f}")


def shortened(text: str, width: int) -> str:
    """The text, cut with an ellipsis if it is wider than so many columns."""
    return text if cell_len(text) <= width else set_cell_size(text, max(0, width - 1)).rstrip() + "…"


def _front_row(line: FrontLine) -> list[str]:
    return [line.letter, line.recipe, _accuracy(line.val_accuracy, line.val_half_width), line.cost, line.seeds]


def _epochs_done(one: _Running) -> int:
    """Epochs that a trial has trained, those of reused stages left out."""
    said = one.said
    return sum(one.epochs[said.get("reused") or 0 : said["stage"] - 1]) + int(said["epoch"])


def _eta(one: _Running) -> float | None:
    """Seconds until a trial ends, as fast as its epochs since it was first heard of."""
    if one.heard is None or not one.said.get("epochs"):
        return None
    since, before = one.heard
    done = _epochs_done(one)
    if done <= before:
        return None
    whole = sum(one.epochs[one.said.get("reused") or 0 :])
    return max(0, whole - done) * (time.monotonic() - since) / (done - before)


def _row(one: _Running) -> list[str]:
    said, stages = one.said, one.recipe.stages
    stage = min(said.get("stage", 1), len(stages))
    epoch = f"{said['epoch']}/{said['epochs']}" if said.get("epochs") else ""
    accuracy = f"{100 * said['val_accuracy']:.2f}" if said.get("val_accuracy") is not None else ""
    prefix = ">".join(one.path for one in stages[: said.get("reused") or 0])
    doing = f"{stage}/{len(stages)} {stages[stage - 1].path}" if stage else "its teacher"
    return [
        brief(one.recipe), str(one.seed), doing, epoch, accuracy,
        duration(time.monotonic() - one.started), "" if (eta := _eta(one)) is None else duration(eta),
        f"{prefix} reused" if prefix else "",
    ]  # fmt: skip
