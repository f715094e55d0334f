"""Counts in sentences."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Return ``1 cell``, ``2 cells``, ``1,000 cells``; the plural takes an s."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
