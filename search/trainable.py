"""What a Ray worker runs: one recipe with one seed. Imported by workers, so it imports no more than they need."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ray import tune

from search import nodes

if TYPE_CHECKING:
    from search.study import Record
    from smskd import pipeline

_REPORT_EVERY_S = 1.0
# The driver hears of progress so often before it would take a trial for hung.
_BEATS = 10


def failure(seed: int, cause: str) -> Record:
    """The record of a trial that failed."""
    return {"seed": seed, "status": "failed", "error": cause, "params": None, "stages": [], "test_accuracy": None}


def _said(error: Exception, batch_size: int) -> str:
    """What is recorded of an exception; where memory was short, the batch size is named."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or any(sign in text for sign in ("out of memory", "can't allocate memory")):
        text += (
            f" (batch size {batch_size}, as the pair has it: it is never changed, since that changes the results; "
            "use a device with more memory, or leave more of it to each trial, with gpus= or cpus=)"
        )
    return text


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
    locks = [(logger, logger.level) for logger in map(logging.getLogger, ("filelock", "smskd.remote"))]
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


def train(config: dict[str, Any]) -> None:
    """The trainable: one recipe, one seed, through the pipeline; reports its progress and, last, its outcome.

    An exception of the training is an outcome too: it would be the same the next time, so Ray needn't try again. One of
    the data or the teacher, or a full disk, is a problem of every trial, and is told as such; so is a student that is
    too slow. On a node of another kind than the search's nothing is trained.
    """
    if config["kind"] is not None and (why := nodes.here(config["kind"])) is not None:
        _report({"elsewhere": {"node": nodes.here_id(), "why": why}})
        return
    import torch

    from search import bench, disk
    from smskd import pairs, pipeline
    from smskd.recipe import parse

    torch.set_num_threads(max(1, int(config["cpus"])))
    recipe, seed = config["recipe"], config["seed"]
    stages_wanted = len(parse(recipe).stages)
    # stage: the one at work, from 1; 0 while the teacher is trained
    place: dict[str, Any] = {"stage": 1, "epoch": 0, "epochs": 0, "val_accuracy": None, "reused": 0}
    told = time.monotonic()
    trained = 0
    finished: list[pipeline.StageResult] = []

    def tell(every: float) -> None:
        nonlocal told
        if time.monotonic() - told >= every:
            told = time.monotonic()
            tune.report(dict(place))

    def on_epoch(stage: int, epoch: int, epochs: int) -> None:
        place.update(stage=stage, epoch=epoch, epochs=epochs)
        tell(_REPORT_EVERY_S)

    def on_stage(number: int, result: pipeline.StageResult) -> None:
        nonlocal told, trained
        trained += result.trained
        finished.append(result)
        place.update(stage=min(number + 1, stages_wanted), epoch=0, val_accuracy=result.val_accuracy)
        if not result.trained:
            place["reused"] = number
        if (
            number < stages_wanted
        ):  # the last one's scalars go with the outcome; others may want a stage that was trained
            told = time.monotonic()
            tune.report(place | (_scalars(finished) if config["log"] else {}))

    beat = functools.partial(tell, config["hang_after"] / _BEATS)
    chosen = pairs.choose(*(config["pipeline"].get(key) for key in ("pair", "teacher_model", "student_model")))
    try:
        with _progress_told(beat):
            prepared = pipeline.prepare(**config["pipeline"], on_epoch=functools.partial(on_epoch, 0))
        wanted = {"latency": config["latency"], "timed": config["timed"]}
        described = bench.describe(prepared, **wanted) if config["describe"] else None
    except Exception as error:
        said = disk.trouble(error) or _said(error, chosen.teacher_schedule.batch_size)
        _report({"problem": f"data and teacher can't be prepared: {said}"})
        return
    most = config["max_latency_ms"]
    if described is not None and most is not None and described["latency_ms"] > most:
        took = f"the student takes {described['latency_ms']:.4g} ms for one image where its trials run"
        _report(
            {"refused": f"max_latency_ms={most:g} can't hold for any recipe: {took}; give more, or another student"}
        )
        return
    place.update(stage=1, epoch=0, epochs=0)
    record: Record
    try:
        with _progress_told(beat):
            result = pipeline.run(
                recipe, seed=seed, epochs=config["epochs"], epochs_total=config["epochs_total"], on_stage=on_stage,
                on_epoch=on_epoch, test_each_epoch=config["test"] and config["protocol"] == "paper",
                **config["pipeline"],
            )  # fmt: skip
        named = ("key", "val_accuracy", "train_flops", "device_seconds", "anchor_weights")
        stages: Any = [{k: getattr(s, k) for k in named} | asdict(s.kept) for s in result.stages]
        record = {
            "seed": seed, "status": "complete", "error": None, "params": result.params, "stages": stages,
            "test_accuracy": pipeline.test_accuracy(result, prepared) if config["test"] else None,
            "extra_teacher_flops": result.extra_teacher_flops, "test_best_accuracy": result.test_best_accuracy,
        }  # fmt: skip
    except Exception as error:
        if (cause := disk.trouble(error)) is not None:
            _report({"problem": cause})
            return
        # whatever else it is, it is this trial's result, with its cause
        where = f"stage {place['stage']} of {stages_wanted}"
        record = failure(seed, f"{where}: {_said(error, chosen.student_schedule.batch_size)}")
    scalars: dict[str, Any] = {}
    if record["status"] != "failed":
        of_test = {k: v for k in ("test_accuracy", "test_best_accuracy") if (v := record.get(k)) is not None}
        scalars = _scalars(finished) | of_test
    outcome = {"record": record, "trained": trained, "teacher": prepared.teacher_digest, "bench": described}
    _report(outcome, scalars)


def _report(outcome: dict[str, Any], scalars: Mapping[str, Any] = MappingProxyType({})) -> None:
    # as text, since Tune flattens what it is given
    tune.report({"outcome": json.dumps(outcome), **scalars})


def _scalars(finished: Sequence[pipeline.StageResult]) -> dict[str, Any]:
    """What there is to plot of the stages so far: costs of all of them, the rest of the last one."""
    last = finished[-1]
    return {
        "stages_done": len(finished),
        "epochs_done": sum(len(result.losses) for result in finished),
        "val_accuracy": last.val_accuracy,
        "error": 1 - last.val_accuracy,
        "train_flops": sum(result.train_flops for result in finished),
        "device_seconds": sum(result.device_seconds for result in finished),
        "agreement_teacher": last.kept.agreement_teacher,
        "agreement_previous": last.kept.agreement_previous,
        "losses": json.dumps([dict(epoch) for epoch in last.losses]),
    }
