"""`python -m reports.build run=FOLDER`: report.html, the tables and the model card again, from a run's files alone."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from reports import card, figures, gains, page, results, several, stages
from reports.front import COSTS

SCHEMA = 1
# The objects that a run.json must have: of one pair, of several.
_ONE = ("config", "teacher", "student", "dataset", "confirm", "machine")
_SEVERAL = ("config", "pairs", "machine")


def build(run: Path) -> Path:
    """Write report.html into the run folder, whole or not at all: one file that fetches nothing. Its path.

    Of one pair, tables.md, tables.tex and MODEL_CARD.md are written before it.

    Raises:
        ValueError: the folder isn't a run, or one of its files is damaged or of another schema.
    """
    if several.is_several(run):
        return _render(
            run,
            "index.html.j2",
            several.contents(results.read(run), _read(run, _SEVERAL))
            | {"palette": figures.PALETTE, "font": figures.FONT},
        )
    table = results.read(run)
    info = read_info(run)
    gains.write(run, table, info)
    card.write(run, table, info)
    files: dict[str, str | None] = {path.name: None for path in run.iterdir() if path.name[0] != "." and path.is_file()}
    if "best.yaml" in files:
        files["best.yaml"] = (run / "best.yaml").read_text(encoding="utf-8", errors="replace")
    return _render(run, "template.html.j2", page.contents(table, info, files, stages.read(run)))


def _render(run: Path, name: str, contents: Mapping[str, Any]) -> Path:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["script_json"] = script_json
    template = environment.get_template(name)
    # Vega is the bulk of the page: left out where there is nothing to draw.
    vega = _vega() if contents["best"] else ""
    html = template.render(contents, vega=vega)
    path = run / "report.html"
    results.write_atomically(path, html.encode("utf-8", errors="replace"))
    return path


def read_info(run: Path) -> dict[str, Any]:
    """The contents of run.json, of a search of one pair.

    Raises:
        ValueError: it is missing, damaged, of another schema, of several pairs, or has no config with a known cost.
    """
    if several.is_several(run):
        raise ValueError(f"{run} holds a search of several pairs: give the folder of one, which is in it")
    return _read(run, _ONE)


def _read(run: Path, parts: Sequence[str]) -> dict[str, Any]:
    path = run / "run.json"
    again = "run the same search command again: it writes the file anew"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise ValueError(f"a run folder holds run.json, but {run} doesn't; {again}") from cause
    except (OSError, ValueError) as cause:
        raise ValueError(f"{path} is damaged or half-written ({cause}); {again}") from cause
    if not isinstance(info, dict) or info.get("schema") != SCHEMA:
        found = info.get("schema") if isinstance(info, dict) else type(info).__name__
        raise ValueError(f"{path} has schema {found!r}, but this program reads {SCHEMA}; {again}")
    for key in parts:
        if not isinstance(info.get(key), dict):
            raise ValueError(f"{key} in {path} must be an object, but is {info.get(key)!r}; {again}")
    if info["config"].get("cost") not in COSTS:
        raise ValueError(
            f"cost in {path} must be one of {', '.join(COSTS)}, but is {info['config'].get('cost')!r}; {again}"
        )
    return info


def script_json(value: Mapping[str, object]) -> Markup:
    """JSON that is safe inside a <script> element: no character of it can end the element or begin a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


@functools.cache
def _vega() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as a script that sets window.vegaEmbed; made in a second, once a process."""
    return Markup(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script"))


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code: 0 done, 2 bad input."""
    try:
        if len(argv) != 1 or not argv[0].startswith("run=") or argv[0] == "run=":
            raise ValueError(f"one argument run=FOLDER is expected, but got {' '.join(argv) or 'none'}")
        path = build(Path(argv[0].removeprefix("run=")))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
