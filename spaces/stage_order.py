"""Which methods, in which order: all sequences without repeats, of 1 to max_stages stages (3 methods: 15 recipes)."""

from __future__ import annotations

from itertools import permutations

from smskd.recipe import Recipe
from spaces import Menu, Trial


def suggest(trial: Trial, menu: Menu) -> Recipe:
    """One order. It is a single choice, a string, since a choice of stage k can't exclude that of stage k - 1."""
    longest = min(menu.max_stages, len(menu.methods))
    orders = [">".join(order) for count in range(1, longest + 1) for order in permutations(menu.methods, count)]
    return menu.recipe(trial.suggest_categorical("order", orders))
