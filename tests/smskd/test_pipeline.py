"""Recipes run whole: what they cost by count and by training, what the store has of them, and the record they leave."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from smskd import cost, pipeline
from smskd.bench import Bench, load_data, weights_digest
from smskd.experiment import Experiment
from smskd.notation import parse
from smskd.recipe import Recipe
from smskd.result import COMPLETE, FAILED, Result, failure, of_dict
from tests.smskd import small


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return small.prepare(tmp_path_factory.mktemp("store"), teacher_epochs=1)


COSTS = [
    "ce",
    "kd",
    "kd@epochs=3>fitnets@batch_size=30",
    "fitnets(layer=-1)>sp(layer=0)",
    "kd>rkd anchor=ewc",
    "ce>ce weighting=tcp",
    "kd+fitnets teachers=2",
    "crd(dimension=16)",
]


@pytest.mark.parametrize("text", COSTS)
def test_a_recipe_costs_what_was_counted_before(bench: Bench, text: str) -> None:
    recipe = small.recipe(text)
    result = pipeline.distil(recipe, bench, seed=0)
    assert result.train_flops == pipeline.Counter(bench.experiment, bench.data).recipe(recipe) > 0


def test_a_stage_of_cross_entropy_costs_the_same_with_a_teacher_that_was_trained_a_moment_ago(tmp_path: Path) -> None:
    first = small.run("ce", tmp_path, teacher_epochs=1)
    found = small.run("ce", tmp_path, teacher_epochs=1, seed=1)  # the teacher is in the store by now
    assert first.train_flops == found.train_flops
    one = cost.forward_flops(small.fresh(), torch.zeros(2, 1, 8, 8), images=2)
    assert first.train_flops == 3 * one * 100


def test_epochs_and_batches_are_in_the_cost(bench: Bench) -> None:
    counter = pipeline.Counter(bench.experiment, bench.data)

    def flops(text: str) -> float:
        return counter.recipe(parse(text))

    assert flops("kd epochs=6") == 3 * flops("kd epochs=2")
    assert flops("kd>kd anchor=none epochs_total=6") == flops("kd epochs=6")
    # the last ten images of an epoch are left out
    assert flops("kd batch_size=30 epochs=10") == pytest.approx(0.9 * flops("kd epochs=10"))
    assert flops("kd(temperature=2,weight=1) learning_rate=1 epochs=2") == flops("kd epochs=2")
    assert flops("fitnets(layer=-1) epochs=2") > flops("kd epochs=2")


def test_what_the_store_has_of_a_recipe(bench: Bench) -> None:
    def held(text: str) -> int:
        digests = {0: bench.teacher_digest}
        recipe = small.recipe(text)
        return pipeline.held_stages(recipe, bench.experiment, bench.numerics, bench.setup, digests, seed=8)

    assert held("pkt(weight=2)>rkd") == 0
    pipeline.distil(small.recipe("pkt(weight=2)>rkd"), bench, seed=8)
    assert held("pkt(weight=2)>rkd") == 2
    assert held("pkt(weight=2)>rkd(angle=3)") == 1 == held("pkt(weight=2)>rkd>kd weighting=tcp")
    assert held("pkt>rkd") == held("pkt(weight=2)@epochs=2>rkd") == held("pkt(weight=2) teachers=2") == 0


def test_a_common_beginning_is_trained_once(bench: Bench) -> None:
    longer = pipeline.distil(small.recipe("kd(temperature=3)>rkd>dist"), bench, seed=9)
    other = pipeline.distil(small.recipe("kd(temperature=3)>rkd(angle=10)"), bench, seed=9)
    assert [stage.trained for stage in longer.stages] == [True, True, True]
    assert [stage.trained for stage in other.stages] == [False, True]


def test_a_run_takes_text_or_a_recipe_and_says_what_it_does(tmp_path: Path) -> None:
    said: list[tuple[int, ...]] = []
    made = Experiment(train_size=100, teacher_epochs=1)
    text = "kd@epochs=2>rkd@epochs=1 weighting=tcp"
    first = pipeline.run(
        text, made, store=tmp_path, device="cpu",
        on_stage=lambda number, result: said.append((number, len(result.losses))),
        on_epoch=lambda stage, epoch, epochs: said.append((stage, epoch, epochs)),
    )  # fmt: skip
    assert said == [(1, 1, 2), (1, 2, 2), (1, 2), (2, 1, 1), (2, 1)]
    again = pipeline.run(parse(text), made, store=tmp_path, device="cpu")
    assert replace(again, stages=()) == replace(first, stages=())
    assert [replace(stage, trained=True) for stage in again.stages] == list(first.stages)
    assert first.recipe == str(made.effective(parse(text))) and isinstance(parse(first.recipe), Recipe)
    with pytest.raises(ValueError, match="unknown method"):
        pipeline.run("kdd", made, store=tmp_path)


def test_a_result_has_one_written_form(bench: Bench) -> None:
    result = pipeline.distil(small.recipe("kd>rkd weighting=tcp"), bench, seed=0)
    told = json.loads(json.dumps(result.to_dict()))
    assert "weights" not in told
    again = of_dict(told)
    assert again == result and again.to_dict() == result.to_dict() and again.weights == {}
    assert again.val_accuracy == result.stages[-1].val_accuracy
    assert again.train_flops == sum(stage.train_flops for stage in result.stages)
    shorter = result.of_prefix("kd", 1)
    assert (shorter.recipe, shorter.stages) == ("kd", result.stages[:1])
    assert (result.status, result.test_best_accuracy) == (COMPLETE, None)


def test_a_failure_is_a_result_with_its_cause() -> None:
    failed = failure("kd>rkd", 3, "stage 2 of 2: the loss is not finite", "Traceback ...")
    assert (failed.status, failed.seed, failed.error) == (FAILED, 3, "stage 2 of 2: the loss is not finite")
    assert of_dict(json.loads(json.dumps(failed.to_dict()))) == failed
    assert (failed.train_flops, failed.test_best_accuracy) == (0, None)


@pytest.mark.parametrize(
    "told", [{}, {"recipe": 3, "seed": 0}, {"recipe": "kd"}, {"recipe": "kd", "seed": 0, "stages": [{}]}, []]
)
def test_a_record_of_another_kind_is_refused(told: object) -> None:
    with pytest.raises(ValueError, match="a record isn't one of this program"):
        of_dict(told)  # type: ignore[arg-type]


def test_the_teacher_may_be_a_file(tmp_path: Path, bench: Bench) -> None:
    save_file(bench.teacher.network.state_dict(), tmp_path / "t.safetensors")
    made = small.prepare(tmp_path / "store", teacher=str(tmp_path / "t.safetensors"))
    assert made.teacher_digest == weights_digest(made.teacher.network) == weights_digest(bench.teacher.network)
    assert made.teachers[0].source == "file t.safetensors, read by its own names" and made.teachers[0].train_flops == 0
    assert not list((tmp_path / "store").glob("entries/*/*"))
    with pytest.raises(ValueError, match="needs images of at least 32 x 32 pixels"):
        load_data(Experiment(teacher_model="torchvision/resnet18", student_model="torchvision/resnet18"))


def test_a_result_without_stages_has_no_best() -> None:
    assert Result(recipe="kd", seed=0).test_best_accuracy is None
