"""What a search is to those who decide for it, and what they are given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from massive_sft.core.fingerprint import digest, join_canonical
from massive_sft.search.cells import CellSpace
from massive_sft.search.objectives import names_against_base
from massive_sft.search.outcomes import Outcome
from massive_sft.search.proposing import spread
from massive_sft.search.space import Choice, Space

Decision = Mapping[str, Any]
# In a decision, where it is so: how often its cell had been tried in vain, and that what came of it was there already.
FAILED_BEFORE, WAS_THERE = "failed_before", "was_there"


def asks_of(log: Iterable[Decision]) -> list[Decision]:
    """Return the decisions that asked for something new."""
    return [entry for entry in log if entry["kind"] == "ask"]


def is_confirmation(entry: Decision) -> bool:
    """Whether a decision trains one of the best with another seed; it is none of those that may be the best."""
    return bool(entry["kind"] == "confirm")


def trained_of(log: Iterable[Decision]) -> list[Decision]:
    """Return the decisions that had something trained: for the first time, or further."""
    return [entry for entry in log if "cell" in entry]


@dataclass(frozen=True)
class Rules:
    """What decides a search's sequence.

    Attributes:
        id: of all of it.
        cell_of: returns the id of the cell whose scores a choice is judged by, in a group and at a rung.
        model_of: returns what hashes the model of a choice, in a group; bases are known by it.
        seeded: returns the id of the cell of a choice in a group, trained with another seed.
        portfolio: the very first choices of each group: what was best for other models when the search began.
        parked_most: bytes that checkpoints of trainings which wait for a promotion may take; None without a limit.
        state_bytes: returns the bytes of such a checkpoint, by what hashes the model.
    """

    id: str
    space: Space | CellSpace
    cell_of: Callable[[Choice, str | None, int], str]
    model_of: Callable[[Choice, str | None], str]
    seeded: Callable[[Choice, str | None, int], str]
    portfolio: Sequence[Choice] = ()
    parked_most: int | None = None
    state_bytes: Callable[[str], int] = lambda model: 0

    @cached_property
    def sampler(self) -> str:
        """What proposes after the start."""
        if isinstance(self.space, CellSpace):
            return "surrogate"
        named = self.space.search.sampler
        if named != "auto":
            return named
        return "tpe" if any(axis.kind == "names" for axis in self.space.axes) else "gp"

    @property
    def start_count(self) -> int:
        """How many choices of each group come before the sampler's."""
        if isinstance(self.space, CellSpace):
            return self.space.start
        count = self.space.search.start.qmc
        return 2 * len(self.space.axes) + 2 if count is None else count

    @cached_property
    def start(self) -> list[Choice]:
        """The first choices of each group."""
        return self.spread(self.start_count)

    def spread(self, count: int) -> list[Choice]:
        """Return choices spread evenly; the first of more are the same."""
        return spread(self.space.axes, count, number(self.id, "spread"))

    @property
    def needs_bases(self) -> bool:
        """Whether a constraint is against the base models' scores."""
        return bool(names_against_base(self.space.search))


@dataclass(frozen=True)
class Given:
    """What a decision may rest on.

    Attributes:
        outcomes: by the number of the decision that asked for it.
        bases: of base models, by ``Rules.model_of``.
    """

    outcomes: Mapping[int, Outcome]
    bases: Mapping[str, Outcome]

    @property
    def hash(self) -> str:
        """Of all of it."""
        asked = {str(key): outcome.canonical for key, outcome in self.outcomes.items()}
        return digest(join_canonical(asked | {f"base {key}": outcome.canonical for key, outcome in self.bases.items()}))


def number(search: str, *parts: object) -> int:
    """Return the seed of something in a search: 32 bits of a hash."""
    text = "/".join([search, *map(str, parts)])
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def why_of(own: Sequence[Decision], given: Given) -> dict[str, Any]:
    """Return what a decision had to go by, for people."""
    known = [given.outcomes[entry["n"]].kind for entry in own if entry["n"] in given.outcomes]
    counts = {kind: known.count(kind) for kind in sorted(set(known))}
    return {"given": counts, "pending": len(own) - len(known)}
