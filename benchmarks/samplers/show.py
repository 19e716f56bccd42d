"""The benchmark's tables, as Markdown, and its figure, declared in Altair. Nothing is replayed here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from benchmarks.samplers.replay import STOCK, attainment

QUARTILES = (25, 50, 75)
_SHOWN_ERROR = 10.0
# A colour-blind-safe set (Okabe and Ito), and stock in grey, dashed.
COLOURS = {
    **{"exhaustive": "#000000", "tpe": "#0072b2", "nsga2": "#e69f00", "gp": "#009e73", "random": "#cc79a7"},
    STOCK: "#7a7a7a",
}


def by_trial(runs: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Quartiles over runs (as replay.growth) of `hypervolume` at each trial that all of them have made."""
    values = pd.concat([run.set_index("trial")["hypervolume"] for run in runs], axis=1).dropna()
    return _quartiles(values.index.to_numpy(np.float64), values.to_numpy(np.float64))


def by_spent(runs: Sequence[pd.DataFrame], at: np.ndarray) -> pd.DataFrame:
    """The same at given amounts spent, as far as all runs have gone; what a run has holds until its next result."""
    at = at[at <= min(run["spent"].iloc[-1] for run in runs)]
    columns = []
    for run in runs:
        place = np.searchsorted(run["spent"].to_numpy(), at, side="right")
        columns.append(np.concatenate([[0.0], run["hypervolume"].to_numpy()])[place])
    return _quartiles(at, np.column_stack(columns))


def _quartiles(x: np.ndarray, values: np.ndarray) -> pd.DataFrame:
    low, middle, high = np.percentile(values, QUARTILES, axis=1)
    return pd.DataFrame({"x": x, "low": low, "middle": middle, "high": high})


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; all columns but the first are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def quartile_text(curve: pd.DataFrame, x: float, digits: int = 3) -> str:
    """Median and quartiles where the curve reaches x; a dash where it doesn't."""
    there = curve[np.isclose(curve["x"], x)]
    if there.empty:
        return "-"
    low, middle, high = there.iloc[0][["low", "middle", "high"]]
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def figure(
    trial_curves: Mapping[str, pd.DataFrame],
    spent_curves: Mapping[str, pd.DataFrame],
    fronts: Mapping[str, Sequence[np.ndarray]],
    *,
    worst: tuple[float, float],
    trials: int,
) -> dict[str, Any]:
    """Hypervolume over trials and over what was spent, median and quartiles; the surfaces that as many runs attain.

    spent_curves: x in per cent of what the whole space costs. fronts: of each run, points (error, FLOPs), after
    `trials`. worst: the corner of error and FLOPs that surfaces are drawn to.
    """
    order = [name for name in COLOURS if name in trial_curves]
    colour = alt.Color(
        "sampler:N",
        scale=alt.Scale(domain=order, range=[COLOURS[name] for name in order]),
        legend=alt.Legend(title=None, orient="bottom", symbolOpacity=1, symbolType="square"),
    )
    dash = alt.StrokeDash(
        "sampler:N",
        scale=alt.Scale(domain=order, range=[[5, 3] if name == STOCK else [1, 0] for name in order]),
        legend=None,
    )

    def curves(of: Mapping[str, pd.DataFrame], title: str) -> Any:
        data = pd.concat([curve.assign(sampler=name) for name, curve in of.items()])
        low = float(data.loc[data["middle"] > 0, "low"].quantile(0.05))
        base = alt.Chart(data).encode(x=alt.X("x:Q", title=title))
        y = alt.Scale(domain=[low, float(data["high"].max())], nice=True, zero=False)
        band = base.mark_area(opacity=0.13, clip=True).encode(y=alt.Y("low:Q", scale=y), y2="high:Q", color=colour)
        line = base.mark_line(strokeWidth=1.8, clip=True).encode(
            y=alt.Y("middle:Q", scale=y, title="hypervolume"), color=colour, strokeDash=dash
        )
        return alt.layer(band, line).properties(width=300, height=240)

    surfaces = []
    for name, runs in fronts.items():
        for percent in QUARTILES:
            corners = attainment(runs, percent)
            # from the worst error down to the cheapest corner, and along to the dearest
            points = np.vstack([[worst[0], corners[0, 1]], corners, [corners[-1, 0], worst[1]]])
            drawn = pd.DataFrame({"error": 100 * points[:, 0], "flops": points[:, 1] / 1e9, "step": range(len(points))})
            surfaces.append(drawn.assign(sampler=name, percent=percent))
    data = pd.concat(surfaces)
    # The cheapest recipes are the same for all; what differs is below.
    shown = alt.Scale(domain=[math.floor(data["error"].min()), _SHOWN_ERROR], zero=False)
    step = (
        alt.Chart(data)
        .mark_line(interpolate="step-after", clip=True)
        .encode(
            x=alt.X("flops:Q", title="training cost, GFLOP (log scale)", scale=alt.Scale(type="log", nice=False)),
            y=alt.Y("error:Q", title="error, %", scale=shown),
            order="step:Q",
            detail="percent:N",
            color=colour,
            strokeDash=dash,
            strokeWidth=alt.condition("datum.percent === 50", alt.value(1.8), alt.value(0.8)),
            opacity=alt.condition("datum.percent === 50", alt.value(1), alt.value(0.6)),
        )
        .properties(width=300, height=240, title=f"attained by 25, 50, 75 % of the runs, {trials} trials")
    )
    chart = alt.hconcat(
        curves(trial_curves, "trials").properties(title="against trials: median, quartiles"),
        curves(spent_curves, "spent, % of what the whole space costs").properties(title="against spent training cost"),
        step,
    )
    styled = chart.configure(font="DejaVu Sans", background="white").configure_title(fontSize=12, anchor="start")
    return dict(styled.to_dict())
