"""Compiled layers: the kernels that torch.compile makes of a model's layers, kept where a trial computes the same.

They save a fifth of the time on a GPU and cost up to a minute and a half to make (docs/benchmarks.md), for the first
training of a kind of model in a process; later ones find them there. Each layer is compiled in its place
(``torch.nn.Module.compile``), for any length (``dynamic=True``), so that the kernels of a length do not depend on which
came first.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from massive_sft.core.errors import Unsupported
from massive_sft.data.samples import Samples
from massive_sft.sweep.spec import Layout, TrainingSpec
from massive_sft.training.packing import collate

COMPILED, PLAIN = "compiled", "plain"
Backend = Callable[[torch.fx.GraphModule, list[torch.Tensor]], Callable[..., Any]]  # of torch.compile
# What a training must take, in operations, before a fifth of it is more than compiling took on an H100, 12 to 93 s:
# eight minutes at 400 TFLOPS.
_WORTH_OPERATIONS = 2e17
# The most that a trial's loss and its gradients may differ by, relative, in the training dtype: rounding. On an H100 it
# moved the gradients in bf16 by 0.06 at 12 layers of random weights and by 0.10 at 32.
_TOLERANCE = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (1e-2, 0.25)}
# Kernels by shapes: one row or several, each kind of layer. Beyond its own 8, dynamo refuses.
_MOST_RECOMPILES = 64


def choose_kernels(loss: nn.Module, spec: TrainingSpec, samples: Samples, device: torch.device) -> str:
    """Compile the layers of a model where its layout says so.

    ``auto`` does on a GPU where the training is long enough for it to pay, not at stage 3, whose hooks fetch weights
    within a layer, not with packing, whose attention is compiled anyway, and not with selective checkpointing, which
    sees nothing within a compiled layer. What cannot be compiled as a whole, or
    differs in the trial, stays as it was.

    Args:
        loss: a module whose forward returns the summed loss of a micro-batch, before an engine has it; a trial moves it
            to ``device``. Random states are as before afterwards.
        spec, samples: what is trained.

    Returns:
        ``compiled`` or ``plain``; ``plain: `` and the reason where compiling failed.

    Raises:
        Unsupported: ``kernels: compiled`` is asked for and cannot be had.
    """
    wanted = spec.layout.kernels
    if wanted == "plain" or (wanted == "auto" and not _pays(spec.layout, loss, spec, samples)):
        return PLAIN
    reason = _missing(spec.layout) or compile_layers(loss, samples, spec.layout, device)
    if reason is None:
        return COMPILED
    if wanted == "compiled":
        raise Unsupported(f"resources.kernels: layers cannot be compiled ({reason}); use auto, or plain")
    return f"{PLAIN}: {reason}"


def _pays(layout: Layout, loss: nn.Module, spec: TrainingSpec, samples: Samples) -> bool:
    parameters = sum(weight.numel() for weight in loss.parameters())
    operations = 6.0 * parameters * int(samples.lengths.sum()) * spec.horizon
    return layout.gpus > 0 and not layout.packing and not layout.within_layers and operations >= _WORTH_OPERATIONS


def _missing(layout: Layout) -> str | None:
    lacks_triton = layout.gpus > 0 and importlib.util.find_spec("triton") is None
    return "the package triton is not installed" if lacks_triton else None


def compile_layers(
    loss: nn.Module, samples: Samples, layout: Layout, device: torch.device, backend: str | Backend = "inductor"
) -> str | None:
    """Compile each layer and try it: the loss and the gradients of two samples and of one must be those without.

    The two are of usual length: for a row of less than 128 tokens flex_attention has kernels of another kind.

    Args:
        backend: of torch.compile.

    Returns:
        Why the layers were left as they were; None when they are compiled.
    """
    layers = find_layers(loss)
    if not layers:
        return "it has none of transformers' layers"
    loss.to(device)
    usual = np.argsort(samples.lengths, kind="stable")[len(samples) // 2 :][:2]
    batches = [collate(samples, some, layout.packing).to(device) for some in (usual, usual[:1])]
    was_training = loss.training
    loss.train(not _drops_out(loss))
    try:
        plain = [_loss_and_gradients(loss, batch) for batch in batches]
        torch._dynamo.config.recompile_limit = _MOST_RECOMPILES
        _forget_other_kinds(layers[0])
        for layer in layers:
            layer.compile(fullgraph=True, dynamic=True, backend=backend)
        compiled = [_loss_and_gradients(loss, batch) for batch in batches]
        reason = next(filter(None, map(_difference, plain, compiled)), None)
    except Exception as error:  # noqa: BLE001 - dynamo, its backend and a compiler raise what they like
        cause = getattr(error, "inner_exception", error)  # what dynamo wraps an error of its backend in
        reason = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
    finally:
        loss.train(was_training)
    if reason is not None:
        for layer in layers:
            layer._compiled_call_impl = None
    return reason


_compiled_kinds: set[tuple[object, ...]] = set()  # of which this process has kernels: one at most


def _forget_other_kinds(layer: nn.Module) -> None:
    """Forget the kernels of layers with other weights: dynamo counts all of a process, and refuses beyond its limit."""
    weights = [(name, tuple(w.shape), w.dtype, w.requires_grad) for name, w in layer.named_parameters()]
    kind = (type(layer), *weights)
    if kind not in _compiled_kinds:
        torch._dynamo.reset()
        _compiled_kinds.clear()
        _compiled_kinds.add(kind)


def find_layers(module: nn.Module) -> list[nn.Module]:
    """Return a model's layers, by the class that transformers makes them of."""
    return [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]


def _drops_out(module: nn.Module) -> bool:
    """Return whether dropout is on, whose random numbers a compiled layer draws in another order."""
    return any(isinstance(part, nn.Dropout) and part.p > 0 for part in module.modules())


def _loss_and_gradients(loss: nn.Module, batch: Any) -> Sequence[torch.Tensor]:
    trained = [weight for weight in loss.parameters() if weight.requires_grad]
    device = batch.input_ids.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        value = loss(batch)
        gradients = torch.autograd.grad(value, trained, allow_unused=True)
    return [value.detach(), *(gradient for gradient in gradients if gradient is not None)]


def _difference(plain: Sequence[torch.Tensor], compiled: Sequence[torch.Tensor]) -> str | None:
    """Return what differs by more than rounding, of a loss and the gradients behind it."""
    parts = (("loss", plain[:1], compiled[:1]), ("gradient", plain[1:], compiled[1:]))
    for (what, expected, got), tolerance in zip(parts, _TOLERANCE[plain[-1].dtype], strict=True):
        norm = torch.nn.utils.get_total_norm(expected)
        apart = torch.nn.utils.get_total_norm(
            [one.float() - other.float() for one, other in zip(expected, got, strict=True)]
        )
        if not apart <= tolerance * norm:
            return f"its {what} differs by {float(apart / norm):.1e}, more than {tolerance:.0e}"
    return None
