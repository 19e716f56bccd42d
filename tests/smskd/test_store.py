"""The store: whole entries or none, whatever fails."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path

import pytest
import torch

from smskd.store import MANIFEST, METHODS, WEIGHTS, Store, address, canonical, entries, local, open_store, read_secret
from smskd.store.__main__ import main

IDENTITY = {"network": "tiny", "seed": 3, "parent": None}
KEY = address(IDENTITY)
FACTS = {"val_accuracy": 0.75, "losses": [{"kd": 1.5}]}


def _weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"a": torch.randn(3, 4, generator=generator), "steps": torch.tensor(7)}


LEARNED = {"0/regressor.weight": torch.ones(2)}


def _filled(root: Path) -> Store:
    store = Store(root)
    with store.lock(KEY):
        store.put(KEY, IDENTITY, _weights(), FACTS, LEARNED)
    return store


def _files(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file() and "locks" not in p.parts
    }


def _flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def test_address_depends_on_values_not_on_order() -> None:
    assert address({"a": 1, "b": 2}) == address({"b": 2, "a": 1})
    assert address({"a": 1, "b": 2}) != address({"a": 1, "b": 3})


def test_put_then_get(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.get(KEY) is None
    with store.lock(KEY):
        put = store.put(KEY, IDENTITY, _weights(), FACTS, LEARNED)
    got = Store(tmp_path).get(KEY)
    assert got is not None
    assert (got.key, got.digest, got.facts) == (KEY, put.digest, FACTS)
    assert set(got.weights) == set(_weights())
    for name, value in _weights().items():
        assert torch.equal(got.weights[name], value)
        assert got.weights[name].dtype == value.dtype
    assert not list((tmp_path / "partial").iterdir())
    assert store.size_bytes() > 0


@pytest.mark.parametrize(("file", "position"), [(WEIGHTS, -1), (WEIGHTS, 0), (MANIFEST, 0)])
def test_flipped_bit_is_found_and_set_aside(tmp_path: Path, file: str, position: int) -> None:
    store = _filled(tmp_path)
    _flip(store.path(KEY) / file, position)
    assert store.get(KEY) is None
    assert not store.path(KEY).exists()
    assert len(list((tmp_path / "aside").glob(f"{KEY}.*"))) == 1
    with store.lock(KEY):
        store.put(KEY, IDENTITY, _weights(), FACTS, LEARNED)  # it can be made again
    assert store.get(KEY) is not None


@pytest.mark.parametrize("text", ["0.75", KEY[:20], '"seed": 3', '"kd": 1.5'])
def test_flipped_bit_in_a_value_of_the_manifest(tmp_path: Path, text: str) -> None:
    store = _filled(tmp_path)
    manifest = store.path(KEY) / MANIFEST
    _flip(manifest, manifest.read_text().index(text) + len(text) - 1)
    assert store.get(KEY) is None
    assert len(list((tmp_path / "aside").iterdir())) == 1


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", "7", '"text"', "{"])
def test_replaced_manifest_is_found(tmp_path: Path, content: str) -> None:
    store = _filled(tmp_path)
    (store.path(KEY) / MANIFEST).write_text(content)
    assert store.get(KEY) is None


@pytest.mark.parametrize("file", [WEIGHTS, MANIFEST])
def test_missing_file_is_found(tmp_path: Path, file: str) -> None:
    store = _filled(tmp_path)
    (store.path(KEY) / file).unlink()
    assert store.get(KEY) is None


def test_entry_under_another_key_is_found(tmp_path: Path) -> None:
    store = _filled(tmp_path)
    other = address({"network": "other"})
    store.path(other).parent.mkdir(exist_ok=True)
    store.path(KEY).rename(store.path(other))
    assert store.get(other) is None


def test_leftovers_are_swept_but_not_those_at_work(tmp_path: Path) -> None:
    store = _filled(tmp_path)
    dead, busy = "d" * 64, "b" * 64
    for key in (dead, busy):
        left = tmp_path / "partial" / f"{key}.0123"
        left.mkdir()
        (left / WEIGHTS).write_bytes(b"half")
    with Store(tmp_path).lock(busy):
        # the lock has removed what an earlier holder left; this one is the present holder's
        (tmp_path / "partial" / f"{busy}.4567").mkdir()
        store.sweep()
        assert [p.name for p in (tmp_path / "partial").iterdir()] == [f"{busy}.4567"]
    store.sweep()
    assert not list((tmp_path / "partial").iterdir())
    assert store.get(KEY) is not None


def test_lock_removes_leftovers_of_its_key(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "partial" / f"{KEY}.0123").mkdir()
    with store.lock(KEY):
        assert not list((tmp_path / "partial").iterdir())


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_failed_write_leaves_the_store_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    store = _filled(tmp_path)
    before = _files(tmp_path)
    identity = IDENTITY | {"seed": 4}
    key = address(identity)
    calls = 0
    genuine = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(28, "No space left on device")
        genuine(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with store.lock(key), pytest.raises(OSError, match="No space left"):
        store.put(key, identity, _weights(), FACTS, LEARNED)
    monkeypatch.undo()
    assert _files(tmp_path) == before
    assert not list((tmp_path / "partial").iterdir())
    assert store.get(key) is None
    with store.lock(key):
        store.put(key, identity, _weights(), FACTS, LEARNED)
    assert store.get(key) is not None


# --- what others may have written


def _secret(path: Path, content: bytes = bytes(range(32)), mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_what_is_not_signed_is_never_used(tmp_path: Path) -> None:
    mine, other = _secret(tmp_path / "mine"), _secret(tmp_path / "other", bytes(32))
    _filled(tmp_path / "store")
    signing = open_store(tmp_path / "store", mine)
    assert signing.get(KEY) is None  # unsigned
    with signing.lock(KEY):
        signing.put(KEY, IDENTITY, _weights(), FACTS, LEARNED)
    assert signing.get(KEY) is not None
    assert Store(tmp_path / "store").get(KEY) is not None  # without a secret it isn't looked at
    assert open_store(tmp_path / "store", other).get(KEY) is None
    assert len(list((tmp_path / "store" / "aside").iterdir())) == 2


@pytest.mark.parametrize("change", ["facts", "signature", "none"])
def test_a_forged_manifest_with_a_right_checksum(tmp_path: Path, change: str) -> None:
    store = open_store(tmp_path / "store", _secret(tmp_path / "secret"))
    with store.lock(KEY):
        store.put(KEY, IDENTITY, _weights(), FACTS, LEARNED)
    path = store.path(KEY) / MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["check"]
    signature = manifest.pop("signature")
    if change == "facts":
        manifest["facts"]["val_accuracy"] = 1.0
    manifest["check"] = hashlib.sha256(canonical(manifest).encode()).hexdigest()
    if change != "none":
        manifest["signature"] = signature if change == "facts" else ["x"]
    path.write_text(json.dumps(manifest))
    assert Store(store.root).verified(KEY) is not None
    assert store.get(KEY) is None


@pytest.mark.parametrize(
    ("content", "mode", "told"),
    [(bytes(31), 0o600, "32 bytes"), (bytes(5000), 0o600, "4096"), (bytes(32), 0o640, "0640"), (None, 0, "No such")],
)
def test_a_secret_must_be_one(tmp_path: Path, content: bytes | None, mode: int, told: str) -> None:
    path = tmp_path / "secret"
    if content is not None:
        _secret(path, content, mode)
    with pytest.raises(ValueError, match=told):
        read_secret(path)


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS, METHODS])
@pytest.mark.parametrize("what", ["link", "pipe", "folder", "large"])
def test_only_regular_files_of_bounded_size_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    store = _filled(tmp_path / "store")
    path = store.path(KEY) / name
    content = path.read_bytes()
    path.unlink()
    if what == "link":  # to what was there: it isn't followed all the same
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere")
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        monkeypatch.setattr(entries, "MANIFEST_BYTES" if name == MANIFEST else "WEIGHTS_BYTES", len(content) - 1)
        path.write_bytes(content)
    assert store.entries() == [] or name != MANIFEST
    assert store.get(KEY) is None
    assert len(list((tmp_path / "store" / "aside").iterdir())) == 1


@pytest.mark.parametrize("like", [{"a": torch.ones(3, 4)}, {"b": torch.ones(3, 4), "steps": torch.tensor(7)}])
def test_weights_of_another_network_are_set_aside(tmp_path: Path, like: dict[str, torch.Tensor]) -> None:
    store = _filled(tmp_path)
    assert store.get(KEY, _weights()) is not None
    assert store.get(KEY, like) is None
    assert not store.path(KEY).exists()


def test_deep_manifests_are_no_crash(tmp_path: Path) -> None:
    store = _filled(tmp_path)
    (store.path(KEY) / MANIFEST).write_text("[" * 10**6)
    assert store.entries() == [] and store.digest(KEY) is None and store.get(KEY) is None


def test_an_entry_that_is_there_stays(tmp_path: Path) -> None:
    store = _filled(tmp_path)
    before = _files(tmp_path)
    with store.lock(KEY):
        kept = store.put(KEY, IDENTITY, {"a": torch.zeros(1)}, FACTS, LEARNED)
    assert _files(tmp_path) == before and kept.weights.keys() == _weights().keys()


def test_a_store_for_a_group_stays_open_to_it(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        (tmp_path / "store").mkdir()
        (tmp_path / "store").chmod(0o2770)
        store = _filled(tmp_path / "store")
        assert store.get(KEY) is not None
        folders = [p for p in store.root.rglob("*") if p.is_dir()]
        assert len(folders) == 6 and {stat.S_IMODE(p.stat().st_mode) for p in folders} == {0o2770}
        assert stat.S_IMODE((store.root / "locks" / KEY).stat().st_mode) == 0o660
        assert stat.S_IMODE((Store(tmp_path / "own").root).stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_a_note_of_another_machine_stays_until_it_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = _filled(tmp_path / "store")
    where = f"store={store.root}"
    with monkeypatch.context() as there:
        there.setattr("socket.gethostname", lambda: "node7")
        there.setenv("USER", "ada")
        store.own(tmp_path / "nowhere here", [KEY])
    store.prune(0)
    assert [entry.needed_by for entry in store.entries()] == [(f"ada@node7:{tmp_path / 'nowhere here'}",)]
    assert main([where, "do=forget", "run=/other"]) == 2
    assert "ada@node7:" in capsys.readouterr().err
    assert main([where, "do=forget", f"run={tmp_path / 'nowhere here'}"]) == 0
    assert [entry.needed_by for entry in store.entries()] == [()]
    store.prune(0)
    assert store.keys() == []


def test_a_damaged_note_prunes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = _filled(tmp_path)
    store.own(tmp_path, [KEY])
    next((tmp_path / "owners").iterdir()).write_text("[]")
    assert main([f"store={tmp_path}", "do=prune", "keep=0"]) == 2
    assert "damaged" in capsys.readouterr().err and store.keys() == [KEY]


# --- looking after a store


def _chain(root: Path) -> tuple[Store, dict[str, str]]:
    """A teacher, a stage it taught, a stage after that, and one that stands alone: name -> key, the oldest first."""
    store, keys, digests = Store(root), {}, {}
    for position, (name, parent, teachers) in enumerate(
        [("alone", None, []), ("teacher", None, []), ("first", None, ["teacher"]), ("second", "first", ["teacher"])]
    ):
        identity = {"network": "tiny", "methods": ["kd"], "seed": position, "parent": digests.get(parent or "")}
        identity["teachers"] = [digests[t] for t in teachers]
        keys[name] = address(identity)
        weights = {name: torch.full((100 * (position + 1),), float(position))}
        with store.lock(keys[name]):
            digests[name] = store.put(keys[name], identity, weights, FACTS, {}).digest
        for file in (store.path(keys[name]) / MANIFEST, root / "locks" / keys[name]):
            os.utime(file, (1000 + position, 1000 + position))
    return store, keys


def _held(store: Store, keys: dict[str, str]) -> set[str]:
    return {name for name, key in keys.items() if store.path(key).is_dir()}


def test_pruning_begins_with_the_longest_unused(tmp_path: Path) -> None:
    store, keys = _chain(tmp_path)
    assert store.get(keys["alone"]) is not None  # now it was used last
    assert [entry.key for entry in store.entries()][-1] == keys["alone"]
    sizes = {entry.key: entry.bytes for entry in store.entries()}
    removed = store.prune(sum(sizes.values()) - 1)
    assert [entry.key for entry in removed] == [keys["teacher"]]
    store.prune(0)
    assert _held(store, keys) == set()
    assert list((tmp_path / "partial").iterdir()) == []


def test_a_reader_without_file_descriptors_sets_nothing_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _filled(tmp_path)

    def none_left(path: Path, most: int) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    with monkeypatch.context() as broken:
        broken.setattr(local, "read_file", none_left)
        with pytest.raises(OSError, match="Too many open files"):
            store.get(KEY)
    assert store.get(KEY) is not None


def test_what_a_run_needs_is_never_pruned(tmp_path: Path) -> None:
    store, keys = _chain(tmp_path / "store")
    run = tmp_path / "run"
    run.mkdir()
    store.own(run, [keys["second"]])
    assert {entry.key for entry in store.entries() if entry.needed_by} == {
        keys[name] for name in ("teacher", "first", "second")
    }
    store.prune(0)
    assert _held(store, keys) == {"teacher", "first", "second"}
    run.rmdir()
    store.prune(0)
    assert _held(store, keys) == set()


def test_pruning_takes_tables_too(tmp_path: Path) -> None:
    store, _ = _chain(tmp_path)
    folder = store.table({"teacher": "t"})
    assert folder is not None and folder == store.table({"teacher": "t"}) != store.table({"teacher": "u"})
    (folder / "ends-0").write_bytes(bytes(9))
    before = store.size_bytes()
    store.prune(2**30)
    assert not folder.exists() and store.size_bytes() == before


def test_an_entry_that_somebody_is_about_to_write_is_not_pruned(tmp_path: Path) -> None:
    store, keys = _chain(tmp_path)
    with Store(tmp_path).lock(keys["first"]):
        store.prune(0)
    assert _held(store, keys) == {"first"}


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, keys = _chain(tmp_path)
    where = f"store={tmp_path}"
    assert main([where, "do=list"]) == 0
    listed = capsys.readouterr().out
    assert all(key[:16] in listed for key in keys.values()) and "needed by no run" in listed
    assert main([where, "do=verify"]) == 0
    assert "4 of 4 entries" in capsys.readouterr().out
    _flip(store.path(keys["first"]) / WEIGHTS, -1)
    assert main([where, "do=verify"]) == 3
    assert f"damaged, set aside: {keys['first']}" in capsys.readouterr().out
    assert main([where, "do=prune", "keep=1GB"]) == 0
    assert _held(store, keys) == {"alone", "teacher", "second"} and not (tmp_path / "aside").exists()
    assert main([where, "do=prune", "keep=0"]) == 0
    assert "removed 3 entries" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["do=clean"], "list, size, verify, prune"),
        (["do=prune"], "keep="),
        (["keep=2GB"], "keep="),
        (["do=prune", "keep=lots"], "keep=lots"),
        (["do=prune", "keep=-1"], "keep=-1"),
        (["do=prune", "keep=nan"], "keep=nan"),
        (["do=forget"], "run="),
        (["run=/x"], "run="),
        (["store_key=/nowhere"], "store_key=/nowhere"),
        (["store=/nowhere"], "no store"),
        (["store=s3://me:secret@bucket"], "without user:secret@"),
    ],
)
def test_bad_words(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    _chain(tmp_path)
    where = [] if words[0].startswith("store=") else [f"store={tmp_path}"]
    assert main([*where, *words]) == 2
    assert told in capsys.readouterr().err
