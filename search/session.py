"""One invocation of the search of one pair: its study, what each phase runs, what is counted. Run by search.several."""

from __future__ import annotations

import resource
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from reports import budget
from reports.front import COSTS, LIMITS
from reports.gains import baseline
from reports.text import accuracies, cost_text
from search import box, draws, jobs, outputs, plan_file, storages
from search.config import Config, cores
from search.progress import FrontLine, Standing, brief
from search.study import Design, Goal, Limits, Study
from smskd.components import CIFAR
from smskd.notation import parse
from smskd.recipe import Recipe
from smskd.result import COMPLETE, FAILED, PRUNED, Result, of_dict
from smskd.store import open_store

if TYPE_CHECKING:
    from search.searcher import Trials
    from smskd.data import Data

# Notes on the study: what is known of teacher and data; where hypervolume is measured; the front the test was opened
# for; a fresh seed's result.
_BENCH, _BOX, _OPENED, _CONFIRMED = "bench", "box", "test opened", "confirmed "
# Of train_on=all: the digest of the confirmation's teacher.
_TEACHER_ON_ALL = "teacher on all"


class Session:
    """What is left to search, the front when it is frozen, its members on fresh seeds, the files."""

    def __init__(self, config: Config, console: Console) -> None:
        """Open the study of the run's folder; the caller holds the folder's lock.

        Raises:
            ValueError: the folder holds another search, or a setting doesn't fit the space.
        """
        self.config, self.pair, self._console = config, config.networks.name, console
        self._started = time.monotonic()
        self.trained = {"search": 0, "confirm": 0}
        self._failed_to_confirm: list[tuple[Recipe, Result]] = []
        self.refusal: str | None = None
        self._bench: dict[str, Any] | None = None
        self._counter: Any = None
        self._counted: dict[str, float] = {}
        self.scope = draws.look(config.search_space())
        self.study = Study(
            self.scope,
            storages.url(config.storage, config.folder),
            identity=config.identity,
            goal=Goal(values=self._objective, costs=config.cost, limits=self._limits()),
            design=Design(
                seeds=config.search_seeds,
                sampler=config.sampler,
                trials=config.trials,
                seed=config.seed,
                margin=config.stop_margin / 100 if config.stop == "dominated" else None,
            ),
            sources=_sources(config),
        )
        # what is known of teacher, student and data, once a driver has asked; looked at for each record
        self._bench = self.study.attributes.get(_BENCH)
        fixed_box = self.study.attributes.get(_BOX)
        if fixed_box and config.box not in (None, (*fixed_box["error"], *fixed_box["cost"])):
            fixed = ",".join(f"{value:g}" for value in (*fixed_box["error"], *fixed_box["cost"]))
            raise ValueError(
                f"this run's box was fixed as [{fixed}] when it began: leave box= out, or use another out="
            )

    @property
    def met(self) -> bool:
        """Whether teacher and data are known."""
        return self._bench is not None

    @property
    def device(self) -> str:
        """What trials have run on, as a stage's key has it."""
        return str(self._known_bench["environment"]["device"])

    def work_left(self) -> bool:
        """Whether anything is still to be trained."""
        return self._bench is None or not self.study.complete() or bool(self._to_confirm())

    def check_inputs(self) -> None:
        """Load data and teacher as a worker will, before anything starts.

        Raises:
            ValueError: one of them is missing or doesn't fit the pair, or this machine hasn't the cores or GPUs.
        """
        config = self.config
        bounded = config.max_params is not None or config.max_flops is not None
        shipped = all(one.kind == CIFAR for one in (config.networks.teacher, config.networks.student))
        given = any((config.experiment.teacher, config.experiment.student, config.experiment.code))
        if not (config.check_built_in() and shipped) or given or bounded:  # torch takes seconds to import
            from smskd import bench

            bench.check(config.experiment, self._data())
            self._check_limits()
        if config.address is None and ((config.cpus or 0) > cores() or config.gpus):
            import torch

            config.check_resources(cores=cores(), gpus=torch.cuda.device_count())

    def source(self, phase: str) -> jobs.Source | None:
        """The trials of a phase, `search` or `confirm`; None if there are none. For `confirm` the front is frozen."""
        if phase == "search":
            if self.study.complete():
                return None
            return jobs.StudySource(self.study, self.config.search_seeds, self.pair)
        fresh = [
            jobs.Job(pair=self.pair, recipe=str(recipe), seed=seed, test=True)
            for recipe, seed in self._to_confirm(freeze=True)
        ]
        return jobs.ListSource(fresh, self._keep) if fresh else None

    def trials(self, device: str, phase: str) -> Trials:
        """What the trials of a phase have in common, on devices of this kind: `cpu` or `cuda`."""
        from search import searcher  # Ray takes seconds to import

        config = self.config
        settings = {
            "worker": config.worker(phase),
            "device": device,
            "latency": "latency" in config.cost or config.max_latency_ms is not None,
            "max_latency_ms": config.max_latency_ms,
            "timed": config.cost[0] == "seconds" and config.box is None,  # the box needs the time of a step
            "protocol": config.protocol,
            "log": bool(config.log),
        }
        known, meet = self._teacher_digest, self._meet
        if phase == "confirm" and config.train_on == "all":
            known, meet = self._teacher_on_all, self._meet_on_all
        return searcher.Trials(settings=settings, epochs=config.epochs, digest=known, meet=meet)

    def ended(self, phase: str, trained: int) -> None:
        """Count the stages that a trial of a phase has trained."""
        self.trained[phase] += trained

    def write(self, *, finished: bool) -> pd.DataFrame | None:
        """Write the run's files; the summary of its recipes, or None if nothing is known yet."""
        if self._bench is None:
            return None
        opened = self.study.attributes.get(_OPENED, {})
        settled, confirmed = self.study.settled, self._confirmed()
        store = open_store(self.config.store, self.config.store_key)
        records = [record for found in (settled, confirmed) for _, told in found.values() for record in told]
        store.own(
            self.config.mirrored or self.config.folder,
            (stage.key for record in records for stage in record.stages),
        )
        facts = {
            "stage_runs": self.trained["search"],
            "stage_runs_unshared": sum(
                len(record.stages if record.status == PRUNED else recipe.stages)
                for recipe, records in settled.values()
                for record in records
            ),
            "seconds": time.monotonic() - self._started,
            "sampler": self.study.sampler,
            "confirm": {
                "seeds": list(self.config.confirm_seeds),
                "train_on": self.config.train_on,
                "stage_runs": self.trained["confirm"],
                "opened": opened.get("time"),
                "reopened": opened.get("reopened", False),
            },
            "store_bytes": store.size_bytes(),
            "driver_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "finished": datetime.now(UTC).isoformat(timespec="seconds") if finished else None,
        }
        return outputs.write(
            self.config,
            self._known_bench,
            settled,
            confirmed,
            {"box": self.box(), "plan": self.planned(), **facts},
        )

    def box(self) -> dict[str, Any]:
        """Where hypervolume is measured, as run.json has it; decided when it is first asked for, and kept."""
        noted: dict[str, Any] | None = self.study.attributes.get(_BOX)
        if noted is None:
            noted = box.decide(self.config, self._known_bench, self.scope.recipes)
            self.study.note(_BOX, noted)
        return noted

    def _data(self) -> Data:
        from smskd import bench  # torch takes seconds to import

        return bench.load_data(self.config.experiment)

    @property
    def causes(self) -> set[str]:
        """Why trials of the search failed."""
        return {str(r.error) for _, records in self.study.settled.values() for r in records if r.error}

    @property
    def failed(self) -> int:
        """Trials that failed in this invocation."""
        search = sum(record.status == FAILED for _, records in self.study.settled.values() for record in records)
        return search + len(self._failed_to_confirm)

    @property
    def stage_runs(self) -> int:
        """Stages that this invocation trained, in both phases."""
        return sum(self.trained.values())

    @property
    def _known_bench(self) -> dict[str, Any]:
        assert self._bench is not None, "the bench is noted before anything runs"
        return self._bench

    def _objective(self, record: Result) -> tuple[float, ...]:
        """Error on validation, and the chosen costs."""
        costs = self._measured(record)
        return 1 - record.val_accuracy, *(costs[COSTS[cost]] for cost in self.config.cost)

    def _measured(self, record: Result) -> dict[str, float]:
        """What a finished training took, by the names of the table's columns."""
        return {
            "train_flops": record.train_flops,
            "device_seconds": record.device_seconds,
            "params": float(record.params or 0),
            "latency_ms": float((self._bench or {}).get("latency_ms") or 0),
        }

    def _limits(self) -> Limits | None:
        """The limits that are set, for the study."""
        bounds = {name: float(bound) for name, bound in self.config.limits.items() if bound is not None}
        if not bounds:
            return None
        return Limits(
            bounds=bounds,
            measured=lambda record: {name: self._measured(record)[LIMITS[name]] for name in bounds},
            foreseen=lambda recipe: {"flops": self._flops(recipe)} if "flops" in bounds else {},
        )

    def _flops(self, recipe: Recipe) -> float:
        """What a recipe's training costs, counted with networks that are built here and not trained."""
        if recipe.id not in self._counted:
            if self._counter is None:
                from smskd import pipeline  # torch takes seconds to import

                self._counter = pipeline.Counter(self.config.experiment, self._data())
            self._counted[recipe.id] = self._counter.recipe(recipe)
        return self._counted[recipe.id]

    def _check_limits(self) -> None:
        """Refuse limits that no recipe can keep to; that of the latency is for the workers, where the device is."""
        from smskd import cost, models

        config, pair = self.config, self.config.networks
        if config.max_params is not None:
            data = self._data()
            student = models.build(pair.student, **data.shape)
            if (there := cost.parameters(student)) > config.max_params:
                raise ValueError(
                    f"max_params={config.max_params} can't hold for any recipe: the student of pair={pair.name} has "
                    f"{there} parameters; give more, or another pair"
                )
        if config.max_flops is not None:
            cheapest = min(self.scope.recipes, key=self._flops)
            if (least := self._flops(cheapest)) > config.max_flops:
                raise ValueError(
                    f"max_flops={config.max_flops:g} can't hold for any recipe: the cheapest, {cheapest}, takes "
                    f"{least:.4g} FLOPs; give more, or fewer epochs"
                )

    def _teacher_digest(self) -> str | None:
        return None if self._bench is None else str(self._bench["teacher"]["digest"])

    def _meet(self, bench: dict[str, Any]) -> None:
        """Keep what the first trial says of data and teacher."""
        self.study.note(_BENCH, bench)
        self._bench = bench
        self.box()
        self.say_teacher()

    def _teacher_on_all(self) -> str | None:
        digest: str | None = self.study.attributes.get(_TEACHER_ON_ALL)
        return digest

    def _meet_on_all(self, bench: dict[str, Any]) -> None:
        self.study.note(_TEACHER_ON_ALL, bench["teacher"]["digest"])

    def say_teacher(self) -> None:
        """Print which teacher it is, and how good."""
        teacher = self._known_bench["teacher"]
        self._console.print(f"teacher {teacher['name']}, {teacher['source']}: {accuracies(teacher)}", markup=False)
        for warning in teacher.get("warnings", ()):
            self._console.print(Text.assemble(("warning: ", "bold yellow"), warning))

    def standing(self) -> Standing:
        """The front so far, in order of cost, and its hypervolume."""
        settled = self.study.settled
        if self._bench is None or not settled:
            return Standing(pair=self.pair, recipes=0, front=[], hypervolume=None)
        table = outputs.summary(self.config, self._known_bench, settled)
        fixed = self.box()
        allowed = table.loc[table["feasible"], ["val_accuracy", "cost"]].to_numpy()
        box = budget.Box(error=fixed["error"], cost=fixed["cost"])
        return Standing(
            pair=self.pair,
            recipes=self.counts()[0],
            hypervolume=budget.hypervolume(allowed * [-1, 1] + [1, 0], box) if len(allowed) else None,
            front=[
                FrontLine(
                    letter=row["letter"],
                    recipe=brief(settled[row["recipe_id"]][0]),
                    val_accuracy=row["val_accuracy"],
                    val_half_width=row["val_half_width"],
                    cost=cost_text(self.config.cost[0], row["cost"]),
                    seeds=f"{row['seeds']}/{self.config.seeds}",
                )
                for row in table[table["front"]].to_dict("records")
            ],
        )

    def counts(self) -> tuple[int, int]:
        """Recipes that are finished or have failed, and how many there will be, beside those that break a limit."""
        done = len(self.study.settled) - self.study.refused
        return done, max(self.study.limit, done)

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of training of all stages of the search, by key, whoever trained them."""
        return {
            stage.key: stage.device_seconds
            for _, records in self.study.settled.values()
            for record in records
            for stage in record.stages
        }

    def planned(self) -> dict[str, Any] | None:
        """What a plan said of this run before, if there was one, beside what the search has spent."""
        said = plan_file.read(self.config.folder)
        return None if said is None else said | {"spent_device_seconds": sum(self.stages.values())}

    def _to_confirm(self, *, freeze: bool = False) -> list[tuple[Recipe, int]]:
        """Members of the front, and the baseline, with fresh seeds that they haven't run with.

        freeze: note the front as the one that the test split is opened for. If it was opened for another one before,
        nothing is confirmed, and `refusal` says so, unless reopen_test is set.
        """
        if self._bench is None or not self.config.confirm_seeds or not self.study.settled:
            return []
        settled = self.study.settled
        table = outputs.summary(self.config, self._known_bench, settled)
        chosen = table.loc[table["front"] | self.config.comparison, "recipe_id"].tolist()
        # what gains are over runs on the same seeds; it wasn't chosen, so that to look at it selects nothing
        members = list(dict.fromkeys([*chosen, *filter(None, [baseline(table)])])) if chosen else []
        opened = self.study.attributes.get(_OPENED)
        before = opened["front"] if opened else chosen
        new = [settled[member][0] for member in chosen if member not in before]
        if opened and new and not self.config.reopen_test:
            self.refusal = (
                f"the test split was opened on {opened['time']}, and the front has changed since: "
                f"{', '.join(map(str, new))} came to it. Looking again makes the test a part of the selection; "
                f"reopen_test=true does so, and the report will say it"
            )
            return []
        if freeze and members and (new or not opened):
            now = datetime.now(UTC).isoformat(timespec="seconds")
            frozen = sorted({*members, *(opened["front"] if opened else [])})
            self.study.note(_OPENED, {"time": now, "front": frozen, "reopened": bool(opened)})
        paper = self.config.protocol == "paper"
        done = {
            (recipe.id, record.seed)
            for recipe, records in self._confirmed().values()
            for record in records
            if not paper or record.status == FAILED or record.test_best_accuracy is not None
        }
        return [
            (settled[member][0], seed)
            for member in sorted(members, key=lambda m: len(settled[m][0].stages))  # shortest first: others begin so
            for seed in self.config.confirm_seeds
            if (member, seed) not in done
        ]

    def _keep(self, job: jobs.Job, record: Result) -> None:
        if record.status == COMPLETE:
            self.study.note(f"{_CONFIRMED}{job.recipe} {job.seed}", record.to_dict())
        else:  # not noted, so that the same command tries again
            self._failed_to_confirm.append((parse(job.recipe), record))

    def _confirmed(self) -> dict[str, tuple[Recipe, list[Result]]]:
        """Recipe id -> recipe and the records of its fresh seeds, of those that have any."""
        noted = [of_dict(n) for key, n in sorted(self.study.attributes.items()) if key.startswith(_CONFIRMED)]
        found: dict[str, tuple[Recipe, list[Result]]] = {}
        records = [(parse(one.recipe), one) for one in noted if one.seed in self.config.confirm_seeds]
        known = {(recipe.id, record.seed) for recipe, record in records}
        # one that was confirmed under protocol=honest, and fails under protocol=paper, is confirmed
        failed = [
            (recipe, record) for recipe, record in self._failed_to_confirm if (recipe.id, record.seed) not in known
        ]
        for recipe, record in [*records, *failed]:
            found.setdefault(recipe.id, (recipe, []))[1].append(record)
        return found


def _sources(config: Config) -> dict[str, str]:
    """Database URLs of the runs to learn from, by the names given.

    Raises:
        ValueError: one is no folder of a run, or is this run.
    """
    found: dict[str, str] = {}
    for name in config.warm_start or ():
        if "://" in name:
            found[storages.hidden(name)] = name
            continue
        folder = Path(name).absolute()
        # of a run of several pairs, the one of this pair
        holding = next((f for f in (folder, folder / config.pair) if (f / "study.db").is_file()), None)
        if holding is None:
            raise ValueError(f"warm_start={name}: there is no study.db; give the folder that a search wrote to")
        if holding == config.folder:
            raise ValueError(f"warm_start={name} is this run itself: leave it out, or choose another folder with out=")
        found[str(holding)] = f"sqlite:///{holding / 'study.db'}"
    return found
