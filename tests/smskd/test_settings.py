"""How a setting is declared, read and written."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smskd.settings import Setting, check_all, declared, described, plain_yaml, setting, temperature, text_of, weight

NUMBER = Setting("x", 0.5, "a number", low=0)
COUNT = Setting("n", 3, "a count", low=1, high=10)
SHARE = Setting("s", 0.5, "a share", above=0, below=1)
SWITCH = Setting("b", False, "a switch")
CHOICE = Setting("c", "red", "a colour", choices=("red", "green"))
TEXT = Setting("t", None, "a text", kind=str)
NUMBERS = Setting("m", (0.5,), "numbers", kind=float, many=True, above=0, below=1)
TEXTS = Setting("w", ("a",), "words", kind=str, many=True)


@pytest.mark.parametrize(
    ("one", "given", "wanted"),
    [
        (NUMBER, 1, 1.0), (NUMBER, "1", 1.0), (NUMBER, "1e-3", 0.001), (NUMBER, 0, 0.0), (NUMBER, 2.5, 2.5),
        (COUNT, "3", 3), (COUNT, 3.0, 3), (COUNT, "10", 10), (COUNT, 1, 1),
        (SWITCH, "true", True), (SWITCH, "False", False), (SWITCH, True, True), (SWITCH, 0, False), (SWITCH, "1", True),
        (CHOICE, "green", "green"), (TEXT, "", ""), (TEXT, "null", "null"), (TEXT, "x y", "x y"),
        (NUMBERS, "[0.5,0.75]", (0.5, 0.75)), (NUMBERS, [0.5], (0.5,)), (NUMBERS, (0.25, "0.5"), (0.25, 0.5)),
        (NUMBERS, "[]", ()), (TEXTS, "[a,b]", ("a", "b")), (TEXTS, ["a"], ("a",)),
    ],
)  # fmt: skip
def test_a_value_is_read_from_whatever_means_the_same(one: Setting, given: object, wanted: object) -> None:
    found = one.read(given)
    assert found == wanted and type(found) is type(wanted)


@pytest.mark.parametrize(
    ("one", "given", "says"),
    [
        (NUMBER, "much", "x must be a number, but got 'much'"),
        (NUMBER, True, "x must be a number, but got True"),
        (NUMBER, None, "x must be a number, but got None"),
        (NUMBER, [1], "x must be a number, but got [1]"),
        (NUMBER, -1, "x >= 0 must hold, but got x=-1"),
        (NUMBER, float("nan"), "x >= 0 must hold, but got x=nan"),
        (NUMBER, "nan", "x >= 0 must hold, but got x=nan"),
        (NUMBER, float("inf"), "x >= 0 must hold, but got x=inf"),
        (NUMBER, "-inf", "x >= 0 must hold, but got x=-inf"),
        (Setting("x", 1.0, "any"), "nan", "x is finite must hold, but got x=nan"),
        (Setting("x", 1.0, "any", high=2), 3, "x <= 2 must hold, but got x=3"),
        (SHARE, 0, "0 < s < 1 must hold, but got s=0"),
        (SHARE, 1.0, "0 < s < 1 must hold, but got s=1"),
        (Setting("x", 1.0, "any", above=0), 0, "x > 0 must hold, but got x=0"),
        (Setting("x", 1.0, "any", low=0, below=1), 1, "0 <= x < 1 must hold, but got x=1"),
        (COUNT, 0, "1 <= n <= 10 must hold, but got n=0"),
        (COUNT, 11, "1 <= n <= 10 must hold, but got n=11"),
        (COUNT, 2.5, "n must be a whole number, but got 2.5"),
        (COUNT, "2.5", "n must be a whole number, but got '2.5'"),
        (COUNT, True, "n must be a whole number, but got True"),
        (COUNT, 10**30, "1 <= n <= 10 must hold"),
        (SWITCH, "perhaps", "b must be true or false, but got 'perhaps'"),
        (SWITCH, 2, "b must be true or false, but got 2"),
        (CHOICE, "greem", "unknown c 'greem'; available are red, green. Did you mean 'green'?"),
        (TEXT, 3, "t must be text, but got 3"),
        (TEXT, True, "t must be text, but got True"),
        (NUMBERS, 0.5, "m must be a list such as [0.5,0.75], but got 0.5"),
        (NUMBERS, "[a]", "m must be a list such as [0.5,0.75]"),
        (NUMBERS, "[0.5,[0.6]]", "m must be a list such as [0.5,0.75]"),
        (NUMBERS, [0.5, 1], "0 < m < 1 must hold, but got m=1"),
        (NUMBERS, [0.5, float("nan")], "0 < m < 1 must hold, but got m=nan"),
        (TEXTS, 3, "w must be a list such as [kd,rkd], but got 3"),
    ],
)
def test_what_is_wrong_is_told_with_the_name_and_the_bounds(one: Setting, given: object, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        one.read(given)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["9" * 5000, "x" * 5000, ["x"] * 5000, {"a": "x" * 5000}])
def test_a_wrong_value_is_shown_in_short(given: object) -> None:
    for one in (NUMBER, COUNT, SWITCH, NUMBERS):
        with pytest.raises(ValueError) as caught:
            one.read(given)
        assert len(str(caught.value)) < 400


SCALARS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53) | st.booleans()


@given(SCALARS)
def test_what_is_written_is_read_again(value: Any) -> None:
    one = Setting("x", value, "any", kind=type(value))
    again = one.read(text_of(value))
    assert again == value and type(again) is type(value)
    assert text_of(again) == text_of(value)


@given(st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), min_size=1, max_size=5))
def test_a_list_that_is_written_is_read_again(values: list[float]) -> None:
    assert NUMBERS.read(text_of(values)) == tuple(values)
    assert text_of(NUMBERS.read(values)) == text_of(values)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4.0, "4"), (0.1, "0.1"), (1e-7, "1e-07"), (-0.0, "0"), (True, "true"), (False, "false"), (3, "3"),
        ((0.5, 0.75), "[0.5,0.75]"), ([1, 2], "[1,2]"), ("kd", "kd"), (1e22, "1e+22"), ((), "[]"),
        (math.pi, "3.141592653589793"),
    ],
)  # fmt: skip
def test_how_values_are_written(value: object, text: str) -> None:
    assert text_of(value) == text


def test_weight_and_temperature() -> None:
    assert (weight(3.0).name, weight(3.0).default, weight(3.0).low, weight(3.0).kind) == ("weight", 3.0, 0, float)
    assert weight(3.0).read(0) == 0
    assert (temperature(4.0).name, temperature(4.0).above) == ("temperature", 0)
    with pytest.raises(ValueError, match="temperature > 0"):
        temperature(4.0).read(0)


@dataclass(frozen=True, kw_only=True)
class Schema:
    """A dataclass with each kind of field."""

    plain: int = 7  # no setting
    number: float = setting(0.5, "a number", low=0, high=2)
    count: int | None = setting(None, "a count", low=1)
    words: tuple[str, ...] = setting(("a",), "words")
    colour: str = setting("red", "a colour", choices=("red", "green"))

    def __post_init__(self) -> None:
        check_all(self)


def test_fields_of_a_dataclass_are_settings() -> None:
    found = declared(Schema)
    assert list(found) == ["number", "count", "words", "colour"]
    assert [one.kind for one in found.values()] == [float, int, str, str]
    assert [one.many for one in found.values()] == [False, False, True, False]
    made = Schema(number="1", count="3", words=["x"])  # type: ignore[arg-type]
    assert (made.number, made.count, made.words) == (1.0, 3, ("x",))
    with pytest.raises(ValueError, match="0 <= number <= 2 must hold, but got number=3"):
        Schema(number=3)
    with pytest.raises(ValueError, match="Did you mean 'green'"):
        Schema(colour="greem")


def test_help_has_default_bounds_and_choices() -> None:
    lines = described(declared(Schema).values())
    assert [" ".join(line.split()) for line in lines] == [
        "number=0.5 a number (>= 0, <= 2)",
        "count= a count (>= 1)",
        "words=[a] words",
        "colour=red a colour: red, green",
    ]


def test_plain_yaml_takes_no_aliases_nor_depth_nor_length() -> None:
    assert plain_yaml("x", "{a: [1, b]}") == {"a": [1, "b"]}
    for text in (
        "&a [*a]",
        "[" * 50 + "]" * 50,
        "a" * 70_000,
        "{",
        "!!python/name:os.system ''",
        "2001-99-01",
        "\ud800",
    ):
        with pytest.raises(ValueError, match=r"^x "):
            plain_yaml("x", text)


@pytest.mark.parametrize(
    "module", ["settings", "training", "recipe", "notation", "experiment", "methods", "result", "cli"]
)
def test_values_leave_torch_alone(module: str) -> None:
    code = f"import sys, smskd.{module}; sys.exit(bool({{'torch', 'ray', 'pandas'}} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
