"""The memory of this machine that is free, and what of it may be taken for weights that are kept for later."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

KEPT_SHARE = 8  # one part in so many of what is free may be taken: processes beside this one take theirs as well
_MEMORY = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def free_bytes() -> int:
    """Return the bytes that processes may still take here, by the system and by the container; 0 where nobody says."""
    try:
        line = next(line for line in _MEMORY.read_text().splitlines() if line.startswith("MemAvailable:"))
        free = int(line.split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        return 0
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        limit, taken = (int((_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, max(0, limit - taken))
    return free


def may_keep(size_bytes: int) -> bool:
    """Return whether so much may be kept in memory that could be read again."""
    return size_bytes * KEPT_SHARE <= free_bytes()
