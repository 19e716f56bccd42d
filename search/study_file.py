"""The file or database of a study: made whole or not at all, checked, and read. Knows nothing of what is searched."""

from __future__ import annotations

import contextlib
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import sqlalchemy.exc
from optuna.study import StudyDirection
from optuna.trial import TrialState

from search import disk, storages
from smskd.notation import parse

SCHEMA = 2
SOURCE = "from"  # the attribute of a trial that tells which other study it is from
_NAME = "smskd"
# What two searches must have in common for one to learn from the other.
_TASK = ("pair", "data", "cost")


def open_study(
    storage: str | optuna.storages.BaseStorage, identity: Mapping[str, Any], costs: Sequence[str]
) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _readable(storage):
        if isinstance(storage, str):
            _make_file(storage, identity, costs)
            storage = storages.opened(storage)
        study = _made(storage, identity, costs)
        held = study.user_attrs
        study.get_trials(deepcopy=False)
    _check(storage, held, identity)
    return study


def _made(
    storage: str | optuna.storages.BaseStorage, identity: Mapping[str, Any], costs: Sequence[str]
) -> optuna.Study:
    directions = [StudyDirection.MINIMIZE] * (1 + len(costs))
    study = optuna.create_study(study_name=_NAME, storage=storage, directions=directions, load_if_exists=True)
    held = study.user_attrs
    # one that was made, and nothing more: the command was refused, and is mended now
    unused = held.keys() == {"identity", "schema"} and held["schema"] == SCHEMA and held["identity"] != identity
    fits = study.directions == directions and not study.get_trials(deepcopy=False)
    if fits and (unused or "schema" not in held):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(["error", *costs])
        study.set_user_attr("identity", dict(identity))
        study.set_user_attr("schema", SCHEMA)  # the last one: without it, the study is made anew
    return study


def _make_file(storage: str, identity: Mapping[str, Any], costs: Sequence[str]) -> None:
    """Make a file with an empty study where there is none, whole or not at all: Optuna makes tables and their indices
    one by one, and doesn't miss those that a killed driver didn't come to.
    """
    path = Path(storage.removeprefix("sqlite:///"))
    new = not path.is_file() or not path.stat().st_size
    if not storage.startswith("sqlite:///") or not new or not path.parent.is_dir():
        return
    temporary = path.with_name(f"{path.name}.partial")
    for left in (temporary, *(Path(f"{file}-journal") for file in (temporary, path))):
        left.unlink(missing_ok=True)
    made = optuna.storages.RDBStorage(f"sqlite:///{temporary}")
    _made(made, identity, costs)
    made.remove_session()
    made.engine.dispose()
    temporary.replace(path)


def finished(storage: str, identity: Mapping[str, Any]) -> frozenset[str]:
    """Ids of the recipes that a study has finished; it is read alone, whoever may be at work in it.

    Raises:
        ValueError: there is no study, or another one.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _readable(storage):
        try:
            study = optuna.load_study(study_name=_NAME, storage=storage)
        except KeyError:
            raise ValueError(
                f"{storage} holds no study of this program: use another storage=, or another out="
            ) from None
        told = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    _check(storage, study.user_attrs, identity)
    return frozenset(parse(trial.user_attrs["recipe"]).id for trial in told if SOURCE not in trial.user_attrs)


def _check(storage: object, held: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    _check_schema(storage, held)
    there = held["identity"]
    differing = [k for k in {**identity, **there} if there.get(k) != identity.get(k)]
    if differing:
        changes = ", ".join(f"{k}: {there.get(k)} there, {identity.get(k)} here" for k in differing)
        raise ValueError(f"{storage} holds another search ({changes}): use another out=, or the same settings")


def open_other(name: str, storage: str, identity: Mapping[str, Any]) -> optuna.Study:
    """Another run's study, to learn from."""
    with _readable(storage):
        try:
            study = optuna.load_study(study_name=_NAME, storage=storage)
        except KeyError:
            raise ValueError(f"{name} holds no study of this program: leave it out of warm_start=") from None
        held = study.user_attrs
        study.get_trials(deepcopy=False)
    _check_schema(storage, held)
    for key in _TASK:
        if held["identity"].get(key) != identity.get(key):
            raise ValueError(
                f"warm_start= needs runs of the same {', '.join(_TASK)}, but {name} has "
                f"{key}={held['identity'].get(key)} and this run {key}={identity.get(key)}: leave it out"
            )
    return study


def _check_schema(storage: object, held: Mapping[str, Any]) -> None:
    if held.get("schema") != SCHEMA or not isinstance(held.get("identity"), dict):
        raise ValueError(
            f"{storage} holds a study of schema {held.get('schema')}, but this program reads {SCHEMA}: use another "
            "out=, or the version of this program that made it"
        )


@contextlib.contextmanager
def _readable(storage: object) -> Iterator[None]:
    """Name a storage that can't be read, and what to do.

    Raises:
        ValueError: it is no database, one of something else, or a damaged one.
    """
    mend = "use another out= (the finished stages are in the store and aren't trained again), or restore the file"
    path = Path(str(storage).removeprefix("sqlite:///"))
    if str(storage).startswith("sqlite:///") and path.is_file() and path.stat().st_size:
        try:
            # rw: what a killed driver left half-written is rolled back by whoever opens it, which a mere reader may not
            with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True)) as database:
                tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                ((verdict,),) = database.execute("PRAGMA quick_check(1)")  # else found only when that page is read
                if verdict != "ok":
                    raise sqlite3.DatabaseError(verdict)
        except sqlite3.Error as error:
            if disk.full(error):
                raise
            raise ValueError(f"{path} is no study, or a damaged one ({error}): {mend}") from None
        if tables and not {"studies", "trials", "version_info"} <= tables:
            raise ValueError(f"{path} is a database of something else, or half of a study: {mend}")
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        if disk.full(error):
            raise
        if (cause := storages.lost(error)) is not None:
            raise ValueError(f"{storages.hidden(str(storage))} can't be opened: {cause}") from None
        raise ValueError(f"{storage} can't be read as a study ({' '.join(str(error).split())[:200]}): {mend}") from None
