"""run(recipe, ...): a fold over the stages of a recipe, through the store. One recipe, one seed, in this process."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smskd import cost
from smskd import job as jobs
from smskd import stage as training_loop
from smskd.bench import Bench, fresh, prepare, teacher
from smskd.data import Data
from smskd.experiment import Experiment
from smskd.forgetting import Lineage
from smskd.job import StageJob
from smskd.notation import parse
from smskd.numerics import FLOAT32, Numerics
from smskd.recipe import Recipe
from smskd.result import Result, StageResult
from smskd.setup import Setup
from smskd.stage import Assignment, Term
from smskd.store import Entry, open_store
from smskd.teacher import Teacher

STORE = Path("runs/store")
OnStage = Callable[[int, StageResult], None]
OnEpoch = Callable[[int, int, int], None]


def run(
    recipe: Recipe | str,
    experiment: Experiment | None = None,
    *,
    teacher: nn.Module | Callable[..., nn.Module] | None = None,
    student: nn.Module | Callable[..., nn.Module] | None = None,
    data: Any = None,
    seed: int = 0,
    store: str | Path = STORE,
    device: str | None = None,
    on_stage: OnStage = lambda number, result: None,
    on_epoch: OnEpoch = lambda stage, epoch, epochs: None,
) -> Result:
    """Distil one student by one recipe; stages that the store has are taken from there.

    Args:
        recipe: a Recipe or its notation, such as "kd(temperature=2)>rkd weighting=tcp learning_rate=0.05".
        experiment: networks, data, teacher; None: Experiment(), `tiny` on digits.
        teacher, student: networks of one's own, in place of the experiment's pair: a module is taken with its weights
            (a teacher isn't trained then, and every student starts from them); a class or function (num_classes,
            in_channels) -> module makes one that is.
        data: in place of the experiment's: (train, test) or (train, validation, test), as smskd.sources.of_parts
            takes them.
        seed: of the student; the same seed starts every recipe from the same weights.
        store: finished stages, as smskd.store.open_store takes it.
        device: as torch names it; None: cuda if there is one, else cpu.
        on_stage: called with the stage's number, from 1, and its result, when it is finished or found.
        on_epoch: called with the stage's number, finished epochs, and all epochs of the stage.

    Raises:
        ValueError: a name or value is wrong; the message says which are right.
        smskd.blame.Diverged: a loss turned NaN.
    """
    recipe = parse(recipe) if isinstance(recipe, str) else recipe
    given = {"teacher_model": teacher, "student_model": student, "data": data}
    objects = {name: one for name, one in given.items() if one is not None}
    made = experiment or Experiment()
    if objects:
        changes: dict[str, Any] = {
            "objects": {**made.objects, **objects},
            "pair": None if objects.keys() - {"data"} else made.pair,
        }
        made = dataclasses.replace(made, **changes)
    bench = prepare(made, open_store(store), device=device)
    return distil(recipe, bench, seed=seed, on_stage=on_stage, on_epoch=on_epoch)


def distil(
    recipe: Recipe,
    bench: Bench,
    *,
    seed: int,
    test_each_epoch: bool = False,
    on_stage: OnStage = lambda number, result: None,
    on_epoch: OnEpoch = lambda stage, epoch, epochs: None,
) -> Result:
    """run() on a bench that is there; arguments and errors as there.

    test_each_epoch: look at the test split after every epoch, which changes nothing of the training. For runs whose
        choices are made.
    """
    recipe = bench.experiment.effective(recipe)
    student = fresh(bench.pair.student, bench.data, seed=jobs.derived_seed(seed, "student"))
    if bench.setup.initial is not None:
        student.load_state_dict(dict(bench.setup.initial.weights))
    parent: Entry | None = None
    results: list[StageResult] = []
    extra_flops = 0.0
    lineage, listened = Lineage(bench.validation), {0: bench.teacher.network}
    for number, prefix in enumerate(recipe.prefixes(), 1):
        job = job_of(prefix, bench, seed=seed, parent=parent, test_each_epoch=test_each_epoch)
        taught = [teacher(bench, k) for k in range(len(job.teachers))]
        extra_flops = max(extra_flops, sum(one.train_flops for one in taught[1:]))
        entry, trained = bench.setup.finish(
            job, student, parent=parent, teachers=[one.teacher for one in taught],
            on_epoch=functools.partial(on_epoch, number),
        )  # fmt: skip
        terms = _trained_terms(bench, student, job.assignment, entry)
        listened |= {k: taught[k].teacher.network for term in terms for k in term.teachers}
        ce_weight = job.assignment.training.ce or 0.0
        kept = lineage.add(student, ce_weight=ce_weight, terms=terms, teachers=listened)
        facts = {**entry.facts, "test_accuracies": tuple(entry.facts.get("test_accuracies", ()))}
        facts["losses"] = tuple(facts["losses"])
        results.append(StageResult(key=entry.key, digest=entry.digest, trained=trained, **vars(kept), **facts))
        on_stage(number, results[-1])
        parent = entry
    assert parent is not None
    return Result(
        recipe=str(recipe), seed=seed, stages=tuple(results), params=cost.parameters(student), weights=parent.weights,
        extra_teacher_flops=extra_flops,
    )  # fmt: skip


def job_of(prefix: Recipe, bench: Bench, *, seed: int, parent: Entry | None, test_each_epoch: bool = False) -> StageJob:
    """The last stage of a recipe's beginning, after `parent`; teachers that it asks are trained, if they aren't yet."""
    job = functools.partial(
        jobs.of_student, prefix, bench.experiment, bench.numerics, seed=seed,
        parent=None if parent is None else parent.digest, initial=bench.setup.initial_digest,
        test_each_epoch=test_each_epoch,
    )  # fmt: skip
    asks = job(teachers=()).assignment.asks
    return job(teachers=[teacher(bench, k).digest for k in range(prefix.teachers)] if asks else ())


def _trained_terms(bench: Bench, student: nn.Module, work: Assignment, entry: Entry) -> list[Term]:
    """A finished stage's methods, as they were when it ended."""
    if not work.methods:
        return []
    views = [training_loop.probe(teacher(bench, k).teacher.network, bench.data) for k in range(work.recipe.teachers)]
    with torch.random.fork_rng():
        terms = training_loop.build_terms(
            work, training_loop.probe(student, bench.data), views, bench.data.train.labels
        )
    learned = bench.store.methods(entry.key)
    for number, term in enumerate(terms):
        mine = {name.partition("/")[2]: t for name, t in learned.items() if name.partition("/")[0] == str(number)}
        term.method.to(bench.device).load_state_dict(mine)
    return terms


def test_accuracy(result: Result, bench: Bench) -> float:
    """Share of test images that a finished student gets right. Ask for it once, after everything is chosen."""
    student = fresh(bench.pair.student, bench.data, seed=0)
    student.load_state_dict(dict(result.weights))
    return training_loop.accuracy(student, bench.data, bench.data.test)


class Counter:
    """Counts what recipes cost, with networks that are built and not trained: equal to what training them records."""

    def __init__(self, experiment: Experiment, data: Data) -> None:
        """data: for the shapes, the labels and the number of training images."""
        self._experiment, self._data = experiment, data
        self._student = fresh(experiment.networks.student, data, seed=0)
        self._teacher = Teacher(fresh(experiment.networks.teacher, data, seed=0), data)
        self._counter = cost.FlopCounter(data)

    def recipe(self, recipe: Recipe) -> float:
        """Training FLOPs of all stages, as in Result."""
        total = 0.0
        views = [training_loop.probe(self._teacher.network, self._data)] * recipe.teachers
        mine = training_loop.probe(self._student, self._data)
        for prefix in self._experiment.effective(recipe).prefixes():
            parent = None if len(prefix.stages) == 1 else ""
            taught = [""] * recipe.teachers
            job = jobs.of_student(prefix, self._experiment, FLOAT32, seed=0, parent=parent, teachers=taught)
            work, asked = job.assignment, [self._teacher] * len(job.teachers)
            with torch.random.fork_rng(devices=[]):
                terms = training_loop.build_terms(work, mine, views, self._data.train.labels)
            total += self._counter.stage(job.network.name, work, self._student, terms, asked)
        return total


def held_stages(
    recipe: Recipe, experiment: Experiment, numerics: Numerics, setup: Setup, teachers: Mapping[int, str], *, seed: int
) -> int:
    """How many stages of a recipe, from its first, the store has: distil() won't train these. No file is verified.

    teachers: digests of those that there are, by number.
    """
    parent: str | None = None
    found = 0
    for prefix in experiment.effective(recipe).prefixes():
        known = [teachers.get(number, "missing") for number in range(prefix.teachers)]
        job = jobs.of_student(
            prefix, experiment, numerics, seed=seed, parent=parent, teachers=known, initial=setup.initial_digest
        )
        parent = setup.digest(job)
        if parent is None:
            break
        found += 1
    return found
