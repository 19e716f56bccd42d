"""The page's figures as PNG, SVG and PDF, for papers: the same declarations, in the light theme's colours."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert

from reports import figures
from reports.results import write_atomically

# Points of the page's pixels: PNG at three times the page's resolution.
_FORMATS: dict[str, Callable[[str], bytes]] = {
    "png": lambda spec: vl_convert.vegalite_to_png(spec, scale=3),
    "svg": lambda spec: vl_convert.vegalite_to_svg(spec).encode(),
    "pdf": lambda spec: vl_convert.vegalite_to_pdf(spec),
}
FORMATS = tuple(_FORMATS)
# What vl_convert always has; a page's reader has fonts of their own.
_FONT = "Liberation Sans, Arial, sans-serif"
_WIDTHS = {"accuracy": 560, "gains": 420, "hypervolume": 420, "importance": 420}


def check(formats: Sequence[str]) -> None:
    """Raises ValueError if a format is unknown."""
    for name in formats:
        if name not in _FORMATS:
            raise ValueError(f"figures are written as {', '.join(FORMATS)}, but {name!r} was asked for")


def write(data: Mapping[str, Any], folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write each figure in each format, whole or not at all. data: of page.contents. Returns the paths."""
    check(formats)
    folder.mkdir(exist_ok=True)
    named = {}
    for name, figure in data["figures"].items():
        if "layer" in figure:
            named[name] = figure
        else:  # by cost: a figure a panel
            named |= {f"accuracy-{panel}-{name}": spec for panel, spec in figure.items()}
    rows = {
        "recipes": rows_of(data["columns"]),
        "hypervolume": rows_of(data["hypervolume"]),
        **{name: data[name] for name in ("lines", "gains", "importance")},
    }
    paths = []
    for name, figure in named.items():
        spec = _alone(figure, rows, _WIDTHS[name.partition("-")[0]], data["pinned"])
        for suffix in formats:
            paths.append(folder / f"{name}.{suffix}")
            write_atomically(paths[-1], _FORMATS[suffix](spec))
    return paths


def rows_of(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Columns of equal length as rows."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _alone(figure: Mapping[str, Any], rows: Mapping[str, Any], width: int, pinned: str) -> str:
    """The figure with its data and real colours, as JSON."""
    spec = {**figure, "width": width, "background": "white", "config": figure["config"] | {"font": _FONT}}
    text = re.sub(r"var\(--([\w-]+)\)", lambda found: figures.PALETTE["light"][found[1]], json.dumps(spec))
    # The data come after the colours, so that no recipe's name is taken for one.
    whole: dict[str, Any] = json.loads(text)
    whole["datasets"] = whole.get("datasets", {}) | rows
    whole["params"] = [{"name": "pinned", "value": pinned}, {"name": "lit", "value": ""}]
    return json.dumps(whole)
