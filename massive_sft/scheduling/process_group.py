"""The process group of a lane's workers: they say that they are up before they import anything, then join."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.util.placement_group import get_current_placement_group

from massive_sft.core.errors import MassiveSFTError
from massive_sft.core.imports import heavy_imports
from massive_sft.scheduling.nodes import Shape

TIMEOUT_S = 1800.0  # seconds that a collective of the training may take
SHUTDOWN_S = 5.0


class LaneRefused(MassiveSFTError):
    """The pool has workers of this lane not go on; it keeps the reason."""


@dataclass
class ProcessGroupConfig(BackendConfig):
    """How the workers of a lane talk.

    Attributes:
        pool: the ``LanePool``'s handle, which each worker tells that it is up.
        backend: of torch; Ray Train's trainer makes it nccl for GPUs, else gloo.
    """

    pool: Any
    lane: str
    shape: Shape
    backend: str = ""

    @property
    def backend_cls(self) -> type[Backend]:
        return ProcessGroup

    @property
    def train_func_context(self) -> Any:
        from ray.train.torch import TorchConfig  # asked for by the run; workers say that they are up before torch

        return TorchConfig().train_func_context


class ProcessGroup(Backend):
    """Makes and ends the process group, from the controller."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Have all workers say that they are up, then join. Raises LaneRefused when one of them is not to go on."""
        config = backend_config
        if not all(worker_group.execute(_enter, config.pool, config.lane, config.shape)):
            raise LaneRefused(config.lane)
        address, port = worker_group.execute_single(0, get_address_and_port)
        size = len(worker_group)
        joins = [
            worker_group.execute_single_async(rank, _join, config.backend, rank, size, address, port)
            for rank in range(size)
        ]
        ray.get(joins)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Have all workers leave; what hangs is not waited for."""
        leaves = worker_group.execute_async(_leave)
        ray.wait(leaves, num_returns=len(leaves), timeout=SHUTDOWN_S)


def _enter(pool: Any, lane: str, shape: Shape) -> bool:
    """Say in a worker, before it imports anything, that it is up; return whether it is to go on."""
    rank, node = ray.train.get_context().get_world_rank(), ray.get_runtime_context().get_node_id()
    group = get_current_placement_group()
    return bool(ray.get(pool.enter.remote(lane, shape, group.id.hex() if group else "", rank, node)))


def _join(backend: str, rank: int, size: int, address: str, port: int) -> None:
    with heavy_imports():
        from ray.train.torch import config

    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    config._set_torch_distributed_env_vars()
    config._setup_torch_process_group(backend, rank, size, "env://", int(TIMEOUT_S))


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
