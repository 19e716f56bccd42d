"""The pairs of one command, one or several: one cluster, one fit() a phase, and the files above several pairs' folders.

With one pair nothing stands above: its folder is the run's.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import pandas as pd
from rich.console import Console

from reports import front, index, load, results
from search import mirror
from search.config import Config
from search.progress import Outcome, Phase, Progress, closing, closing_several
from search.session import Session
from smskd.result import Result
from smskd.store import is_url, open_store

if TYPE_CHECKING:
    from search.jobs import Job, Source
    from search.loggers import Loggers
    from search.nodes import Nodes


class Search:
    """A session for each pair, and what they share."""

    def __init__(self, configs: Sequence[Config], console: Console, again: str) -> None:
        """Open the studies; the caller has `held` the folders. again: the command, shown where something failed.

        Raises:
            ValueError: as Session.
        """
        self._console, self._again = console, again
        self._started = time.monotonic()
        self.sessions = [Session(config, console) for config in configs]
        self._first = configs[0]
        self._folder = folders(configs)[0]
        self._summaries: list[pd.DataFrame] = []

    def work_left(self) -> bool:
        """Whether anything is still to be trained."""
        return any(session.work_left() for session in self.sessions)

    def check_inputs(self) -> None:
        """Load data and teachers as a worker will, before anything starts.

        Raises:
            ValueError: as Session.check_inputs, for any pair.
        """
        for session in self.sessions:
            if session.work_left():
                session.check_inputs()

    def work(self) -> None:
        """Search, freeze the fronts, confirm them. Starts Ray, and stops it.

        Raises:
            ValueError: the cluster can't be reached, or hasn't the cores or GPUs for one trial.
            RuntimeError: data or a teacher can't be had, or aren't those that the run began with; or nothing finished.
        """
        from search import loggers, searcher
        from search.nodes import Nodes

        log = [loggers.Loggers(self._first.log, {s.pair: s.config.folder for s in self.sessions}, self._say)]
        config = self._first
        with searcher.cluster(config.address, insecure=config.insecure):
            gpus = searcher.gpus_per_trial(config)
            nodes = Nodes(self._say)
            device = "cuda" if gpus else "cpu"
            if config.address is not None:
                known = next((session.device for session in self.sessions if session.met), None)
                nodes.survey(store=config.store, cpus=config.cpus or 1.0, gpus=gpus, known=known)
                device = nodes.device_type
            # what draws the report takes seconds to import: while the first trial prepares, a core has nothing to do
            threading.Thread(target=importlib.import_module, args=("reports.build",), daemon=True).start()
            if not all(session.met for session in self.sessions):
                self._console.print("preparing the data and the teacher, before the first trial")
            for session in self.sessions:
                if session.met:
                    session.say_teacher()
            for phase in ("search", "confirm"):
                sources = {s.pair: source for s in self.sessions if (source := s.source(phase)) is not None}
                if sources:
                    self._fit(phase, sources, gpus, device, nodes, log if config.log else [])
        if not any(session.met for session in self.sessions):
            causes = set[str]().union(*(session.causes for session in self.sessions))
            raise RuntimeError(f"nothing finished: {'; '.join(sorted(causes))}")

    def write(self, *, finished: bool) -> None:
        """Write the files of each pair, and those above them."""
        written = [session.write(finished=finished) for session in self.sessions]
        self._summaries = [summary for summary in written if summary is not None]
        if len(self.sessions) > 1 and self._summaries:
            _write(self._folder, [session.pair for session in self.sessions])
        if self._first.mirrored is not None:
            mirror.copy(self._folder, self._first.mirrored)

    def close(self) -> None:
        """Print what came of it, after `write`."""
        if len(self.sessions) == 1:
            closing(self._console, self._first, self._summaries[0], self._outcome())
            return
        pairs = [session.pair for session in self.sessions]
        table = index.table(results.read(self._folder), pairs, self._first.cost, self._first.limits)
        closing_several(self._console, self._folder, table, self._outcome())

    def _outcome(self) -> Outcome:
        table = results.read(self._folder)
        search = table[(table["phase"] == "search") & (table["status"] == "complete")]
        stages = [seconds for session in self.sessions for seconds in session.stages.values()]
        return Outcome(
            recipes=sum(map(len, self._summaries)),
            trained=sum(session.stage_runs for session in self.sessions),
            unshared=int(search["n_stages"].sum()),
            shared=len(stages),
            spent_seconds=sum(stages),
            saved_seconds=float(search["device_seconds"].sum()) - sum(stages),
            failed=self.failed,
            planned=self._planned() if all(session.study.complete() for session in self.sessions) else None,
            seconds=time.monotonic() - self._started,
            again=self._again,
        )

    def _planned(self) -> dict[str, Any] | None:
        """Sums of what a plan of all pairs said, and the stages of the search that were trained now."""
        said = [plan for session in self.sessions if (plan := session.planned()) is not None]
        if len(said) < len(self.sessions):
            return None
        return {
            "device_seconds": [sum(ends) for ends in zip(*(plan["device_seconds"] for plan in said), strict=True)],
            "spent_device_seconds": sum(plan["spent_device_seconds"] for plan in said),
            "stage_runs_left": sum(plan["stage_runs_left"] for plan in said),
            "seconds": said[0]["seconds"],  # of the whole command, each says the same
            "trained": sum(session.trained["search"] for session in self.sessions),
        }

    @property
    def failed(self) -> int:
        """Trials that failed in this invocation."""
        return sum(session.failed for session in self.sessions)

    @property
    def empty(self) -> bool:
        """Whether no recipe of any pair has finished."""
        return all(summary.empty for summary in self._summaries)

    @property
    def refusal(self) -> str | None:
        """Why a changed front was not confirmed, of each pair that has such a one."""
        named = "pair={}: " if len(self.sessions) > 1 else ""
        refusals = [named.format(session.pair) + session.refusal for session in self.sessions if session.refusal]
        return "; ".join(refusals) or None

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def _fit(
        self,
        phase: str,
        sources: Mapping[str, Source],
        gpus: float,
        device: str,
        nodes: Nodes,
        log: Sequence[Loggers],
    ) -> None:
        from search import jobs, searcher

        many = len(self.sessions) > 1
        networks = self._first.networks
        what = f"{len(self.sessions)} pairs" if many else f"{networks.teacher.name} → {networks.student.name}"
        by_pair = {session.pair: session for session in self.sessions}
        source = jobs.RoundRobin(sources)

        def ended(job: Job, record: Result, trained: int) -> None:
            by_pair[job.pair].ended(phase, trained)
            progress.ended(job, record, trained)

        def counts() -> tuple[int, int]:
            if phase != "search":
                return total - source.remaining(), total
            done, wanted = zip(*(session.counts() for session in self.sessions), strict=True)
            return sum(done), sum(wanted)

        total = source.remaining()
        said = self._planned() if phase == "search" else None
        seen = phase == "confirm" and self._first.train_on == "all"
        shown = Phase(
            title=f"{phase} · {what} on {self._first.experiment.data}" + (", train and validation" if seen else ""),
            seen=seen,
            counted="recipes" if phase == "search" else "trainings",
            counts=counts,
            remaining=source.remaining,
            standings=lambda: [session.standing() for session in self.sessions],
            estimate=None if said is None else (said["device_seconds"][1], said["spent_device_seconds"]),
            again=self._again,
            causes={pair: session.config.folder / "results.csv" for pair, session in by_pair.items()},
        )
        with Progress(self._console, shown) as progress:
            searcher.fit(
                source,
                trials={pair: by_pair[pair].trials(device, phase) for pair in sources},
                demand=searcher.Demand(cpus=self._first.cpus or 1.0, gpus=gpus, hang_after=self._first.hang_after),
                progress=progress,
                on_end=ended,
                nodes=nodes,
                callbacks=log,
            )


def folders(configs: Sequence[Config]) -> list[Path]:
    """The folder of the whole run, then those of several pairs."""
    own = [config.folder for config in configs]
    return own if len(own) == 1 else [own[0].parent, *own]


@contextlib.contextmanager
def held(configs: Sequence[Config]) -> Iterator[None]:
    """Make the run's folders and the store, and hold the folders: one driver a run.

    Raises:
        ValueError: a place can't be written to, is held by another driver, or holds the other kind of run.
    """
    run, *pairs = folders(configs)
    first = configs[0]
    _check_writable("store", first.store if is_url(first.store) else Path(first.store).absolute())
    for folder in (run, *pairs):
        _check_writable("out", folder)
    if first.mirrored is not None:
        _check_writable("out", first.mirrored)
    with contextlib.ExitStack() as locks:
        for folder in (run, *pairs):
            try:
                locks.enter_context(filelock.FileLock(folder / ".lock", timeout=0))
            except filelock.Timeout:
                raise ValueError(
                    f"another search is at work in {folder}: wait for it, or choose another folder with out="
                ) from None
        if first.mirrored is not None:
            locks.enter_context(mirror.held(run, first.mirrored))
        if load.is_several(run) != bool(pairs) and (run / "run.json").is_file():
            kind = "one pair" if pairs else "several pairs"
            raise ValueError(f"{run} holds a search of {kind}: choose another folder with out=")
        open_store(first.store, first.store_key).sweep()
        yield


def _check_writable(key: str, where: str | Path) -> None:
    try:
        if isinstance(where, str):
            from smskd.store import remote

            remote.Files(where).check_writable()
            return
        where.mkdir(parents=True, exist_ok=True, mode=0o700)
        # another driver may be looking at the same store
        with tempfile.NamedTemporaryFile(dir=where, prefix=".writable"):
            pass
    except OSError as error:
        told = error.strerror or str(error)
        raise ValueError(f"{key}={where} can't be written to: {told}; choose another place") from error


def _write(folder: Path, pairs: Sequence[str]) -> None:
    """results, run.json, pairs.csv and report.html above the pairs' folders, from the files in these."""
    from reports import build

    written = [pair for pair in pairs if (folder / pair / "run.json").is_file()]
    infos = {pair: load.info(folder / pair) for pair in written}
    tables = [results.read(folder / pair) for pair in written]
    rows = pd.concat(tables, ignore_index=True).to_dict("records")
    results.write([{str(key): value for key, value in row.items()} for row in rows], folder)
    results.write_atomically(folder / "run.json", json.dumps(_info(folder, pairs, infos), indent=1).encode())
    table = index.table(results.read(folder), pairs, *front.objectives(infos[written[0]]))
    results.write_atomically(folder / "pairs.csv", table.to_csv(index=False, lineterminator="\n").encode())
    build.build(folder)


def _info(folder: Path, pairs: Sequence[str], infos: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """run.json of the whole: what the pairs agree in, sums of what is counted, and what is each pair's own."""
    each = list(infos.values())
    ends = [info["finished"] for info in each]
    return {
        "schema": each[0]["schema"],
        "config": each[0]["config"] | {"out": str(folder)},
        "experiment": each[0]["experiment"] | {"pair": list(pairs)},
        "settings": each[0]["settings"],
        "seeds": each[0]["seeds"],
        **{k: sum(info[k] for info in each) for k in ("recipes", "stage_runs", "stage_runs_unshared", "failed")},
        "seconds": max(info["seconds"] for info in each),  # they ran side by side
        "pairs": {
            pair: {key: info[key] for key in ("teacher", "student", "dataset", "confirm", "box", "front", "winner")}
            for pair, info in infos.items()
        },
        **{
            key: each[0][key]
            for key in ("objectives", "limits", "sampler", "versions", "machine", "commit", "store_bytes")
        },
        "finished": max(ends) if len(each) == len(pairs) and all(ends) else None,
    }
