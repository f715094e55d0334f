"""What is computed again in the backward pass instead of being kept for it: all of a layer, or all but its products."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from massive_sft.sweep.spec import Layout

_LINEAR = frozenset({"aten::mm", "aten::addmm", "aten::baddbmm"})
_PRODUCTS = _LINEAR | {"aten::bmm", "aten::_grouped_mm"}
_ATTENTION = ("attention", "flash_attn")  # in the names of torch's kernels and of flash-attn's
# Results for each value summed over, from which a linear layer is an adapter's second half: as much memory as the
# adapted layer's result, for a small part of its work.
_WIDENING = 8


def recompute_activations(model: Any, layout: Layout) -> None:
    """Have a transformers model compute activations again as its layout says; without it, leave it as it is.

    ``auto`` leaves it too: what it becomes is tried later, and may be called with again for more (``micro_batch``).
    ``selective`` keeps what matrix products and attention kernels gave, but for the second halves of adapters. An
    attention that is compiled (flex_attention) is one whole, which is computed again.
    """
    if layout.gradient_checkpointing in (False, "auto"):
        return
    how: dict[str, Any] = {"use_reentrant": False}
    if layout.gradient_checkpointing == "selective":
        how["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    model.gradient_checkpointing_enable(how)


def _policy(context: Any, operator: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    """Return whether an operator's result is kept; arguments as torch calls it."""
    name = operator.name() if isinstance(operator, torch._ops.OpOverload) else str(operator)
    kind = name.partition(".")[0]
    kept = kind in _PRODUCTS or any(part in name for part in _ATTENTION)
    if kind in _LINEAR:
        weight = arguments[-1]  # shape (..., summed over, results)
        kept = weight.shape[-1] < _WIDENING * weight.shape[-2]
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
