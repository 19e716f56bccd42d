"""Everything together: methods and number of stages, anchor, weighting and lambda_base; sampled for trials=."""

from __future__ import annotations

from smskd.recipe import ANCHORS, WEIGHTINGS, Recipe
from spaces import Menu, Trial

MAX_STAGES = 4


def suggest(trial: Trial, menu: Menu) -> Recipe:
    """One recipe. Every parameter is drawn always, so that samplers see vectors of one length.

    Stages past `n_stages` are padding, and so are weighting and lambda_base without an anchor: its id ignores them.
    """
    count = trial.suggest_int("n_stages", 1, menu.max_stages)
    stages = [trial.suggest_categorical(f"stage_{k}", menu.methods) for k in range(1, menu.max_stages + 1)]
    anchor = trial.suggest_categorical("anchor", ANCHORS)
    weighting = trial.suggest_categorical("weighting", WEIGHTINGS)
    lambda_base = trial.suggest_float("lambda_base", 0.05, 2.0, log=True)
    return menu.recipe(">".join(stages[:count]), anchor=anchor, weighting=weighting, lambda_base=lambda_base)
