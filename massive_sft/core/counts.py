"""Counts in sentences."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: ``1 cell``, ``1,234 cells``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
