"""A PostgreSQL server of the test's own: on loopback, in a folder of its own, ended by its pid."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import runs

BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
PASSWORD = "s3cret-of-a-test"


class Server:
    """A server with an empty database `smskd`, reached by a password."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = runs.free_port()
        secret = folder / "password"
        secret.write_text(PASSWORD)
        self._run(
            "initdb", "--auth=scram-sha-256", f"--pwfile={secret}", "--username=smskd", "--no-sync", str(self._data)
        )
        self.start()
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self._port), "-U", "smskd", "smskd", PGPASSWORD=PASSWORD)

    @property
    def url(self) -> str:
        """What storage= takes."""
        return f"postgresql+psycopg://smskd:{PASSWORD}@127.0.0.1:{self._port}/smskd"

    @property
    def shown(self) -> str:
        """The same for people."""
        return self.url.replace(PASSWORD, "***")

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = ["-D", str(self._data), "-p", str(self._port), "-h", "127.0.0.1", "-k", str(self._folder), "-F"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                _unprivileged(str(BIN / "postgres"), *options), stdout=log, stderr=log, cwd=self._folder
            )
        deadline = time.monotonic() + 60
        ready = [str(BIN / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        while subprocess.run(ready).returncode:
            assert time.monotonic() < deadline and self._process.poll() is None, (self._folder / "log").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        """End the server and all connections to it, at once."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _run(self, program: str, *arguments: str, **variables: str) -> None:
        subprocess.run(
            _unprivileged(str(BIN / program), *arguments), check=True, cwd=self._folder, env=os.environ | variables,
            capture_output=True,
        )  # fmt: skip


def _unprivileged(*command: str) -> list[str]:
    """The server doesn't run as root."""
    return (
        list(command)
        if os.getuid()
        else ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]
    )


@contextlib.contextmanager
def served() -> Iterator[Server]:
    """A server; the test is skipped where there is none to start."""
    if BIN is None:
        pytest.skip("needs PostgreSQL's server: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        if not os.getuid():
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
        server = Server(folder)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
