"""What a search says of its teacher, student and data; asked on a worker, where the device is."""

from __future__ import annotations

from typing import Any

from smskd import cost, models, pipeline
from smskd.pipeline import Bench


def describe(bench: Bench, *, latency: bool) -> dict[str, Any]:
    """Facts of the bench, as run.json has them.

    latency: measure the student's, in milliseconds; otherwise None.
    """
    data = bench.data
    student = models.build(bench.pair.student.name, num_classes=data.classes, in_channels=data.channels).to(
        bench.device
    )
    return {
        "teacher": {
            "name": bench.pair.teacher.name,
            "params": cost.parameters(bench.teacher.network),
            "val_accuracy": bench.teacher_accuracy,
            "source": bench.teacher_source,
            "digest": bench.teacher_digest,
        },
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
        },
        "latency_ms": cost.latency_ms(student, data.normalised(data.train.images[:1])) if latency else None,
        "environment": pipeline.environment(bench.device, bench.numerics),
    }
