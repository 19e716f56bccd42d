"""The figures of the report, declared in Altair (Vega-Lite). Data come by name when a figure is shown, not from here.

Colours are CSS variables, so that one figure follows the page's theme, and print, without being drawn again; `PALETTE`
gives their values. Shape is the weighting, the blue ramp the number of stages, vermilion the front. Legends are for
figures that stand alone; the page has its own, and takes these off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

PALETTE = {
    "light": {
        **{"page": "#ffffff", "raised": "#f6f7f9", "text": "#16181d", "muted": "#5b6472", "line": "#e2e5ea"},
        **{"grid": "#e9ebef", "front": "#c4500c", "gain": "#00785a", "badge-text": "#ffffff"},
        **{"stage-1": "#a3cbf0", "stage-2": "#5a9fdc", "stage-3": "#1f66b5", "stage-4": "#0b2f66"},
        **{"on-1": "#16181d", "on-2": "#16181d", "on-3": "#ffffff", "on-4": "#ffffff"},
    },
    "dark": {
        **{"page": "#14171c", "raised": "#1c2027", "text": "#eceff4", "muted": "#a0a8b5", "line": "#2e343e"},
        **{"grid": "#282d36", "front": "#ff9d52", "gain": "#4fd1a5", "badge-text": "#14171c"},
        **{"stage-1": "#38628f", "stage-2": "#4f97d9", "stage-3": "#93c5f5", "stage-4": "#e6f2ff"},
        **{"on-1": "#ffffff", "on-2": "#14171c", "on-3": "#14171c", "on-4": "#14171c"},
    },
}
STAGES = ["1", "2", "3", "4+"]
SHAPES = {"none": "square", "fixed": "circle", "tcp": "triangle-up", "tcp_true": "diamond"}
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One cost axis. field: of the data. low, high: its ends. ticks: values to be labelled."""

    field: str
    title: str
    low: float
    high: float
    ticks: Sequence[float]
    log: bool


def cost_axis(field: str, title: str, values: Sequence[float]) -> Axis:
    """A logarithmic axis that holds all values with room at both ends; linear where a value isn't above 0."""
    least, most = min(values), max(values)
    if least <= 0:
        pad = (most - least) * 0.08 or 1.0
        return Axis(field=field, title=title, low=least - pad, high=most + pad, ticks=[], log=False)
    pad = max((most / least) ** 0.08, 1.08)
    low, high = least / pad, most * pad
    return Axis(field=field, title=title, low=low, high=high, ticks=log_ticks(low, high), log=True)


def log_ticks(low: float, high: float) -> list[float]:
    """Between three and about eight round values from low to high, as evenly spread on a log axis as may be."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ([1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 7], [n / 10 for n in range(10, 100)]):
        ticks = [float(f"{step * 10.0**decade:.6g}") for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            return ticks[:: math.ceil(len(ticks) / 8)]
    return ticks


def accuracy(*, panel: str, axis: Axis, low: float, high: float, teacher: float | None, recipes: int) -> dict[str, Any]:
    """Accuracy (%) against cost: one mark a recipe, front members larger and lettered, the front as a step line.

    panel: `validation` or `test`. low, high: ends of the accuracy axis; what is below is drawn at its edge. recipes:
    how many there are: of many, each mark is smaller. What is over a limit is hollow and grey.
    Datasets by name: `recipes` (id, letter, label, detail, stage, shape, baseline, feasible; the axis' field; per
    panel P: P, P_drawn, P_below, P_low, P_high) and `lines` (axis, panel, order, cost, accuracy).
    """
    y_scale = alt.Scale(domain=[low, high], nice=False, zero=False)
    y_title = f"{panel} accuracy, % →"

    def x(field: str = axis.field) -> alt.X:
        return _x(axis, field)

    def y(field: str = f"{panel}_drawn") -> alt.Y:
        return alt.Y(f"{field}:Q", scale=y_scale, axis=alt.Axis(tickCount=6), title=y_title)

    def ramp(name: str) -> alt.Scale:
        return alt.Scale(domain=STAGES, range=[f"var(--{name}-{i})" for i in range(1, 5)])

    shapes = alt.Scale(domain=list(SHAPES), range=list(SHAPES.values()))
    data = alt.Chart(alt.NamedData(name="recipes")).transform_filter(f"isValid(datum.{panel})")
    line = alt.Chart(alt.NamedData(name="lines")).encode(x("cost"), y("accuracy"), order="order:Q")
    line = line.transform_filter(f"datum.panel === '{panel}' && datum.axis === '{axis.field}'")
    points = data.encode(
        x(),
        y(),
        color=alt.Color("stage:N", scale=ramp("stage"), legend=None),
        shape=alt.Shape("shape:N", scale=shapes, legend=None),
        description=alt.Description("label:N"),
        tooltip=["label:N", "detail:N"],
    )
    small = 46 if recipes <= 200 else 18
    dense = 0.8 if recipes <= 200 else 0.45
    # A triangle needs more area to hold a letter, and the letter sits at its centre of mass, not of its height.
    sizes = alt.condition("datum.shape === 'tcp'", alt.value(470), alt.value(300))
    rings = alt.condition(
        "datum.shape === 'tcp'",
        alt.value(alt.ExprRef("datum.letter ? 720 : 190")),
        alt.value(alt.ExprRef("datum.letter ? 470 : 150")),
    )
    layers: list[Any] = [
        line.mark_line(
            interpolate="step-after",
            stroke="var(--front)",
            strokeWidth=1.7,
            strokeDash=[4, 3] if panel == "validation" else [1, 0],
        )
    ]
    if teacher is not None:
        at = alt.Chart(alt.InlineData(values=[{"accuracy": teacher}])).encode(y("accuracy"))
        note = f"teacher, {teacher:.2f} %"
        layers += [
            at.mark_rule(stroke="var(--muted)", strokeDash=[2, 3]),
            at.mark_text(text=note, align="left", dy=-7, color="var(--muted)", fontSize=11).encode(x=alt.value(5)),
        ]
    grey = points.transform_filter("!datum.feasible").encode(color=alt.value("var(--muted)"))
    layers += [
        grey.transform_filter(f"!datum.{panel}_below").mark_point(
            filled=False, size=small, strokeWidth=1, opacity=0.6, cursor="pointer"
        ),
        grey.transform_filter(f"datum.{panel}_below")
        .mark_point(filled=False, size=small, strokeWidth=1, opacity=0.6, cursor="pointer", yOffset=-5)
        .encode(shape=alt.value("triangle-down")),
        points.transform_filter(f"datum.feasible && !datum.letter && !datum.{panel}_below").mark_point(
            filled=True, size=small, opacity=dense, cursor="pointer"
        ),
        points.transform_filter(f"datum.feasible && !datum.letter && datum.{panel}_below")
        .mark_point(filled=True, size=small, opacity=dense, cursor="pointer", yOffset=-5)
        .encode(shape=alt.value("triangle-down")),
        data.mark_rule(stroke="var(--text)", opacity=0.8, clip=True).encode(
            x(), y(f"{panel}_low"), alt.Y2(f"{panel}_high")
        ),
        points.transform_filter("datum.letter")
        .mark_point(filled=True, opacity=1, stroke="var(--page)", strokeWidth=1, cursor="pointer")
        .encode(
            size=sizes,
            color=alt.Color("stage:N", scale=ramp("stage"), legend=alt.Legend(title="stages")),
            shape=alt.Shape("shape:N", scale=shapes, legend=alt.Legend(title="anchor weight", labelExpr=_SHAPE_NAMES)),
        ),
        points.transform_filter(_RINGED)
        .mark_point(filled=False, strokeWidth=2.5, opacity=1)
        .encode(color=alt.value("var(--front)"), size=rings),
        *(
            data.transform_filter(f"datum.letter && (datum.shape === 'tcp') === {tall}")
            .mark_text(fontSize=10, fontWeight="bold", dy=3.5 if tall == "true" else 0.5, tooltip=None)
            .encode(x(), y(), text="letter:N", color=alt.Color("stage:N", scale=ramp("on"), legend=None))
            for tall in ("true", "false")
        ),
        data.transform_filter("datum.baseline")
        .mark_text(align="left", dx=13, dy=9, fontSize=11, color="var(--muted)")
        .encode(x(), y(), text="baseline:N"),
    ]
    chart = alt.layer(*layers).resolve_scale(color="independent", shape="independent")
    text = f"Accuracy on the {panel} split against cost, a mark a recipe; the tables hold the same numbers"
    return _finish(chart.properties(width="container", height=330, description=text))


def on_axis(spec: Any, old: Axis, new: Axis) -> Any:
    """A figure of `accuracy` on another cost axis. Declared anew it would be the same, ten times slower."""
    if isinstance(spec, list):
        return [on_axis(each, old, new) for each in spec]
    if not isinstance(spec, dict):
        return (
            spec.replace(f"datum.axis === '{old.field}'", f"datum.axis === '{new.field}'")
            if isinstance(spec, str)
            else spec
        )
    out = {key: on_axis(each, old, new) for key, each in spec.items()}
    if isinstance(spec.get("x"), dict) and "scale" in spec["x"]:
        field = spec["x"]["field"]
        out["x"] = _x(new, new.field if field == old.field else field).to_dict()
    return out


def _x(axis: Axis, field: str) -> alt.X:
    ends = [axis.low, axis.high]
    scale = alt.Scale(type="log", domain=ends) if axis.log else alt.Scale(domain=ends, nice=False, zero=False)
    marks = alt.Axis(values=list(axis.ticks), format=",~g") if axis.log else alt.Axis(format=",~g")
    title = f"← {axis.title}" + (" (log scale)" if axis.log else "")
    return alt.X(f"{field}:Q", scale=scale, axis=marks, title=title)


def gains(
    *, rows: int, splits: Sequence[str], low: float, high: float, baseline: str, indifference: float
) -> dict[str, Any]:
    """Gain over the baseline in points, a line a recipe and split: test filled, validation hollow.

    low, high: ends of the axis. indifference: half the width of the grey band around 0. Dataset by name: `gains` (id,
    letter, label, split, gain, low, high, text; verdict is above, unclear or below).
    """

    def x(field: str = "gain") -> alt.X:
        axis = alt.Axis(format="+~g", tickCount=6, labelExpr="datum.value === 0 ? '0' : datum.label")
        scale = alt.Scale(domain=[low, high], nice=True)
        return alt.X(f"{field}:Q", title=f"accuracy minus {baseline}, points", axis=axis, scale=scale)

    colours = alt.Scale(domain=["above", "unclear", "below"], range=["var(--gain)", "var(--muted)", "var(--front)"])
    points = alt.Chart(alt.NamedData(name="gains")).encode(
        x(),
        alt.Y("letter:N", sort=None, title=None, axis=alt.Axis(grid=False, labelFontWeight="bold", labelFontSize=12)),
        alt.YOffset("split:N", scale=alt.Scale(domain=list(splits), paddingOuter=0.6)),
        alt.Color("verdict:N", scale=colours, legend=None),
        description=alt.Description("text:N"),
        tooltip=["label:N", alt.Tooltip("text:N", title="detail")],
    )
    ends = {"low": -indifference, "high": indifference, "gain": 0}
    around = alt.Chart(alt.InlineData(values=[ends]))
    bars = points.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2)
    layers = [
        around.mark_rect(fill="var(--grid)", opacity=1, clip=True).encode(x("low"), alt.X2("high")),
        around.mark_rule(stroke="var(--muted)").encode(x()),
        bars.encode(x("low"), alt.X2("high")),
        points.transform_filter("datum.split === 'test'").mark_point(filled=True, size=80, opacity=1, cursor="pointer"),
        points.transform_filter("datum.split === 'validation'").mark_point(
            fill="var(--page)", size=70, opacity=1, strokeWidth=2, cursor="pointer"
        ),
        points.transform_filter(_RINGED)
        .mark_point(filled=False, size=200, strokeWidth=2, opacity=1)
        .encode(color=alt.value("var(--front)")),
    ]
    text = f"Gain of each front member over {baseline} with its 95 % interval; the table of gains holds the numbers"
    height = max(_HEIGHT, 15 * len(splits) * rows)
    return _finish(alt.layer(*layers).properties(width="container", height=height, description=text))


def hypervolume(*, unit: str, low: float, high: float, band: bool) -> dict[str, Any]:
    """The share of the box that the front dominates, over what the search has spent, with its 95 % band.

    low, high: ends of the share's axis. band: whether it is known. Dataset by name: `hypervolume` (spent, hypervolume,
    low, high, marked, label, text).
    """
    scale = alt.Scale(domain=[low, high], nice=True, zero=False)

    def y(field: str = "hypervolume") -> alt.Y:
        return alt.Y(f"{field}:Q", title="share of the box →", axis=alt.Axis(tickCount=5, format=".2~f"), scale=scale)

    x = alt.X("spent:Q", title=f"{unit} spent →", axis=alt.Axis(tickCount=5, format=",.6~g"))
    steps = alt.Chart(alt.NamedData(name="hypervolume")).encode(x)
    layers: list[Any] = [
        steps.mark_area(interpolate="step-after", fill="var(--stage-3)", opacity=0.22).encode(y("low"), alt.Y2("high"))
    ] * band
    layers += [
        steps.mark_line(interpolate="step-after", stroke="var(--stage-3)", strokeWidth=2).encode(y()),
        steps.transform_filter("datum.marked")
        .mark_point(filled=True, size=26, opacity=1, fill="var(--stage-3)")
        .encode(y(), tooltip=[alt.Tooltip("label:N"), alt.Tooltip("text:N", title="detail")]),
    ]
    text = "Hypervolume of the front in a fixed box over what the search has spent; it can only grow with the budget"
    return _finish(alt.layer(*layers).properties(width="container", height=_HEIGHT, description=text))


def importance(*, factors: Sequence[str], objectives: Sequence[str]) -> dict[str, Any]:
    """Share of each objective's variance by factor: a bar an objective, with its 95 % interval where it is known.

    Dataset by name: `importance` (factor, objective, share, low, high, end, share_text, text); end: where the number
    stands.
    """
    colours = alt.Scale(domain=list(objectives), range=["var(--stage-3)", "var(--muted)", "var(--stage-1)"])
    x_axis = alt.Axis(labels=False, grid=False, title="share of variance")
    x_scale = alt.Scale(domain=[0, 1.22], nice=False)
    bars = alt.Chart(alt.NamedData(name="importance")).encode(
        alt.X("share:Q", axis=x_axis, scale=x_scale),
        alt.Y(
            "factor:N",
            sort=list(factors),
            title=None,
            axis=alt.Axis(grid=False, labelColor="var(--text)", labelFontSize=12, labelLimit=150),
            scale=alt.Scale(paddingInner=0.35, paddingOuter=0.2),
        ),
        alt.YOffset("objective:N", sort=list(objectives), scale=alt.Scale(paddingInner=0.1)),
        description=alt.Description("text:N"),
        tooltip=[alt.Tooltip("factor:N", title="label"), alt.Tooltip("text:N", title="detail")],
    )
    layers = [
        bars.mark_bar(cornerRadiusEnd=2).encode(alt.Color("objective:N", scale=colours, legend=alt.Legend(title=None))),
        bars.transform_filter("isValid(datum.low)")
        .mark_rule(stroke="var(--text)", strokeWidth=1.2)
        .encode(alt.X("low:Q", axis=x_axis, scale=x_scale), alt.X2("high")),
        bars.mark_text(align="left", dx=6, color="var(--muted)", fontSize=11).encode(
            alt.X("end:Q", axis=x_axis, scale=x_scale), text="share_text:N"
        ),
    ]
    text = "Share of the variance that each factor explains, by objective: " + ", ".join(objectives)
    height = max(_HEIGHT, 20 * len(factors) * len(objectives))
    return _finish(alt.layer(*layers).properties(width="container", height=height, description=text))


_HEIGHT = 200  # of the three smaller figures, so that they stand side by side
_SHAPE_NAMES = "{none: 'none', fixed: 'fixed λ', tcp: 'TCP, top class', tcp_true: 'TCP, true class'}[datum.value]"
_RINGED = "datum.id === pinned || datum.id === lit"


def _finish(chart: alt.LayerChart | alt.FacetChart) -> dict[str, Any]:
    """The specification, with the signals `pinned` and `lit`: ids of the recipes that are ringed."""
    axis = {
        **{"labelColor": "var(--muted)", "titleColor": "var(--muted)", "gridColor": "var(--grid)", "domain": False},
        **{"ticks": False, "labelPadding": 7, "titlePadding": 9, "labelFontSize": 11, "titleFontSize": 12},
        **{"titleFontWeight": "normal", "labelOverlap": True},
    }
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    chart = chart.properties(background="transparent", autosize=fit)
    spec: dict[str, Any] = chart.to_dict(validate=False)  # validated by a test: it takes longer than all else
    del spec["$schema"]  # an address, though nothing would fetch it
    spec["params"] = [{"name": "pinned", "value": ""}, {"name": "lit", "value": ""}]
    legend = {"orient": "top", "labelColor": "var(--muted)", "titleColor": "var(--muted)", "titleFontWeight": "normal"}
    spec["config"] = {"font": FONT, "axis": axis, "legend": legend, "view": {"stroke": None}, "aria": True}
    return spec
