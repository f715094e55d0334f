"""The processor cores of this machine that a process may use."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Return the cores that this process may use, at least one: of its affinity, and of its container's quota.

    The quota is cgroup v2's ``cpu.max``, processor time by period; a part of a core is left out, as Ray does.
    """
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # no container, or one without a quota ("max")
        quota, period = map(int, (_GROUP / "cpu.max").read_text().split())
        cores = min(cores, quota // period)
    return max(1, cores)
