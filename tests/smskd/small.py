"""What the tests here train: tiny on a few digits, a recipe by the pipeline, or one stage by train_stage itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smskd import bench as benches
from smskd import job, models, pipeline
from smskd import stage as training
from smskd.bench import Bench
from smskd.data import Data
from smskd.experiment import Experiment
from smskd.notation import make
from smskd.numerics import FLOAT32
from smskd.recipe import Recipe
from smskd.result import Result
from smskd.stage import Assignment, Trained
from smskd.store import open_store
from smskd.teacher import Teacher


def experiment(**settings: Any) -> Experiment:
    """On 100 images; settings as Experiment's."""
    return Experiment(**({"train_size": 100} | settings))


def prepare(store: Path, **settings: Any) -> Bench:
    return benches.prepare(experiment(**settings), open_store(store), device="cpu")


def recipe(text: str, *, epochs: int = 1) -> Recipe:
    """Of so many epochs a stage, where the text doesn't say another number."""
    return make(text, {"epochs": epochs})


def run(text: str, store: Path, *, epochs: int = 1, seed: int = 0, **settings: Any) -> Result:
    """A recipe by the pipeline; settings as Experiment's."""
    return pipeline.run(recipe(text, epochs=epochs), experiment(**settings), seed=seed, store=store, device="cpu")


def fresh(seed: int = 0, name: str = "cifar/tiny_student") -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.build(name, num_classes=10, image=(1, 8, 8))


def assignment(text: str, *, epochs: int = 1, seed: int = 5, anchored: bool = False, **settings: Any) -> Assignment:
    """Of the last stage of a recipe. The seed doesn't depend on the recipe, as it does in run()."""
    made = experiment(**settings)
    whole = made.effective(recipe(text, epochs=epochs))
    own = job.of_student(whole, made, FLOAT32, seed=0, parent="0" if anchored else None, teachers=[""] * whole.teachers)
    return replace(own.assignment, seed=seed)


def train(
    student: nn.Module,
    text: str,
    data: Data,
    teachers: Sequence[Teacher] = (),
    *,
    reference: nn.Module | None = None,
    on_epoch: Callable[[int], None] = lambda epoch: None,
    **more: Any,
) -> Trained:
    """The last stage of a recipe, by train_stage itself; more: as assignment()'s."""
    work = assignment(text, anchored=reference is not None, **more)
    return training.train_stage(student, work, data, teachers=teachers, reference=reference, on_epoch=on_epoch)
