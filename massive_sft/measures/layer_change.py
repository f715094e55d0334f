"""How far training moved each weight: a snapshot minus the base it started from, tensor by tensor.

The start is the base cast to the training dtype. Of a full snapshot the change is the difference of two files, read
one tensor at a time; of an adapter it is scale × B × A, never merged into the base. Numbers are computed in float32 and
summed in float64.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from massive_sft.core import files
from massive_sft.core.errors import Corrupt, Unsupported
from massive_sft.models import pretrained
from massive_sft.models.attention import meta_model
from massive_sft.models.location import weight_paths
from massive_sft.models.weight_tensors import WeightTensors
from massive_sft.sweep import weight_files
from massive_sft.sweep.schema import Model
from massive_sft.sweep.semantics import MEASURE_SEMANTICS

SCHEMA = pa.schema(
    {
        "tensor": pa.string(),  # name in the snapshot, or of the adapted weight in the model
        "layer": pa.int32(),  # null outside the stack of layers
        "kind": pa.string(),  # the module's own name, such as q_proj; or embed, head, norm
        "method": pa.string(),  # full, lora, or frozen (a weight without an adapter: no change)
        "numel": pa.int64(),
        "base_norm": pa.float64(),  # Frobenius norm at the start
        "final_norm": pa.float64(),
        "delta_norm": pa.float64(),
        "relative": pa.float64(),  # delta_norm / base_norm; null where the start is all zero
        "cosine": pa.float64(),  # between start and end; null where either is all zero
        "max_abs": pa.float64(),  # largest change of one weight
        "rounding_floor": pa.float64(),  # relative change that rounding to bf16 alone makes; 0 for fp32 and adapters
        "changed": pa.int64(),  # weights that differ from the start; no column in tables of earlier versions
        # Always null: earlier versions could measure the spectrum of the change, and the format stays.
        "effective_rank": pa.float64(),
        "singular_values": pa.list_(pa.float64()),
    }
)
# Elements handled at once: bounds the memory beside the tensors themselves.
_CHUNK = 1 << 24


@dataclass
class _Sums:
    """Sums over the elements of a start, an end and their difference."""

    start: float = 0.0
    end: float = 0.0
    delta: float = 0.0
    product: float = 0.0
    rounding: float = 0.0
    max_abs: float = 0.0
    changed: int = 0


def layer_change(base: Model, snapshot: Path, device: str = "cpu") -> pa.Table:
    """Measure the change of every floating-point tensor of a snapshot.

    Shared weights have one row. A weight without an adapter did not change; it has a row too, so that norms over all
    weights of a model or a layer mean the same for both methods.

    Args:
        base: the model that training started from.
        snapshot: folder of a full snapshot or of an adapter.
        device: that computes.

    Returns:
        A table of ``SCHEMA``, in the order of layers, then names.

    Raises:
        Corrupt: when base and snapshot do not fit together.
        InvalidInput: when the base's weight files are not there or broken.
        Unsupported: when the adapter is of another kind than LoRA on linear layers.
    """
    start = WeightTensors(weight_paths(base))
    adapter = (snapshot / "adapter_config.json").is_file()
    if adapter:
        rows = list(_adapter_rows(start, snapshot, _weights_of(base, start), device))
    else:
        rows = list(_full_rows(start, snapshot, device))
    kinds = _kinds([row["tensor"] for row in rows])
    for row in rows:
        row["layer"], row["kind"] = kinds[row["tensor"]]
    rows.sort(key=lambda row: (row["layer"] is None, row["layer"] or 0, row["tensor"]))
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _weights_of(base: Model, start: WeightTensors) -> dict[str, str]:
    """Return a base's tensors by the names of the model's weights, each once: its files may hold a tied one twice.

    All of them by their own names where some cannot be told from the model's.
    """
    made = meta_model(base)
    names = pretrained.stored_names(made)
    try:
        if len(names) == sum(1 for _ in made.parameters()):
            return {name: start.find(stored) for name, stored in names.items()}
    except Corrupt:
        pass
    return {name: name for name in start.names()}


def _full_rows(start: WeightTensors, snapshot: Path, device: str) -> Iterator[dict[str, Any]]:
    end = WeightTensors(weight_files.find(snapshot))
    for name in end.names():
        after = end.read(name)
        if not after.is_floating_point():
            continue
        before = start.read(name).to(after.dtype)
        if before.shape != after.shape:
            raise Corrupt(f"{snapshot}: {name} has shape {tuple(after.shape)}, the base's {tuple(before.shape)}")
        sums = _Sums()
        for parts in zip(before.reshape(-1).split(_CHUNK), after.reshape(-1).split(_CHUNK), strict=True):
            start_part, end_part = (part.to(device).float() for part in parts)
            _add(sums, start_part, end_part)
            if after.dtype == torch.bfloat16:
                sums.rounding += _rounding(start_part)
        yield _row(name, "full", after.numel(), sums)


def _add(sums: _Sums, start: torch.Tensor, end: torch.Tensor) -> None:
    delta = end - start
    sums.start += _sum(start.square())
    sums.end += _sum(end.square())
    sums.delta += _sum(delta.square())
    sums.product += _sum(start * end)
    sums.max_abs = max(sums.max_abs, float(delta.abs().max()))
    sums.changed += int(torch.count_nonzero(delta))


def _sum(numbers: torch.Tensor) -> float:
    return float(numbers.sum(dtype=torch.float64))


def _rounding(weights: torch.Tensor) -> float:
    """Return the expected sum of squared errors of rounding to bf16: spacing² / 12 each, spacing being 2^(e - 8)."""
    _, exponents = torch.frexp(weights)
    spacing = torch.ldexp(torch.ones_like(weights), exponents - 8)
    return _sum((spacing.square() / 12).where(weights != 0, 0))


def _adapter_rows(
    start: WeightTensors, snapshot: Path, weights: Mapping[str, str], device: str
) -> Iterator[dict[str, Any]]:
    """Rows of the adapted ones among a model's weights, then of the others.

    Only products as thin as the rank are made, but for the largest change.
    """
    config = files.read_json(snapshot / "adapter_config.json")
    unusual = [name for name in ("use_dora", "rank_pattern", "alpha_pattern") if config.get(name)]
    if config.get("peft_type") != "LORA" or unusual:
        raise Unsupported(f"{snapshot}: layer_change reads plain LoRA adapters, not {unusual or config['peft_type']}")
    rank = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    adapter = WeightTensors([snapshot / "adapter_model.safetensors"])
    frozen = set(weights.values())
    for name in adapter.names():
        if name.endswith(".lora_B.weight"):
            continue
        if not name.endswith(".lora_A.weight"):
            raise Unsupported(f"{snapshot}: {name} is no LoRA matrix of a linear layer")
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        a = adapter.read(name)
        b = adapter.read(name.replace(".lora_A.", ".lora_B."))
        stored = weights.get(f"{module}.weight") or start.find(f"{module}.weight")
        frozen.discard(stored)
        before = start.read(stored).to(a.dtype)
        if config.get("fan_in_fan_out") and before.shape == (a.shape[1], b.shape[0]):
            before = before.T  # a Conv1D beside whose kind there may be linear modules
        if before.shape != (b.shape[0], a.shape[1]):
            raise Corrupt(f"{snapshot}: {module} does not fit the base's shape {tuple(before.shape)}")
        a, b = a.to(device).double(), b.to(device).double() * scale
        yield _row(f"{module}.weight", "lora", before.numel(), _adapter_sums(before, a, b))
    for name in sorted(frozen):
        weight = start.read(name)
        if weight.is_floating_point():
            square = sum(_sum(part.to(device).float().square()) for part in weight.flatten().split(_CHUNK))
            yield _row(name, "frozen", weight.numel(), _Sums(square, square, product=square))


def _adapter_sums(before: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> _Sums:
    """Sums for a start W and a change B A: |B A|² = tr(BᵀB AAᵀ) and <W, B A> = <BᵀW, A>."""
    # A trace is 0 or more, which rounding need not know.
    sums = _Sums(delta=max(0.0, float(((b.T @ b) * (a @ a.T)).sum())))
    inner = 0.0
    rows = max(1, _CHUNK // before.shape[1])
    narrow = a.float()
    for part, factor in zip(before.split(rows), b.float().split(rows), strict=True):
        weights = part.to(a.device).float()
        sums.start += _sum(weights.square())
        inner += float(((factor.T @ weights).double() * a).sum())
        delta = factor @ narrow
        sums.max_abs = max(sums.max_abs, float(delta.abs().max()))
        sums.changed += int(torch.count_nonzero(delta))
    sums.end = sums.start + 2 * inner + sums.delta
    sums.product = sums.start + inner
    return sums


def _row(name: str, method: str, numel: int, sums: _Sums) -> dict[str, Any]:
    return {"tensor": name, "method": method, "numel": numel, **_measures(sums)}


def _measures(sums: _Sums) -> dict[str, Any]:
    start, end = math.sqrt(sums.start), math.sqrt(max(sums.end, 0.0))
    return {
        "base_norm": start,
        "final_norm": end,
        "delta_norm": math.sqrt(sums.delta),
        "relative": math.sqrt(sums.delta) / start if start else None,
        "cosine": min(1.0, sums.product / (start * end)) if start and end else None,
        "max_abs": sums.max_abs,
        "rounding_floor": math.sqrt(sums.rounding) / start if start else 0.0,
        "changed": sums.changed,
    }


def _kinds(names: list[str]) -> dict[str, tuple[int | None, str]]:
    """Return (layer, kind) by tensor name.

    The layer is the first number in the name. The kind is the module's own name; with its parent's when modules of
    one layer share it (``attn.c_proj``, ``mlp.c_proj``).
    """
    paths = {name: name.split(".")[:-1] for name in names}
    layers = {name: next((int(part) for part in path if part.isdigit()), None) for name, path in paths.items()}
    modules = {(layers[name], tuple(path)) for name, path in paths.items()}
    shared = Counter((layer, path[-1]) for layer, path in modules if path)
    found = {}
    for name, path in paths.items():
        layer, own = layers[name], path[-1] if path else name
        if "norm" in own or own.startswith("ln_"):
            kind = "norm"
        elif layer is None:
            kind = "embed" if own != "embed_out" and ("embed" in own or own in ("wte", "wpe")) else "head"
        else:
            kind = ".".join(path[-2:]) if shared[layer, own] > 1 else own
        found[name] = (layer, kind)
    return found


def to_parquet(table: pa.Table) -> bytes:
    """Return a table as Parquet."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def summary(table: pa.Table) -> dict[str, Any]:
    """Return a table's relative change over all weights and by layer, as if the weights of each were one tensor.

    With them the rounding floor, and how many weights changed (of an adapter: those that its product is not 0 for).
    """
    rows = table.to_pylist()
    by_layer: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if row["layer"] is not None:
            by_layer.setdefault(row["layer"], []).append(row)
    return {
        "schema": MEASURE_SEMANTICS["layer_change"],
        "relative": _relative(rows),
        "rounding_floor": _norm(rows, lambda row: row["rounding_floor"] * row["base_norm"]),
        "changed": sum(row["changed"] for row in rows),
        "weights": sum(row["numel"] for row in rows),
        "max_abs": max(row["max_abs"] for row in rows),
        "relative_by_layer": {str(layer): _relative(members) for layer, members in sorted(by_layer.items())},
    }


def _relative(rows: list[dict[str, Any]]) -> float | None:
    return _norm(rows, lambda row: row["delta_norm"])


def _norm(rows: list[dict[str, Any]], of: Callable[[dict[str, Any]], float]) -> float | None:
    """Return a Frobenius norm over that of the start, of several weights as if they were one."""
    start = math.hypot(*(row["base_norm"] for row in rows))
    return math.hypot(*map(of, rows)) / start if start else None
