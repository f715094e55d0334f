"""Imports all that commands, ranks of a training and Ray's workers do, in the process that they are forked from."""

from __future__ import annotations

import gc
import importlib
import os

MODULES = [
    *("massive_sft.cli.app", "massive_sft.running.execute", "massive_sft.running.inline"),
    *("massive_sft.scheduling.run_on_ray", "mlflow.store.tracking.sqlalchemy_store"),
    *("ray.data", "ray.train.torch", "ray.tune", "torch.distributed.run", "torch._inductor.compile_fx"),
    *("deepspeed.comm.mori", "scipy.io"),
]
# Ray keeps what these are when it is imported: no job yet, and a process that lives as long as Ray's workers do.
FOR_WORKERS = {"RAY_JOB_ID": "ffffffff", "RAY_RAYLET_PID": str(os.getpid())}


def draw_class_ids_afresh() -> None:
    """Have Ray make ids of classes without its generator, whose state the forks would share, and so their ids of tasks."""
    import ray.actor
    from ray._raylet import ActorClassID

    class FreshID:
        @staticmethod
        def from_random() -> ActorClassID:
            return ActorClassID(os.urandom(ActorClassID.size()))

    ray.actor.ActorClassID = FreshID


os.environ |= FOR_WORKERS
draw_class_ids_afresh()
for module in MODULES:
    importlib.import_module(module)
for name in FOR_WORKERS:
    del os.environ[name]
importlib.import_module("deepspeed").ops.__compatible_ops__  # noqa: B018 - compilers run to find these out
gc.collect()
gc.freeze()  # else the first collection in each fork would copy it all
