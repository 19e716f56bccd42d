"""Ranges in Hydra's grammar: what they mean, and that wrong ones are marked."""

from __future__ import annotations

import re
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search import config, draws, ranges
from search.draws import values_of
from smskd import experiment
from smskd.recipe import declaration


def drawn(key: str, text: str) -> Any:
    """The distribution that a range stands for."""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    value = ranges.parse(key, text).suggest(trial)
    (name,) = trial.distributions
    assert name == key
    one = declaration(key)
    assert one is not None and one.read(value) == value
    return trial.distributions[key]


@pytest.mark.parametrize(
    ("key", "text", "values"),
    [
        ("kd.temperature", "choice(1,2,4,8)", [1, 2, 4, 8]),
        ("kd.temperature", "choice( 1, 2.5 )", [1, 2.5]),
        ("kd.temperature", "choice(4)", [4]),
        ("schedule", "choice(step,cosine)", ["step", "cosine"]),
        ("schedule", "choice('step',\"cosine\")", ["step", "cosine"]),
        ("nesterov", "choice(true,false)", [True, False]),
        ("milestones", "choice([0.5],[0.5,0.75])", ["[0.5]", "[0.5,0.75]"]),
        # a range leaves out its end
        ("epochs", "range(5,30,5)", [5, 10, 15, 20, 25]),
        ("epochs", "range(5,31,5)", [5, 10, 15, 20, 25, 30]),
        ("stage_2.epochs", "range(1,4)", [1, 2, 3]),
        ("fitnets.layer", "range(-1,1)", [-1, 0]),
        ("warmup_epochs", "range(3)", [0, 1, 2]),
        ("epochs", "range(start=5,stop=20,step=5)", [5, 10, 15]),
        ("epochs", "range(5,step=5,stop=20)", [5, 10, 15]),
        ("lambda_base", "range(0,1,0.25)", [0, 0.25, 0.5, 0.75]),
        ("learning_rate", "range(0.1,0.8,0.1)", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        ("momentum", "range(0,1,0.3)", [0, 0.3, 0.6, 0.9]),
        ("epochs", "interval(2,4)", [2, 3, 4]),
        ("epochs", "tag(int,interval(2,4))", [2, 3, 4]),
        ("epochs", "tag(log,interval(2,4))", [2, 3, 4]),
    ],
)  # fmt: skip
def test_a_finite_one_has_these_values(key: str, text: str, values: list[Any]) -> None:
    found = values_of(drawn(key, text))
    assert found is not None
    assert list(found) == (pytest.approx(values) if isinstance(values[0], float | int) else values)


@pytest.mark.parametrize(
    ("text", "low", "high", "log"),
    [
        ("interval(0.01,0.2)", 0.01, 0.2, False),
        ("interval(1e-2,2E-1)", 0.01, 0.2, False),
        ("interval(start=0.01,end=0.2)", 0.01, 0.2, False),
        ("tag(log,interval(0.01,0.2))", 0.01, 0.2, True),
        ("tag(log, interval(0.01, 0.2))", 0.01, 0.2, True),
        ("tag( log , interval( 0.01 , 0.2 ) )", 0.01, 0.2, True),
    ],
)
def test_an_interval_has_no_end_of_values(text: str, low: float, high: float, log: bool) -> None:
    found = drawn("learning_rate", text)
    assert (found.low, found.high, found.log, found.step) == (low, high, log, None)
    assert values_of(found) is None


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 999).map(lambda n: n / 1000), st.integers(1, 40), st.sampled_from([0.001, 0.01, 0.05, 0.1, 0.3, 1])
)
@pytest.mark.filterwarnings("error")
def test_steps_are_those_of_arithmetic_whatever_floats_do(low: float, count: int, step: float) -> None:
    found = ranges.parse("lambda_base", f"range({low!r},{low + count * step!r},{step!r})")
    trial = draws.Walk([])
    found.suggest(trial)
    (distribution,) = trial.distributions.values()
    values = values_of(distribution)
    assert values is not None and len(values) == count
    assert list(values) == pytest.approx([low + k * step for k in range(count)])
    for value in values:
        assert distribution._contains(distribution.to_internal_repr(value))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        # empty
        ("learning_rate=choice()", "a value is missing"),
        ("learning_rate=choice(0.1,,0.2)", "a value is missing"),
        ("epochs=range(5,5)", "it is empty: start < stop must hold"),
        ("epochs=range(30,5,5)", "it is empty: start < stop must hold"),
        ("epochs=range(0)", "it is empty"),
        ("learning_rate=interval()", "a value is missing"),
        ("learning_rate=tag()", "a value is missing"),
        # upside down
        ("learning_rate=interval(0.2,0.01)", "low < high must hold, but got low=0.2, high=0.01"),
        ("learning_rate=-->interval(0.2,0.2)<--", "low < high must hold, but got low=0.2, high=0.2"),
        ("epochs=range(5,30,-5)", "step > 0 must hold, but got step=-5"),
        ("epochs=range(5,30,0)", "step > 0 must hold"),
        # unbalanced
        ("learning_rate=interval(0.01,0.2", "a bracket isn't closed"),
        ("learning_rate=interval(0.01,0.2))", "a bracket isn't closed, or is closed twice"),
        ("learning_rate=tag(log,interval(0.01,0.2)", "a bracket isn't closed"),
        ("milestones=choice([0.5,[0.5])", "a bracket isn't closed"),
        ("learning_rate=choice(0.1]", "a bracket isn't closed"),
        # out of bounds
        ("learning_rate=interval(0,0.2)", "learning_rate > 0 must hold, but got learning_rate=0"),
        ("learning_rate=choice(0.1,-->-1<--)", "learning_rate > 0 must hold, but got learning_rate=-1"),
        ("momentum=interval(0,1)", "0 <= momentum < 1 must hold, but got momentum=1"),
        ("stage_2.epochs=range(0,5)", "1 <= stage_2.epochs"),
        ("epochs=choice(1.5,2)", "epochs must be a whole number"),
        ("epochs=interval(1,2.5)", "epochs must be a whole number"),
        ("epochs=range(1,4,0.5)", "epochs is a whole number, but step=0.5"),
        ("schedule=choice(step,-->cosin<--)", "Did you mean 'cosine'"),
        ("nesterov=choice(true,2)", "nesterov must be true or false"),
        ("learning_rate=tag(log,interval(-1,1))", "low > 0 must hold for a logarithm"),
        ("lambda_base=tag(log,interval(0,1))", "low > 0 must hold for a logarithm"),
        # numbers that are none
        ("learning_rate=interval(a,b)", "must be a number"),
        ("learning_rate=interval(0.1,inf)", "must be finite"),
        ("learning_rate=interval(nan,1)", "must be finite"),
        ("learning_rate=choice(nan)", "learning_rate > 0 must hold, but got learning_rate=nan"),
        ("learning_rate=interval(0.1)", "it takes start, end"),
        ("learning_rate=interval(0.1,0.2,0.3)", "it takes start, end"),
        ("learning_rate=interval(0.1,0.2,step=1)", "it takes start, end"),
        ("epochs=range(1,2,3,4)", "it takes start, stop, step"),
        ("learning_rate=range(0.1,1,1e-9)", "has over 10000 values"),
        # unknown
        ("learning_rate=-->uniform<--(0.01,0.2)", "a range is choice(A,B,...), range(START,STOP,STEP)"),
        ("learning_rate=loguniform(0.01,0.2)", "a range is choice"),
        ("learning_rate=tag(-->ln<--,interval(0.1,1))", "a tag is log or int"),
        ("learning_rate=tag(-->log<--,choice(0.1,1))", "is of an interval, not of a choice"),
        ("epochs=tag(log,range(1,5))", "is of an interval, not of a range"),
        ("learning_rate=tag(log,0.1)", "a range is choice"),
        # of text, of truth values, of lists
        ("schedule=interval(step,cosine)", "schedule must be text, which has no interval: use choice(...)"),
        ("schedule=range(1,2)", "which has no range: use choice(...)"),
        ("nesterov=interval(0,1)", "nesterov must be true or false, which has no interval"),
        ("milestones=interval(0.1,0.5)", "which has no interval: use choice(...)"),
        # twice
        ("kd.temperature=choice(2,2.0)", "names a value twice"),
    ],
)
def test_a_wrong_one_is_refused_and_marked(word: str, said: str) -> None:
    plain = word.replace("-->", "").replace("<--", "")
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        config.parse([plain])
    told = str(error.value)
    assert "\n" not in told and told.startswith(f"{plain.partition('=')[0]}=")
    assert "-->" in told and "<--" in told
    if "-->" in word:
        assert told.startswith(word)


NO_RANGES = [*config.SETTINGS_OF_SEARCH, *experiment.SETTINGS]


@pytest.mark.parametrize("key", NO_RANGES)
def test_what_is_the_same_for_all_recipes_cannot_be_one_and_says_so(key: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{key} can't be a range, since it is the same for all recipes")):
        config.parse([f"{key}=choice(1,2)"])


def test_several_pairs_are_no_range() -> None:
    with pytest.raises(ValueError, match="pair can't be a range"):
        config.parse_pairs(["pair=choice(tiny,resnet56_resnet20)"])
