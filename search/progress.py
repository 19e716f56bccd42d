"""The terminal while a search runs: a live table, or one line per finished trial where there is no terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from reports.front import winner
from reports.several import MEAN, gain_text
from reports.text import known
from search.config import Config
from search.study import Record
from smskd.recipe import parse

if TYPE_CHECKING:
    from search.searcher import Job

_FRONT_LINES = 8


@dataclass(frozen=True, kw_only=True)
class FrontLine:
    """One member of a pair's front so far, ready to show."""

    pair: str
    letter: str
    recipe: str
    val_accuracy: float
    val_sd: float | None
    cost: str
    seeds: int


@dataclass
class _Running:
    pair: str
    recipe: str
    seed: int
    started: float = field(default_factory=time.monotonic)
    place: dict[str, Any] = field(default_factory=dict)


class Progress:
    """Shows one phase of a search. Knows nothing of Ray: it is told when a trial starts, reports and ends."""

    def __init__(
        self,
        *,
        console: Console,
        title: str,
        remaining: Callable[[], int],
        front: Callable[[], list[FrontLine]],
        several: bool,
    ) -> None:
        """remaining: how many trials are still to end. front: the front so far, asked for after each trial; with
        several pairs, which are then named, the best of each.
        """
        self._console, self._title, self._remaining, self._front = console, title, remaining, front
        self._several = several
        self._running: dict[str, _Running] = {}
        self._done = self._failed = self._trained = 0
        self._started = time.monotonic()
        self._front_lines: list[FrontLine] = []
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(self, console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def trial_started(self, trial_id: str, pair: str, recipe: str, seed: int) -> None:
        """A trial has got its device."""
        self._running[trial_id] = _Running(pair, recipe, seed)

    def trial_reported(self, trial_id: str, place: dict[str, Any]) -> None:
        """A trial says where it is: stage, epoch, epochs, val_accuracy, reused."""
        if trial_id in self._running:
            self._running[trial_id].place = place

    def trial_stopped(self, trial_id: str) -> None:
        """A trial holds its device no longer."""
        self._running.pop(trial_id, None)

    def ended(self, job: Job, record: Record, trained: int) -> None:
        """Take the outcome of a trial, and print it: failures always, the others where there is no live table."""
        self._done += 1
        self._trained += trained
        name = f"{job.pair}: {job.recipe}" if self._several else job.recipe
        if self._live is not None:  # summing up all recipes takes time, and nobody would see it
            self._front_lines = self._front()
        if record["status"] == "failed":
            self._failed += 1
            self._console.print(Text.assemble(("failed ", "bold red"), f"{name}, seed {job.seed}: {record['error']}"))
        elif self._live is None:
            stages = record["stages"]
            shared = len(stages) - trained
            accuracy = f"validation {100 * stages[-1]['val_accuracy']:.2f} %"
            if record["test_accuracy"] is not None:
                accuracy += f", test {100 * record['test_accuracy']:.2f} %"
            reused = f", {shared} of {len(stages)} stages reused" if shared else ""
            self._console.print(
                f"[{self._done}/{self._total()}] {name}, seed {job.seed}: {accuracy}{reused}",
                markup=False,
                highlight=False,
            )

    def _total(self) -> int:
        return self._done + self._remaining()

    def __rich__(self) -> Panel:
        elapsed = time.monotonic() - self._started
        head = Table.grid(padding=(0, 1))
        total = self._total()
        left = f"{duration(elapsed / self._done * (total - self._done))} left" if self._done else "starting"
        head.add_row(
            "trials",
            ProgressBar(total=max(1, total), completed=self._done, width=30),
            Text(f"{self._done}/{total}", style="bold green"),
            f"· {duration(elapsed)} so far · {left} · {self._trained} stages trained",
        )
        running = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
        pair = ("pair",) if self._several else ()
        left_aligned = ("pair", "recipe", "")
        for name in (*pair, "recipe", "seed", "stage", "epoch", "val %", "time", ""):
            running.add_column(name, justify="left" if name in left_aligned else "right")
        for one in list(self._running.values()):
            running.add_row(*([one.pair] if self._several else []), *_row(one))
        parts: list[Any] = [head, "", running]
        if self._front_lines:
            front = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
            for name in (*pair, "", "recipe", "val %", "cost", "seeds"):
                front.add_column(name, justify="left" if name in left_aligned else "right")
            for line in self._front_lines[-_FRONT_LINES:]:
                spread = (
                    f" ± {100 * line.val_sd:.2f}" if line.val_sd is not None and not math.isnan(line.val_sd) else ""
                )
                accuracy = f"{100 * line.val_accuracy:.2f}{spread}"
                named = [line.pair] if self._several else []
                front.add_row(*named, line.letter, line.recipe, accuracy, line.cost, str(line.seeds))
            what = "best of each pair so far" if self._several else "front so far"
            parts += ["", Text(f"{what}, validation, mean ± standard deviation", style="dim"), front]
        waiting = total - self._done - len(self._running)
        tail = f"{self._done} done · {len(self._running)} running · {self._failed} failed · {waiting} waiting"
        parts += ["", Text(f"{tail}      ctrl-c stops; finished stages are kept", style="dim")]
        return Panel(Group(*parts), title=self._title, title_align="left", border_style="dim")


def closing(console: Console, config: Config, summary: pd.DataFrame, *, trained: int, failed: int) -> None:
    """What a search ends with: the front, the winner, the files, what sharing saved."""
    if summary.empty:
        console.print(f"nothing finished; the causes are in {config.folder / 'results.csv'}", markup=False)
        return
    confirmed = summary["test_accuracy"].notna().any()
    table = Table(
        box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), title="front", title_justify="left"
    )
    for name in ("", "recipe", "λ", "validation %", "test %", "cost"):
        table.add_column(name, justify="left" if name in ("", "recipe", "λ") else "right")
    best = winner(summary)
    for row in summary[summary["front"]].to_dict("records"):
        anchored = row["n_stages"] > 1 and row["anchor"] != "none"
        table.add_row(
            row["letter"], row["recipe"], f"{row['lambda_base']:.3g} {row['weighting']}" if anchored else "-",
            _accuracy(row["val_accuracy"], row["val_half_width"]),
            _accuracy(row["test_accuracy"], row["test_half_width"]),
            cost_text(config.costs[0], row["cost"]), style="bold" if row["recipe_id"] == best else "",
        )  # fmt: skip
    console.print(table)
    chosen = summary[summary["recipe_id"] == best].iloc[0]
    console.print(
        f"best on validation: {chosen['letter']} {chosen['recipe']} → {config.folder / 'best.yaml'}", markup=False
    )
    if not confirmed:
        console.print(
            "validation flatters its winner: confirm=5 runs the front again, on fresh seeds and the test split"
        )
    unshared = int((summary["n_stages"] * summary["seeds"]).sum())
    ending = f"done: {len(summary)} recipes, {trained} stages trained now ({unshared} in the search without sharing)"
    console.print(ending + (f", {failed} trials failed" if failed else ""), markup=False)
    console.print(f"report: {config.folder / 'report.html'}", markup=False)


def closing_several(console: Console, folder: Path, table: pd.DataFrame, *, trained: int, failed: int) -> None:
    """What a search of several pairs ends with: a line a pair, their mean, what was trained, the report.

    table: as reports.several.table has it.
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
    ending = f"done: {len(table) - 1} pairs, {trained} stages trained now"
    console.print(ending + (f", {failed} trials failed" if failed else ""), markup=False)
    console.print(f"report: {folder / 'report.html'}", markup=False)


def cost_text(cost: str, value: float) -> str:
    """A cost with its unit, as people say it."""
    if cost == "seconds":
        return duration(value)
    if cost == "latency":
        return f"{value:.3g} ms"
    unit = " FLOP" if cost == "flops" else " parameters"
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit.strip()}" if cost == "flops" else f"{value / size:.3g} {prefix}"
    return f"{value:.3g}{unit}"


def _accuracy(mean: float, half_width: float) -> str:
    if math.isnan(mean):
        return "-"
    return f"{100 * mean:.2f}" + ("" if math.isnan(half_width) else f" ± {100 * half_width:.2f}")


def duration(seconds: float) -> str:
    """Seconds as people say them: 8 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _row(one: _Running) -> tuple[str, ...]:
    place = one.place
    stages = parse(one.recipe).stages
    stage = min(place.get("stage", 1), len(stages))
    doing = f"{stage}/{len(stages)} {stages[stage - 1]}" if stage else "its teacher"
    epoch = f"{place['epoch']}/{place['epochs']}" if place.get("epochs") else ""
    accuracy = f"{100 * place['val_accuracy']:.2f}" if place.get("val_accuracy") is not None else ""
    prefix = ">".join(map(str, stages[: place.get("reused") or 0]))
    return (
        one.recipe, str(one.seed), doing, epoch, accuracy,
        duration(time.monotonic() - one.started), f"{prefix} reused" if prefix else "",
    )  # fmt: skip
