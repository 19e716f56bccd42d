"""Recipes: the notation parses back, equal effects have equal ids, errors say what is right."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smskd import methods
from smskd.recipe import ANCHORS, WEIGHTINGS, Recipe, Stage, make, parse

STAGES = st.lists(st.sampled_from(methods.available()), min_size=1, max_size=4, unique=True).map(
    lambda chosen: Stage(methods=tuple(chosen))
)
RECIPES = st.builds(
    Recipe,
    stages=st.lists(STAGES, min_size=1, max_size=5).map(tuple),
    anchor=st.sampled_from(ANCHORS),
    weighting=st.sampled_from(WEIGHTINGS),
    lambda_base=st.floats(min_value=0, allow_infinity=False),
    anchor_temperature=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
)


@settings(deadline=None)
@given(recipe=RECIPES)
def test_notation_parses_back(recipe: Recipe) -> None:
    again = parse(str(recipe))
    assert again == recipe
    assert again.id == recipe.id
    assert str(again) == str(recipe)
    assert make(recipe.notation, recipe.settings) == recipe


@pytest.mark.parametrize("text", ["kd", "ce", "kd>fitnets>rkd", "kd+rkd>kd", "kd>rkd weighting=tcp lambda_base=0.25"])
def test_customary_text_prints_as_written(text: str) -> None:
    assert str(parse(text)) == text


def test_defaults_are_left_out() -> None:
    assert str(parse("kd>rkd anchor=reference weighting=fixed lambda_base=0.5 anchor_temperature=4")) == "kd>rkd"


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
    ],
)
def test_equal_effect_has_equal_id(one: str, other: str) -> None:
    assert parse(one).id == parse(other).id


def test_unequal_effect_has_unequal_id() -> None:
    texts = [
        "ce", "kd", "rkd", "kd+rkd", "kd>rkd", "rkd>kd", "kd>kd", "kd>ce", "kd>rkd anchor=none", "kd>rkd weighting=tcp",
        "kd>rkd weighting=tcp_true", "kd>rkd lambda_base=1", "kd>rkd anchor_temperature=2",
    ]  # fmt: skip
    assert len({parse(text).id for text in texts}) == len(texts)


def test_id_is_twelve_hexadecimal_digits() -> None:
    name = parse("kd>rkd").id
    assert len(name) == 12
    assert set(name) <= set("0123456789abcdef")


def test_prefixes() -> None:
    recipe = parse("kd>fitnets+rkd>rkd weighting=tcp")
    assert [str(p) for p in recipe.prefixes()] == [
        "kd weighting=tcp",
        "kd>fitnets+rkd weighting=tcp",
        "kd>fitnets+rkd>rkd weighting=tcp",
    ]
    assert recipe.prefixes()[-1] == recipe
    # a prefix is one piece of work for all recipes that begin so, whatever comes after
    assert recipe.prefixes()[0].id == parse("kd").id


@pytest.mark.parametrize(
    ("text", "valid", "nearest"),
    [
        ("kd>fitnet", methods.available(), "fitnets"),
        ("kd>rkd anchor=referense", ANCHORS, "reference"),
        ("kd>rkd weighting=tcp_treu", WEIGHTINGS, "tcp_true"),
        ("kd>rkd lambda_bse=1", ("anchor", "weighting", "lambda_base", "anchor_temperature"), "lambda_base"),
    ],
)
def test_unknown_name_is_told_valid_and_nearest(text: str, valid: tuple[str, ...], nearest: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    message = str(caught.value)
    assert "\n" not in message
    assert all(name in message for name in valid)
    assert message.count(nearest) > 1  # in the list, and as the one probably meant


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty part"),
        ("kd>", "empty part"),
        (">kd", "empty part"),
        ("kd++rkd", "empty part"),
        ("kd+kd", "twice"),
        ("kd weighting", "key=value"),
        ("kd weighting=", "key=value"),
        ("kd weighting=tcp weighting=fixed", "twice"),
        ("kd lambda_base=much", "must be a number"),
        ("kd lambda_base=-1", "lambda_base >= 0"),
        ("kd lambda_base=nan", "lambda_base >= 0"),
        ("kd lambda_base=inf", "lambda_base >= 0"),
        ("kd anchor_temperature=0", "anchor_temperature > 0"),
    ],
)
def test_wrong_text_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(text)


def test_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one stage"):
        Recipe(stages=())
    with pytest.raises(ValueError, match="at least one method"):
        Stage(methods=())
