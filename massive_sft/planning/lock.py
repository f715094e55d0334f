"""A sweep's ``lock.json``: the commits of the hub that its models, datasets and benchmarks stay at."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from massive_sft.core.errors import Corrupt, InvalidInput, Problem
from massive_sft.ledger.bucket_root import BucketRoot
from massive_sft.ledger.storage import Root, Storage
from massive_sft.ledger.store import Ledger
from massive_sft.sweep.content import Commits, Lock
from massive_sft.sweep.yaml_errors import format_location

LOCK = "lock.json"
BENCHMARKS = "benchmarks"  # of it: what each was first built from; `massive-sft fetch` writes the lock without it

DataCommits = frozenset[tuple[str, str]]
"""Data sets of the hub that benchmarks read, each with the commit that it stays at."""


def read_lock(storage: Root, name: str) -> Commits:
    """Return the commits that a sweep's lock pins; none where there is no lock.

    Raises:
        Corrupt: when it is no lock.
        InvalidInput: when the bucket that is the root cannot be asked.
    """
    place = Ledger(storage).sweep(name)
    try:
        return Lock.model_validate(json.loads(place.get(LOCK).data)).commits
    except (FileNotFoundError, NotADirectoryError):
        return Commits()
    except ValidationError as error:
        first = error.errors()[0]
        raise Corrupt(
            f"{place}/{LOCK}: is no lock file ({format_location(first['loc'])}: {first['msg']}); remove it"
        ) from error
    except ValueError as error:
        raise Corrupt(f"{place}/{LOCK}: is not valid JSON ({error})") from error
    except OSError as error:
        if isinstance(storage, BucketRoot):
            raise InvalidInput(Problem("storage.root", f"cannot be read ({error.strerror})", str(storage))) from error
        raise


def lock_content(place: Storage) -> dict[str, Any]:
    """Return all that the lock in a sweep's place holds, which is sound once a plan was made; an empty one for none."""
    empty: dict[str, Any] = {"schema": 1, "commits": {}, "files": {}}
    try:
        return empty | json.loads(place.get(LOCK).data)
    except FileNotFoundError:
        return empty


def data_commits(place: Storage) -> DataCommits:
    """Return the commits that benchmarks' data sets stay at; ``place`` is the sweep's."""
    known = lock_content(place).get(BENCHMARKS) or {}
    return frozenset({name: commit for entry in known.values() for name, commit in entry["data"].items()}.items())
