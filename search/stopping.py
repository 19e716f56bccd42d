"""When a recipe gives up its later stages: the decision alone, as a function of numbers. No Optuna, no Ray.

Optuna's pruners are for one objective. This rule is for several, and looks only where a stage ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def dominated_by(prefix: Sequence[float], finished: Mapping[str, Sequence[float]], margin: float) -> str | None:
    """The finished recipe that dominates a recipe's finished prefix beyond the margin; None if none does.

    That is one which costs no more than the prefix, in every cost, and whose error is lower by more than `margin`. The
    later stages would add to the cost and start from a student that is behind already, by more than they are thought to
    make up. Of several such recipes it is the one of the lowest error; ties go to the first.

    Args:
        prefix: error (a fraction, mean over seeds), then each cost, of the stages that are finished.
        finished: the same of each recipe that has finished, by id.
        margin: in the unit of the error, at least 0.

    Raises:
        ValueError: the margin is negative, or a recipe has another number of costs than the prefix.
    """
    if not margin >= 0:
        raise ValueError(f"margin >= 0 must hold, but got margin={margin}")
    error, *costs = prefix
    found: str | None = None
    lowest = error - margin
    for name, (other_error, *other_costs) in finished.items():
        if len(other_costs) != len(costs):
            raise ValueError(f"{name} has {len(other_costs)} costs, but the prefix has {len(costs)}")
        if other_error < lowest and all(theirs <= mine for theirs, mine in zip(other_costs, costs, strict=True)):
            found, lowest = name, other_error
    return found
