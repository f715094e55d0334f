"""Imports all that commands, ranks of a training and Ray's workers do, in the process that they are forked from."""

from __future__ import annotations

import gc
import importlib
import os

from forked_python import BY_PIPE
from mlflow_tables import copy_tables

MODULES = [
    *("massive_sft.cli.app", "massive_sft.running.execute", "massive_sft.running.inline"),
    *("massive_sft.scheduling.run_on_ray", "mlflow.store.tracking.sqlalchemy_store"),
    *("ray.data", "ray.train.torch", "ray.tune", "torch.distributed.run", "torch._inductor.compile_fx"),
    *("deepspeed.comm.mori", "scipy.io"),
    *("ray.autoscaler._private.monitor", "ray._private.log_monitor", "ray.dashboard.dashboard", "ray.dashboard.agent"),
    *("ray.dashboard.modules.usage_stats.usage_stats_head", "ray.dashboard.modules.reporter.reporter_agent"),
    *("ray.dashboard.modules.aggregator.aggregator_agent", "ray.dashboard.modules.data.data_head"),
    *("ray.dashboard.modules.job.cli", "ray.dashboard.modules.job.job_head", "ray.dashboard.modules.log.log_manager"),
    *("ray.dashboard.modules.node.node_head", "ray.dashboard.modules.reporter.reporter_head"),
    *("ray.data._internal.execution.operators.actor_pool_map_operator", "ray._private.thirdparty.pynvml"),
    *("ray.data._internal.issue_detection.issue_detector_configuration", "ray._private.arrow_serialization"),
    *("pydantic.v1.fields", "rich._emoji_codes", "sqlalchemy.dialects.sqlite"),
    *("transformers.models.llama.modeling_llama", "commands", "deadly"),
]
# Ray keeps what these are when it is imported: no job yet, a process that lives as long as Ray's workers do, and how its
# agents learn that Ray is gone.
FOR_WORKERS = {"RAY_JOB_ID": "ffffffff", "RAY_RAYLET_PID": str(os.getpid()), BY_PIPE: "1"}

gc.disable()  # what is imported stays


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
copy_tables()
for name in FOR_WORKERS:
    del os.environ[name]
importlib.import_module("deepspeed").ops.__compatible_ops__  # noqa: B018 - compilers run to find these out
gc.collect()
gc.freeze()  # else the first collection in each fork would copy it all
gc.enable()
