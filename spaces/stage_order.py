"""Which methods, in which order: all sequences without repeats, of 1 to max_stages stages (3 methods: 15 recipes)."""

from __future__ import annotations

from smskd.recipe import Recipe
from spaces import Menu, Trial


def suggest(trial: Trial, menu: Menu) -> Recipe:
    """One order. Every parameter is drawn always, so that samplers see vectors of one length.

    A choice can't depend on those before it, so a method that has had its stage gives way to the next one in the list.
    """
    longest = min(menu.max_stages, len(menu.methods))
    count = trial.suggest_int("n_stages", 1, longest)
    order: list[str] = []
    for k in range(1, longest + 1):
        place = menu.methods.index(trial.suggest_categorical(f"stage_{k}", menu.methods))
        order.append(next(m for m in (*menu.methods[place:], *menu.methods[:place]) if m not in order))
    return menu.recipe(">".join(order[:count]))
