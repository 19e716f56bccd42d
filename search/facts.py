"""What a search says of its teacher, student and data; asked on a worker, where the device is."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from smskd import cost, given_teacher, job, models
from smskd.bench import Bench
from smskd.data import Data
from smskd.experiment import Experiment
from smskd.recipe import Stage

_TIMED_STEPS = 5


def describe(bench: Bench, *, latency: bool, timed: bool) -> dict[str, Any]:
    """Facts of the bench, as run.json has them.

    latency: measure the student's, in milliseconds; otherwise None. timed: as in `epoch`.
    """
    data, looked_at = bench.data, given_teacher.accuracies(bench)
    student = models.build(bench.pair.student, **data.shape).to(bench.device)
    return {
        "teacher": {
            "name": bench.pair.teacher.name,
            "params": cost.parameters(bench.teacher.network),
            "val_accuracy": bench.teacher_accuracy,
            "source": bench.teachers[0].source,
            "digest": bench.teacher_digest,
        }
        | ({} if looked_at is None else _of_given(looked_at)),
        "student": {"name": bench.pair.student.name, "params": cost.parameters(student)},
        "dataset": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "train": len(data.train),
            "validation": len(data.validation),
            "test": len(data.test),
            "height": data.height,
            "width": data.width,
            "channels": data.channels,
            "classes": data.classes,
            "class_names": data.class_names and list(data.class_names),
            "mean": data.mean.flatten().tolist(),
            "std": data.std.flatten().tolist(),
            "pixels": str(data.train.images[:1].dtype).removeprefix("torch."),
        },
        "latency_ms": cost.latency_ms(student, data.normalised(data.train.images[:1])) if latency else None,
        "epoch": epoch(bench.experiment, data, timed=timed),
        "environment": job.environment(bench.device, bench.numerics),
    }


def _of_given(teacher: given_teacher.Accuracies) -> dict[str, Any]:
    """What is told of a teacher that wasn't trained here alone."""
    return {
        "train_accuracy": teacher.train,
        "test_accuracy": teacher.test,
        "warnings": list(teacher.warnings),
    }


def epoch(experiment: Experiment, data: Data, *, timed: bool) -> dict[str, float]:
    """What one epoch takes of the bare student's training, and beside it of the teacher's and the student's forward.

    In FLOPs, `train_flops`, `teacher_flops`, `student_flops`; and if `timed` in seconds of this device, by the median
    of a few steps: `train_seconds`, `teacher_seconds`, `student_seconds`.
    """
    student, teacher = (
        models.build(spec, **data.shape).to(data.mean.device)
        for spec in (experiment.networks.student, experiment.networks.teacher)
    )
    size = min(Stage(methods=("ce",)).training(experiment.defaults).batch_size, len(data.train))
    steps = len(data.train) // size
    batch = data.normalised(data.train.images[:size])
    forward = {
        name: steps * size * cost.forward_flops(network, batch[:2], images=len(batch[:2]))
        for name, network in (("student", student), ("teacher", teacher))
    }
    found = {f"{name}_flops": flops for name, flops in forward.items()}
    found["train_flops"] = cost.TRAINING_OVER_FORWARD * forward["student"]
    if timed:
        labels = data.train.labels[:size]
        for name, network in (("train", student), ("teacher", teacher.eval()), ("student", student)):
            with torch.set_grad_enabled(name == "train"):
                found[f"{name}_seconds"] = steps * _step_seconds(network, batch, labels if name == "train" else None)
    return found


def _step_seconds(network: nn.Module, batch: torch.Tensor, labels: torch.Tensor | None) -> float:
    """Median of a few forward passes, and backward ones where there are labels [B]; the first two don't count."""
    times = []
    for _ in range(_TIMED_STEPS + 2):
        started = time.perf_counter()
        output = network(batch)
        if labels is not None:
            torch.autograd.backward(cross_entropy(output.logits, labels))
        if batch.is_cuda:
            torch.cuda.synchronize(batch.device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])
