"""What few seeds say: pooled t, paired gains, Holm, sampling error, P(front). Pure functions of plain numbers.

Bootstrap percentile intervals of accuracies are deliberately not here: with three seeds they cover 73 % where 95 % is
claimed. NaN is refused everywhere: it would pass through sums, sorts and moocore unseen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import moocore
import numpy as np
from scipy import special

LEVEL = 0.95


class Pooled(NamedTuple):
    """One standard deviation for several groups. sd: None where no group has two values. degrees: of freedom."""

    sd: float | None
    degrees: int


class Gain(NamedTuple):
    """A mean paired difference. half_width: of its 95 % t interval, None with one pair. pairs: how many.

    p: of the two-sided paired t test, None with one pair. wins: the share of pairs in which the first is better, ties
    counted half; it estimates P(A > B), the probability that a training by A beats one by B with the same seed. NaN
    where nothing was paired.
    """

    mean: float
    half_width: float | None
    pairs: int
    p: float | None = None
    wins: float = math.nan


def pooled_sd(groups: Iterable[Sequence[float]]) -> Pooled:
    """The standard deviation within groups, as if all had the same: sqrt(sum of squares / sum of (n - 1)).

    Raises:
        ValueError: a value is NaN or infinite.
    """
    squares, degrees = 0.0, 0
    for group in groups:
        values = _finite("values of a group", group)
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
    """Mean of values[seed] - baseline[seed] over the seeds that both have, with its plain t interval and test.

    The standard deviation is of these differences alone: differences of several recipes share the baseline's noise, so
    pooling them would claim more degrees of freedom than there are. None where no seed is shared. Differences that are
    all equal have an interval of width 0, and p = 0 (p = 1 where they are all 0).

    Raises:
        ValueError: a value that is paired is NaN or infinite.
    """
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    ours, theirs = (_finite("paired values", [of[seed] for seed in seeds]) for of in (values, baseline))
    differences = ours - theirs
    mean, n = float(differences.mean()), len(seeds)
    spread = pooled_sd([differences.tolist()])
    p: float | None = None
    if spread.sd is not None:
        t = math.inf if spread.sd == 0 and mean != 0 else abs(mean) / (spread.sd / math.sqrt(n) or 1.0)
        p = 2 * float(special.stdtr(spread.degrees, -t))
    wins = float(np.mean(np.sign(differences) / 2 + 0.5))
    return Gain(mean, half_width(spread, n, level), n, p, wins)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for being several (Holm 1979), in the order given.

    Rejecting what is below alpha after it makes one wrong rejection or more with probability alpha at most, however the
    tests depend on each other.

    Raises:
        ValueError: a p value is outside [0, 1], or NaN.
    """
    p = np.asarray(p_values, dtype=np.float64)
    wrong = p[~((p >= 0) & (p <= 1))]
    if len(wrong):
        raise ValueError(f"p values must lie in [0, 1], but got {wrong[0]}; leave tests that weren't made out")
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(steps)
    return [float(value) for value in adjusted]


def front_probability(
    means: np.ndarray, costs: np.ndarray, spread: Pooled, seeds: Sequence[int], draws: int = 2000, seed: int = 0
) -> np.ndarray:
    """P(front) of each of n recipes: how often it is non-dominated when all means are redrawn (parametric bootstrap).

    Args:
        means: [n], accuracies; higher is better.
        costs: [n] or [n, m], lower is better; taken as exact.
        spread: of one training. A mean over k seeds is redrawn from a normal distribution around it, with sd / sqrt(k).
        seeds: [n], how many each mean is of.
        draws: of all means together.
        seed: of the draws; the same gives the same probabilities.

    Raises:
        ValueError: the spread is unknown, a value isn't finite, the shapes don't fit, or draws or a seed count is < 1.
    """
    if spread.sd is None:
        raise ValueError("P(front) needs the spread over seeds, but no recipe has two: run it with seeds=2 or more")
    center, counts = _finite("means", means), np.asarray(seeds)
    price = _finite("costs", costs)
    price = price[:, None] if price.ndim == 1 else price
    if center.ndim != 1 or price.ndim != 2 or not len(center) == len(price) == len(counts):
        shapes = f"{list(center.shape)}, {list(np.shape(costs))} and {list(counts.shape)}"
        raise ValueError(f"means [n], costs [n] or [n, m] and seeds [n] must hold, but got {shapes}")
    if draws < 1 or (counts < 1).any():
        raise ValueError(f"draws >= 1 and seeds >= 1 must hold, but got draws={draws}, seeds={min(seeds, default=1)}")
    error = spread.sd / np.sqrt(counts)
    rng = np.random.default_rng(seed)
    on_front = np.zeros(len(center), dtype=np.int64)
    if price.shape[1] != 1:
        for _ in range(draws):
            worse = -rng.normal(center, error)
            points = np.column_stack([worse, price])
            on_front += np.asarray(moocore.is_nondominated(points, keep_weakly=True), dtype=np.bool_)
        return on_front / draws
    # One cost: in its order, a recipe stands if no cheaper one is as good, and none of its own cost is better.
    order = np.argsort(price[:, 0], kind="stable")
    ordered = price[order, 0]
    first = np.searchsorted(ordered, ordered, side="left")
    last = np.searchsorted(ordered, ordered, side="right") - 1
    for some in np.array_split(np.arange(draws), max(1, draws * len(center) // 1_000_000)):  # memory
        drawn = rng.normal(center[order], error[order], size=(len(some), len(center)))
        best = np.maximum.accumulate(drawn, axis=1)
        cheaper = np.column_stack([np.full(len(some), -np.inf), best])[:, first]
        on_front[order] += ((drawn >= best[:, last]) & (drawn > cheaper)).sum(axis=0)
    return on_front / draws


def bootstrap_interval(value: np.ndarray, drawn: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Low and high ends [k] of numbers in 0 to 1 from what they were when all means were redrawn.

    value: [k], as measured. drawn: [draws, k]. Noise moves such a number (the best of noisy means lies above the best
    of the true ones), and redrawing moves it once more, the same way: the interval is centred at value minus that
    shift, as wide as the t interval of the draws, and widened to hold the value itself.

    Raises:
        ValueError: fewer than two draws, or a value isn't finite.
    """
    value, drawn = _finite("values", value), _finite("draws", drawn)
    if len(drawn) < 2:
        raise ValueError(f"two draws at least must be there, but got {len(drawn)}")
    half = float(special.stdtrit(len(drawn) - 1, (1 + level) / 2)) * drawn.std(axis=0, ddof=1)
    centre = 2 * value - drawn.mean(axis=0)
    return np.clip(np.minimum(centre - half, value), 0, 1), np.clip(np.maximum(centre + half, value), 0, 1)


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


def _finite(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    """An array of the values.

    Raises:
        ValueError: one isn't finite.
    """
    array = np.asarray(values, dtype=np.float64)
    bad = ~np.isfinite(array)
    if bad.any():
        raise ValueError(
            f"{name} must be finite, but {int(bad.sum())} of {array.size} are not, such as {array[bad][0]}; leave "
            "failed trainings out"
        )
    return array
