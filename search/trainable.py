"""What a Ray worker runs: one recipe with one seed. Imported by workers, so it imports no more than they need."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ray import tune

from search import nodes
from smskd import blame, code
from smskd.notation import parse
from smskd.recipe import Recipe
from smskd.result import FAILED, Result, StageResult, failure

if TYPE_CHECKING:
    from smskd.bench import Bench

_REPORT_EVERY_S = 1.0
# The driver hears of progress so often before it would take a trial for hung.
_BEATS = 10


def _said(error: Exception, batch_size: int | None = None) -> str:
    """What is recorded of an exception; where memory was short, with the batch size."""
    text, _ = blame.text_of(error)
    if not blame.out_of_memory(error):
        return text
    return text + (
        f" (batch size {batch_size or 'of the teacher'}: it is never changed by itself, since that changes the "
        "results; use a device with more memory, leave more of it to each trial, with gpus= or cpus=, or set "
        "batch_size=)"
    )


@contextlib.contextmanager
def _progress_told(tell: Callable[[], None]) -> Iterator[None]:
    """Within, `tell` is called at each step of an optimizer, and again and again while this thread waits for a lock:
    for a stage that another process trains, which is for that one's driver to watch.
    """
    from torch.optim.optimizer import register_optimizer_step_post_hook

    thread = threading.get_ident()

    def waits(record: logging.LogRecord) -> bool:
        if threading.get_ident() == thread:
            tell()
        return record.levelno > logging.DEBUG

    # both log each of their tries
    locks = [(logger, logger.level) for logger in map(logging.getLogger, ("filelock", "smskd.store.remote"))]
    for logger, _ in locks:
        logger.setLevel(logging.DEBUG)
        logger.addFilter(waits)
    steps = register_optimizer_step_post_hook(lambda *step: tell())
    try:
        yield
    finally:
        steps.remove()
        for logger, level in locks:
            logger.removeFilter(waits)
            logger.setLevel(level)


class Benches:
    """The last two benches of a worker: it runs many trials of each. files: as smskd.code.bundle has them."""

    def __init__(self, files: Mapping[str, Any]) -> None:
        self.files = files
        self._made: dict[str, Bench] = {}

    def get(self, config: Mapping[str, Any], on_epoch: Callable[[int, int], None]) -> Bench:
        """The bench of a trial, made ready if it isn't yet."""
        from smskd import bench, experiment
        from smskd.store import open_store

        worker = config["worker"]
        key = json.dumps([worker, config["device"]], sort_keys=True)
        if key not in self._made:
            made = bench.prepare(
                experiment.of_dict(worker["experiment"]),
                open_store(worker["store"], worker["store_key"]),
                device=config["device"],
                on_epoch=on_epoch,
            )
            while len(self._made) >= 2:
                del self._made[next(iter(self._made))]
            self._made[key] = made
        return self._made[key]


class _Told:
    """What a trial reports while it is at work. seen: validation images are trained on, so nothing there is told."""

    def __init__(self, stages: int, *, log: bool, seen: bool) -> None:
        # stage: the one at work, from 1; 0 while the teacher is trained
        self.progress: dict[str, Any] = {"stage": 1, "epoch": 0, "epochs": 0, "val_accuracy": None, "reused": 0}
        self.finished: list[StageResult] = []
        self._stages, self._log, self._seen, self._last = stages, log, seen, time.monotonic()

    def tell(self, every: float) -> None:
        if time.monotonic() - self._last >= every:
            self._report()

    def on_epoch(self, stage: int, epoch: int, epochs: int) -> None:
        self.progress.update(stage=stage, epoch=epoch, epochs=epochs)
        self.tell(_REPORT_EVERY_S)

    def on_stage(self, number: int, result: StageResult) -> None:
        self.finished.append(result)
        accuracy = None if self._seen else result.val_accuracy
        self.progress.update(stage=min(number + 1, self._stages), epoch=0, val_accuracy=accuracy)
        if not result.trained:
            self.progress["reused"] = number
        if (
            number < self._stages
        ):  # the last one's scalars go with the outcome; others may want a stage that was trained
            self._report(self.scalars() if self._log else {})

    def scalars(self) -> dict[str, Any]:
        """What there is to plot of the stages so far: costs of all of them, the rest of the last one."""
        last = self.finished[-1]
        on_validation = {
            "val_accuracy": last.val_accuracy,
            "error": 1 - last.val_accuracy,
            "agreement_teacher": last.agreement_teacher,
            "agreement_previous": last.agreement_previous,
        }
        return {
            "stages_done": len(self.finished),
            "epochs_done": sum(len(result.losses) for result in self.finished),
            "train_flops": sum(result.train_flops for result in self.finished),
            "device_seconds": sum(result.device_seconds for result in self.finished),
            "losses": json.dumps([dict(epoch) for epoch in last.losses]),
            **({} if self._seen else on_validation),
        }

    def _report(self, more: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._last = time.monotonic()
        tune.report(self.progress | dict(more))


def train(benches: Benches, config: dict[str, Any]) -> None:
    """The trainable: one recipe, one seed, through the pipeline; reports its progress and, last, its outcome.

    An exception of the training is an outcome too: it would be the same the next time, so Ray needn't try again. One of
    the data or the teacher, or a full disk, is a problem of every trial, and is told as such; so is a student that is
    too slow. On a node of another kind than the search's nothing is trained.
    """
    if config["kind"] is not None and (why := nodes.here(config["kind"])) is not None:
        _report({"elsewhere": {"node": nodes.here_id(), "why": why}})
        return
    import torch

    from search import disk, facts

    code.install(benches.files)
    recipe = parse(config["recipe"])
    seen = config["worker"]["experiment"].get("train_on") == "all"
    told = _Told(len(recipe.stages), log=config["log"], seen=seen)
    beat = functools.partial(told.tell, config["hang_after"] / _BEATS)
    try:
        torch.set_num_threads(config["worker"]["experiment"].get("threads", 1))
        with _progress_told(beat):
            bench = benches.get(config, functools.partial(told.on_epoch, 0))
        wanted = {"latency": config["latency"], "timed": config["timed"]}
        described = facts.describe(bench, **wanted) if config["describe"] else None
    except Exception as error:
        _report({"problem": f"data and teacher can't be prepared: {disk.trouble(error) or _said(error)}"})
        return
    most = config["max_latency_ms"]
    if described is not None and most is not None and described["latency_ms"] > most:
        took = f"the student takes {described['latency_ms']:.4g} ms for one image where its trials run"
        _report(
            {"refused": f"max_latency_ms={most:g} can't hold for any recipe: {took}; give more, or another student"}
        )
        return
    told.progress.update(stage=1, epoch=0, epochs=0)
    try:
        with _progress_told(beat):
            result = _trained(bench, recipe, config, told)
    except Exception as error:
        if (cause := disk.trouble(error)) is not None:
            _report({"problem": cause})
            return
        # whatever else it is, it is this trial's result, with its cause
        stage = told.progress["stage"]
        size = recipe.stages[stage - 1].training(bench.experiment.defaults).batch_size
        cause = f"stage {stage} of {len(recipe.stages)}: {_said(error, size)}"
        result = failure(config["recipe"], config["seed"], cause, blame.text_of(error)[1])
    scalars: dict[str, Any] = {}
    if result.status != FAILED:
        tests = {"test_accuracy": result.test_accuracy, "test_best_accuracy": result.test_best_accuracy}
        scalars = told.scalars() | {name: value for name, value in tests.items() if value is not None}
    trained = sum(stage.trained for stage in told.finished)
    outcome = {"record": result.to_dict(), "trained": trained, "teacher": bench.teacher_digest, "bench": described}
    _report(outcome, scalars)


def _trained(bench: Bench, recipe: Recipe, config: Mapping[str, Any], told: _Told) -> Result:
    from smskd import pipeline

    looks = config["test"] and config["protocol"] == "paper"
    result = pipeline.distil(
        recipe, bench, seed=config["seed"], test_each_epoch=looks, on_stage=told.on_stage, on_epoch=told.on_epoch
    )
    if not config["test"]:
        return result
    return dataclasses.replace(result, test_accuracy=pipeline.test_accuracy(result, bench))


def _report(outcome: dict[str, Any], scalars: Mapping[str, Any] = MappingProxyType({})) -> None:
    # as text, since Tune flattens what it is given
    tune.report({"outcome": json.dumps(outcome), **scalars})
