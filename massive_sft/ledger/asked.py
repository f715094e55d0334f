"""Ids of what a sweep asks of a cell where an early answer is enough: ``mmlu@5 0123456789ab ±2``.

A full score answers it, and an early one that is as narrow; an early one never answers what asks for a full score.
"""

from __future__ import annotations

from collections.abc import Collection

_MARK = " ±"


def early_id(full: str, points: float) -> str:
    """Return what an answer to within so many points is asked by.

    Args:
        full: what the full score is asked by.
        points: of a hundred.
    """
    return f"{full}{_MARK}{points:.12g}"


def full_id(asked: str) -> str:
    """Return what the full score is asked by."""
    return _split(asked)[0]


def is_answered(asked: str, answers: Collection[str]) -> bool:
    """Return whether what is asked is among the answers, or answered by a fuller one.

    Args:
        answers: as of ``Record.answers``.
    """
    if asked in answers:
        return True
    full, points = _split(asked)
    if points is None:
        return False
    found = (_split(answer) for answer in answers)
    return any(answer == full and (within is None or within <= points) for answer, within in found)


def _split(asked: str) -> tuple[str, float | None]:
    """Return the id of the full score, and the points where an early answer is enough."""
    full, mark, points = asked.rpartition(_MARK)
    return (full, float(points)) if mark else (asked, None)
