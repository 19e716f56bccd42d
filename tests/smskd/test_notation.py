"""The notation of recipes: it parses back, its canonical form, and wrong text is told with the place marked."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smskd import methods, training
from smskd import recipe as recipes
from smskd.experiment import Experiment
from smskd.notation import make, parse, settled
from smskd.recipe import ANCHORS, WEIGHTINGS, Recipe, Stage, declaration, of_method, stage_number
from smskd.settings import Setting

TINY = Experiment()


def values(one: Setting) -> st.SearchStrategy[Any]:
    """Values that a setting may have."""
    if one.choices:
        item: st.SearchStrategy[Any] = st.sampled_from(one.choices)
    elif one.kind is bool:
        item = st.booleans()
    else:
        low, high = (bound if bound is not None else None for bound in (one.low, one.high))
        low, high = one.above if low is None else low, one.below if high is None else high
        if one.kind is int:
            item = st.integers(None if low is None else int(low), None if high is None else int(high))
        else:
            item = st.floats(
                low, high, exclude_min=one.above is not None, exclude_max=one.below is not None, allow_nan=False,
                allow_infinity=False,
            )  # fmt: skip
    return st.lists(item, min_size=1, max_size=4).map(tuple) if one.many else item


@st.composite
def stages(draw: st.DrawFn) -> Stage:
    names = draw(st.lists(st.sampled_from(methods.available()), min_size=1, max_size=4, unique=True))
    known = {**{key: one for name in names for key, one in of_method(name).items()}, **training.SETTINGS}
    said = draw(st.lists(st.sampled_from(list(known)), max_size=5, unique=True))
    return Stage(methods=tuple(names), settings=tuple((key, draw(values(known[key]))) for key in said))


RECIPES = st.builds(
    Recipe,
    stages=st.lists(stages(), min_size=1, max_size=5).map(tuple),
    **{name: values(one) for name, one in recipes.SETTINGS.items()},
)
WELL = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@WELL
@given(recipe=RECIPES)
def test_notation_parses_back(recipe: Recipe) -> None:
    again = parse(str(recipe))
    assert again == recipe
    assert again.id == recipe.id
    assert str(again) == str(recipe)
    assert hash(again) == hash(recipe)


@WELL
@given(recipe=RECIPES)
def test_an_effective_recipe_is_its_own(recipe: Recipe) -> None:
    """Whether its settings go together or not."""
    once = recipe.effective(TINY.defaults)
    assert once.effective(TINY.defaults) == once
    assert parse(str(once)) == once
    assert once.id == parse(str(once)).id
    assert once.idle(TINY.defaults) == []
    assert once.path == recipe.path
    for mine, theirs in zip(once.stages, recipe.stages, strict=True):
        assert mine.of_methods(TINY.defaults) == theirs.of_methods(TINY.defaults)
        # a method's own weight of cross-entropy stays, with or without `ce` beside it
        assert mine.resolved(TINY.defaults) == theirs.resolved(TINY.defaults)


@WELL
@given(recipe=RECIPES, data=st.data())
def test_a_setting_of_the_whole_is_what_each_stage_would_say(recipe: Recipe, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from([*training.SETTINGS, *(k for stage in recipe.stages for k in stage.declared)]))
    value = data.draw(values(recipe.stages[0].declared.get(key) or declaration(key)))  # type: ignore[arg-type]
    found = settled(recipe, {key: value})
    for before, after in zip(recipe.stages, found.stages, strict=True):
        said, now = dict(before.settings), dict(after.settings)
        assert now == (said | {key: said.get(key, value)} if key in before.declared else said)


@pytest.mark.parametrize(
    "text",
    [
        "kd", "ce", "kd>fitnets>rkd", "kd+rkd>kd", "kd>rkd weighting=tcp lambda_base=0.25",
        "kd(temperature=2)@epochs=60>fitnets(weight=5)@epochs=6,learning_rate=0.2>rkd weighting=tcp learning_rate=0.05",
        "kd(weight=1,temperature=2)+rkd(distance=1,angle=2)@epochs=3,ce=0.5>ce", "kd milestones=[0.5,0.75]",
        "kd nesterov=false", "kd teachers=3", "kd@epochs=3>rkd@epochs=4>kd@epochs=5", "kd learning_rate=1e-07",
    ],
)  # fmt: skip
def test_canonical_text_prints_as_written(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("rkd + kd > kd", "kd+rkd>kd"),
        ("kd>rkd anchor=reference weighting=fixed lambda_base=0.5 anchor_temperature=4 teachers=1", "kd>rkd"),
        ("kd ( temperature=2 , weight=1 )", "kd(weight=1,temperature=2)"),
        ("kd @ learning_rate=0.10, epochs=3 > rkd", "kd@epochs=3,learning_rate=0.1>rkd"),
        ("kd @epochs=3>rkd@ epochs=3", "kd>rkd epochs=3"),
        ("kd@epochs=3>rkd@epochs=3>kd@epochs=5", "kd>rkd>kd@epochs=5 epochs=3"),
        ("kd@epochs=3>rkd>kd@epochs=3", "kd@epochs=3>rkd>kd@epochs=3"),  # not said of all
        ("kd epochs=3 lambda_base=1", "kd lambda_base=1 epochs=3"),
        ("kd>rkd kd.temperature=2", "kd(temperature=2)>rkd"),
        ("kd>kd stage_2.kd.temperature=2", "kd>kd(temperature=2)"),
        ("kd>rkd stage_2.epochs=2", "kd>rkd@epochs=2"),
        ("kd>rkd>kd epochs_total=150 split=[0.5,0.3,0.2]", "kd@epochs=75>rkd@epochs=45>kd@epochs=30"),
        ("kd>rkd epochs_total=150", "kd>rkd epochs=75"),
        ("kd nesterov=1 epochs=3.0", "kd epochs=3 nesterov=true"),
        ("kd learning_rate=1e-1", "kd learning_rate=0.1"),
        ("  kd  >  rkd  ", "kd>rkd"),
    ],
)
def test_other_text_is_read_and_printed_in_one_form(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical
    assert parse(text) == parse(canonical)


def test_what_is_said_of_the_whole_is_over_nothing_that_a_stage_says() -> None:
    assert str(parse("kd@epochs=5>rkd>kd epochs=3")) == "kd@epochs=5>rkd>kd epochs=3"
    assert [dict(stage.settings)["epochs"] for stage in parse("kd@epochs=5>rkd>kd epochs=3").stages] == [5, 3, 3]


def test_stages_are_named_by_number() -> None:
    assert stage_number("stage_2.epochs") == (2, "epochs")
    assert stage_number("stage_12.kd.temperature") == (12, "kd.temperature")
    for key in ("epochs", "kd.temperature", "stage_0.epochs", "stage_.epochs", "stage_2", "stage_2.", "stage_x.epochs"):
        assert stage_number(key) == (None, key)


@pytest.mark.parametrize(
    ("text", "valid", "nearest"),
    [
        ("kd>fitnet", methods.available(), "fitnets"),
        ("kd>rkd anchor=referense", ANCHORS, "reference"),
        ("kd>rkd weighting=tcp_treu", WEIGHTINGS, "tcp_true"),
        ("kd schedule=stap", training.SCHEDULES, "step"),
        ("kd optimizer=adam", training.OPTIMIZERS, "adamw"),
        ("kd(temprature=2)", ("weight", "temperature"), "temperature"),
    ],
)
def test_unknown_name_is_told_valid_and_nearest(text: str, valid: tuple[str, ...], nearest: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    message = str(caught.value)
    assert "\n" not in message
    assert all(name in message for name in valid)
    assert message.count(nearest) > 1  # in the list, and as the one probably meant


# text with the place between arrows, and what is said of it
WRONG = [
    ("--><--", "a method is expected: stages are joined by '>'"),
    ("kd>--><--", "a method is expected"),
    ("-->><--kd", "a method is expected"),
    ("kd+-->+<--rkd", "a method is expected"),
    ("kd>-->><--rkd", "a method is expected"),
    ("-->kd+kd<-->rkd", "a stage is a set of methods, but 'kd+kd' names one twice"),
    ("kd>-->fitnet<--+rkd", "Did you mean 'fitnets'?"),
    ("kd-->,<--rkd", "stages are joined by '>', methods by '+', settings follow after a space"),
    # settings of the whole
    ("kd -->weighting<--", "weighting needs a value: weighting=..."),
    ("kd weighting=--><--", "weighting= needs a value"),
    ("kd weighting=tcp -->weighting=fixed<--", "weighting is set twice"),
    ("kd -->lambda_base=much<-- epochs=3", "lambda_base must be a number, but got 'much'"),
    ("kd -->lambda_base=-1<--", "lambda_base >= 0 must hold, but got lambda_base=-1"),
    ("kd -->lambda_base=nan<--", "lambda_base >= 0 must hold, but got lambda_base=nan"),
    ("kd -->lambda_base=inf<--", "lambda_base >= 0 must hold, but got lambda_base=inf"),
    ("kd -->lambda_base=1e999<--", "lambda_base must be a number, but got '1e999'"),
    ("kd -->anchor_temperature=0<--", "anchor_temperature > 0 must hold, but got anchor_temperature=0"),
    ("kd -->teachers=0<--", "teachers"),
    ("kd -->teachers=2.5<--", "teachers must be a whole number"),
    ("kd -->teachers=x<--", "teachers must be a whole number"),
    ("kd>rkd -->lambda_bse=1<--", "unknown setting 'lambda_bse' of recipes. Did you mean 'lambda_base'?"),
    ("kd -->learning_rte=1<--", "Did you mean 'learning_rate'?"),
    ("kd -->momentum=1<--", "0 <= momentum < 1 must hold, but got momentum=1"),
    # where a setting belongs
    (
        "kd -->temperature=2<--",
        "kd(temperature=4), or kd.temperature=4 for all stages",
    ),
    ("rkd(-->temperature=2<--)", "temperature is a setting of kd"),
    ("kd(-->layer=-1<--)", "layer is a setting of fitnets"),
    ("kd@-->temperature=3<--", "temperature is a setting of kd"),
    ("kd@-->lambda_base=1<-->rkd", "lambda_base is a setting of the whole recipe, written after its stages"),
    ("kd(-->lambda_base=1<--)", "lambda_base is a setting of the whole recipe"),
    ("kd(-->epochs=3<--)", "epochs is a training setting: of a stage kd@epochs=30, of all stages epochs=30"),
    ("rkd -->kd.temperature=2<--", "kd.temperature is a setting of kd, which isn't in the recipe rkd"),
    ("kd>rkd -->stage_3.epochs=3<--", "stage_3.epochs= is of stage 3, but the recipe kd>rkd has 2"),
    ("kd>rkd -->stage_2.kd.weight=3<--", "kd.weight is a setting of kd, which isn't in the recipe kd>rkd"),
    # of methods
    ("kd(-->temprature=2<--)", "unknown setting 'temprature' of kd; kd has weight, temperature"),
    ("kd(-->temperature=0<--)>rkd", "kd.temperature > 0 must hold, but got kd.temperature=0"),
    ("kd(temperature=2,-->temperature=3<--)", "kd.temperature is set twice"),
    ("kd(-->temperature<--)", "temperature needs a value: temperature=..."),
    ("kd(-->)<--", "key=value is expected"),
    ("kd(weight=1,-->)<--", "key=value is expected"),
    # of training
    ("kd@--><--", "key=value is expected"),
    ("kd@-->epochs=0<-->rkd", "must hold, but got epochs=0"),
    ("kd@-->epochs=2.5<--", "epochs must be a whole number, but got '2.5'"),
    ("kd@epochs=3,-->epochs=4<--", "epochs is set twice"),
    ("kd@-->nesterov=perhaps<--", "nesterov must be true or false, but got 'perhaps'"),
    ("kd@-->milestones=[0.5,1.5]<--", "0 < milestones < 1 must hold, but got milestones=1.5"),
    # brackets
    ("kd-->(<--temperature=2", "this bracket isn't closed"),
    ("kd-->(<--temperature=2>rkd", "this bracket isn't closed"),
    ("kd-->)<-->rkd", "a bracket is closed that wasn't opened"),
    ("kd(temperature=2)-->)<--", "a bracket is closed that wasn't opened"),
    ("kd@milestones=-->[0.5,0.7<--", "this bracket isn't closed"),
    # totals
    ("-->kd@epochs=3>rkd epochs_total=10<--", "epochs= is of each stage and epochs_total=10 of all of them"),
    ("-->kd epochs=3 epochs_total=5<--", "leave one out"),
    ("-->kd>rkd epochs_total=1<--", "each stage needs at least 1 epoch, but got epochs_total=1 for 2 stages"),
    ("-->kd>rkd epochs_total=10 split=[1]<--", "split= must have a share for each of 2 stages, but has 1"),
    ("-->kd>rkd epochs_total=10 split=[1,2,3]<--", "split= must have a share for each of 2 stages, but has 3"),
    ("-->kd>rkd split=[1,2]<--", "split= divides epochs_total=, which is missing"),
]


@pytest.mark.parametrize(("marked", "says"), WRONG)
def test_wrong_text_is_refused_with_the_place_marked(marked: str, says: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError) as caught:
        parse(marked.replace("-->", "", 1).replace("<--", "", 1))
    assert time.monotonic() - started < 1
    message = str(caught.value)
    assert message.startswith(f"recipe {marked}: "), message
    assert says in message and "\n" not in message


def test_long_text_is_refused_at_once() -> None:
    for text in (">".join(["kd"] * 5000), "kd@milestones=" + "[" * 9000, "kd(weight=" + "9" * 9000 + ")"):
        started = time.monotonic()
        with pytest.raises(ValueError):
            parse(text)
        assert time.monotonic() - started < 1


def test_make_reads_text_and_values_alike() -> None:
    assert make("kd>rkd", {"lambda_base": "0.25", "epochs": "3", "kd.temperature": "2"}) == make(
        "kd>rkd", {"lambda_base": 0.25, "epochs": 3, "kd.temperature": 2}
    )
    assert make("kd>rkd", {"milestones": "[0.5,0.7]"}) == make("kd>rkd", {"milestones": [0.5, 0.7]})


@pytest.mark.parametrize("key", [*training.SETTINGS, *recipes.SETTINGS, *recipes.SHORTHANDS])
def test_a_declaration_is_found_by_its_key(key: str) -> None:
    one = declaration(key)
    assert one is not None and one.name == key and one.help
    if key in training.SETTINGS:
        two = declaration(f"stage_2.{key}")
        assert two is not None and two.name == f"stage_2.{key}"
    assert declaration(f"kd.{key}") is None and declaration(f"no_{key}") is None


def test_every_setting_of_a_method_has_a_declaration() -> None:
    found = [key for name in methods.available() for key in of_method(name)]
    assert len(found) > 20
    for key in found:
        one = declaration(key)
        assert one is not None and one.name == key
