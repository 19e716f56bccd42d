from __future__ import annotations

import fcntl
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import scheduler
from search import facts, searcher, trainable
from search.jobs import Job, ListSource, RoundRobin, Source
from search.nodes import Nodes
from smskd import bench, code, pipeline
from smskd.experiment import Experiment
from smskd.recipe import Recipe
from smskd.result import Result, StageResult, failure
from smskd.stage import Diverged


def prepared(experiment: Experiment, store: Any, *, device: str, on_epoch: Callable[[int, int], None]) -> Any:
    on_epoch(1, 2)  # a teacher that is trained
    return SimpleNamespace(teacher_digest="t", experiment=experiment)


def outcome(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, distil: Any, prepare: Any = prepared) -> Any:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(trainable.tune, "report", told.append)
    monkeypatch.setattr(trainable, "_REPORT_EVERY_S", 0.0)
    monkeypatch.setattr(pipeline, "distil", distil)
    monkeypatch.setattr(bench, "prepare", prepare)
    monkeypatch.setattr(facts, "describe", lambda prepared, latency, timed: {"latency": latency})
    config = {
        "recipe": "kd>rkd>kd", "seed": 4, "test": False, "device": "cpu",
        "worker": {"experiment": {"pair": "tiny"}, "store": str(tmp_path), "store_key": None},
        "describe": True, "latency": False, "timed": False, "log": True, "protocol": "honest", "max_latency_ms": None,
        "hang_after": 60,
        "kind": None,
    }  # fmt: skip
    trainable.train(trainable.Benches(code.bundle()), config)
    return json.loads(told[-1]["outcome"])


@pytest.mark.parametrize("reported", [False, True])
@pytest.mark.parametrize("finished", [0, 1, 2])
def test_a_failure_names_the_stage_it_happened_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, finished: int, reported: bool
) -> None:
    def distil(recipe: Recipe, bench: Any, *, on_stage: Any, on_epoch: Any, **settings: Any) -> None:
        for number in range(1, finished + 1):
            result = StageResult(
                key="k", digest="d", val_accuracy=0.5, train_flops=1, device_seconds=1, losses=(), anchor_weights={},
                trained=True, agreement_teacher=1, agreement_previous=None, stage_losses=(1.0,),
            )  # fmt: skip
            on_stage(number, result)
        if reported:
            on_epoch(finished + 1, 1, 2)
        raise Diverged("broken")

    told = outcome(monkeypatch, tmp_path, distil)
    record, trained = told["record"], told["trained"]
    assert told["teacher"] == "t" and told["bench"] == {"latency": False}
    assert record["status"] == "failed"
    assert record["seed"] == 4
    assert record["error"] == f"stage {finished + 1} of 3: Diverged: broken"
    assert record["traceback"] is None
    assert trained == finished


def test_a_mistake_in_the_code_is_told_with_its_place_and_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def distil(recipe: Recipe, bench: Any, **settings: Any) -> None:
        raise AttributeError("'Output' object has no attribute 'logts'")

    record = outcome(monkeypatch, tmp_path, distil)["record"]
    assert re.fullmatch(
        r"stage 1 of 3: AttributeError: .*'logts' \(search/test_searcher\.py, line \d+\)", record["error"]
    )
    assert "Traceback (most recent call last)" in record["traceback"] and "in distil" in record["traceback"]


def test_a_teacher_that_cannot_be_had_is_a_problem_of_every_trial(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def prepare(*of: Any, **more: Any) -> None:
        raise ValueError("no such teacher")

    told = outcome(monkeypatch, tmp_path, lambda *_, **__: pytest.fail("nothing may be trained"), prepare)
    assert told["problem"].startswith("data and teacher can't be prepared: ValueError: no such teacher")


def test_a_bench_is_made_ready_once_a_worker_and_the_last_two_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[str] = []

    def prepare(experiment: Experiment, store: Any, **more: Any) -> Any:
        made.append(str(experiment.train_size))
        return SimpleNamespace(experiment=experiment)

    monkeypatch.setattr(bench, "prepare", prepare)
    benches = trainable.Benches(code.bundle())
    for size in (100, 200, 100, 200, 300, 100):
        worker = {"experiment": {"train_size": size}, "store": str(tmp_path), "store_key": None}
        assert benches.get({"worker": worker, "device": "cpu"}, lambda *_: None).experiment.train_size == size
    assert made == ["100", "200", "300", "100"]


def test_steps_of_training_and_waiting_for_a_lock_are_progress(tmp_path: Path) -> None:
    import filelock
    import torch

    told: list[str] = []
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    held = os.open(tmp_path / "key", os.O_CREAT | os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    with trainable._progress_told(lambda: told.append("step")):
        optimizer.step()
    optimizer.step()
    assert told == ["step"]
    threading.Timer(0.3, os.close, [held]).start()
    with trainable._progress_told(lambda: told.append("waited")), filelock.FileLock(tmp_path / "key"):
        assert told.count("waited") >= 2


class FakeTrial:
    def __init__(self, trial_id: str) -> None:
        self.trial_id, self.temporary_state = trial_id, SimpleNamespace(ray_actor=f"actor of {trial_id}")


def test_a_trial_without_progress_loses_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    now, killed, hung = [0.0], list[str](), list[tuple[str, float]]()
    monkeypatch.setattr(searcher.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(searcher.ray, "kill", killed.append)
    dog = searcher.Watchdog(10, lambda *told: hung.append(told))
    quiet, busy = FakeTrial("quiet"), FakeTrial("busy")
    dog.on_trial_start(0, [], quiet)
    dog.on_trial_start(0, [], busy)

    def steps(seconds: float) -> None:
        for _ in range(int(10 * seconds)):
            now[0] += 0.1
            dog.on_step_begin(0, [])

    steps(8)
    dog.on_trial_result(0, [], busy, {})
    now[0] += 3600  # the driver itself was stopped, and no report could reach it
    dog.on_step_begin(0, [])
    assert killed == []
    steps(2)
    assert killed == ["actor of quiet"] and hung == [("quiet", 10)]
    dog.on_trial_recover(0, [], quiet)
    dog.on_trial_complete(0, [], busy)
    steps(100)
    assert len(killed) == 1


# --- fit(), with a Tuner that does what Tune does

JOBS = [Job(pair="tiny", recipe="kd", seed=seed, test=False) for seed in range(4)]


class FakeTune:
    """Runs two trials at a time. plan: for each fit(), what happens to its trials one after another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, plan: list[list[str]]) -> None:
        self.plan, self.fits = plan, 0
        monkeypatch.setattr(searcher.tune, "Tuner", lambda trainable, *, tune_config, **_: self._with(tune_config))

    def _with(self, tune_config: Any) -> FakeTune:
        self.search = tune_config.search_alg
        return self

    def fit(self) -> None:
        self.fits += 1
        running: list[tuple[str, Any]] = []
        for count, what in enumerate(self.plan[self.fits - 1]):
            while len(running) < 2:
                trial_id = f"{self.fits}-{count}-{len(running)}"
                config = self.search.suggest(trial_id)
                if not isinstance(config, dict):
                    break
                running.append((trial_id, config))
            if what == "ray ends it":
                raise RuntimeError("the memory monitor killed a worker")
            if not running:
                break
            trial_id, config = running.pop(0)
            if what == "worker dies":
                self.search.on_trial_complete(trial_id, result=None, error=True)
                continue
            record = Result(recipe=config["recipe"], seed=config["seed"]).to_dict()
            told = {"record": record, "trained": 1, "teacher": what, "bench": {"digest": what}}
            if what == "problem":
                told = {"problem": "no such teacher"}
            self.search.on_trial_complete(trial_id, result={"outcome": json.dumps(told)}, error=False)
        if not running and self.search.suggest("end") != searcher.Searcher.FINISHED:
            raise AssertionError("Tune would go on")


def fit(tune: FakeTune, known: str | None = None) -> tuple[list[tuple[int, Result]], list[Any]]:
    ended: list[tuple[int, Result]] = []
    benches: list[Any] = []
    searcher.fit(
        ListSource(JOBS, _ignore),
        trials={"tiny": searcher.Trials(
            settings={},
            epochs=lambda recipe: [1],
            digest=lambda: known if known else benches[0]["digest"] if benches else None,
            meet=benches.append,
        )},
        demand=searcher.Demand(cpus=1, gpus=0, hang_after=60), progress=None, nodes=Nodes(print),  # type: ignore[arg-type]
        on_end=lambda job, record, trained: ended.append((job.seed, record)),
    )  # fmt: skip
    return ended, benches


def test_a_fit_that_ray_ends_is_followed_by_a_fresh_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tune = FakeTune(monkeypatch, [["t", "ray ends it"], ["ray ends it"], ["t"] * 4])
    ended, benches = fit(tune)
    assert sorted(seed for seed, _ in ended) == [0, 1, 2, 3]
    assert tune.fits == 3 and benches == [{"digest": "t"}]


def test_a_fit_that_ray_ends_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tune = FakeTune(monkeypatch, [["ray ends it"]] * 9)
    with pytest.raises(RuntimeError, match=r"Ray ended the search 3 times.*memory monitor"):
        fit(tune)
    assert tune.fits == 3


def test_a_worker_that_dies_is_a_failed_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, _ = fit(FakeTune(monkeypatch, [["worker dies", "t", "t", "t"]]))
    assert [record.status for _, record in ended] == ["failed", "complete", "complete", "complete"]
    assert "worker died 3 times" in str(ended[0][1].error)


def test_a_problem_of_every_trial_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    tune = FakeTune(monkeypatch, [["problem", "problem", "t"]])
    with pytest.raises(RuntimeError, match="no such teacher"):
        fit(tune)
    assert tune.fits == 1


def test_another_teacher_than_the_run_began_with_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"the teacher isn't the one this run began with.*out="):
        fit(FakeTune(monkeypatch, [["t", "t"]]), known="another")


# --- several pairs

JOBS_OF = {
    "a": [Job(pair="a", recipe="kd", seed=seed, test=False) for seed in range(2)],
    "b": [Job(pair="b", recipe="kd", seed=seed, test=False) for seed in range(3)],
}


def drain(source: Source) -> list[Job]:
    return list(iter(source.next, None))


def test_several_pairs_take_turns_and_end_when_all_have_ended() -> None:
    kept: list[tuple[Job, Result]] = []
    sources = {pair: ListSource(jobs, lambda job, record: kept.append((job, record))) for pair, jobs in JOBS_OF.items()}
    source = RoundRobin(sources)
    assert source.remaining() == 5
    jobs = drain(source)
    assert [(job.pair, job.seed) for job in jobs] == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("b", 2)]
    assert not source.exhausted()
    record = failure("kd", 0, "broken")
    source.take(jobs[0], record)
    source.take(jobs[1], record)
    assert source.remaining() == 3
    for job in reversed(jobs[2:]):
        source.put_back(job)  # Ray ended the fit: what ran is to run again
    again = drain(source)
    assert {(job.pair, job.seed) for job in again} == {("a", 1), ("b", 1), ("b", 2)}
    for job in again:
        assert not source.exhausted()
        source.take(job, record)
    assert source.exhausted() and source.remaining() == 0 and source.next() is None
    assert {(job.pair, job.seed) for job, _ in kept} == {(job.pair, job.seed) for job in jobs}


def queue_of_both(known: dict[str, str]) -> tuple[searcher.QueueSearcher, list[str]]:
    """A searcher over two pairs, of which some teachers are known; and the pairs of the trials that ended."""
    ended: list[str] = []
    benches = {
        pair: searcher.Trials(
            settings={"worker": {"experiment": {"pair": pair}}},
            epochs=lambda recipe, epochs=epochs: [epochs],  # type: ignore[misc]
            digest=lambda pair=pair: known.get(pair),  # type: ignore[misc]
            meet=lambda bench, pair=pair: known.__setitem__(pair, bench["digest"]),  # type: ignore[misc]
        )
        for pair, epochs in (("a", 1), ("b", 2))
    }
    source = RoundRobin({pair: ListSource(jobs, _ignore) for pair, jobs in JOBS_OF.items()})
    return searcher.QueueSearcher(
        source, benches, lambda job, record, trained: ended.append(job.pair), Nodes(print)
    ), ended


def end(search: searcher.QueueSearcher, trial_id: str, teacher: str) -> None:
    told = {
        "record": failure("kd", 0, "broken").to_dict(),
        "trained": 0,
        "teacher": teacher,
        "bench": {"digest": teacher},
    }
    search.on_trial_complete(trial_id, result={"outcome": json.dumps(told)})


def test_each_pair_has_its_settings_and_its_teacher() -> None:
    known: dict[str, str] = {}
    search, ended = queue_of_both(known)
    first, second = search.suggest("1"), search.suggest("2")
    assert (first["worker"]["experiment"], first["epochs"], first["describe"]) == ({"pair": "a"}, [1], True)
    assert (second["worker"]["experiment"], second["epochs"], second["describe"]) == ({"pair": "b"}, [2], True)
    end(search, "1", "teacher of a")
    assert search.suggest("3")["describe"] is False and search.suggest("4")["describe"] is True
    for trial_id, teacher in (("2", "teacher of b"), ("3", "teacher of a"), ("4", "teacher of b")):
        end(search, trial_id, teacher)
    assert known == {"a": "teacher of a", "b": "teacher of b"}
    assert search.problem is None and ended == ["a", "b", "a", "b"]


def test_one_pairs_other_teacher_ends_the_search_and_is_named() -> None:
    search, ended = queue_of_both({"a": "teacher of a", "b": "teacher of b"})
    search.suggest("1"), search.suggest("2")
    end(search, "1", "teacher of a")
    end(search, "2", "teacher of a")
    assert search.problem is not None and search.problem.startswith("pair=b: the teacher isn't the one")
    assert ended == ["a"]
    assert search.suggest("3") == searcher.Searcher.FINISHED


# --- which job starts


def _ignore(job: Job, record: Result) -> None:
    pass


def test_a_job_waits_for_the_stage_that_another_trains_and_not_on_a_device() -> None:
    jobs = [Job(pair="tiny", recipe=r, seed=s, test=True) for r, s in (("kd>rkd", 0), ("kd>fitnets", 0), ("kd", 1))]
    source = ListSource(jobs, _ignore)
    first = source.next()
    assert first == jobs[0]
    assert source.next() == jobs[2]  # another seed is another stage
    assert source.next() is None and not source.exhausted()
    source.advance(jobs[0], 1)  # kd is there now
    assert source.next() == jobs[1]


def test_a_job_whose_stage_failed_elsewhere_takes_it_over() -> None:
    jobs = [Job(pair="tiny", recipe=r, seed=0, test=True) for r in ("kd", "kd>fitnets")]
    source = ListSource(jobs, _ignore)
    assert source.next() == jobs[0] and source.next() is None
    source.take(jobs[0], failure("kd", 0, "killed"))
    assert source.next() == jobs[1]


def test_recipes_share_the_stages_that_are_of_one_length() -> None:
    recipes = ("kd epochs=36", "kd>fitnets epochs=18", "kd>rkd epochs=18", "kd@epochs=36>rkd")
    jobs = [Job(pair="tiny", recipe=r, seed=0, test=True) for r in recipes]
    source = ListSource(jobs, _ignore)
    assert source.next() == jobs[0] and source.next() == jobs[1]
    assert source.next() is None
    source.advance(jobs[1], 1)  # the first stage of 18 epochs is there now
    assert source.next() == jobs[2] and source.next() is None
    source.take(jobs[0], Result(recipe=jobs[0].recipe, seed=0))
    assert source.next() == jobs[3]


@pytest.mark.parametrize("devices", [2, 8, 40])
def test_devices_are_busy_and_no_trial_holds_one_while_it_waits(devices: int) -> None:
    out = scheduler.simulate(devices, ("kd", "fitnets", "rkd"), 3)
    assert (out.recipes, out.trials) == (15, 45)
    assert out.waited == 0
    assert out.bound <= out.makespan <= 1.25 * out.bound
