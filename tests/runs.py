"""Whole searches in tests, small ones: their command, what they leave, and which processes are theirs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from reports import results

ROOT = Path(__file__).parents[1]
SMALL = ["methods=[kd,rkd]", "train_size=100", "epochs=1", "seeds=2", "confirm=1", "teacher_epochs=1"]
SAME = ["recipe", "recipe_id", "methods", "seed", "phase", "status", "val_accuracy", "test_accuracy", "train_flops"]
SAME += ["epochs_total", "n_stages"]
# Ray's agents write their titles over the beginning of their environment, which is in random order: one of many stays.
_MARKS = [f"SMSKD_TEST_MARK_{number}" for number in range(12)]


def command(out: Path | str, store: Path | str, *more: str) -> list[str]:
    """The small search, with some of its words replaced; `key=` alone leaves one out."""
    replaced = {word.partition("=")[0] for word in more}
    kept = [word for word in SMALL if word.partition("=")[0] not in replaced]
    given = [word for word in more if not word.endswith("=")]
    return [sys.executable, "-m", "search.run", *kept, f"out={out}", f"store={store}", *given]


def environment(mark: str | None = None, **more: str) -> dict[str, str]:
    """Without address= a search is of this machine alone, whatever cluster there is beside it."""
    return os.environ | {"RAY_ADDRESS": "127.0.0.1:1"} | dict.fromkeys(_MARKS if mark else (), mark or "") | more


def search(
    out: Path | str, store: Path | str, *more: str, mark: str | None = None, timeout: float = 240, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the small search to its end."""
    return subprocess.run(
        command(out, store, *more), cwd=ROOT, env=environment(mark, **variables), capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip


def start(
    out: Path | str, store: Path | str, *more: str, mark: str | None = None, **variables: str
) -> subprocess.Popen[str]:
    """Start the small search in a session of its own, with stdout and stderr to be read together."""
    return subprocess.Popen(
        command(out, store, *more), cwd=ROOT, env=environment(mark, **variables), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def sabotage(folder: Path, module: str, code: str) -> str:
    """A PYTHONPATH with which every process runs some code in a module's names, as soon as it has been imported.

    The code has once(name), True the first time that it is asked in any process, and struck(what, when, name, number):
    what, but that this process is sent a signal there, the first time, when it `begins` or `ends`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(folder=str(folder), module=module, code=code))
    return str(folder)


_SITECUSTOMIZE = """
import importlib.abc, importlib.util, os, pathlib, signal, sys

def once(name):
    try:
        (pathlib.Path({folder!r}) / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

def struck(what, when, name, number=signal.SIGKILL):
    def strikes(*args, **kwargs):
        if when == "begins" and once(name):
            os.kill(os.getpid(), number)
        told = what(*args, **kwargs)
        if when == "ends" and once(name):
            os.kill(os.getpid(), number)
        return told
    return strikes

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != {module!r}:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            vars(module).update(once=once, struck=struck)
            exec({code!r}, vars(module))
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def free_port() -> int:
    """A port of this machine that nobody listens on, for a server of a test's own."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def table(out: Path) -> pd.DataFrame:
    """The columns of a run's results that an uninterrupted run would have as well; those of settings among them."""
    found = results.read(out)
    return found[[*SAME, *results.setting_columns(found)]]


def finished(store: Path) -> dict[str, int]:
    """Finished stages of a store, the teacher among them: key -> when its manifest was written, in nanoseconds."""
    found = {}
    for path in store.glob("entries/*/*/manifest.json"):
        found[path.parent.name] = path.stat().st_mtime_ns
    return found


def wait_for_stages(store: Path, count: int, running: subprocess.Popen[str], timeout: float = 120) -> None:
    """Wait until a store has so many entries, or the search has ended."""
    deadline = time.monotonic() + timeout
    while len(finished(store)) < count and running.poll() is None:
        assert time.monotonic() < deadline, f"{len(finished(store))} of {count} stages after {timeout} s"
        time.sleep(0.02)


def marked(mark: str) -> dict[int, str]:
    """Processes that have this mark in their environment: pid -> command line. Ray's are among them."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
            if any(variable.partition(b"=")[2] == mark.encode() for variable in variables):
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found
