"""train_stage(): the only training loop of the project. Students, stage by stage, and teachers go through it.

What a stage does depends on its arguments alone: every generator, optimiser, regressor and schedule starts here and
ends here. Deliberately not here: validation in the course of a stage, early stopping, the best epoch.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smskd import anchor, methods
from smskd.data import Data, Split
from smskd.methods import ce
from smskd.methods.base import Batch, Method, Task, View
from smskd.models import Output
from smskd.numerics import FLOAT32, Numerics
from smskd.pairs import Schedule
from smskd.recipe import Recipe, Stage
from smskd.teacher import TABLE_BYTES, Teacher

# Where a step schedule divides the learning rate by ten, as a share of the stage (150, 180, 210 of 240 epochs).
_MILESTONES = (0.625, 0.75, 0.875)
# A one-cycle schedule climbs from a 25th of its peak in the first 30 % of the steps.
_ONE_CYCLE_RISE, _ONE_CYCLE_START = 0.3, 1 / 25
# Images an evaluation step: so many, or fewer if they are large.
_EVALUATION_BATCH, _EVALUATION_PIXELS = 512, 2**22
# A table of the reference's outputs is kept where at least this share of them is asked for again.
_TABLE_PAYS = 0.25
_LOGITS = frozenset({"logits"})
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Diverged(RuntimeError):
    """A loss turned NaN or infinite."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What one stage's training was.

    losses: per epoch, the mean of each named, weighted term. images: how many went through the student.
    seconds: on the device, by a monotonic clock. anchor_weights: lambda of the samples of the last epoch, its mean and
    quantiles by name; empty without an anchor. terms: the methods as they were trained, regressors with them.
    """

    losses: tuple[Mapping[str, float], ...]
    images: int
    seconds: float
    anchor_weights: Mapping[str, float]
    terms: Sequence[Term]


@dataclass(frozen=True, kw_only=True)
class Term:
    """One method of a stage, and the teachers it listens to, by place; its losses count by `share`."""

    name: str
    method: Method
    teachers: tuple[int, ...]
    share: float

    def __call__(self, student: View, answers: Sequence[View] | Mapping[int, View], batch: Batch) -> dict[str, Tensor]:
        """Named, weighted losses; `answers` are the teachers', by place."""
        own = [answers[place] for place in self.teachers]
        answer = own[0] if len(own) == 1 else mean_answer(own, getattr(methods.load(self.name), "TEMPERATURE", 1.0))
        losses = self.method(student, answer, batch)
        return losses if self.share == 1 else {name: self.share * loss for name, loss in losses.items()}


def mean_answer(answers: Sequence[View], temperature: float) -> View:
    """Several teachers' logits as one: their softmax at the temperature is the mean of the teachers' probabilities.

    Probabilities are averaged, not logits: a teacher's logits have a scale of their own (You et al. 2017, multiple
    teacher networks, eq. 4). Other outputs are empty.
    """
    probabilities = torch.stack([(a.output.logits.detach().float() / temperature).log_softmax(dim=1) for a in answers])
    logits = temperature * (probabilities.logsumexp(dim=0) - math.log(len(answers)))
    return View(Output(logits=logits, features=(), embedding=logits.new_empty(0)), answers[0].hint_index)


def assigned(distils: Sequence[str], teachers: int) -> list[tuple[int, ...]]:
    """For each method of a stage, in order, the teachers it listens to: dealt out in turn, none left over."""
    count = len(distils)
    if teachers < count:
        return [(place % teachers,) for place in range(count)]
    return [tuple(range(place, teachers, count)) for place in range(count)]


def reads(stage: Stage, recipe: Recipe, *, first: bool, teacher: int = 0) -> frozenset[str]:
    """Which outputs of a teacher (by place) a stage looks at; empty where it needs none."""
    shares = zip(stage.distils, assigned(stage.distils, recipe.teachers), strict=True)
    wanted = frozenset[str]().union(*(methods.load(name).READS for name, own in shares if teacher in own))
    weighted = not first and recipe.anchored and recipe.weighting != "fixed"
    return wanted | {"logits"} if weighted else wanted


def build_terms(
    stage: Stage, student: View, teachers: Sequence[View], weights: Mapping[str, float], labels: Tensor
) -> list[Term]:
    """The stage's methods but for `ce`; arguments as in methods.base.Task, `weights` override the published ones."""
    terms = []
    for name, own in zip(stage.distils, assigned(stage.distils, len(teachers)) if teachers else (), strict=True):
        module = methods.load(name)
        # what is read off logits alone is read off their mean; other methods meet each of their teachers
        groups = [own] if frozenset({"logits"}) == module.READS else [(place,) for place in own]
        for group in groups:
            method = module.build(Task(student, teachers[group[0]], module.WEIGHTS | weights, labels))
            terms.append(Term(name=name, method=method, teachers=group, share=1 / len(groups)))
    return terms


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
    teachers: Sequence[Teacher],
    data: Data,
    schedule: Schedule,
    loss_weights: Mapping[str, float],
    epochs: int,
    seed: int,
    numerics: Numerics = FLOAT32,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> Training:
    """Train a student in place for one stage.

    Args:
        student: as the stage before left it, or fresh; in train mode afterwards.
        stage: which methods.
        recipe: its anchor settings; the stages aren't looked at.
        reference: the frozen student of the stage before; None: no anchor.
        teachers: as many as the recipe has; none for a stage that reads none of their outputs.
        data: on the student's device; the last, incomplete batch of an epoch is left out.
        schedule: the optimiser's settings.
        loss_weights: override the methods' published weights.
        epochs: at least 1.
        seed: of everything drawn in this stage.
        numerics: of the forward passes.
        on_epoch: called with the number of finished epochs.

    Raises:
        Diverged: a loss turned NaN or infinite; told with the epoch and the terms.
    """
    started = time.monotonic()
    device = data.mean.device
    count = len(data.train)
    batch = min(schedule.batch_size, count)
    steps = count // batch
    wanted = [reads(stage, recipe, first=reference is None, teacher=place) for place in range(len(teachers))]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        generator = torch.Generator(device).manual_seed(seed)
        shapes = [probe(teacher.network, data) for teacher in teachers if stage.distils]
        terms = build_terms(stage, probe(student, data), shapes, loss_weights, data.train.labels)
        for term in terms:
            term.method.to(device).train()
        ce_weight = ce.weight(stage.methods, ce.WEIGHTS | dict(loss_weights))
        parameters = [p for module in (student, *(t.method for t in terms)) for p in module.parameters()]
        optimizer = torch.optim.SGD(
            parameters,
            lr=schedule.learning_rate,
            momentum=schedule.momentum,
            nesterov=schedule.nesterov,
            weight_decay=schedule.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        cast = _cast(numerics, device)
        hold = None if reference is None else _hold(recipe, student, reference, data, epochs, seed, cast)
        student.train()
        forward = _compiled(student, numerics)
        losses = []
        anchor_weights: list[Tensor] = []
        for epoch in range(epochs):
            order = torch.randperm(count, generator=generator, device=device)
            views = torch.randint(data.views, (count,), generator=generator, device=device)
            names: list[str] = []
            anchor_weights = []
            total: Tensor = torch.zeros((), device=device)
            for step, (index, view, images, labels) in enumerate(data.batches(order, views, batch)):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(schedule, epoch * steps + step, epochs * steps)
                with cast():
                    output = View(forward(images), student.hint_index)  # type: ignore[arg-type]
                    answers = [t(index, view, images, w) for t, w in zip(teachers, wanted, strict=True) if w]
                named = {"ce": ce_weight * ce.cross_entropy(output.output.logits, labels)}
                for term in terms:
                    for name, loss in term(output, answers, Batch(labels, index)).items():
                        named[name] = named[name] + loss if name in named else loss
                if hold is not None:
                    weights = _weights(recipe, answers, labels)
                    anchor_weights.append(weights)
                    named["anchor"] = hold(output, index, view, images, weights)
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
    return Training(
        losses=tuple(losses),
        images=epochs * steps * batch,
        seconds=time.monotonic() - started,
        anchor_weights=_spread(anchor_weights),
        terms=terms,
    )


def _cast(numerics: Numerics, device: torch.device) -> Callable[[], contextlib.AbstractContextManager[object]]:
    """What forward passes run in."""
    if numerics.precision == "float32":
        return contextlib.nullcontext  # a hundredth of a small step quicker than an autocast that is off
    return functools.partial(torch.autocast, device.type, torch.bfloat16)


def _compiled(student: nn.Module, numerics: Numerics) -> Callable[[Tensor], Output]:
    """The student's forward pass; students of one network share what was compiled."""
    if numerics.compile == "off":
        return student
    mode = "reduce-overhead" if numerics.compile == "graphs" else "default"
    return torch.compile(student, mode=mode)


def _hold(
    recipe: Recipe,
    student: nn.Module,
    reference: nn.Module,
    data: Data,
    epochs: int,
    seed: int,
    cast: Callable[[], contextlib.AbstractContextManager[object]],
) -> Callable[[View, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """What anchors a step: from the student's outputs, places, views, images and the samples' weights to a loss."""
    if recipe.anchor == "ewc":
        generator = torch.Generator(data.mean.device).manual_seed(seed)
        chosen = torch.randperm(len(data.train), generator=generator, device=data.mean.device)[: anchor.FISHER_IMAGES]
        images, labels = data.normalised(data.train.images[chosen]), data.train.labels[chosen]
        information = anchor.fisher(reference, images, labels)
        live, before = dict(student.named_parameters()), dict(reference.named_parameters())
        return lambda output, index, view, images, weights: anchor.ewc_loss(live, before, information, weights.mean())

    # the reference is frozen like a teacher, but for this stage alone: a table pays where views come again in it
    pays = seen_again(data.views, epochs) >= _TABLE_PAYS
    frozen = Teacher(reference, data, table_bytes=TABLE_BYTES if pays else 0)

    def to_reference(output: View, index: Tensor, view: Tensor, images: Tensor, weights: Tensor) -> Tensor:
        with cast():
            logits = frozen(index, view, images, _LOGITS).output.logits
        return anchor.anchor_loss(output.output.logits, logits, weights, recipe.anchor_temperature)

    return to_reference


def seen_again(views: int, epochs: int) -> float:
    """Which share of the (image, view) that a stage draws it has, on average, drawn before."""
    return 1 - views * (1 - (1 - 1 / views) ** epochs) / epochs


def _weights(recipe: Recipe, answers: Sequence[View], labels: Tensor) -> Tensor:
    """lambda of each sample, [B]; of several teachers the mean probabilities count."""
    if recipe.weighting == "fixed":
        return anchor.reference_weights(labels[:, None], labels, "fixed", recipe.lambda_base)  # no teacher is asked
    answer = answers[0] if len(answers) == 1 else mean_answer(answers, 1.0)
    return anchor.reference_weights(answer.output.logits, labels, recipe.weighting, recipe.lambda_base)


def _spread(weights: Sequence[Tensor]) -> dict[str, float]:
    """Mean and quantiles of what the batches of an epoch had."""
    if not weights:
        return {}
    together = torch.cat(list(weights)).cpu()
    quantiles = torch.quantile(together, torch.tensor(QUANTILES)).tolist()
    return {"mean": float(together.mean())} | {
        f"q{round(100 * q):02d}": v for q, v in zip(QUANTILES, quantiles, strict=True)
    }


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
