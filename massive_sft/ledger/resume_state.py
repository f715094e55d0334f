"""What a trajectory's training can go on from: its last checkpoint, or the state that a finished one kept."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from massive_sft.ledger.attempt import KEPT, LATEST, RESUME
from massive_sft.ledger.storage import Root

_NAME = re.compile(r"(\d+)-(\d+)-\w+")


@dataclass(frozen=True)
class ResumeState:
    """A state by its name alone; whether it is sound shows when it is read.

    Attributes:
        place: what it lies below, ``resume`` or ``kept`` of its trajectory; ``latest.json`` in there names it.
        name: ``<attempt>-<step>-<token>``; empty where ``latest.json`` is unsound.
        step: optimizer steps done; 0 where they cannot be told.
    """

    place: str
    name: str
    step: int

    @property
    def key(self) -> str:
        """Where it is published, below its trajectory."""
        return f"{self.place}/{self.name}"

    @property
    def is_kept(self) -> bool:
        """Whether a finished training left it; else it is the checkpoint of one that was interrupted."""
        return self.place == KEPT

    def __str__(self) -> str:
        what = "the state that was kept after" if self.is_kept else "the checkpoint of"
        return f"{what} step {self.step:,}"


def find_resume_states(trajectory: Root) -> list[ResumeState]:
    """Return what the training of a trajectory, by its place in the ledger, could go on from, the furthest first."""
    states = [state for place in (RESUME, KEPT) if (state := _named(trajectory, place)) is not None]
    return sorted(states, key=lambda state: state.step, reverse=True)


def _named(trajectory: Root, place: str) -> ResumeState | None:
    try:
        name = str(json.loads(trajectory.get(f"{place}/{LATEST}").data)["name"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return ResumeState(place, "", 0)
    parts = _NAME.fullmatch(name)
    return ResumeState(place, name if parts else "", int(parts[2]) if parts else 0)
