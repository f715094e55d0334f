"""Weights of which each rank has its share, as at ZeRO-3."""

from __future__ import annotations

import torch


def full_shape(weight: torch.Tensor) -> torch.Size:
    """Return the shape of a weight, of which this rank may have but its share: DeepSpeed keeps it in ``ds_shape``."""
    shape: torch.Size = getattr(weight, "ds_shape", weight.shape)
    return shape
