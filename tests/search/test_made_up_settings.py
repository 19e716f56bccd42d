"""A setting is declared in one place: a made-up one of the training and one of a made-up method, in a copy of the code.

Nothing else of the copy is touched but what they do. They can be set and searched, are part of id and key, columns of
the table, in best.yaml and on the page, and are retrained from there bit for bit.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from reports import results
from tests import runs

DECLARED = '    emphasis: float = setting(1.0, "made up: a factor of cross-entropy", low=0)\n'
BEFORE = "    ce: float | None = setting("
EFFECT = ("ce_weight * ce.cross_entropy(", "training.emphasis * ce_weight * ce.cross_entropy(")
METHOD = '''"""Made up: a power of the distance between logits."""

from __future__ import annotations

from torch import Tensor

from smskd.methods.base import Batch, Method, Task, View
from smskd.settings import Setting, weight

READS = frozenset({"logits"})
SETTINGS = (weight(0.1), Setting("power", 2.0, "of the distance", above=0))


class MadeUp(Method):
    """One term."""

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        distance = (student.output.logits.float() - teacher.output.logits.detach().float()).abs()
        return {"made_up": self.settings["weight"] * (distance + 1e-3).pow(self.settings["power"]).mean()}


def build(task: Task) -> Method:
    return MadeUp(task.settings)
'''
WORDS = ["methods=[made_up]", "max_stages=1", "emphasis=choice(0.5,2)", "made_up.power=choice(1,3)"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code, with both settings."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in ("search", "smskd", "spaces", "reports"):
        shutil.copytree(runs.ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "smskd" / "methods" / "made_up.py").write_text(METHOD)
    for file, old, new in (("training.py", BEFORE, DECLARED + BEFORE), ("stage.py", *EFFECT)):
        text = (folder / "smskd" / file).read_text()
        assert text.count(old) == 1
        (folder / "smskd" / file).write_text(text.replace(old, new))
    return folder


def python(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = runs.environment(PYTHONPATH=str(checkout))
    return subprocess.run(
        [sys.executable, *words], cwd=checkout, env=environment, capture_output=True, text=True, timeout=280
    )


@pytest.fixture(scope="module")
def run(checkout: Path) -> Path:
    """A search over both."""
    out = checkout / "run"
    done = python(checkout, *runs.command(out, checkout / "store", "methods=", "seeds=1", "confirm=0", *WORDS)[1:])
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.parametrize("module", ["search.run", "smskd.train"])
def test_the_help_has_them(checkout: Path, module: str) -> None:
    told = python(checkout, "-m", module, "--help").stdout
    assert re.search(r"^  emphasis= +made up: a factor of cross-entropy \(>= 0\)", told, flags=re.MULTILINE)
    assert re.search(r"^  made_up\.power=2 +of the distance \(> 0\)", told, flags=re.MULTILINE)
    assert re.search(r"^  made_up\.weight=0\.1 ", told, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["emphasis=-1"], "emphasis >= 0 must hold, but got emphasis=-1"),
        (["emphasi=1"], "Did you mean 'emphasis'"),
        (["power=2"], "power is a setting of made_up: made_up(power=2), or made_up.power=2 for all stages"),
        (["methods=[made_up(power=0)]"], "made_up.power > 0 must hold"),
        (["made_up.power=interval(2,1)"], "low < high must hold"),
        (["made_up.power=choice(1,3)"], "made_up.power= has no effect"),
    ],
)
def test_wrong_values_are_refused(checkout: Path, words: list[str], said: str) -> None:
    done = python(checkout, "-m", "search.run", *words)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_they_are_searched_by_any_range(checkout: Path) -> None:
    words = ["methods=[made_up,kd]", "max_stages=2", "stage_2.emphasis=tag(log,interval(0.1,10))"]
    code = (
        "import sys; from search import config, draws; "
        "print(*draws.look(config.parse(sys.argv[1:]).search_space()).recipes, sep='\\n')"
    )
    done = python(checkout, "-c", code, *words, "made_up.power=interval(0.5,3)")
    lines = done.stdout.splitlines()
    assert len(set(lines)) > 100, done.stderr
    for line in lines:
        assert re.search(r"made_up\(power=[\d.]+\)", line) or line == "kd"
        assert ("@emphasis=" in line) == (">" in line)


def test_they_are_in_id_key_and_table(run: Path) -> None:
    rows = results.read(run)
    assert sorted(zip(rows["emphasis"], rows["made_up.power"], strict=True)) == [(0.5, 1), (0.5, 3), (2, 1), (2, 3)]
    assert rows["recipe_id"].nunique() == rows["recipe"].nunique() == rows["val_accuracy"].count() == 4
    for row in rows.to_dict("records"):
        power, emphasis = f"{row['made_up.power']:g}", f"{row['emphasis']:g}"
        assert row["recipe"] == f"made_up(power={power}) epochs=1 emphasis={emphasis}"
    assert len(runs.finished(run.parent / "store")) == 1 + 4  # the teacher and each student
    assert json.loads((run / "run.json").read_text())["settings"] == {
        "epochs": "1", "emphasis": "choice(0.5,2)", "made_up.power": "choice(1,3)",
    }  # fmt: skip


def test_they_are_on_the_page(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "emphasis" in page and "made_up.power" in page.replace("made up.power", "made_up.power")


def test_they_are_retrained_bit_for_bit(checkout: Path, run: Path) -> None:
    best = yaml.safe_load((run / "best.yaml").read_text())
    rows = results.read(run)
    (row,) = rows[rows["recipe"] == best["recipe"]].to_dict("records")
    weights = checkout / "again.safetensors"
    words = [f"recipe={run / 'best.yaml'}", f"store={checkout / 'another'}", f"out={weights}"]
    done = python(checkout, "-m", "smskd.train", *words)
    assert done.returncode == 0, done.stderr
    assert f"seed {row['seed']}: {100 * row['val_accuracy']:.2f} %," in done.stdout
    found, wanted = (safetensors.torch.load_file(file) for file in (weights, run / "student.safetensors"))
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)
