"""Recipes as values: what makes a difference, ids, settings lifted and split, columns of tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from smskd.experiment import Experiment
from smskd.notation import make, parse, settled
from smskd.recipe import Recipe, Stage, columns, split_total

TINY = Experiment()
PAPER = Experiment(pair="resnet56_resnet20")


def effective(text: str, experiment: Experiment = TINY) -> Recipe:
    return experiment.effective(parse(text))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("kd+rkd", "rkd+kd"),
        ("kd>fitnets+rkd", "kd>rkd+fitnets"),
        ("kd", "kd anchor=none weighting=tcp lambda_base=1 anchor_temperature=2"),
        ("ce+kd", "kd"),
        ("kd>ce+rkd", "kd>rkd"),
        ("kd>rkd anchor=none", "kd>rkd anchor=none weighting=tcp_true lambda_base=1 anchor_temperature=2"),
        ("kd>rkd anchor=none", "kd>rkd lambda_base=0 weighting=tcp"),
        ("kd>rkd lambda_base=1", "kd>rkd lambda_base=1.0"),
        ("kd>rkd lambda_base=-0.0", "kd>rkd lambda_base=0"),
        ("kd(weight=-0.0)", "kd(weight=0)"),
        ("ce teachers=3", "ce"),
        ("ce>ce teachers=3", "ce>ce"),
        ("kd>rkd anchor=ewc", "kd>rkd anchor=ewc anchor_temperature=2"),
    ],
)
def test_equal_effect_has_equal_id(one: str, other: str) -> None:
    assert parse(one).id == parse(other).id
    assert effective(one) == effective(other)
    assert effective(one).id == effective(other).id == parse(one).id
    assert str(effective(one)) == str(effective(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("kd", "kd(temperature=4,weight=0.9)"),
        ("kd", "kd epochs=12 schedule=one_cycle learning_rate=0.2 nesterov=true"),
        ("kd", "kd ce=0.1"),
        ("rkd", "rkd ce=1"),
        ("fitnets", "fitnets(weight=10,layer=0)"),
        ("kd", "kd milestones=[0.1]"),  # of schedule=step
        ("kd optimizer=adamw", "kd optimizer=adamw momentum=0.1 nesterov=false"),
        ("kd@epochs=3>rkd@epochs=3", "kd>rkd epochs=3"),
        ("kd>rkd epochs=3", "kd>rkd epochs_total=6"),
        ("kd@epochs=12>rkd@epochs=3", "kd>rkd@epochs=3"),
        ("kd>kd kd.temperature=2", "kd(temperature=2)>kd(temperature=2)"),
        ("kd>rkd rkd.angle=2", "kd>rkd(angle=2)"),
    ],
)
def test_equal_effect_at_the_pairs_defaults(one: str, other: str) -> None:
    assert effective(one) == effective(other)
    assert effective(one).id == effective(other).id
    assert effective(str(effective(other))) == effective(one)


def test_unequal_effect_has_unequal_id() -> None:
    texts = [
        "ce", "kd", "rkd", "kd+rkd", "kd>rkd", "rkd>kd", "kd>kd", "kd>ce", "kd>rkd anchor=none", "kd>rkd weighting=tcp",
        "kd>rkd weighting=tcp_true", "kd>rkd lambda_base=1", "kd>rkd anchor_temperature=2", "kd teachers=3",
        "ce>ce teachers=3 weighting=tcp", "ce>ce weighting=tcp", "kd(temperature=2)", "kd(weight=2)", "kd epochs=3",
        "kd(temperature=2)>rkd", "kd>rkd epochs=3", "kd@epochs=3>rkd", "kd>rkd@epochs=3", "kd ce=1", "kd ce=0",
        # these are what is declared, and not what the pair has
        "fitnets", "fitnets(weight=100)", "kd schedule=step", "kd learning_rate=0.1", "kd nesterov=false",
        "kd batch_size=64", "kd epochs=30", "kd schedule=step milestones=[0.5]",
    ]  # fmt: skip
    found = [effective(text) for text in texts]
    assert len({one.id for one in found}) == len({str(one) for one in found}) == len(texts)


def test_what_is_the_pairs_default_is_left_out_of_one_pair_and_not_of_another() -> None:
    assert str(effective("dkd(nckd=2)", PAPER)) == "dkd" == str(effective("dkd(nckd=1)"))
    assert str(effective("dkd(nckd=2)")) == "dkd(nckd=2)"
    assert str(effective("dkd(nckd=8)", PAPER)) == "dkd(nckd=8)"


def test_id_is_twelve_hexadecimal_digits() -> None:
    name = parse("kd>rkd").id
    assert len(name) == 12
    assert set(name) <= set("0123456789abcdef")


def test_prefixes() -> None:
    recipe = parse("kd@epochs=3>fitnets+rkd>rkd weighting=tcp")
    assert [str(p) for p in recipe.prefixes()] == [
        "kd weighting=tcp epochs=3",
        "kd@epochs=3>fitnets+rkd weighting=tcp",
        "kd@epochs=3>fitnets+rkd>rkd weighting=tcp",
    ]
    assert recipe.prefixes()[-1] == recipe
    # a prefix is one piece of work for all recipes that begin so, whatever comes after
    assert recipe.prefixes()[0].id == parse("kd epochs=3").id
    assert [p.path for p in recipe.prefixes()] == ["kd", "kd>fitnets+rkd", "kd>fitnets+rkd>rkd"]


def test_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one stage"):
        Recipe(stages=())
    with pytest.raises(ValueError, match="at least one method"):
        Stage(methods=())


@pytest.mark.parametrize(
    ("methods", "settings", "says"),
    [
        (("kd", "kd"), {}, "names one twice"),
        (("kdd",), {}, "unknown method 'kdd'"),
        (("kd",), {"rkd.angle": 1}, "rkd.angle is a setting of rkd, which isn't in a stage of kd"),
        (("kd",), {"angle": 1}, "angle is a setting of rkd"),
        (("kd",), {"kd.temperature": 0}, "kd.temperature > 0 must hold, but got kd.temperature=0"),
        (("kd",), {"epochs": "few"}, "epochs must be a whole number, but got 'few'"),
        (("kd",), {"lambda_base": 1}, "lambda_base is a setting of the whole recipe"),
    ],
)
def test_a_stage_is_valid_from_construction(methods: tuple[str, ...], settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Stage(methods=methods, settings=tuple(settings.items()))


def test_a_stage_has_its_settings_in_one_order_and_type() -> None:
    stage = Stage(methods=("rkd", "kd"), settings=(("epochs", "3"), ("rkd.angle", 2), ("kd.weight", "1")))
    assert stage.methods == ("kd", "rkd")
    assert stage.settings == (("kd.weight", 1.0), ("rkd.angle", 2.0), ("epochs", 3))
    assert [type(value) for _, value in stage.settings] == [float, float, int]


# --- what is idle


@pytest.mark.parametrize(
    ("text", "idle"),
    [
        ("kd", []),
        ("kd weighting=tcp", ["weighting=tcp"]),
        ("kd anchor=none lambda_base=1", ["anchor=none", "lambda_base=1"]),
        ("kd>rkd anchor=ewc anchor_temperature=2", ["anchor_temperature=2"]),
        ("kd>rkd anchor=none weighting=tcp", ["weighting=tcp"]),
        ("kd>rkd lambda_base=0", []),  # it makes the anchor none
        ("kd>rkd lambda_base=0 weighting=tcp", ["weighting=tcp"]),
        ("ce teachers=2", ["teachers=2"]),
        ("ce>ce teachers=2 weighting=tcp", []),
        ("kd milestones=[0.5]", ["stage_1.milestones=[0.5]"]),
        ("kd>rkd@milestones=[0.5]", ["stage_2.milestones=[0.5]"]),
        ("kd schedule=step milestones=[0.5]", []),
        ("kd optimizer=adamw momentum=0.5", ["stage_1.momentum=0.5"]),
        ("kd>rkd epochs=12", []),  # the default, and felt
    ],
)
def test_what_has_no_effect_is_told_and_left_out(text: str, idle: list[str]) -> None:
    recipe = parse(text)
    assert recipe.idle(TINY.defaults) == idle
    assert not any(one.partition(".")[2] in str(TINY.effective(recipe)) for one in idle if "." in one)
    assert TINY.effective(recipe).idle(TINY.defaults) == []


def test_a_setting_is_felt_where_it_would_have_an_effect() -> None:
    def feels(text: str, key: str) -> bool:
        return parse(text).feels(key, TINY.defaults)

    assert feels("kd", "kd.temperature") and not feels("rkd", "kd.temperature")
    assert feels("kd", "epochs") and feels("kd", "stage_1.epochs") and not feels("kd", "stage_2.epochs")
    assert not feels("kd", "milestones") and feels("kd schedule=step", "milestones")
    assert feels("kd>rkd@schedule=step", "milestones") and not feels("kd>rkd@schedule=step", "stage_1.milestones")
    assert feels("kd>rkd", "lambda_base") and feels("kd>rkd lambda_base=0", "lambda_base")
    assert not feels("kd", "lambda_base") and not feels("kd>rkd anchor=none", "lambda_base")
    assert feels("kd", "teachers") and not feels("ce", "teachers") and feels("ce>ce weighting=tcp", "teachers")


# --- settings of the whole


def test_a_setting_of_the_whole_holds_where_a_stage_says_nothing() -> None:
    recipe = settled(parse("kd@epochs=3>rkd>kd(temperature=1)"), {"epochs": 5, "kd.temperature": "2"})
    assert str(recipe) == "kd(temperature=2)@epochs=3>rkd>kd(temperature=1) epochs=5"
    changed = settled(recipe, {"stage_1.epochs": 4})
    assert changed == parse("kd(temperature=2)@epochs=4>rkd@epochs=5>kd(temperature=1)@epochs=5")
    assert recipe.says("epochs") and recipe.says("stage_2.epochs") and not recipe.says("learning_rate")


@pytest.mark.parametrize(
    ("text", "settings", "says"),
    [
        ("kd", {"temperature": 2}, "temperature is a setting of kd"),
        ("rkd", {"kd.temperature": 2}, "kd.temperature is a setting of kd, which isn't in the recipe rkd"),
        ("kd", {"stage_2.epochs": 2}, "stage_2.epochs= is of stage 2, but the recipe kd has 1"),
        ("kd", {"stage_1.rkd.angle": 2}, "rkd.angle is a setting of rkd, which isn't in the recipe kd"),
        ("kd", {"pair": "tiny"}, "unknown setting 'pair'"),
        ("kd", {"lambda_base": -1}, "lambda_base >= 0 must hold"),
        ("kd", {"split": [1, 2]}, "split= divides epochs_total="),
        ("kd", {"epochs": 3, "epochs_total": 3}, "leave one out"),
    ],
)
def test_settings_that_have_no_home_are_told(text: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make(text, settings)


def test_settings_of_a_stage_that_do_not_go_together_are_told_with_the_stage() -> None:
    with pytest.raises(ValueError, match="stage 2 of kd>rkd@warmup_epochs=3: schedule=one_cycle climbs by itself"):
        effective("kd>rkd@warmup_epochs=3")


# --- one total of epochs


def each(recipe: Recipe) -> list[int]:
    return [dict(stage.settings)["epochs"] for stage in recipe.stages]


@pytest.mark.parametrize(("stages", "epochs"), [(1, [50]), (2, [25, 25]), (3, [17, 17, 16]), (4, [13, 13, 12, 12])])
def test_a_total_is_split_over_the_stages(stages: int, epochs: list[int]) -> None:
    assert each(split_total(parse(">".join(["kd"] * stages)), 50)) == epochs
    assert each(make(">".join(["kd"] * stages), {"epochs_total": 50})) == epochs


@pytest.mark.parametrize(
    ("total", "split", "epochs"),
    [
        (150, [0.5, 0.3, 0.2], [75, 45, 30]),
        (150, [5, 3, 2], [75, 45, 30]),
        (10, [1, 1, 1], [4, 3, 3]),
        (10, [1, 1, 4], [2, 2, 6]),  # 1.67, 1.67, 6.67: the largest rests first, of equal ones the first
        (9, [1, 1, 4], [2, 1, 6]),
        (100, [1, 2, 3, 4], [17, 33, 50]),  # of more shares than stages the first count
    ],
)
def test_a_total_is_split_unevenly(total: int, split: list[float], epochs: list[int]) -> None:
    found = each(make("kd>fitnets>rkd", {"epochs_total": total, "split": split}))
    assert found == epochs and sum(found) == total


def test_totals_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 epoch, but got epochs_total=2 for 3 stages"):
        make("kd>fitnets>rkd", {"epochs_total": 2})
    with pytest.raises(ValueError, match="leave one out"):
        make("kd@epochs=2>rkd", {"epochs_total": 20})
    with pytest.raises(ValueError, match="a share for each of 3 stages"):
        make("kd>fitnets>rkd", {"epochs_total": 20, "split": [1, 2]})
    with pytest.raises(ValueError, match="split > 0 must hold"):
        make("kd>rkd", {"epochs_total": 20, "split": [1, 0]})


# --- columns


def test_columns_are_the_settings_that_recipes_say_resolved_and_empty_where_idle() -> None:
    recipes = [effective(text) for text in ("kd(temperature=2)", "kd", "rkd learning_rate=0.1")]
    assert columns(recipes, TINY.defaults) == [
        {"kd.temperature": 2.0, "learning_rate": 0.2},
        {"kd.temperature": 4.0, "learning_rate": 0.2},
        {"kd.temperature": None, "learning_rate": 0.1},
    ]
    assert columns([effective("kd"), effective("kd>rkd")], TINY.defaults) == [{}, {}]
    assert columns([], TINY.defaults) == []


def test_columns_are_of_each_stage_where_stages_differ() -> None:
    recipes = [effective(text) for text in ("kd@epochs=3>rkd", "kd", "kd>kd>rkd")]
    assert columns(recipes, TINY.defaults) == [
        {"stage_1.epochs": 3, "stage_2.epochs": 12, "stage_3.epochs": None},
        {"stage_1.epochs": 12, "stage_2.epochs": None, "stage_3.epochs": None},
        {"stage_1.epochs": 12, "stage_2.epochs": 12, "stage_3.epochs": 12},
    ]
    recipes = [effective(text) for text in ("kd(temperature=2)>kd", "rkd>kd(temperature=3)")]
    assert columns(recipes, TINY.defaults) == [
        {"stage_1.kd.temperature": 2.0, "stage_2.kd.temperature": 4.0},
        {"stage_1.kd.temperature": None, "stage_2.kd.temperature": 3.0},
    ]


def test_columns_of_idle_training_settings_are_empty() -> None:
    recipes = [effective(text) for text in ("kd schedule=step milestones=[0.5]", "kd")]
    rows = columns(recipes, TINY.defaults)
    assert rows == [{"schedule": "step", "milestones": (0.5,)}, {"schedule": "one_cycle", "milestones": None}]


def test_a_recipe_is_a_value() -> None:
    recipe = parse("kd(temperature=2)>rkd")
    assert replace(recipe) == recipe and hash(recipe) == hash(parse(str(recipe)))
