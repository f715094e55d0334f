"""DeepSpeed: the one module that imports it. Configuration, accumulation, state on disk, and what it leaves behind."""

from __future__ import annotations

import argparse
import io
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from massive_sft.core.errors import Corrupt
from massive_sft.core.memory import free_bytes
from massive_sft.cost.memory import bucket_bytes, bytes_per_number, most_gathered, most_in_bucket
from massive_sft.models.device import unused_bytes
from massive_sft.sweep.schema import Setting
from massive_sft.sweep.spec import Layout
from massive_sft.training.optimizer import adamw
from massive_sft.training.packing import MicroBatch
from massive_sft.training.ranks import from_all_ranks
from massive_sft.training.shares import full_shape

PREFETCHED_WEIGHTS = 5 * 10**7  # at most, at stage 3: DeepSpeed's default


def import_deepspeed(layout: Layout) -> Any:
    """Import DeepSpeed quietly and point it at the GPU or the CPU, as the layout says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        from deepspeed import accelerator
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # Its shared-memory collectives serve inference only, and would be compiled on first use.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    wanted = "cuda" if layout.gpus else "cpu"
    if accelerator.get_accelerator()._name != wanted:
        from deepspeed.accelerator import cpu_accelerator, cuda_accelerator

        made = cuda_accelerator.CUDA_Accelerator() if layout.gpus else cpu_accelerator.CPU_Accelerator()
        accelerator.set_accelerator(made)
    return deepspeed


def config(setting: Setting, layout: Layout, trained: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a number of trained weights.

    Accumulation is driven by hand (one micro-batch more or less from step to step), so its own count stays at 1;
    the learning rate is set on the parameter groups, so there is no scheduler. Gradients are summed in float32 within
    a rank and across ranks, whose number would change the update otherwise.
    """
    bucket, gathered = most_in_bucket(layout), most_gathered(layout)
    zero: dict[str, Any] = {"stage": layout.stage, "reduce_bucket_size": min(trained, bucket)}
    if layout.stage == 3:
        zero |= {"stage3_max_live_parameters": gathered, "stage3_max_reuse_distance": gathered}
        zero |= {"stage3_prefetch_bucket_size": min(bucket, PREFETCHED_WEIGHTS)}
    if layout.offload == "optimizer":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": layout.gpus > 0 and _may_pin(trained)}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": setting.optimizer.clip or 0.0,
        # A gradient is added to its float32 sum as soon as it is there, so none waits for the end of the pass.
        "bf16": {"enabled": setting.precision == "bf16", "immediate_grad_update": True},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the device in each pass
    }


def _may_pin(trained: int) -> bool:
    """Return whether this machine has room for offloaded states in pinned memory, for which torch takes up to twice.

    They are master copy and moments, 12 bytes a weight over all ranks. A GPU copies to pinned memory several times
    faster.
    """
    return 2 * 12 * trained <= free_bytes()


@contextmanager
def partitioned_loading(setting: Setting, layout: Layout) -> Iterator[None]:
    """Within it transformers makes models in parts, for stage 3: each rank has its share of each weight, and no more.

    Rank 0 alone reads the files, a tensor at a time, and gives the others theirs; all ranks must load the same. Shares
    lie where the layout computes. ``shares.full_shape`` tells what a weight is a share of.
    """
    import_deepspeed(layout)
    from transformers.integrations import HfDeepSpeedConfig

    asked = HfDeepSpeedConfig(config(setting, layout, trained=most_in_bucket(layout)))
    try:
        yield
    finally:
        del asked  # transformers holds it weakly, and loads as ever once it is gone


@contextmanager
def torch_restored() -> Iterator[None]:
    """Undo at the end that stage 3 replaces ``torch.nn.functional.linear`` for the process's life.

    Its own multiplies and adds the bias apart, so in bf16 it rounds otherwise, and it takes longer: what is trained or
    scored next in the process would depend on what was trained before.
    """
    linear = nn.functional.linear
    try:
        yield
    finally:
        nn.functional.linear = linear


class DeepSpeedEngine:
    """An ``engine.Engine`` of one or several ranks under ZeRO (Rajbhandari et al. 2020).

    Args:
        module: on the CPU, or made within ``partitioned_loading``; in the training dtype. Parameters that require
            gradients are trained.
        setting, layout: what to compute, and how; ``layout.stage`` is the stage of ZeRO.

    Requires ``ranks.join_group``. ``close`` must be called, or ZeRO keeps the model alive.
    """

    def __init__(self, module: nn.Module, setting: Setting, layout: Layout):
        deepspeed = import_deepspeed(layout)
        sizes = [(full_shape(weight).numel(), weight.requires_grad) for weight in module.parameters()]
        parameters, trained = sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
        optimizer = adamw(module, setting.optimizer, setting.lr)
        with redirect_stdout(io.StringIO()):  # its bf16 optimizer prints memory figures
            self._engine, *_ = deepspeed.initialize(
                model=module,
                optimizer=optimizer,
                model_parameters=[weight for weight in module.parameters() if weight.requires_grad],
                config=config(setting, layout, trained),
            )
        self._deepspeed = deepspeed
        self._stage = layout.stage or 0
        self.offload = layout.offload == "optimizer"
        self.parameters = parameters
        self.trained = trained
        self._number = bytes_per_number(setting.precision)
        self._has_frozen = not all(trains for _, trains in sizes)
        self.device: torch.device = self._engine.device
        self.ranks = dist.get_world_size()
        self._engine.train()

    def accumulate(self, batches: Sequence[MicroBatch], target_total: int) -> torch.Tensor:
        """See ``Engine.accumulate``.

        The gradient of a micro-batch is that of (summed loss × ranks / ``target_total``); ranks are averaged after the
        last one.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for index, batch in enumerate(batches):
            self._engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
            loss = self._engine(batch.to(self.device)) * float(batch.counted)
            self._engine.backward(loss * (self.ranks / target_total), scale_wrt_gas=False)
            total += loss.detach().double()
        return total

    def step(self, lr: float) -> float:
        """See ``Engine.step``."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        if self._stage == 0:
            # Stage 0 clips without telling the norm.
            norm = float(torch.nn.utils.get_total_norm(self._gradients()))
            self._engine.step()
            return norm
        self._engine.step()
        if not self._engine.was_step_applied():
            return float("nan")  # it skips an update with gradients that are not finite
        norm = float(self._engine.get_global_grad_norm())
        # ZeRO reports a norm that is not finite as -1.
        return norm if norm >= 0 else float("nan")

    def _gradients(self) -> list[torch.Tensor]:
        return [parameter.grad for parameter in self._engine.module.parameters() if parameter.grad is not None]

    def discard_gradients(self) -> None:
        """See ``Engine.discard_gradients``.

        DeepSpeed has no call for this, so the state of its stages is put back by hand, as its ``step`` leaves it.
        """
        self._engine.zero_grad()
        optimizer = self._engine.optimizer
        if self._stage == 0:
            return
        optimizer.zero_grad(set_to_none=True)
        hooks = optimizer._backward_hook_state
        hooks.backward_active_depth = 0
        hooks.remaining_grad_acc_hooks = 0
        hooks.reset_for_new_step()
        if self._stage == 3:
            self._release_weights(optimizer)
        elif hasattr(optimizer, "ipg_buckets"):  # not stage 1 in bf16, whose float32 gradients are all it keeps
            self._clear_buckets(optimizer)

    def _clear_buckets(self, optimizer: Any) -> None:
        for bucket in optimizer.ipg_buckets.values():
            bucket.clear()
        optimizer.averaged_gradients = {}
        optimizer.all_grad_tensors = {}
        optimizer.grads_in_partition = None
        optimizer.micro_step_id = -1
        optimizer.ready_for_gradients = False
        optimizer.params_already_reduced = [False] * len(optimizer.params_already_reduced)
        optimizer.reset_partition_gradient_structures()
        optimizer._release_ipg_buffers()

    def _release_weights(self, optimizer: Any) -> None:
        """Stage 3: partition again what the broken pass had gathered, and forget its module order."""
        from deepspeed.runtime.zero import parameter_offload

        del parameter_offload.FWD_MODULE_STACK[1:]
        for bucket in optimizer.ipg_buckets.values():
            bucket.clear_params()
        optimizer.averaged_gradients = {}
        coordinator = optimizer.parameter_offload.get_param_coordinator()
        coordinator.release_backward_leftovers()
        if not coordinator.is_invalid_trace():
            coordinator._invalidate_trace()
        self._engine.empty_partition_cache()
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    def save(self, folder: Path) -> None:
        """See ``Engine.save``."""
        self._engine.save_checkpoint(
            str(folder.parent), tag=folder.name, save_latest=False, exclude_frozen_parameters=self._has_frozen
        )

    def load(self, folder: Path, universal: bool = False) -> None:
        """See ``Engine.load``."""
        self._engine._config.load_universal_checkpoint = universal
        with redirect_stdout(io.StringIO()):
            path, _ = self._engine.load_checkpoint(
                str(folder.parent), tag=folder.name, load_module_strict=not self._has_frozen
            )
        if path is None:
            raise Corrupt(f"{folder}: DeepSpeed finds no state in it")

    def free_bytes(self) -> int:
        """See ``Engine.free_bytes``: the least of all ranks."""
        return min(from_all_ranks(unused_bytes(self.device) - self.first_step_bytes()))

    def first_step_bytes(self) -> int:
        """See ``Engine.first_step_bytes``.

        That is AdamW's two float32 moments, float32 gradients where they are not held from the start (as at stage 3 and
        by the optimizer of stage 1 in bf16), and the bucket in which ZeRO reduces them.
        """
        off, whole = self.offload, 4 * self.trained
        if self._stage == 0:
            return 3 * whole
        moments = 0 if off else 2 * whole // self.ranks
        if self._stage == 3 or not hasattr(self._engine.optimizer, "ipg_buckets"):
            return moments
        gradients = whole if self._stage == 1 else 0 if off else whole // self.ranks
        return moments + gradients + bucket_bytes(self.trained, self._stage, self._number)

    @contextmanager
    def gathered(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """See ``Engine.gathered``: at stage 3 a collective operation of all ranks."""
        with self._deepspeed.zero.GatheredParameters(list(parameters), enabled=self._stage == 3):
            yield

    def close(self) -> None:
        """See ``Engine.close``."""
        self._engine.destroy()
        if self._stage == 3:
            _forget_modules()
        del self._engine


def _forget_modules() -> None:
    """Clear what stage 3 keeps of a module for the process's life: a global stack, and the cache of a method."""
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    parameter_offload.FWD_MODULE_STACK.clear()
    cached = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    for cell in cached.__closure__ or ():  # an lru_cache within a decorator that does not pass it on
        if hasattr(cell.cell_contents, "cache_clear"):
            cell.cell_contents.cache_clear()


def convert_checkpoint(source: Path, target: Path) -> None:
    """Make DeepSpeed's universal checkpoint of a saved state, which stages 1 and 2 and other numbers of ranks can load.

    For one rank.
    """
    from deepspeed.checkpoint.ds_to_universal import main

    shutil.rmtree(target, ignore_errors=True)
    arguments = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,  # which another launcher than DeepSpeed's own leaves out
    )
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # progress bars
        main(arguments)
