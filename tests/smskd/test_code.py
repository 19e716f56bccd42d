"""Files of one's own: read once, with what they import; run only where they are named; mistakes told in a line."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smskd import bench, blame, cli, code, components, job, methods, models, pairs, pipeline
from smskd.experiment import Experiment
from tests.own import no_files  # noqa: F401 (a fixture)
from tests.smskd.small import experiment

NETS = """
from torch import nn
from own_blocks import conv

class Student(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.body, self.head = conv(in_channels, 4), nn.Linear(4, num_classes)
    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))

def teacher(num_classes, in_channels):
    made = Student(num_classes, in_channels)
    return made
"""
BLOCKS = """
from torch import nn
def conv(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.ReLU())
"""
LOSS = '''"""The distance of logits."""
from smskd.methods.base import Method
from smskd.settings import weight

READS = frozenset({"logits"})
SETTINGS = (weight(2.0),)

class Distance(Method):
    def forward(self, student, teacher, batch):
        distance = (student.output.logits - teacher.output.logits).square().mean()
        return {"own_loss": self.settings["weight"] * distance}

def build(task):
    return Distance(task.settings)
'''


pytestmark = pytest.mark.usefixtures("no_files")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A file of Python in a folder."""

    def written(name: str, text: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(text)
        return file

    return written


def test_what_a_file_imports_from_its_folder_is_part_of_it(write: Callable[..., Path]) -> None:
    file = write("own_nets.py", NETS)
    blocks = write("own_blocks.py", BLOCKS)
    write("own_others.py", "raise RuntimeError")  # isn't imported
    code.use(file)
    first = code.digest("own_nets.py")
    network = models.build("own_nets.py:Student", num_classes=3, image=(1, 8, 8))
    assert network.state_dict()["head.weight"].shape == (3, 4)
    blocks.write_text(BLOCKS + "\n# changed")
    assert code.digest("own_nets.py") == first  # it was read once
    code.use(file)
    assert code.digest("own_nets.py") != first


def test_packages_and_imports_of_imports(write: Callable[..., Path]) -> None:
    write("own_package/__init__.py", "")
    inner = write("own_package/inner.py", "import own_far\nVALUE = own_far.VALUE")
    write("own_far.py", "VALUE = 3")
    code.use(write("own_entry.py", "def f():\n    from own_package.inner import VALUE\n    return VALUE"))
    inner.write_text("VALUE = 4")
    assert code.load("own_entry.py:f", "data")() == 3


def test_another_process_runs_what_was_read(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    file = write("own_nets.py", NETS)
    write("own_blocks.py", BLOCKS)
    code.use(file)
    bundle, digest = code.bundle(), code.digest("own_nets.py")
    monkeypatch.setattr(code, "_FILES", code.Files())
    sys.modules.pop("own_nets", None)
    file.unlink()
    code.install(bundle)
    assert code.digest("own_nets.py") == digest
    assert isinstance(models.build("own_nets.py:teacher", num_classes=3, image=(1, 8, 8)), nn.Module)


def test_nothing_runs_that_is_not_named(write: Callable[..., Path]) -> None:
    file = write("own_nets.py", NETS)
    with pytest.raises(
        ValueError, match=r"teacher_model=own_nets.py: its code runs only if the file is named: add code="
    ):
        Experiment(teacher_model=f"{file}:teacher", student_model=f"{file}:Student")
    with pytest.raises(ValueError, match=r"unknown method 'own_loss'"):
        pipeline.run("own_loss")


def test_another_file_of_that_name_is_refused(write: Callable[..., Path]) -> None:
    file = write("own_nets.py", NETS)
    write("own_blocks.py", BLOCKS)
    code.use(file)
    made = Experiment(teacher_model="own_nets.py:teacher", student_model="own_nets.py:Student")
    assert made.code == (f"own_nets.py@{code.digest('own_nets.py')[:32]}",)
    again = made.to_dict()
    assert Experiment(**again) == made  # type: ignore[arg-type]
    file.write_text(NETS + "\n# another")
    code.use(file)
    with pytest.raises(ValueError, match=r"own_nets.py must be the file with the digest [0-9a-f]{12}, but .* has"):
        Experiment(**again)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def broken(:", r"own.py, line 1 is no Python: "),
        (
            "import no_such_module\ndef Student(n, c): ...",
            r"own.py can't be imported: ModuleNotFoundError: .*\(.*own.py, line 1\)",
        ),
        ("def Student(num_classes, in_channels, width): ...", r"must take \(num_classes, in_channels\), but takes"),
        ("def Student(n, c):\n    return n + c", r"must make an nn.Module, but made int"),
        ("def Student(n, c):\n    return 1 / 0", r"can't be built: ZeroDivisionError: .*own.py, line 2"),
        ("Student = 3", r"must be a class or function \(num_classes, in_channels\) -> nn.Module, but is int"),
        ("class Students: ...", r"own.py has no Student; it has Students. Did you mean own.py:Students\?"),
    ],
)
def test_mistakes_of_a_network_are_told_in_a_line(write: Callable[..., Path], text: str, said: str) -> None:
    file = write("own.py", text)
    with pytest.raises(ValueError, match=said) as caught:
        code.use(file)
        models.build("own.py:Student", num_classes=10, image=(1, 8, 8))
    assert "\n" not in str(caught.value)


def test_which_of_several_is_asked(write: Callable[..., Path]) -> None:
    code.use(write("own.py", "class A: ...\nclass B: ...\ndef _hidden(): ..."))
    with pytest.raises(ValueError, match=r"own.py defines A, B; say which, as student_model=own.py:A"):
        components.network("own.py", key="student_model")
    code.use(write("only.py", "import os\ndef make(num_classes, in_channels): ..."))
    assert components.network("only.py").name == "only.py:make"


def test_names_that_mean_two_files(write: Callable[..., Path]) -> None:
    first, second = write("a/own.py", ""), write("b/own.py", "")
    with pytest.raises(ValueError, match=r"two files of one name: .*a/own.py and .*b/own.py; rename one"):
        code.use(first, second)
    with pytest.raises(ValueError, match=r"random.py has the name of another module, .*: rename it"):
        code.use(write("random.py", ""))
    with pytest.raises(ValueError, match=r"missing.py: there is no such file"):
        code.use("missing.py")


def test_a_method_of_its_own_has_settings_and_is_in_the_key(write: Callable[..., Path], tmp_path: Path) -> None:
    file = write("own_loss.py", LOSS)
    code.use(file)
    assert methods.available()[-1] == "own_loss" and methods.declaration("own_loss").settings["weight"].default == 2
    made = experiment(teacher_epochs=1)
    result = pipeline.run("kd>own_loss(weight=3) epochs=1", made, store=tmp_path / "store", device="cpu")
    assert [stage.trained for stage in result.stages] == [True, True]
    key = functools.partial(job.code_digest, made.networks.student, ("own_loss",))
    first = key()
    file.write_text(LOSS.replace("square()", "abs()"))
    code.use(file)
    assert key() != first
    assert (
        pipeline.run("kd>own_loss(weight=3) epochs=1", made, store=tmp_path / "store", device="cpu").stages[1].trained
    )


def test_a_pair_in_a_file_names_networks_beside_it(write: Callable[..., Path]) -> None:
    write("own_nets.py", NETS)
    write("own_blocks.py", BLOCKS)
    file = write(
        "own_pair.py",
        "from smskd.components import network\nfrom smskd.pairs import Pair\n"
        'PAIR = Pair(name="own_pair", teacher=network("own_nets.py:teacher"), student=network("own_nets.py:Student"),\n'
        '            defaults={"epochs": 3, "kd.temperature": 2.0})',
    )
    code.use(file)
    made = Experiment(pair=str(file))
    assert made.pair == "own_pair.py" and made.networks.name == "own_pair" and made.defaults["kd.temperature"] == 2
    assert [stamp.partition("@")[0] for stamp in made.code or ()] == ["own_nets.py", "own_pair.py"]
    assert made.to_dict() == Experiment(**made.to_dict()).to_dict()  # type: ignore[arg-type]
    write("wrong.py", "PAIR = 3")
    code.use(file.with_name("wrong.py"))
    with pytest.raises(ValueError, match=r"wrong.py must say PAIR = Pair\(name='wrong', ...\), but says 3"):
        pairs.get("wrong.py")


class Net(nn.Module):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(in_channels * 64, num_classes)

    def forward(self, images):  # type: ignore[no-untyped-def]
        return self.head(images.flatten(1))


def test_objects_in_place_of_names(tmp_path: Path) -> None:
    teacher = Net(10, 1)
    run = functools.partial(pipeline.run, "kd epochs=1", store=tmp_path / "store", device="cpu")
    first, again = (run(teacher=teacher, student=Net) for _ in range(2))
    assert first.stages[0].trained and not again.stages[0].trained
    assert all(parameter.requires_grad for parameter in teacher.parameters())  # the user's own stays as it is
    assert run(teacher=Net(10, 1), student=Net).stages[0].trained  # other weights, another teacher
    started = run(teacher=teacher, student=Net(10, 1))
    assert started.stages[0].trained and started.stages[0].key != first.stages[0].key
    with pytest.raises(ValueError, match="teacher_model= and student_model= go together"):
        run(student=Net)


def test_what_an_object_refers_to_is_in_its_digest() -> None:
    def of(width: int) -> Callable[[int, int], nn.Module]:
        return functools.partial(_made, width=width)

    assert components.of_object(of(3)).digest == components.of_object(of(3)).digest
    assert components.of_object(of(3)).digest != components.of_object(of(4)).digest
    assert components.of_object(nn.Linear(2, 3)).digest != components.of_object(nn.Linear(2, 4)).digest


def _made(num_classes: int, in_channels: int, width: int) -> nn.Module:
    return nn.Linear(width, num_classes)


def _wide(width: int) -> Callable[..., nn.Module]:
    def made(num_classes: int, in_channels: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * width, num_classes))

    return made


class _Wide:
    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, num_classes: int, in_channels: int) -> nn.Module:
        return _wide(self.width)(num_classes, in_channels)

    def make(self, num_classes: int, in_channels: int) -> nn.Module:
        return self(num_classes, in_channels)


class _Sloped(nn.Module):
    def __init__(self, slope: float, act: Callable[..., Tensor] = torch.relu) -> None:
        super().__init__()
        self.slope, self.act, self.head = slope, act, nn.Linear(2, 2)


def _of_default(width: int) -> Callable[..., nn.Module]:
    return lambda num_classes, in_channels, width=width: _wide(width)(num_classes, in_channels)


def _with_weights(value: int) -> Callable[..., nn.Module]:
    held = nn.Linear(2, 2)
    nn.init.constant_(held.weight, value)
    nn.init.zeros_(held.bias)
    return lambda num_classes, in_channels: held


@pytest.mark.parametrize(
    "make",
    [_wide, _Wide, _of_default, _Sloped, _with_weights, lambda width: _Wide(width).make],
    ids=["closure", "callable", "default", "attribute", "weights", "bound"],
)
def test_what_an_object_holds_tells_it_from_others_of_one_source(make: Callable[[int], Any]) -> None:
    assert code.digest_of(make(3)) == code.digest_of(make(3)) != code.digest_of(make(4))


def test_functions_without_source_that_an_object_holds_are_told_by_their_names() -> None:
    assert code.digest_of(_Sloped(0.1)) != code.digest_of(_Sloped(0.1, torch.tanh))


def test_a_file_that_ends_python_is_told_as_one_that_fails(write: Callable[..., Path]) -> None:
    code.use(write("own_script.py", "import sys\nsys.exit()\ndef teacher(a, b): pass\n"))
    with pytest.raises(ValueError, match=r"own_script.py can't be imported: SystemExit.*line 2\)"):
        code.load("own_script.py:teacher", "teacher_model")
    code.use(write("own_later.py", "import sys\ndef made():\n    sys.exit(0)\ndef net(a, b):\n    sys.exit(0)\n"))
    with pytest.raises(ValueError, match=r"data=own_later.py:made: SystemExit: 0 .*line 3\)"):
        bench.load_data(Experiment(data="own_later.py:made"))
    with pytest.raises(ValueError, match=r"own_later.py:net can't be built: SystemExit: 0 .*line 5\)"):
        models.build("own_later.py:net", num_classes=2, image=(1, 8, 8))


def test_the_cause_of_a_failed_training_is_one_line() -> None:
    assert blame.text_of(RuntimeError("two\n  lines"))[0] == "RuntimeError: two lines"


def test_a_file_without_a_method_is_told_where_one_is_meant(write: Callable[..., Path]) -> None:
    path = write("own_nets.py", "def student(num_classes, in_channels): pass\n")
    with pytest.raises(ValueError, match=r"own_nets.py must define build\(task\)"):
        cli.use_files({"methods": f"[kd,{path}]"})


@pytest.mark.parametrize(("file", "said"), [("kd.py", "name of a method that is there"), ("my-own.py", "rename it")])
def test_a_method_whose_name_would_mean_another_is_refused(write: Callable[..., Path], file: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        cli.use_files({"methods": f"[ce,{write(file, LOSS)}]"})
