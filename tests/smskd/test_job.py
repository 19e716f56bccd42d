"""Keys and seeds of stages: what they hang on, and what they don't."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from smskd import job
from smskd import stage as loop
from smskd.bench import Bench
from smskd.data import Data
from smskd.job import StageJob
from smskd.notation import parse
from smskd.numerics import FLOAT32
from tests.smskd import small


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return small.prepare(tmp_path_factory.mktemp("store"), teacher_epochs=1)


def last(text: str, *, seed: int = 0, parent: str | None = None, **settings: Any) -> StageJob:
    made = small.experiment(**settings)
    recipe = made.effective(parse(text))
    parent = parent or (None if len(recipe.stages) == 1 else "0" * 64)
    teachers = [f"{k:064d}" for k in range(recipe.teachers)]
    return job.of_student(recipe, made, FLOAT32, seed=seed, parent=parent, teachers=teachers)


def test_a_stages_seed_hangs_on_the_path_of_methods_alone() -> None:
    usual = last("kd>fitnets").assignment.seed
    for text in (
        "kd(temperature=2)>fitnets(weight=3)", "kd@epochs=3>fitnets@learning_rate=0.1", "kd>fitnets weighting=tcp",
        "kd>fitnets anchor=none", "kd>fitnets teachers=2", "kd>fitnets optimizer=adamw", "ce+kd>fitnets",
    ):  # fmt: skip
        assert last(text).assignment.seed == usual
    others = ["fitnets>kd", "kd>kd", "kd", "kd>fitnets>kd", "kd>kd+fitnets"]
    assert len({usual, *(last(text).assignment.seed for text in others)}) == len(others) + 1
    assert last("kd>fitnets", seed=1).assignment.seed != usual
    assert last("kd>fitnets", train_size=200, pair="resnet56_resnet20").assignment.seed == usual
    assert {last(text).init for text in ("kd", "rkd epochs=3", "kd>rkd")} == {last("ce").init}


def test_recipes_that_differ_in_settings_draw_the_same_images_in_the_same_order(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Common random numbers, whatever a method draws for itself."""
    drawn: list[list[int]] = []
    original = Data.batches

    def watched(self: Data, order: Tensor, views: Tensor, size: int) -> Any:
        drawn.append(order.tolist())
        return original(self, order, views, size)

    monkeypatch.setattr(Data, "batches", watched)
    seen = []
    for text in ("kd", "kd(temperature=2)", "kd@learning_rate=0.1,batch_size=20", "kd@epochs=3", "kd weight_decay=0"):
        work = last(text if "epochs" in text else f"{text} epochs=2").assignment
        loop.train_stage(small.fresh(), work, bench.data, teachers=[bench.teacher])
        seen.append(drawn[:2])
        drawn.clear()
    assert all(one == seen[0] for one in seen) and seen[0][0] != seen[0][1]


def test_derived_seeds_are_pinned_and_unrelated() -> None:
    """Another derivation would train other students: LOG.md would have to say so."""
    assert job.derived_seed(0, "student") == 57976301312931169
    assert job.derived_seed(0, "kd>fitnets") == 21005688504578974
    found = {job.derived_seed(seed, *path) for seed in (0, 1) for path in (("a",), ("b",), ("a", "b"), ("a", 1))}
    assert len(found) == 8 and all(0 <= one < 2**56 for one in found)


def test_what_is_idle_is_not_in_the_key(bench: Bench) -> None:
    def identity(text: str) -> dict[str, Any]:
        return last(text).identity(bench.data)

    assert identity("kd milestones=[0.5]") == identity("kd")
    assert identity("kd weighting=tcp") == identity("kd")
    assert identity("kd optimizer=adamw momentum=0.1") == identity("kd optimizer=adamw")
    assert "milestones" not in identity("kd")["training"]
    assert identity("kd>rkd")["anchor"] == {
        "anchor": "reference", "weighting": "fixed", "lambda_base": 0.5, "anchor_temperature": 4.0,
    }  # fmt: skip
    assert identity("kd>rkd anchor=ewc anchor_temperature=2") == identity("kd>rkd anchor=ewc")
    assert identity("kd>rkd lambda_base=0") == identity("kd>rkd anchor=none")
    assert identity("kd>rkd anchor=none")["anchor"] is None


def test_what_has_an_effect_is_in_the_key(bench: Bench) -> None:
    texts = [
        "kd", "ce", "kd(temperature=2)", "kd(weight=2)", "kd epochs=3", "kd schedule=cosine", "kd ce=1", "kd+fitnets",
        "kd+fitnets fitnets.layer=-1", "kd teachers=2", "kd>rkd", "kd>rkd weighting=tcp", "kd>rkd anchor=ewc",
    ]  # fmt: skip
    assert len({repr(last(text).identity(bench.data)) for text in texts}) == len(texts)
    assert last("kd", seed=1).identity(bench.data) != last("kd").identity(bench.data)
    assert last("kd>rkd", parent="1" * 64).identity(bench.data) != last("kd>rkd").identity(bench.data)
    assert last("ce").teachers == () and last("ce>ce weighting=tcp").teachers != ()
    # a later stage starts from its parent, whatever the first was drawn from
    assert last("kd>rkd").identity(bench.data)["init"] is None


def test_methods_of_a_pair_have_its_weights(bench: Bench) -> None:
    assert last("fitnets").identity(bench.data)["methods"] == {"fitnets": {"weight": 10.0, "layer": 0, "relu": False}}
    assert last("fitnets(weight=100)").identity(bench.data)["methods"] == {
        "fitnets": {"weight": 100.0, "layer": 0, "relu": False}
    }
    assert last("ce").identity(bench.data)["methods"] == {}


def test_a_teachers_job_is_of_its_own_settings(bench: Bench) -> None:
    def teacher(number: int = 0, **settings: Any) -> StageJob:
        return job.of_teacher(small.experiment(**settings), FLOAT32, number)

    plain = teacher()
    assert plain.network.name == "cifar/tiny_teacher" and plain.teachers == () and plain.parent is None
    assert plain.assignment.training.learning_rate == 0.05
    assert teacher(teacher_learning_rate=0.1).assignment.training.learning_rate == 0.1
    assert teacher(teacher_learning_rate=0.1).assignment.seed == plain.assignment.seed
    assert len({teacher(k).assignment.seed for k in range(3)} | {teacher(k).init for k in range(3)}) == 6


def test_the_environment_has_what_bits_depend_on() -> None:
    found = job.environment(torch.device("cpu"), FLOAT32)
    assert found["threads"] == torch.get_num_threads() and found["torch"] == torch.__version__
    assert found["numeric"] == "float32"


def test_the_code_of_a_method_is_of_its_stages_alone() -> None:
    student = small.experiment().networks.student
    digests = [job.code_digest(student, names) for names in ((), ("kd",), ("rkd",), ("kd", "rkd"))]
    # kd is in all of them: the anchor's divergence is there
    assert len(set(digests)) == 4
