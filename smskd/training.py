"""How a network is optimised in one stage: the settings, their bounds and what they need of each other. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from smskd.settings import Setting, Value, check_all, declared, setting, text_of

SCHEDULES = ("step", "cosine", "one_cycle", "constant")
OPTIMIZERS = ("sgd", "adamw")
TEACHER = "teacher_"  # begins the names of the same settings for a teacher that is trained


@dataclass(frozen=True, kw_only=True)
class Training:
    """The training of one stage; the defaults are those customary on ImageNet, and pairs have their own.

    Optimiser, schedule and momentum start anew with each stage.

    Raises:
        ValueError: a value is out of bounds, or two don't go together.
    """

    epochs: int = setting(30, "epochs of a stage", low=1, high=10**6)
    learning_rate: float = setting(0.1, "its start, or its peak in one_cycle", above=0)
    schedule: str = setting("step", "of the learning rate in a stage", choices=SCHEDULES)
    milestones: tuple[float, ...] = setting(
        (0.625, 0.75, 0.875), "where schedule=step divides by ten, as shares of the stage", above=0, below=1
    )
    warmup_epochs: int = setting(0, "epochs in which the rate climbs from near 0", low=0)
    optimizer: str = setting("sgd", "of student and regressors", choices=OPTIMIZERS)
    momentum: float = setting(0.9, "of optimizer=sgd", low=0, below=1)
    nesterov: bool = setting(False, "momentum looks ahead, in optimizer=sgd")
    weight_decay: float = setting(1e-4, "of all weights", low=0)
    batch_size: int = setting(64, "images a step", low=1, high=10**6)
    label_smoothing: float = setting(0.0, "of cross-entropy's targets", low=0, below=1)
    clip_norm: float = setting(0.0, "gradients of a larger norm are scaled down to it; 0: none is", low=0)
    ce: float | None = setting(
        None, "weight of cross-entropy on the labels (default: the methods': 1, 0.1 beside kd)", low=0
    )

    def __post_init__(self) -> None:
        check_all(self)
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs < epochs must hold, but got warmup_epochs={self.warmup_epochs}, epochs={self.epochs}"
            )
        if self.warmup_epochs and self.schedule == "one_cycle":
            raise ValueError("schedule=one_cycle climbs by itself: leave warmup_epochs= out, or take another schedule")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones= must rise, but got milestones={text_of(self.milestones)}")
        if self.nesterov and not self.momentum and self.optimizer == "sgd":
            raise ValueError(f"momentum > 0 with nesterov must hold, but got momentum={text_of(self.momentum)}")


SETTINGS: Mapping[str, Setting] = declared(Training)
TEACHER_SETTINGS: Mapping[str, Setting] = {
    TEACHER + name: replace(one, name=TEACHER + name) for name, one in SETTINGS.items() if name != "ce"
}


def idle(values: Mapping[str, Value]) -> set[str]:
    """Names of training settings that have no effect beside the others."""
    found = set() if values["optimizer"] == "sgd" else {"momentum", "nesterov"}
    return found | (set() if values["schedule"] == "step" else {"milestones"})
