"""How many stages: 1 to max_stages of the methods in the order given, and of each method repeated."""

from __future__ import annotations

from itertools import cycle, islice

from smskd.recipe import Recipe
from spaces import Menu, Trial

MAX_STAGES = 4


def suggest(trial: Trial, menu: Menu) -> Recipe:
    """One sequence and its length. Repeats of one method are the control that tells staging from variety.

    The order of `methods=` is the best-known one; past its end it starts again.
    """
    sequence = trial.suggest_categorical("sequence", ["in order", *menu.methods])
    count = trial.suggest_int("n_stages", 1, menu.max_stages)
    stages = menu.methods if sequence == "in order" else (sequence,)
    return menu.recipe(">".join(islice(cycle(stages), count)))
