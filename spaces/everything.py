"""Everything together: methods and number of stages, anchor, weighting and lambda_base; sampled for trials=."""

from __future__ import annotations

from smskd.recipe import ANCHORS, WEIGHTINGS, Recipe
from spaces import Menu, Trial

MAX_STAGES = 4


def suggest(trial: Trial, menu: Menu) -> Recipe:
    """One recipe; what has no effect in it isn't drawn."""
    count = trial.suggest_int("n_stages", 1, menu.max_stages)
    stages = ">".join(trial.suggest_categorical(f"stage_{k}", menu.methods) for k in range(1, count + 1))
    if count == 1:
        return menu.recipe(stages)
    anchor = trial.suggest_categorical("anchor", ANCHORS)
    if anchor == "none":
        return menu.recipe(stages, anchor=anchor)
    lambda_base = trial.suggest_float("lambda_base", 0.05, 2.0, log=True)
    weighting = trial.suggest_categorical("weighting", WEIGHTINGS)
    return menu.recipe(stages, anchor=anchor, lambda_base=lambda_base, weighting=weighting)
