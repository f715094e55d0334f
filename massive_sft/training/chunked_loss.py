"""The output layer and the loss by chunks of targets: what they hold does not grow with tokens times vocabulary.

Logits, their gradients and both in float32 are 12 to 16 bytes for each target and word: of 2,048 targets and 128,256
words more than 3 GB. Here gradients are made chunk by chunk on the way forward, as by Liger's fused loss (Hsu et al.
2024), through the model's own output layer and what its family does to logits behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from massive_sft.training.packing import NO_TARGET

Tail = Callable[[torch.Tensor], torch.Tensor]
"""What a family does to its logits behind the output layer."""


def tails(model: Any) -> Iterator[Tail]:
    """Yield what families do behind their output layers, as far as this model's configuration names it."""
    config = model.config.get_text_config()
    cap, divisor, factor = (
        getattr(config, name, None) for name in ("final_logit_softcapping", "logits_scaling", "logit_scale")
    )
    yield lambda logits: logits
    if cap:
        yield lambda logits: torch.tanh(logits / cap) * cap
    if divisor:
        yield lambda logits: logits / divisor
    if factor:
        yield lambda logits: logits * factor


@torch.no_grad()
def find_tail(model: Any, hidden: torch.Tensor, logits: torch.Tensor) -> Tail | None:
    """Return what turns the output layer's logits into the model's own, to the bit; None where nothing known does.

    Args:
        hidden: what the output layer got in a forward pass of the model, shape (1, positions, hidden).
        logits: what the model gave of it, shape (1, positions, vocabulary).
    """
    own = model.get_output_embeddings()(hidden)
    return next((tail for tail in tails(model) if torch.equal(tail(own), logits)), None)


def chunked_loss(head: nn.Module, tail: Tail, hidden: torch.Tensor, targets: torch.Tensor, chunk: int) -> torch.Tensor:
    """Return the cross-entropy in nats, summed over the targets: a float32 scalar.

    Args:
        head: the output layer, whose trained parameters get gradients.
        tail: what comes behind it.
        hidden: of the positions in front of the targets, shape (1, targets, hidden).
        targets: int64, shape (targets,); ``NO_TARGET`` where there is none.
        chunk: targets at a time.
    """
    trained = [weight for weight in head.parameters() if weight.requires_grad]
    return _ChunkedLoss.apply(lambda part: tail(head(part)), chunk, targets, hidden, *trained)


class _ChunkedLoss(torch.autograd.Function):
    """Holds the gradients of the sum, which a backward pass has but to multiply."""

    @staticmethod
    def forward(
        ctx: Any, to_logits: Tail, chunk: int, targets: torch.Tensor, hidden: torch.Tensor, *trained: torch.Tensor
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in trained]
        for start in range(0, len(targets), chunk):
            end = start + chunk
            loss, (of_part, *of_weights) = _gradients(to_logits, hidden[:, start:end], targets[start:end], trained)
            total += loss
            gradient[:, start:end] = of_part
            for own, more in zip(sums, of_weights, strict=True):
                own += more
        # A weight's gradient is of its own type, as any is; within the sum it was float32.
        ctx.gradients = [gradient, *(own.to(weight.dtype) for own, weight in zip(sums, trained, strict=True))]
        return total

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = ctx.gradients
        del ctx.gradients  # so that nobody but the caller holds them
        return None, None, None, *(gradient.mul_(factor) for gradient in gradients)


def _gradients(
    to_logits: Tail, hidden: torch.Tensor, targets: torch.Tensor, trained: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return the summed loss of one chunk, and its gradients to the hidden states and the trained weights."""
    with torch.enable_grad():
        part = hidden.detach().requires_grad_()
        logits = to_logits(part)[0].float()
        loss = functional.cross_entropy(logits, targets, reduction="sum", ignore_index=NO_TARGET)
        del logits
        return loss.detach(), torch.autograd.grad(loss, (part, *trained))
