"""DeepSpeed's internals that training/deepspeed_engine.py touches: each is named here, and the installed release has it.

No release promises them. A new one that drops or renames something fails here by name, before a training goes wrong.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import make_base, make_samples, make_spec

from massive_sft.sweep.schema import Setting
from massive_sft.sweep.spec import Layout
from massive_sft.training import deepspeed_engine
from massive_sft.training.deepspeed_engine import DeepSpeedEngine, torch_restored
from massive_sft.training.engine import free_memory
from massive_sft.training.loading import load_for_training
from massive_sft.training.loss import SummedLoss
from massive_sft.training.packing import collate
from massive_sft.training.ranks import join_group

ROOT = Path(__file__).parent.parent
# What a documented API has not got, by the expression in deepspeed_engine.py whose attribute it is.
MODULES = {
    "deepspeed.ops": {"__compatible_ops__"},
    "accelerator.get_accelerator()": {"_name"},
    "parameter_offload": {"FWD_MODULE_STACK"},
    "PartitionedParameterCoordinator": {"_PartitionedParameterCoordinator__params_to_release"},
}
ENGINE = {
    "self._engine": {"_config", "empty_partition_cache", "was_step_applied"},
    "self._engine._config": {"load_universal_checkpoint"},
}
EVERY_ZERO = {
    "optimizer": {"_backward_hook_state"},
    "hooks": {"backward_active_depth", "remaining_grad_acc_hooks", "reset_for_new_step"},
}
# Stages 1 and 2, but for stage 1 in bf16, whose optimizer has a class of its own.
BUCKETS = {
    "optimizer": {
        "_release_ipg_buffers", "all_grad_tensors", "averaged_gradients", "grads_in_partition", "ipg_buckets",
        "micro_step_id", "params_already_reduced", "ready_for_gradients", "reset_partition_gradient_structures",
    },
    "bucket": {"clear"},
}  # fmt: skip
STAGE_3 = {
    "optimizer": {"averaged_gradients", "ipg_buckets", "parameter_offload", "persistent_parameters"},
    "bucket": {"clear_params"},
    "optimizer.parameter_offload": {"get_param_coordinator"},
    "coordinator": {"_invalidate_trace", "is_invalid_trace", "release_backward_leftovers"},
    "optimizer.persistent_parameters[0]": {"all_gather"},
}
TABLES = (MODULES, ENGINE, EVERY_ZERO, BUCKETS, STAGE_3)
# Documented ones of the same objects.
PUBLIC = {
    "self._engine": {
        "backward", "destroy", "device", "get_global_grad_norm", "load_checkpoint", "module", "optimizer",
        "save_checkpoint", "set_gradient_accumulation_boundary", "step", "train", "zero_grad",
    },
    "optimizer": {"zero_grad"},
    "deepspeed.ops": set(),
}  # fmt: skip


def test_every_internal_that_the_engine_touches_is_named() -> None:
    touched: dict[str, set[str]] = defaultdict(set)
    for node in ast.walk(ast.parse(Path(deepspeed_engine.__file__).read_text())):
        if isinstance(node, ast.Attribute):
            touched[ast.unparse(node.value)].add(node.attr)
    named: dict[str, set[str]] = defaultdict(set)
    for table in TABLES:
        for owner, names in table.items():
            named[owner] |= names
    for owner, names in named.items():
        assert touched[owner] - PUBLIC.get(owner, set()) == names, owner
    private = {(owner, name) for owner, names in touched.items() for name in names if name.startswith("_")}
    ours = {(owner, name) for owner, name in private if owner in ("self", "cached")}
    assert {(owner, name) for owner, name in private - ours if name not in named[owner]} == set()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """An engine of stage 3 that a test makes by itself changes nothing for others."""
    with torch_restored():
        yield


@contextmanager
def owners_at(base: Path, zero: int, precision: str, offload: str = "none") -> Iterator[dict[str, Any]]:
    """Yield what the expressions in deepspeed_engine.py stand for, in the middle of a step."""
    from deepspeed import accelerator, ops
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    spec = make_spec(base, layout={"zero": zero, "offload": offload}, precision=precision)
    samples = make_samples(4)
    join_group(spec.layout)
    module = SummedLoss(load_for_training(spec, samples))
    engine = DeepSpeedEngine(module, spec.setting, spec.layout)
    try:
        engine.accumulate([collate(samples, np.arange(4), packing=False)], 10)
        inner, optimizer = engine._engine, engine._engine.optimizer
        found: dict[str, Any] = {
            "deepspeed.ops": ops,
            "accelerator.get_accelerator()": accelerator.get_accelerator(),
            "parameter_offload": parameter_offload,
            "PartitionedParameterCoordinator": PartitionedParameterCoordinator,
            "self._engine": inner,
            "self._engine._config": inner._config,
        }
        if zero:
            found |= {"optimizer": optimizer, "hooks": getattr(optimizer, "_backward_hook_state", None)}
        if hasattr(optimizer, "ipg_buckets"):
            found["bucket"] = next(iter(optimizer.ipg_buckets.values()))
        if zero == 3:
            offload = optimizer.parameter_offload
            found |= {"optimizer.parameter_offload": offload, "coordinator": offload.get_param_coordinator()}
            found["optimizer.persistent_parameters[0]"] = optimizer.persistent_parameters[0]
        yield found
    finally:
        module.release()
        engine.close()
        free_memory()


@pytest.mark.parametrize(
    ("zero", "precision", "tables"),
    [
        (0, "fp32", (MODULES, ENGINE)),
        (1, "bf16", (ENGINE, EVERY_ZERO)),
        (1, "fp32", (ENGINE, EVERY_ZERO, BUCKETS)),
        (2, "bf16", (ENGINE, EVERY_ZERO, BUCKETS)),
        (3, "bf16", (ENGINE, EVERY_ZERO, STAGE_3)),
    ],
)
def test_installed_deepspeed_has_what_the_engine_touches(
    base: Path, zero: int, precision: str, tables: tuple[dict[str, set[str]], ...]
) -> None:
    with owners_at(base, zero, precision) as owners:
        missing = [
            f"{owner} has no {name}"
            for table in tables
            for owner, names in table.items()
            for name in sorted(names)
            if not hasattr(owners[owner], name)
        ]
        assert not missing, "training/deepspeed_engine.py must be made to fit this release of DeepSpeed"


@pytest.mark.parametrize(("zero", "offload"), [(1, "none"), (1, "optimizer"), (2, "optimizer"), (3, "optimizer")])
def test_installed_deepspeed_does_as_it_is_configured(base: Path, zero: int, offload: str) -> None:
    with owners_at(base, zero, "bf16", offload) as owners:
        engine, optimizer = owners["self._engine"], owners["optimizer"]
        assert not engine.tput_timer.initialized, "it times passes, and waits for the device to do so"
        assert engine.communication_data_type is torch.float32
        if offload == "none":
            assert optimizer.immediate_grad_update
        else:
            assert optimizer.communication_data_type is torch.float32
            pins = "offload_optimizer_pin_memory" if zero == 3 else "cpu_offload_pin_memory"
            assert getattr(optimizer, pins) is False, "there is no device to copy to"


@pytest.mark.parametrize(("gpus", "trained", "pinned"), [(0, 10**3, False), (1, 10**3, True), (1, 10**15, False)])
def test_offloaded_states_are_pinned_for_a_gpu_where_there_is_room(gpus: int, trained: int, pinned: bool) -> None:
    layout = Layout(gpus=gpus, zero=2, offload="optimizer")
    zero = deepspeed_engine.config(Setting(method="full", lr=1e-3, batch=4), layout, trained)["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": pinned}


def test_deepspeed_is_pinned_below_the_next_minor_release() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'"deepspeed>=0\.19\.\d+,<0\.20"', text)
