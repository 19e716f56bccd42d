"""The rule by which a recipe gives up its later stages, against a plain statement of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.stopping import dominated_by

POINT = st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.4]), st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=300, deadline=None)
@given(POINT, st.lists(POINT, max_size=8), st.sampled_from([0.0, 0.05, 0.15]))
def test_it_is_the_best_of_those_that_cost_no_more_and_are_better_by_more(
    prefix: tuple[float, int, int], others: list[tuple[float, int, int]], margin: float
) -> None:
    finished = {str(number): point for number, point in enumerate(others)}
    better = [
        (error, int(name))
        for name, (error, *costs) in finished.items()
        if prefix[0] - error > margin and costs[0] <= prefix[1] and costs[1] <= prefix[2]
    ]
    assert dominated_by(prefix, finished, margin) == (str(min(better)[1]) if better else None)


def test_equal_cost_dominates_and_equal_error_does_not() -> None:
    assert dominated_by((0.2, 1.0), {"a": (0.1, 1.0)}, 0.05) == "a"
    assert dominated_by((0.2, 1.0), {"a": (0.1, 1.0000001)}, 0.05) is None
    assert dominated_by((0.2, 1.0), {"itself": (0.2, 1.0)}, 0.0) is None
    assert dominated_by((0.2, 1.0), {}, 0.0) is None


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="margin >= 0 must hold, but got margin=-1"):
        dominated_by((0.2, 1.0), {}, -1)
    with pytest.raises(ValueError, match="a has 2 costs, but the prefix has 1"):
        dominated_by((0.2, 1.0), {"a": (0.1, 1.0, 1.0)}, 0)
