"""Snapshots: the weights at the end of an epoch, gathered, written, verified, then renamed into place.

A full snapshot is a model folder that transformers loads; an adapter's is a folder that peft loads. Both end with
``snapshot.json``: schema, epoch, step, method, and size and SHA-256 of every other file. Several ranks write a full one
in pieces, a file of weights each.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from massive_sft.cost.rank_loads import deal_longest_first
from massive_sft.ledger.manifest import hash_and_flush
from massive_sft.models import pretrained
from massive_sft.models.host_memory import may_keep
from massive_sft.training.engine import Engine
from massive_sft.training.shares import full_shape

SCHEMA = 1
NAME = "snapshot.json"
_MOST = "50GB"  # of weights in a file of one rank, as transformers has it
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Piece:
    """What one rank writes of a snapshot.

    Attributes:
        number: of the piece, from 0, which is that of rank 0; None for a rank that writes nothing.
        of: how many pieces there are; 1 for an adapter.
    """

    number: int | None
    of: int


@dataclass(frozen=True)
class Written:
    """The files of a piece.

    Attributes:
        files: ``{"bytes", "sha256"}`` by name.
        tensors: names and bytes of the weights, by file.
    """

    files: dict[str, dict[str, Any]]
    tensors: dict[str, dict[str, int]]


def prepare(folder: Path) -> Path:
    """Make the empty folder in which the snapshot that ends up in ``folder`` is written. For rank 0."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def gather(engine: Engine, model: nn.Module, piece: Piece) -> dict[str, torch.Tensor]:
    """Return this rank's piece of the weights to keep, on the CPU, by name in ``model``.

    Of a model with adapters only the trainable weights; of another all parameters and persistent buffers. Shared
    weights come once. All ranks must call it: at ZeRO-3 it gathers one parameter at a time.
    """
    adapter = isinstance(model, PeftModel)
    pinned = _may_be_pinned(engine, model)
    dealt = _deal(model, piece.of)
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if adapter and not parameter.requires_grad:
            continue
        with engine.gathered([parameter]):
            if piece.number == dealt[name]:
                weights[name] = _on_host(parameter, pinned)
    if piece.number == 0 and not adapter:
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        buffers = {name: value for name, value in model.state_dict().items() if name not in parameters}
        weights.update({name: _on_host(value, pinned) for name, value in buffers.items()})
    return weights


def _deal(model: nn.Module, pieces: int) -> dict[str, int]:
    """Return the piece of each parameter: the largest layers first, to the piece that has least.

    A layer stays in one, for transformers may store several of its weights as one.
    """
    sizes = _layer_sizes(model)
    ordered = sorted(sizes, key=lambda layer: -sizes[layer])
    dealt = deal_longest_first([sizes[layer] for layer in ordered], pieces)
    piece_of = {ordered[place]: piece for piece, places in enumerate(dealt) for place in places}
    return {name: piece_of[_layer(name)] for name, _ in model.named_parameters()}


def most_pieces(model: nn.Module) -> int:
    """Return into how many pieces a full snapshot can be divided."""
    return len(_layer_sizes(model))


def _layer_sizes(model: nn.Module) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        sizes[_layer(name)] += full_shape(weight).numel()
    return sizes


def _layer(name: str) -> str:
    """Return ``model.layers.3.`` of the name of a weight of that layer; of one outside of layers its name."""
    found = re.match(r".*?\.\d+\.", name)
    return found.group() if found else name


def _may_be_pinned(engine: Engine, model: nn.Module) -> bool:
    """Return whether weights go into pinned memory: to it a GPU copies several times faster, but it is never swapped.

    torch takes up to twice what is asked for, and keeps it until ``engine.free_memory``.
    """
    if engine.device.type != "cuda":
        return False
    return may_keep(2 * sum(full_shape(weight).numel() * weight.element_size() for weight in model.parameters()))


def _on_host(value: torch.Tensor, pinned: bool) -> torch.Tensor:
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=pinned).copy_(value.detach())


def write(partial: Path, model: Any, weights: Mapping[str, torch.Tensor], piece: Piece) -> Written:
    """Write a piece of a snapshot, the first one with the model's other files, and flush it to the disk.

    Args:
        partial: what ``prepare`` made.
        model: the trained model, for its configuration.
        weights: what ``gather`` returned.

    Raises:
        Corrupt: when what was written does not read back as ``weights``.
        OSError: when the disk refuses.
    """
    assert piece.number is not None
    own = partial / str(piece.number)  # apart from what other ranks write at the same time
    own.mkdir()
    with pretrained.saving(own):
        if isinstance(model, PeftModel):
            expected = _write_adapter(own, model, weights)
        else:
            expected = _write_full(own, model, weights, piece)
    _check_tensors(own, expected)
    names = {path.name: path.name for path in own.iterdir()}
    if piece.of > 1:
        names[_WEIGHTS] = f"model-{piece.number + 1:05}-of-{piece.of:05}.safetensors"
    entries = {}
    for name, final in names.items():
        entries[final] = {"bytes": (own / name).stat().st_size, "sha256": hash_and_flush(own / name)}
        os.replace(own / name, partial / final)
    shutil.rmtree(own)
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in expected.items()}
    return Written(entries, {names[_WEIGHTS]: sizes} if piece.of > 1 else {})


def _write_adapter(folder: Path, model: PeftModel, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Write an adapter; return its weights by their names in the file."""
    adapter = get_peft_model_state_dict(model, state_dict=dict(weights))
    save_file(adapter, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    model.active_peft_config.save_pretrained(str(folder))
    return adapter


def _write_full(folder: Path, model: Any, weights: Mapping[str, torch.Tensor], piece: Piece) -> dict[str, torch.Tensor]:
    """Write a piece of a model; return its weights by their names in the file.

    transformers writes some models under the names of their original checkpoints, and on rank 0 alone.
    """
    stored = revert_weight_conversion(model, dict(weights))
    if piece.number == 0:
        most = _MOST if piece.of == 1 else sys.maxsize
        model.save_pretrained(folder, state_dict=dict(weights), max_shard_size=most)
    else:
        contiguous = {name: tensor.contiguous() for name, tensor in stored.items()}
        save_file(contiguous, folder / _WEIGHTS, metadata={"format": "pt"})
    return stored


def complete(partial: Path, folder: Path, pieces: Sequence[Written], facts: Mapping[str, Any]) -> None:
    """Make a snapshot of its pieces: ``snapshot.json``, then the rename of the whole folder. For rank 0.

    Args:
        partial: in which all pieces were written.
        folder: where it ends up; an older snapshot there is replaced.
        facts: further entries of ``snapshot.json``, such as epoch and step.

    Raises OSError when the disk refuses.
    """
    entries = {name: entry for piece in pieces for name, entry in piece.files.items()}
    if len(pieces) > 1:
        entries[_INDEX] = _write_index(partial / _INDEX, pieces)
    files.write_json(partial / NAME, {"schema": SCHEMA, **facts, "files": dict(sorted(entries.items()))})
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    files.sync_folder(folder.parent)


def _write_index(path: Path, pieces: Sequence[Written]) -> dict[str, Any]:
    """Write which file has which weight, as transformers reads it; return the file's entry."""
    by_file = {file: sizes for piece in pieces for file, sizes in piece.tensors.items()}
    size = sum(sum(sizes.values()) for sizes in by_file.values())
    placed = {name: file for file, sizes in by_file.items() for name in sizes}
    files.write_json(path, {"metadata": {"total_size": size}, "weight_map": dict(sorted(placed.items()))})
    return {"bytes": path.stat().st_size, "sha256": hash_and_flush(path)}


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
