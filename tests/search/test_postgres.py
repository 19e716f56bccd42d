"""A study on a PostgreSQL server; and where a study can't be kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import optuna
import pandas as pd
import pytest

from search import config, storages
from tests import runs
from tests.search.postgres import PASSWORD, Server, served

# --- where a study can be kept


@pytest.mark.parametrize(
    "url", ["mysql://me@host/db", "postgresql://me@host/db", "s3://bucket/study.db", "study.db", "sqlite://"]
)
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"storage= is postgresql\+psycopg://user@host/database or sqlite:///FILE"):
        config.parse([f"storage={url}"])


def test_psycopg_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install psycopg\[binary\]"):
        storages.check("postgresql+psycopg://me@host/db")


MOUNTS = """22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:30 / {0}/far rw,relatime shared:2 - {1} server:/x rw
31 22 0:31 / {0}/with\\040space rw - nfs4 server:/y rw
32 30 0:32 / {0}/far/near rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "ceph"])
def test_sqlite_on_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    (tmp_path / "mounts").write_text(MOUNTS.format(tmp_path, kind))
    monkeypatch.setattr(storages, "_MOUNTS", tmp_path / "mounts")
    for place in ("far/run", "far", "with space/run"):
        with pytest.raises(ValueError, match=r"network file system.*storage=postgresql\+psycopg://"):
            storages.url(None, tmp_path / place)
    for place in ("run", "far/near/run", "far2"):
        assert storages.url(None, tmp_path / place) == f"sqlite:///{tmp_path / place / 'study.db'}"
    server = "postgresql+psycopg://me@host/db"
    assert storages.url(server, tmp_path / "far") == server


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("storage=postgresql+psycopg://me:pass@host/db", "storage=postgresql+psycopg://me:***@host/db"),
        ("postgresql+psycopg://me:p@ss/:w@host:1/db x", "postgresql+psycopg://me:***@host:1/db x"),
        ("postgresql+psycopg://host/db?user=me&password=pass", "postgresql+psycopg://host/db?user=me&password=***"),
        ("postgresql+psycopg://me@host:1/db", "postgresql+psycopg://me@host:1/db"),
        ("sqlite:////home/me/study.db", "sqlite:////home/me/study.db"),
    ],
)
def test_passwords_are_masked(text: str, shown: str) -> None:
    assert storages.hidden(text) == shown


# --- on a server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served() as started:
        yield started


def test_one_driver_a_study_and_the_next_one_when_it_has_ended(server: Server) -> None:
    first = storages.opened(server.url)
    with pytest.raises(ValueError, match=r"another search is at work in postgresql\+psycopg://smskd:\*\*\*@"):
        storages.opened(server.url)
    first.engine.dispose()  # type: ignore[union-attr]
    storages.opened(server.url).engine.dispose()  # type: ignore[union-attr]


def test_one_that_lost_its_connection_writes_no_more_once_another_has_begun(server: Server) -> None:
    first = storages.opened(server.url)
    study = optuna.create_study(storage=first)
    server.stop()
    server.start()
    second = storages.opened(server.url)
    with pytest.raises(Exception) as lost:  # the connection
        study.ask()
    assert "the server of the study is gone" in str(storages.lost(lost.value))
    with pytest.raises(ValueError, match="another search is at work"):
        study.ask()
    second.engine.dispose()  # type: ignore[union-attr]
    study.ask()  # it is the only one again
    first.engine.dispose()  # type: ignore[union-attr]


def test_a_server_that_can_t_be_reached_is_said_without_the_password(tmp_path: Path) -> None:
    url = f"postgresql+psycopg://smskd:{PASSWORD}@127.0.0.1:1/smskd"
    done = runs.search(tmp_path / "run", tmp_path / "store", f"storage={url}")
    assert done.returncode == 2
    assert "the server of the study is gone or refuses" in done.stderr and "refused" in done.stderr
    assert PASSWORD not in done.stdout + done.stderr and "smskd:***@" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_search_whose_server_goes_away_ends_with_the_cause_and_goes_on(tmp_path: Path, server: Server) -> None:
    words = f"storage={server.url}", "epochs=5", "seeds=1"
    running = runs.start(tmp_path / "run", tmp_path / "store", *words)
    runs.wait_for_stages(tmp_path / "store", 2, running)
    second = runs.search(tmp_path / "other", tmp_path / "store", *words)
    assert (second.returncode, second.stdout) == (2, "") and "another search is at work" in second.stderr
    kept = runs.finished(tmp_path / "store")
    server.stop()
    told, _ = running.communicate(timeout=120)
    server.start()
    assert running.returncode == 4, told
    assert "the server of the study is gone" in told and "To try again" in told
    done = runs.search(tmp_path / "run", tmp_path / "store", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    now = runs.finished(tmp_path / "store")
    assert {key: now.get(key) for key in kept} == kept
    undisturbed = runs.search(tmp_path / "undisturbed", tmp_path / "store2", "epochs=5", "seeds=1")
    assert undisturbed.returncode == 0
    pd.testing.assert_frame_equal(runs.table(tmp_path / "run"), runs.table(tmp_path / "undisturbed"))
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(written) > 10
    assert [path for path in written if PASSWORD.encode() in path.read_bytes()] == []
    assert PASSWORD not in told + done.stdout + done.stderr + second.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["storage"] == server.shown
