"""How much each method counts: weights from 1/30 to 30 times the published, temperatures, learning rate; one order."""

from __future__ import annotations

from smskd.methods import declaration
from smskd.recipe import Recipe
from spaces import Menu, Trial

FACTOR = 30.0
TEMPERATURES = (0.25, 4.0)  # of the published
RATES = (0.1, 3.0)  # of the pair's


def suggest(trial: Trial, menu: Menu) -> Recipe:
    """All max_stages stages of the methods in the order given, each weight by its logarithm; around the pair's values.

    Raises:
        ValueError: max_stages is more than there are methods.
    """
    if menu.max_stages > len(menu.methods):
        raise ValueError(
            f"space=weights has a stage for each method, so max_stages <= {len(menu.methods)} must hold, "
            f"but got {menu.max_stages}"
        )
    recipe = menu.recipe(">".join(menu.methods[: menu.max_stages]))
    for name in dict.fromkeys(method for stage in recipe.stages for method in stage.distils):
        for own, (low, high) in (("weight", (1 / FACTOR, FACTOR)), ("temperature", TEMPERATURES)):
            key = f"{name}.{own}"
            if own in declaration(name).settings and not recipe.says(key) and key not in menu.taken:
                usual = menu.default(key)
                recipe = recipe.with_setting(key, trial.suggest_float(key, low * usual, high * usual, log=True))
    if "learning_rate" not in menu.taken:
        low, high = (share * menu.default("learning_rate") for share in RATES)
        recipe = recipe.with_setting("learning_rate", trial.suggest_float("learning_rate", low, high, log=True))
    return recipe
