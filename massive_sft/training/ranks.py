"""The processes that train together: joining them, and agreeing between them."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.sweep.spec import Layout

T = TypeVar("T")

# Ranks wait for each other while one hashes a checkpoint of a terabyte, or while a lane has no order. A rank that dies
# closes its connection, which ends the wait.
CONTROL_LIMIT = timedelta(days=7)
Groups = dict[dist.ProcessGroup | None, dist.ProcessGroup]
_control: Groups = {}
_threads: Groups = {}


def is_rank0() -> bool:
    """Return whether this process is rank 0 of its group, or has none."""
    return not dist.is_initialized() or dist.get_rank() == 0


def join_group(layout: Layout) -> tuple[int, int]:
    """Join the process group and return (rank, ranks).

    An existing group (Ray Train's, an earlier trajectory's) is used as it is; under torchrun its environment is
    read; else the process is alone. GPUs use nccl, CPUs gloo.

    Raises:
        InvalidInput: when there is no GPU for a layout that has some, or the group's size is not ``layout.workers``.
    """
    if layout.gpus and not torch.cuda.is_available():
        raise InvalidInput(
            Problem("resources.gpus", "must be 0: this machine has no GPU that torch can use", layout.gpus)
        )
    if not dist.is_initialized():
        backend = "nccl" if layout.gpus else "gloo"
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if dist.get_world_size() == 1:
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it each time
    if dist.get_world_size() != layout.workers:
        rule = f"must be {dist.get_world_size()}, the number of processes that train"
        raise InvalidInput(Problem("resources.workers", rule, layout.workers))
    return dist.get_rank(), dist.get_world_size()


def sum_over_ranks(values: torch.Tensor) -> list[float]:
    """Return the sum of each of several values, shape (n,), over all ranks."""
    if dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values.tolist()


def broadcast_from_rank0(make: Callable[[], T]) -> T:
    """Return on all ranks what ``make`` returns on rank 0; what it raises there is raised on all.

    All ranks must call it. Works without a process group too.
    """
    box: list[Any] = [None, None]
    group = _control_group() if dist.is_initialized() and dist.get_world_size() > 1 else None
    if is_rank0():
        try:
            box[0] = make()
        except Exception as error:  # noqa: BLE001 - the others must not wait for a rank that failed
            box[1] = error
    if group is not None:
        dist.broadcast_object_list(box, src=0, group=group)
    if box[1] is not None:
        raise box[1]
    return box[0]


def all_ranks(yes: bool) -> bool:
    """Return whether all ranks say yes, once all have said something. All ranks must call it."""
    return all(from_all_ranks(yes))


def from_all_ranks(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Return what each rank brings, by rank. All ranks must call it.

    Args:
        group: of ``group_of_a_thread``, for a thread beside the main one.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group or _control_group())
    return values


def group_of_a_thread() -> dist.ProcessGroup | None:
    """Return the group in which one thread of each rank talks to those of others; None for a single rank.

    Main threads of all ranks must call it.
    """
    return _gloo_group(_threads) if dist.is_initialized() and dist.get_world_size() > 1 else None


def _control_group() -> dist.ProcessGroup:
    """Return the group for what ranks say to each other, made by the first call on all of them.

    The process group's own collectives have a limit of half an hour, and on GPUs a wait in them spins.
    """
    return _gloo_group(_control)


def _gloo_group(known: Groups) -> dist.ProcessGroup:
    world = dist.group.WORLD
    if world not in known:
        known.clear()
        known[world] = dist.new_group(backend="gloo", timeout=CONTROL_LIMIT)
    return known[world]
