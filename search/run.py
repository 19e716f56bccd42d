"""`python -m search.run key=value ...`: search, freeze the front, confirm it on fresh seeds, write the report.

Running the same command again is how a search goes on after anything that ended it.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from search import config as configs
from search import disk, interrupts, storages
from search.space import SpaceError

if TYPE_CHECKING:
    from search.several import Search

DONE, BAD_INPUT, WITH_FAILURES, NOTHING, INTERRUPTED = 0, 2, 3, 4, 130


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    if any(word in ("--help", "-h", "help") for word in argv):
        console.print(configs.help_text(), markup=False, soft_wrap=True)
        return DONE
    interrupts.listen()
    again = storages.hidden(shlex.join(["python", "-m", "search.run", *argv]))
    try:
        pairs = configs.parse_pairs(argv)
        from search import several  # Optuna and pandas take long to import: wrong arguments are refused before

        with several.held(pairs), _mistakes_kept(pairs[0].folder):
            search = several.Search(pairs, console, again)
            try:
                if search.work_left():
                    search.check_inputs()
                    search.work()
                interrupts.check()
            except KeyboardInterrupt:
                interrupts.ignore()
                search.write(finished=False)
                raise
            return _end(search, console)
    except KeyboardInterrupt:
        interrupts.ignore()
        console.print(f"interrupted; all finished stages are kept. To go on: {again}", markup=False)
        return INTERRUPTED
    except Exception as error:
        kept = f"; what had finished is kept. To try again: {again}"
        if (cause := disk.trouble(error)) is not None:
            return _complain(cause, NOTHING, kept)
        if isinstance(error, ValueError | OSError):
            return _complain(error, BAD_INPUT)
        if isinstance(error, RuntimeError):
            return _complain(error, NOTHING, kept)
        raise


@contextlib.contextmanager
def _mistakes_kept(folder: Path) -> Iterator[None]:
    """Leave the traceback of a mistake in a space's file in the run's folder."""
    try:
        yield
    except SpaceError as error:
        if not error.details:
            raise
        kept = folder / "errors" / "space.txt"
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(error.details)
        raise ValueError(f"{error}; the traceback is in {kept}") from error


def _end(search: Search, console: Console) -> int:
    search.write(finished=True)
    search.close()
    if search.refusal is not None:
        return _complain(ValueError(search.refusal), BAD_INPUT)
    if search.empty:
        return NOTHING
    if search.failed:
        console.print("       exit 3: finished with failures", style="dim")
        return WITH_FAILURES
    return DONE


def _complain(error: Exception | str, code: int, mend: str = "") -> int:
    text = storages.hidden(" ".join(str(error).split())) + mend
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {text}", markup=False, style="red")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
