"""Every system of the method at one total budget: alone, joint, ensemble, in sequence with each anchor, controls."""

from __future__ import annotations

from itertools import permutations

from smskd.recipe import WEIGHTINGS, Recipe
from spaces import Menu, Trial

# Systems are compared at equal totals, and all of them are run again with fresh seeds.
COMPARISON = True


def suggest(trial: Trial, menu: Menu) -> Recipe:
    """One system. Where the others are sequential, the weighting is `tcp`, as in the published tables.

    Raises:
        ValueError: fewer than two methods: nothing could be joint, or in an order.
    """
    if len(menu.methods) < 2:
        raise ValueError(f"space=systems needs at least 2 methods, but got methods=[{','.join(menu.methods)}]")
    listed = systems(menu.methods)
    stages, settings = listed[trial.suggest_categorical("system", list(listed))]
    return menu.recipe(stages, **settings)


def systems(methods: tuple[str, ...]) -> dict[str, tuple[str, dict[str, str | float]]]:
    """Name -> stages and settings."""
    joint, sequence, first = "+".join(methods), ">".join(methods), methods[0]
    anchored: dict[str, str | float] = {"anchor": "reference", "weighting": "tcp"}
    found: dict[str, tuple[str, dict[str, str | float]]] = {"student alone": ("ce", {})}
    found |= {f"{method} alone": (method, {}) for method in methods}
    found["joint"] = joint, {}
    found["ensemble"] = joint, {"teachers": len(methods)}
    found["no anchor"] = sequence, {"anchor": "none"}
    found |= {f"{w} weights": (sequence, anchored | {"weighting": w}) for w in WEIGHTINGS}
    found["ewc"] = sequence, {"anchor": "ewc", "weighting": "fixed"}
    found |= {f"{k} stages": (">".join(methods[:k]), anchored) for k in range(2, len(methods))}
    found[f"{len(methods) + 1} stages"] = f"{sequence}>{first}", anchored
    orders = [">".join(order) for order in permutations(methods)][1:]  # the first is `tcp weights`
    found |= {f"order {order}": (order, anchored) for order in orders}
    found[f"{first} again and again"] = ">".join([first] * len(methods)), anchored
    found["joint again and again"] = ">".join([joint] * len(methods)), anchored
    return found
