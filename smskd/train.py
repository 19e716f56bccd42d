"""`python -m smskd.train recipe="kd>fitnets>rkd" ...`: one recipe, one seed, in this process; no Ray, no Optuna."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smskd import blame, cli, experiment, methods, notation
from smskd.experiment import Experiment
from smskd.recipe import SHORTHANDS, Recipe, declaration
from smskd.settings import declared, setting

if TYPE_CHECKING:
    from smskd.result import StageResult

DONE, BAD_INPUT, FAILED, INTERRUPTED = 0, 2, 4, 130


@dataclass(frozen=True, kw_only=True)
class Config:
    """What one training is asked for, beside the recipe's and the experiment's settings."""

    recipe: str = setting(
        "kd>fitnets>rkd", "stages joined by > (" + ", ".join(methods.available()) + "), or a file such as best.yaml"
    )
    seed: int = setting(0, "of the training", low=0)
    store: str = setting("runs/store", "finished stages: a folder, or a URL such as s3://bucket/folder")
    store_key: str | None = setting(None, "file of the secret that signs them; what it hasn't signed is trained anew")
    out: str = setting("runs/student.safetensors", "where the student's weights are written")


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    if any(word in ("--help", "-h", "help") for word in argv):
        lines = ["Train one student by one recipe.", "", "keys and defaults:", *cli.describe(Config)]
        _say("\n".join([*lines, *cli.help_of_settings()]))
        return DONE
    try:
        return _train(*_read(argv))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        again = shlex.join(["python", "-m", "smskd.train", *argv])
        _say(f"interrupted; finished stages are kept. To go on: {again}")
        return INTERRUPTED
    except Exception as error:
        text, details = blame.text_of(error)
        sys.stderr.write(f"{details or ''}error: {' '.join(text.split())}\n")
        return FAILED


def _read(argv: Sequence[str]) -> tuple[Config, Experiment, Recipe]:
    """A recipe's file holds what the words may override."""
    given: dict[str, object] = dict(cli.use_files(cli.split(argv)))
    own = declared(Config)
    for key in given:
        cli.check(key, [*own, *experiment.SETTINGS], recipes_too=True)
    said = {key: value for key, value in given.items() if key not in own and key not in experiment.SETTINGS}
    file = str(given.get("recipe", ""))
    if file.endswith((".yaml", ".yml")):
        held = experiment.read_recipe_file(Path(file))
        for key in held:
            if declaration(key) is not None:
                raise ValueError(f"{file} has {key}: beside recipe:, in whose line it belongs: kd>rkd {key}=...")
            cli.check(key, [*own, *experiment.SETTINGS])
        if "code" in held:  # with digests, which the files named must have
            given["code"] = held["code"]
        given = held | {key: value for key, value in given.items() if key != "recipe"}
    config = cli.build(Config, {key: value for key, value in given.items() if key in own})
    made = cli.build(Experiment, {key: value for key, value in given.items() if key in experiment.SETTINGS})
    recipe = notation.parse(config.recipe)
    for key, value in said.items():
        one = declaration(key)
        assert one is not None, "the keys were checked"
        if key not in SHORTHANDS:
            recipe = recipe.with_setting(key, one.read(value))
    return config, made, notation.settled(recipe, {key: value for key, value in said.items() if key in SHORTHANDS})


def _train(config: Config, made: Experiment, recipe: Recipe) -> int:
    effective = made.effective(recipe)
    for idle in recipe.idle(made.defaults):
        _say(f"{idle} has no effect in this recipe, and is left out")
    out = Path(config.out)
    if out.is_dir():
        raise ValueError(
            f"out={out} is a folder; name a file for the student's weights, such as {out}/student.safetensors"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch  # takes seconds: what is wrong with the words is said before
    from safetensors.torch import save_file

    from smskd import bench, given_teacher, pipeline
    from smskd.store import open_store

    torch.set_num_threads(made.threads)
    prepared = bench.prepare(made, open_store(config.store, config.store_key))
    looked_at = given_teacher.accuracies(prepared)
    split = "validation images, which are trained on, too" if made.train_on == "all" else "validation"
    how_good = f"{100 * prepared.teacher_accuracy:.2f} % on {split}" if looked_at is None else looked_at.text
    _say(f"teacher {prepared.pair.teacher.name}, {prepared.teachers[0].source}: {how_good}")
    for warning in () if looked_at is None else looked_at.warnings:
        sys.stderr.write(f"warning: {warning}\n")

    def on_stage(number: int, result: StageResult) -> None:
        how = f"{result.device_seconds:.1f} s" if result.trained else "from the store"
        where = f"stage {number} of {len(effective.stages)}, {effective.stages[number - 1]}"
        _say(f"{where}: {100 * result.val_accuracy:.2f} % on {split}, {how}")

    result = pipeline.distil(effective, prepared, seed=config.seed, on_stage=on_stage)
    partial = out.with_name(f".{out.name}.partial")
    told = {"recipe": result.recipe, "experiment": json.dumps(made.to_dict()), "seed": str(config.seed)}
    save_file(dict(result.weights), partial, metadata=told)
    partial.replace(out)
    accuracy = "" if made.train_on == "all" else f" {100 * result.val_accuracy:.2f} %,"
    _say(f"{effective}, seed {config.seed}:{accuracy} {result.train_flops:.3g} FLOPs → {out}")
    return DONE


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
