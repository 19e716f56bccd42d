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
from torch.optim import lr_scheduler

from smskd import anchor, methods
from smskd.blame import Diverged
from smskd.data import Data, Split
from smskd.methods import ce
from smskd.methods.base import Batch, Method, Task, View
from smskd.models import Output
from smskd.numerics import FLOAT32, Numerics
from smskd.recipe import Recipe
from smskd.settings import Value
from smskd.teacher import TABLE_BYTES, Teacher
from smskd.training import Training, idle

# A one-cycle schedule climbs from a 25th of its peak in the first 30 % of the steps, and falls to 0.
_ONE_CYCLE_RISE, _ONE_CYCLE_START = 0.3, 25
# Images an evaluation step: so many, or fewer if they are large.
_EVALUATION_BATCH, _EVALUATION_PIXELS = 512, 2**22
# A table of the reference's outputs is kept where at least this share of them is asked for again.
_TABLE_PAYS = 0.25
_LOGITS = frozenset({"logits"})
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What one stage is to do, every setting resolved.

    recipe: the stage is its last; its anchor settings count. training: how it is optimised. methods: settings of each
    method that distils, by name. anchored: whether it has a reference. seed: of everything drawn in this stage.
    numerics: of the forward passes.
    """

    recipe: Recipe
    training: Training
    methods: Mapping[str, Mapping[str, Value]]
    anchored: bool
    seed: int
    numerics: Numerics = FLOAT32

    @property
    def idle(self) -> set[str]:
        """Settings of the training that have no effect beside the others."""
        return idle(vars(self.training))

    @property
    def asks(self) -> bool:
        """Whether a teacher is asked."""
        return bool(self.methods) or self.weighs

    @property
    def weighs(self) -> bool:
        """Whether the anchor's weights come from a teacher."""
        return self.anchored and self.recipe.weighting != "fixed"

    def reads(self, teacher: int = 0) -> frozenset[str]:
        """Which outputs of a teacher (by number) the stage looks at; empty where it needs none."""
        shares = zip(self.methods.items(), assigned(tuple(self.methods), self.recipe.teachers), strict=True)
        wanted = frozenset[str]().union(*(reads_of(name, own) for (name, own), of in shares if teacher in of))
        return wanted | {"logits"} if self.weighs else wanted


def reads_of(method: str, settings: Mapping[str, Value]) -> frozenset[str]:
    """Which of a teacher's outputs a method looks at, as its file says."""
    module = methods.load(method)
    found: frozenset[str] = module.reads(settings) if hasattr(module, "reads") else module.READS
    return found


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What one stage's training was.

    losses: per epoch, the mean of each named, weighted term. images: how many went through the student.
    seconds: on the device, by a monotonic clock. anchor_weights: lambda of the samples of the last epoch, its mean and
    quantiles by name; empty without an anchor. terms: the methods as they were trained, regressors with them.
    """

    losses: tuple[dict[str, float], ...]
    images: int
    seconds: float
    anchor_weights: dict[str, float]
    terms: Sequence[Term]


@dataclass(frozen=True, kw_only=True)
class Term:
    """One method of a stage, and the teachers it listens to, by number; its losses count by `share`."""

    name: str
    method: Method
    teachers: tuple[int, ...]
    share: float

    def __call__(self, student: View, answers: Sequence[View] | Mapping[int, View], batch: Batch) -> dict[str, Tensor]:
        """Named, weighted losses; `answers` are the teachers', by number."""
        own = [answers[number] for number in self.teachers]
        answer = own[0] if len(own) == 1 else mean_answer(own, self.method.settings.get("temperature", 1.0))
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
        return [(number % teachers,) for number in range(count)]
    return [tuple(range(number, teachers, count)) for number in range(count)]


def build_terms(work: Assignment, student: View, teachers: Sequence[View], labels: Tensor) -> list[Term]:
    """The stage's methods but for `ce`; the rest as in methods.base.Task."""
    terms = []
    shares = assigned(tuple(work.methods), len(teachers)) if teachers else ()
    for (name, settings), own in zip(work.methods.items(), shares, strict=True):
        # what is read off logits alone is read off their mean; other methods meet each of their teachers
        alone = frozenset({"logits"}) == reads_of(name, settings)
        for group in [own] if alone else [(number,) for number in own]:
            method = methods.load(name).build(Task(student, teachers[group[0]], settings, labels))
            terms.append(Term(name=name, method=method, teachers=group, share=len(group) / len(own)))
    return terms


def probe(network: nn.Module, data: Data) -> View:
    """All outputs of two training images in eval mode, for their shapes; no state is moved."""
    training = network.training
    network.eval()
    with torch.no_grad():
        output: Output = network(data.normalised(data.train.images[:2]), before_relu=True)
    network.train(training)
    return View(output, network.hint_index)  # type: ignore[arg-type]


def optimizer_of(parameters: Sequence[nn.Parameter], training: Training, device: torch.device) -> torch.optim.Optimizer:
    """SGD or AdamW on these parameters, with the settings of a stage's training."""
    fused = device.type in ("cpu", "cuda")
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=fused)
    momentum, nesterov = training.momentum, training.nesterov
    return torch.optim.SGD(parameters, rate, momentum=momentum, nesterov=nesterov, weight_decay=decay, fused=fused)


def schedule_of(optimizer: torch.optim.Optimizer, training: Training, steps: int) -> lr_scheduler.LRScheduler:
    """The learning rate of each step of a stage: of `steps` an epoch, stepped after each."""
    rising, whole = training.warmup_epochs * steps, training.epochs * steps
    rest = whole - rising
    main: lr_scheduler.LRScheduler
    match training.schedule:
        case "step":
            ends = [math.ceil(share * rest) for share in training.milestones]
            main = lr_scheduler.MultiStepLR(optimizer, ends, gamma=0.1)
        case "cosine":
            main = lr_scheduler.CosineAnnealingLR(optimizer, T_max=rest)
        case "one_cycle":  # one step more, which would be of rate 0, so that the last is still of use
            rise = (_ONE_CYCLE_RISE * whole + 1) / (whole + 1)
            main = lr_scheduler.OneCycleLR(
                optimizer, training.learning_rate, whole + 1, pct_start=rise, div_factor=_ONE_CYCLE_START,
                final_div_factor=math.inf, cycle_momentum=False,
            )  # fmt: skip
        case _:
            main = lr_scheduler.ConstantLR(optimizer, factor=1.0)
    if not rising:
        return main
    climb = lr_scheduler.LinearLR(optimizer, start_factor=1 / (rising + 1), total_iters=rising)
    return lr_scheduler.SequentialLR(optimizer, [climb, main], milestones=[rising])


def train_stage(
    student: nn.Module,
    work: Assignment,
    data: Data,
    *,
    teachers: Sequence[Teacher] = (),
    reference: nn.Module | None = None,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> Trained:
    """Train a student in place for one stage.

    Args:
        student: as the stage before left it, or fresh; in train mode afterwards.
        work: what the stage is to do.
        data: on the student's device; the last, incomplete batch of an epoch is left out.
        teachers: as many as the recipe has; none for a stage that reads none of their outputs.
        reference: the frozen student of the stage before, if the stage is anchored.
        on_epoch: called with the number of finished epochs.

    Raises:
        Diverged: a loss turned NaN or infinite; told with the epoch and the terms.
    """
    assert (reference is not None) == work.anchored, "an anchored stage has a reference, and no other has"
    started = time.monotonic()
    device = data.mean.device
    training, seed, ce_weight = work.training, work.seed, work.training.ce
    assert ce_weight is not None, "every setting of an assignment is resolved"
    count, epochs = len(data.train), training.epochs
    batch = min(training.batch_size, count)
    steps = count // batch
    wanted = [work.reads(number) for number in range(len(teachers))]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        generator = torch.Generator(device).manual_seed(seed)
        shapes = [probe(teacher.network, data) for teacher in teachers if work.methods]
        terms = build_terms(work, probe(student, data), shapes, data.train.labels)
        for term in terms:
            term.method.to(device).train()
        parameters = [p for module in (student, *(t.method for t in terms)) for p in module.parameters()]
        optimizer = optimizer_of(parameters, training, device)
        schedule = schedule_of(optimizer, training, steps)
        cast = _cast(work.numerics, device)
        hold = None if reference is None else _hold(work, student, reference, data, cast)
        student.train()
        forward = _compiled(student, work.numerics)
        losses = []
        anchor_weights: list[Tensor] = []
        for epoch in range(epochs):
            order = torch.randperm(count, generator=generator, device=device)
            views = torch.randint(data.views, (count,), generator=generator, device=device)
            names: list[str] = []
            anchor_weights = []
            total: Tensor = torch.zeros((), device=device)
            for index, view, images, labels in data.batches(order, views, batch):
                with cast():
                    output = View(forward(images), student.hint_index)  # type: ignore[arg-type]
                    answers = [t(index, view, images, w) for t, w in zip(teachers, wanted, strict=True) if w]
                named = {"ce": ce_weight * ce.cross_entropy(output.output.logits, labels, training.label_smoothing)}
                for term in terms:
                    for name, loss in term(output, answers, Batch(labels, index, epoch + 1)).items():
                        named[name] = named[name] + loss if name in named else loss
                if hold is not None:
                    weights = _weights(work.recipe, answers, labels)
                    anchor_weights.append(weights)
                    named["anchor"] = hold(output, index, view, images, weights)
                stacked = torch.stack(list(named.values()))
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(stacked.sum())
                if training.clip_norm:
                    torch.nn.utils.clip_grad_norm_(parameters, training.clip_norm)
                optimizer.step()
                schedule.step()
                names, total = list(named), total + stacked.detach()
            means = dict(zip(names, (total / steps).tolist(), strict=True))
            if not all(map(math.isfinite, means.values())):
                raise Diverged(f"the loss is not finite in epoch {epoch + 1} of {epochs}: {_shown(means)}")
            losses.append(means)
            on_epoch(epoch + 1)
        optimizer.zero_grad(set_to_none=True)  # the last step's gradients would live as long as a frozen teacher does
    return Trained(
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
    work: Assignment,
    student: nn.Module,
    reference: nn.Module,
    data: Data,
    cast: Callable[[], contextlib.AbstractContextManager[object]],
) -> Callable[[View, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """What anchors a step: from the student's outputs, places, views, images and the samples' weights to a loss."""
    recipe, training = work.recipe, work.training
    if recipe.anchor == "ewc":
        generator = torch.Generator(data.mean.device).manual_seed(work.seed)
        chosen = torch.randperm(len(data.train), generator=generator, device=data.mean.device)[: anchor.FISHER_IMAGES]
        images, labels = data.normalised(data.train.images[chosen]), data.train.labels[chosen]
        information = anchor.fisher(reference, images, labels)
        live, before = dict(student.named_parameters()), dict(reference.named_parameters())
        return lambda output, index, view, images, weights: anchor.ewc_loss(live, before, information, weights.mean())

    # the reference is frozen like a teacher, but for this stage alone: a table pays where views come again in it
    pays = seen_again(data.views, training.epochs) >= _TABLE_PAYS
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
