"""Setup: where stages are trained. A stage is taken from the store, or trained into it, here and nowhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from smskd import anchor
from smskd import stage as training_loop
from smskd.cost import FlopCounter
from smskd.data import Data
from smskd.job import StageJob
from smskd.store import Entry, Store, address
from smskd.teacher import Teacher

_NUMBERS = ("val_accuracy", "train_flops", "device_seconds")


@dataclass(frozen=True, kw_only=True)
class Initial:
    """Weights that every student starts from, by name, and their SHA-256."""

    weights: Mapping[str, Tensor]
    digest: str


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Data on a device, the store, what was counted of the stages' cost; and initial weights that aren't drawn."""

    data: Data
    store: Store
    flops: FlopCounter
    initial: Initial | None = None

    @property
    def initial_digest(self) -> str | None:
        """Of the students' initial weights, where they aren't drawn from a seed."""
        return None if self.initial is None else self.initial.digest

    def finish(
        self,
        job: StageJob,
        network: nn.Module,
        *,
        parent: Entry | None = None,
        teachers: Sequence[Teacher] = (),
        on_epoch: Callable[[int, int], None] = lambda epoch, epochs: None,
    ) -> tuple[Entry, bool]:
        """A stage from the store, or trained into it; and whether it was trained.

        `network` holds the stage's weights afterwards. Of processes that want one stage one trains, the others wait.

        Args:
            parent: the stage before; None: `network` is fresh.
            teachers: as many as the job names digests of.
            on_epoch: called with finished epochs, and all epochs.

        Raises:
            smskd.blame.Diverged: a loss turned NaN.
        """
        identity = job.identity(self.data)
        key = address(identity)
        entry = self._held(key, network)
        if entry is None:
            with self.store.lock(key):
                entry = self._held(key, network)  # whoever held the lock may have trained it
                if entry is None:
                    facts, learned = self._train(job, network, parent, teachers, on_epoch)
                    return self.store.put(key, identity, network.state_dict(), facts, learned), True
        network.load_state_dict(dict(entry.weights))
        return entry, False

    def digest(self, job: StageJob) -> str | None:
        """Digest of the weights of a stage that the store has, for a quick look; None if it is still to be trained."""
        return self.store.digest(address(job.identity(self.data)))

    def _train(
        self,
        job: StageJob,
        network: nn.Module,
        parent: Entry | None,
        teachers: Sequence[Teacher],
        on_epoch: Callable[[int, int], None],
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Train `network`: the stage's facts, and what its methods learned for themselves, by name."""
        work = job.assignment
        if parent is not None:
            network.load_state_dict(dict(parent.weights))
        tested: list[float] = []
        testing = 0.0

        def after_epoch(epoch: int) -> None:
            nonlocal testing
            if job.test_each_epoch:
                started = time.monotonic()
                tested.append(training_loop.accuracy(network, self.data, self.data.test))
                testing += time.monotonic() - started
            on_epoch(epoch, work.training.epochs)

        done = training_loop.train_stage(
            network,
            work,
            self.data,
            teachers=teachers,
            reference=anchor.freeze(network) if work.anchored else None,
            on_epoch=after_epoch,
        )
        facts = {
            "val_accuracy": training_loop.accuracy(network, self.data, self.data.validation),
            "train_flops": self.flops.stage(job.network.name, work, network, done.terms, teachers),
            "device_seconds": done.seconds - testing,  # it is no part of the training
            "losses": done.losses,
            "anchor_weights": done.anchor_weights,
            **({"test_accuracies": tested} if job.test_each_epoch else {}),
        }
        learned = {
            f"{number}/{name}": tensor
            for number, term in enumerate(done.terms)
            for name, tensor in term.method.state_dict().items()
        }
        return facts, learned

    def _held(self, key: str, network: nn.Module) -> Entry | None:
        """A stage that the store has, with weights that fit the network and facts that a stage has."""
        entry = self.store.get(key, network.state_dict())
        if entry is None:
            return None
        whole = {*entry.facts} - {"test_accuracies"} == {*_NUMBERS, "losses", "anchor_weights"}
        if whole and all(isinstance(entry.facts[name], int | float) for name in _NUMBERS):
            return entry
        self.store.set_aside(key)
        return None
