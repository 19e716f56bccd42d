"""`python -m search.run key=value ...`: search, freeze the front, confirm it on fresh seeds, write the report.

Running the same command again is how a search goes on after anything that ended it.
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
from rich.console import Console

from search import config as configs
from search.config import Config

if TYPE_CHECKING:
    from search.session import Session

DONE, BAD_INPUT, WITH_FAILURES, NOTHING, INTERRUPTED = 0, 2, 3, 4, 130


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    if any(word in ("--help", "-h", "help") for word in argv):
        console.print(configs.help_text(), markup=False, soft_wrap=True)
        return DONE
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        config = configs.parse(argv)
        from search.session import Session  # Optuna and pandas take long to import: wrong arguments are refused before

        with _held(config):
            session = Session(config, console)
            try:
                if session.work_left():
                    session.check_inputs()
                    session.work()
            except KeyboardInterrupt:
                session.write(finished=False)
                raise
            return _end(session, console)
    except KeyboardInterrupt:
        again = shlex.join(["python", "-m", "search.run", *argv])
        console.print(f"interrupted; all finished stages are kept. To go on: {again}", markup=False)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        return _complain(error, BAD_INPUT)
    except RuntimeError as error:
        return _complain(error, NOTHING)


def _end(session: Session, console: Console) -> int:
    from search.progress import closing

    summary = session.write(finished=True)
    assert summary is not None, "a session that worked knows its bench"
    closing(console, session.config, summary, trained=session.stage_runs, failed=session.failed)
    if session.refusal is not None:
        return _complain(ValueError(session.refusal), BAD_INPUT)
    if summary.empty:
        return NOTHING
    return WITH_FAILURES if session.failed else DONE


@contextlib.contextmanager
def _held(config: Config) -> Iterator[None]:
    """Make the run's folder and the store, and hold the folder: one driver a run."""
    for key, place in (("out", config.folder), ("store", Path(config.store).absolute())):
        try:
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            (place / ".writable").touch()
            (place / ".writable").unlink()
        except OSError as error:
            raise ValueError(f"{key}={place} can't be written to: {error.strerror}; choose another folder") from None
    from smskd.store import Store

    try:
        with filelock.FileLock(config.folder / ".lock", timeout=0):
            Store(Path(config.store)).sweep()
            yield
    except filelock.Timeout:
        raise ValueError(
            f"another search is at work in {config.folder}: wait for it, or choose another folder with out="
        ) from None


def _complain(error: Exception, code: int) -> int:
    text = " ".join(str(error).split())
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {text}", markup=False, style="red")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
