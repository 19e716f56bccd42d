"""A power cut, or a kill, at any change of a file: entries are whole or absent, and the study opens."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from reports import build
from search import run
from smskd.store import MANIFEST, METHODS, WEIGHTS, Entry, Store, address
from tests import runs
from tests.faults.conftest import Score
from tests.faults.writes import KILL, Writes, at_every_change, forked, in_process, tell
from tests.search.test_study import finish, open_study

ROW = 5
IDENTITY = {"network": "tiny", "seed": 3, "parent": None}
KEY = address(IDENTITY)
FACTS = {"val_accuracy": 0.75, "losses": [{"kd": 1.5}]}


def put(store: Store) -> Entry:
    import torch

    weights = {"a": torch.arange(12.0).view(3, 4), "steps": torch.tensor(7)}
    with store.lock(KEY):
        return store.get(KEY) or store.put(KEY, IDENTITY, weights, FACTS, {"0/regressor.weight": torch.ones(2)})


def whole(entry: Entry | None) -> bool:
    """Whether it is what `put` puts; an entry that is there and isn't is an error."""
    if entry is None:
        return False
    assert entry.facts == FACTS and entry.weights["a"].sum() == 66 and entry.weights["steps"] == 7
    return True


def test_an_entry_cut_at_any_byte_counts_as_absent(score: Score, tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store)
    place = store.path(KEY)
    for file in (MANIFEST, WEIGHTS, METHODS):
        content = (place / file).read_bytes()
        for length in (None, *range(len(content))):
            with score.fault():
                (place / file).unlink()
                if length is not None:
                    (place / file).write_bytes(content[:length])
                assert store.get(KEY) is None
                (aside,) = (tmp_path / "aside").iterdir()  # for whoever wants to look
                aside.rename(place)
                (place / file).write_bytes(content)
        assert whole(store.get(KEY))


def puts(root: str, state: str) -> None:
    """In a process of its own: put an entry, killed at each change in turn; what is left, and what the next does."""
    place, writes = Path(root), Writes(Path(state))
    for bytes in (0, 1, 100):
        shutil.rmtree(place, ignore_errors=True)
        for number in at_every_change(writes, KILL, lambda: put(Store(place)), bytes=bytes):
            store = Store(place)
            left = whole(store.get(KEY))
            again = whole(put(store))
            litter = [path.name for name in ("partial", "aside") for path in place.glob(f"{name}/*")]
            tell({"at": number, "bytes": bytes, "left": left, "again": again, "litter": litter})
            shutil.rmtree(place)


def test_killed_at_every_change_of_a_commit(score: Score, tmp_path: Path) -> None:
    root = tmp_path / "store"
    told = in_process(puts, root, tmp_path / "state", writes=Writes(tmp_path / "state", root))
    assert len(told) >= 3 * 18, "five folders, a lock, three files made, written and synced, three folders, a rename"
    for one in told:
        with score.fault():
            assert one["again"] and not one["litter"], one
    left = [one["left"] for one in told if one["bytes"] == 0]
    assert left == sorted(left) and set(left) == {False, True}, "once it is there it stays"


def test_what_is_renamed_was_synced_and_its_folder_is(score: Score, tmp_path: Path) -> None:
    log = tmp_path / "log"
    folders = (tmp_path / "store", tmp_path / "run")
    (told,) = in_process(commits, *folders, writes=Writes(tmp_path / "state", *folders, log=log))
    assert told == {"entry": str(Store(folders[0]).path(KEY))}
    changes = [tuple(line.split(" ")) for line in log.read_text().splitlines()]
    assert sum(what == "rename" for what, _ in changes) == 3, "an entry, a note of an owner, a file of a run"
    entries = str(folders[0] / "entries")
    for place, (what, path) in enumerate(changes):
        before = [(w, p) for w, p in changes[:place] if w in ("write", "sync")]
        synced_after = [p for w, p in changes[place:] if w == "sync"]
        if what == "rename":
            with score.fault():
                unsynced = {p for k, (w, p) in enumerate(before) if w == "write" and ("sync", p) not in before[k:]}
                assert unsynced == set()
                assert str(Path(path).parent) in synced_after
        if what == "mkdir" and path.startswith(f"{entries}/"):
            with score.fault():
                assert entries in synced_after


def commits(store: str, run: str) -> None:
    """In a process of its own: one of each kind of commit."""
    from reports import results

    opened = Store(Path(store))
    put(opened)
    Path(run).mkdir()
    opened.own(Path(run), [KEY])
    results.write_atomically(Path(run) / "run.json", b"{}")
    tell({"entry": str(opened.path(KEY))})


# --- the study

SPACE = ["methods=[kd,rkd]", "max_stages=1"]


def settle_one(folder: Path) -> None:
    """Open the study, or make it, and tell it of one more recipe."""
    study = open_study(folder, SPACE)
    if (asked := study.ask()) is not None:
        finish(study, asked)


def settled(folder: Path) -> int:
    return len(open_study(folder, SPACE).settled)


def tells(folder: str, state: str, bytes: str, every: str) -> None:
    """In a process of its own: a study of one recipe is told of a second, killed at each change in turn."""
    begun, place = Path(folder) / "begun", Path(folder) / "killed"
    shutil.copytree(begun, place)
    writes = Writes(Path(state))
    for number in at_every_change(writes, KILL, lambda: settle_one(place), bytes=int(bytes), every=int(every)):
        left = forked(settled, place)
        forked(settle_one, place)
        tell({"at": number, "left": left, "again": forked(settled, place)})
        shutil.rmtree(place)
        shutil.copytree(begun, place)


@pytest.mark.parametrize(
    ("bytes", "every"),
    [pytest.param(*pace, marks=pytest.mark.slow) for pace in ((1000, 41), (0, 5), (4000, 9))],
)
def test_killed_at_a_change_of_a_study(score: Score, tmp_path: Path, bytes: int, every: int) -> None:
    (tmp_path / "begun").mkdir()
    settle_one(tmp_path / "begun")
    watched = Writes(tmp_path / "state", tmp_path / "killed")
    told = in_process(tells, tmp_path, tmp_path / "state", bytes, every, writes=watched)
    assert len(told) >= 150 // every, "a dozen transactions, each of a journal and its removal"
    for one in told:
        with score.fault():
            assert (one["left"], one["again"]) in ((1, 2), (2, 2)), one


def makes(folder: str, state: str, every: str) -> None:
    """In a process of its own: a study is made, killed at changes in turn."""
    place = Path(folder)
    place.mkdir()
    for number in at_every_change(Writes(Path(state)), KILL, lambda: settle_one(place), every=int(every)):
        forked(settle_one, place)
        tell({"at": number, "settled": forked(settled, place)})
        shutil.rmtree(place)
        place.mkdir()


@pytest.mark.slow
def test_killed_while_a_study_is_made(score: Score, tmp_path: Path) -> None:
    watched = Writes(tmp_path / "state", tmp_path / "killed")
    told = in_process(makes, tmp_path / "killed", tmp_path / "state", 41, writes=watched)
    assert len(told) >= 10
    for one in told:
        with score.fault():
            assert one["settled"] >= 1


def test_a_study_cut_at_a_place(score: Score, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    settle_one(tmp_path / "whole")
    content = (tmp_path / "whole" / "study.db").read_bytes()
    for length in range(0, len(content), 5000):
        with score.fault():
            place = tmp_path / str(length)
            place.mkdir()
            (place / "study.db").write_bytes(content[:length])
            if length == 0:
                settle_one(place)
            else:
                with pytest.raises(ValueError, match=r"use another out= \(the finished stages are in the store"):
                    open_study(place, SPACE)


# --- the files of a run


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, 0.999])
def test_torn_files_of_a_run_are_written_anew(
    score: Score, undisturbed: tuple[Path, Path], tmp_path: Path, part: float
) -> None:
    out, store = tmp_path / "run", tmp_path / "store"
    for whole_one, copy in zip(undisturbed, (out, store), strict=True):
        shutil.copytree(whole_one, copy)
    words = runs.command(out, store)[3:]
    assert run.main(words) == run.DONE  # the store knows this folder now, beside the one it is a copy of
    (note,) = (path for path in (store / "owners").glob("*.json") if f'"{out}"' in path.read_text())
    names = ("results.parquet", "results.csv", "run.json", "stages.csv", "best.yaml", "student.json", "report.html")
    torn = [note, *(out / name for name in (*names, "student.safetensors"))]
    before = {path: path.read_bytes() for path in torn}
    for path, content in before.items():
        path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match="run the same search command again"):
        build.build(out)
    with pytest.raises(ValueError, match=r"owners/\w+.json is damaged"):  # this run could need anything
        Store(store).prune(0)
    assert run.main(words) == run.DONE
    score.same(out, runs.table(undisturbed[0]))
    for path, content in before.items():
        with score.fault():
            if path.name in ("run.json", "report.html"):  # they tell of this command, which trained nothing
                assert len(path.read_bytes()) > 0.9 * len(content)
            else:
                assert path.read_bytes() == content
    build.build(out)
