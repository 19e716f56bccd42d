"""Intervals against values worked out by hand, from printed t tables, and by simulation."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from reports.statistics import (
    Gain,
    Pooled,
    bootstrap_interval,
    detectable_difference,
    front_probability,
    half_width,
    holm,
    paired_gain,
    pooled_sd,
    range_of_means,
    sampling_half_width,
)


def test_pooled_sd_by_hand() -> None:
    # squares: (1 + 0 + 1) + (0.5 + 0.5) = 3; degrees 2 + 1; groups of one or none tell nothing
    assert pooled_sd([[1, 2, 3], [5, 6], [9], []]) == Pooled(pytest.approx(math.sqrt((2 + 0.5) / 3)), 3)
    assert pooled_sd([[1], [2]]) == Pooled(None, 0)


@pytest.mark.parametrize(
    ("degrees", "t"), [(1, 12.706), (2, 4.303), (4, 2.776), (10, 2.228), (30, 2.042), (120, 1.980)]
)
def test_half_width_from_a_printed_t_table(degrees: int, t: float) -> None:
    assert half_width(Pooled(0.4, degrees), 4) == pytest.approx(t * 0.4 / 2, rel=3e-4)


def test_half_width_edges() -> None:
    assert half_width(Pooled(None, 0), 3) is None
    with pytest.raises(ValueError, match="n >= 1"):
        half_width(Pooled(1.0, 2), 0)


def test_paired_gain_by_hand() -> None:
    # differences over seeds 0, 1, 2: 1, 2, 3; sd 1; t(2) = 4.303
    gain = paired_gain({0: 2.0, 1: 4.0, 2: 6.0, 9: 99.0}, {2: 3.0, 1: 2.0, 0: 1.0, 8: -99.0})
    assert gain is not None
    assert gain[:3] == (2.0, pytest.approx(4.3027 / math.sqrt(3), rel=1e-4), 3)
    # t = 2 sqrt(3) with 2 degrees of freedom, whose distribution has a closed form
    assert gain.p == pytest.approx(1 - math.sqrt(12) / math.sqrt(12 + 2)) and gain.wins == 1
    assert paired_gain({0: 1.0}, {0: 0.5}) == Gain(0.5, None, 1, None, 1.0)
    assert paired_gain({0: 1.0}, {1: 1.0}) is None


def test_wins_count_ties_half_and_a_gain_against_itself_is_nothing() -> None:
    gain = paired_gain(dict(enumerate([0.9, 0.8, 0.7, 0.6])), dict(enumerate([0.8, 0.8, 0.8, 0.8])))
    assert gain is not None and gain.wins == pytest.approx((1 + 0.5 + 0 + 0) / 4)
    same = {0: 0.9, 1: 0.8, 2: 0.7}
    assert paired_gain(same, same) == Gain(0.0, 0.0, 3, 1.0, 0.5)
    always = paired_gain({0: 0.75, 1: 0.5}, {0: 0.5, 1: 0.25})
    assert always == Gain(0.25, 0.0, 2, 0.0, 1.0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=12))
def test_p_value_is_that_of_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = zip(*pairs, strict=True)
    differences = np.subtract(ours, theirs)
    if differences.std() < 1e-6:
        return
    gain = paired_gain(dict(enumerate(ours)), dict(enumerate(theirs)))
    expected = stats.ttest_rel(ours, theirs)
    assert gain is not None and gain.p == pytest.approx(expected.pvalue, abs=1e-9)
    # the interval contains 0 exactly when the test doesn't reject
    assert gain.half_width is not None and (abs(gain.mean) > gain.half_width) == (gain.p < 0.05)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 are not, such as nan; leave failed trainings out"):
        pooled_sd([[1.0, 2.0], [1.0, math.nan]])
    with pytest.raises(ValueError, match="paired values must be finite"):
        paired_gain({0: 1.0, 1: math.inf}, {0: 1.0, 1: 1.0})
    assert paired_gain({0: 1.0, 1: math.nan}, {0: 1.0}) is not None  # not paired, so not read
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], but got nan"):
        holm([0.1, math.nan])
    known = Pooled(0.1, 10)
    with pytest.raises(ValueError, match="means must be finite"):
        front_probability(np.array([0.1, math.nan]), np.array([1.0, 2.0]), known, [1, 1])
    with pytest.raises(ValueError, match="costs must be finite"):
        front_probability(np.array([0.1, 0.2]), np.array([1.0, math.nan]), known, [1, 1])
    with pytest.raises(ValueError, match="draws must be finite"):
        bootstrap_interval(np.array([0.1]), np.array([[0.1], [math.nan]]))


def test_holm_by_hand() -> None:
    # ordered 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, which may not fall
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([0.3]) == [0.3] and holm([]) == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.025, 0.05, 0.2, 1.0]), max_size=7))
def test_holm_is_the_closed_bonferroni_test(p_values: list[float]) -> None:
    # adjusted p of a hypothesis: the largest Bonferroni p of all sets of hypotheses that it is in
    everyone = range(len(p_values))
    groups = [g for size in range(1, len(p_values) + 1) for g in itertools.combinations(everyone, size)]
    expected = [max(min(1.0, len(g) * min(p_values[j] for j in g)) for g in groups if i in g) for i in everyone]
    assert holm(p_values) == pytest.approx(expected)


def plain_probability(means: np.ndarray, costs: np.ndarray, error: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Pair by pair, from the definition of dominance."""
    rng = np.random.default_rng(seed)
    hits = np.zeros(len(means))
    for _ in range(draws):
        drawn = [rng.normal(m, e) for m, e in zip(means, error, strict=True)]
        points = [(-a, *np.atleast_1d(c)) for a, c in zip(drawn, costs, strict=True)]
        hits += [not any(q != p and all(b <= a for a, b in zip(p, q, strict=True)) for q in points) for p in points]
    return hits / draws


@pytest.mark.parametrize("costs", [[1.0, 2.0, 2.0, 3.0], [[1, 9], [2, 5], [2, 5], [3, 1]], [[5, 1]] * 4])
def test_front_probability_against_the_definition(costs: list[float] | list[list[float]]) -> None:
    means, seeds, spread = np.array([0.70, 0.71, 0.705, 0.70]), [1, 2, 4, 4], Pooled(0.01, 30)
    found = front_probability(means, np.array(costs), spread, seeds, draws=20_000, seed=1)
    error = 0.01 / np.sqrt(seeds)
    assert found == pytest.approx(plain_probability(means, np.array(costs), error, 5000, 2), abs=0.03)
    assert (front_probability(means, np.array(costs), spread, seeds, draws=50) != found).any()  # draws are used


def test_front_probability_in_closed_form() -> None:
    # two recipes: the dearer one is on the front when it is better, which has probability Phi(difference / error)
    found = front_probability(np.array([0.70, 0.71]), np.array([1.0, 2.0]), Pooled(0.02, 9), [4, 4], draws=100_000)
    assert found[0] == 1 and found[1] == pytest.approx(special.ndtr(0.01 / math.hypot(0.01, 0.01)), abs=0.005)
    # without noise: exactly the front, equal points side by side
    for costs in (np.array([1, 1, 2, 3]), np.array([[1, 0], [1, 0], [2, 0], [3, 0]])):
        exact = front_probability(np.array([0.5, 0.5, 0.5, 0.6]), costs, Pooled(0.0, 9), [3] * 4, draws=10)
        assert exact.tolist() == [1, 1, 0, 1]
    assert front_probability(np.zeros(0), np.zeros(0), Pooled(0.1, 9), []).shape == (0,)
    with pytest.raises(ValueError, match="no recipe has two"):
        front_probability(np.array([0.5]), np.array([1.0]), Pooled(None, 0), [1])
    with pytest.raises(ValueError, match="seeds >= 1 must hold"):
        front_probability(np.array([0.5]), np.array([1.0]), Pooled(0.1, 3), [0])
    with pytest.raises(ValueError, match=r"got \[2\], \[1\] and \[2\]"):
        front_probability(np.array([0.5, 0.6]), np.array([1.0]), Pooled(0.1, 3), [1, 1])


def test_front_probability_of_2000_recipes_is_quick() -> None:
    rng = np.random.default_rng(0)
    started = time.process_time()
    front_probability(rng.normal(0.7, 0.01, 2000), rng.uniform(1, 9, 2000), Pooled(0.004, 99), [3] * 2000)
    assert time.process_time() - started < 2  # under 1 s on an idle core


def test_bootstrap_interval_by_hand() -> None:
    # draws 0.5, 0.7: mean 0.6, sd sqrt(0.02), t(1) = 12.7; 0.99 is kept inside; ends stay within 0 and 1
    low, high = bootstrap_interval(np.array([0.5, 0.99, 0.5]), np.array([[0.5, 0.6, 0.60], [0.7, 0.6, 0.62]]))
    assert (low[0], high[0]) == (0, 1)
    assert (low[1], high[1]) == (0.99, 1)
    half = 12.7062 * math.sqrt(0.0002)
    assert low[2] == pytest.approx(2 * 0.5 - 0.61 - half) and high[2] == pytest.approx(2 * 0.5 - 0.61 + half)
    with pytest.raises(ValueError, match="two draws"):
        bootstrap_interval(np.array([0.5]), np.array([[0.5]]))


def test_pooled_interval_covers_95_per_cent() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        groups = rng.normal(0.7, 0.002, size=(20, 3))
        width = half_width(pooled_sd(groups.tolist()), 3)
        assert width is not None
        covered += (np.abs(groups.mean(axis=1) - 0.7) < width).tolist()
    assert 0.93 < np.mean(covered) < 0.97


def test_sampling_error_of_ten_thousand_images() -> None:
    # at 76 %: 1.96 * sqrt(0.76 * 0.24 / 10000) = 0.837 points; one standard error is 0.427
    assert sampling_half_width(0.76, 10_000) == pytest.approx(0.00837, abs=1e-5)
    with pytest.raises(ValueError, match="images >= 1"):
        sampling_half_width(0.5, 0)


def test_detectable_difference_is_detected_in_four_of_five_experiments() -> None:
    rng = np.random.default_rng(0)
    sd, n = 0.003, 5
    difference = detectable_difference(Pooled(sd, n - 1), n)
    assert difference is not None
    draws = rng.normal(difference, sd, size=(20_000, n))
    t = draws.mean(axis=1) / draws.std(axis=1, ddof=1) * math.sqrt(n)
    assert np.mean(t > 2.77645) == pytest.approx(0.8, abs=0.01)
    assert detectable_difference(Pooled(None, 0), 1) is None
    with pytest.raises(ValueError, match="0 < power < 1"):
        detectable_difference(Pooled(1.0, 2), 3, power=1.0)


def test_smallest_difference_of_two_recipes_as_published_in_the_protocol() -> None:
    # run sd 0.2, two recipes of n seeds each, spread known well: 0.46 points with 3 seeds, 0.36 with 5, 0.25 with 10
    of_a_difference = Pooled(0.2 * math.sqrt(2), 200)
    found = [detectable_difference(of_a_difference, n) for n in (3, 5, 10)]
    assert found == pytest.approx([0.46, 0.36, 0.25], abs=0.006)


def test_range_of_equal_means_is_what_a_simulation_shows() -> None:
    rng = np.random.default_rng(0)
    # four seeds of six equal recipes; the seeds' own effect, larger than the noise, must not count
    draws = rng.normal(0, 0.2, size=(40_000, 4, 6)) + rng.normal(0, 1, size=(40_000, 4, 1))
    means = draws.mean(axis=1)
    rest = draws - means[:, None] - draws.mean(axis=2, keepdims=True) + draws.mean(axis=(1, 2))[:, None, None]
    errors = np.sqrt((rest**2).sum(axis=(1, 2)) / 15 / 4)
    ratios = np.ptp(means, axis=1) / errors
    found = range_of_means(draws[0].tolist())
    assert found is not None and found.found == pytest.approx(np.ptp(means[0]))
    assert found.middle / errors[0] == pytest.approx(np.quantile(ratios, 0.5), rel=0.02)
    assert found.limit / errors[0] == pytest.approx(np.quantile(ratios, 0.95), rel=0.02)


def test_range_of_means_by_hand() -> None:
    # means 2, 3, 7; residuals of the seeds -0.5, -0.5, 1 and 0.5, 0.5, -1: squares 3, degrees 2; printed q is 8.33
    found = range_of_means([[1.0, 2.0, 7.5], [3.0, 4.0, 6.5]])
    assert found is not None and found.found == pytest.approx(5)
    assert found.limit == pytest.approx(8.33 * math.sqrt(3 / 2) / math.sqrt(2), rel=2e-3)
    assert range_of_means([[1.0, 2.0]]) is None
    with pytest.raises(ValueError, match="k >= 2"):
        range_of_means([[1.0], [2.0]])
