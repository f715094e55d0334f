"""The memory of this machine: what there is and what is free, by the system and by the container's limit."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_SYSTEM = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def total_bytes() -> int:
    """Return the bytes of this machine's memory, or those that its container is allowed."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        total = min(total, int((_GROUP / "memory.max").read_text()))
    return total


def free_bytes() -> int:
    """Return the bytes that processes may still take here, by the system and by the container; 0 where nobody says."""
    try:
        line = next(line for line in _SYSTEM.read_text().splitlines() if line.startswith("MemAvailable:"))
        free = int(line.split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        return 0
    with suppress(OSError, ValueError):  # as above
        limit, taken = (int((_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, max(0, limit - taken))
    return free
