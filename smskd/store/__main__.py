"""The command `python -m smskd.store`, which looks after a store of finished stages."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smskd import cli, names
from smskd.settings import setting
from smskd.store import Store, check_url, is_url, open_store

WHAT = ("list", "size", "verify", "prune", "forget")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What `python -m smskd.store` is asked for."""

    do: str = setting("size", f"one of {', '.join(WHAT)}; verify sets damaged entries aside")
    store: str = setting("runs/store", "finished stages: a folder, or a URL such as s3://bucket/folder")
    store_key: str | None = setting(None, "file with the secret that signs them; what it hasn't signed is damaged")
    run: str | None = setting(
        None, "for forget: a run whose stages needn't be kept, as do=list shows it; for one on another machine"
    )
    keep: str | None = setting(
        None, "for prune: how much may stay, such as 500MB or 2GB; what a run needs stays in any case"
    )

    def __post_init__(self) -> None:
        names.check("do", self.do, WHAT)
        if is_url(self.store):
            check_url(self.store)
        elif not (Path(self.store) / "entries").is_dir():
            raise ValueError(f"store={self.store} is no store of finished stages: it has no folder entries")
        if (self.do == "prune") != (self.keep is not None):
            raise ValueError("keep= says how much do=prune leaves, such as keep=2GB, and has no use elsewhere")
        if (self.do == "forget") != (self.run is not None):
            raise ValueError("run= says which run's stages do=forget lets go, and has no use elsewhere")
        if self.keep is not None:
            self.limit_bytes  # noqa: B018 (raises where it is no size)

    @property
    def limit_bytes(self) -> int:
        """keep=, in bytes."""
        size = re.fullmatch(r"(\d{1,18}(?:\.\d*)?) ?([KMGT]B)?", str(self.keep).upper())
        if size is None:
            raise ValueError(
                f"keep= must be a size in bytes, or with one of {', '.join(_UNITS)}, but got keep={self.keep}"
            )
        return int(float(size[1]) * _UNITS.get(size[2], 1))


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code: 0 done, 2 bad input, 3 verify found damage."""
    if any(word in ("--help", "-h", "help") for word in argv):
        _say("Look after a store of finished stages.\n\nkeys and defaults:\n" + "\n".join(cli.describe(Config)))
        return 0
    try:
        config = cli.parse(Config, argv)
        return _do(config, open_store(config.store, config.store_key))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2


def _do(config: Config, store: Store) -> int:
    if config.do == "verify":
        keys = store.keys()
        damaged = [key for key in keys if not store.intact(key)]
        for key in damaged:
            _say(f"damaged, set aside: {key}")
        _say(f"{len(keys) - len(damaged)} of {len(keys)} entries are as they were written")
        return 3 if damaged else 0
    if config.run is not None:
        store.forget(config.run)
    if config.do == "prune":
        removed = store.prune(config.limit_bytes)
        _say(f"removed {len(removed)} entries, {_size(sum(entry.bytes for entry in removed))}")
    entries = store.entries()
    if config.do == "list":
        for entry in entries:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
            runs = ", ".join(entry.needed_by) or "no run"
            what = f"{entry.network} {entry.methods}  {_size(entry.bytes)}"
            _say(f"{entry.key[:16]}  {what}  used {when}  needed by {runs}")
    needed = sum(entry.bytes for entry in entries if entry.needed_by)
    total = sum(entry.bytes for entry in entries)
    _say(f"{len(entries)} entries, {_size(total)}, of which runs need {_size(needed)}")
    return 0


def _size(count: int) -> str:
    unit, size = next((pair for pair in reversed(_UNITS.items()) if count >= pair[1]), ("B", 1))
    return f"{count / size:.3g} {unit}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
