"""A run's stages trained anew: identical, different where the store was changed, explained where the key was."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
import torch

from smskd import job, pipeline, reproduce
from smskd.notation import parse
from smskd.store import MANIFEST, WEIGHTS, Store, address, canonical
from tests.smskd import small

EXPERIMENT = small.experiment(teacher_epochs=1)
RECIPES = ["kd(temperature=2)@epochs=1", "kd(temperature=2)@epochs=1>rkd@epochs=2,learning_rate=0.1", "rkd epochs=1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, as far as it is read here, and its store."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "run").mkdir()
    torch.set_num_threads(1)
    rows, keys = [], set[str]()
    bench = small.prepare(folder / "store", teacher_epochs=1)
    for notation in RECIPES:
        recipe = EXPERIMENT.effective(parse(notation))
        result = pipeline.distil(recipe, bench, seed=3)
        keys |= {stage.key for stage in result.stages}
        rows.append({"recipe": str(recipe), "recipe_id": recipe.id, "seed": 3, "phase": "search", "status": "complete"})
    pd.DataFrame(rows).to_parquet(folder / "run" / "results.parquet")
    info = {"config": {"store": str(folder / "store")}, "experiment": EXPERIMENT.to_dict()}
    info["environment"] = job.environment(bench.device, bench.numerics)
    (folder / "run" / "run.json").write_text(json.dumps(info))
    Store(folder / "store").own(folder / "run", keys)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A store to change; the run is taken with store=."""
    return Path(shutil.copytree(made / "store", tmp_path / "store"))


def again(made: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = reproduce.main([f"run={made / 'run'}", f"store={store}", "sample=9"])
    lines = capsys.readouterr().out.splitlines()
    return code, [line for line in lines if not line.startswith("training ")]


def rewrite(
    made: Path, store: Path, change: Callable[[dict[str, Any], Path], None], stages: Callable[[Any], bool]
) -> list[str]:
    """Change entries, and make their manifests and places fit; the keys that they had."""
    changed = []
    for entry in sorted(store.glob("entries/*/*")):
        told = json.loads((entry / MANIFEST).read_text())
        if not stages(told["identity"]):
            continue
        changed.append(told["key"])
        del told["check"]
        change(told, entry)
        told["key"] = address(told["identity"])
        told["weights"] = hashlib.sha256((entry / WEIGHTS).read_bytes()).hexdigest()
        told["check"] = hashlib.sha256(canonical(told).encode()).hexdigest()
        (entry / MANIFEST).write_text(json.dumps(told))
        place = store / "entries" / told["key"][:2] / told["key"]
        place.parent.mkdir(exist_ok=True)
        entry.rename(place)
    Store(store).own(made / "run", [place.name for place in store.glob("entries/*/*")])
    return changed


def test_identical(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in (made / "run").iterdir())
    code, said = again(made, made / "store", capsys)
    assert (code, said) == (0, ["4 of 4 stages identical"])  # the teacher, kd, rkd, and rkd after kd
    assert before == sorted(path.name for path in (made / "run").iterdir())


def test_changed_weights_are_found(made: Path, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def nudge(told: dict[str, Any], entry: Path) -> None:
        tensors = safetensors.torch.load((entry / WEIGHTS).read_bytes())
        name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
        tensors[name].flatten()[0] += 1e-7
        (entry / WEIGHTS).write_bytes(safetensors.torch.save(tensors))

    (key,) = rewrite(
        made, copied, nudge, lambda identity: list(identity["methods"]) == ["rkd"] and identity["parent"] is None
    )
    code, said = again(made, copied, capsys)
    assert code == 4
    assert said == [
        f"different: cifar/tiny_student rkd ({key[:12]}): weights (nothing in its key says why)",
        "3 of 4 stages identical",
    ]


def test_a_stage_of_another_environment_is_explained(
    made: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def older(told: dict[str, Any], entry: Path) -> None:
        told["identity"]["environment"] |= {"torch": "2.0.0", "threads": 7}
        told["facts"]["val_accuracy"] += 0.01

    (key,) = rewrite(made, copied, older, lambda identity: identity["parent"] is not None)
    code, said = again(made, copied, capsys)
    assert code == 3
    here = torch.__version__
    assert said == [
        f"different: cifar/tiny_student rkd ({key[:12]}): val_accuracy "
        f"(threads was 7, is 1; torch was 2.0.0, is {here})",
        "3 of 4 stages identical",
    ]


def test_a_stage_that_was_pruned_is_told(made: Path, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for entry in copied.glob("entries/*/*"):
        if json.loads((entry / MANIFEST).read_text())["identity"]["parent"] is not None:
            shutil.rmtree(entry)
    code, said = again(made, copied, capsys)
    assert code == 4
    assert said[0].endswith("the store doesn't have it") and said[1:] == ["3 of 4 stages identical"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pairs": ["tiny", "other"]}, "holds a search of several pairs: give the folder of one"),
        ({"config": {"store": 3}}, "a setting is of the wrong type"),
        ({"config": None}, "can't be read as a run's"),
        ({"config": {}}, "is no store of finished stages"),
        ({"experiment": {"pair": "no"}}, "unknown pair 'no'"),
        ({"experiment": {"pear": "tiny"}}, "unknown setting 'pear'"),
        ({"experiment": {"teacher_epochs": "few"}}, "teacher_epochs must be a whole number, but got 'few'"),
        ({"experiment": [1]}, "can't be read as a run's"),
    ],
)
def test_what_is_no_run_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], says: str
) -> None:
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    info = json.loads((run / "run.json").read_text()) | change
    (run / "run.json").write_text(json.dumps(info))
    assert reproduce.main([f"run={run}"]) == 2
    assert says in capsys.readouterr().err


def test_the_table_s_recipe_must_be_the_one_it_names(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    table = pd.read_parquet(run / "results.parquet").assign(recipe_id="0" * 12)
    table.to_parquet(run / "results.parquet")
    assert reproduce.main([f"run={run}", "sample=1"]) == 2
    assert "recipe_id of" in capsys.readouterr().err
