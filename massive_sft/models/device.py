"""What computes here: a GPU that was given, or the CPU."""

from __future__ import annotations

import torch

from massive_sft.core.errors import InvalidInput, Problem


def device_of(gpu: bool) -> str:
    """Return what computes where the sweep's ``resources`` give a GPU, or none: ``cuda`` or ``cpu``.

    A GPU that nobody was given is left alone: other processes may have it.

    Raises:
        InvalidInput: a GPU was given, but torch can use none here.
    """
    if gpu and not torch.cuda.is_available():
        raise InvalidInput(Problem("resources.gpus", "must be 0: this machine has no GPU that torch can use"))
    return "cuda" if gpu else "cpu"


def count_gpus() -> int:
    """Return how many GPUs torch can use here."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_name(gpu: bool) -> str:
    """Return what computes here: the GPU's name where one was given, or ``cpu``."""
    return torch.cuda.get_device_name() if gpu else "cpu"


def unused_bytes(device: torch.device) -> int:
    """Return the bytes of a GPU that this process's tensors may take: free ones, and those its allocator keeps."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
