"""The command line: replays every sampler and the early stopping, writes docs/samplers.svg, prints the tables."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import vl_convert

from benchmarks.samplers import record, show, table
from benchmarks.samplers.replay import OURS, STOCK, Job, front, growth, recorded, run, smallest_box
from reports.budget import Box

PROCESSES, SEEDS, REPEATS, TRIALS = 2, 4, 30, 40
# A suggestion of the Gaussian process takes seconds, where the others take milliseconds.
GP_TRIALS = 20
# Early stopping: recipes settled by a sampled search, and margins (fractions).
STOPPING_RECIPES = 60
MARGINS = (0.0, 0.01, 0.02, 0.03, 0.04)
SHOWN_TRIALS, SHOWN_SPENT = (5, 10, 20, 40), (10, 20, 40)
FIGURE = Path("docs/samplers.svg")


def comparison() -> list[Job]:
    """Every sampler, all repeats; the exhaustive order knows no seed, and goes through the whole space."""
    limits = {name: TRIALS for name in (*OURS, STOCK)} | {"gp": GP_TRIALS}
    sampled = [Job(sampler=name, seed=s, trials=n) for name, n in limits.items() for s in range(REPEATS)]
    return [Job(sampler="exhaustive", seed=0), *(job for job in sampled if job.sampler != "exhaustive")]


def stopped() -> list[Job]:
    """Searches without and with early stopping, that settle as many recipes."""
    return [
        job
        for margin in (None, *MARGINS)
        for job in (
            Job(sampler="exhaustive", seed=0, margin=margin),
            *(
                Job(sampler=name, seed=seed, recipes=STOPPING_RECIPES, margin=margin)
                for name in ("tpe", "random")
                for seed in range(REPEATS)
            ),
        )
    ]


def compare(told: dict[str, list[pd.DataFrame]], box: Box, whole: float) -> str:
    """The table of samplers, and the figure."""
    grown = {name: [growth(one, box) for one in runs] for name, runs in told.items()}
    trial_curves = {name: show.by_trial(runs) for name, runs in grown.items()}
    at = np.linspace(0, 1, 101)
    spent_curves = {
        name: show.by_spent([run.assign(spent=run["spent"] / whole) for run in runs], at).assign(
            x=lambda c: 100 * c["x"]
        )
        for name, runs in grown.items()
    }
    rows = []
    for name, runs in told.items():
        until = [one[one["trial"] < GP_TRIALS] for one in runs]
        recipes = np.median([one["recipe_id"].str[:12].nunique() for one in until])
        spent = np.median([one["spent_flops"].sum() / whole for one in until])
        rows.append(
            [f"`{name}`", *(show.quartile_text(trial_curves[name], n) for n in SHOWN_TRIALS)]
            + [f"{recipes:.0f}", f"{100 * spent:.0f} %"]
            + [show.quartile_text(spent_curves[name], percent) for percent in SHOWN_SPENT]
        )
    header = ["sampler", *(f"{n} trials" for n in SHOWN_TRIALS), f"recipes, {GP_TRIALS} trials"]
    header += [f"spent, {GP_TRIALS} trials", *(f"{percent} % spent" for percent in SHOWN_SPENT)]
    fronts = {name: [front(one[one["trial"] < GP_TRIALS]) for one in runs] for name, runs in told.items()}
    figure = show.figure(
        {name: curve[curve["x"] <= TRIALS] for name, curve in trial_curves.items()},
        {name: curve[curve["x"] <= 60] for name, curve in spent_curves.items()},
        fronts,
        worst=(box.error[1], box.cost[1]),
        trials=GP_TRIALS,
    )
    FIGURE.write_text(vl_convert.vegalite_to_svg(figure), encoding="utf-8")
    return show.markdown(header, rows)


def stopping(told: dict[tuple[str, float | None], list[pd.DataFrame]], box: Box) -> str:
    """The table of early stopping: what it saves and costs against the same search without it."""
    rows = []
    for (name, margin), runs in told.items():
        if margin is None:
            continue
        saved, lost, at_equal_cost = [], [], []
        for one, other in zip(runs, told[name, None], strict=True):
            ours, theirs = growth(one, box), growth(other, box)
            spent, volume = ours["spent"].iloc[-1], ours["hypervolume"].iloc[-1]
            saved.append(1 - spent / theirs["spent"].iloc[-1])
            lost.append(theirs["hypervolume"].iloc[-1] - volume)
            at_equal_cost.append(volume - theirs["hypervolume"][theirs["spent"] <= spent].max())
        given_up = np.median([(one["status"] == "pruned").mean() for one in runs])
        low, middle, high = np.percentile(lost, show.QUARTILES)
        rows.append(
            [
                f"`{name}`",
                f"{100 * margin:.0f}",
                f"{100 * given_up:.0f} %",
                f"{100 * np.median(saved):.0f} %",
                f"{middle:.3f} ({low:.3f} to {high:.3f})",
                f"{np.mean(lost):.3f}",
                f"{np.mean(at_equal_cost):+.3f}",
            ]
        )
    header = ["order", "margin, points", "given up", "saved", "hypervolume lost", "mean", "mean gain at equal cost"]
    return show.markdown(header, rows)


def main(argv: list[str]) -> None:
    """Replay, or record."""
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    if argv == ["record"]:
        record.record(seeds=SEEDS, store=Path("runs/store-samplers"))
        return
    if argv:
        sys.exit(f"no argument, or the word record, is expected, but got {' '.join(argv)}")
    recipes = list({prefix.id: prefix for whole in table.longest() for prefix in whole.prefixes()}.values())
    world = recorded(table.read())
    box, whole = smallest_box(world, recipes), sum(world.stage_flops[recipe.id] for recipe in recipes)
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        free: dict[str, list[pd.DataFrame]] = {name: [] for name in (*OURS, STOCK)}
        for job, told in zip(comparison(), pool.map(run, comparison()), strict=True):
            free[job.sampler].append(told)
        early: dict[tuple[str, float | None], list[pd.DataFrame]] = {}
        for job, told in zip(stopped(), pool.map(run, stopped()), strict=True):
            early.setdefault((job.sampler, job.margin), []).append(told)
    repeated = [len(one) - one["recipe_id"].str[:12].nunique() for one in free[STOCK]]
    sys.stdout.write(
        f"{compare(free, box, whole)}\n{STOCK} trains {np.median(repeated):.0f} of {TRIALS} recipes again (median).\n"
        f"Box: error {box.error}, FLOPs {box.cost}; the whole space costs {whole:.4g} FLOPs a seed. {FIGURE}\n\n"
        f"{stopping(early, box)}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
