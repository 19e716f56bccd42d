"""Ray's side of a search: the trainable, a thin Searcher over a queue of (recipe, seed), and one fit() at a time.

Tune's own restore is not used: the study and the store of stages are the state, so going on is running again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# Ray and Tune read these when they are imported.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_WARN_THRESHOLD_S", "1000")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray import tune
from ray.tune.search import Searcher

from search import bench
from search.config import Config
from search.progress import Progress
from search.study import Asked, Record, Study
from smskd.recipe import parse

# A worker that dies (killed, out of memory, node lost) is started again this often; its finished stages are kept.
WORKER_RETRIES = 2
# Fits of Tune in all, where one was ended by Ray and not by its jobs.
FITS = 3
_REPORT_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One trial: a recipe with a seed. test: open the test split when it is trained."""

    recipe: str
    seed: int
    test: bool


class Source(Protocol):
    """Where the Searcher gets its jobs from, and where results go."""

    def next(self) -> Job | None:
        """A job to start now, or None."""

    def exhausted(self) -> bool:
        """Whether no job will come any more, whatever the running ones bring."""

    def take(self, job: Job, record: Record) -> None:
        """The record of a job that ended."""

    def remaining(self) -> int:
        """How many jobs are still to end, as far as one can tell."""

    def again(self) -> None:
        """Put the jobs that run back into the queue: what ran them is gone."""


class StudySource:
    """The search: recipes as the study asks for them, each with all its seeds."""

    def __init__(self, study: Study, seeds: Sequence[int]) -> None:
        self._study, self._seeds = study, seeds
        self._waiting: deque[tuple[Asked, int]] = deque()
        self._running: dict[Job, Asked] = {}
        self._dry = False

    def next(self) -> Job | None:
        if not self._waiting:
            asked = self._study.ask()
            self._dry = asked is None
            if asked is None:
                return None
            self._waiting.extend((asked, seed) for seed in self._seeds)
        asked, seed = self._waiting.popleft()
        job = Job(recipe=str(asked.recipe), seed=seed, test=False)
        self._running[job] = asked
        return job

    def exhausted(self) -> bool:
        return self._dry and not self._waiting and self._study.idle()

    def take(self, job: Job, record: Record) -> None:
        self._study.tell(self._running.pop(job), record)

    def remaining(self) -> int:
        return len(self._waiting) + len(self._running) + self._study.room() * len(self._seeds)

    def again(self) -> None:
        self._waiting.extendleft((asked, job.seed) for job, asked in self._running.items())
        self._running.clear()


class ListSource:
    """A fixed list of jobs: the confirmation."""

    def __init__(self, jobs: Sequence[Job], keep: Callable[[Job, Record], None]) -> None:
        self._waiting, self._keep = deque(jobs), keep
        self._running: set[Job] = set()

    def next(self) -> Job | None:
        if not self._waiting:
            return None
        job = self._waiting.popleft()
        self._running.add(job)
        return job

    def exhausted(self) -> bool:
        return not self._waiting and not self._running

    def take(self, job: Job, record: Record) -> None:
        self._running.remove(job)
        self._keep(job, record)

    def remaining(self) -> int:
        return len(self._waiting) + len(self._running)

    def again(self) -> None:
        self._waiting.extendleft(self._running)
        self._running.clear()


class _Relay(tune.Callback):
    """Passes on what Tune says of its trials."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; a live display can't be."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._progress.trial_started(trial.trial_id, trial.config["recipe"], trial.config["seed"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._progress.trial_reported(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._progress.trial_stopped(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._progress.trial_stopped(trial.trial_id)


class QueueSearcher(Searcher):
    """Tune asks it for the next trial and tells it what came of each."""

    def __init__(self, source: Source, on_end: Callable[[Job, Record, int], None]) -> None:
        super().__init__()
        self._source, self._on_end = source, on_end
        self._jobs: dict[str, Job] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher, for the restore that is not used; a study and a live display can't be."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        job = self._source.next()
        if job is None:
            # None means "later", and with nothing running Tune would wait for long.
            return Searcher.FINISHED if self._source.exhausted() else None
        self._jobs[trial_id] = job
        return {"recipe": job.recipe, "seed": job.seed, "test": job.test}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        job = self._jobs.pop(trial_id, None)
        if job is None:
            return
        told = (result or {}).get("outcome")
        if error or told is None:
            cause = f"the worker died {WORKER_RETRIES + 1} times (killed, out of memory, or its node was lost)"
            record, trained = failure(job.seed, cause), 0
        else:
            record, trained = json.loads(told)
        self._source.take(job, record)
        self._on_end(job, record, trained)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: restoring is not how a search goes on."""


def failure(seed: int, cause: str) -> Record:
    """The record of a trial that failed."""
    return {"seed": seed, "status": "failed", "error": cause, "params": None, "stages": [], "test_accuracy": None}


def train(config: dict[str, Any]) -> None:
    """The trainable: one recipe, one seed, through the pipeline; reports its progress and, last, its outcome.

    An exception of the training is an outcome too: it would be the same the next time, so Ray needn't try again.
    """
    import torch

    from smskd import pipeline

    torch.set_num_threads(max(1, int(config["cpus"])))
    recipe, seed = config["recipe"], config["seed"]
    stages_wanted = len(parse(recipe).stages)
    # stage: the one at work, from 1
    place: dict[str, Any] = {"stage": 1, "epoch": 0, "epochs": 0, "val_accuracy": None, "reused": 0}
    told = time.monotonic()
    trained = 0

    def on_epoch(stage: int, epoch: int, epochs: int) -> None:
        nonlocal told
        if time.monotonic() - told >= _REPORT_EVERY_S:
            told = time.monotonic()
            place.update(stage=stage, epoch=epoch, epochs=epochs)
            tune.report(dict(place))

    def on_stage(number: int, result: pipeline.StageResult) -> None:
        nonlocal trained
        trained += result.trained
        place.update(stage=min(number + 1, stages_wanted), epoch=0, val_accuracy=result.val_accuracy)
        if not result.trained:
            place["reused"] = number

    record: Record
    try:
        result = pipeline.run(
            recipe, seed=seed, epochs=config["epochs"], on_stage=on_stage, on_epoch=on_epoch, **config["pipeline"]
        )
        stages: Any = [
            {k: getattr(s, k) for k in ("key", "val_accuracy", "train_flops", "device_seconds")} for s in result.stages
        ]
        test = pipeline.test_accuracy(result, pipeline.prepare(**config["pipeline"])) if config["test"] else None
        record = {
            "seed": seed, "status": "complete", "error": None, "params": result.params, "stages": stages,
            "test_accuracy": test,
        }  # fmt: skip
    except Exception as error:  # whatever it is, it is this trial's result, with its cause
        where = f"stage {place['stage']} of {stages_wanted}"
        record = failure(seed, f"{where}: {type(error).__name__}: {error}")
    tune.report({"outcome": json.dumps([record, trained])})  # as text, since Tune flattens what it is given


def fit(
    source: Source,
    *,
    settings: Mapping[str, Any],
    cpus: float,
    gpus: float,
    progress: Progress,
    on_end: Callable[[Job, Record, int], None],
) -> None:
    """Run all jobs of a source to their end. Ray is initialised.

    Ray's memory monitor and a lost head end a whole fit(). A fresh one then goes on with the jobs that ran, a bounded
    number of times.

    Raises:
        RuntimeError: the last fit() was ended so, too; with what ended it.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are told by `on_end`, each in one line
    for left in reversed(range(FITS)):
        try:
            with tempfile.TemporaryDirectory(prefix="smskd-tune-") as scratch:
                search = QueueSearcher(source, on_end)
                tune.Tuner(
                    tune.with_resources(train, {"cpu": cpus, "gpu": gpus}),
                    param_space={"cpus": cpus, **settings},
                    tune_config=tune.TuneConfig(search_alg=search, num_samples=-1, reuse_actors=True),
                    run_config=tune.RunConfig(
                        storage_path=scratch,
                        failure_config=tune.FailureConfig(max_failures=WORKER_RETRIES),
                        callbacks=[_Relay(progress)],
                        verbose=0,
                    ),
                ).fit()
        except Exception as error:  # Tune gives it many types
            if not left:
                raise RuntimeError(
                    f"Ray ended the search {FITS} times, at last with {type(error).__name__}: {error}"
                ) from error
        if source.exhausted():
            return
        source.again()


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Ray, on this machine alone or on a cluster; shut down again at the end.

    Raises:
        ValueError: there is no cluster at the address.
    """
    variables = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    root = str(Path(__file__).resolve().parent.parent)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:  # workers inherit this process's environment, which is quicker than Ray's runtime_env
        os.environ.update(variables, PYTHONPATH=os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]))
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
        ray.init(num_cpus=cores(), include_dashboard=False, object_store_memory=2**28, **options)
    else:
        left_out = ["runs", ".venv", ".git"]
        environment = {"env_vars": variables, "working_dir": root, "excludes": left_out}
        try:
            ray.init(address=address, runtime_env=environment, **options)
        except ConnectionError as error:
            raise ValueError(f"address={address}: no Ray cluster answers there ({error})") from None
    try:
        yield
    finally:
        ray.shutdown()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def check_resources(config: Config, *, cores: float, gpus: float) -> None:
    """Refuse trials that could never start.

    Raises:
        ValueError: a trial asks for more than there is.
    """
    for name, asked, there in (("cpus", config.cpus, cores), ("gpus", config.gpus or 0, gpus)):
        if asked > there:
            raise ValueError(f"{name} <= {there:g}, what there is, must hold for one trial, but got {name}={asked:g}")


def gpus_per_trial(config: Config) -> float:
    """As asked for; else one if the cluster has any.

    Raises:
        ValueError: a trial asks for more than the cluster has.
    """
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    check_resources(config, cores=there.get("CPU", 0), gpus=there.get("GPU", 0))
    return min(1.0, there.get("GPU", 0.0)) if config.gpus is None else config.gpus


def describe_bench(settings: dict[str, Any], config: Config, gpus: float) -> dict[str, Any]:
    """bench.describe on a worker, with the resources of a trial; trains the teacher, if the store lacks it.

    Raises:
        RuntimeError: that failed, with the cause.
    """
    task = ray.remote(num_cpus=config.cpus, num_gpus=gpus, max_retries=WORKER_RETRIES)(bench.describe)
    try:
        described: dict[str, Any] = ray.get(task.remote(settings, config.cpus, config.cost == "latency"))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise RuntimeError(f"the teacher can't be prepared: {type(cause).__name__}: {cause}") from None
    return described
