"""Where a study is kept: a SQLite file, or a database of a PostgreSQL server. One driver a study.

The driver of a SQLite file holds the lock of the run's folder. On a server it holds an advisory lock on the very
connection that it reads and writes through, and has no other: what comes back after its connection was lost, and
another driver has begun, can't write.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

# Where a file's locks don't hold between machines, or aren't there; fuse.* but for what containers lie on.
_NETWORK = "nfs nfs4 cifs smb3 smbfs lustre ceph afs gpfs beegfs glusterfs ocfs2 gfs2".split()  # noqa: SIM905
_LOCAL_FUSE = {"fuse.fuse-overlayfs"}
_MOUNTS = Path("/proc/self/mountinfo")
_SERVER = "postgresql+psycopg://"
# Of a session on the server: the number that its drivers lock, "smskd" in ASCII.
_LOCK = int.from_bytes(b"smskd", "big")
# Either side finds within a minute that the other's machine is gone.
_ALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
_SESSION = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"


def check(storage: str) -> None:
    """Refuse a database URL of a kind that no study can be kept in.

    Raises:
        ValueError: it names another server, or psycopg isn't here.
    """
    kind, _, rest = storage.partition("://")
    if kind not in ("sqlite", _SERVER[:-3]) or not rest:
        raise ValueError(
            f"storage= is {_SERVER}user@host/database or sqlite:///FILE, not {hidden(storage)}: no other database is "
            "known to keep a study through faults"
        )
    if kind != "sqlite" and importlib.util.find_spec("psycopg") is None:
        raise ValueError(
            f"storage={hidden(storage)} needs psycopg, which isn't here: python -m pip install psycopg[binary]"
        )


def url(storage: str | None, folder: Path) -> str:
    """The database URL of a run's study: the one that is given, or that of study.db in the run's folder.

    Raises:
        ValueError: it is a file on a network file system, where SQLite loses data.
    """
    found = storage or f"sqlite:///{folder / 'study.db'}"
    if found.startswith("sqlite:///"):
        file = Path(found.removeprefix("sqlite:///")).absolute()
        kind = file_system(file)
        if kind in _NETWORK or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE):
            raise ValueError(
                f"{file} is on a network file system ({kind}), where SQLite loses data: keep the study on a PostgreSQL "
                f"server with storage={_SERVER}user@host/database, or choose a local folder with out="
            )
    return found


def file_system(path: Path) -> str:
    """The type of the file system that a path is on, as the kernel names it; empty if it doesn't say."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    mounts: dict[Path, str] = {}
    for line in lines:  # a later one hides an earlier one at the same point
        mount, _, kind = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), mount.split()[4])
        mounts[Path(point)] = kind.split()[0]
    path = path.resolve()
    return next((mounts[parent] for parent in (path, *path.parents) if parent in mounts), "")


def hidden(text: str) -> str:
    """A text with the passwords of the URLs in it masked."""
    masked = re.sub(r"(://[^\s:/@]*:)\S*@", r"\1***@", text)
    return re.sub(r"([?&]password=)[^&\s]*", r"\1***", masked)


def lost(error: BaseException) -> str | None:
    """What to tell of an error that is behind another or this one, if a server is gone; None: something else is."""
    for seen in behind(error):
        kinds = [kind for kind in type(seen).__mro__ if kind.__module__.partition(".")[0] == "psycopg"]
        if any(kind.__name__ in ("OperationalError", "InterfaceError") for kind in kinds):
            return f"the server of the study is gone or refuses ({seen}): see that it runs and can be reached"
    return None


def behind(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from or while handling, and so on."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def opened(url: str) -> str | BaseStorage:
    """What Optuna takes for a database URL. Of a server, its study is this process's alone, as long as it lives.

    Raises:
        ValueError: another driver is at work in it.
    """
    if not url.startswith(_SERVER):
        return url
    import psycopg
    import sqlalchemy.orm
    from optuna.storages import RDBStorage
    from sqlalchemy.dialects.postgresql.psycopg import dialect

    shown = hidden(url)
    psycopg_dialect: Any = dialect
    arguments, options = psycopg_dialect().create_connect_args(sqlalchemy.make_url(url))
    options = {"connect_timeout": 20, "options": _SESSION} | _ALIVE | options

    def connect() -> psycopg.Connection[Any]:
        connection = psycopg.connect(*arguments, **options)
        (held,) = connection.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK,)).fetchone() or (False,)
        connection.commit()
        if not held:
            connection.close()
            raise ValueError(
                f"another search is at work in {shown}: wait for it, or name another database with storage="
            )
        return connection

    class Server(RDBStorage):
        def __str__(self) -> str:
            return shown

    # Optuna makes its tables through a connection that it doesn't give back
    storage = Server(url, engine_kwargs={"poolclass": sqlalchemy.pool.StaticPool})
    storage.engine.dispose()
    storage.engine = sqlalchemy.create_engine(url, creator=connect, pool_size=1, max_overflow=0)
    storage.scoped_session = sqlalchemy.orm.scoped_session(sqlalchemy.orm.sessionmaker(bind=storage.engine))
    with storage.engine.connect():
        return storage
