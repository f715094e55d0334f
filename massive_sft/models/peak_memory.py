"""The most memory that this process, or its GPU, held since a moment."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_FORGET = Path("/proc/self/clear_refs")
_HIGH_WATER = "5"  # what proc(5) wants to be told to begin the high-water mark anew


def begin(gpu: bool) -> None:
    """Forget what was held at most so far; where the system does not let us, the peak is that of the process."""
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        _FORGET.write_text(_HIGH_WATER)


def peak_bytes(gpu: bool) -> int | None:
    """Return the most bytes held since ``begin``: reserved on the GPU, else resident; None where nobody says."""
    if gpu:
        return int(torch.cuda.max_memory_reserved())
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        return None
