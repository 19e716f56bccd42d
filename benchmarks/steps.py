"""What one training step costs over the student's bare step, and what that costs over the machine's roof; one thread.

Every figure is taken from train_stage itself, epoch by epoch, the kinds in turn and several times over, so that a noisy
machine is noisy for all; a ratio is the median of those of the rounds.
    python -m benchmarks.steps [rounds=N]
"""

from __future__ import annotations

import functools
import itertools
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from smskd import anchor, cost, job, models, stage
from smskd import data as datasets
from smskd.data import Data, Split
from smskd.experiment import Experiment
from smskd.notation import parse
from smskd.numerics import FLOAT32
from smskd.teacher import Teacher

# kind: recipe whose last stage is timed, and how many times the bare step it may take
KINDS = {
    "bare": ("ce", 1.0),
    "kd": ("kd", 1.15),
    "stage 2": ("kd>kd", 1.3),
    "fitnets": ("fitnets", 1.3),
    "rkd": ("rkd", 1.3),
}
EPOCHS = 4
MATRIX = 1024


@dataclass(frozen=True, kw_only=True)
class Case:
    """A pair on data whose views a table holds after one epoch."""

    pair: str
    data: Data


def cifar_shaped(images: int, *, pad: int = 0, flip: bool = False) -> Data:
    """Noise of CIFAR-100's shape."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        pixels = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return Split(images=pixels, labels=torch.randint(100, (count,), generator=generator))

    moments = torch.full((3, 1, 1), 127.5), torch.full((3, 1, 1), 73.6)
    return Data(
        name="noise", classes=100, train=split(images), validation=split(2), test=split(2),
        mean=moments[0], std=moments[1], pad=pad, flip=flip,
    )  # fmt: skip


def step_seconds(case: Case, rounds: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of one step, by kind, a value a round; and FLOPs of the bare step."""
    experiment = Experiment(pair=case.pair)
    pair = experiment.networks
    torch.manual_seed(0)
    teacher = Teacher(models.build(pair.teacher, **case.data.shape), case.data)
    out: dict[str, list[float]] = {kind: [] for kind in KINDS}
    batch = steps = 0
    for _ in range(rounds):
        for kind, (notation, _) in KINDS.items():
            # a student that is hardly moved, so that no kind diverges for want of training
            recipe = parse(f"{notation} learning_rate=1e-6 epochs={EPOCHS}")
            parent = "" if len(recipe.stages) > 1 else None
            asked = job.of_student(recipe, experiment, FLOAT32, seed=0, parent=parent, teachers=[""])
            work = asked.assignment
            batch = min(work.training.batch_size, len(case.data.train))
            steps = len(case.data.train) // batch
            student = models.build(pair.student, **case.data.shape)
            ends: list[float] = []
            stage.train_stage(
                student,
                work,
                case.data,
                teachers=[teacher] * len(asked.teachers),
                reference=anchor.freeze(student) if work.anchored else None,
                on_epoch=functools.partial(_note, ends),
            )
            epochs = [after - before for before, after in itertools.pairwise(ends)]  # but for the first
            out[kind].append(statistics.median(epochs) / steps)
    student = models.build(pair.student, **case.data.shape)
    images = case.data.normalised(case.data.train.images[:batch])
    flops = cost.TRAINING_OVER_FORWARD * batch * cost.forward_flops(student, images, images=batch)
    return out, flops


def _note(ends: list[float], epoch: int) -> None:
    ends.append(time.perf_counter())


def peak_flops(rounds: int) -> float:
    """FLOP/s of a large float32 matrix product, the best of some."""
    left, right = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX)
    best = 0.0
    for _ in range(3 * rounds):
        started = time.perf_counter()
        left @ right
        best = max(best, 2 * MATRIX**3 / (time.perf_counter() - started))
    return best


def images_per_second(rounds: int) -> tuple[float, float]:
    """Random crops and flips of CIFAR-shaped images, normalised, in batches of 64: ours; a DataLoader over PIL's."""
    data = cifar_shaped(2048, pad=4, flip=True)
    assert isinstance(data.train.images, torch.Tensor), "made so above"
    pixels = data.train.images.permute(0, 2, 3, 1).numpy()
    change = transforms.Compose([
        transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        transforms.Normalize((0.5,) * 3, (0.29,) * 3),
    ])  # fmt: skip

    class Pictures(Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return len(pixels)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return change(Image.fromarray(np.asarray(pixels[index]))), 0

    loader = DataLoader(Pictures(), batch_size=64, shuffle=True)
    ours, plain = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in data.batches(torch.randperm(2048), torch.randint(data.views, (2048,)), 64):
            pass
        ours.append(2048 / (time.perf_counter() - started))
        started = time.perf_counter()
        for _ in loader:
            pass
        plain.append(2048 / (time.perf_counter() - started))
    return statistics.median(ours), statistics.median(plain)


def table(name: str, seconds: Mapping[str, list[float]], flops: float, peak: float) -> str:
    """Markdown rows of one pair."""
    bare = seconds["bare"]
    lines = []
    for kind, (_, target) in KINDS.items():
        ratios = [mine / theirs for mine, theirs in zip(seconds[kind], bare, strict=True)]
        middle = statistics.median(seconds[kind])
        over = "" if kind == "bare" else f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        wanted = "" if kind == "bare" else f"{target:.2f}"
        lines.append(f"| {name} | {kind} | {1000 * middle:.2f} ms | {over} | {wanted} |")
    share = flops / statistics.median(bare) / peak
    lines.append(f"| {name} | bare step over the roof | {flops / 1e9:.3g} GFLOP | {share:.2f} | |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Measure, and print a table in Markdown."""
    count = argv[0].removeprefix("rounds=") if argv else "5"
    if len(argv) > 1 or not count.isdigit() or int(count) < 1:
        sys.exit(f"one argument rounds=N with N >= 1 is expected, but got {' '.join(argv)}")
    rounds = int(count)
    torch.set_num_threads(1)
    peak = peak_flops(rounds)
    lines = ["| pair | step | time | over the bare step | target |", "|---|---|---|---|---|"]
    cases = (
        Case(pair="tiny", data=datasets.load("digits")),
        Case(pair="resnet32x4_resnet8x4", data=cifar_shaped(128)),
    )
    for case in cases:
        lines.append(table(case.pair, *step_seconds(case, rounds), peak))
    ours, plain = images_per_second(rounds)
    lines += [
        "",
        f"roof: {peak / 1e9:.1f} GFLOP/s, a product of {MATRIX} x {MATRIX} matrices on one thread",
        f"data: {ours:,.0f} images/s, a DataLoader over PIL {plain:,.0f}, ratio {ours / plain:.1f}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
