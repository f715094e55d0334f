"""Snapshots: the weights at the end of an epoch, gathered, written, verified, then renamed into place.

A full snapshot is a model folder that transformers loads; an adapter's is a folder that peft loads. Both end with
``snapshot.json``: schema, epoch, step, method, and size and SHA-256 of every other file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from massive_sft.core import files
from massive_sft.core.errors import Corrupt
from massive_sft.core.fingerprint import hash_file
from massive_sft.ledger.manifest import hash_and_flush
from massive_sft.models import pretrained
from massive_sft.models.host_memory import may_keep
from massive_sft.training.engine import Engine
from massive_sft.training.ranks import is_rank0
from massive_sft.training.shares import full_shape

SCHEMA = 1
NAME = "snapshot.json"


def gather(engine: Engine, model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights to keep, on the CPU, by name in ``model``; empty on all ranks but 0.

    Of a model with adapters only the trainable weights; of another all parameters and persistent buffers. Shared
    weights come once. All ranks must call it: at ZeRO-3 it gathers one parameter at a time.
    """
    adapter = isinstance(model, PeftModel)
    pinned = _may_be_pinned(engine, model)
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if adapter and not parameter.requires_grad:
            continue
        with engine.gathered([parameter]):
            if is_rank0():
                weights[name] = _on_host(parameter, pinned)
    if is_rank0() and not adapter:
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        buffers = {name: value for name, value in model.state_dict().items() if name not in parameters}
        weights.update({name: _on_host(value, pinned) for name, value in buffers.items()})
    return weights


def _may_be_pinned(engine: Engine, model: nn.Module) -> bool:
    """Return whether weights go into pinned memory: to it a GPU copies several times faster, but it is never swapped.

    torch takes up to twice what is asked for, and keeps it until ``engine.free_memory``.
    """
    if engine.device.type != "cuda":
        return False
    return may_keep(2 * sum(full_shape(weight).numel() * weight.element_size() for weight in model.parameters()))


def _on_host(value: torch.Tensor, pinned: bool) -> torch.Tensor:
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=pinned).copy_(value.detach())


def write(folder: Path, model: Any, weights: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write a snapshot: model files, then ``snapshot.json``, then the rename of the whole folder to ``folder``.

    Args:
        folder: where it ends up; an older snapshot there is replaced.
        model: the trained model, for its configuration.
        weights: what ``gather`` returned.
        facts: further entries of ``snapshot.json``, such as epoch and step.

    Raises:
        Corrupt: when what was written does not read back as ``weights``.
        OSError: when the disk refuses.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if isinstance(model, PeftModel):
        expected = get_peft_model_state_dict(model, state_dict=dict(weights))
        save_file(expected, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        model.active_peft_config.save_pretrained(str(partial))
    else:
        # transformers writes some models under the names of their original checkpoints.
        expected = revert_weight_conversion(model, dict(weights))
        with pretrained.no_progress_bar():
            model.save_pretrained(partial, state_dict=dict(weights))
    _check_tensors(partial, expected)
    listed = sorted(path for path in partial.iterdir() if path.name != NAME)
    manifest = {
        "schema": SCHEMA,
        **facts,
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": hash_and_flush(path)} for path in listed},
    }
    files.write_json(partial / NAME, manifest)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    files.sync_folder(folder.parent)


def _check_tensors(folder: Path, expected: Mapping[str, torch.Tensor]) -> None:
    """Compare names, shapes and dtypes on the disk with those in memory."""
    found: dict[str, tuple[list[int], str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                view = file.get_slice(name)
                found[name] = (view.get_shape(), view.get_dtype())
    wanted = {name: (list(tensor.shape), _DTYPES[tensor.dtype]) for name, tensor in expected.items()}
    wrong = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if wrong:
        name = wrong[0]
        raise Corrupt(
            f"{folder}: {len(wrong)} tensors differ from the trained model, first {name}: "
            f"written {found.get(name)}, trained {wanted.get(name)}"
        )


_DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
}


def verify(folder: Path) -> dict[str, Any]:
    """Return ``snapshot.json`` after comparing every file with it.

    Raises:
        Corrupt: when it is missing, or a file is missing, of another size or of another content.
    """
    try:
        manifest = files.read_json(folder / NAME)
    except FileNotFoundError as error:
        raise Corrupt(f"{folder}: is no finished snapshot, {NAME} is missing") from error
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"] or hash_file(path) != entry["sha256"]:
            raise Corrupt(f"{path}: does not match {NAME}")
    return dict(manifest)
