"""A server of S3 for tests: moto's, a process of its own on loopback."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import runs

_SERVER = Path(sys.executable).parents[1] / "moto" / "bin" / "moto_server"
# None of these is anybody's: moto takes all. Without them a client would look for credentials elsewhere.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where it listens; it has one bucket."""

    port: int

    def url(self, folder: str) -> str:
        """URL of a folder in the bucket."""
        return f"s3://bucket/{folder}?scheme=http&endpoint_override=127.0.0.1:{self.port}"


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """The server, with credentials for it in the environment; ended by its pid."""
    port = runs.free_port()
    command = [_SERVER, "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    try:
        _wait(port, process)
        from pyarrow import fs

        system, _ = fs.FileSystem.from_uri(f"{Server(port=port).url('')}&allow_bucket_creation=true")
        system.create_dir("bucket")
        yield Server(port=port)
    finally:
        process.kill()
        process.wait()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert process.poll() is None and time.monotonic() < deadline, "moto's server doesn't answer"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    """One server for the tests of a file; each uses a folder of its own."""
    with running() as server:
        yield server
