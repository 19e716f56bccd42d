"""What recipes are called: methods, anchoring, and the settings that differ within a run; and a recipe's YAML.

No setting is named here but those of the anchor: the others are what columns and run.json have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
import yaml

from reports.results import differing, setting_columns
from reports.text import MINUS, known

WEIGHTINGS = {"fixed": "fixed λ", "tcp": "TCP, top class", "tcp_true": "TCP, true class"}
# In the words for the anchoring.
_ANCHORING = ("anchor", "weighting", "lambda_base")
# Characters of settings behind a recipe's methods; the tables and the card have them all.
_LONGEST = 60
Row = Mapping[Any, Any]


def display(methods: str) -> str:
    """`kd>rkd` as kd → rkd."""
    return methods.replace(">", " → ")


def anchored(row: Row) -> bool:
    """Whether later stages of a row of results, or of a summary, feel an anchor: one of weight 0 is none."""
    return known(row["anchor"]) and row["anchor"] != "none" and bool(row["lambda_base"] > 0)


def anchoring(row: Row) -> str:
    """How the stages of a row of results, or of a summary, are anchored."""
    if int(row["n_stages"]) == 1:
        return "one stage, nothing to anchor"
    if not anchored(row):
        return "no anchor"
    return f"λ {row['lambda_base']:g}, {anchor_weight(row)}"


def anchor_weight(row: Row) -> str:
    """How an anchor is weighed, and what it is where it isn't the usual one."""
    weight = str(WEIGHTINGS.get(row["weighting"], row["weighting"]))
    return weight if row["anchor"] == "reference" else f"{weight}, {row['anchor']}"


def named(frame: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """A table of results, or its summary, with how each recipe is shown, in three columns more.

    settings: those that differ between the recipes of the run, idle ones left out. name: the methods with these, as
    far as they don't make it too long. anchoring: in words.

    results: the table of the whole run.
    """
    names = [name for name in differing(results) if name not in _ANCHORING]
    rows = frame.to_dict("records")
    settings = [settings_text({name: row[name] for name in names}) for row in rows]
    shown = [display(row["methods"]) + _short(text) for row, text in zip(rows, settings, strict=True)]
    return frame.assign(
        name=pd.Series(shown, index=frame.index, dtype="str"),
        settings=pd.Series(settings, index=frame.index, dtype="str"),
        anchoring=pd.Series([anchoring(row) for row in rows], index=frame.index, dtype="str"),
    )


def settings_text(values: Mapping[str, Any]) -> str:
    """Settings and their values, as in `learning rate 0.05, kd.temperature 2`; idle ones left out."""
    return ", ".join(_setting(name, value) for name, value in values.items() if known(value))


def alike(results: pd.DataFrame, info: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that all recipes of a run share and that aren't defaults: of the experiment, and of recipes.

    results: the table of the whole run. info: run.json.
    """
    differ = differing(results)
    there = [name for name in setting_columns(results) if name not in differ]
    found = {name: values[0] for name in there if (values := results[name].dropna().tolist())}
    given = {name: text for name, text in info["settings"].items() if name not in differ}
    several = {"teachers": most} if "teachers" not in differ and (most := results["teachers"].max()) > 1 else {}
    experiment = {name: value for name, value in info["experiment"].items() if name != "code"}  # told by itself
    return {**given, **experiment, **several, **found}


def own_code(info: Mapping[str, Any]) -> list[str]:
    """The files of a run that aren't this program's, each with its digest: `nets.py@3f2a...`."""
    return [str(stamp) for stamp in info["experiment"].get("code") or ()]


def code_words(info: Mapping[str, Any]) -> str:
    """What a command must say besides, so that these files run: ` code=[nets.py]`, or nothing."""
    files = [stamp.partition("@")[0] for stamp in own_code(info)]
    return f" code=[{','.join(files)}]" if files else ""


def recipe_yaml(recipe: str, experiment: Mapping[str, object], seed: int) -> str:
    """The YAML that `python -m smskd.train recipe=FILE` takes: a key a line.

    recipe: the whole line. experiment: its settings that aren't defaults, as run.json has them.
    """
    settings = {"recipe": recipe, **experiment, "seed": seed}
    return str(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=10**9))


def _setting(name: str, value: Any) -> str:
    shown = re.sub(r"^stage_(\d+)\.", r"stage \1 ", name).replace("_", " ")
    if name == "teachers":
        return f"{value} teacher" + ("" if value == 1 else "s")
    if isinstance(value, list):
        return f"{shown} {', '.join(map(str, value))}"
    if isinstance(value, bool):
        return f"{shown} {'yes' if value else 'no'}"
    return f"{shown} {f'{value:.4g}'.replace('-', MINUS) if isinstance(value, float) else value}"


def _short(settings: str) -> str:
    """The settings behind the methods, cut between two of them where they are too long."""
    if not settings:
        return ""
    if len(settings) > _LONGEST:
        kept = settings[: _LONGEST + 1].rpartition(", ")[0]
        settings = f"{kept}, …" if kept else f"{settings[:_LONGEST]}…"
    return f" · {settings}"
