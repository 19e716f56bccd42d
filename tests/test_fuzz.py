"""Whatever is put in for a notation, a command line, a manifest, results or weights: it is read, or refused cleanly."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from reports import build, figures, load, results, stages
from search import config
from smskd import checkpoints, experiment, methods, recipe, train, training
from smskd.notation import parse
from smskd.store import MANIFEST, METHODS, WEIGHTS, Store, address, canonical
from tests.reports.conftest import make_run as make_run

KD = {"methods": "kd", "weighting": "fixed", "lambda_base": 0.5, "anchor": "reference", "teachers": 1}
# The same examples each time; fixtures are files that every example writes anew.
FUZZ = settings(
    deadline=None, derandomize=True, database=None, max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
# fmt: off
ODD = st.sampled_from([
    None, True, "", "x", "../x", "/", "<script>", "${oc.env:HOME}", "\x00", -1, 0, 2**63, 10**30, 1e308, 2.5, [], {},
    [None], {"a": None}, [[["x"]]], "2020-99-99", "x" * 5000,
])
WORDS = st.text(max_size=30) | st.sampled_from([
    "kd", "rkd>kd", "[kd,rkd]", "[[", "&a [*a]", "*a", "!!python/name:os.system", "${seed}", "???", "null", "~", "1e9",
    "[" * 50 + "]" * 50, "9" * 5000, "0x10", ".nan", "-.inf", "{a: 1}", "a: b: c", "\ud800", "2001-99-01", "'\\x24{a}'",
])
KEYS = [*recipe.SETTINGS, *recipe.SHORTHANDS, *training.SETTINGS, "kd.temperature", "rkd.weight", "stage_2.epochs"]
NOTATION = st.lists(st.sampled_from([
    "kd", "rkd", "ce", ">", "+", " ", "=", "(", ")", "@", ",", "[", "]", "temperature=2", "weight=0", "epochs=3",
    "ewc", "1e999", "nan", "\u0663", "-0.0", "[0.5,0.75]", "true", *KEYS,
]))
# fmt: on


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything in a value of JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key))


def changed(value: Any, at: tuple[Any, ...], new: Any, *, remove: bool) -> Any:
    """A copy with one thing replaced or removed."""
    whole = copy.deepcopy(value)
    inner = whole
    for key in at[:-1]:
        inner = inner[key]
    if remove:
        del inner[at[-1]]
    else:
        inner[at[-1]] = new
    return whole


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with some bytes changed, or cut, or with something behind it."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content + draw(st.binary()))


@FUZZ
@given(st.text(max_size=60) | NOTATION.map("".join))
def test_notation(text: str) -> None:
    try:
        found = parse(text)
    except ValueError as error:
        assert "\n" not in str(error).replace(text, "")
        return
    assert parse(str(found)) == found
    assert str(parse(str(found))) == str(found)


@FUZZ
@given(
    st.lists(
        st.tuples(st.sampled_from([f for f in config.Config.__dataclass_fields__ if f != "pair"]), WORDS), max_size=3
    )
)
def test_command_line_of_a_search(words: list[tuple[str, str]]) -> None:
    try:
        found = config.parse_pairs([f"{key}={value}" for key, value in words])
    except ValueError:
        return
    # what was given stands there as it was given
    assert all("${" not in str(vars(one)) and one.out != "???" for one in found)


TRAINING = [*train.Config.__dataclass_fields__, *experiment.SETTINGS, *KEYS, "odd", "kd.odd", "stage_1.", "pair"]


@FUZZ
@given(st.lists(st.tuples(st.sampled_from(TRAINING), WORDS), max_size=3), st.text(max_size=9))
def test_command_line_of_a_training(words: list[tuple[str, str]], bare: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", "hush")
        try:
            config, made, found = train._read([f"{key}={value}" for key, value in words] + ([bare] if bare else []))
            effective = made.effective(found)
        except ValueError:
            return
        # nothing is dropped without a word, and nothing is made of a text but what stands there
        assert parse(str(found)) == found and parse(str(effective)) == effective
        assert experiment.of_dict(made.to_dict()) == made
        assert "hush" not in f"{config} {made} {found}"


@FUZZ
@given(st.dictionaries(st.sampled_from(TRAINING), ODD, max_size=3), st.data())
def test_file_of_a_recipe(told: dict[str, Any], data: st.DataObject) -> None:
    path = Path("recipe.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(_scratch())
        path.write_bytes(data.draw(damaged(json.dumps({"recipe": "kd"} | told).encode())))
        try:
            train._read([f"recipe={path}"])
        except ValueError:
            return


@FUZZ
@given(st.dictionaries(st.sampled_from(list(experiment.SETTINGS)), ODD, max_size=4))
def test_written_form_of_an_experiment(told: dict[str, Any]) -> None:
    try:
        made = experiment.of_dict(told)
    except ValueError:
        return
    assert experiment.of_dict(made.to_dict()) == made


@FUZZ
@given(st.data())
def test_declared_settings(data: st.DataObject) -> None:
    """Of methods, recipes, trainings and experiments: a value is read to one that reads as itself, or refused."""
    every = [one for name in methods.available() for one in recipe.of_method(name).values()]
    every += [*recipe.SETTINGS.values(), *training.SETTINGS.values(), *experiment.SETTINGS.values()]
    one = data.draw(st.sampled_from(every))
    try:
        value = one.read(data.draw(ODD | WORDS))
    except ValueError as error:
        assert len(str(error)) < 1000
        return
    assert one.read(value) == value


_folders: list[Path] = []


@pytest.fixture(autouse=True, scope="module")
def _scratch_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    _folders.append(tmp_path_factory.mktemp("fuzz"))


def _scratch() -> Path:
    return _folders[-1]


KEY_OF = {"format": 2, "network": "tiny_student", "methods": ["kd"], "parent": None, "teachers": ["0" * 64], "seed": 1}


@FUZZ
@given(st.data())
def test_manifest(data: st.DataObject) -> None:
    root = _scratch() / "store"
    shutil.rmtree(root, ignore_errors=True)
    store, key = Store(root), address(KEY_OF)
    store.put(key, KEY_OF, {"a": torch.zeros(3)}, {"val_accuracy": 0.5}, {})
    place = store.path(key)
    whole = json.loads((place / MANIFEST).read_text())
    del whole["check"]
    whole["written"] = 1.0
    told = changed(
        whole, data.draw(st.sampled_from(list(places(whole)))), data.draw(ODD), remove=data.draw(st.booleans())
    )
    if data.draw(st.booleans()):  # by somebody who can count
        told["check"] = hashlib.sha256(canonical(told).encode()).hexdigest()
    content = json.dumps(told).encode()
    (place / MANIFEST).write_bytes(data.draw(damaged(content)) if data.draw(st.booleans()) else content)
    for name in (WEIGHTS, METHODS):
        if data.draw(st.booleans()):
            (place / name).write_bytes(data.draw(damaged((place / name).read_bytes())))
    store.digest(key)
    assert all(listed.key == key for listed in store.entries())
    found = store.get(key)
    if found is None:
        assert not place.exists() and (root / "aside").is_dir(), "what isn't whole is set aside"
    else:
        assert torch.equal(found.weights["a"], torch.zeros(3))


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights(tmp_path: Path, suffix: str) -> None:
    network, path = _network(), tmp_path / f"t{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(network.state_dict(), path)
    whole = path.read_bytes()

    @FUZZ
    @given(damaged(whole))
    def refused_or_of_the_network(content: bytes) -> None:
        path.write_bytes(content)
        try:
            found = checkpoints.read(path, network, key="teacher", name="n").weights
        except ValueError:
            return
        assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
            name: (value.shape, value.dtype) for name, value in network.state_dict().items()
        }

    refused_or_of_the_network()


@pytest.fixture
def run(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a small finished run. The largest figure, which takes half of a page's time, isn't drawn."""
    monkeypatch.setattr(figures, "accuracy", lambda **numbers: {})
    return Path(make_run(recipes=[KD, KD | {"methods": "kd>rkd"}, KD | {"methods": "rkd"}], seeds=2, confirm=2))


def test_run_json(run: Path) -> None:
    whole = json.loads((run / "run.json").read_text())

    @settings(FUZZ, max_examples=12)
    @given(st.sampled_from(list(places(whole))), ODD, st.booleans())
    def built_or_refused(at: tuple[Any, ...], new: Any, remove: bool) -> None:
        (run / "run.json").write_text(json.dumps(changed(whole, at, new, remove=remove)))
        try:
            build.build(run)
        except ValueError:
            return
        assert '<script>"' not in (run / "report.html").read_text()

    built_or_refused()


def test_table(run: Path) -> None:
    whole = pq.read_table(run / "results.parquet")
    content = (run / "results.parquet").read_bytes()
    odd = {
        "string": ["", "<script>", "../x", None],
        "int64": [-1, 0, 2**62, None],
        "double": [np.nan, np.inf, -1.0, 0.0, 1e308, None],
    }
    cells = [(name, value) for name in whole.column_names for value in odd[str(whole.schema.field(name).type)]]

    @settings(FUZZ, max_examples=12)
    @given(st.sampled_from(cells), st.integers(0, len(whole) - 1))
    def cell(chosen: tuple[str, Any], row: int) -> None:
        name, value = chosen
        values = whole[name].to_pylist()
        values[row] = value
        field = whole.schema.field(name)
        table = whole.set_column(whole.column_names.index(name), field, pa.array(values, field.type))
        pq.write_table(table, run / "results.parquet")
        try:
            build.build(run)
        except ValueError:
            return

    @FUZZ
    @given(damaged(content))
    def file(content: bytes) -> None:
        (run / "results.parquet").write_bytes(content)
        try:
            results.read(run)
        except ValueError:
            return

    cell()
    file()


def test_stages(run: Path) -> None:
    text = (
        "methods,recipe_id,seed,phase,stage,stage_methods,val_accuracy,agreement_teacher,loss_of_stage_1,"
        "loss_of_stage_2\n"
        "kd>rkd,{id},0,search,1,kd,0.5,0.5,1.0,\nkd>rkd,{id},0,search,2,rkd,0.6,0.5,1.5,2.0\n"
    )
    whole = load.run(run)
    text = text.replace("{id}", whole.table.loc[whole.table["methods"] == "kd>rkd", "recipe_id"].iloc[0])
    (run / stages.NAME).write_text(text)
    assert stages.contents(stages.read(run), whole) is not None

    @FUZZ
    @given(st.data())
    def read_or_refused(data: st.DataObject) -> None:
        words = text.split(",")
        words[data.draw(st.integers(0, len(words) - 1))] = data.draw(
            st.sampled_from(["", "x", "-1", "1e999", "2\n", "\x00"])
        )
        content = data.draw(damaged(text.encode())) if data.draw(st.booleans()) else ",".join(words).encode()
        (run / stages.NAME).write_bytes(content)
        try:
            stages.contents(stages.read(run), whole)
        except ValueError:
            return

    read_or_refused()
