"""A Ray cluster of this machine's processes, in tests: nodes that are started, killed and added one by one.

Each node is `ray start --block` in a session of its own, ended by that; its files are in the test's folder, so that
address=auto elsewhere doesn't find it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import runs

TOKEN = "0123456789abcdef0123456789abcdef"


class RayNodes:
    """The nodes, by name; `head` is the first. As a context manager it ends them all."""

    def __init__(self, *, token: str | None = TOKEN, **variables: str) -> None:
        """token: what the cluster asks for; None: it asks for none. variables: of each node's processes."""
        self._folder = tempfile.TemporaryDirectory(prefix="ray-")  # short, since sockets are in it
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._port = runs.free_port()
        auth = {"RAY_AUTH_MODE": "disabled"} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        # from its head a search is killed with the head, from another node it isn't; here they are one machine
        self.variables = auth | {"RAY_TMPDIR": self._folder.name, "RAY_USAGE_STATS_ENABLED": "0"} | variables
        self.variables |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

    @property
    def address(self) -> str:
        """What address= takes."""
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> RayNodes:
        return self

    def __exit__(self, *error: object) -> None:
        for name in reversed(list(self._processes)):
            self.kill(name)
        self._folder.cleanup()

    def start(self, name: str, *, cpus: int, gpus: int = 0, **variables: str) -> None:
        """Start a node with so many cores and GPUs declared, and wait until it is one of the cluster."""
        ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
        where = (
            ["--head", f"--port={self._port}", "--include-dashboard=false", "--node-ip-address=127.0.0.1"]
            if name == "head"
            else [f"--address={self.address}", "--node-ip-address=127.0.0.1"]
        )
        size = [f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--object-store-memory=80000000"]
        log = Path(self._folder.name) / f"{name}.log"
        with log.open("wb") as out:
            self._processes[name] = subprocess.Popen(
                [*ray, *where, *size], env=runs.environment() | self.variables | variables, cwd=runs.ROOT,
                stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while "--block" not in log.read_text():  # it says so when it is up
            assert self._processes[name].poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    def kill(self, name: str) -> None:
        """Kill a node's processes, all at once, as when its machine is lost."""
        process = self._processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
