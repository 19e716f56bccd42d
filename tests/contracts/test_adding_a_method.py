"""A method is one new file, and the one in CONTRIBUTING.md works as it stands there."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from smskd import methods, pipeline, recipe
from smskd.pipeline import Result

NAME = "logit_mse"
CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"


def _forget() -> None:
    sys.modules.pop(f"{methods.__name__}.{NAME}", None)
    vars(methods).pop(NAME, None)
    pipeline.code_digest.cache_clear()


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of CONTRIBUTING.md, in a folder outside the package."""
    assert NAME not in methods.available()
    text = CONTRIBUTING.read_text(encoding="utf-8")
    found = re.search(rf"smskd/methods/{NAME}\.py`[^`]*```python\n(.*?)```\n", text, flags=re.DOTALL)
    assert found, f"CONTRIBUTING.md must show smskd/methods/{NAME}.py in a block of Python"
    file = tmp_path / "methods" / f"{NAME}.py"
    file.parent.mkdir()
    file.write_text(found[1], encoding="utf-8")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(file.parent)])
    importlib.invalidate_caches()
    yield file
    _forget()


def train(store: Path) -> Result:
    return pipeline.run(
        f"kd>{NAME}", pair="tiny", data="digits", train_size=100, epochs=1, teacher_epochs=1, device="cpu", store=store
    )


def test_the_method_of_the_example_is_one_file(added: Path, tmp_path: Path) -> None:
    assert len(added.read_text(encoding="utf-8").splitlines()) <= 25
    assert NAME in methods.available()
    assert str(recipe.parse(f"kd>{NAME}")) == f"kd>{NAME}"
    result = train(tmp_path / "store")
    assert list(result.stages[1].losses[0]) == ["ce", NAME, "anchor"]
    assert result.stages[1].losses[0][NAME] > 0


def test_its_code_is_part_of_the_stages_key(added: Path, tmp_path: Path) -> None:
    first = train(tmp_path / "store")
    text = added.read_text(encoding="utf-8")
    for change, (old, new) in {
        "comment": ("of the teacher: ", ""),
        "code": ('"logit_mse": 1.0', '"logit_mse": 2.0'),
    }.items():
        assert text.count(old) == 1
        added.write_text(text.replace(old, new), encoding="utf-8")
        importlib.invalidate_caches()
        _forget()
        again = train(tmp_path / "store")
        assert [stage.trained for stage in again.stages] == [False, change == "code"]
        assert (again.stages[1].key != first.stages[1].key) == (change == "code")


def test_without_the_file_the_method_is_unknown() -> None:
    with pytest.raises(ValueError, match=f"unknown method '{NAME}'"):
        recipe.parse(f"kd>{NAME}")
