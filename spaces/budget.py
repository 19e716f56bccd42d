"""How a total of epochs is split over the stages of an order: its length, and the epochs of each stage, in tenths."""

from __future__ import annotations

from itertools import cycle, islice

from smskd.recipe import Recipe, split_total
from spaces import Menu, Trial

PARTS = 10


def suggest(trial: Trial, menu: Menu) -> Recipe:
    """The first stages of the methods in the order given, and the share of each, at one total.

    The total is epochs_total=, or what max_stages stages of the pair's epochs take.

    Raises:
        ValueError: there are more stages than parts to share out, or the total is too short for them.
    """
    if menu.max_stages > PARTS:
        raise ValueError(f"space=budget shares out {PARTS} parts, so max_stages <= {PARTS} must hold")
    count = trial.suggest_int("n_stages", 1, menu.max_stages)
    left, shares = PARTS, list[int]()
    for k in range(1, count):
        shares.append(trial.suggest_int(f"share_{k}", 1, left - (count - k)))
        left -= shares[-1]
    total = menu.epochs_total or menu.max_stages * menu.default("epochs")
    return split_total(menu.recipe(">".join(islice(cycle(menu.methods), count))), total, (*shares, left))
