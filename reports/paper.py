"""`python -m reports.paper run=FOLDER`: finished runs next to the published ablations of SMSKD (arXiv 2601.15657).

Ours are judged by differences paired by seed. A claim at unequal numbers of epochs isn't judged, nor one of recipes
that differ in another setting of their run; on other data or another pair than the published only its direction is.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from reports import load, results
from reports.load import Run, get
from reports.naming import anchored, display
from reports.statistics import Gain, Pooled, detectable_difference, half_width, paired_gain, pooled_sd, range_of_means
from reports.tables import Grid, Table, latex, markdown
from reports.text import MINUS, NONE, known, percent, plural, points

# Accuracy in per cent on CIFAR-100's test split after 150 epochs in all, by pair and key of a system.
PUBLISHED: dict[str, dict[str, float]] = {
    "resnet50_mobilenetv2": {
        **{"ce": 68.2, "kd": 70.1, "joint": 72.4, "ensemble": 72.8, "none": 71.2, "fixed": 73.9, "tcp": 74.8},
        **{"two": 73.2, "four": 74.6, "teacher": 78.4},
    },
    "wrn40_2_shufflenetv2": {"ce": 65.7, "joint": 71.2, "tcp": 73.9},
    "vgg19_resnet18": {"ce": 71.8, "joint": 75.1, "tcp": 77.2},
}
PUBLISHED_ORDERS = (0.3, 0.8)  # best minus worst order, points
PUBLISHED_DATA, PUBLISHED_PAIR, PUBLISHED_EPOCHS = "cifar100", "resnet50_mobilenetv2", 150
SIMILAR = 0.5  # points within which two systems count as similar: our choice, the paper gives none
BEST = "best test epoch"
_SPLITS = {
    "validation": ("search", "val_accuracy"),
    "test": ("confirm", "test_accuracy"),
    BEST: ("confirm", "test_best_accuracy"),
}
HOLDS, FAILS, UNCLEAR, NOT_RUN = "holds", "doesn't hold", "can't tell", "not run"

LAMBDA_BASE = 0.5
THREE = "kd>fitnets>rkd"
JOINT = "kd+fitnets+rkd"
ORDERS = [">".join(order) for order in itertools.permutations(THREE.split(">"))]
SETTINGS = {  # (anchor, weighting) of a recipe of several stages, the recommended one first
    ("reference", "tcp"): "TCP",
    ("reference", "fixed"): "fixed λ",
    ("reference", "tcp_true"): "TCP of the true class",
    ("none", "fixed"): "no anchor",
}
_OF_IDENTITY = ("anchor", "weighting", "lambda_base", "teachers")
Setting = tuple[str, str]
Identity = tuple[tuple[frozenset[str], ...], str, str, float, int]


@dataclass(frozen=True, kw_only=True)
class System:
    """What the paper compares, as a recipe. key: into PUBLISHED, empty where nothing is published."""

    key: str = ""
    name: str
    methods: str
    anchor: str = "reference"
    weighting: str = "fixed"
    teachers: int = 1

    @property
    def identity(self) -> Identity:
        """What it trains."""
        anchor = self.anchor if ">" in self.methods else None
        row = {"methods": self.methods, "anchor": anchor, "weighting": self.weighting, "lambda_base": LAMBDA_BASE}
        return _identity(row | {"teachers": self.teachers})


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`first` is above `second`, or, where `similar`, within SIMILAR points of it."""

    text: str
    first: System
    second: System
    similar: bool = False


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One recipe at one number of epochs. ids: of the recipes that differ in other settings alone, one if all is well.

    scores: accuracy by split and seed; of a split of which a row isn't complete, and of several ids, there are none.
    settings: those in which the recipes of its run differ beside methods, anchoring and epochs; idle ones left out.
    """

    ids: frozenset[str]
    methods: str
    settings: Mapping[str, Any]
    scores: Mapping[str, Mapping[int, float]]


@dataclass(frozen=True, kw_only=True)
class PairResults:
    """All that the runs say of one pair on one data set.

    variants: by what a recipe trains, then total epochs. spread: within recipes, by
    split. whole: trained on all images; data_text says on how many if not. reopened: the test split, more than once.
    on_more: for the test split, validation images were trained on, too.
    """

    pair: str
    data: str
    data_text: str
    whole: bool
    reopened: bool = False
    on_more: bool = False
    teacher: float | None = None
    variants: Mapping[Identity, Mapping[int, Variant]] = field(default_factory=dict)
    spread: Mapping[str, Pooled] = field(default_factory=dict)

    def of(self, system: System) -> Mapping[int, Variant]:
        """The system as it ran, by total epochs."""
        return self.variants.get(system.identity, {})

    def budgets(self, system: System, split: str) -> list[int]:
        """Total epochs at which the system has accuracies of the split."""
        return sorted(epochs for epochs, variant in self.of(system).items() if variant.scores.get(split))


# The systems of the paper.
ALONE = System(key="ce", name="student alone", methods="ce")
KD = System(key="kd", name="single method, KD", methods="kd")
FITNETS = System(name="single method, FitNets", methods="fitnets")
RKD = System(name="single method, RKD", methods="rkd")
TOGETHER = System(key="joint", name="joint training", methods=JOINT)
ENSEMBLE = System(key="ensemble", name="ensemble: joint, three teachers", methods=JOINT, teachers=3)
TCP = System(key="tcp", name="SMSKD, TCP", methods=THREE, weighting="tcp")
FIXED = System(key="fixed", name="SMSKD, fixed λ", methods=THREE)
TCP_TRUE = System(name="SMSKD, TCP of the true class", methods=THREE, weighting="tcp_true")
FREE = System(key="none", name="SMSKD, no reference", methods=THREE, anchor="none")


def tables(runs: Sequence[Run]) -> list[Table]:
    """The systems and four ablations of each pair and data set, then the pairs of each data set side by side.

    Raises:
        ValueError: two runs contradict each other: another teacher, other images, or another accuracy of one training.
    """
    of_pairs = _by_pair(runs)
    out = []
    for own in of_pairs:
        out += [build(own) for build in (_systems, _references, _weightings, _counts, _orders)]
    for data in sorted({own.data for own in of_pairs}):
        out.append(_architectures([own for own in of_pairs if own.data == data]))
    return out


def _systems(own: PairResults) -> Table:
    setting = _setting(own, [THREE, "kd>kd>kd", f"{JOINT}>{JOINT}>{JOINT}"])
    staged = _staged(THREE, setting, key="", name=f"SMSKD, {SETTINGS[setting]}")
    repeated = _staged("kd>kd>kd", setting, name=f"control: KD three times, {SETTINGS[setting]}")
    restarted = _staged(
        f"{JOINT}>{JOINT}>{JOINT}", setting, name=f"control: joint in three stages, {SETTINGS[setting]}"
    )
    systems = [ALONE, KD, FITNETS, RKD, TOGETHER, ENSEMBLE, TCP, FIXED, FREE, _ewc(own), repeated, restarted]
    claims = [
        Claim(text="KD above the student alone", first=KD, second=ALONE),
        Claim(text="joint training above KD", first=TOGETHER, second=KD),
        Claim(text="ensemble above joint training", first=ENSEMBLE, second=TOGETHER),
        Claim(text="SMSKD (TCP) above KD", first=TCP, second=KD),
        Claim(text="SMSKD (TCP) above joint training", first=TCP, second=TOGETHER),
        Claim(text="SMSKD (TCP) above the ensemble", first=TCP, second=ENSEMBLE),
        Claim(text=f"three methods above KD three times ({SETTINGS[setting]})", first=staged, second=repeated),
        Claim(text=f"SMSKD above joint in three stages ({SETTINGS[setting]})", first=staged, second=restarted),
    ]
    teacher = percent(own.teacher)
    row = ("teacher, on validation", NONE, f"{PUBLISHED[PUBLISHED_PAIR]['teacher']:.1f}", teacher, NONE, NONE)
    more = [(*row, own.data)]
    return _table("Systems", [(own, system) for system in systems], [(own, claim) for claim in claims], more=more)


def _references(own: PairResults) -> Table:
    claims = [
        Claim(text="a reference with fixed λ above none", first=FIXED, second=FREE),
        Claim(text="a reference with TCP above none", first=TCP, second=FREE),
    ]
    return _ablation("Ablation 1, reference model", own, [FREE, FIXED, TCP], claims)


def _weightings(own: PairResults) -> Table:
    ewc = _ewc(own)
    claims = [
        Claim(text="TCP above fixed λ", first=TCP, second=FIXED),
        Claim(text="TCP of the true class above fixed λ", first=TCP_TRUE, second=FIXED),
        Claim(text="EWC similar to the reference with TCP", first=ewc, second=TCP, similar=True),
    ]
    return _ablation("Ablation 2, weighting", own, [FIXED, TCP, TCP_TRUE, ewc], claims)


def _counts(own: PairResults) -> Table:
    setting = _setting(own, [THREE.rpartition(">")[0], THREE])
    text = SETTINGS[setting]
    two = _staged(THREE.rpartition(">")[0], setting, key="two", name=f"2 stages, {text}")
    three = _staged(THREE, setting, key="tcp", name=f"3 stages, {text}")
    four = _staged(_four(own, setting), setting, key="four", name=f"4 stages, {text}")
    claims = [
        Claim(text="two stages above one", first=two, second=KD),
        Claim(text="three stages above two", first=three, second=two),
        Claim(text="four stages similar to three", first=four, second=three, similar=True),
    ]
    return _ablation("Ablation 3, number of stages", own, [KD, two, three, four], claims)


def _orders(own: PairResults) -> Table:
    setting = _setting(own, ORDERS)
    systems = [_staged(order, setting, name=SETTINGS[setting]) for order in ORDERS]
    ours = [(own, system) for system in systems]
    cells = _judge_orders(own, systems, _split(ours))
    remark = (
        "The best of six noisy means minus the worst is biased upwards: it is above 0 even where all orders are equal. "
        "So it is judged by the studentised range, what six equal recipes of this spread would show."
    )
    row = ("best order minus worst", f"+{PUBLISHED_ORDERS[0]} to +{PUBLISHED_ORDERS[1]}", *cells)
    return _table("Ablation 4, order of stages", ours, [], extra=row, remarks=[remark])


def _architectures(of_pairs: Sequence[PairResults]) -> Table:
    absent = {pair: replace(of_pairs[0], pair=pair, teacher=None, variants={}) for pair in PUBLISHED}
    by_pair = absent | {own.pair: own for own in of_pairs}
    ours = [(own, system) for own in by_pair.values() for system in (ALONE, TOGETHER, TCP)]
    claims = [
        Claim(text="joint training above the student alone", first=TOGETHER, second=ALONE),
        Claim(text="SMSKD (TCP) above joint training", first=TCP, second=TOGETHER),
    ]
    pairs = [(own, claim) for own in by_pair.values() for claim in claims]
    return _table("Across architectures", ours, pairs, side_by_side=True)


def _ablation(title: str, own: PairResults, systems: Sequence[System], claims: Sequence[Claim]) -> Table:
    return _table(title, [(own, system) for system in systems], [(own, claim) for claim in claims])


def _staged(methods: str, setting: Setting, *, name: str, key: str = "") -> System:
    return System(key=key, name=name, methods=methods, anchor=setting[0], weighting=setting[1])


def _setting(own: PairResults, recipes: Sequence[str]) -> Setting:
    """The setting in which most of these recipes ran: a sweep is compared within one setting. Ties: the first."""
    return max(SETTINGS, key=lambda one: sum(bool(own.of(_staged(methods, one, name=""))) for methods in recipes))


def _four(own: PairResults, setting: Setting) -> str:
    """The recipe of four stages that ran: one that goes on from the three, if there is one."""
    preferred = f"{THREE}>kd"
    found = [next(iter(by_epochs.values())).methods for by_epochs in own.variants.values()]
    ran = [name for name in found if name.count(">") == 3 and own.of(_staged(name, setting, name=""))]
    return min(ran, key=lambda n: (n != preferred, not n.startswith(f"{THREE}>"), n), default=preferred)


def _ewc(own: PairResults) -> System:
    """EWC in place of the reference, with the first weighting that ran."""
    systems = [
        System(name="SMSKD, EWC for the reference", methods=THREE, anchor="ewc", weighting=weighting)
        for weighting in ("fixed", "tcp", "tcp_true")
    ]
    return next((system for system in systems if own.of(system)), systems[0])


def _split(ours: Iterable[tuple[PairResults, System]]) -> str:
    """Test where every row of the table has it, else validation."""
    found = [variant.scores.get("test") for own, system in ours for variant in own.of(system).values()]
    return "test" if found and all(found) else "validation"


def _table(
    title: str,
    ours: Sequence[tuple[PairResults, System]],
    claims: Sequence[tuple[PairResults, Claim]],
    *,
    more: Sequence[tuple[str, ...]] = (),
    extra: tuple[str, ...] | None = None,
    remarks: Sequence[str] = (),
    side_by_side: bool = False,
) -> Table:
    """more: rows under the systems. extra: a row under the claims. side_by_side: several pairs, each named in its rows
    and next to its own published numbers."""
    split = _split(ours)
    own = ours[0][0]
    published = {b.pair: PUBLISHED.get(b.pair, {}) if side_by_side else PUBLISHED[PUBLISHED_PAIR] for b, _ in ours}
    # the best test epoch stands beside the last one where it was looked for, and is never judged by
    best = split == "test" and any(v.scores.get(BEST) for of, system in ours for v in of.of(system).values())
    rows: list[tuple[str, ...]] = []
    for of, system in ours:
        name = f"{of.pair}: {system.name}" if side_by_side else system.name
        value = published[of.pair].get(system.key)
        start = (name, display(system.methods), NONE if value is None else f"{value:.1f}")
        if not of.of(system):
            rows.append((*start, NOT_RUN, *(NONE,) * best, NONE, NONE, NONE))
        for epochs, variant in sorted(of.of(system).items()):
            values = list(variant.scores.get(split, {}).values())
            text = _mean(of, variant, split) if values else _incomplete(variant)
            flattered = (_mean(of, variant, BEST),) * best
            data = of.data_text if side_by_side else of.data
            rows.append((*start, text, *flattered, str(len(values)), str(epochs), data))
    judged: list[tuple[str, ...]] = []
    for of, claim in claims:
        text = f"{of.pair}: {claim.text}" if side_by_side else claim.text
        pair = [published[of.pair].get(system.key) for system in (claim.first, claim.second)]
        difference = None if None in pair else (pair[0] or 0) - (pair[1] or 0)
        shown = NONE if difference is None else f"{difference:+.1f}".replace("-", MINUS)
        if claim.similar and difference is None:
            shown = "similar"
        comparable = _comparable(of, side_by_side)
        judged.append((text, shown, *_judge(of, claim, split, difference if comparable else None)))
    if extra is not None:
        judged.append(extra)
    marks = [
        "Differences are paired by seed, with a 95 % t interval, not corrected for their number. A claim holds where "
        "the interval lies above 0, and doesn't where it lies below."
    ]
    if any(claim.similar for _, claim in claims):
        marks.append(
            f"Similar: the interval lies within {SIMILAR} points of 0 (our choice); it isn't where the interval lies "
            "outside of them."
        )
    marks = list(remarks) if not claims else [*marks, *remarks]
    if best:
        marks.append(
            "Paper's protocol: the highest test accuracy of any epoch, as papers often give it; chosen on the test "
            "split, it flatters. Verdicts are on the honest column, the last epoch's."
        )
    where = own.data if side_by_side else f"{own.pair}, {own.data_text}"
    return Table(
        title=f"{title}: {where}",
        head=_head([of for of, _ in ours], split, side_by_side),
        measured=Grid(
            header=(
                *("system", "recipe", "published, %", "ours, honest, %" if best else "ours, %"),
                *("ours, paper's protocol, %",) * best,
                *("seeds", "total epochs", "data"),
            ),
            align="pprr" + "r" * best + "rrl",
            rows=(*rows, *((*row[:4], *(NONE,) * best, *row[4:]) for row in more)),
        ),
        claims=Grid(
            header=("claim", "published", "ours, points", "seeds", "total epochs", "verdict"),
            align="prrrrp",
            rows=tuple(judged),
        ),
        remarks=tuple(marks),
        judged=sum(row[3] != NONE for row in judged),
    )


def _mean(own: PairResults, variant: Variant, split: str) -> str:
    """Mean accuracy on a split with its interval, in per cent."""
    values = list(variant.scores.get(split, {}).values())
    return percent(sum(values) / len(values), half_width(own.spread[split], len(values))) if values else NONE


def _comparable(own: PairResults, any_pair: bool) -> bool:
    """Whether numbers, not only directions, may be held against the published ones."""
    return own.data == PUBLISHED_DATA and own.whole and (any_pair or own.pair == PUBLISHED_PAIR)


def _head(of_pairs: Sequence[PairResults], split: str, any_pair: bool) -> str:
    text = f"Accuracy on the {split} split, mean and 95 % t interval (one standard deviation for all recipes). "
    if split == "test" and any(own.reopened for own in of_pairs):
        text += "The test split was opened more than once, which flatters. "
    if split == "test" and any(own.on_more for own in of_pairs):
        text += "For it, students and teacher were trained on validation images, too. "
    source = f"{'the same pairs' if any_pair else PUBLISHED_PAIR} on {PUBLISHED_DATA}"
    text += f"Published: test split, {source}, {PUBLISHED_EPOCHS} epochs in all."
    other = next((own for own in of_pairs if not _comparable(own, any_pair)), None)
    if other is None:
        return text
    what = other.pair if other.data == PUBLISHED_DATA and other.whole else other.data_text
    return f"{text} Ours are of {what}, so only directions are compared, never numbers."


def _judge(own: PairResults, claim: Claim, split: str, published: float | None) -> tuple[str, str, str, str]:
    """Our difference, seeds, epochs and verdict. published: points to hold it against, None where that can't be."""
    first, second = own.budgets(claim.first, split), own.budgets(claim.second, split)
    if not first or not second:
        missing = claim.second if first else claim.first
        why = next((_incomplete(variant) for variant in own.of(missing).values()), NOT_RUN)
        return NONE, NONE, NONE, f"{why}: {missing.name}"
    common = sorted(set(first) & set(second))
    if not common:
        return NONE, NONE, NONE, _unequal([first, second])
    epochs = common[-1]
    both = [own.of(system)[epochs] for system in (claim.first, claim.second)]
    if (why_not := _unlike(both)) is not None:
        return NONE, NONE, str(epochs), why_not
    values, baseline = (variant.scores[split] for variant in both)
    gain = paired_gain(values, baseline)
    if gain is None:
        return NONE, NONE, str(epochs), f"{UNCLEAR}: no seed in common"
    shown = (points(gain), str(gain.pairs), str(epochs))
    if gain.half_width is None:
        return *shown, f"{UNCLEAR}: one seed, no interval"
    low, high = 100 * (gain.mean - gain.half_width), 100 * (gain.mean + gain.half_width)
    if claim.similar:
        holds, fails = low > -SIMILAR and high < SIMILAR, low > SIMILAR or high < -SIMILAR
    else:
        holds, fails = low > 0, high < 0
    verdict = HOLDS if holds else FAILS if fails else UNCLEAR
    if verdict == UNCLEAR:
        spread = pooled_sd([[values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]])
        seen = 100 * (detectable_difference(spread, gain.pairs) or 0)
        verdict += f": half width {100 * gain.half_width:.2f}; {seen:.2f} points would have been seen (power 80 %)"
    if published is not None:
        where = "below" if published < low else "above" if published > high else "inside"
        verdict += f"; the published difference lies {where} {'our' if where != 'inside' else 'the'} interval"
    return *shown, verdict


def _judge_orders(own: PairResults, systems: Sequence[System], split: str) -> tuple[str, str, str, str]:
    """Best minus worst of the orders, seeds, epochs and verdict."""
    budgets = [own.budgets(system, split) for system in systems]
    missing = sum(not found for found in budgets)
    if missing:
        return NONE, NONE, NONE, f"{NOT_RUN}: {missing} of {plural(len(systems), 'order')}"
    common = sorted(set.intersection(*map(set, budgets)))
    if not common:
        return NONE, NONE, NONE, _unequal(budgets)
    epochs = common[-1]
    variants = [own.of(system)[epochs] for system in systems]
    if (why_not := _unlike(variants)) is not None:
        return NONE, NONE, str(epochs), why_not
    scores = [variant.scores[split] for variant in variants]
    seeds = sorted(set.intersection(*(set(values) for values in scores)))
    found = range_of_means([[values[seed] for values in scores] for seed in seeds]) if seeds else None
    if found is None:
        return NONE, NONE, str(epochs), f"{UNCLEAR}: {plural(len(seeds), 'seed')} in common, two are needed"
    equal = (
        f"six equal recipes would show {100 * found.middle:.2f} in half of all experiments, "
        f"above {100 * found.limit:.2f} in one of 20"
    )
    verdict = UNCLEAR
    if found.found > found.limit:
        verdict = HOLDS
    elif _comparable(own, False) and 100 * (found.found + found.limit) < PUBLISHED_ORDERS[0]:
        verdict = FAILS
    return points(Gain(found.found, None, 0)), str(len(seeds)), str(epochs), f"{verdict}: {equal}"


def _incomplete(variant: Variant) -> str:
    """Why a recipe that has rows has no accuracy."""
    return "not complete" if len(variant.ids) == 1 else f"{len(variant.ids)} recipes that differ in other settings"


def _unequal(budgets: Sequence[Sequence[int]]) -> str:
    texts = dict.fromkeys(", ".join(map(str, epochs)) for epochs in budgets)
    return f"unequal budgets: {' against '.join(texts)} epochs"


def _unlike(variants: Sequence[Variant]) -> str | None:
    """Why these can't be compared: the settings of which they have several values; None if they can."""
    values = [(name, value) for variant in variants for name, value in variant.settings.items()]
    names = sorted({name for name, value in values if any(of == name and value != other for of, other in values)})
    return f"unequal settings: {', '.join(names)}" if names else None


def _identity(row: Mapping[Any, Any]) -> Identity:
    """What a recipe trains: settings without effect, and the order of a stage's methods, are not in it."""
    stages = []
    for stage in row["methods"].split(">"):
        methods = frozenset(stage.split("+"))
        stages.append(methods - {"ce"} or methods)
    anchoring = (row["anchor"], row["weighting"], round(row["lambda_base"], 9)) if anchored(row) else ("none", "", 0.0)
    return (tuple(stages), *anchoring, row["teachers"] if any(stage != {"ce"} for stage in stages) else 1)


def _by_pair(runs: Sequence[Run]) -> list[PairResults]:
    """What the runs say together, by pair and data set."""
    grouped: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        for (pair, data), rows in run.table.groupby(["pair", "data"], sort=True):
            # run.json of a run of several pairs may describe another pair's teacher
            kept = run.info if run.table["pair"].nunique() == 1 else {**run.info, "teacher": {}}
            grouped.setdefault((str(pair), str(data)), []).append(Run(table=rows, info=kept))
    return [_pair_results(pair, data, found) for (pair, data), found in sorted(grouped.items())]


def _pair_results(pair: str, data: str, runs: Sequence[Run]) -> PairResults:
    name = f"{pair} on {data}"
    _agreed(f"fingerprint of the data of {name}", (get(run.info, "dataset", "fingerprint") for run in runs))
    size = _agreed(f"train_size of {name}", (get(run.info, "experiment", "train_size") or "all" for run in runs))
    confirmed = [run.info for run in runs if get(run.info, "confirm", "opened") is not None]
    on = _agreed(f"train_on of {name}", (get(info, "confirm", "train_on") for info in confirmed))
    # an ensemble's run may name its teachers together
    single = [run for run in runs if run.table["teachers"].max() == 1]
    _agreed(f"digest of the teacher of {name}", (get(run.info, "teacher", "digest") for run in single))
    measured = [value for run in single if (value := get(run.info, "teacher", "val_accuracy")) is not None]
    variants: dict[Identity, dict[int, Variant]] = {}
    for run in runs:
        for identity, epochs, found in _variants(run.table):
            by_epochs = variants.setdefault(identity, {})
            before = by_epochs.get(epochs, found)
            if before.ids != found.ids:
                by_epochs[epochs] = replace(found, ids=before.ids | found.ids, scores={})
                continue
            for split, values in found.scores.items():
                for seed, value in values.items():
                    if (known_one := before.scores[split].get(seed, value)) != value:
                        raise ValueError(
                            f"one training has one accuracy, but {found.methods} of {name}, {epochs} epochs, seed "
                            f"{seed}, has {known_one:.4f} and {value:.4f} on {split}; leave one of its runs out"
                        )
            scores = {split: {**before.scores[split], **values} for split, values in found.scores.items()}
            by_epochs[epochs] = replace(found, settings={**before.settings, **found.settings}, scores=scores)
    every = [variant.scores for by_epochs in variants.values() for variant in by_epochs.values() if variant.scores]
    return PairResults(
        pair=pair,
        data=data,
        data_text=data if size in (None, "all") else f"{data}, {size} training images",
        whole=size in (None, "all"),
        reopened=any(get(run.info, "confirm", "reopened") is True for run in runs),
        on_more=on == "all",
        teacher=measured[0] if measured else None,
        variants=variants,
        spread={split: pooled_sd([list(s[split].values()) for s in every]) for split in _SPLITS},
    )


def _variants(table: pd.DataFrame) -> Iterable[tuple[Identity, int, Variant]]:
    """What it trains, epochs in all, and accuracies, of each recipe of one run.

    A recipe of which a seed isn't complete has no accuracies of that split: what failed may be what trains badly.
    """
    differ = results.differing(table)
    # how a total is split over stages can't be the same for one stage and for three: the total is compared
    names = [name for name in differ if name not in _OF_IDENTITY and name.rpartition(".")[2] != "epochs"]
    grouped: dict[tuple[str, int], list[dict[Any, Any]]] = {}
    for row in table.to_dict("records"):
        grouped.setdefault((row["recipe_id"], row["epochs_total"]), []).append(row)
    for (recipe_id, epochs), rows in sorted(grouped.items()):
        found = {}
        for split, (phase, column) in _SPLITS.items():
            here = [row for row in rows if row["phase"] == phase]
            good = all(row["status"] == "complete" and known(row[column]) for row in here)
            found[split] = {row["seed"]: row[column] for row in here} if good else {}
        settings = {name: rows[0][name] for name in names if known(rows[0][name])}
        methods = rows[0]["methods"]
        yield (
            _identity(rows[0]),
            epochs,
            Variant(ids=frozenset({recipe_id}), methods=methods, settings=settings, scores=found),
        )


def _agreed(what: str, values: Iterable[Any]) -> str | None:
    """The one value of all runs that have one.

    Raises:
        ValueError: there are several.
    """
    found = sorted({str(value) for value in values if value is not None})
    if len(found) > 1:
        listed = ", ".join(value[:16] for value in found)
        raise ValueError(f"runs in one table must have one {what}, but have {listed}; leave some of them out")
    return found[0] if found else None


def write(folders: Sequence[Path], out: Path) -> list[Path]:
    """Write paper.md and paper.tex into `out`, which is made if need be, each whole or not at all.

    Raises:
        ValueError: a folder isn't a run, or one of its files is damaged or of another schema, or runs contradict.
    """
    found = tables([load.run(folder) for folder in folders])
    if not found:
        raise ValueError(f"a run has rows, but {', '.join(map(str, folders))} has none; let the search finish a recipe")
    title = "Next to the published numbers of SMSKD (arXiv 2601.15657)"
    texts = {out / "paper.md": markdown(title, found), out / "paper.tex": latex(found)}
    out.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        results.write_atomically(path, text.encode("utf-8", errors="replace"))
    return list(texts)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code: 0 done, 2 bad input."""
    try:
        words = [word.partition("=") for word in argv]
        wrong = any(key not in ("run", "out") or not value for key, _, value in words)
        folders = [Path(value) for key, _, value in words if key == "run"]
        outs = [Path(value) for key, _, value in words if key == "out"]
        if wrong or not folders or len(outs) > 1:
            raise ValueError(
                "run=FOLDER, once or more, and out=FOLDER at most once are expected, "
                f"but got {' '.join(argv) or 'none'}"
            )
        paths = write(folders, outs[0] if outs else folders[0])
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    sys.stdout.write("".join(f"{path}\n" for path in paths))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
