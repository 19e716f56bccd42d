"""What the README's recipes for CIFAR-100 cost: trainings, stage runs and FLOPs, counted; nothing is trained.

FLOPs are what a run writes into `train_flops`, and the teachers' own; evaluation isn't among them.
    python -m benchmarks.cifar100_cost      prints the README's table
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

from search import config as configs
from search.config import Config
from search.draws import enumerate_space
from smskd import cost, job, models, pipeline
from smskd.data import Data, Split
from smskd.numerics import FLOAT32

PAIRS = ("resnet50_mobilenetv2", "wrn40_2_shufflenetv2", "vgg19_resnet18")
SETTINGS = ("space=systems", "data=cifar100", "epochs_total=150", "seeds=5")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one seed of all recipes, but for the last two, which are paid once.

    stage_runs_unshared, flops_unshared: if every recipe trained all of its stages. teacher_flops: of the first teacher.
    more_teachers_flops: of those that an ensemble has beside it.
    """

    recipes: int
    stage_runs: int
    stage_runs_unshared: int
    flops: float
    flops_unshared: float
    teacher_flops: float
    more_teachers_flops: float


def count(config: Config, data: Data) -> Cost:
    """Count what a search over a finite space costs, with networks that are built and not trained.

    Args:
        config: the search.
        data: for the shapes and the number of training images; what is in the images doesn't matter.

    Raises:
        ValueError: the space isn't finite.
    """
    points = enumerate_space(config.search_space())
    if points is None:
        raise ValueError(f"only a finite space can be counted, but space={config.space} isn't")
    teacher = config.networks.teacher
    network = models.build(teacher, **data.shape)
    work = job.of_teacher(config.experiment, FLOAT32).assignment
    teacher_flops = cost.FlopCounter(data).stage(teacher.name, work, network, [], [])
    counter = pipeline.Counter(config.experiment, data)
    recipes = [one for _, one in points.values()]
    whole: dict[str, float] = {}  # of each beginning
    shared = unshared = 0.0
    for one in recipes:
        before = 0.0
        for prefix in one.prefixes():
            if prefix.id not in whole:
                whole[prefix.id] = counter.recipe(prefix)
                shared += whole[prefix.id] - before
            before = whole[prefix.id]
        unshared += before
    return Cost(
        recipes=len(recipes),
        stage_runs=len(whole),
        stage_runs_unshared=sum(len(one.stages) for one in recipes),
        flops=shared,
        flops_unshared=unshared,
        teacher_flops=teacher_flops,
        more_teachers_flops=teacher_flops * (max(one.teachers for one in recipes) - 1),
    )


def cifar100() -> Data:
    """Black images in CIFAR-100's shapes: 45,000 to train on, after 5,000 of validation are taken out."""

    def black(images: int) -> Split:
        return Split(images=torch.zeros(images, 3, 32, 32, dtype=torch.uint8), labels=torch.arange(images) % 100)

    mean, std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    return Data(
        name="cifar100", classes=100, train=black(45_000), validation=black(2), test=black(2), mean=mean, std=std,
        pad=4, flip=True, fingerprint="black",
    )  # fmt: skip


def table() -> str:
    """The README's table, in Markdown, of the search with SETTINGS for each of PAIRS."""
    data = cifar100()
    columns = []
    for pair in PAIRS:
        config = configs.parse([*SETTINGS, f"pair={pair}"])
        counted, seeds = count(config, data), config.seeds + config.confirm
        columns.append(
            {
                "": f"`{pair}`",
                "recipes": f"{counted.recipes}",
                "trainings, search + confirmation": " + ".join(
                    f"{counted.recipes * count}" for count in (config.seeds, config.confirm)
                ),
                "stage runs if nothing were shared": f"{counted.stage_runs_unshared * seeds}",
                "stage runs": f"{counted.stage_runs * seeds}",
                "FLOPs of these if nothing were shared": f"{counted.flops_unshared * seeds:.3g}",
                "FLOPs of these": f"{counted.flops * seeds:.3g}",
                "FLOPs of the teacher": f"{counted.teacher_flops:.3g}",
                "FLOPs of the ensemble's two further teachers": f"{counted.more_teachers_flops:.3g}",
                "FLOPs in all": f"{counted.flops * seeds + counted.teacher_flops + counted.more_teachers_flops:.3g}",
            }
        )
    lines = [" | ".join(["", name, *(column[name] for column in columns), ""]).strip() for name in columns[0]]
    return "\n".join([lines[0], "|---" * (1 + len(PAIRS)) + "|", *lines[1:]]) + "\n"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(f"no arguments are expected, but got {' '.join(sys.argv[1:])}")
    sys.stdout.write(table())
