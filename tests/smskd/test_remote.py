"""A store behind a URL: whole entries or none there too, claims that hold and expire, damage never used."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from smskd.store import MANIFEST, METHODS, WEIGHTS, Store, address, check_url, entries, open_store, remote
from smskd.store.__main__ import main
from smskd.store.remote import Files
from tests.s3 import Server, s3

__all__ = ["s3"]
IDENTITY = {"network": "tiny", "seed": 3, "parent": None}
KEY = address(IDENTITY)
FACTS = {"val_accuracy": 0.75}
WEIGHTS_OF = {"a": torch.arange(12.0).reshape(3, 4), "steps": torch.tensor(7)}
FOLDER = f"entries/{KEY[:2]}/{KEY}"


@pytest.fixture
def url(s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    _machine(tmp_path / "one", monkeypatch)
    return s3.url(tmp_path.name)


def _machine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on stores are opened as on a machine with this cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def _put(store: Store, **weights: torch.Tensor) -> None:
    with store.lock(KEY):
        store.put(KEY, IDENTITY, WEIGHTS_OF | weights, FACTS, {"0/r": torch.ones(2)})


def _filled(url: str) -> Store:
    store = open_store(url)
    _put(store)
    return store


def test_what_one_machine_puts_another_gets(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_store(url).get(KEY) is None
    _filled(url)
    _machine(tmp_path / "two", monkeypatch)
    store = open_store(url)
    assert store.root.is_relative_to(tmp_path / "two") and not store.path(KEY).exists()
    assert store.digest(KEY) is not None
    got = store.get(KEY, WEIGHTS_OF)
    assert got is not None and (got.key, got.facts, got.digest) == (KEY, FACTS, store.digest(KEY))
    assert all(torch.equal(got.weights[name], value) for name, value in WEIGHTS_OF.items())
    assert torch.equal(store.methods(KEY)["0/r"], torch.ones(2))
    assert store.size_bytes() > 0 and store.keys() == [KEY]
    assert Files(url).list("claims") == {}


def test_the_manifest_is_written_last(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any write there is no entry there; the same machine brings it when it next asks."""
    genuine = Files.write
    for fails_at in range(3):
        store = open_store(url)
        store.prune(0)
        writes = []

        def write(self: Files, name: str, content: bytes, most: int = fails_at, done: list[str] = writes) -> None:
            if name.startswith("entries/"):
                if len(done) == most:
                    raise OSError("cut off")
                done.append(name)
            genuine(self, name, content)

        with monkeypatch.context() as patch:
            patch.setattr(Files, "write", write)
            with pytest.raises(OSError, match="cut off"):
                _put(store)
        files = Files(url)
        assert len(files.list("entries")) == fails_at and not files.has(FOLDER)
        assert open_store(url).get(KEY) is not None
        assert set(files.list("entries")) == {f"{FOLDER}/{name}" for name in (MANIFEST, WEIGHTS, METHODS)}


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS, METHODS])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "gone", "large"])
def test_damage_there_is_set_aside(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: str
) -> None:
    _filled(url)
    files = Files(url)
    content = files.read(f"{FOLDER}/{name}", 10**6)
    changed = {"flipped": content[:-2] + bytes([content[-2] ^ 1]) + content[-1:], "cut": content[:-1], "empty": b""}
    if damage == "gone":
        files.delete(f"{FOLDER}/{name}")
    elif damage == "large":
        monkeypatch.setattr(entries, "MANIFEST_BYTES", 10 if name == MANIFEST else 10**6)
        monkeypatch.setattr(entries, "WEIGHTS_BYTES", 10)
    else:
        files.write(f"{FOLDER}/{name}", changed[damage])
    _machine(tmp_path / "two", monkeypatch)
    store = open_store(url)
    assert store.get(KEY) is None
    monkeypatch.setattr(entries, "MANIFEST_BYTES", 10**6)
    monkeypatch.setattr(entries, "WEIGHTS_BYTES", 10**6)
    assert not store.path(KEY).exists() and not list((store.root / "partial").iterdir())
    assert store.keys() == []
    assert bool(files.list("aside")) == (not (name == MANIFEST and damage == "gone"))
    _put(store)  # it can be made again
    assert store.get(KEY) is not None


def test_damage_here_is_mended_from_there(url: str) -> None:
    store = _filled(url)
    (store.path(KEY) / WEIGHTS).write_bytes(b"no")
    assert store.get(KEY) is not None
    assert Files(url).list("aside") == {} and len(list((store.root / "aside").iterdir())) == 1


def test_who_comes_second_takes_what_is_there(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = open_store(url)
    _machine(tmp_path / "two", monkeypatch)
    first = _filled(url).get(KEY)
    _put(slow, steps=torch.tensor(8))  # as a claim's holder that was paused, and another took over
    got = slow.get(KEY)
    assert first is not None and got is not None and got.digest == first.digest


def test_weights_of_another_network_are_set_aside(url: str) -> None:
    store = _filled(url)
    assert store.get(KEY, {"a": WEIGHTS_OF["a"]}) is None
    assert store.get(KEY) is None and len(Files(url).list("aside")) == 3


def test_a_lock_is_held_by_one_machine_at_a_time(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = []
    for name in ("one", "two", "three"):
        _machine(tmp_path / name, monkeypatch)
        stores.append(open_store(url))
    inside, most, entered = 0, 0, 0
    guard = threading.Lock()

    def work(store: Store) -> None:
        nonlocal inside, most, entered
        for _ in range(3):
            with store.lock(KEY):
                with guard:
                    inside, entered = inside + 1, entered + 1
                    most = max(most, inside)
                time.sleep(0.02)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (most, entered) == (1, 9)
    with stores[0].lock(KEY), pytest.raises(TimeoutError), stores[1].lock(KEY, wait=False):
        pass
    assert Files(url).list("claims") == {}


def test_a_claim_is_renewed_while_its_holder_lives(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "CLAIM_S", 3.0)  # the server tells whole seconds
    files = Files(url)
    (one := tmp_path / "a").mkdir()
    (two := tmp_path / "b").mkdir()
    with files.lock("name", one):
        ends = time.monotonic() + 6
        while time.monotonic() < ends:
            with pytest.raises(TimeoutError), files.lock("name", two, wait=False):
                pass
            time.sleep(0.5)


def test_a_claim_of_a_dead_holder_expires(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "CLAIM_S", 2.0)
    files = Files(url)
    files.write("claims/name.dead", b"")
    started = time.monotonic()
    with files.lock("name", tmp_path):
        assert 1 < time.monotonic() - started < 10
        assert list(files.list("claims")) == [f"claims/name.{remote.owner_of(tmp_path)}"]


def _hold(url: str) -> None:
    with open_store(url).lock(KEY):
        time.sleep(60)


def test_a_killed_holder_keeps_nobody_of_its_machine_waiting(url: str) -> None:
    holder = multiprocessing.get_context("spawn").Process(target=_hold, args=(url,))
    holder.start()
    files = Files(url)
    while not files.list("claims"):
        time.sleep(0.05)
    holder.kill()
    holder.join()
    started = time.monotonic()
    with open_store(url).lock(KEY):
        assert time.monotonic() - started < 5 < remote.CLAIM_S


def test_notes_and_pruning(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _filled(url)
    run = tmp_path / "run"
    run.mkdir()
    store.own(run, [KEY])
    assert [entry.needed_by for entry in store.entries()] == [(str(run),)]
    store.prune(0)
    assert store.keys() == [KEY]
    run.rmdir()
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")  # where no folder tells that the run is gone
    store.prune(0)
    assert store.keys() == [KEY]
    monkeypatch.undo()
    _machine(tmp_path / "one", monkeypatch)
    assert [entry.key for entry in store.prune(0)] == [KEY]
    assert Files(url).list("entries") == {} and not store.path(KEY).exists()


def test_the_command_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    _filled(url).own("s3://bucket/run", [KEY])
    assert main([f"store={url}", "do=list"]) == 0
    assert "needed by s3://bucket/run" in capsys.readouterr().out
    assert main([f"store={url}", "do=forget", "run=s3://bucket/run"]) == 0
    assert main([f"store={url}", "do=verify"]) == 0
    assert "1 of 1 entries" in capsys.readouterr().out
    files = Files(url)
    files.write(f"{FOLDER}/{WEIGHTS}", b"no")
    assert main([f"store={url}", "do=verify"]) == 3  # though the cache's is whole
    assert main([f"store={url}", "do=prune", "keep=0"]) == 0
    assert files.list("aside") == {}


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://me:secret@bucket/x", "without user:secret@"),
        ("s3://me@bucket/x", "without user:secret@"),
        ("s3://", "must name a bucket"),
        ("file:///tmp/x", "without a scheme"),
    ],
)
def test_bad_urls(url: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        check_url(url)
    assert "secret@bucket" not in str(error.value)


def test_an_unknown_scheme_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="can't be opened"):
        open_store("ftp://host/folder")


def test_a_driver_needs_no_torch(url: str) -> None:
    code = f"import sys; from smskd.store import open_store; open_store({url!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
