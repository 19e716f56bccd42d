"""A method is one new file, and the one in CONTRIBUTING.md works as it stands there."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from smskd import job, methods, pairs, pipeline
from smskd import train as commands
from smskd.experiment import Experiment
from smskd.notation import parse
from smskd.recipe import columns, declaration
from smskd.result import Result
from smskd.testing import MethodContract

NAME = "logit_mse"
CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"


def _forget() -> None:
    sys.modules.pop(f"{methods.__name__}.{NAME}", None)
    vars(methods).pop(NAME, None)
    for cached in (job._of_package, methods._of_shipped):
        cached.cache_clear()
    importlib.invalidate_caches()


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of CONTRIBUTING.md, in a folder outside the package."""
    assert NAME not in methods.available()
    text = CONTRIBUTING.read_text(encoding="utf-8")
    found = re.search(rf"smskd/methods/{NAME}\.py`.*?```python\n(.*?)```\n", text, flags=re.DOTALL)
    assert found, f"CONTRIBUTING.md must show smskd/methods/{NAME}.py in a block of Python"
    file = tmp_path / "methods" / f"{NAME}.py"
    file.parent.mkdir()
    file.write_text(found[1], encoding="utf-8")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(file.parent)])
    _forget()
    yield file
    _forget()


def rewritten(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), encoding="utf-8")
    _forget()


def train(store: Path, recipe: str = f"kd>{NAME} epochs=1") -> Result:
    return pipeline.run(recipe, Experiment(train_size=100, teacher_epochs=1), device="cpu", store=store)


class Mine(MethodContract):
    method = NAME


def test_the_method_of_the_example_is_one_file(added: Path, tmp_path: Path) -> None:
    assert len(added.read_text(encoding="utf-8").splitlines()) <= 25
    assert NAME in methods.available()
    assert str(parse(f"kd>{NAME}(weight=2)")) == f"kd>{NAME}(weight=2)"
    result = train(tmp_path / "store")
    assert list(result.stages[1].losses[0]) == ["ce", NAME, "anchor"]
    assert result.stages[1].losses[0][NAME] > 0


def test_it_keeps_the_contract_that_it_inherits(added: Path) -> None:
    plain = [name for name in dir(Mine) if name.startswith("test_") and not hasattr(getattr(Mine, name), "pytestmark")]
    assert len(plain) >= 10
    for name in plain:
        getattr(Mine(), name)()
    Mine().test_hostile_outputs_give_finite_losses_and_gradients("huge", "both", torch.float32)
    Mine().test_a_single_image_gives_a_finite_loss(True)


@pytest.mark.parametrize(
    ("old", "new", "broken"),
    [
        (".detach()", "", "gradient_reaches_the_student"),
        ('self.settings["weight"] * ', "", "weight_multiplies_all_its_terms"),
        ("(weight(1.0),)", '(weight(1.0), Setting("more", 1.0, "of nothing"))', "each_setting_has_an_effect"),
        ('{"logits"}', '{"embedding"}', "only_what_is_read_is_looked_at"),
        (f'{{"{NAME}":', '{"mse":', "terms_are_float32_scalars"),
        ("(weight(1.0),)", '(weight(1.0), Setting("more", 1.0, ""))', "its_settings_are_declared_once"),
        ("LogitMSE(task.settings)", "LogitMSE({})", "it_is_built_with_its_settings"),
    ],
)
def test_a_method_that_breaks_the_contract_is_told(added: Path, old: str, new: str, broken: str) -> None:
    if "Setting(" in new:
        rewritten(added, "import weight", "import Setting, weight")
    rewritten(added, old, new)
    test = next(name for name in dir(Mine) if name.startswith(f"test_{broken}"))
    with pytest.raises((AssertionError, KeyError, RuntimeError, UserWarning)):
        getattr(Mine(), test)()


def test_its_code_is_part_of_the_stages_key(added: Path, tmp_path: Path) -> None:
    first = train(tmp_path / "store")
    for change, (old, new) in {
        "comment": ("of the teacher: ", ""),
        "code": ("student.output.logits.float()", "(2 * student.output.logits.float())"),
    }.items():
        rewritten(added, old, new)
        again = train(tmp_path / "store")
        assert [stage.trained for stage in again.stages] == [False, change == "code"]
        assert (again.stages[1].key != first.stages[1].key) == (change == "code")


def test_its_settings_are_in_the_key_by_their_values_and_not_as_code(added: Path, tmp_path: Path) -> None:
    first = train(tmp_path / "store")
    rewritten(added, "(weight(1.0),)", "(weight(2.0),)")
    doubled = train(tmp_path / "store")
    assert [stage.trained for stage in doubled.stages] == [False, True]
    said = train(tmp_path / "store", f"kd>{NAME}(weight=1) epochs=1")
    assert [stage.trained for stage in said.stages] == [False, False]
    assert [stage.key for stage in said.stages] == [stage.key for stage in first.stages]


def test_a_made_up_setting_of_it_is_declared_in_one_place(
    added: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Settable, part of id and key, a column of the table, in the written recipe, and trained again from it."""
    rewritten(added, "import weight", "import Setting, weight")
    rewritten(added, "(weight(1.0),)", '(weight(1.0), Setting("power", 1.0, "of the error", above=0, high=4))')
    rewritten(added, 'self.settings["weight"] *', 'self.settings["weight"] * self.settings["power"] *')
    Mine().test_its_settings_are_declared_once_with_defaults_within_their_bounds()
    Mine().test_each_setting_has_an_effect()
    made, key = Experiment(train_size=100, teacher_epochs=1), f"{NAME}.power"
    assert declaration(key) is not None
    assert commands.main(["--help"]) == 0 and f"  {key}=1 " in capsys.readouterr().out
    plain, set_ = (made.effective(parse(f"kd>{NAME}{text} epochs=1")) for text in ("", "(power=3)"))
    assert plain.id != set_.id and str(set_) == f"kd>{NAME}(power=3) epochs=1"
    assert [row[key] for row in columns([plain, set_], made.defaults)] == [1.0, 3.0]
    first, second = train(tmp_path / "store", str(plain)), train(tmp_path / "store", str(set_))
    assert [stage.trained for stage in second.stages] == [False, True]
    assert first.stages[1].digest != second.stages[1].digest
    (tmp_path / "best.yaml").write_text(yaml.safe_dump({"recipe": second.recipe} | made.to_dict() | {"seed": 0}))
    out = tmp_path / "student.safetensors"
    assert commands.main([f"recipe={tmp_path / 'best.yaml'}", f"store={tmp_path / 'other'}", f"out={out}"]) == 0
    assert f"{100 * second.val_accuracy:.2f} %" in capsys.readouterr().out
    weights = safetensors.torch.load_file(out)
    assert all(torch.equal(weights[name], value) for name, value in second.weights.items())
    with pytest.raises(ValueError, match=rf"0 < {NAME}.power <= 4 must hold, but got {NAME}.power=5"):
        parse(f"{NAME}(power=5)")
    with pytest.raises(ValueError, match=f"power is a setting of {NAME}"):
        parse("kd power=3")


def test_a_new_method_voids_no_stage_of_others(request: pytest.FixtureRequest) -> None:
    def keys() -> dict[str, str]:
        student = pairs.get("tiny").student
        return {name: job.code_digest(student, () if name == "ce" else (name,)) for name in old}

    old = methods.available()
    before = keys()
    request.getfixturevalue("added")
    assert set(methods.available()) - set(old) == {NAME}
    assert keys() == before


@pytest.mark.parametrize(
    "declared", ["[weight(1.0)", "(weight(-1.0),)", "(weight(DEFAULT),)", "weight(1.0)", '(__import__("os"),)']
)
def test_settings_that_cannot_be_read_alone_are_told(added: Path, declared: str) -> None:
    rewritten(added, "(weight(1.0),)", declared)
    with pytest.raises(ValueError, match=rf"smskd/methods/{NAME}\.py must declare SETTINGS as a tuple of Setting"):
        methods.declaration(NAME)


def test_without_the_file_the_method_is_unknown() -> None:
    with pytest.raises(ValueError, match=f"unknown method '{NAME}'"):
        parse(f"kd>{NAME}")
