"""Ray's side of a search, on the driver: a thin Searcher over a queue of (recipe, seed), and one fit() at a time.

Tune's own restore is not used: the study and the store of stages are the state, so going on is running again.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from search import disk, guard, interrupts, trainable
from search.config import Config, cores
from search.jobs import Job, Source
from search.nodes import Nodes, check_token, resources
from search.progress import Progress
from smskd import code
from smskd.notation import parse
from smskd.recipe import Recipe
from smskd.result import Result, failure, of_dict

# A worker that dies (killed, out of memory, node lost) is started again this often; its finished stages are kept.
WORKER_RETRIES = 2
# Fits of Tune in all, where one was ended by Ray and not by its jobs.
FITS = 3
# The driver looks after its trials several times a second; where it didn't for longer (it was busy, stopped, or its
# machine asleep), it couldn't hear of progress either, and no more than this counts.
_LOOK_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What the trials of one pair have in common.

    settings: what search.trainable needs, beside the job. epochs: of each stage of a recipe. digest: of the pair's
    teacher, if it is known. meet: called with the first description of teacher, student and data.
    """

    settings: Mapping[str, Any]
    epochs: Callable[[Recipe], Sequence[int]]
    digest: Callable[[], str | None]
    meet: Callable[[dict[str, Any]], None]


class _Relay(tune.Callback):
    """Passes on what Tune says of its trials."""

    def __init__(self, progress: Progress, search: QueueSearcher) -> None:
        self._progress, self._search = progress, search
        self._started = set[str]()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; a live display can't be."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        config = trial.config
        self._started.add(trial.trial_id)
        self._search.runs_in(trial.trial_id, trial.temporary_state.ray_actor)
        job = Job(pair=config["pair"], recipe=config["recipe"], seed=config["seed"], test=config["test"])
        self._progress.trial_started(trial.trial_id, job, config["epochs"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._progress.trial_reported(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._stopped(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._stopped(trial.trial_id)

    def all_stopped(self) -> None:
        """Tune is no more, and its trials with it."""
        for trial_id in sorted(self._started):
            self._stopped(trial_id)

    def _stopped(self, trial_id: str) -> None:
        self._started.discard(trial_id)
        self._progress.trial_stopped(trial_id)


class Watchdog(tune.Callback):
    """Ends the worker of a trial that makes no progress, whatever it hangs in: to Tune it has died, and is retried.

    It is also where an interruption is heard, since Tune asks it at each step of its loop.
    """

    def __init__(self, hang_after: float, on_hang: Callable[[str, float], None]) -> None:
        """hang_after: seconds. on_hang: called with a trial's id, and these, when its worker is ended."""
        self._hang_after, self._on_hang = hang_after, on_hang
        self._quiet: dict[Any, float] = {}
        self._looked = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; what this one has isn't for that."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        interrupts.check()
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, _LOOK_S), now
        for trial in self._quiet:
            self._quiet[trial] += passed
            if self._quiet[trial] >= self._hang_after:
                self._quiet[trial] = 0.0
                self._on_hang(trial.trial_id, self._hang_after)
                ray.kill(trial.temporary_state.ray_actor)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._quiet[trial] = 0.0

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._quiet[trial] = 0.0

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._quiet.pop(trial, None)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._quiet.pop(trial, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._quiet.pop(trial, None)


class QueueSearcher(Searcher):
    """Tune asks it for the next trial and tells it what came of each."""

    def __init__(
        self,
        source: Source,
        trials: Mapping[str, Trials],
        on_end: Callable[[Job, Result, int], None],
        nodes: Nodes,
    ) -> None:
        """trials: by pair, of each pair that the source has jobs of."""
        super().__init__()
        self._source, self._trials, self._on_end, self._nodes = source, trials, on_end, nodes
        self._jobs: dict[str, Job] = {}
        self._hung: dict[str, list[float]] = {}
        self._actors: dict[str, str] = {}  # trial id -> Ray's id of its worker
        self._lost_before: dict[str, int] = {}  # trial id -> how many nodes the cluster had lost when it was suggested
        self._out_of_memory = Counter[Job]()
        # why no further trial may start: what went wrong would go wrong in each
        self.problem: str | None = None
        self.refused = False  # it is the user's to mend

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher, for the restore that is not used; a study and a live display can't be."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        job = None if self.problem else self._source.next()
        if job is None:
            # None means "later", and with nothing running Tune would wait for long.
            return Searcher.FINISHED if self.problem or self._source.exhausted() else None
        self._jobs[trial_id] = job
        self._lost_before[trial_id] = self._nodes.lost()
        common = self._trials[job.pair]
        told = {
            "pair": job.pair,
            "recipe": job.recipe,
            "seed": job.seed,
            "test": job.test,
            "epochs": list(common.epochs(parse(job.recipe))),
            "describe": common.digest() is None,
        }
        return {**common.settings, **told, "kind": self._nodes.wanted, "left_out": sorted(self._nodes.left_out)}

    def runs_in(self, trial_id: str, worker: Any) -> None:
        """A trial has started, in this actor of Ray's."""
        if worker is not None:
            self._actors[trial_id] = worker._actor_id.hex()

    def ray_ended(self, error: Exception | None) -> bool:
        """Put the jobs back that ran when Tune was ended; whether that was by one of them that ran out of memory.

        That one fails, alone, when it has been so too often.
        """
        guilty = {trial_id for trial_id, worker in self._actors.items() if worker in str(error)} & set(self._jobs)
        for trial_id, job in reversed(list(self._jobs.items())):
            self._out_of_memory[job] += trial_id in guilty
            if self._out_of_memory[job] > WORKER_RETRIES:
                del self._jobs[trial_id]
                cause = f"its node ran out of memory {WORKER_RETRIES + 1} times, and Ray killed the worker"
                self._end(job, failure(job.recipe, job.seed, cause), 0)
            else:
                self._source.put_back(job)
        self._jobs.clear()
        return bool(guilty)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id in self._jobs and "stage" in result:
            self._source.advance(self._jobs[trial_id], max(0, result["stage"] - 1))

    def hung(self, trial_id: str, seconds: float) -> None:
        """A trial has made no progress for so long, and its worker is ended."""
        self._hung.setdefault(trial_id, []).append(seconds)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        job = self._jobs.pop(trial_id, None)
        if job is None:
            return
        told = (result or {}).get("outcome")
        if (error or told is None) and self._nodes.lost() > self._lost_before[trial_id]:
            self._source.put_back(job)  # not the trial's fault, as far as one can tell
            return
        if error or told is None:
            cause = self._cause(trial_id) if error else "the worker ended without an outcome"
            self._end(job, failure(job.recipe, job.seed, cause), 0)
            return
        outcome = json.loads(told)
        if "elsewhere" in outcome:
            self._nodes.leave_out(**outcome["elsewhere"])
            self._source.put_back(job)
            return
        if "refused" in outcome:
            self.refused, self.problem = True, self.problem or self._of_pair(job) + outcome["refused"]
            return
        if "problem" in outcome:
            self.problem = self.problem or self._of_pair(job) + outcome["problem"]
            return
        common = self._trials[job.pair]
        if common.digest() is None:
            common.meet(outcome["bench"])
        if outcome["teacher"] != common.digest():
            self.problem = self._of_pair(job) + (
                "the teacher isn't the one this run began with (the code, the library or its file has changed since), "
                "and results of two teachers can't stand in one table; choose another folder with out="
            )
            return
        self._end(job, of_dict(outcome["record"]), outcome["trained"])

    def _cause(self, trial_id: str) -> str:
        died = f"the worker died {WORKER_RETRIES + 1} times"
        if hung := self._hung.pop(trial_id, None):
            return f"{died}, {len(hung)} of them ended by hang_after=: no progress for {hung[-1]:g} s"
        return f"{died} (killed, out of memory, or its node was lost)"

    def _of_pair(self, job: Job) -> str:
        return f"pair={job.pair}: " if len(self._trials) > 1 else ""

    def _end(self, job: Job, record: Result, trained: int) -> None:
        self._source.take(job, record)
        self._on_end(job, record, trained)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: restoring is not how a search goes on."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What each trial may take. hang_after: seconds without progress after which its worker is ended."""

    cpus: float
    gpus: float
    hang_after: float


def fit(
    source: Source,
    *,
    trials: Mapping[str, Trials],
    demand: Demand,
    progress: Progress,
    on_end: Callable[[Job, Result, int], None],
    nodes: Nodes,
    callbacks: Sequence[tune.Callback] = (),
) -> None:
    """Run all jobs of a source to their end. Ray is initialised.

    trials: as in QueueSearcher. on_end: called with each job, its record, and how many stages it trained. nodes: where
    trials may run. callbacks: told of Tune's trials, as search.loggers are.

    Ray's memory monitor ends a whole fit(), and other faults may. A fresh one then goes on with the jobs that ran; a
    bounded number of times, of which those don't count that are the fault of a job: that fails in the end.

    Raises:
        ValueError: a student is too slow for max_latency_ms=.
        RuntimeError: data or teacher can't be had, or aren't those the run began with; or the last fit() was ended so,
            too, with what ended it.
        Exception: a full disk, or a study that can't be written (search.disk).
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are told by `on_end`, each in one line
    search = QueueSearcher(source, trials, on_end, nodes)
    left = FITS
    while left:
        ended: Exception | None = None
        relay = _Relay(progress, search)
        try:
            with tempfile.TemporaryDirectory(prefix="smskd-tune-") as scratch:
                tune.Tuner(
                    tune.with_resources(
                        functools.partial(trainable.train, trainable.Benches(code.bundle())),
                        lambda config: resources(demand.cpus, demand.gpus, config["left_out"]),
                    ),
                    param_space={"cpus": demand.cpus, "hang_after": demand.hang_after},
                    tune_config=tune.TuneConfig(search_alg=search, num_samples=-1, reuse_actors=True),
                    run_config=tune.RunConfig(
                        storage_path=scratch,
                        failure_config=tune.FailureConfig(max_failures=WORKER_RETRIES),
                        callbacks=[Watchdog(demand.hang_after, search.hung), relay, *callbacks],
                        verbose=0,
                    ),
                ).fit()
        except Exception as error:  # Tune gives it many types
            if disk.trouble(error) is not None:
                raise
            ended = error
            relay.all_stopped()
        if not search.ray_ended(ended):
            left -= 1
        if search.problem:
            raise (ValueError if search.refused else RuntimeError)(search.problem)
        if source.exhausted():
            return
    raise RuntimeError(f"Ray ended the search {FITS} times, at last with {type(ended).__name__}: {ended}") from ended


@contextlib.contextmanager
def cluster(address: str | None, *, insecure: bool = False) -> Iterator[None]:
    """Ray, on this machine alone or on a cluster; shut down again at the end.

    Raises:
        ValueError: there is no cluster at the address, or not this one's token; or it asks for none, unless insecure.
    """
    variables = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    root = str(Path(__file__).resolve().parent.parent)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    with contextlib.ExitStack() as stack:
        if address is None:  # workers inherit this process's environment, which is quicker than Ray's runtime_env
            path = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
            os.environ.update(variables, PYTHONPATH=os.pathsep.join(path))
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
            stack.enter_context(interrupts.deferred())  # half a start would leave processes
            stack.enter_context(guard.guarded())
            stack.callback(ray.shutdown)
            # a cluster of somebody else's on this machine, or RAY_ADDRESS, is not for a search without address=
            try:
                ray.init(
                    address="local", num_cpus=cores(), include_dashboard=False, object_store_memory=2**28, **options
                )
            except SystemExit:  # by the handler of SIGTERM that Ray sets
                raise KeyboardInterrupt from None
        else:
            check_token(address, insecure=insecure)
            left_out = ["runs", ".venv", ".git"]
            variables["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
            environment = {"env_vars": variables, "working_dir": root, "excludes": left_out}
            try:
                ray.init(address=address, runtime_env=environment, **options)
            except ConnectionError as error:
                raise ValueError(
                    f"address={address}: this machine is no node of that cluster, or can't reach it ({error}): run the "
                    "search on a node of the cluster"
                ) from None
            stack.enter_context(interrupts.deferred())
            stack.callback(ray.shutdown)
        interrupts.again()  # Ray's own handler would end the process on the spot
        interrupts.check()
        yield


def gpus_per_trial(config: Config) -> float:
    """As asked for; else one if the cluster has any.

    Raises:
        ValueError: a trial asks for more than the cluster has.
    """
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    config.check_resources(cores=there.get("CPU", 0), gpus=there.get("GPU", 0))
    return min(1.0, there.get("GPU", 0.0)) if config.gpus is None else config.gpus
