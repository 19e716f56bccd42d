"""Runs next to the published numbers: verdicts on made-up effects, and the same table in every form."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reports import paper, results
from reports.build import build
from reports.load import Run
from reports.paper import main, tables
from reports.tables import Grid, Table, latex, markdown
from reports.text import MINUS, NONE
from tests.reports.conftest import row, run_info, write

THREE, JOINT = "kd>fitnets>rkd", "kd+fitnets+rkd"
PAIR = "resnet50_mobilenetv2"
CIFAR = {"data": "cifar100", "pair": PAIR}
FULL = {"experiment": {"pair": PAIR, "data": "cifar100"}}
SETTINGS = {
    "tcp": ("reference", "tcp"),
    "fixed": ("reference", "fixed"),
    "tcp_true": ("reference", "tcp_true"),
    "none": ("none", "fixed"),
    "ewc": ("ewc", "fixed"),
}


def rows_of(
    methods: str, accuracy: float, setting: str = "fixed", *, seeds: int = 5, noise: float = 0.002, **changes: Any
) -> list[dict[str, Any]]:
    """Rows of one recipe: mean validation accuracy in per cent, standard deviation of its own noise as a fraction."""
    anchor, weighting = SETTINGS[setting]
    lambda_base = changes.pop("lambda_base", 0.5)
    settings = {"methods": methods, "weighting": weighting, "lambda_base": lambda_base, "anchor": anchor}
    name = int.from_bytes(f"{methods} {setting}".encode(), "little")
    draws = np.random.default_rng(name).normal(size=seeds)
    values = accuracy / 100 + noise * (draws - draws.mean()) / (draws.std(ddof=1) if seeds > 1 else 1)
    return [
        row(settings, seed, "search", np.random.default_rng(0), val_accuracy=float(value), **changes)
        for seed, value in enumerate(values)
    ]


def made(folder: Path, rows: list[dict[str, Any]], **info: Any) -> Path:
    """A run folder with these rows."""
    folder.mkdir(exist_ok=True)
    write(rows, folder)
    (folder / "run.json").write_text(json.dumps(run_info(**info)))
    return folder


def run(rows: list[dict[str, Any]], **info: Any) -> Run:
    """A run in memory."""
    settings = list(dict.fromkeys(name for row in rows for name in row if name not in results.COLUMNS))
    table = pd.DataFrame(rows, columns=[*results.COLUMNS, *settings])
    table = table.astype({name: column.dtype for name, column in results.COLUMNS.items() if name != "position"})
    return Run(table=table, info=run_info(**info))


def table(found: list[Table], title: str) -> Table:
    one = [each for each in found if each.title.startswith(title)]
    assert len(one) == 1
    return one[0]


def claim(found: list[Table], title: str, text: str) -> Mapping[str, str]:
    grid = table(found, title).claims
    one = [dict(zip(grid.header, line, strict=True)) for line in grid.rows if line[0] == text]
    assert len(one) == 1
    return one[0]


def measured(found: list[Table], title: str, system: str) -> list[Mapping[str, str]]:
    grid = table(found, title).measured
    return [dict(zip(grid.header, line, strict=True)) for line in grid.rows if line[0] == system]


@pytest.mark.parametrize(
    ("with_reference", "verdict"), [(92.0, "holds"), (90.05, "can't tell"), (89.0, "doesn't hold")]
)
def test_verdicts_on_an_effect_none_and_the_opposite(with_reference: float, verdict: str) -> None:
    rows = rows_of(THREE, with_reference, "fixed") + rows_of(THREE, 90.0, "none")
    found = claim(tables([run(rows)]), "Ablation 1", "a reference with fixed λ above none")
    assert found["verdict"].split(":")[0] == verdict
    assert (found["published"], found["seeds"], found["total epochs"]) == ("+2.7", "5", "36")


def test_an_interval_and_what_would_have_been_seen_recomputed() -> None:
    fixed, free = rows_of(THREE, 90.1, "fixed", noise=0.02), rows_of(THREE, 90.0, "none", noise=0.02)
    found = claim(tables([run(fixed + free)]), "Ablation 1", "a reference with fixed λ above none")
    differences = [100 * (a["val_accuracy"] - b["val_accuracy"]) for a, b in zip(fixed, free, strict=True)]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(differences), scale=stats.sem(differences))
    mean, half = found["ours, points"].replace(MINUS, "-").split(" ± ")
    assert float(mean) == pytest.approx((low + high) / 2, abs=0.005)
    assert float(half) == pytest.approx((high - low) / 2, abs=0.005)
    seen = re.search(r"half width ([\d.]+); ([\d.]+) points would have been seen", found["verdict"])
    assert seen and seen[1] == half
    shift = float(seen[2]) / stats.sem(differences)
    assert stats.nct.sf(stats.t.ppf(0.975, 4), 4, shift) == pytest.approx(0.8, abs=0.01)


def test_a_mean_has_the_interval_of_the_pooled_spread() -> None:
    rows = rows_of(THREE, 92.0, "fixed", noise=0.003) + rows_of(THREE, 90.0, "none", noise=0.001)
    (found,) = measured(tables([run(rows)]), "Systems", "SMSKD, fixed λ")
    half = stats.t.ppf(0.975, 8) * math.sqrt((0.3**2 + 0.1**2) / 2) / math.sqrt(5)
    assert found["ours, %"] == f"92.00 ± {half:.2f}"


@pytest.mark.parametrize(
    ("ewc", "noise", "verdict"),
    [(91.1, 0.001, "holds"), (92.0, 0.001, "doesn't hold"), (90.0, 0.001, "doesn't hold"), (91.1, 0.01, "can't tell")],
)
def test_similar_is_judged_by_a_margin(ewc: float, noise: float, verdict: str) -> None:
    rows = rows_of(THREE, 91.0, "tcp", noise=noise) + rows_of(THREE, ewc, "ewc", noise=noise)
    found = claim(tables([run(rows)]), "Ablation 2", "EWC similar to the reference with TCP")
    assert found["verdict"].split(":")[0] == verdict and found["published"] == "similar"


def test_unequal_budgets_are_refused_and_equal_ones_found_in_another_run() -> None:
    staged, short = rows_of(THREE, 92.0, "tcp"), rows_of(JOINT, 90.0)
    text = "SMSKD (TCP) above joint training"
    found = claim(tables([run(staged + short)]), "Systems", text)
    assert found["verdict"] == "unequal budgets: 36 against 12 epochs" and found["ours, points"] == NONE
    long = rows_of(JOINT, 91.0, epochs_total=36)
    both = tables([run(staged + short), run(long)])
    found = claim(both, "Systems", text)
    assert (found["verdict"], found["total epochs"], found["ours, points"][:5]) == ("holds", "36", "+1.00")
    assert [line["total epochs"] for line in measured(both, "Systems", "joint training")] == ["12", "36"]
    assert claim(both, "Across", f"tiny: {text}")["verdict"] == "holds"


def test_how_a_total_is_split_is_no_unequal_setting() -> None:
    """One stage of four epochs beside three of two, one and one."""
    split = {f"stage_{number}.epochs": epochs for number, epochs in enumerate((2, 1, 1), 1)}
    staged = rows_of(THREE, 92.0, "tcp", epochs_total=4, **split)
    joint = rows_of(JOINT, 90.0, epochs_total=4, **{"stage_1.epochs": 4})
    found = claim(tables([run(staged + joint)]), "Systems", "SMSKD (TCP) above joint training")
    assert found["verdict"] == "holds"


def test_of_several_equal_budgets_the_longest_is_judged() -> None:
    short = rows_of(THREE, 92.0, "fixed") + rows_of(THREE, 90.0, "none")
    long = rows_of(THREE, 92.0, "fixed", epochs_total=72) + rows_of(THREE, 93.0, "none", epochs_total=72)
    found = claim(tables([run(short), run(long)]), "Ablation 1", "a reference with fixed λ above none")
    assert (found["total epochs"], found["verdict"]) == ("72", "doesn't hold")


def test_only_on_the_published_data_and_pair_numbers_are_compared() -> None:
    rows = rows_of(THREE, 92.0, "tcp", **CIFAR) + rows_of(THREE, 91.0, "fixed", **CIFAR)
    same = tables([run(rows, **FULL)])
    assert "only directions" not in table(same, "Ablation 2").head
    assert claim(same, "Ablation 2", "TCP above fixed λ")["verdict"] == (
        "holds; the published difference lies inside the interval"
    )
    digits = [each | {"data": "digits"} for each in rows]
    another = [each | {"pair": "vgg19_resnet18"} for each in rows]
    part = {"experiment": {"pair": PAIR, "data": "cifar100", "train_size": 5000}}
    for other, what in (
        (run(digits, **FULL), "digits"),
        (run(another, **FULL), "vgg19_resnet18"),
        (run(rows, **part), "cifar100, 5000 training images"),
    ):
        found = tables([other])
        assert f"Ours are of {what}, so only directions are compared" in table(found, "Ablation 2").head
        assert claim(found, "Ablation 2", "TCP above fixed λ")["verdict"] == "holds"


@pytest.mark.parametrize(("tcp", "where"), [(92.0, "inside the"), (93.5, "below our"), (91.3, "above our")])
def test_where_the_published_difference_lies(tcp: float, where: str) -> None:
    rows = rows_of(THREE, tcp, "tcp", noise=0.001, **CIFAR) + rows_of(THREE, 91.0, "fixed", noise=0.001, **CIFAR)
    found = claim(tables([run(rows, **FULL)]), "Ablation 2", "TCP above fixed λ")
    assert found["verdict"] == f"holds; the published difference lies {where} interval"


def test_systems_that_did_not_run_stay_and_the_teacher_is_there() -> None:
    found = tables([run(rows_of("kd", 91.0))])
    systems = [line[0] for line in table(found, "Systems").measured.rows]
    assert len(systems) == len(set(systems)) == 13
    for system in systems:
        ours = {"single method, KD": r"91\.00 ± .*", "teacher, on validation": r"95\.60"}.get(system, "not run")
        assert re.fullmatch(ours, measured(found, "Systems", system)[0]["ours, %"])
    assert claim(found, "Systems", "KD above the student alone")["verdict"] == "not run: student alone"
    assert all(not each.judged for each in found)


def test_the_published_numbers_are_those_of_the_method_page() -> None:
    found = tables([run(rows_of("kd", 70.0, **CIFAR), **FULL)])
    shown = {line[0]: line[2] for each in found for line in each.measured.rows if line[2] != NONE}
    assert shown == {
        **{"student alone": "68.2", "single method, KD": "70.1", "joint training": "72.4"},
        **{"ensemble: joint, three teachers": "72.8", "SMSKD, TCP": "74.8", "SMSKD, fixed λ": "73.9"},
        **{"SMSKD, no reference": "71.2", "teacher, on validation": "78.4"},
        **{"2 stages, TCP": "73.2", "3 stages, TCP": "74.8", "4 stages, TCP": "74.6"},
        **{f"{PAIR}: student alone": "68.2", f"{PAIR}: joint training": "72.4", f"{PAIR}: SMSKD, TCP": "74.8"},
        "wrn40_2_shufflenetv2: student alone": "65.7",
        "wrn40_2_shufflenetv2: joint training": "71.2",
        "wrn40_2_shufflenetv2: SMSKD, TCP": "73.9",
        "vgg19_resnet18: student alone": "71.8",
        "vgg19_resnet18: joint training": "75.1",
        "vgg19_resnet18: SMSKD, TCP": "77.2",
    }


def test_an_ensemble_is_told_by_its_teachers() -> None:
    joint, ensemble = rows_of(JOINT, 91.0), [each | {"recipe_id": "e" * 12} for each in rows_of(JOINT, 92.0)]
    found = tables([run(joint + [each | {"teachers": 3} for each in ensemble])])
    assert claim(found, "Systems", "ensemble above joint training")["ours, points"].startswith("+1.00")
    found = tables([run(joint)])
    assert measured(found, "Systems", "joint training")[0]["ours, %"].startswith("91.00")
    assert measured(found, "Systems", "ensemble: joint, three teachers")[0]["ours, %"] == "not run"


def test_settings_without_effect_and_the_order_within_a_stage_do_not_matter() -> None:
    rows = rows_of("rkd+ce+fitnets+kd", 91.0, "tcp", lambda_base=0.1) + rows_of("kd", 90.0, "none")
    rows += rows_of(THREE, 89.0, "tcp", lambda_base=0.0) + rows_of("kd>fitnets", 88.0, "tcp", lambda_base=0.75)
    found = tables([run(rows)])
    assert claim(found, "Systems", "joint training above KD")["verdict"] == "holds"
    assert measured(found, "Systems", "SMSKD, no reference")[0]["ours, %"].startswith("89.00")
    assert measured(found, "Ablation 3", "2 stages, no anchor")[0]["ours, %"] == "not run"


def orders(spread: float, noise: float, **changes: Any) -> list[dict[str, Any]]:
    return [
        each
        for i, name in enumerate(paper.ORDERS)
        for each in rows_of(name, 90 + spread * i / 5, "tcp", noise=noise, **changes)
    ]


def test_orders_are_judged_against_equal_recipes() -> None:
    clear = claim(tables([run(orders(2.0, 0.002))]), "Ablation 4", "best order minus worst")
    assert clear["verdict"].startswith("holds: six equal recipes") and clear["ours, points"] == "+2.00"
    noisy = run(orders(0.6, 0.004))  # more than equal recipes show in half of all experiments, less than in 95 %
    found = claim(tables([noisy]), "Ablation 4", "best order minus worst")
    assert found["verdict"].startswith("can't tell") and found["published"] == "+0.3 to +0.8"
    values = noisy.table.pivot(index="seed", columns="methods", values="val_accuracy").to_numpy() * 100
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    limit = stats.studentized_range.ppf(0.95, 6, 20) * math.sqrt((rest**2).sum() / 20 / 5)
    assert f"above {limit:.2f} in one of 20" in found["verdict"]
    assert any("biased upwards" in remark for remark in table(tables([noisy]), "Ablation 4").remarks)
    equal = claim(tables([run(orders(0.02, 0.0005, **CIFAR), **FULL)]), "Ablation 4", "best order minus worst")
    assert equal["verdict"].startswith("doesn't hold")
    longer = [each | {"epochs_total": 72} for each in orders(1.0, 0.002)]
    both = claim(tables([run(orders(2.0, 0.002)), run(longer)]), "Ablation 4", "best order minus worst")
    assert (both["ours, points"], both["total epochs"]) == ("+1.00", "72")
    five = claim(tables([run(orders(2.0, 0.002)[5:])]), "Ablation 4", "best order minus worst")
    assert five["verdict"] == "not run: 1 of 6 orders"


def test_a_sweep_stays_within_the_setting_in_which_most_ran() -> None:
    rows = [each for name in ("kd>fitnets", f"{THREE}>rkd") for each in rows_of(name, 91.0, "fixed")]
    rows += rows_of(THREE, 91.5, "fixed") + rows_of(THREE, 93.0, "tcp")
    found = tables([run(rows)])
    assert measured(found, "Ablation 3", "3 stages, fixed λ")[0]["ours, %"].startswith("91.50")
    assert measured(found, "Ablation 3", "4 stages, fixed λ")[0]["recipe"] == "kd → fitnets → rkd → rkd"
    assert claim(found, "Ablation 3", "three stages above two")["verdict"] == "unequal budgets: 36 against 24 epochs"
    more = [each for last in ("kd", "fitnets") for each in rows_of(f"{THREE}>{last}", 91.0, "fixed")]
    found = tables([run(rows + more)])
    assert measured(found, "Ablation 3", "4 stages, fixed λ")[0]["recipe"] == "kd → fitnets → rkd → kd"


def test_controls_are_compared_in_one_setting() -> None:
    rows = rows_of(THREE, 92.0, "tcp") + rows_of(THREE, 91.0, "fixed") + rows_of("kd>kd>kd", 90.0, "fixed")
    rows += rows_of(f"{JOINT}>{JOINT}>{JOINT}", 91.5, "fixed", noise=0.001)
    found = tables([run(rows)])
    repeated = claim(found, "Systems", "three methods above KD three times (fixed λ)")
    assert repeated["ours, points"].startswith("+1.00") and repeated["published"] == NONE
    restarted = claim(found, "Systems", "SMSKD above joint in three stages (fixed λ)")
    assert restarted["ours, points"].startswith(f"{MINUS}0.50") and restarted["verdict"] == "doesn't hold"


def test_the_split_is_test_where_every_row_has_it() -> None:
    def tested(rows: list[dict[str, Any]], accuracy: float) -> list[dict[str, Any]]:
        return rows + [
            each | {"phase": "confirm", "seed": 100 + each["seed"], "test_accuracy": accuracy + each["seed"] / 1e4}
            for each in rows
        ]

    fixed, free = tested(rows_of(THREE, 92.0, "fixed"), 0.8), rows_of(THREE, 90.0, "none")
    found = table(tables([run(fixed + free)]), "Ablation 1")
    assert "on the validation split" in found.head and found.measured.rows[1][3].startswith("92.00")
    found = table(tables([run(fixed + tested(free, 0.7))]), "Ablation 1")
    assert "on the test split" in found.head and found.measured.rows[1][3].startswith("80.02")
    assert "more than once" not in found.head
    opened = {"confirm": {"seeds": [100], "opened": "x", "reopened": True}}
    assert "more than once" in table(tables([run(fixed + tested(free, 0.7), **opened)]), "Ablation 1").head
    more = {"confirm": opened["confirm"] | {"reopened": False, "train_on": "all"}}
    one = run(tested(rows_of(THREE, 92.0, "fixed"), 0.8), **more)
    assert "were trained on validation images, too" in table(tables([one]), "Ablation 1").head
    with pytest.raises(ValueError, match=r"must have one train_on of .*, but have all, train"):
        tables([one, run(free, confirm=opened["confirm"] | {"train_on": "train"})])
    assert tables([one, run(rows_of(THREE, 90.0, "none"), confirm={"seeds": [], "train_on": "train"})])


def test_the_papers_protocol_stands_beside_and_is_not_judged() -> None:
    def tested(rows: list[dict[str, Any]], accuracy: float, best: float | None) -> list[dict[str, Any]]:
        return rows + [
            each
            | {"phase": "confirm", "seed": 100 + each["seed"], "test_accuracy": accuracy + each["seed"] / 1e3}
            | {"test_best_accuracy": None if best is None else best + each["seed"] / 500}
            for each in rows
        ]

    honest = [*tested(rows_of(THREE, 92.0, "fixed"), 0.8, None), *tested(rows_of(THREE, 90.0, "none"), 0.7, None)]
    plain = table(tables([run(honest)]), "Ablation 1")
    assert "ours, %" in plain.measured.header and not any("protocol" in text for text in plain.measured.header)
    paper_ran = [*tested(rows_of(THREE, 92.0, "fixed"), 0.8, 0.81), *tested(rows_of(THREE, 90.0, "none"), 0.7, 0.9)]
    found = tables([run(paper_ran)])
    row_of = measured(found, "Ablation 1", "SMSKD, fixed λ")[0]
    assert row_of["ours, honest, %"].startswith("80.20") and row_of["ours, paper's protocol, %"].startswith("81.40")
    # its interval has the pooled spread of its own column: of both recipes 0, 0.2, ... 0.8 points
    width = stats.t.ppf(0.975, 8) * 100 * np.std(np.arange(5) / 500, ddof=1) / np.sqrt(5)
    assert row_of["ours, paper's protocol, %"] == f"81.40 ± {width:.2f}"
    ablation = table(found, "Ablation 1")
    assert ablation.claims == plain.claims, "verdicts are on the last epoch's accuracy"
    assert any("chosen on the test split" in remark for remark in ablation.remarks)
    assert {line[4] for line in table(found, "Systems").measured.rows if line[0].startswith("teacher")} == {NONE}
    for other in found:  # also where no test column is, and where nothing of the table ran
        assert len({len(line) for line in (other.measured.header, *other.measured.rows)}) == 1
    untested = table(tables([run(paper_ran + rows_of(THREE, 91.0, "tcp"))]), "Ablation 1")
    assert "on the validation split" in untested.head and "ours, %" in untested.measured.header


def test_a_recipe_with_a_failed_seed_and_one_of_two_ids_have_no_number() -> None:
    failed = rows_of(THREE, 92.0, "fixed")
    failed[0] |= {"status": "failed", "val_accuracy": None, "error": "NaN"}
    twice = rows_of(THREE, 90.0, "tcp") + [each | {"recipe_id": "f" * 12} for each in rows_of(THREE, 91.0, "tcp")]
    found = tables([run(failed + twice + rows_of(THREE, 90.0, "none"))])
    assert measured(found, "Ablation 1", "SMSKD, fixed λ")[0]["ours, %"] == "not complete"
    assert measured(found, "Ablation 1", "SMSKD, TCP")[0]["ours, %"] == "2 recipes that differ in other settings"
    verdict = claim(found, "Ablation 1", "a reference with fixed λ above none")["verdict"]
    assert verdict == "not complete: SMSKD, fixed λ"


def test_one_seed_and_no_common_seed_can_not_tell() -> None:
    one = rows_of(THREE, 92.0, "fixed", seeds=1) + rows_of(THREE, 90.0, "none", seeds=1)
    found = claim(tables([run(one)]), "Ablation 1", "a reference with fixed λ above none")
    assert (found["ours, points"], found["verdict"]) == ("+2.00", "can't tell: one seed, no interval")
    one[1] |= {"seed": 7}
    found = claim(tables([run(one)]), "Ablation 1", "a reference with fixed λ above none")
    assert found["verdict"] == "can't tell: no seed in common"


def test_several_pairs_have_a_table_each_and_no_teacher_of_another() -> None:
    rows = rows_of("kd", 90.0) + rows_of("kd", 80.0, pair="vgg19_resnet18")
    found = tables([run(rows)])
    titles = [each.title for each in found if each.title.startswith("Systems")]
    assert titles == [f"Systems: {pair}, digits, 1000 training images" for pair in ("tiny", "vgg19_resnet18")]
    for title, mean in zip(titles, ("90.00", "80.00"), strict=True):
        assert measured(found, title, "single method, KD")[0]["ours, %"].startswith(mean)
        assert measured(found, title, "teacher, on validation")[0]["ours, %"] == NONE
    assert sum(each.title.startswith("Across") for each in found) == 1


def test_runs_that_contradict_each_other_are_refused() -> None:
    one = run(rows_of("kd", 90.0))
    tables([one, one])
    with pytest.raises(ValueError, match="one training has one accuracy, but kd of tiny on digits, 12 epochs, seed 0"):
        tables([one, run(rows_of("kd", 91.0))])
    for info, what in (
        ({"teacher": {"digest": "0a"}}, "digest of the teacher"),
        ({"dataset": {"fingerprint": "0a"}}, "fingerprint of the data"),
        ({"experiment": {}}, "train_size"),
    ):
        with pytest.raises(ValueError, match=f"must have one {what} of tiny on digits"):
            tables([one, run(rows_of("rkd", 90.0), **info)])


def numbers(text: str) -> list[str]:
    return re.findall(r"[-+]?\d+(?:\.\d+)?", text)


def test_markdown_and_latex_hold_the_same_numbers(tmp_path: Path) -> None:
    rows = rows_of(THREE, 92.0, "tcp") + rows_of(THREE, 92.5, "fixed") + rows_of(THREE, 92.1, "none")
    folder = made(tmp_path / "run", rows + orders(2.0, 0.002)[5:])
    assert main([f"run={folder}"]) == 0
    md, tex = ((folder / name).read_text() for name in ("paper.md", "paper.tex"))
    in_md = [
        numbers(line.replace(MINUS, "-")) for line in md.splitlines() if line.startswith("| ") and "---" not in line
    ]
    body = [line for line in tex.replace("$-$", "-").splitlines() if line.endswith(r" \\")]
    in_tex = [numbers(line.replace("--", "")) for line in body]
    assert in_md == in_tex and sum(map(len, in_md)) > 100
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == 6
    assert tex.count(r"\toprule") == tex.count(r"\bottomrule") == tex.count(r"\end{tabular}") == 12


def test_every_text_is_escaped() -> None:
    evil = 'a|b_c%<script>\n\n[x]*\\{}$#&~^"`'
    grid = Grid(header=("h",), align="l", rows=((evil,),))
    one = Table(title=evil, head=evil, measured=grid, claims=grid, remarks=(evil,), judged=0)
    md = r"a\|b\_c%\<script\> \[x\]\*\\\{\}$\#&amp;\~^" + '"' + r"\`"
    assert markdown("t", [one]).count(md) == 5 and f"| {md} |\n" in markdown("t", [one])
    tex = (
        r"a\textbar{}b\_c\%\textless{}script\textgreater{} {[}x]{*}\textbackslash{}\{\}\$\#\&\textasciitilde{}"
        r"\textasciicircum{}\textquotedbl{}`"
    )
    assert latex([one]).count(tex) == 5
    with pytest.raises(ValueError, match="must have 1 entries"):
        Grid(header=("h",), align="l", rows=(("a", "b"),))


def test_the_page_shows_comparable_claims_alone_and_a_script_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    rows = rows_of(THREE, 92.0, "tcp", data=evil) + rows_of(THREE, 90.0, "none", data=evil)
    source = build(made(tmp_path / "run", rows)).read_text()
    assert "Next to the published numbers" in source and "a reference with TCP above none" in source
    section = source[source.index("Next to the published") : source.index("<summary>Every recipe")]
    assert "Ablation 1" in section and "Ablation 2" not in section
    assert "&lt;script&gt;alert(1)" in section and "<script" not in section
    alone = build(made(tmp_path / "alone", rows_of("kd", 90.0))).read_text()
    assert "Next to the published numbers" not in alone


def test_the_command_writes_where_it_is_told_and_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = made(tmp_path / "one", rows_of(THREE, 92.0, "tcp"))
    two = made(tmp_path / "two", rows_of(JOINT, 90.0, epochs_total=36))
    out = tmp_path / "deep" / "out"
    assert main([f"run={one}", f"run={two}", f"out={out}"]) == 0
    assert capsys.readouterr().out.split() == [str(out / "paper.md"), str(out / "paper.tex")]
    assert main([f"run={two}", f"run={one}"]) == 0
    names = ["paper.md", "paper.tex"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert [(out / name).read_bytes() for name in names] == [(two / name).read_bytes() for name in names]
    assert not (one / "paper.md").exists()
    assert "SMSKD \\(TCP\\)" not in (out / "paper.md").read_text()


def test_bad_input_is_one_line_and_leaves_the_old_files(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run()
    (folder / "paper.md").write_text("old")
    whole = (folder / "run.json").read_text()
    for content, message in (
        (whole[:50], "damaged or half-written"),
        (json.dumps(json.loads(whole) | {"schema": 9}), "has schema 9, but this program reads 2"),
    ):
        (folder / "run.json").write_text(content)
        assert main([f"run={folder}"]) == 2
        out, err = capsys.readouterr()
        assert message in err and err.count("\n") == 1 and not out
    (folder / "run.json").write_text(whole)
    empty = made(tmp_path / "empty", [])
    parquet = folder / "results.parquet"
    for argv in (
        *([], ["run="], ["folder"], [f"run={folder}", "x=1"], [f"run={folder}", "out=a", "out=b"]),
        *([f"run={tmp_path / 'nowhere'}"], [f"run={tmp_path}"], [f"run={empty}"], [f"run={folder}", f"out={parquet}"]),
    ):
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1
    parquet.write_bytes(parquet.read_bytes()[:100])
    assert main([f"run={folder}"]) == 2 and "half-written" in capsys.readouterr().err
    assert (folder / "paper.md").read_text() == "old"
