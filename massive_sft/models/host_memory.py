"""What of this machine's memory may be taken for weights that are kept for later."""

from __future__ import annotations

from massive_sft.core.memory import free_bytes

KEPT_SHARE = 8  # one part in so many of what is free may be taken: processes beside this one take theirs as well


def may_keep(size_bytes: int) -> bool:
    """Return whether so much may be kept in memory that could be read again."""
    return size_bytes * KEPT_SHARE <= free_bytes()
