"""StageJob: one stage of one recipe with one seed, and its key: all that its result is a function of."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from smskd import anchor, methods, models
from smskd import stage as training_loop
from smskd.components import TIMM, TORCHVISION, Network
from smskd.data import Data
from smskd.experiment import Experiment
from smskd.files import ImageFiles, Streamed, fitted
from smskd.methods import base, ce, kd
from smskd.numerics import Numerics
from smskd.recipe import Recipe, Stage
from smskd.stage import Assignment
from smskd.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class StageJob:
    """A stage to be found in the store, or trained into it.

    network: of the student. parent: digest of the stage before; None for the first. teachers: digests of those that it
    asks. init: of the first stage's weights the seed, or the digest if they are from a file. test_each_epoch: look at
    the test split after each epoch, which makes it an entry of its own, with the same weights.
    """

    network: Network
    assignment: Assignment
    parent: str | None
    teachers: tuple[str, ...]
    init: int | str
    test_each_epoch: bool = False

    def identity(self, data: Data) -> dict[str, Any]:
        """All that the result is a function of; its address is the stage's key in the store."""
        work = self.assignment
        without = work.idle
        return {
            "format": 3,
            "network": self.network.name,
            **({} if self.network.layers is None else {"layers": list(self.network.layers)}),
            "image": [data.channels, data.height, data.width],
            "data": data.fingerprint,
            "methods": {name: dict(own) for name, own in work.methods.items()},
            "training": {name: value for name, value in asdict(work.training).items() if name not in without},
            "anchor": work.recipe.anchoring if work.anchored else None,
            "parent": self.parent,
            "init": self.init if self.parent is None else None,
            "teachers": list(self.teachers),
            "seed": work.seed,
            "code": code_digest(self.network, tuple(work.methods)),
            "environment": environment(data.mean.device, work.numerics),
            **({"test_each_epoch": True} if self.test_each_epoch else {}),  # no part of the other entries' keys
        }


def of_student(
    prefix: Recipe,
    experiment: Experiment,
    numerics: Numerics,
    *,
    seed: int,
    parent: str | None,
    teachers: Sequence[str],
    initial: str | None = None,
    test_each_epoch: bool = False,
) -> StageJob:
    """The last stage of a recipe's beginning. Its seed hangs on the path of methods alone.

    initial: digest of the student's initial weights, if they are from a file. teachers: digests of as many as the
        recipe has; what the stage doesn't ask isn't looked at.
    """
    stage, defaults = prefix.stages[-1], experiment.defaults
    assignment = Assignment(
        recipe=prefix,
        training=stage.training(defaults),
        methods=stage.of_methods(defaults),
        anchored=parent is not None and prefix.anchored,
        seed=derived_seed(seed, prefix.path),
        numerics=numerics,
    )
    asked = tuple(teachers) if assignment.asks else ()
    return StageJob(
        network=experiment.networks.student,
        assignment=assignment,
        parent=parent,
        teachers=asked,
        init=initial or derived_seed(seed, "student"),
        test_each_epoch=test_each_epoch,
    )


def of_teacher(experiment: Experiment, numerics: Numerics, number: int = 0) -> StageJob:
    """The training of a teacher, by number. Only the seed differs: of initial weights, order of images and views."""
    path: tuple[str | int, ...] = ("teacher",) if number == 0 else ("teacher", "of several", number)
    assignment = Assignment(
        recipe=Recipe(stages=(Stage(methods=("ce",)),)),
        training=experiment.teacher_training,
        methods={},
        anchored=False,
        seed=derived_seed(0, *path, 1),
        numerics=numerics,
    )
    return StageJob(
        network=experiment.networks.teacher,
        assignment=assignment,
        parent=None,
        teachers=(),
        init=derived_seed(0, *path),
    )


def derived_seed(seed: int, *path: str | int) -> int:
    """A seed for one purpose, from the study's seed: equal for equal paths, unrelated otherwise."""
    return int.from_bytes(hashlib.sha256(repr((seed, *path)).encode()).digest()[:7], "big")


def environment(device: torch.device, numerics: Numerics) -> dict[str, str | int]:
    """What else the bits of a result depend on: device kind, versions, threads, numeric mode."""
    if device.type == "cuda":
        kind: dict[str, str | int] = {"device": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
    else:
        capability = torch.backends.cpu.get_cpu_capability()
        kind = {"device": f"{platform.machine()} {capability}", "threads": torch.get_num_threads()}
    return kind | {"torch": str(torch.__version__), "numeric": str(numerics)}


def code_digest(network: Network, stage_methods: tuple[str, ...]) -> str:
    """SHA-256 of the code that a stage's result is a function of; comments, docstrings and declarations aren't in it.

    The declared settings' values are in the key by themselves. Of files of one's own every byte counts.
    """
    own = {name: methods.digest(name) for name in stage_methods if name in methods.own()}
    shipped = _of_package(network, tuple(name for name in stage_methods if name not in own))
    return (
        hashlib.sha256(repr((shipped, network.digest, own)).encode()).hexdigest() if own or network.digest else shipped
    )


@functools.cache  # a recipe asks many times
def _of_package(network: Network, stage_methods: tuple[str, ...]) -> str:
    """What is this package's of it, and which version of another."""
    sources: list[Any] = [
        training_loop,
        anchor,
        Data,
        Streamed,
        ImageFiles,
        fitted,
        Teacher,
        base,
        ce,
        kd,  # the anchor's divergence, and that of methods built on it
        models,
        *(importlib.import_module(f"smskd.models.{module}") for module in models.built_by(network)),
        *(methods.load(name) for name in stage_methods),
    ]
    # the layers themselves are another package's
    version = importlib.metadata.version(network.kind.rstrip("/")) if network.kind in (TORCHVISION, TIMM) else ""
    digest = hashlib.sha256(version.encode())
    for source in sources:
        tree = ast.parse(inspect.getsource(source))
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and ast.get_docstring(node, clean=False) is not None
            ):
                node.body = node.body[1:] or [ast.Pass()]
            if isinstance(node, ast.Module):
                node.body = [one for one in node.body if not _declares(one)]
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()


def _declares(node: ast.stmt) -> bool:
    """Whether a statement of a method's file declares its settings, or one of a network's file its names."""
    names = [target.id for target in getattr(node, "targets", ()) if isinstance(target, ast.Name)]
    return names in (["SETTINGS"], ["CE_WEIGHT"], ["NETWORKS"])
