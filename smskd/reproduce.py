"""`python -m smskd.reproduce run=FOLDER`: trains some of a run's recipes anew, and compares every stage bit for bit.

Nothing is taken from the run's store, the teacher neither, unless it is a file. Nothing is written to the run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smskd import cli, experiment
from smskd.experiment import Experiment
from smskd.notation import parse
from smskd.recipe import Recipe
from smskd.settings import setting
from smskd.store import Store, is_url, open_store

if TYPE_CHECKING:
    import pandas as pd

SAME, BAD_INPUT, EXPLAINED, DIFFERENT, INTERRUPTED = 0, 2, 3, 4, 130
_OF_CONFIG = ("store", "store_key", "protocol", "train_on")
_COLUMNS = ("recipe", "recipe_id", "seed", "phase", "status")
# What may differ between a stage and the same stage trained elsewhere: its key says so.
_CIRCUMSTANCES, _BEFORE = ("environment", "code", "data"), ("parent", "teachers")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What `python -m smskd.reproduce` is asked for."""

    run: str = setting("", "folder of the run; of a search of several pairs, the folder of one")
    sample: int = setting(3, "how many of its trainings are done anew, with all their stages, and the teacher", low=1)
    seed: int = setting(0, "of the choice")
    store: str | None = setting(None, "finished stages to compare with: a folder, or a URL (default: the run's)")
    store_key: str | None = setting(None, "file with the secret that signs them (default: the run's)")
    code: tuple[str, ...] = setting((), "files of one's own that the run was made with, such as [nets.py,data.py]")

    def __post_init__(self) -> None:
        if not Path(self.run).is_dir() or not self.run:
            raise ValueError(f"run={self.run}: there is no such folder; give the folder that a search wrote to")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of one stage. difference: in words, or None. explained: by its key, or by stages before it."""

    stage: str
    difference: str | None
    explained: bool = True


def reproduce(config: Config) -> list[Verdict]:
    """Train a sample of the run's recipes in an empty store, and compare each stage with the run's store.

    Raises:
        ValueError: the folder is no run of one pair, its files are damaged, or its data or teacher can't be had.
    """
    info, made, table = _read(Path(config.run))
    settings = info["config"]
    where = config.store or settings.get("store") or ""
    if not is_url(where) and not (Path(where) / "entries").is_dir():
        raise ValueError(f"store={where} is no store of finished stages: give that of the run with store=")
    kept = open_store(where, config.store_key or settings.get("store_key"))
    drawn = random.Random(config.seed).sample(range(len(table)), min(config.sample, len(table)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from smskd import bench, pipeline

    torch.set_num_threads(made.threads)
    device = "cuda" if "cuda" in info["environment"] and torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(prefix="smskd-") as empty:
        cold = Store(Path(empty))
        on_more = dataclasses.replace(made, train_on=settings.get("train_on") or made.train_on)
        of_phase = {"search": made, "confirm": on_more}
        benches = {
            one.train_on: bench.prepare(one, cold, device=device)
            for one in {of_phase[phase].train_on: of_phase[phase] for phase in table["phase"].iloc[drawn]}.values()
        }
        for number, at in enumerate(sorted(drawn), 1):
            row = table.iloc[at]
            prepared = benches[of_phase[row["phase"]].train_on]
            recipe = _recipe(row, made)
            _say(f"training {number} of {len(drawn)}: {recipe}, seed {row['seed']}")
            looks = row["phase"] == "confirm" and settings.get("protocol") == "paper"
            pipeline.distil(recipe, prepared, seed=int(row["seed"]), test_each_epoch=looks)
        return _compared(cold, kept, Path(config.run).absolute())


def _compared(cold: Store, store: Store, run: Path) -> list[Verdict]:
    trained = sorted((_manifest(cold, entry.key) for entry in cold.entries()), key=lambda told: told["written"])
    verdicts, kept = [], None
    for ours in trained:
        theirs = store.verified(ours["key"])
        if theirs is not None:
            verdicts.append(_verdict(ours, theirs[0], {}))
            continue
        if kept is None:  # of this run, where the store knows it by its folder
            entries = store.entries()
            keys = [entry.key for entry in entries if str(run) in entry.needed_by] or [entry.key for entry in entries]
            kept = [found[0] for key in keys if (found := store.verified(key)) is not None]
        alike = [(len(parts), told) for told in kept if (parts := _parts(ours, told)) is not None]
        if alike:
            told = min(alike, key=lambda pair: (pair[0], pair[1]["key"]))[1]
            verdicts.append(_verdict(ours, told, _parts(ours, told) or {}))
        else:
            verdicts.append(Verdict(stage=_name(ours), difference="the store doesn't have it", explained=False))
    return verdicts


def _parts(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, str] | None:
    """What differs in the keys of one stage, in words; None if it isn't the same stage."""
    now, then = ours["identity"], theirs["identity"]
    differ = {name for name in {*now, *then} if now.get(name) != then.get(name)}
    if differ - {*_CIRCUMSTANCES, *_BEFORE} or (now["parent"] is None) != (then["parent"] is None):
        return None
    words = {"code": "the code of the training", "data": "the data"}
    told = {name: "the stages before it, or the teacher" for name in _BEFORE}
    found = {name: (words | told)[name] for name in differ - {"environment"}}
    old, new = (side["environment"] if "environment" in differ else {} for side in (then, now))
    return found | {
        name: f"{name} was {old.get(name)}, is {new.get(name)}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    }


def _verdict(ours: Mapping[str, Any], theirs: Mapping[str, Any], parts: Mapping[str, str]) -> Verdict:
    differ = [name for name in ("weights", "methods") if ours[name] != theirs[name]]
    now, then = ({k: v for k, v in told["facts"].items() if k != "device_seconds"} for told in (ours, theirs))
    differ += [name for name in sorted({*now, *then}) if now.get(name) != then.get(name)]
    if not differ:
        return Verdict(stage=_name(ours), difference=None)
    why = "; ".join(sorted(set(parts.values()))) or "nothing in its key says why"
    return Verdict(stage=_name(ours), difference=f"{', '.join(differ)} ({why})", explained=bool(parts))


def _manifest(store: Store, key: str) -> dict[str, Any]:
    verified = store.verified(key)
    assert verified is not None, "it was written a moment ago"
    return verified[0]


def _name(told: Mapping[str, Any]) -> str:
    identity = told["identity"]
    return f"{identity['network']} {'+'.join(identity['methods']) or 'ce'} ({told['key'][:12]})"


def _read(run: Path) -> tuple[dict[str, Any], Experiment, pd.DataFrame]:
    """run.json, the experiment in it, and the finished trainings of results.parquet."""
    import pandas as pd

    path = run / "run.json"
    try:
        info = json.loads(path.read_bytes())
        if "pairs" in info:
            raise ValueError(f"{run} holds a search of several pairs: give the folder of one, such as {run}/PAIR")
        settings, environment = info["config"], info["environment"]
        objects = isinstance(settings, dict) and isinstance(environment, dict)
        if not objects or not all(isinstance(settings.get(k), str | None) for k in _OF_CONFIG):
            raise TypeError("a setting is of the wrong type")
        made = experiment.of_dict(info["experiment"])
    except (OSError, KeyError, TypeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read as a run's ({type(error).__name__}: {error})") from None
    path = run / "results.parquet"
    try:
        table = pd.read_parquet(path, columns=list(_COLUMNS))
    except Exception as error:  # a damaged file raises nearly anything
        raise ValueError(f"{path} can't be read as a run's table ({type(error).__name__}: {error})") from None
    table = table[table["status"] == "complete"].reset_index(drop=True)
    if table.empty:
        raise ValueError(f"{run} has finished no training yet: let the search go on")
    return info, made, table


def _recipe(row: pd.Series[Any], made: Experiment) -> Recipe:
    recipe = made.effective(parse(str(row["recipe"])))
    if recipe.id != row["recipe_id"]:
        raise ValueError(f"recipe_id of {recipe} must be {recipe.id}, but the run's table has {row['recipe_id']}")
    return recipe


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code: 0 all identical, 2 bad input, 3 differences that the keys explain, 4
    others, 130 interrupted.
    """
    if any(word in ("--help", "-h", "help") for word in argv):
        _say(
            "Train some of a run's recipes anew, and compare.\n\nkeys and defaults:\n" + "\n".join(cli.describe(Config))
        )
        return SAME
    try:
        verdicts = reproduce(cli.parse(Config, argv))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return BAD_INPUT
    except RuntimeError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return DIFFERENT
    except KeyboardInterrupt:
        _say("interrupted; nothing was written")
        return INTERRUPTED
    different = [verdict for verdict in verdicts if verdict.difference is not None]
    for verdict in different:
        _say(f"different: {verdict.stage}: {verdict.difference}")
    _say(f"{len(verdicts) - len(different)} of {len(verdicts)} stages identical")
    if not different:
        return SAME
    return EXPLAINED if all(verdict.explained for verdict in different) else DIFFERENT


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
