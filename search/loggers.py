"""What TensorBoard, MLflow and Weights & Biases are told of a search, through Ray's own callbacks.

Ray's callbacks log what Tune knows of a trial. Here each is given a training instead: named by recipe and seed, with
the recipe's settings as its hyperparameters and epochs as its steps, whether a stage was trained or found in the store.
A training that runs again takes the place of its former log.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.logger import LoggerCallback, TBXLoggerCallback

from smskd.notation import parse
from smskd.recipe import SETTINGS
from smskd.settings import text_of

_PROJECT = "smskd"
_NAME_CHARACTERS = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """One recipe with one seed, as much like a trial of Tune's as its callbacks look at.

    trial_id: the same each time this training runs for this run folder. path: recipe and seed. local_path:
    where a logger works. config: its hyperparameters.
    """

    trial_id: str
    path: str
    local_path: str
    experiment_dir_name: str
    config: Mapping[str, Any]

    @classmethod
    def of(cls, folder: Path, config: Mapping[str, Any]) -> Training:
        """Of a trial's config, as search.trainable has it."""
        recipe, seed = parse(config["recipe"]), config["seed"]
        name = recipe.path.replace(">", "-")[:_NAME_CHARACTERS]
        of_stages = {
            f"stage_{number}.{key}": value if isinstance(value, bool | int | float) else text_of(value)
            for number, stage in enumerate(recipe.stages, 1)
            for key, value in stage.settings
        }
        told = {
            "recipe": str(recipe), "recipe_id": recipe.id, "n_stages": len(recipe.stages), "methods": recipe.path,
            **{key: getattr(recipe, key) for key in SETTINGS}, **of_stages,
            **config["worker"]["experiment"], "seed": seed, "phase": "confirm" if config["test"] else "search",
        }  # fmt: skip
        return cls(
            trial_id=hashlib.sha256(f"{folder}\0{recipe.id}\0{seed}".encode()).hexdigest()[:16],
            path=f"{name}-{recipe.id}/seed-{seed}",
            local_path=str(folder),
            experiment_dir_name=folder.name,
            config=told,
        )

    @property
    def evaluated_params(self) -> Mapping[str, Any]:
        return self.config

    def init_local_path(self) -> None:
        """An empty folder for its files: those of a run that was cut short would be shown beside."""
        shutil.rmtree(self.local_path, ignore_errors=True)
        Path(self.local_path).mkdir(parents=True)

    def __str__(self) -> str:
        return self.path


class Loggers(tune.Callback):
    """Passes trainings on to the loggers of their pair. One that fails is left out from then on, and that is said."""

    def __init__(self, log: Sequence[str], folders: Mapping[str, Path], say: Callable[[str], None]) -> None:
        """Make and connect them.

        Args:
            log: of search.config.LOGGERS.
            folders: of the run of each pair.
            say: prints a line.

        Raises:
            ValueError: one can't be connected to: no key, no server.
        """
        self._folders, self._say = folders, say
        self._loggers = {pair: {name: _made(name, folder) for name in log} for pair, folder in folders.items()}
        # by trial, then logger; a Training, where Ray's types say Trial
        self._trainings: dict[str, dict[str, Any]] = {}
        for loggers in self._loggers.values():
            for name, logger in loggers.items():
                try:
                    logger.setup()
                except Exception as error:  # whatever its client raises
                    raise ValueError(f"log=[{name}] can't be set up: {error}; leave it out, or mend that") from None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; open files can't be."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        pair = trial.config["pair"]
        training = Training.of(self._folders[pair], trial.config)
        if trial.trial_id not in self._trainings:  # else its worker died, and it begins anew
            own = {"tensorboard": str(self._folders[pair] / "tensorboard" / training.path)}
            self._trainings[trial.trial_id] = {
                name: replace(training, local_path=own.get(name, training.local_path)) for name in self._loggers[pair]
            }
        self._each(trial, lambda logger, training: logger.log_trial_start(training))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        for told in steps(result):
            self._each(trial, functools.partial(_log, told=told))
        if "outcome" in result:
            self._end(trial, failed="train_flops" not in result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, failed=True)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        for pair, loggers in self._loggers.items():
            for name in list(loggers):
                self._try(pair, name, lambda logger: logger.on_experiment_end(trials, **info))

    def _end(self, trial: Any, *, failed: bool) -> None:
        if trial.trial_id in self._trainings:
            self._each(trial, lambda logger, training: logger.log_trial_end(training, failed=failed))
            del self._trainings[trial.trial_id]

    def _each(self, trial: Any, act: Callable[[LoggerCallback, Any], None]) -> None:
        pair = trial.config["pair"]
        for name in list(self._loggers[pair]):
            self._try(pair, name, act, self._trainings[trial.trial_id][name])

    def _try(self, pair: str, name: str, act: Callable[..., None], *told: Any) -> None:
        try:
            act(self._loggers[pair][name], *told)
        except Exception as error:  # a full disk, a server that is gone: no reason to end a search
            _abandon(self._loggers[pair].pop(name))
            self._say(f"log=[{name}] has ended, the search goes on: {type(error).__name__}: {error}")


def _abandon(logger: Any) -> None:
    """Leave what a logger hasn't written: as the process ends tensorboardX would try again, with a traceback each."""
    for writer in getattr(logger, "_trial_writer", {}).values():
        for file in (writer.all_writers or {}).values():
            events = file.event_writer
            if not events._closed:
                events._closed = True
                events._worker.stop()


def _log(logger: LoggerCallback, training: Any, *, told: dict[str, Any]) -> None:
    logger.log_trial_result(told["training_iteration"], training, told)


def steps(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a report of search.trainable has for loggers, a step after another; a step is an epoch of the recipe."""
    last = result.get("epochs_done")
    if last is None:
        return []
    losses = json.loads(result.get("losses", "[]"))
    first = last - len(losses) + 1
    told = [{"training_iteration": first + k, "loss": epoch} for k, epoch in enumerate(losses)]
    facts = {name: result[name] for name in SCALARS if result.get(name) is not None}
    return [*told, {"training_iteration": last} | facts]


# What a trial reports of itself beside its outcome: after each stage, of all stages so far, and at its end.
SCALARS = (
    *(
        "stages_done",
        "val_accuracy",
        "error",
        "train_flops",
        "device_seconds",
        "agreement_teacher",
        "agreement_previous",
    ),
    *("test_accuracy", "test_best_accuracy"),
)


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """tensorboardX imports torch where it can, to take tensors; on a driver, which has none, that costs seconds."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # importing it fails, as where it isn't installed
    try:
        yield
    finally:
        del sys.modules["torch"]


def _mlflow() -> LoggerCallback:
    """Ray's callback imports mlflow, which takes long: only where it is asked for."""
    from mlflow import MlflowClient
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    class OneRunEach(MLflowLoggerCallback):
        """One run for one training, however often it starts."""

        def log_trial_start(self, trial: Any) -> None:
            if trial not in self._trial_runs:
                client = MlflowClient()
                same = f"tags.training = '{trial.trial_id}'"
                for run in client.search_runs([str(self.mlflow_util.experiment_id)], filter_string=same):
                    client.delete_run(run.info.run_id)
            self.tags = {"training": trial.trial_id}
            super().log_trial_start(trial)

    named = {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & os.environ.keys()
    return OneRunEach(experiment_name=None if named else _PROJECT)


def _made(name: str, folder: Path) -> LoggerCallback:
    """A logger of Ray's; where it sends to is in the environment, as its tool has it."""
    match name:
        case "tensorboard":
            with _without_torch():
                return TBXLoggerCallback()  # type: ignore[no-untyped-call]
        case "mlflow":
            return _mlflow()
        case _:
            from ray.air.integrations.wandb import WandbLoggerCallback

            where: dict[str, Any] = {} if "WANDB_DIR" in os.environ else {"dir": str(folder)}
            return WandbLoggerCallback(project=None if "WANDB_PROJECT" in os.environ else _PROJECT, **where)
