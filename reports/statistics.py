"""Intervals for accuracies of few seeds: pooled t, paired gains, sampling error. Pure functions of plain numbers.

Bootstrap percentile intervals are deliberately not here: with three seeds they cover 73 % where 95 % is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

LEVEL = 0.95


class Pooled(NamedTuple):
    """One standard deviation for several groups. sd: None where no group has two values. degrees: of freedom."""

    sd: float | None
    degrees: int


class Gain(NamedTuple):
    """A mean paired difference. half_width: of its 95 % t interval, None with one pair. pairs: how many."""

    mean: float
    half_width: float | None
    pairs: int


def pooled_sd(groups: Iterable[Sequence[float]]) -> Pooled:
    """The standard deviation within groups, as if all had the same: sqrt(sum of squares / sum of (n - 1))."""
    squares, degrees = 0.0, 0
    for group in groups:
        values = np.asarray(group, dtype=np.float64)
        if len(values) > 1:
            squares += float(((values - values.mean()) ** 2).sum())
            degrees += len(values) - 1
    return Pooled(math.sqrt(squares / degrees) if degrees else None, degrees)


def half_width(spread: Pooled, n: int, level: float = LEVEL) -> float | None:
    """Half the width of the t interval of a mean of n values with that spread; None where the spread is unknown.

    Raises:
        ValueError: n < 1, or level outside (0, 1).
    """
    if n < 1 or not 0 < level < 1:
        raise ValueError(f"n >= 1 and 0 < level < 1 must hold, but got n={n}, level={level}")
    if spread.sd is None:
        return None
    return float(special.stdtrit(spread.degrees, (1 + level) / 2)) * spread.sd / math.sqrt(n)


def paired_gain(values: Mapping[int, float], baseline: Mapping[int, float], level: float = LEVEL) -> Gain | None:
    """Mean of values[seed] - baseline[seed] over the seeds that both have, with its plain t interval.

    The standard deviation is of these differences alone: differences of several recipes share the baseline's noise, so
    pooling them would claim more degrees of freedom than there are. None where no seed is shared.
    """
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    differences = [values[seed] - baseline[seed] for seed in seeds]
    return Gain(float(np.mean(differences)), half_width(pooled_sd([differences]), len(seeds), level), len(seeds))


def sampling_half_width(accuracy: float, images: int, level: float = LEVEL) -> float:
    """Half the width of the normal interval of an accuracy (0 to 1) measured on so many images.

    Raises:
        ValueError: accuracy outside [0, 1], or images < 1.
    """
    if not 0 <= accuracy <= 1 or images < 1:
        raise ValueError(f"0 <= accuracy <= 1 and images >= 1 must hold, but got accuracy={accuracy}, images={images}")
    return float(special.ndtri((1 + level) / 2)) * math.sqrt(accuracy * (1 - accuracy) / images)


def detectable_difference(spread: Pooled, n: int, power: float = 0.8, level: float = LEVEL) -> float | None:
    """The true mean that n values with that spread would have shown to differ from 0, with that probability.

    From the noncentral t distribution; a significant mean of the wrong sign doesn't count. None where the spread is
    unknown.

    Raises:
        ValueError: n < 1, or level or power outside (0, 1).
    """
    if n < 1 or not 0 < level < 1 or not 0 < power < 1:
        raise ValueError(f"n >= 1, 0 < level < 1, 0 < power < 1 must hold, but got n={n}, level={level}, power={power}")
    if spread.sd is None:
        return None
    limit = special.stdtrit(spread.degrees, (1 + level) / 2)
    return float(special.nctdtrinc(spread.degrees, 1 - power, limit)) * spread.sd / math.sqrt(n)


class Range(NamedTuple):
    """Best minus worst of several means. Of as many equal ones it would exceed `middle` in half of all experiments,
    and `limit` in one of 20."""

    found: float
    middle: float
    limit: float


def range_of_means(values: Sequence[Sequence[float]], level: float = LEVEL) -> Range | None:
    """Best minus worst of k means of n seeds, and what chance makes of k equal ones, from the studentised range.

    Such a range is never below 0 and grows with k, so that it can't be judged by an interval around it. values: [n, k],
    a row per seed. The spread is what is left after the means of seeds and of recipes (randomised blocks), with
    (n - 1) * (k - 1) degrees of freedom. No true difference exceeds found + limit, at that level (Tukey). None with
    fewer than two seeds.

    Raises:
        ValueError: values isn't two-dimensional, or has fewer than two recipes.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] < 2:
        raise ValueError(f"values must have shape [n, k] with k >= 2, but have shape {list(array.shape)}")
    n, k = array.shape
    if n < 2:
        return None
    from scipy.stats import studentized_range  # slow to import, and needed here alone

    means = array.mean(axis=0)
    rest = array - means - array.mean(axis=1, keepdims=True) + array.mean()
    degrees = (n - 1) * (k - 1)
    error = math.sqrt(float((rest**2).sum()) / degrees / n)
    middle, limit = (float(studentized_range.ppf(p, k, degrees)) * error for p in (0.5, level))
    return Range(float(means.max() - means.min()), middle, limit)
