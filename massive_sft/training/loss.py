"""The loss: summed cross-entropy over trainable tokens, with the output layer only where there is loss."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from massive_sft.core.errors import Unsupported
from massive_sft.models.chosen_positions import ChosenPositions
from massive_sft.training.packing import NO_TARGET, MicroBatch


class SummedLoss(nn.Module):
    """A causal language model whose forward returns the summed loss of a micro-batch.

    Its output layer leaves out the positions that predict no trainable token.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self._chosen = ChosenPositions(model)

    def release(self) -> None:
        """Give the model back as it was."""
        self._chosen.release()

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        """Return the loss in nats, summed over the targets: a float32 scalar.

        Raises:
            Unsupported: when the model's output layer does not work position by position.
        """
        positions = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
        with self._chosen.at(batch.keep):
            logits = self.model(input_ids=batch.input_ids, use_cache=False, **positions).logits
        if logits.shape[:2] != (1, len(batch.keep)):
            raise Unsupported(
                f"{type(self.model).__name__}: its logits cannot be computed at some positions only, "
                "so it cannot be trained here"
            )
        return functional.cross_entropy(logits[0].float(), batch.targets, reduction="sum", ignore_index=NO_TARGET)


@torch.no_grad()
def packs_cleanly(model: nn.Module, vocabulary: int) -> bool:
    """Return whether packed samples are invisible to each other: a trial on the loaded model.

    A sample's logits must not change by one bit when the sample packed before it changes, and must equal those of
    the sample alone up to rounding.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    length = 6
    device = next(model.parameters()).device
    ids = torch.arange(3 * length, device=device).mul(7).add(1).remainder(vocabulary)
    first, other, second = ids.split(length)
    positions = torch.arange(length, device=device).repeat(2)[None]

    def after(before: torch.Tensor) -> torch.Tensor:
        both = torch.cat([before, second])[None]
        return model(input_ids=both, position_ids=positions, use_cache=False).logits[0, length:].float()

    alone = model(input_ids=second[None], use_cache=False).logits[0].float()
    packed = after(first)
    tolerance = 1e-4 if next(model.parameters()).dtype == torch.float32 else 5e-2
    return torch.equal(packed, after(other)) and bool((packed - alone).norm() <= tolerance * alone.norm())
