"""The YAML of one recipe, as `python -m smskd.train recipe=FILE` accepts it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

COPIED = ("data_dir", "train_size", "image_size", "teacher", "teacher_epochs", "teacher_model", "student_model")
_PLAIN = re.compile(r"[A-Za-z_/][\w>+./-]*")
_NOT_TEXT = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


def recipe_yaml(recipe: Mapping[str, object], config: Mapping[str, object], seed: int) -> str:
    """The recipe of one row of results, or of a summary, with the settings that its run's config had.

    Strings that YAML could take for something else are quoted as JSON, which YAML contains.
    """
    keys = ("recipe", "anchor", "weighting", "lambda_base", "teachers", "pair")
    total = config.get("epochs_total")
    length = {"epochs": recipe["epochs"]} if total is None else {"epochs_total": total}
    settings = {key: recipe[key] for key in keys} | {"data": config.get("data"), **length, "seed": seed}
    settings |= {key: config.get(key) for key in COPIED}
    return "".join(f"{key}: {_scalar(value)}\n" for key, value in settings.items() if value is not None)


def _scalar(value: object) -> str:
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXT
        return value if plain else json.dumps(value)
    if isinstance(value, bool):
        return json.dumps(value)
    return f"{value:d}" if isinstance(value, int) else f"{value}"
