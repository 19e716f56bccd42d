"""train_stage(): the only training loop of the project. Students, stage by stage, and teachers go through it.

What a stage does depends on its arguments alone: every generator, optimiser, regressor and schedule starts here and
ends here. Deliberately not here: validation in the course of a stage, early stopping, the best epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smskd import anchor, methods
from smskd.data import Data, Split
from smskd.methods import ce
from smskd.methods.base import Batch, Method, Task, View
from smskd.models import Output
from smskd.pairs import Schedule
from smskd.recipe import Recipe, Stage
from smskd.teacher import Teacher

# Where a step schedule divides the learning rate by ten, as a share of the stage (150, 180, 210 of 240 epochs).
_MILESTONES = (0.625, 0.75, 0.875)
# A one-cycle schedule climbs from a 25th of its peak in the first 30 % of the steps.
_ONE_CYCLE_RISE, _ONE_CYCLE_START = 0.3, 1 / 25
# Images an evaluation step: so many, or fewer if they are large.
_EVALUATION_BATCH, _EVALUATION_PIXELS = 512, 2**22


class Diverged(RuntimeError):
    """A loss turned NaN or infinite."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What one stage's training was.

    losses: per epoch, the mean of each named, weighted term. images: how many went through the student.
    seconds: on the device, by a monotonic clock.
    """

    losses: tuple[Mapping[str, float], ...]
    images: int
    seconds: float


def reads(stage: Stage, recipe: Recipe, *, first: bool) -> frozenset[str]:
    """Which of the teacher's outputs a stage looks at; empty where it needs no teacher."""
    wanted = frozenset().union(*(methods.load(name).READS for name in stage.distils))
    weighted = not first and recipe.anchored and recipe.weighting != "fixed"
    return wanted | {"logits"} if weighted else wanted


def build_methods(
    stage: Stage, student: View, teacher: View | None, weights: Mapping[str, float], labels: Tensor
) -> dict[str, Method]:
    """The stage's methods but for `ce`; arguments as in methods.base.Task, `weights` override the published ones."""
    built = {}
    for name in stage.distils:
        assert teacher is not None, f"{name} needs a teacher"
        module = methods.load(name)
        built[name] = module.build(Task(student, teacher, module.WEIGHTS | weights, labels))
    return built


def probe(network: nn.Module, data: Data) -> View:
    """Outputs of two training images in eval mode, for their shapes; no state is moved."""
    training = network.training
    network.eval()
    with torch.no_grad():
        output: Output = network(data.normalised(data.train.images[:2]))
    network.train(training)
    return View(output, network.hint_index)  # type: ignore[arg-type]


def learning_rate(schedule: Schedule, step: int, steps: int) -> float:
    """The learning rate of a step, from 0, of a stage of so many steps."""
    done = step / steps
    if schedule.schedule == "step":
        return schedule.learning_rate * 0.1 ** sum(done >= m for m in _MILESTONES)
    if done < _ONE_CYCLE_RISE:
        rise = 0.5 - 0.5 * math.cos(math.pi * done / _ONE_CYCLE_RISE)
        return schedule.learning_rate * (_ONE_CYCLE_START + (1 - _ONE_CYCLE_START) * rise)
    fall = 0.5 + 0.5 * math.cos(math.pi * (done - _ONE_CYCLE_RISE) / (1 - _ONE_CYCLE_RISE))
    return schedule.learning_rate * fall


def train_stage(
    student: nn.Module,
    *,
    stage: Stage,
    recipe: Recipe,
    reference: nn.Module | None,
    teacher: Teacher | None,
    data: Data,
    schedule: Schedule,
    loss_weights: Mapping[str, float],
    epochs: int,
    seed: int,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> Training:
    """Train a student in place for one stage.

    Args:
        student: as the stage before left it, or fresh; in train mode afterwards.
        stage: which methods.
        recipe: its anchor settings; the stages aren't looked at.
        reference: the frozen student of the stage before; None: no anchor.
        teacher: None for a stage that reads none of its outputs.
        data: on the student's device; the last, incomplete batch of an epoch is left out.
        schedule: the optimiser's settings.
        loss_weights: override the methods' published weights.
        epochs: at least 1.
        seed: of everything drawn in this stage.
        on_epoch: called with the number of finished epochs.

    Raises:
        Diverged: a loss turned NaN or infinite; told with the epoch and the terms.
    """
    started = time.monotonic()
    device = data.mean.device
    count = len(data.train)
    batch = min(schedule.batch_size, count)
    steps = count // batch
    wanted = reads(stage, recipe, first=reference is None)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        generator = torch.Generator(device).manual_seed(seed)
        teacher_shapes = probe(teacher.network, data) if teacher is not None and stage.distils else None
        terms = build_methods(stage, probe(student, data), teacher_shapes, loss_weights, data.train.labels)
        for method in terms.values():
            method.to(device).train()
        ce_weight = ce.weight(stage.methods, ce.WEIGHTS | dict(loss_weights))
        parameters = [p for module in (student, *terms.values()) for p in module.parameters()]
        optimizer = torch.optim.SGD(
            parameters,
            lr=schedule.learning_rate,
            momentum=schedule.momentum,
            nesterov=schedule.nesterov,
            weight_decay=schedule.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        student.train()
        losses = []
        for epoch in range(epochs):
            order = torch.randperm(count, generator=generator, device=device)
            views = torch.randint(data.views, (count,), generator=generator, device=device)
            names: list[str] = []
            total: Tensor = torch.zeros((), device=device)
            for step, (index, view, images, labels) in enumerate(data.batches(order, views, batch)):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(schedule, epoch * steps + step, epochs * steps)
                output = View(student(images), student.hint_index)  # type: ignore[arg-type]
                named = {"ce": ce_weight * ce.cross_entropy(output.output.logits, labels)}
                answer = teacher(index, view, images, wanted) if teacher is not None and wanted else None
                for method in terms.values():
                    named |= method(output, answer, Batch(labels, index))
                if reference is not None:
                    with torch.no_grad():
                        before = reference(images).logits
                    assert answer is not None or recipe.weighting == "fixed", "tcp weights come from a teacher"
                    logits = before if answer is None else answer.output.logits
                    weights = anchor.reference_weights(logits, labels, recipe.weighting, recipe.lambda_base)
                    named["anchor"] = anchor.anchor_loss(
                        output.output.logits, before, weights, recipe.anchor_temperature
                    )
                stacked = torch.stack(list(named.values()))
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(stacked.sum())
                optimizer.step()
                names, total = list(named), total + stacked.detach()
            means = dict(zip(names, (total / steps).tolist(), strict=True))
            if not all(map(math.isfinite, means.values())):
                raise Diverged(f"the loss is not finite in epoch {epoch + 1} of {epochs}: {_shown(means)}")
            losses.append(means)
            on_epoch(epoch + 1)
        optimizer.zero_grad(set_to_none=True)  # the last step's gradients would live as long as a frozen teacher does
    return Training(losses=tuple(losses), images=epochs * steps * batch, seconds=time.monotonic() - started)


def accuracy(network: nn.Module, data: Data, split: Split) -> float:
    """Share of a split's images that a network classifies right, in eval mode; its own mode is as before."""
    training = network.training
    network.eval()
    size = max(1, min(_EVALUATION_BATCH, _EVALUATION_PIXELS // (data.height * data.width)))
    with torch.inference_mode():
        right = [
            (network(data.normalised(images)).logits.argmax(dim=1) == labels).sum()
            for images, labels in split.batches(size)
        ]
    network.train(training)
    return float(sum(int(r) for r in right) / len(split))


def _shown(means: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in means.items())
