"""The local store, an SQLite database with the artifacts beside it: made, and brought along when it has moved."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.tracking.address import ARTIFACTS, PLACE, sqlite_address

LOCKED_S = 5.0
"""Seconds until a database that another process has locked is taken for one that stays so."""


def make_store(path: Path) -> None:
    """Make a local store, unless it is there, under a temporary name: MLflow makes its tables one by one.

    Nobody ever sees half of them, and of two processes that would make them at once one does. Raises
    ``client.TRACKER_ERRORS``.
    """
    with _alone(path):
        if path.exists() and path.stat().st_size:
            return
        from massive_sft.tracking.client import make_tables

        folder = path.with_name(f"{path.name}.partial")
        shutil.rmtree(folder, ignore_errors=True)  # of a process that died
        folder.mkdir()
        make_tables(sqlite_address(folder / path.name), (path.parent / ARTIFACTS).as_uri())
        with (folder / path.name).open("rb") as made:
            os.fsync(made)
        os.replace(folder / path.name, path)
        folder.rmdir()


def open_store(path: Path) -> None:
    """Make a local store, unless it is there, and bring it along when it has moved.

    Raises:
        InvalidInput: it is a database of something else.
        OSError: it cannot be read or written, or another process has it locked (``is_locked``).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    make_store(path)
    if problem := database_problem(path, PLACE):
        raise InvalidInput(problem)
    relocate_artifacts(path)


def database_problem(path: Path, place: str) -> Problem | None:
    """Return why a file is no local store: MLflow would add its own tables to anybody's database.

    Raises BlockingIOError where another process has it locked.
    """
    try:
        tables = tables_of(path)
    except sqlite3.OperationalError as error:
        if is_locked(error):
            raise BlockingIOError(f"{path}: {error}") from error
        return Problem(place, f"cannot be opened ({error})", str(path))
    except sqlite3.Error as error:
        return Problem(place, f"is no SQLite database ({error})", str(path))
    if tables and not {"alembic_version", "experiments"} <= tables:
        return Problem(place, "is the database of something else than MLflow", str(path))
    return None


def tables_of(path: Path) -> set[str]:
    """Return the names of a database's tables. Raises sqlite3.Error."""
    # Not read-only: what a process left half written that was killed is rolled back by whoever opens it next.
    address = f"{path.absolute().as_uri()}?mode=rw"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=LOCKED_S)) as connection:
        return {name for (name,) in connection.execute("select name from sqlite_master")}


def is_locked(error: BaseException) -> bool:
    """Whether an error comes from a local store into which another process writes, or stands still while it does."""
    return any(
        isinstance(cause, sqlite3.OperationalError) and cause.sqlite_errorcode == sqlite3.SQLITE_BUSY
        for cause in causes(error)
    )


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, then what it was raised from or met while it was handled."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def relocate_artifacts(path: Path) -> None:
    """Let the runs of a local store keep their artifacts beside it, where it was moved or copied to.

    MLflow writes down absolute places and has no call that changes them. What this package wrote ends in
    ``mlflow-artifacts``; artifacts elsewhere are somebody's choice and stay. So do those of a store that is only
    reached by another path. Raises OSError where the database cannot be written.
    """
    here = path.parent / ARTIFACTS
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            moved = [place for place in _places(database) if not _same(_folder(place), here)]
            with database:
                for place in moved:
                    _replace(database, place, here.as_uri())
    except sqlite3.Error as error:
        raise OSError(f"{path}: {error}") from error


def _places(database: sqlite3.Connection) -> set[str]:
    """Return the artifact folders that the store's experiments name, of those that this package chose."""
    if not database.execute("select 1 from sqlite_master where name = 'experiments'").fetchone():
        return set()
    rows = database.execute("select artifact_location from experiments where artifact_location is not null")
    # That of MLflow's own first experiment is a folder in it.
    named = {place.removesuffix("/0") for (place,) in rows}
    return {place for place in named if place.endswith(f"/{ARTIFACTS}") and place.startswith(("/", "file:/"))}


def _folder(place: str) -> Path:
    return Path(urllib.request.url2pathname(urllib.parse.urlsplit(place).path) if place.startswith("file:") else place)


def _same(first: Path, second: Path) -> bool:
    try:
        return first == second or first.samefile(second)
    except OSError:
        return False


def _replace(database: sqlite3.Connection, old: str, new: str) -> None:
    for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
        database.execute(
            f"update {table} set {column} = :new || substr({column}, length(:old) + 1)"
            f" where {column} = :old or substr({column}, 1, length(:old) + 1) = :old || '/'",
            {"old": old, "new": new},
        )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time into the block; the lock dies with its process. ``path`` is on a local disk."""
    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
