"""What mattered: the share of each objective's variance over recipes that each searched factor explains.

Plain analysis of variance where the recipes form a full grid, else fANOVA (Hutter, Hoos and Leyton-Brown 2014) by
Optuna's evaluator. Shares are of main effects: what is missing to 1 is how factors act together, and on the error the
noise of the seeds, which the bars show. PED-ANOVA, Optuna's default, is deliberately not used: it looks only at the top
tenth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reports.results import differing
from reports.statistics import bootstrap_interval
from reports.text import known

COUNT, ORDER = "stage count", "stage order"
# Settings are shown under the name of their column, but for this one.
_SHOWN = {"lambda_base": "λ_base"}
# From this ratio of the largest value to the smallest on, a factor goes by its logarithm.
_DECADE = 10
# Cells of a full grid at most: a recipe stands in those of all levels of a factor that is idle in it.
_CELLS = 10**5
# Optuna's forest is Python: about 10 ms a tree of this depth. More recipes, trees or draws don't change what is seen.
_FOREST_RECIPES, _TREES, _TREES_OF_A_DRAW, _DEPTH, _FOREST_DRAWS = 200, 12, 3, 5, 12


@dataclass(frozen=True, kw_only=True)
class Importance:
    """The share, 0 to 1, of an objective's variance that a factor explains.

    factor: `stage count`, `stage order` (which methods in which order, given the count), or a setting that differs
        between recipes, by the name of its column (`λ_base` for lambda_base).
    objective: `error`, or the column of a cost.
    low, high: 95 %, from redrawn means; None where the spread is unknown, and for costs.
    method: `ANOVA` or `fANOVA`. recipes: how many it was computed from; a forest takes 200 at most, drawn at random.
    """

    factor: str
    objective: str
    share: float
    low: float | None
    high: float | None
    method: str
    recipes: int


def importance(summary: pd.DataFrame, *, cost_columns: Sequence[str], draws: int = 400) -> list[Importance]:
    """Every factor that varies, for the error and each cost that varies; by objective, then in the order of factors.

    summary: a row per recipe of one pair, as reports.front.summarise makes it. draws: of the means of all recipes, for
    the bars; a forest makes at most 12. The same summary gives the same numbers.

    A factor that is idle in a recipe (lambda in one of a single stage) stands for each of its values there.

    Raises:
        ValueError: a cost is missing for a recipe.
    """
    for column in cost_columns:
        if summary[column].isna().any():
            raise ValueError(f"importance needs {column} of every recipe, but {summary[column].isna().sum()} lack it")
    table = _table(summary)
    factors = list(map(str, table))
    grid = _grid(table)
    rng = np.random.default_rng(0)
    if grid is None and len(summary) > _FOREST_RECIPES:
        chosen = np.sort(rng.choice(len(summary), _FOREST_RECIPES, replace=False))
        summary, table = summary.iloc[chosen], table.iloc[chosen]
    error = _redrawable_error(summary)
    out: list[Importance] = []
    for objective in ("error", *cost_columns):
        values = (1 - summary["val_accuracy"] if objective == "error" else summary[objective]).to_numpy(np.float64)
        if not factors or np.ptp(values) <= 1e-12 * np.abs(values).max():
            continue
        if grid is not None:
            shares = _anova(grid, factors, values[None])[0]
        else:
            shares = _forest(table, factors, values, rng, _TREES)
        low: list[float | None] = [None] * len(factors)
        high = low
        if objective == "error" and error is not None:
            if grid is not None:
                drawn = _anova(grid, factors, rng.normal(values, error, size=(draws, len(values))))
            else:
                redrawn = rng.normal(values, error, size=(min(draws, _FOREST_DRAWS), len(values)))
                drawn = np.array([_forest(table, factors, one, rng, _TREES_OF_A_DRAW) for one in redrawn])
            low, high = (ends.tolist() for ends in bootstrap_interval(shares, drawn))
        out += [
            Importance(
                factor=factor,
                objective=objective,
                share=float(shares[k]),
                low=low[k],
                high=high[k],
                method="fANOVA" if grid is None else "ANOVA",
                recipes=len(summary),
            )
            for k, factor in enumerate(factors)
        ]
    return out


def _table(summary: pd.DataFrame) -> pd.DataFrame:
    """The values of the factors that vary, a row per recipe; None where a factor is idle."""
    out: dict[str, Any] = {}
    if summary["n_stages"].nunique() > 1:
        out[COUNT] = summary["n_stages"].tolist()
    if summary.groupby("n_stages")["methods"].nunique().max() > 1:
        out[ORDER] = summary["methods"].tolist()
    for column in differing(summary):
        out[_SHOWN.get(column, column)] = [value if known(value) else None for value in summary[column].tolist()]
    return pd.DataFrame(out, index=summary.index, dtype=object)


def _redrawable_error(summary: pd.DataFrame) -> np.ndarray | None:
    """The standard error of each mean, from the recipes' standard deviations pooled; None where none has two seeds."""
    several = summary[summary["seeds"] > 1]
    degrees = several["seeds"].to_numpy(np.float64) - 1
    if not len(several):
        return None
    pooled = math.sqrt(float((degrees * several["val_sd"].to_numpy(np.float64) ** 2).sum()) / degrees.sum())
    error: np.ndarray = pooled / np.sqrt(summary["seeds"].to_numpy(np.float64))
    return error


def _grid(table: pd.DataFrame) -> pd.DataFrame | None:
    """The cells of a full grid, a row each: levels by factor, as numbers, and `row` of the table. None: it isn't one.

    A recipe stands in the cells of all levels of a factor that has no effect in it.
    """
    levels = {name: sorted(table[name].dropna().unique()) for name in table if name != COUNT}
    if ORDER not in levels and COUNT in table:
        levels[COUNT] = sorted(table[COUNT].unique())
    rows = [
        [of if value is None else [value] for value, of in zip(values, levels.values(), strict=True)]
        for values in table[list(levels)].itertuples(index=False)
    ]
    whole = math.prod(map(len, levels.values()))
    if whole > _CELLS or sum(math.prod(map(len, own)) for own in rows) != whole:
        return None
    cells = [(row, *cell) for row, own in enumerate(rows) for cell in itertools.product(*own)]
    if len({cell[1:] for cell in cells}) != whole:
        return None
    grid = pd.DataFrame(cells, columns=["row", *levels])
    if COUNT in table:
        grid[COUNT] = table[COUNT].to_numpy()[grid["row"]]
    return grid.assign(**{str(name): pd.factorize(grid[name])[0] for name in table})


def _anova(grid: pd.DataFrame, factors: Sequence[str], values: np.ndarray) -> np.ndarray:
    """Shares [draws, factors] of the variance over the grid's cells, of values [draws, recipes]."""
    cells = values[:, grid["row"].to_numpy()]
    cells = cells - cells.mean(axis=1, keepdims=True)
    whole = (cells**2).sum(axis=1)

    def between(factor: str) -> np.ndarray:
        member = np.eye(int(grid[factor].max()) + 1)[grid[factor].to_numpy()]
        size = member.sum(axis=0)
        squares: np.ndarray = ((cells @ member) ** 2 / size).sum(axis=1)
        return squares

    found = {factor: between(factor) for factor in factors}
    if COUNT in found and ORDER in found:  # an order has one count, so what counts explain is within it
        found[ORDER] = found[ORDER] - found[COUNT]
    shares: np.ndarray = np.column_stack([found[factor] for factor in factors]) / whole[:, None]
    clipped: np.ndarray = np.clip(shares, 0, 1)
    return clipped


def _forest(
    table: pd.DataFrame, factors: Sequence[str], values: np.ndarray, rng: np.random.Generator, trees: int
) -> np.ndarray:
    """Shares [factors] by fANOVA, of values [recipes].

    What is idle in a recipe is drawn from the values of the others, so that it can't tell the forest anything; stages
    past the last likewise.
    """
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    columns: dict[str, tuple[str, Sequence[Any]]] = {}
    for factor in factors:
        if factor == ORDER:
            stages = [methods.split(">") for methods in table[ORDER]]
            for k in range(max(map(len, stages))):
                columns[f"{ORDER} {k}"] = ORDER, [own[k] if k < len(own) else None for own in stages]
        else:
            columns[factor] = factor, table[factor].tolist()
    params: dict[str, list[Any]] = {}
    distributions: dict[str, BaseDistribution] = {}
    for name, (_, found) in columns.items():
        there = [value for value in found if value is not None]
        filled = [there[rng.integers(len(there))] if value is None else value for value in found]
        if isinstance(there[0], str | bool):
            distributions[name] = CategoricalDistribution(sorted(set(there)))
        else:
            logs = min(there) > 0 and max(there) >= _DECADE * min(there)
            filled = [math.log(value) if logs else float(value) for value in filled]
            distributions[name] = FloatDistribution(min(filled), max(filled))
        params[name] = filled
    trials = [
        optuna.trial.create_trial(
            params={name: filled[i] for name, filled in params.items()}, distributions=distributions, value=float(value)
        )
        for i, value in enumerate(values)
    ]
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(level)
    study.add_trials(trials)
    evaluator = optuna.importance.FanovaImportanceEvaluator(
        n_trees=trees, max_depth=_DEPTH, seed=int(rng.integers(2**31))
    )
    try:
        found_shares = evaluator.evaluate(study)
    except RuntimeError:  # of values that are all alike in every tree, nothing is a share
        return np.zeros(len(factors))
    return np.array(
        [min(1.0, sum(found_shares[name] for name, (of, _) in columns.items() if of == factor)) for factor in factors]
    )
