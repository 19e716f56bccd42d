"""Every number of the page, computed again from results.parquet by other means: nothing of `reports` is used here.

Only the file, run.json for what is a setting (the box, limits, objectives, the size of the test split), and the page's
own text and JSON are read, with pandas, NumPy, SciPy and the definitions of protocol. The run is made by conftest.
"""

from __future__ import annotations

import html
import io
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

Make = Callable[..., Path]
Array = NDArray[np.float64]
ROOT = Path(__file__).parents[2]
MINUS = "\N{MINUS SIGN}"
COLUMN = {"flops": "train_flops", "seconds": "device_seconds", "params": "params", "latency": "latency_ms"}
UNIT = {"TFLOP": 1e12, "GFLOP": 1e9, "MFLOP": 1e6, "s": 1.0, "min": 60.0, "h": 3600.0, "ms": 1.0}
SPLITS = {"test": ("confirm", "test_accuracy"), "validation": ("search", "val_accuracy")}


class Page:
    """A built report: its text, its tables by heading or id, and its JSON."""

    def __init__(self, run: Path) -> None:
        command = [sys.executable, "-m", "reports.build", f"run={run}"]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        source = (run / "report.html").read_text(encoding="utf-8")
        found = re.search(r'<script type="application/json" id="data">(.*?)</script>', source, flags=re.DOTALL)
        assert found
        self.data: dict[str, Any] = json.loads(found[1])
        source = re.sub(r"<(script|style).*?</\1>", "", source, flags=re.DOTALL)
        self.source = source
        self.text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", source)).split())
        self.tiles = re.findall(r"<strong>(.*?)</strong>", source)

    def rows(self, which: str) -> list[list[str]]:
        """Cells of the body of the table that `which` (a part of its tag) begins."""
        body = re.search(rf"<table[^>]*{which}[^>]*>.*?<tbody>(.*?)</tbody>", self.source, flags=re.DOTALL)
        assert body, which
        out = []
        for row in re.findall(r"<tr.*?</tr>", body[1], flags=re.DOTALL):
            cells = re.findall(r"<td.*?>(.*?)</td>", row, flags=re.DOTALL)
            out.append([" ".join(html.unescape(re.sub(r"<[^>]+>", " ", cell)).split()) for cell in cells])
        return out


class Truth:
    """The run's numbers, from its files."""

    def __init__(self, run: Path) -> None:
        self.table = pd.read_parquet(io.BytesIO((run / "results.parquet").read_bytes()))
        self.info: dict[str, Any] = json.loads((run / "run.json").read_text())
        self.costs = [COLUMN[name] for name in self.info["objectives"][1:]]
        search = self.table[self.table["phase"] == "search"]
        bad = set(search.loc[search["status"] != "complete", "recipe_id"])
        self.search = search[~search["recipe_id"].isin(bad)]
        self.confirm = self.table[(self.table["phase"] == "confirm") & (self.table["status"] == "complete")]
        self.mean = self.search.groupby("recipe_id")["val_accuracy"].mean()
        self.test = self.confirm.groupby("recipe_id")["test_accuracy"].mean()
        self.price = self.search.groupby("recipe_id")[[*COLUMN.values()]].mean()
        limits = {"params": "params", "latency_ms": "latency_ms", "flops": "train_flops"}
        self.feasible = pd.Series(True, index=self.mean.index)
        for name, bound in self.info["limits"].items():
            if bound is not None:
                self.feasible &= self.price[limits[name]] <= bound
        self.front = self.undominated({i: self.mean[i] for i in self.mean.index if self.feasible[i]})
        self.winner = self.mean[self.feasible].idxmax()
        one = self.search[self.search["n_stages"] == 1]
        self.base = one.loc[one["methods"] == "kd", "recipe_id"].iloc[0]

    def undominated(self, accuracy: dict[str, float]) -> list[str]:
        """Ids that none other dominates, in order of the first cost: by the definition, pair by pair."""
        points = {i: (-value, *(self.price.loc[i, c] for c in self.costs)) for i, value in accuracy.items()}

        def dominated(p: tuple[float, ...]) -> bool:
            return any(q != p and all(b <= a for a, b in zip(p, q, strict=True)) for q in points.values())

        on = [i for i, point in points.items() if not dominated(point)]
        return sorted(on, key=lambda i: (self.price.loc[i, self.costs[0]], i))

    def sd(self, rows: pd.DataFrame, column: str) -> tuple[float, int]:
        """The pooled standard deviation and its degrees of freedom."""
        groups = rows.groupby("recipe_id")[column]
        squares = ((rows[column] - groups.transform("mean")) ** 2).sum()
        degrees = int(len(rows) - groups.ngroups)
        return math.sqrt(squares / degrees), degrees

    def half(self, rows: pd.DataFrame, column: str, n: int) -> float:
        sd, degrees = self.sd(rows, column)
        return float(stats.t.ppf(0.975, degrees)) * sd / math.sqrt(n)

    def differences(self, of: str, split: str) -> Array:
        phase, column = SPLITS[split]
        rows = self.table[(self.table["phase"] == phase) & (self.table["status"] == "complete")]
        wide = rows.pivot(index="seed", columns="recipe_id", values=column)
        if of not in wide or self.base not in wide:
            return np.zeros(0)
        return (wide[of] - wide[self.base]).dropna().to_numpy(np.float64)


def adjusted(p_values: list[float]) -> list[float]:
    """Holm's p values, from the definition: steps down over the ordered p values."""
    out, worst = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[at]))
        out[at] = worst
    return out


def area(points: list[tuple[float, float]], box: dict[str, Any]) -> float:
    """Share of the box dominated: a sum of strips from left to right."""
    (e0, e1), (c0, c1) = box["error"], box["cost"]
    scaled = [((math.log10(c) - math.log10(c0)) / math.log10(c1 / c0), (e - e0) / (e1 - e0)) for e, c in points]
    scaled = sorted((max(x, 0.0), max(y, 0.0)) for x, y in scaled if x < 1 and y < 1)
    total, best = 0.0, 1.0
    for k, (x, y) in enumerate(scaled):
        best = min(best, y)
        right = scaled[k + 1][0] if k + 1 < len(scaled) else 1.0
        total += (right - x) * (1 - best)
    return total


def anova(truth: Truth, values: pd.Series) -> dict[str, float]:
    """Shares of the variance over the orders of methods, where nothing but the stages varies."""
    recipe = truth.search.groupby("recipe_id")[["methods", "n_stages"]].first()
    frame = pd.DataFrame({"y": values - values.mean(), "n": recipe["n_stages"]})
    whole = (frame["y"] ** 2).sum()
    count = (frame.groupby("n")["y"].transform("mean") ** 2).sum() / whole
    return {"stage count": count, "stage order": 1 - count}


def number(text: str) -> float:
    return float(text.replace(MINUS, "-").replace(",", "").replace("+", ""))


def in_units(text: str) -> float:
    parts = text.split(" ")
    return sum(number(value) * UNIT[unit] for value, unit in zip(parts[::2], parts[1::2], strict=False) if unit in UNIT)


def orders() -> list[dict[str, Any]]:
    """All orders of one to three methods: the default space, a full grid."""
    names = [">".join(o) for n in (1, 2, 3) for o in itertools.permutations(("kd", "fitnets", "rkd"), n)]
    base = {"weighting": "fixed", "lambda_base": 0.5, "anchor": "reference", "teachers": 1}
    return [{"methods": name, **base} for name in names]


def infinite() -> list[dict[str, Any]]:
    """Sampled stages, lambda and weighting."""
    rng = np.random.default_rng(5)
    out: list[dict[str, Any]] = [orders()[0]]
    for _ in range(60):
        stages = rng.choice(["kd", "fitnets", "rkd", "at"], size=rng.integers(2, 5))
        weighting, lam = str(rng.choice(["fixed", "tcp"])), round(float(rng.uniform(0.1, 2)), 6)
        out.append({"methods": ">".join(stages), "weighting": weighting, "lambda_base": lam, "anchor": "reference"})
    return [{"teachers": 1, **recipe} for recipe in out]


KINDS: dict[str, dict[str, Any]] = {
    "orders": {"recipes": orders()},
    "infinite": {"recipes": infinite()},
    "three objectives and a limit": {
        "recipes": infinite(),
        "objectives": ["error", "flops", "seconds"],
        "limits": {"params": None, "latency_ms": None, "flops": 4.2e10},
    },
}


@pytest.fixture(params=list(KINDS))
def built(request: pytest.FixtureRequest, make_run: Make) -> tuple[Truth, Page]:
    run = make_run(**KINDS[request.param])
    return Truth(run), Page(run)


def compare(truth: Truth, page: Page) -> None:
    """Everything, so that one build serves all, and a wrong number is found by the test below."""
    columns = page.data["columns"]
    shown = {
        of: dict(zip(columns, values, strict=True))
        for of, *values in zip(columns["id"], *columns.values(), strict=True)
    }
    n = int(truth.search.groupby("recipe_id").size().max())
    fresh = int(truth.confirm.groupby("recipe_id").size().max())
    val_half, test_half = truth.half(truth.search, "val_accuracy", n), truth.half(truth.confirm, "test_accuracy", fresh)

    # counts, in the sentence under the title and in the provenance
    assert page.text.count(f"{len(truth.mean)} recipes × {n} search seeds") == 1  # noqa: RUF001
    over = int((~truth.feasible).sum())
    assert (f"; {over} recipe" in page.text) == bool(over)
    members = [i for i in truth.front if i in truth.test]
    assert f"{len(members)} front members" in page.text and f"{fresh} fresh seeds" in page.text
    statuses = truth.table["status"].value_counts()
    assert ", ".join(f"{statuses.get(s, 0)} {s}" for s in ("complete", "failed", "pruned")) in page.text

    # panels: every point, the bars of the front, and the letters
    assert set(shown) == set(truth.mean.index)
    letters = {i: shown[i]["letter"] for i in shown if shown[i]["letter"]}
    assert sorted(letters, key=lambda i: letters[i]) == truth.front
    for of, entry in shown.items():
        assert entry["validation"] == pytest.approx(100 * truth.mean[of], abs=1e-3)
        assert entry["feasible"] == truth.feasible[of]
        if of in truth.front:
            assert entry["validation_high"] - entry["validation"] == pytest.approx(100 * val_half, abs=1e-3)
        if of in truth.test:
            assert entry["test"] == pytest.approx(100 * truth.test[of], abs=1e-3)
            assert entry["test"] - entry["test_low"] == pytest.approx(100 * test_half, abs=1e-3)
        else:
            assert entry["test"] is None
        for name in ("flops", "seconds"):  # in the unit of the page: the same factor for all
            ratio = entry[name] / shown[truth.base][name]
            assert ratio == pytest.approx(truth.price.loc[of, COLUMN[name]] / truth.price.loc[truth.base, COLUMN[name]])
        text = f"{100 * truth.mean[of]:.2f} ± {100 * val_half:.2f} % ({n} seeds)"
        assert text in entry["detail"]
        assert in_units(entry["detail"].split(" · ")[1]) == pytest.approx(truth.price.loc[of, "train_flops"], rel=6e-3)

    # tiles
    held = [i for i in truth.undominated(truth.test.to_dict()) if i in truth.front]
    chosen = truth.winner
    expected = f"{100 * truth.test[chosen]:.2f} ± {100 * test_half:.2f} %"
    assert page.tiles[1] == expected and page.tiles[0].startswith(f"{letters[chosen]} · ")
    assert in_units(page.tiles[2]) == pytest.approx(truth.price.loc[chosen, truth.costs[0]], rel=6e-3)
    assert page.tiles[3] == f"{len(held)} of {len(members)}"
    best, images = truth.test.max(), truth.info["dataset"]["test"]
    sampling = f"±{100 * stats.norm.ppf(0.975) * math.sqrt(best * (1 - best) / images):.2f}"
    assert page.text.count(sampling) == 3
    times = truth.price.loc[chosen, truth.costs[0]] / truth.price.loc[truth.base, truth.costs[0]]
    found = re.search(r"([\d.]+) × 1-stage kd", page.text)  # noqa: RUF001
    assert found and number(found[1]) == pytest.approx(times, rel=6e-3)

    # front table
    rng = np.random.default_rng(99)
    sd, _ = truth.sd(truth.search, "val_accuracy")
    allowed = [i for i in truth.mean.index if truth.feasible[i]]
    hits = dict.fromkeys(allowed, 0)
    for _ in range(300):
        drawn = {i: float(rng.normal(truth.mean[i], sd / math.sqrt(n))) for i in allowed}
        for i in truth.undominated(drawn):
            hits[i] += 1
    rows = [row for row in page.rows('id="front"') if row[0]]
    assert [row[0] for row in rows] == [letters[i] for i in truth.front]
    for of, row in zip(truth.front, rows, strict=True):
        epochs = truth.search.loc[truth.search["recipe_id"] == of, "epochs_total"].iloc[0]
        assert row[4] == str(epochs) and row[6] == f"{100 * truth.mean[of]:.2f} ± {100 * val_half:.2f}"
        assert row[7] == f"{100 * truth.test[of]:.2f} ± {100 * test_half:.2f}"
        assert number(row[8]) == pytest.approx(100 * (truth.mean[of] - truth.test[of]), abs=0.0051)
        assert number(row[9]) == pytest.approx(hits[of] / 300, abs=0.12)  # four standard errors of both
        assert row[10] == ("holds" if of in held else "dominated")
    assert f"On test, {len(held)} of {len(members)} hold" in page.text

    # gains: figure, table, Holm, P(A > B)
    gains = {(g["id"], g["split"]): g for g in page.data["gains"]}
    table = {row[0]: row[2:] for row in page.rows('id="gains-table"')}
    splits = [split for split in SPLITS if any(of == split for _, of in gains)]
    for split in splits:
        family = [i for i in (members if split == "test" else truth.mean.index) if i != truth.base]
        by_id = {i: d for i in family if len(d := truth.differences(i, split))}
        plain = [float(stats.ttest_1samp(d, 0).pvalue) for d in by_id.values()]
        p_values = dict(zip(by_id, adjusted(plain), strict=True))
        assert f"{len(by_id)} on {split}" in page.text
        for of in truth.front:
            if of == truth.base:
                continue
            d, gain, cells = by_id[of], gains[of, split], table[letters[of]][5 * splits.index(split) :]
            half = stats.sem(d) * stats.t.ppf(0.975, len(d) - 1)
            verdict = ("above" if d.mean() > 0 else "below") if p_values[of] < 0.05 else "unclear"
            wins = float(((d > 0) + (d == 0) / 2).mean())
            assert gain["gain"] == pytest.approx(100 * d.mean()) and gain["high"] == pytest.approx(
                100 * (d.mean() + half)
            )
            assert (gain["p"], gain["verdict"]) == (pytest.approx(p_values[of], abs=1e-9), verdict)
            assert [number(part) for part in cells[0].split(" ± ")] == pytest.approx(
                [100 * d.mean(), 100 * half], abs=0.0051
            )
            assert cells[2:5] == [f"{wins:.2f}", str(len(d)), verdict]
            assert cells[1] == (f"{p_values[of]:.3f}" if p_values[of] >= 0.001 else "< 0.001")

    # power: two recipes, noncentral t
    for split, k, rows_of in (("validation", n, truth.search), ("test", fresh, truth.confirm)):
        spread, degrees = truth.sd(rows_of, SPLITS[split][1])
        limit = stats.t.ppf(0.975, degrees)
        low, high = 0.0, 20.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if stats.nct.sf(limit, degrees, middle) < 0.8 else (low, middle)
        seen = 100 * low * spread * math.sqrt(2 / k)
        shown_seen = re.search(rf"([\d.]+) points on {split} \({k} [a-z ]+ each, sd ([\d.]+)\)", page.text)
        assert shown_seen and float(shown_seen[1]) == pytest.approx(seen, abs=0.0051)
        assert float(shown_seen[2]) == pytest.approx(100 * spread, abs=0.0051)

    # hypervolume: the curve, the spent budget, the share outside
    box = truth.info["box"]
    every = truth.table[truth.table["phase"] == "search"]
    told = every.groupby("recipe_id")["position"].max().sort_values().index
    spent = every.groupby("recipe_id")["spent_flops"].sum()[told].cumsum().to_numpy()
    curve = page.data["hypervolume"]
    assert np.array(curve["spent"]) / curve["spent"][-1] == pytest.approx(spent / spent[-1], rel=1e-5)
    points: list[tuple[float, float]] = []
    for k, of in enumerate(told):
        if of in truth.mean.index and truth.feasible[of]:
            points.append((1 - truth.mean[of], truth.price.loc[of, COLUMN[box["cost_name"]]]))
        assert curve["hypervolume"][k] == pytest.approx(area(points, box), abs=2e-6)
    costs = np.array([[p[1] for p in points]])[0]
    redrawn = [
        area(list(zip(rng.normal([p[0] for p in points], sd / math.sqrt(n)), costs, strict=True)), box)
        for _ in range(300)
    ]
    width = 2 * stats.t.ppf(0.975, 199) * float(np.std(redrawn, ddof=1))
    assert curve["high"][-1] - curve["low"][-1] <= 1.35 * width + 2 * abs(np.mean(redrawn) - curve["hypervolume"][-1])
    assert curve["high"][-1] - curve["low"][-1] >= 0.75 * width
    assert f"{curve['hypervolume'][-1]:.3f} [{curve['low'][-1]:.3f}, {curve['high'][-1]:.3f}] at the end" in page.text
    (e0, e1), (c0, c1) = box["error"], box["cost"]
    out = sum(not (e0 <= e <= e1 and c0 <= c <= c1) for e, c in points)
    assert f"Outside: {out} of {len(points)} recipes ({100 * out / len(points):.0f} %)" in page.text
    assert f"error {100 * e0:.3g} to {100 * e1:.3g} %" in page.text

    # what mattered
    shares = {(one["factor"], one["objective"]): one for one in page.data["importance"]}
    if "ANOVA of the full grid" in page.text:
        for objective, values in (("accuracy", truth.mean), ("FLOPs", truth.price["train_flops"])):
            for factor, share in anova(truth, values).items():
                assert shares[factor, objective]["share"] == pytest.approx(share, abs=2e-6)
    else:  # a forest: what is sure is what a one-way analysis of counts bounds
        assert "fANOVA" in page.text
        for objective, values in (("accuracy", truth.mean), ("FLOPs", truth.price["train_flops"])):
            assert shares["stage count", objective]["share"] == pytest.approx(
                anova(truth, values)["stage count"], abs=0.3
            )
    for one in shares.values():
        assert one["low"] is None or 0 <= one["low"] <= one["share"] <= one["high"] <= 1

    # what was spent, and what it would have been
    complete = truth.table[truth.table["status"] == "complete"]
    sentence = re.search(
        r"([\d.,]+ \w+) and ([\d., a-z]+) of training were spent.*?own, ([\d.,]+ \w+) and ([\d., a-z]+)\.", page.text
    )
    assert sentence
    sums = [truth.table["spent_flops"].sum(), truth.table["spent_seconds"].sum()]
    sums += [complete["train_flops"].sum(), complete["device_seconds"].sum()]
    assert [in_units(text) for text in sentence.groups()] == pytest.approx(sums, rel=6e-3)

    # every recipe
    listed = page.rows('class="every"')
    assert len(listed) == len(truth.mean)
    assert sorted(row[-3] for row in listed) == sorted(f"{100 * v:.2f} ± {100 * val_half:.2f}" for v in truth.mean)


def test_every_number_of_the_page(built: tuple[Truth, Page]) -> None:
    compare(*built)


@pytest.mark.parametrize(
    "column", ["val_accuracy", "test_accuracy", "train_flops", "spent_flops", "spent_seconds", "device_seconds"]
)
def test_a_wrong_number_is_found(make_run: Make, column: str) -> None:
    run = make_run(**KINDS["orders"])
    page, truth = Page(run), Truth(run)
    table = pd.read_parquet(run / "results.parquet")
    there = table.index[table[column].notna() & table["recipe_id"].isin(truth.front)]
    table.loc[there, column] *= 0.9
    table.to_parquet(run / "results.parquet")
    with pytest.raises(AssertionError):
        compare(Truth(run), page)
