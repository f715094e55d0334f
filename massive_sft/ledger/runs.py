"""The runs of a sweep that are going on, on any machine that shares the root, and how one asks them to end.

Each run holds a lease in a folder of its own, so that a run that was killed shows as such; who wants it to end leaves
a file there, which only this run ever reads.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from massive_sft.files import write_json
from massive_sft.ledger.lease import Lease, look

CANCEL = "cancel.json"


@dataclass(frozen=True)
class Run:
    """A run of a sweep.

    Attributes:
        folder: its registration.
        name: who runs it, ``host:pid``.
        since: when it registered, ISO 8601 in UTC.
    """

    folder: Path
    name: str
    since: str

    def ask_to_end(self, by: str) -> None:
        """Leave the wish that it ends; it looks about once a second. Raises OSError where nothing can be written."""
        if self.folder.is_dir():
            write_json(self.folder / CANCEL, {"schema": 1, "by": by})

    def asked_to_end(self) -> bool:
        """Whether somebody left that wish."""
        return (self.folder / CANCEL).exists()

    def is_live(self) -> bool:
        """Whether it still goes on, as far as can be seen from here."""
        seen = look(self.folder)
        return seen is not None and seen.looks_live()


@contextmanager
def registered(sweep: Path, owner: str) -> Iterator[Run]:
    """Let others see, while the block runs, that a run of the sweep in this folder goes on.

    What killed runs left there is removed, where it is certain that they are gone. Raises OSError where nothing can be
    written.
    """
    for folder in (sweep / "runs").glob("*"):
        seen = look(folder)
        if seen is not None and (seen.released or seen.gone()):
            shutil.rmtree(folder, ignore_errors=True)
    folder = sweep / "runs" / secrets.token_hex(8)
    lease = Lease.acquire(folder, owner)
    if lease is None:
        raise FileExistsError(f"{folder}: is held by another run")
    try:
        yield _run(folder, look(folder))
    finally:
        lease.release()
        shutil.rmtree(folder, ignore_errors=True)  # a wish that comes in between is for a run that ended


def live_runs(sweep: Path) -> list[Run]:
    """Return the runs of the sweep in this folder that go on, the oldest first."""
    return [run for run in _runs(sweep) if run.is_live()]


def _runs(sweep: Path) -> list[Run]:
    """Return all registrations. One that is only half made holds no lease yet and is none."""
    found = ((folder, look(folder)) for folder in (sweep / "runs").glob("*"))
    return sorted((_run(folder, seen) for folder, seen in found if seen is not None), key=lambda run: run.since)


def _run(folder: Path, seen: Any) -> Run:
    return Run(folder, str(seen.owner.get("name", "unknown")), str(seen.owner.get("since", "")))
