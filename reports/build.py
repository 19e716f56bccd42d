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

from reports import card, figure_files, figures, gains, index, load, page, results, stages


def build(run: Path, formats: Sequence[str] = ()) -> Path:
    """Write report.html into the run folder, whole or not at all: one file that fetches nothing. Its path.

    Of one pair, tables.md, tables.tex and MODEL_CARD.md are written before it.

    stages.html comes beside it where stages.csv has something to show. formats: of figure_files.FORMATS, in which the
    figures are written into the folder `figures`.

    Raises:
        ValueError: the folder isn't a run, or one of its files is damaged or of another schema; or a format is unknown,
            or of a search of several pairs, whose figures are those of its pairs.
    """
    figure_files.check(formats)
    if load.is_several(run):
        if formats:
            raise ValueError(f"{run} holds a search of several pairs: give the folder of one, whose figures are wanted")
        contents = index.contents(results.read(run), load.info(run, several=True))
        return _write(run / "report.html", _render("index.html.j2", contents))
    read = load.run(run)
    by_stage = stages.read(run)
    gains.write(run, read)
    card.write(run, read)
    files: dict[str, str | None] = {path.name: None for path in run.iterdir() if path.name[0] != "." and path.is_file()}
    if "best.yaml" in files:
        files["best.yaml"] = (run / "best.yaml").read_text(encoding="utf-8", errors="replace")
    kept = stages.contents(by_stage, read)
    files.pop("stages.html", None)
    files |= {"stages.html": None} if kept else {}
    with _vega() as vega:
        contents = page.contents(read, files)
        html = _render("template.html.j2", contents, vega)
    if kept:
        _write(run / "stages.html", _render("stages.html.j2", kept))
    if formats and contents["best"]:
        figure_files.write(contents["data"], run / "figures", formats)
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
                f"run=FOLDER, and figures=[{','.join(figure_files.FORMATS)}] at will, are expected, "
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
