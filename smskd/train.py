"""`python -m smskd.train recipe="kd>fitnets>rkd" ...`: one recipe, one seed, in this process; no Ray, no Optuna."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smskd import cli, datasets, methods, pairs
from smskd.numerics import COMPILES, PRECISIONS, Numerics
from smskd.recipe import ANCHORS, WEIGHTINGS, Recipe, make, parse

DONE, BAD_INPUT, FAILED, INTERRUPTED = 0, 2, 4, 130
_SETTINGS = ("anchor", "weighting", "lambda_base", "teachers")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one training. None means: chosen by the program, as the help says."""

    recipe: str = cli.key(
        "kd>fitnets>rkd", "stages joined by > (" + ", ".join(methods.available()) + "), or a file such as best.yaml"
    )
    anchor: str | None = cli.key(None, "what holds later stages: " + ", ".join(ANCHORS) + " (default: the recipe's)")
    weighting: str | None = cli.key(None, "weight of the anchor: " + ", ".join(WEIGHTINGS) + " (default: the recipe's)")
    lambda_base: float | None = cli.key(None, "largest weight of the anchor (default: the recipe's)")
    teachers: int | None = cli.key(None, "how many teachers the methods share out (default: the recipe's)")
    pair: str | None = cli.key(None, "teacher and student: " + ", ".join(pairs.PAIRS) + " (default: tiny)")
    teacher_model: str | None = cli.key(None, "in place of pair=, with student_model=: any classifier of torchvision")
    student_model: str | None = cli.key(None, "as teacher_model=, such as mobilenet_v3_small")
    data: str = cli.key("digits", "data set: " + ", ".join(datasets.NAMES))
    epochs: int | None = cli.key(None, "epochs per stage (default: the pair's own)")
    epochs_total: int | None = cli.key(None, "epochs of all stages together, instead")
    seed: int = cli.key(0, "of the training")
    teacher: str | None = cli.key(
        None, "file with the teacher's weights (default: train one, and keep it in the store)"
    )
    teacher_epochs: int | None = cli.key(None, "epochs of a teacher that is trained (default: the pair's own)")
    data_dir: str | None = cli.key(None, "folder with the data set's files")
    train_size: int | None = cli.key(None, "train on this many images, stratified (default: all)")
    image_size: int | None = cli.key(
        None, "for data=folder: pixels a side; the shorter one is resized, the middle cut out"
    )
    precision: str | None = cli.key(
        None, "of forward passes: " + ", ".join(PRECISIONS) + " (default: bf16 on GPUs, float32 on CPUs)"
    )
    compile: str | None = cli.key(None, "compile the student: " + ", ".join(COMPILES) + " (default: off)")
    threads: int = cli.key(1, "threads on a CPU; part of a stage's identity in the store")
    store: str = cli.key("runs/store", "finished stages: a folder, or a URL such as s3://bucket/folder")
    store_key: str | None = cli.key(None, "file with the secret that signs them; what it hasn't signed is trained anew")
    out: str = cli.key("runs/student.safetensors", "where the student's weights are written")


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    if any(word in ("--help", "-h", "help") for word in argv):
        _say("Train one student by one recipe.\n\nkeys and defaults:\n" + "\n".join(cli.describe(Config)))
        return DONE
    try:
        config, recipe = _read(argv)
        return _train(config, recipe)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return BAD_INPUT
    except RuntimeError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return FAILED
    except KeyboardInterrupt:
        again = shlex.join(["python", "-m", "smskd.train", *argv])
        _say(f"interrupted; finished stages are kept. To go on: {again}")
        return INTERRUPTED


def _read(argv: Sequence[str]) -> tuple[Config, Recipe]:
    given = cli.parse(Config, argv)
    if given.recipe.endswith((".yaml", ".yml")):
        base = cli.read_yaml(Path(given.recipe))
        if "recipe" not in base:
            raise ValueError(f"{given.recipe} must have a recipe: line, such as recipe: kd>fitnets>rkd")
        rest = [word for word in argv if not word.startswith("recipe=")]
        config = cli.parse(Config, rest, base=base)
    else:
        config = given
    pair = pairs.choose(config.pair, config.teacher_model, config.student_model)
    datasets.check(config.data, data_dir=config.data_dir, image_size=config.image_size)
    Numerics(precision=config.precision or "float32", compile=config.compile or "off")
    if config.threads < 1:
        raise ValueError(f"threads >= 1 must hold, but got threads={config.threads}")
    if config.seed < 0:
        raise ValueError(f"seed >= 0 must hold, but got seed={config.seed}")
    for name in ("epochs", "epochs_total", "teacher_epochs"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} >= 1 must hold, but got {name}={value}")
    recipe = parse(config.recipe)
    pairs.split_epochs(len(recipe.stages), pair, epochs=config.epochs, epochs_total=config.epochs_total)
    asked = {name: value for name in _SETTINGS if (value := getattr(config, name)) is not None}
    return config, make(recipe.notation, recipe.settings | asked)


def _train(config: Config, recipe: Recipe) -> int:
    out = Path(config.out)
    if out.is_dir():
        raise ValueError(
            f"out={out} is a folder; name a file for the student's weights, such as {out}/student.safetensors"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch
    from safetensors.torch import save_file

    from smskd import pipeline

    torch.set_num_threads(config.threads)
    networks = ("pair", "teacher_model", "student_model")
    keys = (
        *networks,
        "precision",
        "compile",
        "data",
        "data_dir",
        "train_size",
        "image_size",
        "teacher",
        "teacher_epochs",
        "store",
        "store_key",
    )
    settings = {key: getattr(config, key) for key in keys}
    bench = pipeline.prepare(**settings, device=None)
    _say(
        f"teacher {bench.pair.teacher.name}, {bench.teacher_source}: {100 * bench.teacher_accuracy:.2f} % on validation"
    )

    def on_stage(number: int, result: pipeline.StageResult) -> None:
        how = f"{result.device_seconds:.1f} s" if result.trained else "from the store"
        accuracy = f"{100 * result.val_accuracy:.2f} % on validation"
        _say(f"stage {number} of {len(recipe.stages)}, {recipe.stages[number - 1]}: {accuracy}, {how}")

    result = pipeline.run(
        recipe,
        seed=config.seed,
        epochs=config.epochs,
        epochs_total=config.epochs_total,
        on_stage=on_stage,
        device=None,
        **settings,
    )
    partial = out.with_name(f".{out.name}.partial")
    save_file(
        dict(result.weights),
        partial,
        metadata={"recipe": str(recipe), "settings": json.dumps(dataclasses.asdict(config))},
    )
    partial.replace(out)
    _say(f"{recipe}, seed {config.seed}: {100 * result.val_accuracy:.2f} %, {result.train_flops:.3g} FLOPs → {out}")
    return DONE


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
