"""Which methods, in which order: all sequences without repeats, of 1 to max_stages stages (3 methods: 15 recipes)."""

from __future__ import annotations

from smskd.recipe import Recipe
from spaces import Menu, Trial


def suggest(trial: Trial, menu: Menu) -> Recipe:
    """One order: each stage is one of the methods that haven't had theirs."""
    count = trial.suggest_int("n_stages", 1, min(menu.max_stages, len(menu.methods)))
    left = list(menu.methods)
    order = []
    for k in range(1, count + 1):
        order.append(trial.suggest_categorical(f"stage_{k}", left))
        left.remove(order[-1])
    return menu.recipe(">".join(order))
