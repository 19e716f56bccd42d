"""Faults at the n-th change of a file, in real processes and their children: by a library that is preloaded."""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search.disk import trouble
from tests.runs import ROOT

FULL, KILL = 1, 2
NEVER = 2**31 - 1
_LAYOUT = "4i"


@functools.cache
def _library() -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tempfile.mkdtemp(prefix="smskd-writes-")
    atexit.register(shutil.rmtree, folder)
    made = Path(folder) / "writes.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", made, source], check=True)
    return made


class Writes:
    """Changes of files below some paths: writes, syncs, renames, new files and folders, removals.

    at, kind: at which of them, from 1, the disk is full and stays so (FULL; what frees space still works), or the
    process is killed (KILL; of a write, `bytes` bytes are on the disk by then).
    """

    def __init__(self, state: Path, *under: Path, log: Path | None = None) -> None:
        self.state = state
        self.arm(NEVER, FULL)
        self.variables = {
            "LD_PRELOAD": str(_library()),
            "WRITES_STATE": str(state),
            "WRITES_UNDER": ":".join(map(str, under)),
            **({} if log is None else {"WRITES_LOG": str(log)}),
        }

    def arm(self, at: int, kind: int, bytes: int = 0) -> None:
        """In place, since processes have the file mapped."""
        with self.state.open("r+b" if self.state.exists() else "wb") as file:
            file.write(struct.pack(_LAYOUT, at, kind, bytes, 0))

    @property
    def count(self) -> int:
        """Changes since it was armed."""
        return int(struct.unpack(_LAYOUT, self.state.read_bytes())[3])


def at_every_change(
    writes: Writes, kind: int, act: Callable[[], object], *, bytes: int = 0, every: int = 1
) -> Iterator[int]:
    """In a process that has the library: `act` in a child, with the fault at its first change, at its second, and so on
    until it comes through. The number of the change, after each child's end.
    """
    for at in itertools.count(1, every):
        writes.arm(at, kind, bytes)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                act()
                code = 0
            except BaseException as error:
                if kind != FULL or trouble(error) is None:
                    traceback.print_exception(error)
                    code = 2
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        reached = writes.count >= at
        writes.arm(NEVER, kind)
        if not reached:
            assert status == 0, f"{status} without a fault"
            return
        assert status in ((-signal.SIGKILL,) if kind == KILL else (0, 1)), f"{status} at change {at}"
        yield at


def forked(act: Callable[..., Any], *words: Any) -> Any:
    """What `act` returns in a child, as JSON: its open databases end with it."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writes, json.dumps(act(*words)).encode())
        except BaseException as error:
            traceback.print_exception(error)
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as file:
        told = file.read()
    os.waitpid(child, 0)
    return json.loads(told)


def tell(what: dict[str, Any]) -> None:
    """From a function that is called `in_process`."""
    sys.stdout.write(json.dumps(what) + "\n")


def in_process(
    function: Callable[..., None], *words: Any, writes: Writes, timeout: float = 280
) -> list[dict[str, Any]]:
    """Call a function of a test module in a process that has the library, with words; what it tells."""
    code = f"import sys; from {function.__module__} import {function.__name__} as f; f(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | writes.variables,
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
