"""The scores of a benchmark that is being answered: beside the cell while it is scored, for whoever looks on.

They are no result: nothing is made of them, and they are gone with the record.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from massive_sft.ledger.record import BenchmarkScores
from massive_sft.ledger.storage import Storage

KEY = "so_far.json"


@dataclass(frozen=True)
class PartScores:
    """Scores of the first of a benchmark's questions, ``answered`` of ``of``, ``found`` of them by an earlier run."""

    scores: BenchmarkScores
    answered: int
    of: int
    found: int = 0


_PART = TypeAdapter(PartScores)


def write(place: Storage, part: PartScores) -> None:
    """Write what is scored so far of the cell that lies in ``place``. Raises OSError."""
    place.put(KEY, _PART.dump_json(part))


def remove(place: Storage) -> None:
    """Remove it, if it is there. Raises OSError."""
    place.delete(KEY)


def read(place: Storage) -> PartScores | None:
    """Return what was scored so far when a shard came in last; None where nothing was, or it cannot be read."""
    try:
        return _PART.validate_json(place.get(KEY).data)
    except (OSError, ValidationError):
        return None
