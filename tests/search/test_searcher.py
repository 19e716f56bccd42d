from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import scheduler
from search import bench, searcher, trainable
from search.nodes import Nodes
from search.searcher import Job, ListSource
from search.study import Record
from search.trainable import failure
from smskd import pipeline
from smskd.forgetting import Kept


def prepared(on_epoch: Callable[[int, int], None]) -> Any:
    on_epoch(1, 2)  # a teacher that is trained
    return SimpleNamespace(teacher_digest="t")


def outcome(monkeypatch: pytest.MonkeyPatch, run: Any, prepare: Any = prepared) -> Any:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(trainable.tune, "report", told.append)
    monkeypatch.setattr(trainable, "_REPORT_EVERY_S", 0.0)
    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(pipeline, "prepare", prepare)
    monkeypatch.setattr(bench, "describe", lambda prepared, latency, timed: {"latency": latency})
    config = {
        "cpus": 1, "recipe": "kd>rkd>kd", "seed": 4, "test": False, "epochs": 2, "epochs_total": None, "pipeline": {},
        "describe": True, "latency": False, "timed": False, "log": True, "protocol": "honest", "max_latency_ms": None,
        "hang_after": 60,
        "kind": None,
    }  # fmt: skip
    trainable.train(config)
    return json.loads(told[-1]["outcome"])


@pytest.mark.parametrize("reported", [False, True])
@pytest.mark.parametrize("finished", [0, 1, 2])
def test_a_failure_names_the_stage_it_happened_in(
    monkeypatch: pytest.MonkeyPatch, finished: int, reported: bool
) -> None:
    def run(recipe: str, *, on_stage: Any, on_epoch: Any, **settings: Any) -> None:
        for number in range(1, finished + 1):
            result = pipeline.StageResult(
                key="k",
                digest="d",
                val_accuracy=0.5,
                train_flops=1,
                device_seconds=1,
                losses=(),
                anchor_weights={},
                trained=True,
                kept=Kept(agreement_teacher=1, agreement_previous=None, stage_losses=(1.0,)),
            )  # fmt: skip
            on_stage(number, result)
        if reported:
            on_epoch(finished + 1, 1, 2)
        raise RuntimeError("broken")

    told = outcome(monkeypatch, run)
    record, trained = told["record"], told["trained"]
    assert told["teacher"] == "t" and told["bench"] == {"latency": False}
    assert record["status"] == "failed"
    assert record["seed"] == 4
    assert record["error"] == f"stage {finished + 1} of 3: RuntimeError: broken"
    assert trained == finished


def test_a_teacher_that_cannot_be_had_is_a_problem_of_every_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(on_epoch: Any) -> None:
        raise ValueError("no such teacher")

    told = outcome(monkeypatch, lambda *_, **__: pytest.fail("nothing may be trained"), prepare)
    assert told == {"problem": "data and teacher can't be prepared: ValueError: no such teacher"}


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
            record = {"seed": config["seed"], "status": "complete", "error": None}
            told = {"record": record, "trained": 1, "teacher": what, "bench": {"digest": what}}
            if what == "problem":
                told = {"problem": "no such teacher"}
            self.search.on_trial_complete(trial_id, result={"outcome": json.dumps(told)}, error=False)
        if not running and self.search.suggest("end") != searcher.Searcher.FINISHED:
            raise AssertionError("Tune would go on")


def fit(tune: FakeTune, known: str | None = None) -> tuple[list[tuple[int, Record]], list[Any]]:
    ended: list[tuple[int, Record]] = []
    benches: list[Any] = []
    searcher.fit(
        ListSource(JOBS, _ignore, splits_total=False),
        benches={"tiny": searcher.Bench(
            settings={"pipeline": {"pair": "tiny"}},
            digest=lambda: known if known else benches[0]["digest"] if benches else None,
            meet=benches.append,
        )},
        cpus=1, gpus=0, hang_after=60, progress=None, nodes=Nodes(print),  # type: ignore[arg-type]
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
    assert [record["status"] for _, record in ended] == ["failed", "complete", "complete", "complete"]
    assert "worker died 3 times" in str(ended[0][1]["error"])


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


def drain(source: searcher.Source) -> list[Job]:
    return list(iter(source.next, None))


def test_several_pairs_take_turns_and_end_when_all_have_ended() -> None:
    kept: list[tuple[Job, Record]] = []
    sources = {
        pair: ListSource(jobs, lambda job, record: kept.append((job, record)), splits_total=False)
        for pair, jobs in JOBS_OF.items()
    }
    source = searcher.RoundRobin(sources)
    assert source.remaining() == 5
    jobs = drain(source)
    assert [(job.pair, job.seed) for job in jobs] == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("b", 2)]
    assert not source.exhausted()
    record = trainable.failure(0, "broken")
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
        pair: searcher.Bench(
            settings={"epochs": epochs, "pipeline": {"pair": pair}},
            digest=lambda pair=pair: known.get(pair),  # type: ignore[misc]
            meet=lambda bench, pair=pair: known.__setitem__(pair, bench["digest"]),  # type: ignore[misc]
        )
        for pair, epochs in (("a", 1), ("b", 2))
    }
    source = searcher.RoundRobin(
        {pair: ListSource(jobs, _ignore, splits_total=False) for pair, jobs in JOBS_OF.items()}
    )
    return searcher.QueueSearcher(
        source, benches, lambda job, record, trained: ended.append(job.pair), Nodes(print)
    ), ended


def end(search: searcher.QueueSearcher, trial_id: str, teacher: str) -> None:
    told = {"record": trainable.failure(0, "broken"), "trained": 0, "teacher": teacher, "bench": {"digest": teacher}}
    search.on_trial_complete(trial_id, result={"outcome": json.dumps(told)})


def test_each_pair_has_its_settings_and_its_teacher() -> None:
    known: dict[str, str] = {}
    search, ended = queue_of_both(known)
    first, second = search.suggest("1"), search.suggest("2")
    assert (first["pipeline"], first["epochs"], first["describe"]) == ({"pair": "a"}, 1, True)
    assert (second["pipeline"], second["epochs"], second["describe"]) == ({"pair": "b"}, 2, True)
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


def _ignore(job: Job, record: Record) -> None:
    pass


def test_a_job_waits_for_the_stage_that_another_trains_and_not_on_a_device() -> None:
    jobs = [Job(pair="tiny", recipe=r, seed=s, test=True) for r, s in (("kd>rkd", 0), ("kd>fitnets", 0), ("kd", 1))]
    source = ListSource(jobs, _ignore, splits_total=False)
    first = source.next()
    assert first == jobs[0]
    assert source.next() == jobs[2]  # another seed is another stage
    assert source.next() is None and not source.exhausted()
    source.advance(jobs[0], 1)  # kd is there now
    assert source.next() == jobs[1]


def test_a_job_whose_stage_failed_elsewhere_takes_it_over() -> None:
    jobs = [Job(pair="tiny", recipe=r, seed=0, test=True) for r in ("kd", "kd>fitnets")]
    source = ListSource(jobs, _ignore, splits_total=False)
    assert source.next() == jobs[0] and source.next() is None
    source.take(jobs[0], failure(0, "killed"))
    assert source.next() == jobs[1]


def test_where_a_total_is_split_lengths_share_nothing() -> None:
    jobs = [Job(pair="tiny", recipe=r, seed=0, test=True) for r in ("kd", "kd>fitnets", "kd>rkd")]
    source = ListSource(jobs, _ignore, splits_total=True)
    assert source.next() == jobs[0] and source.next() == jobs[1]
    assert source.next() is None


@pytest.mark.parametrize("devices", [2, 8, 40])
def test_devices_are_busy_and_no_trial_holds_one_while_it_waits(devices: int) -> None:
    out = scheduler.simulate(devices, ("kd", "fitnets", "rkd"), 3)
    assert (out.recipes, out.trials) == (15, 45)
    assert out.waited == 0
    assert out.bound <= out.makespan <= 1.25 * out.bound
