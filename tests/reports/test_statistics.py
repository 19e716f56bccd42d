"""Intervals against values worked out by hand, from printed t tables, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reports.statistics import (
    Gain,
    Pooled,
    detectable_difference,
    half_width,
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
    assert gain == Gain(2.0, pytest.approx(4.3027 / math.sqrt(3), rel=1e-4), 3)
    assert paired_gain({0: 1.0}, {0: 0.5}) == Gain(0.5, None, 1)
    assert paired_gain({0: 1.0}, {1: 1.0}) is None


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
