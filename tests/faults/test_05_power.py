"""A power cut, or a kill, at any change of a file: entries are whole or absent, and the study opens."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from smskd.store import MANIFEST, METHODS, WEIGHTS, Entry, Store, address
from tests.faults.conftest import Score
from tests.faults.writes import KILL, Writes, at_every_change, in_process, tell

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


def puts(root: str, state: str, bytes: str) -> None:
    """In a process of its own: put an entry, killed at each change in turn; what is left, and what the next does."""
    writes = Writes(Path(state))
    place = Path(root)
    for number in at_every_change(writes, KILL, lambda: put(Store(place)) and None, bytes=int(bytes)):
        store = Store(place)
        left = whole(store.get(KEY))
        set_aside = (place / "aside").exists()
        again = put(store)
        litter = len(list((place / "partial").iterdir()))
        tell({"at": number, "left": left, "aside": set_aside, "again": whole(again), "litter": litter})
        shutil.rmtree(place)


@pytest.mark.parametrize("bytes", [0, 1, 100])
def test_killed_at_every_change_of_a_commit(score: Score, tmp_path: Path, bytes: int) -> None:
    root = tmp_path / "store"
    told = in_process(puts, root, tmp_path / "state", bytes, writes=Writes(tmp_path / "state", root))
    assert len(told) >= 15, "five folders, a lock, three files written and synced, two folders synced, a rename"
    for one in told:
        with score.fault():
            assert one["again"] and not one["litter"] and not one["aside"], one
    assert {one["left"] for one in told} == {False, True}
    committed = [one["left"] for one in told]
    assert committed == sorted(committed), "once it is there it stays"


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
