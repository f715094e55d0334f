"""A process's random states, which dropout draws from, on the disk."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch


def write(path: Path, device: torch.device) -> None:
    """Write this process's random states: torch's on the CPU and on ``device``, numpy's and Python's."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),  # type: ignore[union-attr,attr-defined]
        "python": (version, internal, gauss_next),
    }
    torch.save(states, path)


def read(path: Path, device: torch.device) -> None:
    """Put back what ``write`` wrote."""
    states = torch.load(path, map_location="cpu", weights_only=True)
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
