"""A teacher that wasn't trained here, looked at: how good it is on each split, and what that gives away. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from smskd.bench import Bench

# Training images that it is asked about at most, evenly spaced.
_TRAINING_IMAGES = 5_000
# In standard errors: what is no more than this above guessing is chance; what is more than that above test, memory.
_CHANCE, _MEMORY = 3, 4
# No smaller difference than this of validation and test, in fractions, is told as memory.
_SMALLEST = 0.03


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """A teacher's accuracies, 0 to 1.

    train: on some training images, as they are. guessing: on validation, of always naming its most frequent class.
    validation_images, test_images: how many there are.
    """

    train: float
    validation: float
    test: float
    guessing: float
    validation_images: int
    test_images: int

    @property
    def at_chance(self) -> bool:
        """Whether it is no better on validation than guessing: not twice as good, or within three standard errors.

        With few classes twice is beyond what can be reached; there it is a tenth of what is left above guessing.
        """
        least = min(self.guessing, (1 - self.guessing) / 10)
        error = math.sqrt(self.guessing * (1 - self.guessing) / self.validation_images)
        return self.validation <= self.guessing + max(least, _CHANCE * error)

    @property
    def saw_validation(self) -> bool:
        """Whether it must have been trained on validation images: it is that much better there than on test ones."""
        spread = self.validation * (1 - self.validation) / self.validation_images
        spread += self.test * (1 - self.test) / self.test_images
        return self.validation - self.test > max(_SMALLEST, _MEMORY * math.sqrt(spread))

    @property
    def text(self) -> str:
        """For people."""
        others = f"{100 * self.test:.2f} % on test, {100 * self.train:.2f} % on training images"
        return f"{100 * self.validation:.2f} % on validation, {others}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is to be known before anything is learned from it, a sentence each."""
        found = []
        if self.at_chance:
            found.append(
                f"the teacher is right on {100 * self.validation:.1f} % of the validation images, and guessing on "
                f"{100 * self.guessing:.1f} %: are its classes in another order, or its images normalised otherwise?"
            )
        if self.saw_validation:
            found.append(
                f"the teacher has evidently been trained on validation images, too ({100 * self.validation:.1f} % on "
                f"them, {100 * self.test:.1f} % on test), as public teachers of CIFAR are: set students beside it on "
                "the test split alone"
            )
        return tuple(found)


def accuracies(bench: Bench) -> Accuracies | None:
    """A bench's first teacher, looked at; None if it was trained here, where these things can't go wrong.

    The test split is looked at, too: the teacher is fixed, and no choice hangs on how good it is there.
    """
    from smskd import stage  # torch takes seconds; what is known already is judged without it

    if bench.teachers[0].train_flops:  # what is trained here has a cost
        return None
    data, network = bench.data, bench.teacher.network
    count = len(data.train)
    some = data.train.take(np.unique(np.linspace(0, count - 1, min(count, _TRAINING_IMAGES)).astype(int)))
    return Accuracies(
        train=stage.accuracy(network, data, some),
        validation=bench.teacher_accuracy,
        test=stage.accuracy(network, data, data.test),
        guessing=int(data.validation.labels.bincount().max()) / len(data.validation),
        validation_images=len(data.validation),
        test_images=len(data.test),
    )
