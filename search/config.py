"""Every setting of a search: what `python -m search.run key=value ...` accepts. No torch, no Ray, no Optuna."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import spaces
from search import ranges, storages
from search.ranges import Range
from search.space import SearchSpace
from smskd import cli, code, datasets, experiment, methods, names, pairs, store
from smskd.experiment import Experiment
from smskd.notation import parse as parse_recipe
from smskd.pairs import Pair
from smskd.recipe import SETTINGS, SHORTHANDS, Recipe, declaration, stage_number
from smskd.settings import Value, check_all, declared, described, setting, text_of
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


def _free(default: Value, help: str, **bounds: Any) -> Any:
    """A setting that decides no number of a search: it may change when a run is taken up again."""
    made = setting(default, help, **bounds)
    return dataclasses.field(default=default, metadata=dict(made.metadata) | {"free": True})


@dataclass(frozen=True, kw_only=True)
class Config:
    """One search: its own settings here, and those of the experiment and of recipes, which have declarations elsewhere.

    None means: chosen by the program, as the help says. settings, ranges: of recipes, by key: fixed, or searched.

    Raises:
        ValueError: a value is out of range, or a name unknown.
    """

    space: str = setting("stage_order", "what is searched; the spaces are listed below; or a file such as mine.py")
    methods: tuple[str, ...] = setting(
        ("kd", "fitnets", "rkd"),
        "what a stage can be: " + ", ".join(methods.available()) + ", a file such as my_loss.py, joint ones as kd+rkd",
    )
    max_stages: int | None = setting(None, "longest recipe, in stages (default: the space's own)", low=1, high=100)
    seeds: int = setting(3, "seeds per recipe in the search", low=1, high=_SEED_STRIDE)
    confirm: int = _free(
        5,
        "fresh seeds for each member of the front and for the baseline, on the test split; 0: leave that out",
        low=0,
        high=_SEED_STRIDE,
    )
    protocol: str = _free(
        "honest",
        "of the confirmation; paper also looks at the test split after every epoch and records the best, in a column "
        "that nothing is chosen by",
        choices=PROTOCOLS,
    )
    train_on: str = _free(
        "train",
        "of the confirmation; all: it and its teacher are trained on the validation images, too, as published numbers "
        "are",
        choices=("train", "all"),
    )
    seed: int = setting(0, "of the whole study; another one draws everything anew", low=0)
    trials: int | None = _free(None, "how many recipes at most (default: all of a finite space, else 40)", low=1)
    sampler: str | None = setting(
        None, "default: exhaustive for finite spaces, tpe otherwise; one of", choices=SAMPLERS
    )
    cost: tuple[str, ...] = setting(("flops",), "what the front has beside the error, one or two of", choices=COSTS)
    max_params: int | None = setting(None, "refuse a student of more parameters", above=0)
    max_latency_ms: float | None = setting(
        None, "refuse a student that takes longer for one image, in milliseconds, where its trials run", above=0
    )
    max_flops: float | None = setting(
        None, "leave out recipes that cost more to train, by FLOPs counted before: listed, not trained", above=0
    )
    stop: str = setting(
        "none",
        "dominated: a recipe gives up its later stages when those it has finished, over all seeds, are dominated by a "
        "finished recipe that costs no more and is better by more than stop_margin=; these stay as a recipe of "
        "their own",
        choices=STOPS,
    )
    stop_margin: float = setting(1.0, "of stop=dominated, in points of validation accuracy", low=0, high=100)
    warm_start: tuple[str, ...] | None = _free(
        None,
        "folders (or database URLs) of other runs of the same pair, data and cost: what they found is made known to "
        "the sampler as it stands, also where seeds, epochs or the space differ, and is no result of this run: a "
        "recipe of theirs is in its tables only if it is trained here, of which the store spares what it has",
    )
    cpus: float | None = _free(None, "CPU cores per trial (default: as many as threads=)", above=0)
    gpus: float | None = _free(None, "GPUs per trial, fractions allowed (default: 1 if there are any, else 0)", low=0)
    hang_after: float = _free(
        3600.0,
        "seconds without progress (a step of training, a stage) after which a trial's worker is ended, and the trial "
        "tried again; loading the data and compiling have to fit in",
        low=1,
    )
    address: str | None = _free(
        None, "Ray cluster, of which this machine is a node: auto, or host:port of its head (default: this machine)"
    )
    insecure: bool = _free(False, "with address=: allow a cluster that asks for no token, whoever can reach it")
    log: tuple[str, ...] = _free(
        ("tensorboard",), "scalars of each trial go to: " + ", ".join(LOGGERS) + "; [] for none"
    )
    store: str = _free(
        "runs/store",
        "finished stages, shared by runs: a folder, or a URL such as s3://bucket/folder, of what pyarrow.fs knows; "
        "?scheme=http&endpoint_override=host:port names a server of one's own",
    )
    store_key: str | None = _free(
        None,
        "file of 32 random bytes or more, its owner's alone: signs the store's entries, and those that it hasn't "
        "signed are trained anew; the same for all who use the store, and at this place on every machine",
    )
    out: str | None = _free(
        None,
        "folder of this run, with one in it for each of several pairs (default: runs/<space>-<pair, or "
        "their number>-<data>-<digest of the settings>); or a URL, as in store=: the files in runs/ are copied there",
    )
    storage: str | None = _free(
        None,
        "where the Optuna study is: postgresql+psycopg://user@host/database, of which one search makes use, or "
        "sqlite:///FILE (default: study.db in the run's folder)",
    )
    box: tuple[float, ...] | None = _free(
        None,
        "[error_low,error_high,cost_low,cost_high]: where hypervolume is measured, fixed when a run begins (default: "
        "errors from 0 to three times the teacher's on validation (of one from a file the larger of that and test) and "
        "0.05 more, at most that of guessing; costs from half of what the shortest recipe takes of the bare student's "
        "training to 1.5 times the longest's with teacher and reference, in seconds twice as far either way; or from "
        "half to twice a cost that all recipes share)",
    )
    reopen_test: bool = _free(
        False, "allow a second look at the test split, for a front that has changed; the report says so"
    )
    experiment: Experiment = field(default_factory=Experiment)
    settings: Mapping[str, Value] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_all(self)
        if not code.is_file(self.space):
            names.check("space", self.space, spaces.available())
        if not len(set(self.cost)) == len(self.cost) in (1, 2):
            raise ValueError(f"cost= takes one or two different costs, but got {text_of(self.cost)}")
        if self.protocol == "paper" and self.confirm == 0:
            raise ValueError("protocol=paper is of the confirmation, so confirm >= 1 must hold, but got confirm=0")
        self._check_train_on()
        self._check_log()
        if self.storage is not None:
            storages.check(self.storage)
        if self.address is not None:
            _check_address(self.address)
        elif self.insecure:
            raise ValueError("insecure=true is of a cluster: give address= too, or leave it out")
        self._check_methods()
        if self.box is not None:
            self._check_box(self.box)
        if self.cpus is None:
            object.__setattr__(self, "cpus", float(self.experiment.threads))
        self._check_settings()
        if self.stop == "none" and self.stop_margin != Config.stop_margin:
            raise ValueError("stop_margin= is of stop=dominated: give that too, or leave it out")
        store.absolute(self.store)
        if self.store_key is not None:
            store.read_secret(Path(self.store_key))
        if self.mirrored is not None and store.check_url(self.mirrored) and self.storage is None:
            raise ValueError(
                f"out={self.mirrored} can't hold the study, which is a database: give storage= too, "
                "such as storage=postgresql+psycopg://host/name, or a folder as out="
            )

    def _check_train_on(self) -> None:
        if self.experiment.train_on == "all":
            raise ValueError(
                "a search chooses by validation images, so its experiment can't train on them: train_on=all of the "
                "search itself is of the confirmation alone"
            )
        if self.train_on == "all" and self.confirm == 0:
            raise ValueError("train_on=all is of the confirmation, so confirm >= 1 must hold, but got confirm=0")
        self.experiment_of("confirm")  # whose settings must go together

    def _check_log(self) -> None:
        for name in self.log:
            package, distribution = LOGGERS[names.check("log", name, LOGGERS)]
            if importlib.util.find_spec(package) is None:
                raise ValueError(
                    f"log=[{name}] needs {package}, which isn't here: python -m pip install {distribution}"
                )
        if len(set(self.log)) < len(self.log):
            raise ValueError(f"log= names one twice: {text_of(self.log)}")

    def _check_methods(self) -> None:
        if not self.methods:
            raise ValueError("methods= needs at least one method, such as methods=[kd,rkd]")
        made = [parse_recipe(text) for text in self.methods]
        if any(recipe != Recipe(stages=recipe.stages[:1]) for recipe in made):  # or what is of a recipe would be lost
            raise ValueError(f"methods= are what one stage can be, such as kd+rkd, but got {text_of(self.methods)}")
        notations = tuple(str(recipe.stages[0]) for recipe in made)
        if len(set(notations)) < len(notations):
            raise ValueError(f"methods= names one twice: {text_of(notations)}")
        object.__setattr__(self, "methods", notations)

    def _check_settings(self) -> None:
        """Settings of recipes, as far as they can be seen to be wrong without a recipe."""
        given = {**self.settings, **self.ranges}
        if self.comparison and "epochs" in given:
            raise ValueError(f"space={self.space} compares at equal totals: give epochs_total= in place of epochs=")
        if self.comparison and "epochs_total" not in given:
            each = self.experiment.defaults.get("epochs", declared_default("epochs"))
            object.__setattr__(self, "settings", {**self.settings, "epochs_total": _COMPARISON_STAGES * each})
            given = {**self.settings, **self.ranges}
        if "epochs_total" in given and (twice := [key for key in given if key.rpartition(".")[2] == "epochs"]):
            raise ValueError(
                f"{twice[0]}= is for each stage and epochs_total= for all of them: leave one out of "
                f"{twice[0]}={_shown(given[twice[0]])} and epochs_total={_shown(given['epochs_total'])}"
            )
        if "split" in given and "epochs_total" not in given:
            raise ValueError("split= divides epochs_total=, which is missing: add it, or give epochs= of each stage")
        if self.stop != "none" and "epochs_total" in given:
            raise ValueError(
                f"stop={self.stop} compares a recipe's first stages with shorter recipes, but where epochs_total= is "
                "split these have longer stages: leave stop= out, or give epochs= (which space=systems doesn't take)"
            )
        stages = [parse_recipe(text).stages[0] for text in self.methods]
        for key in given:
            method = key.split(".")[-2] if "." in key else ""
            if method in methods.available() and not any(method in stage.methods for stage in stages):
                raise ValueError(f"{key}= has no effect: {method} is in no stage of methods={text_of(self.methods)}")
            part = "epochs" if key in SHORTHANDS else stage_number(key)[1]
            if said := [str(stage) for stage in stages if part in dict(stage.settings)]:
                raise ValueError(f"{key}={_shown(given[key])} and methods=[{said[0]}] both say {part}: leave one out")

    def check_built_in(self) -> bool:
        """Whether the data come with the packages; then a pair or train_size= that don't fit them is refused.

        Raises:
            ValueError: one doesn't fit.
        """
        made = self.experiment
        built_in = datasets.BUILT_IN.get(made.data)
        if built_in is None:
            return False
        pairs.check_images(made.networks, height=built_in.side, width=built_in.side)
        if made.train_size is not None:
            datasets.check_train_size(made.data, made.train_size, classes=built_in.classes, count=built_in.train)
        return True

    def check_resources(self, *, cores: float, gpus: float) -> None:
        """Refuse trials that could never start.

        Raises:
            ValueError: a trial asks for more than there is.
        """
        for name, asked, there in (("cpus", self.cpus or 0, cores), ("gpus", self.gpus or 0, gpus)):
            if asked > there:
                raise ValueError(
                    f"{name} <= {there:g}, what there is, must hold for one trial, but got {name}={asked:g}"
                )

    @property
    def comparison(self) -> bool:
        """Whether the space compares systems: at equal total epochs, and all of them are confirmed."""
        return bool(getattr(spaces.load(self.space), "COMPARISON", False))

    def epochs(self, recipe: Recipe) -> list[int]:
        """Of each stage."""
        return [stage.training(self.experiment.defaults).epochs for stage in recipe.stages]

    @property
    def menu(self) -> Menu:
        """What the space may choose from."""
        own = getattr(spaces.load(self.space), "MAX_STAGES", spaces.DEFAULT_MAX_STAGES)
        return Menu(
            methods=self.methods,
            max_stages=own if self.max_stages is None else self.max_stages,
            defaults=self.experiment.defaults,
            fixed={key: value for key, value in self.settings.items() if key in SETTINGS},
            taken=frozenset({*self.settings, *self.ranges}),
            epochs_total=self.settings.get("epochs_total"),
        )

    def search_space(self) -> SearchSpace:
        """The space's recipes, with what the command line sets and searches."""
        return SearchSpace(self.space, self.menu, self.settings, self.ranges, self.experiment)

    @property
    def pair(self) -> str:
        return self.networks.name

    @property
    def networks(self) -> Pair:
        """The teacher and student asked for, with their settings."""
        return self.experiment.networks

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
    def limits(self) -> dict[str, float | None]:
        """The largest value that a recipe of the front may have, by the names of reports.front.LIMITS; None: any."""
        return {"params": self.max_params, "latency_ms": self.max_latency_ms, "flops": self.max_flops}

    @property
    def told(self) -> dict[str, str]:
        """What is fixed and searched of recipes, as text, by key."""
        return {key: _shown(value) for key, value in {**self.settings, **self.ranges}.items()}

    def to_dict(self) -> dict[str, Any]:
        """The search's own settings, plain."""
        values = {name: getattr(self, name) for name in SETTINGS_OF_SEARCH}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """The settings that decide the numbers of a search; a run folder holds one search only."""
        free = {one.name for one in dataclasses.fields(self) if one.metadata.get("free")}
        own = {name: value for name, value in self.to_dict().items() if name not in free}
        made = self.experiment.to_dict()
        stamps = [*(made.pop("code", None) or ()), *(code.stamps([self.space]) if code.is_file(self.space) else ())]
        files = {f"code of {file}": digest[:16] for file, _, digest in (stamp.partition("@") for stamp in stamps)}
        # confirmations of two kinds don't stand in one folder; those before there were two go on
        own |= {"train_on": self.train_on} if self.train_on != Config.train_on else {}
        return own | {"cost": ",".join(self.cost)} | made | files | self.told

    @property
    def folder(self) -> Path:
        """Where the files of this run go: the same settings, the same folder. With a URL they are copied from there."""
        if self.mirrored is not None:
            return (Path("runs") / f"copied-{_digest(self.mirrored)}").absolute()
        if self.out is not None:
            return Path(self.out).absolute()
        parts = [one.partition(".py")[0] for one in (self.space, self.pair, self.experiment.data)]
        name = f"{'-'.join(parts)}-{_digest(self.identity)}"
        return (Path("runs") / name).absolute()

    @property
    def mirrored(self) -> str | None:
        """URL that the run's files are copied to; None: they stay in their folder."""
        return self.out if self.out is not None and store.is_url(self.out) else None

    def experiment_of(self, phase: str) -> Experiment:
        """That of the `search`, or of the `confirm` phase."""
        if phase == "search" or self.train_on == self.experiment.train_on:
            return self.experiment
        return dataclasses.replace(self.experiment, train_on=self.train_on)

    def worker(self, phase: str) -> dict[str, Any]:
        """What a worker needs to make its bench, plain, with absolute paths: workers run in folders of their own."""
        key = self.store_key and str(Path(self.store_key).absolute())
        made = self.experiment_of(phase).with_absolute_paths().to_dict()
        return {"experiment": made, "store": store.absolute(self.store), "store_key": key}

    @staticmethod
    def _check_box(box: Sequence[float]) -> None:
        if len(box) != 4:
            raise ValueError(f"box= needs 4 numbers, [error_low,error_high,cost_low,cost_high], but got {len(box)}")
        error_low, error_high, cost_low, cost_high = box
        if not 0 <= error_low < error_high <= 1:
            raise ValueError(
                f"0 <= error_low < error_high <= 1 must hold in box=, but got {error_low:g}, {error_high:g}"
            )
        if not 0 < cost_low < cost_high < math.inf:  # its axis is logarithmic
            raise ValueError(f"0 < cost_low < cost_high must hold in box=, but got {cost_low:g}, {cost_high:g}")


SETTINGS_OF_SEARCH = declared(Config)


def declared_default(key: str) -> Value:
    """Of a setting of recipes."""
    one = declaration(key)
    assert one is not None, f"{key} is a setting"
    return one.default


def _shown(value: Value | Range) -> str:
    return value.text if isinstance(value, Range) else text_of(value)


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
    """Cores that this process may use; macOS doesn't tell, and all count."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


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
        ValueError: as Config, and smskd.cli; or a setting is given that the space searches itself or doesn't use.
    """
    said = cli.split(argv)
    for key, text in said.items():
        if (key in SETTINGS_OF_SEARCH or key in experiment.SETTINGS) and ranges.is_range(text):
            raise ValueError(
                f"{key}={text}: {key} can't be a range, since it is the same for all recipes of a search; "
                "settings of recipes can, such as learning_rate=interval(0.01,0.2)"
            )
    given = cli.use_files(said)
    own: dict[str, Value] = {}
    made: dict[str, Value] = {}
    settings: dict[str, Value] = {}
    searched: dict[str, Range] = {}
    for key, text in given.items():
        cli.check(key, [*SETTINGS_OF_SEARCH, *experiment.SETTINGS], recipes_too=True)
        if key in SETTINGS_OF_SEARCH or key in experiment.SETTINGS:
            (own if key in SETTINGS_OF_SEARCH else made)[key] = text
        elif ranges.is_range(text):
            searched[key] = ranges.parse(key, text)
        else:
            one = declaration(key)
            assert one is not None, "the keys were checked"
            settings[key] = one.read(text)
    config_of = {key: SETTINGS_OF_SEARCH[key].read(text) for key, text in own.items()}
    if "cpus" in config_of and "threads" not in made:
        most = experiment.SETTINGS["threads"].high or 1
        made["threads"] = int(min(most, max(1, config_of["cpus"])))
    config = Config(**config_of, experiment=cli.build(Experiment, made), settings=settings, ranges=searched)
    if of_menu := given.keys() & {"methods", "max_stages"}:
        for key in sorted(of_menu - _reads(config)):
            raise ValueError(
                f"{key}= has no effect in space={config.space}, which doesn't use it or searches it; leave it out"
            )
    return config


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
        raise ValueError(f"pair= names one twice: {text_of(named)}")
    configs = [parse([f"pair={name}" if word is listed else word for word in argv]) for name in named]
    if len(configs) == 1:
        return configs
    first = configs[0]
    if first.mirrored is not None:
        raise ValueError(f"out={first.mirrored} can hold the run of one pair: name one, or give a folder as out=")
    for key, value, why in (
        ("teacher", first.experiment.teacher, "one file can't hold the teachers of several pairs"),
        ("storage", first.storage, "one database holds the study of one pair"),
    ):
        if value is not None:
            raise ValueError(f"{key}= can't be given with several pairs, since {why}; leave it out, or name one pair")
    # whatever their order, the same pairs have the same folder
    digest = _digest(sorted((config.identity for config in configs), key=lambda identity: str(identity["pair"])))
    default = Path("runs") / f"{first.space}-{len(configs)}pairs-{first.experiment.data}-{digest}"
    folder = (default if first.out is None else Path(first.out)).absolute()
    return [dataclasses.replace(config, out=str(folder / config.pair)) for config in configs]


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    pair: tuple[str, ...] = setting((), "several pairs")


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
            "the search, keys and defaults:",
            *described(SETTINGS_OF_SEARCH.values()),
            *cli.help_of_settings(SETTINGS_OF_SEARCH),
            "What is of recipes can be fixed, or searched: learning_rate=interval(0.01,0.2) or",
            "tag(log,interval(0.01,0.2)), kd.temperature=choice(1,2,4,8), stage_2.epochs=range(5,30,5).",
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

    menu = config.menu
    watched = Watched(**{one.name: getattr(menu, one.name) for one in dataclasses.fields(menu)})
    space = SearchSpace(config.space, watched, config.settings, config.ranges, config.experiment)
    space(cast(Any, FirstChoice()))
    return seen


class FirstChoice:
    """A trial that takes the first of everything: for a look at what a space does."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return choices[0]

    def suggest_int(self, name: str, low: int, high: int, **more: Any) -> int:
        return low

    def suggest_float(self, name: str, low: float, high: float, **more: Any) -> float:
        return low
