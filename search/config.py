"""Every setting of a search, flat: what `python -m search.run key=value ...` accepts. No torch, no Ray."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import spaces
from search import storages
from smskd import cli, datasets, methods, names, pairs, store
from smskd.numerics import COMPILES, PRECISIONS, Numerics
from smskd.pairs import Pair
from smskd.recipe import ANCHORS, WEIGHTINGS, Stage, make
from spaces import Menu

COSTS = ("flops", "seconds", "params", "latency")
# Each with the package that it needs, and what pip calls that.
LOGGERS = {"tensorboard": ("tensorboardX",) * 2, "mlflow": ("mlflow", "mlflow-skinny"), "wandb": ("wandb",) * 2}
PROTOCOLS = ("honest", "paper")
SAMPLERS = ("exhaustive", "tpe", "nsga2", "gp", "random")
STOPS = ("none", "dominated")
# Fresh seeds of the confirmation stand this far from those of the search; two studies' seeds stand twice as far apart.
_SEED_STRIDE = 50_000
# A space that compares systems gives each as many epochs as this many stages have.
_COMPARISON_STAGES = 3
# What decides a search's numbers; a run folder holds one search only. The rest may change when a run is taken up again.
_FREE = (
    *("trials", "confirm", "protocol", "reopen_test", "box", "log", "warm_start"),
    *("cpus", "gpus", "hang_after", "address", "insecure", "store", "store_key", "out", "storage"),
)
# Settings that came later, with their defaults: a search with these is the one that it was without them.
_LATER = {
    **dict.fromkeys(("teacher_model", "student_model", "precision", "compile")),
    **dict.fromkeys(("max_params", "max_latency_ms", "max_flops")),
    **{"stop": "none", "stop_margin": 1.0},
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """One search. None means: chosen by the program, as the help says.

    Raises:
        ValueError: a value is out of range, or a name unknown.
    """

    space: str = cli.key("stage_order", "what is searched; the spaces are listed below")
    pair: str | None = cli.key(
        None,
        "teacher and student: " + ", ".join(pairs.PAIRS) + " (default: tiny); or several, as [tiny,vgg19_resnet18]",
    )
    teacher_model: str | None = cli.key(None, "in place of pair=, with student_model=: any classifier of torchvision")
    student_model: str | None = cli.key(None, "as teacher_model=, such as mobilenet_v3_small")
    data: str = cli.key("digits", "data set: " + ", ".join(datasets.NAMES))
    methods: list[str] = dataclasses.field(
        default_factory=lambda: ["kd", "fitnets", "rkd"],
        metadata={"help": "what a stage can be: " + ", ".join(methods.available()) + ", joint ones as kd+rkd"},
    )
    max_stages: int | None = cli.key(None, "longest recipe, in stages (default: the space's own)")
    anchor: str = cli.key("reference", "what holds later stages, where not searched: " + ", ".join(ANCHORS))
    weighting: str = cli.key("fixed", "weight of the anchor per sample, where not searched: " + ", ".join(WEIGHTINGS))
    lambda_base: float = cli.key(0.5, "largest weight of the anchor, where not searched")
    epochs: int | None = cli.key(None, "epochs per stage (default: the pair's own)")
    epochs_total: int | None = cli.key(
        None, "epochs of all stages together, instead (default in a space that compares systems: three stages' worth)"
    )
    seeds: int = cli.key(3, "seeds per recipe in the search")
    confirm: int = cli.key(
        5, "fresh seeds for each member of the front and for the baseline, on the test split; 0: leave that out"
    )
    protocol: str = cli.key(
        "honest",
        "of the confirmation: honest, or paper, which also looks at the test split after every epoch and records the "
        "best, in a column that nothing is chosen by",
    )
    seed: int = cli.key(0, "of the whole study; another one draws everything anew")
    trials: int | None = cli.key(None, "how many recipes at most (default: all of a finite space, else 40)")
    sampler: str | None = cli.key(
        None, "exhaustive (default for finite spaces), tpe (default otherwise), nsga2, gp, random"
    )
    cost: str = cli.key(
        "flops", "what the front has beside the error: " + ", ".join(COSTS) + "; or two of them, as [flops,seconds]"
    )
    max_params: int | None = cli.key(None, "refuse a student of more parameters")
    max_latency_ms: float | None = cli.key(
        None, "refuse a student that takes longer for one image, in milliseconds, where its trials run"
    )
    max_flops: float | None = cli.key(
        None, "leave out recipes that cost more to train, by FLOPs counted beforehand: they are listed, not trained"
    )
    stop: str = cli.key(
        "none",
        "dominated: a recipe gives up its later stages when those it has finished, over all seeds, are dominated by a "
        "finished recipe that costs no more and is better by more than stop_margin=; these stay as a recipe of "
        "their own",
    )
    stop_margin: float = cli.key(1.0, "of stop=dominated, in points of validation accuracy")
    warm_start: list[str] | None = dataclasses.field(
        default=None,
        metadata={
            "help": "folders (or database URLs) of other runs of the same pair, data and cost: what they found is made "
            "known to the sampler as it stands, also where seeds, epochs or the space differ, and is no result of this "
            "run: a recipe of theirs is in its tables only if it is trained here, of which the store spares what it has"
        },
    )
    teacher: str | None = cli.key(
        None, "file with the teacher's weights (default: train one, and keep it in the store)"
    )
    teacher_epochs: int | None = cli.key(None, "epochs of a teacher that is trained (default: the pair's own)")
    data_dir: str | None = cli.key(None, "folder with the data set's files (default: runs/data, filled by download)")
    train_size: int | None = cli.key(None, "train on this many images, stratified (default: all)")
    image_size: int | None = cli.key(
        None, "for data=folder: pixels a side; the shorter one is resized, the middle cut out"
    )
    precision: str | None = cli.key(
        None, "of forward passes: " + ", ".join(PRECISIONS) + " (default: bf16 on GPUs, float32 on CPUs)"
    )
    compile: str | None = cli.key(None, "compile the student: " + ", ".join(COMPILES) + " (default: off)")
    cpus: float = cli.key(1.0, "CPU cores per trial")
    gpus: float | None = cli.key(None, "GPUs per trial, fractions allowed (default: 1 if there are any, else 0)")
    hang_after: float = cli.key(
        3600.0,
        "seconds without progress (a step of training, a stage) after which a trial's worker is ended, and the trial "
        "tried again; loading the data and compiling have to fit in",
    )
    address: str | None = cli.key(
        None,
        "Ray cluster, of which this machine is a node: auto, or host:port of its head (default: this machine alone)",
    )
    insecure: bool = cli.key(False, "with address=: allow a cluster that asks for no token, whoever can reach it")
    log: list[str] = dataclasses.field(
        default_factory=lambda: ["tensorboard"],
        metadata={"help": "scalars of each trial go to: " + ", ".join(LOGGERS) + "; [] for none"},
    )
    store: str = cli.key(
        "runs/store",
        "finished stages, shared by runs: a folder, or a URL such as s3://bucket/folder, of what pyarrow.fs knows; "
        "?scheme=http&endpoint_override=host:port names a server of one's own",
    )
    store_key: str | None = cli.key(
        None,
        "file of 32 random bytes or more, its owner's alone: signs the store's entries, and those that it hasn't "
        "signed are trained anew; the same for all who use the store, and at this place on every machine",
    )
    out: str | None = cli.key(
        None,
        "folder of this run, with one in it for each of several pairs (default: runs/<space>-<pair, or "
        "their number>-<data>-<digest of the settings>); or a URL, as in store=: the files in runs/ are copied there",
    )
    storage: str | None = cli.key(
        None,
        "where the Optuna study is: postgresql+psycopg://user@host/database, of which one search makes use, or "
        "sqlite:///FILE (default: study.db in the run's folder)",
    )
    box: list[float] | None = dataclasses.field(
        default=None,
        metadata={
            "help": "[error_low,error_high,cost_low,cost_high]: where hypervolume is measured, fixed when a run begins "
            "(default: errors from 0 to three times the teacher's on validation and 0.05 more, at most that of "
            "guessing; costs from half of what the shortest recipe takes of the bare student's training to 1.5 times "
            "the longest's with teacher and reference, in seconds twice as far either way; or from half to twice a "
            "cost that all recipes share)"
        },
    )
    reopen_test: bool = cli.key(
        False, "allow a second look at the test split, for a front that has changed; the report says so"
    )

    def __post_init__(self) -> None:
        names.check("space", self.space, spaces.available())
        object.__setattr__(self, "pair", self.networks.name)
        datasets.check(self.data, data_dir=self.data_dir, image_size=self.image_size)
        for cost in self.costs:
            names.check("cost", cost, COSTS)
        if not len(set(self.costs)) == len(self.costs) <= 2:
            raise ValueError(f"cost= takes one or two different costs, but got [{self.cost}]")
        names.check("stop", self.stop, STOPS)
        names.check("protocol", self.protocol, PROTOCOLS)
        if self.protocol == "paper" and self.confirm == 0:
            raise ValueError("protocol=paper is of the confirmation, so confirm >= 1 must hold, but got confirm=0")
        for name in self.log:
            package, distribution = LOGGERS[names.check("log", name, LOGGERS)]
            if importlib.util.find_spec(package) is None:
                raise ValueError(
                    f"log=[{name}] needs {package}, which isn't here: python -m pip install {distribution}"
                )
        if len(set(self.log)) < len(self.log):
            raise ValueError(f"log= names one twice: [{','.join(self.log)}]")
        Numerics(precision=self.precision or "float32", compile=self.compile or "off")
        if self.storage is not None:
            storages.check(self.storage)
        if self.address is not None:
            _check_address(self.address)
        elif self.insecure:
            raise ValueError("insecure=true is of a cluster: give address= too, or leave it out")
        if self.sampler is not None:
            names.check("sampler", self.sampler, SAMPLERS)
        if not self.methods:
            raise ValueError("methods= needs at least one method, such as methods=[kd,rkd]")
        notations = [str(Stage(methods=tuple(str(stage).split("+")))) for stage in self.methods]
        if len(set(notations)) < len(notations):
            raise ValueError(f"methods= names one twice: [{','.join(notations)}]")
        object.__setattr__(self, "methods", notations)
        make("ce", {"anchor": self.anchor, "weighting": self.weighting, "lambda_base": self.lambda_base})
        for name, lowest, highest in (
            ("max_stages", 1, 100), ("epochs", 1, None), ("epochs_total", 1, None), ("seeds", 1, _SEED_STRIDE),
            ("confirm", 0, _SEED_STRIDE), ("seed", 0, None), ("trials", 1, None), ("teacher_epochs", 1, None),
            ("train_size", 2, None), ("image_size", 1, None), ("gpus", 0, None), ("stop_margin", 0, 100),
            ("hang_after", 1, None),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is None:
                continue
            if not (math.isfinite(value) and value >= lowest and (highest is None or value <= highest)):
                bound = f"{name} >= {lowest}" if highest is None else f"{lowest} <= {name} <= {highest}"
                raise ValueError(f"{bound} must hold, but got {name}={value}")
        for name in ("max_params", "max_latency_ms", "max_flops"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} > 0 must hold, but got {name}={value:g}")
        if self.box is not None:
            self._check_box(self.box)
        if not (math.isfinite(self.cpus) and self.cpus > 0):
            raise ValueError(f"cpus > 0 must hold, but got cpus={self.cpus:g}")
        if self.comparison and self.epochs is not None:
            raise ValueError(f"space={self.space} compares at equal totals: give epochs_total= in place of epochs=")
        if self.comparison and self.epochs_total is None:
            total = _COMPARISON_STAGES * self.networks.epochs
            object.__setattr__(self, "epochs_total", total)
        pairs.split_epochs(1, self.networks, epochs=self.epochs, epochs_total=self.epochs_total)
        if self.stop != "none" and self.epochs_total is not None:
            raise ValueError(
                f"stop={self.stop} compares a recipe's first stages with shorter recipes, but where epochs_total= is "
                "split these have longer stages: leave stop= out, or give epochs= (which space=systems doesn't take)"
            )
        if self.stop == "none" and self.stop_margin != Config.stop_margin:
            raise ValueError("stop_margin= is of stop=dominated: give that too, or leave it out")
        if self.teacher is not None and self.teacher_epochs is not None:
            raise ValueError("teacher= names finished weights, so teacher_epochs= has no use; leave one of them out")
        store.absolute(self.store)
        if self.store_key is not None:
            store.read_secret(Path(self.store_key))
        if self.mirrored is not None and store.check_url(self.mirrored) and self.storage is None:
            raise ValueError(
                f"out={self.mirrored} can't hold the study, which is a database: give storage= too, "
                "such as storage=postgresql+psycopg://host/name, or a folder as out="
            )

    def _check_box(self, box: Sequence[float]) -> None:
        if len(box) != 4:
            raise ValueError(f"box= needs 4 numbers, [error_low,error_high,cost_low,cost_high], but got {len(box)}")
        error_low, error_high, cost_low, cost_high = box
        if not 0 <= error_low < error_high <= 1:
            raise ValueError(
                f"0 <= error_low < error_high <= 1 must hold in box=, but got {error_low:g}, {error_high:g}"
            )
        if not 0 < cost_low < cost_high < math.inf:  # its axis is logarithmic
            raise ValueError(f"0 < cost_low < cost_high must hold in box=, but got {cost_low:g}, {cost_high:g}")

    def check_built_in(self) -> bool:
        """Whether the data come with the packages; then a pair or train_size= that don't fit them is refused.

        Raises:
            ValueError: one doesn't fit.
        """
        built_in = datasets.BUILT_IN.get(self.data)
        if built_in is None:
            return False
        pairs.check_images(self.networks, height=built_in.side, width=built_in.side)
        if self.train_size is not None:
            datasets.check_train_size(self.data, self.train_size, classes=built_in.classes, count=built_in.train)
        return True

    def check_resources(self, *, cores: float, gpus: float) -> None:
        """Refuse trials that could never start.

        Raises:
            ValueError: a trial asks for more than there is.
        """
        for name, asked, there in (("cpus", self.cpus, cores), ("gpus", self.gpus or 0, gpus)):
            if asked > there:
                raise ValueError(
                    f"{name} <= {there:g}, what there is, must hold for one trial, but got {name}={asked:g}"
                )

    @property
    def comparison(self) -> bool:
        """Whether the space compares systems: at equal total epochs, and all of them are confirmed."""
        return bool(getattr(spaces.load(self.space), "COMPARISON", False))

    def stage_epochs(self, stages: int) -> list[int]:
        """Epochs of each stage of a recipe of so many.

        Raises:
            ValueError: the total doesn't suffice for so many stages.
        """
        pair = self.networks
        return pairs.split_epochs(stages, pair, epochs=self.epochs, epochs_total=self.epochs_total)

    @property
    def menu(self) -> Menu:
        """What the space may choose from."""
        own = getattr(spaces.load(self.space), "MAX_STAGES", spaces.DEFAULT_MAX_STAGES)
        return Menu(
            methods=tuple(self.methods),
            max_stages=own if self.max_stages is None else self.max_stages,
            anchor=self.anchor,
            weighting=self.weighting,
            lambda_base=self.lambda_base,
        )

    @property
    def search_seeds(self) -> tuple[int, ...]:
        """One training a recipe for each of these."""
        return tuple(range(2 * _SEED_STRIDE * self.seed, 2 * _SEED_STRIDE * self.seed + self.seeds))

    @property
    def confirm_seeds(self) -> tuple[int, ...]:
        """Fresh ones, for the members of the front and the baseline."""
        first = 2 * _SEED_STRIDE * self.seed + _SEED_STRIDE
        return tuple(range(first, first + self.confirm))

    @property
    def costs(self) -> tuple[str, ...]:
        """What is minimised beside the error."""
        return tuple(self.cost.split(","))

    @property
    def limits(self) -> dict[str, float | None]:
        """The largest value that a recipe of the front may have, by the names of reports.front.LIMITS; None: any."""
        return {"params": self.max_params, "latency_ms": self.max_latency_ms, "flops": self.max_flops}

    @property
    def networks(self) -> Pair:
        """The teacher and student asked for, with their settings."""
        return pairs.choose(self.pair, self.teacher_model, self.student_model)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """The settings that decide the numbers of a search."""
        settings = {k: v for k, v in dataclasses.asdict(self).items() if k not in _FREE}
        # searches of before there were these settings go on
        return {k: v for k, v in settings.items() if k not in _LATER or v != _LATER[k]}

    @property
    def folder(self) -> Path:
        """Where the files of this run go: the same settings, the same folder. With a URL they are copied from there."""
        if self.mirrored is not None:
            return (Path("runs") / f"copied-{_digest(self.mirrored)}").absolute()
        if self.out is not None:
            return Path(self.out).absolute()
        return (Path("runs") / f"{self.space}-{self.pair}-{self.data}-{_digest(self.identity)}").absolute()

    @property
    def mirrored(self) -> str | None:
        """URL that the run's files are copied to; None: they stay in their folder."""
        return self.out if self.out is not None and store.is_url(self.out) else None

    @property
    def pipeline(self) -> dict[str, Any]:
        """What smskd.pipeline.prepare needs, with absolute paths: workers run in folders of their own."""
        files = {
            "data_dir": self.data_dir or datasets.downloads(self.data),
            "teacher": self.teacher,
            "store_key": self.store_key,
        }
        paths = {k: str(Path(v).absolute()) if v else None for k, v in files.items()}
        networks = ("pair", "teacher_model", "student_model", "teacher_epochs", "precision", "compile")
        plain = {k: getattr(self, k) for k in (*networks, "data", "train_size", "image_size")}
        return plain | paths | {"store": store.absolute(self.store)}


def _check_address(address: str) -> None:
    if address.startswith("ray://"):
        raise ValueError(
            f"address={address}: Ray's client doesn't keep a search through a lost connection; run the search "
            "on a node of the cluster (such as its head, or by a Ray job) with address=auto"
        )
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and "/" not in host and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"address= is auto, or host:port of a cluster's head, such as 10.0.0.1:6379, not {address}")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu() -> str:
    """The model of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def parse(argv: Sequence[str]) -> Config:
    """The config of a command line.

    Raises:
        ValueError: as Config, and smskd.cli.parse; or a setting is given that the space searches itself.
    """
    words = [_plain(word) for word in argv]
    config = cli.parse(Config, words)
    given = {word.partition("=")[0] for word in argv}
    unread = given & {"anchor", "weighting", "lambda_base", "methods", "max_stages"} - _reads(config)
    for key in sorted(unread):
        raise ValueError(
            f"{key}= has no effect in space={config.space}, which doesn't use it or searches it; leave it out"
        )
    return config


def _plain(word: str) -> str:
    """`cost=[a,b]` as the text that the field takes, and a single `warm_start=` as a list."""
    if word.startswith("cost=[") and word.endswith("]"):
        return word.replace("[", "").replace("]", "").replace(" ", "")
    key, _, value = word.partition("=")
    return f"{key}=[{value}]" if key == "warm_start" and value and value[0] != "[" else word


def parse_pairs(argv: Sequence[str]) -> list[Config]:
    """One config for each pair of a command line: `pair=[a,b]` names several, which differ in nothing else.

    Each of several has its folder, named as the pair, in one for all.

    Raises:
        ValueError: as parse; or a pair is named twice, or a setting is given that can't fit several pairs.
    """
    listed = next((word for word in argv if word.startswith("pair=[")), None)
    if listed is None:
        return [parse(argv)]
    named = cli.parse(_Pairs, [listed]).pair
    if not named:
        raise ValueError("pair= needs at least one pair, such as pair=[tiny,resnet56_resnet20]")
    if len(set(named)) < len(named):
        raise ValueError(f"pair= names one twice: [{','.join(named)}]")
    configs = [parse([f"pair={name}" if word is listed else word for word in argv]) for name in named]
    if len(configs) == 1:
        return configs
    first = configs[0]
    if first.mirrored is not None:
        raise ValueError(f"out={first.mirrored} can hold the run of one pair: name one, or give a folder as out=")
    for key, why in (
        ("teacher", "one file can't hold the teachers of several pairs"),
        ("storage", "one database holds the study of one pair"),
    ):
        if getattr(first, key) is not None:
            raise ValueError(f"{key}= can't be given with several pairs, since {why}; leave it out, or name one pair")
    # whatever their order, the same pairs have the same folder
    digest = _digest(sorted((config.identity for config in configs), key=lambda identity: str(identity["pair"])))
    default = Path("runs") / f"{first.space}-{len(configs)}pairs-{first.data}-{digest}"
    folder = (default if first.out is None else Path(first.out)).absolute()
    return [dataclasses.replace(config, out=str(folder / str(config.pair))) for config in configs]


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    pair: list[str]


def _digest(identity: Any) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def help_text() -> str:
    """What --help prints."""
    listed = [f"  {name:26} {line}" for name, line in spaces.available().items()]
    return "\n".join(
        [
            "Search over recipes of sequential multi-stage knowledge distillation.",
            "",
            "  python -m search.run space=stage_order pair=tiny data=digits",
            "",
            "Run the same command again to go on after an interruption: finished stages are never trained again.",
            "",
            "keys and defaults:",
            *cli.describe(Config),
            "",
            "spaces (one a file in spaces/):",
            *listed,
            "",
            "exit codes: 0 done; 2 bad input; 3 finished with failures; 4 nothing finished, or the disk is full; "
            "130 interrupted",
        ]
    )


def _reads(config: Config) -> set[str]:
    """Which fields of the menu the space looks at, by watching it suggest one recipe."""
    seen: set[str] = set()

    class Watched(Menu):
        def __getattribute__(self, name: str) -> Any:
            seen.add(name)
            return super().__getattribute__(name)

    watched = Watched(**dataclasses.asdict(config.menu))
    spaces.load(config.space).suggest(FirstChoice(), watched)
    return seen


class FirstChoice:
    """A trial that takes the first of everything: for a look at what a space does."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        return choices[0]

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return low

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return low
