"""What trains: a module and its optimizer behind one interface, on one rank by torch alone or under DeepSpeed."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from massive_sft.sweep.schema import Setting
from massive_sft.sweep.spec import Layout
from massive_sft.training.deepspeed_engine import DeepSpeedEngine, import_deepspeed
from massive_sft.training.packing import MicroBatch
from massive_sft.training.plain_engine import PlainEngine


class Engine(Protocol):
    """A module whose forward returns a summed loss, and its optimizer steps.

    Attributes:
        parameters, trained: numbers of weights, all and trained ones; over all ranks.
        device: where this rank computes.
        ranks: data-parallel processes.
    """

    parameters: int
    trained: int
    device: torch.device
    ranks: int

    def accumulate(self, batches: Sequence[MicroBatch], target_total: int) -> torch.Tensor:
        """Add the gradients of one optimizer step's micro-batches on this rank, summed in float32.

        Every rank must bring equally many. Any layout gives the gradient of the batch's mean loss per target.

        Args:
            batches: the micro-batches of this rank.
            target_total: targets in the batch, over all ranks.

        Returns:
            The summed loss of this rank's samples, a float64 scalar on the device.
        """
        ...

    def step(self, lr: float) -> float:
        """Clip, update the weights, clear the gradients; return the gradient norm before clipping.

        The norm is over all parameters and ranks; infinity or NaN stands for any that is not finite, and then nothing
        is updated.
        """
        ...

    def discard_gradients(self) -> None:
        """Forget the gradients of an unfinished step, also after a forward or backward pass that was broken off.

        For a single rank: others would wait for this one in a collective operation.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state below ``folder``, frozen weights left out. All ranks must call it."""
        ...

    def load(self, folder: Path, universal: bool = False) -> None:
        """Read what ``save`` wrote with this layout or, ``universal``, what ``convert_checkpoint`` made of it.

        All ranks call it. For an engine that took no step yet. Raises Corrupt when nothing is there.
        """
        ...

    def free_bytes(self) -> int:
        """Return the GPU memory left for activations before the first step."""
        ...

    def first_step_bytes(self) -> int:
        """Return what the first step adds on this rank to what is held before it, activations apart."""
        ...

    def gathered(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
        """Within it ``parameters`` have their full values. All ranks must enter it."""
        ...

    def close(self) -> None:
        """Let go of the model and the optimizer; ``free_memory`` afterwards, once nobody else holds them."""
        ...


def make_engine(module: nn.Module, setting: Setting, layout: Layout) -> Engine:
    """Return what trains a module with a layout.

    Args:
        module: on the CPU, in the training dtype; parameters that require gradients are trained.
        setting, layout: what to compute, and how; see ``layout.layout_problems``.

    Requires ``ranks.join_group``. ``close`` must be called, or the model stays alive.
    """
    made = PlainEngine if layout.stage is None else DeepSpeedEngine
    return made(module, setting, layout)


def warm_up(layout: Layout) -> None:
    """Import what the layout needs, once a process: seconds that belong to no training. Later calls do nothing."""
    if layout.stage is not None:
        import_deepspeed(layout)
    _exclude_imports_from_collection()


@cache
def _exclude_imports_from_collection() -> None:
    """Have the garbage collector leave out what is there by now, which is hardly more than modules.

    A collection looks at every object there is: half a second with torch, transformers and DeepSpeed imported, twice a
    training. What holds no reference cycle is freed as before.
    """
    gc.collect()
    gc.freeze()


def free_memory() -> None:
    """Free what finished trainings left and return it to the system and the GPU.

    glibc keeps what was freed (man 3 malloc_trim), so a lane's memory would creep up. Other C libraries have no such
    call.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        if hasattr(torch.accelerator, "empty_host_cache"):  # older ones keep pinned memory
            torch.accelerator.empty_host_cache()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
