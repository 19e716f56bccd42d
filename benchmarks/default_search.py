"""A search, beside the same trainings written the plain way; one run, wall times and their ratio.

The plain way: stock OptunaSearch, a DataLoader with PIL transforms, a live teacher, every stage of every trial trained,
and a new process for each trial, as is Tune's default. The teacher comes from our store, so the plain way trains none.
    python -m benchmarks.default_search [case=digits] [limit=N]
case: digits (the default search) or fashion (a ResNet pair on a subset of Fashion-MNIST).
limit: only the first N of the plain way's trials, to try it out.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

from smskd import datasets

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Case:
    """All orders of some methods, up to so many stages, with so many seeds each.

    more: settings of pair and data, as the command line and smskd.experiment.Experiment take them.
    """

    methods: tuple[str, ...]
    max_stages: int
    seeds: int
    epochs: int
    more: Mapping[str, Any]

    @property
    def orders(self) -> list[str]:
        return [">".join(o) for n in range(1, self.max_stages + 1) for o in permutations(self.methods, n)]

    @property
    def points(self) -> list[dict[str, Any]]:
        """One for each training."""
        return [{"recipe": order, "seed": seed} for order in self.orders for seed in range(self.seeds)]

    @property
    def words(self) -> list[str]:
        """Of our command line."""
        own = {"methods": f"[{','.join(self.methods)}]", "max_stages": self.max_stages, "seeds": self.seeds}
        return [f"{key}={value}" for key, value in (own | {"epochs": self.epochs} | dict(self.more)).items()]


_FILES = ("images-idx3-ubyte", "labels-idx1-ubyte")
CASES = {
    "digits": Case(methods=("kd", "fitnets", "rkd"), max_stages=3, seeds=3, epochs=12, more={}),
    "fashion": Case(
        methods=("kd", "fitnets", "rkd"), max_stages=3, seeds=1, epochs=4,
        more={
            "pair": "resnet32x4_resnet8x4", "data": "fashion_mnist", "teacher_epochs": 2,
        },
    ),
}  # fmt: skip


def subset(folder: Path, train: int = 284, test: int = 100) -> Path:
    """A folder of the first images of Fashion-MNIST, in its own format; a tenth of `train` becomes validation.

    train_size= would leave validation whole, and looking at 6,000 images after each stage would be the most of it.
    """
    whole = next((p for p in datasets.folders("fashion_mnist", None) if (p / f"train-{_FILES[0]}.gz").is_file()), None)
    if whole is None:
        sys.exit("case=fashion needs Fashion-MNIST's four .gz files, as Debian's dataset-fashion-mnist has them")
    folder.mkdir()
    for name, count in (("train", train), ("t10k", test)):
        for file in _FILES:
            content = gzip.decompress((whole / f"{name}-{file}.gz").read_bytes())
            head, each = (16, 28 * 28) if "images" in file else (8, 1)
            short = content[:4] + count.to_bytes(4, "big") + content[8 : head + count * each]
            (folder / f"{name}-{file}.gz").write_bytes(gzip.compress(short))
    return folder


def plain_trial(config: dict[str, Any]) -> None:
    """One recipe with one seed, as one would write it in a script."""
    import numpy as np
    import torch
    from PIL import Image
    from ray import tune
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    from smskd import anchor, job, models, stage
    from smskd.bench import prepare
    from smskd.experiment import Experiment
    from smskd.methods import ce
    from smskd.methods.base import Batch, View
    from smskd.notation import parse
    from smskd.store import open_store

    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    bench = prepare(Experiment(**config["more"]), open_store(config["store"]))
    data, teacher = bench.data, bench.teacher.network
    assert isinstance(data.train.images, torch.Tensor), "digits fit in memory"
    low, high = float(data.train.images.min()), float(data.train.images.max())
    pixels = ((data.train.images - low) / (high - low) * 255).to(torch.uint8)[:, 0].numpy()
    steps_of_change: list[Any] = [transforms.RandomCrop(data.height, padding=data.pad)]
    steps_of_change += [transforms.RandomHorizontalFlip()] if data.flip else []
    change = transforms.Compose([*steps_of_change, transforms.ToTensor()])

    class Pictures(Dataset[Any]):
        def __len__(self) -> int:
            return len(pixels)

        def __getitem__(self, index: int) -> Any:
            raw = change(Image.fromarray(np.asarray(pixels[index]))) * (high - low) + low
            return (raw - data.mean) / data.std, data.train.labels[index]

    student: Any = models.build(bench.pair.student, **data.shape)
    for prefix in parse(config["recipe"]).with_setting("epochs", config["epochs"]).prefixes():
        parent = "" if len(prefix.stages) > 1 else None
        asked = job.of_student(prefix, bench.experiment, bench.numerics, seed=0, parent=parent, teachers=[""])
        work, training = asked.assignment, asked.assignment.training
        loader = DataLoader(Pictures(), batch_size=training.batch_size, shuffle=True, drop_last=True)
        reference = anchor.freeze(student) if work.anchored else None
        probes = stage.probe(student, data), [stage.probe(teacher, data)]
        terms = [t.method for t in stage.build_terms(work, *probes, data.train.labels)]
        parameters = [p for m in (student, *terms) for p in m.parameters()]
        optimizer = torch.optim.SGD(
            parameters,
            lr=training.learning_rate,
            momentum=training.momentum,
            nesterov=training.nesterov,
            weight_decay=training.weight_decay,
        )
        schedule = stage.schedule_of(optimizer, training, len(loader))
        for _ in range(training.epochs):
            for images, labels in loader:
                with torch.no_grad():
                    answer = View(teacher(images), bench.teacher.hint_index)
                mine = View(student(images), student.hint_index)
                loss = (training.ce or 0.0) * ce.cross_entropy(mine.output.logits, labels)
                for method in terms:
                    loss = loss + sum(method(mine, answer, Batch(labels, labels[:0])).values())
                if reference is not None:
                    with torch.no_grad():
                        before = reference(images).logits
                    loss = loss + anchor.anchor_loss(mine.output.logits, before, torch.full((len(labels),), 0.5))
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
    tune.report({"accuracy": stage.accuracy(student, data, data.validation)})


def plain(case: Case, points: list[dict[str, Any]], store: Path) -> float:
    """Wall seconds of the plain way, Ray's start included."""
    started = time.monotonic()
    from search import searcher  # sets Ray's environment before it is imported

    with searcher.cluster(None):
        from ray import tune
        from ray.tune.search.optuna import OptunaSearch

        fixed = {"store": str(store), "epochs": case.epochs, "more": dict(case.more)}
        space = {"recipe": tune.choice(case.orders), "seed": tune.choice(list(range(case.seeds)))} | fixed
        search = OptunaSearch(metric="accuracy", mode="max", points_to_evaluate=[dict(p) for p in points])
        results = tune.Tuner(
            tune.with_resources(plain_trial, {"cpu": 1}),
            param_space=space,
            tune_config=tune.TuneConfig(search_alg=search, num_samples=len(points)),
            run_config=tune.RunConfig(storage_path=str(store.parent / "tune"), verbose=0),
        ).fit()
        if results.num_errors:
            raise RuntimeError(f"{results.num_errors} of the plain trials failed: {results.errors[0]}")
    return time.monotonic() - started


def main(argv: list[str]) -> None:
    """Run both, print both and the ratio."""
    given = {"case": "digits"} | dict(word.partition("=")[::2] for word in argv)
    case = CASES.get(given.pop("case"))
    count = given.pop("limit", str(len(case.points) if case else 1))
    if case is None or given or not count.isdigit() or not 1 <= int(count) <= len(case.points):
        sys.exit(f"case=, one of {', '.join(CASES)}, and limit=N from 1 are expected, but got {' '.join(argv)}")
    limit = int(count)
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    with tempfile.TemporaryDirectory() as scratch:
        out, store = Path(scratch) / "run", Path(scratch) / "store"
        if case is CASES["fashion"]:
            case = replace(case, more=dict(case.more) | {"data_dir": str(subset(Path(scratch) / "data"))})
        started = time.monotonic()
        words = ["space=stage_order", "confirm=0", f"out={out}", f"store={store}", *case.words]
        subprocess.run([sys.executable, "-m", "search.run", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        ours = time.monotonic() - started
        run = json.loads((out / "run.json").read_text())
        plainly = plain(case, case.points[:limit], store)
    # Part of the trials says nothing of all: start-up and idle ends would be scaled up with the training.
    ratio = f"ratio: {plainly / ours:.2f}" if limit == len(case.points) else "no ratio: not all trials were run"
    sys.stdout.write(
        f"ours, end to end, without confirmation: {ours:.1f} s\n"
        f"plain way, {limit} of {len(case.points)} trials: {plainly:.1f} s\n{ratio}\n"
        f"driver's peak: {run['driver_peak_bytes'] / 2**20:.0f} MiB; store: {run['store_bytes'] / 2**20:.2f} MiB\n"
        f"machine: {run['machine']}; versions: {run['versions']}\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
