"""`python -m reports.build run=FOLDER`: the page, the tables and the model card again, from a run's files alone.

`figures=[png,svg,pdf]` writes the page's figures into FOLDER/figures too.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from reports import card, export, figures, gains, page, results, several, stages
from reports.front import COSTS, LIMITS

SCHEMA = 1
# The objects that a run.json must have: of one pair, of several.
_ONE = ("config", "teacher", "student", "dataset", "confirm", "machine")
_SEVERAL = ("config", "pairs", "machine")
_AGAIN = "run the same search command again: it writes the file anew"


def build(run: Path, formats: Sequence[str] = ()) -> Path:
    """Write report.html into the run folder, whole or not at all: one file that fetches nothing. Its path.

    Of one pair, tables.md, tables.tex and MODEL_CARD.md are written before it.

    stages.html comes beside it where stages.csv has something to show. formats: of export.FORMATS, in which the figures
    are written into the folder `figures`.

    Raises:
        ValueError: the folder isn't a run, or one of its files is damaged or of another schema; or a format is unknown,
            or of a search of several pairs, whose figures are those of its pairs.
    """
    export.check(formats)
    if several.is_several(run):
        if formats:
            raise ValueError(f"{run} holds a search of several pairs: give the folder of one, whose figures are wanted")
        contents = several.contents(results.read(run), _read(run, _SEVERAL))
        return _write(run / "report.html", _render("index.html.j2", contents))
    table = results.read(run)
    info = read_info(run)
    by_stage = stages.read(run)
    gains.write(run, table, info)
    card.write(run, table, info)
    files: dict[str, str | None] = {path.name: None for path in run.iterdir() if path.name[0] != "." and path.is_file()}
    if "best.yaml" in files:
        files["best.yaml"] = (run / "best.yaml").read_text(encoding="utf-8", errors="replace")
    kept = stages.contents(by_stage, table, info)
    files.pop("stages.html", None)
    files |= {"stages.html": None} if kept else {}
    with _vega() as vega:
        contents = page.contents(table, info, files)
        html = _render("template.html.j2", contents, vega)
    if kept:
        _write(run / "stages.html", _render("stages.html.j2", kept))
    if formats and contents["best"]:
        export.write(contents["data"], run / "figures", formats)
    return _write(run / "report.html", html)


def _render(name: str, contents: Mapping[str, Any], vega: Callable[[], Markup] = Markup) -> str:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["script_json"] = script_json
    # Vega is the bulk of the page: left out where there is nothing to draw.
    made = vega() if contents["best"] else Markup()
    look = {"palette": figures.PALETTE, "font": figures.FONT}
    return environment.get_template(name).render(contents, vega=made, **look)


def _write(path: Path, html: str) -> Path:
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
    try:
        info = results.read_json(path)
    except FileNotFoundError as cause:
        raise ValueError(f"a run folder holds run.json, but {run} doesn't; {_AGAIN}") from cause
    except (OSError, ValueError) as cause:
        raise ValueError(f"{path} is damaged or half-written ({cause}); {_AGAIN}") from cause
    if not isinstance(info, dict) or info.get("schema") != SCHEMA:
        found = info.get("schema") if isinstance(info, dict) else type(info).__name__
        raise ValueError(f"{path} has schema {found!r}, but this program reads {SCHEMA}; {_AGAIN}")
    for key in parts:
        if not isinstance(info.get(key), dict):
            raise ValueError(f"{key} in {path} must be an object, but is {info.get(key)!r}; {_AGAIN}")
    for wrong in _wrong(info):
        raise ValueError(f"{wrong} in {path}; {_AGAIN}")
    return info


def _wrong(info: Mapping[str, Any]) -> Iterator[str]:
    """What the page would stumble over: first what the costs are, then types that only damage can bring."""
    cost = info["config"].get("cost")
    known = ", ".join(COSTS)
    if not isinstance(cost, str) or set(cost.split(",")) - set(COSTS):
        yield f"cost must be one of {known}, or two with a comma, but is {cost!r}"
    chosen = info.get("objectives", ["error", *cost.split(",")])
    if not _texts(chosen) or chosen[:1] != ["error"] or not chosen[1:] or set(chosen[1:]) - set(COSTS):
        yield f"objectives must be error and some of {known}, but are {chosen!r}"
    limits = info.get("limits", {})
    if not isinstance(limits, dict) or set(limits) - set(LIMITS) or not all(map(_number_or_none, limits.values())):
        yield f"limits must be numbers for some of {', '.join(LIMITS)}, but are {limits!r}"
    box = info.get("box")
    if box is not None:
        ends = [box.get(key) for key in ("error", "cost")] if isinstance(box, dict) else []
        good = len(ends) == 2 and all(isinstance(e, list) and len(e) == 2 and all(map(_number, e)) for e in ends)
        if not good or box.get("cost_name") not in list(COSTS):
            yield f"box must have error and cost, two numbers each, and a cost_name of {known}, but is {box!r}"
    for section, key, kind in (
        *(("dataset", size, int) for size in ("train", "validation", "test")),
        *(("teacher", "val_accuracy", float), ("confirm", "seeds", list), ("machine", "gpus", list)),
    ):
        value = info[section].get(key) if isinstance(info.get(section), dict) else None
        if value is not None and not isinstance(value, kind):
            yield f"{key} of {section} must be of type {kind.__name__}, but is {value!r}"
    front, begun = info.get("front"), info["config"].get("warm_start")
    if front is not None and not _texts(front):
        yield f"front must be a list of ids, but is {front!r}"
    if not isinstance(begun, str | None) and not _texts(begun):
        yield f"warm_start must be a list of names, but is {begun!r}"
    for key, kinds in (("versions", dict), ("recipes", int), ("seconds", (int, float))):
        value = info.get(key)
        if value is not None and not isinstance(value, kinds):
            yield f"{key} must not be {value!r}"


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number_or_none(value: object) -> bool:
    return value is None or _number(value)


def script_json(value: Mapping[str, object]) -> Markup:
    """JSON that is safe inside a <script> element: no character of it can end the element or begin a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


@contextlib.contextmanager
def _vega() -> Iterator[Callable[[], Markup]]:
    """Vega, Vega-Lite and Vega-Embed as a script that sets window.vegaEmbed.

    Made once a process, in a second, by a process beside this one: vl_convert would hold up all threads of this one.
    """
    if _bundles:
        yield lambda: _bundles[0]
        return
    code = "import sys, vl_convert as v; sys.stdout.write(v.javascript_bundle('window.vegaEmbed = vegaEmbed;'))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as made:

        def take() -> Markup:
            out, _ = made.communicate()
            if made.returncode:
                raise RuntimeError(f"vl_convert made no bundle of Vega: exit code {made.returncode}")
            _bundles.append(Markup(out.decode().replace("</script", "<\\/script")))
            return _bundles[0]

        try:
            yield functools.cache(take)
        finally:
            made.kill()


_bundles: list[Markup] = []


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code: 0 done, 2 bad input."""
    try:
        given = dict(word.split("=", 1) for word in argv if "=" in word)
        if len(given) != len(argv) or set(given) - {"run", "figures"} or not given.get("run"):
            raise ValueError(
                f"run=FOLDER, and figures=[{','.join(export.FORMATS)}] at will, are expected, "
                f"but got {' '.join(argv) or 'none'}"
            )
        formats = [name.strip() for name in given.get("figures", "").strip("[]").split(",") if name.strip()]
        path = build(Path(given["run"]), formats)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
