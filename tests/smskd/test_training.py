"""How a stage is optimised: schedules against their formulas, optimisers, and that every setting is used."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from smskd import methods, pipeline, training
from smskd import stage as loop
from smskd.bench import Bench
from smskd.methods import ce
from smskd.recipe import of_method
from smskd.settings import text_of
from smskd.testing.methods import other_values
from smskd.training import Training
from tests.smskd import small
from tests.smskd.small import fresh


def rates(steps: int, **settings: Any) -> list[float]:
    """The learning rate of each step of a stage of so many steps an epoch."""
    made = Training(**settings)
    parameter = nn.Parameter(torch.zeros(()))
    parameter.grad = torch.zeros(())
    optimizer = loop.optimizer_of([parameter], made, torch.device("cpu"))
    schedule = loop.schedule_of(optimizer, made, steps)
    found = []
    for _ in range(made.epochs * steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def plain_rate(schedule: str, step: int, steps: int) -> float:
    """Of a peak of 1, by its share of the stage."""
    done = step / steps
    if schedule == "step":
        return 0.1 ** sum(done >= m for m in (0.625, 0.75, 0.875))
    if done < 0.3:
        return 1 / 25 + (1 - 1 / 25) * (0.5 - 0.5 * math.cos(math.pi * done / 0.3))
    return 0.5 + 0.5 * math.cos(math.pi * (done - 0.3) / 0.7)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 2), (1, 7), (3, 2), (12, 20), (240, 1), (30, 13), (7, 16)])
@pytest.mark.parametrize("schedule", ["step", "one_cycle"])
def test_step_and_one_cycle_are_the_plain_formulas(schedule: str, epochs: int, steps: int) -> None:
    wanted = [0.5 * plain_rate(schedule, step, epochs * steps) for step in range(epochs * steps)]
    found = rates(steps, epochs=epochs, learning_rate=0.5, schedule=schedule)
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)


# fmt: off
RATES = {
    "step": [0.5] * 10 + [0.05] * 2 + [0.005] * 2 + [0.0005] * 2,
    "one_cycle": [
        0.02, 0.06959519833010355, 0.197883429175395, 0.3518440237676215, 0.46784609690826534, 0.49960670375445415,
        0.4859708325770919, 0.45389021723981504, 0.40587245046468334, 0.34567085809127246, 0.27799111902582696,
        0.20812344417381592, 0.14152906522061048, 0.08341335551199902, 0.03831895019292897, 0.009770669513725128,
    ],
}
# fmt: on


@pytest.mark.parametrize("schedule", RATES)
def test_learning_rates(schedule: str) -> None:
    assert rates(2, epochs=8, learning_rate=0.5, schedule=schedule) == pytest.approx(RATES[schedule], rel=1e-9)


def test_one_cycle_climbs_to_its_peak_and_ends_near_zero() -> None:
    found = rates(1, epochs=100, learning_rate=1.0, schedule="one_cycle")
    assert found[0] == pytest.approx(1 / 25) and max(found) == found[30] == 1.0
    assert found[:31] == sorted(found[:31]) and found[30:] == sorted(found[30:], reverse=True)
    assert 0 < found[-1] < 0.001


def test_step_at_published_epochs_and_at_milestones_of_ones_own() -> None:
    found = rates(1, epochs=240, learning_rate=1.0, schedule="step")
    assert found == pytest.approx([1.0] * 150 + [0.1] * 30 + [0.01] * 30 + [0.001] * 30)
    found = rates(2, epochs=5, learning_rate=1.0, schedule="step", milestones=[0.5, 0.9])
    assert found == pytest.approx([1.0] * 5 + [0.1] * 4 + [0.01])


def test_cosine_and_constant() -> None:
    found = rates(5, epochs=4, learning_rate=0.2, schedule="cosine")
    assert found == pytest.approx([0.1 * (1 + math.cos(math.pi * step / 20)) for step in range(20)])
    assert rates(5, epochs=4, learning_rate=0.2, schedule="constant") == [0.2] * 20


@pytest.mark.parametrize("schedule", [name for name in training.SCHEDULES if name != "one_cycle"])
def test_warm_up_climbs_and_the_rest_is_the_schedule_of_what_is_left(schedule: str) -> None:
    found = rates(3, epochs=10, learning_rate=0.4, schedule=schedule, warmup_epochs=2)
    assert found[:6] == pytest.approx([0.4 * (step + 1) / 7 for step in range(6)])
    assert found[6:] == pytest.approx(rates(3, epochs=8, learning_rate=0.4, schedule=schedule))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"epochs": 0}, "must hold, but got epochs=0"),
        ({"epochs": 3, "warmup_epochs": 3}, "warmup_epochs < epochs must hold, but got warmup_epochs=3, epochs=3"),
        ({"schedule": "one_cycle", "warmup_epochs": 1}, "climbs by itself"),
        ({"nesterov": True, "momentum": 0}, "momentum > 0 with nesterov must hold, but got momentum=0"),
        ({"learning_rate": 0.0}, "learning_rate > 0 must hold, but got learning_rate=0"),
        ({"learning_rate": float("nan")}, "got learning_rate=nan"),
        ({"momentum": 1.0}, "0 <= momentum < 1 must hold, but got momentum=1"),
        ({"weight_decay": -1e-4}, "weight_decay >= 0 must hold"),
        ({"batch_size": 0}, "must hold, but got batch_size=0"),
        ({"label_smoothing": 1.0}, "0 <= label_smoothing < 1 must hold"),
        ({"clip_norm": -1}, "clip_norm >= 0 must hold"),
        ({"schedule": "steps"}, r"unknown schedule 'steps'.*Did you mean 'step'\?"),
        ({"milestones": [0.5, 1.0]}, "0 < milestones < 1 must hold, but got milestones=1"),
        ({"ce": -0.1}, "ce >= 0 must hold"),
    ],
)
def test_a_training_is_valid_from_construction(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Training(**settings)


def test_adamw_has_no_momentum_to_check() -> None:
    assert Training(optimizer="adamw", nesterov=True, momentum=0).optimizer == "adamw"
    assert training.idle(vars(Training(optimizer="adamw"))) == {"momentum", "nesterov"}
    assert training.idle(vars(Training(schedule="cosine"))) == {"milestones"}
    assert training.idle(vars(Training())) == set()


# --- in a stage


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return small.prepare(tmp_path_factory.mktemp("store"), teacher_epochs=1)


def steps_of(text: str, bench: Bench, **more: Any) -> list[torch.optim.Optimizer]:
    """The optimiser at each step of a stage, just before the step."""
    seen: list[torch.optim.Optimizer] = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: seen.append(optimizer))
    try:
        small.train(fresh(), text, bench.data, [bench.teacher], **more)
    finally:
        hook.remove()
    return seen


def test_the_optimiser_has_the_settings_of_the_stage(bench: Bench) -> None:
    (sgd, *_) = steps_of("kd learning_rate=0.3 momentum=0.5 nesterov=false weight_decay=0.01 schedule=constant", bench)
    assert type(sgd) is torch.optim.SGD
    wanted = {"lr": 0.3, "momentum": 0.5, "nesterov": False, "weight_decay": 0.01}
    assert wanted.items() <= sgd.param_groups[0].items()
    (adamw, *_) = steps_of("kd optimizer=adamw learning_rate=0.003 weight_decay=0.05 schedule=constant", bench)
    assert type(adamw) is torch.optim.AdamW
    assert {"lr": 0.003, "weight_decay": 0.05}.items() <= adamw.param_groups[0].items()


def test_adamw_is_torchs_own_on_the_students_loss(bench: Bench) -> None:
    """One step of cross-entropy alone, by hand."""
    text = "ce optimizer=adamw learning_rate=0.01 weight_decay=0.1 schedule=constant batch_size=100"
    student, other = fresh(), fresh()
    small.train(student, text, bench.data, seed=3)
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(100, generator=generator)
    images, labels = bench.data.normalised(bench.data.train.images[order]), bench.data.train.labels[order]
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.1)
    F.cross_entropy(other(images).logits, labels).backward()
    optimizer.step()
    for mine, theirs in zip(student.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", [0.01, 1e6])
def test_gradients_are_clipped_to_a_norm(bench: Bench, norm: float) -> None:
    def norms(text: str) -> list[float]:
        found: list[float] = []

        def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
            found.append(torch.cat([g.flatten() for g in grads]).norm().item())

        hook = register_optimizer_step_pre_hook(look)
        try:
            small.train(fresh(), text, bench.data, [bench.teacher])
        finally:
            hook.remove()
        return found

    plain, clipped = norms("kd+fitnets"), norms(f"kd+fitnets clip_norm={norm}")
    assert all(one > 0.02 for one in plain)
    if norm < 1:
        assert clipped == pytest.approx([norm] * len(plain), rel=1e-3)  # regressors with them
    else:
        assert clipped == plain


def test_label_smoothing_is_of_cross_entropys_targets(bench: Bench) -> None:
    logits, labels = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    targets = F.one_hot(labels, 10) * 0.8 + 0.2 / 10
    wanted = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(ce.cross_entropy(logits, labels, 0.2), wanted)
    assert ce.cross_entropy(logits, labels) == F.cross_entropy(logits, labels)
    smooth = small.train(fresh(), "kd label_smoothing=0.2 batch_size=100", bench.data, [bench.teacher])
    plain = small.train(fresh(), "kd batch_size=100", bench.data, [bench.teacher])
    assert smooth.losses[0]["kd"] == plain.losses[0]["kd"]
    assert smooth.losses[0]["ce"] != plain.losses[0]["ce"]


def test_cross_entropy_has_the_stages_weight(bench: Bench) -> None:
    def first(text: str) -> dict[str, float]:
        return small.train(fresh(), f"{text} batch_size=100", bench.data, [bench.teacher]).losses[0]

    plain, heavy, none = first("kd"), first("kd ce=0.4"), first("kd ce=0")
    assert heavy == {"ce": pytest.approx(4 * plain["ce"]), "kd": plain["kd"]}
    assert none == {"ce": 0, "kd": plain["kd"]}


def test_batch_size_and_epochs(bench: Bench) -> None:
    done = small.train(fresh(), "kd@epochs=3,batch_size=30", bench.data, [bench.teacher])
    assert (len(done.losses), done.images) == (3, 270)
    assert small.train(fresh(), "kd batch_size=1000", bench.data, [bench.teacher]).images == 100


# what a setting is tried with, where that can't be guessed, and what makes one felt that is idle at tiny's defaults
TRIED = {
    "milestones": "[0.4]", "ce": "0.7", "label_smoothing": "0.2", "clip_norm": "0.1", "warmup_epochs": "1",
    "batch_size": "20", "epochs": "4",
}  # fmt: skip
BESIDE = {"milestones": " schedule=step", "warmup_epochs": " schedule=cosine"}


@pytest.mark.parametrize("key", training.SETTINGS)
def test_every_training_setting_changes_the_weights_the_id_and_the_key(key: str, bench: Bench) -> None:
    """Found from the declarations."""
    made, one = small.experiment(teacher_epochs=1), training.SETTINGS[key]
    usual = replace(one, default=made.defaults.get(key, one.default))
    value = TRIED.get(key) or text_of(other_values(usual)[0])
    found = []
    for said in ("", f" {key}={value}"):
        recipe = made.effective(small.recipe(f"kd{BESIDE.get(key, '')}{said}", epochs=3))
        (stage,) = pipeline.distil(recipe, bench, seed=0).stages
        found.append((recipe.id, str(recipe), stage.key, stage.digest))
    assert all(a != b for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("key", [key for name in methods.available() for key in of_method(name)])
def test_every_setting_of_a_method_changes_the_loss_the_id_and_the_key(key: str, bench: Bench) -> None:
    """In two epochs: what is remembered counts in the second. Networks have no layer -20."""
    name = key.partition(".")[0]
    made = small.experiment()
    usual = made.defaults.get(key, of_method(name)[key].default)
    plain = small.train(fresh(), name, bench.data, [bench.teacher], epochs=2).losses
    for value in other_values(replace(of_method(name)[key], default=usual)):
        text = f"{name} {key}={value}"
        assert made.effective(small.recipe(text)).id != made.effective(small.recipe(name)).id
        try:
            found = small.train(fresh(), text, bench.data, [bench.teacher], epochs=2).losses
        except ValueError:
            assert key.endswith("layer")
            continue
        if found != plain:
            return
    raise AssertionError(f"{key} has no effect")
