"""A base that rank 0 alone reads, and gives the others on the devices they compute on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from massive_sft.training.ranks import broadcast_from_rank0, is_rank0


def read_once(load: Callable[[], Any], make: Callable[[], Any], device: str) -> Any:
    """Return the model that rank 0 loads, on this rank's device. All ranks call it.

    Others open no weight file and hold no weights but those on their device. Weights and buffers are equal to the bit,
    and shared ones are shared, on all ranks.

    Args:
        load: returns the model; called on rank 0, and what it raises there is raised on all.
        make: returns the same modules on the ``meta`` device; called on the others.
    """
    read: list[Any] = []

    def load_and_describe() -> dict[str, tuple[torch.Size, torch.dtype]]:
        read.append(load().to(device))
        return {name: (value.shape, value.dtype) for name, value in _tensors(read[0])}

    described = broadcast_from_rank0(load_and_describe)
    model = read[0] if is_rank0() else _with_room(make(), described, device)
    tensors = dict(_tensors(model))
    for name in described:
        dist.broadcast(tensors[name].detach().reshape(-1).view(torch.uint8), src=0)
    return model


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters and buffers by name, a shared one once."""
    return chain(model.named_parameters(), model.named_buffers())


def _with_room(model: nn.Module, described: dict[str, tuple[torch.Size, torch.dtype]], device: str) -> nn.Module:
    """Give a model on ``meta`` memory for its weights and buffers, of the types that they were loaded with."""
    made: dict[int, torch.Tensor] = {}
    for name, old in _tensors(model):
        shape, dtype = described[name]
        room = torch.empty(shape, dtype=dtype, device=device)
        made[id(old)] = nn.Parameter(room, old.requires_grad) if isinstance(old, nn.Parameter) else room
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            own.update({name: made[id(old)] for name, old in own.items() if old is not None})  # type: ignore[misc]
    return model.eval()
