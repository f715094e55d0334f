"""The loss: summed cross-entropy over trainable tokens, with the output layer only where there is loss."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional

from massive_sft.core.errors import Unsupported
from massive_sft.models.attention import attention_of
from massive_sft.models.chosen_positions import ChosenPositions
from massive_sft.models.configuration import positions_of
from massive_sft.training.chunked_loss import Tail, chunked_loss, find_tail
from massive_sft.training.packing import NO_TARGET, MicroBatch
from massive_sft.training.shares import full_shape

_COMPARED = 4  # positions whose logits are computed by the model itself, in each pass, and compared in the first one


class SummedLoss(nn.Module):
    """A causal language model whose forward returns the summed loss of a micro-batch.

    Its output layer leaves out the positions that predict no trainable token. Where its logits would be many it goes
    through them by chunks (``chunked_loss``), if the model's own forward pass agrees to the bit on some of them.

    Args:
        model: which gets a hook; ``release`` takes it away.
        chunk: targets of a chunk; None to compute all at once, as is also done where that takes no more memory.

    Attributes:
        head: how the output layer was computed so far: ``whole``, or ``chunks of N targets``.
    """

    def __init__(self, model: Any, chunk: int | None = None):
        super().__init__()
        self.model = model
        self.head = "whole"
        self._chosen = ChosenPositions(model)
        self._chunk = chunk
        self._most_whole = 0 if chunk is None else chunk + _targets_of_gradient(model.get_output_embeddings())
        self._positions = positions_of(model.config)
        self._tail: Tail | None = None
        self._takes_borders = _takes_borders(model)

    def release(self) -> None:
        """Give the model back as it was."""
        self._chosen.release()

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        """Return the loss in nats, summed over the targets: a float32 scalar.

        Raises:
            Unsupported: when the model's output layer does not work position by position.
        """
        return self.of_parts(batch, 1)[0]

    def of_parts(self, batch: MicroBatch, parts: int) -> list[torch.Tensor]:
        """Return the loss of each of ``parts`` equal parts of the targets, one behind the other; as ``forward``."""
        batch = batch.within(self._positions)
        if self._chunk is not None and len(batch.keep) > self._most_whole:
            losses = self._by_chunks(batch, self._chunk, parts)
            if losses is not None:
                return losses
            self._chunk = None  # for good: what is behind this family's output layer is not known
        with self._chosen.at(batch.keep):
            logits = self._logits(batch)
        if logits.shape[:2] != (1, len(batch.keep)):
            raise Unsupported(
                f"{type(self.model).__name__}: its logits cannot be computed at some positions only, "
                "so it cannot be trained here"
            )
        return [
            functional.cross_entropy(some.float(), targets, reduction="sum", ignore_index=NO_TARGET)
            for some, targets in zip(logits[0].chunk(parts), batch.targets.chunk(parts), strict=True)
        ]

    def _logits(self, batch: MicroBatch) -> torch.Tensor:
        packed: dict[str, Any] = {}
        if batch.position_ids is not None:
            packed["position_ids"] = batch.position_ids
            if self._takes_borders:
                packed |= {"cu_seq_lens_q": batch.borders, "cu_seq_lens_k": batch.borders}
                packed |= {"max_length_q": batch.longest, "max_length_k": batch.longest}
        logits: torch.Tensor = self.model(input_ids=batch.input_ids, use_cache=False, **packed).logits
        return logits

    def _by_chunks(self, batch: MicroBatch, chunk: int, parts: int) -> list[torch.Tensor] | None:
        """Return the losses, their output layer by chunks; None where the first chunk proves that it cannot be."""
        with self._chosen.at(batch.keep, computed=_COMPARED):
            logits = self._logits(batch)
            hidden = self._chosen.hidden
        if self._tail is None and hidden is not None and logits.shape[:2] == (1, _COMPARED):
            self._tail = find_tail(self.model, hidden[:, :_COMPARED], logits)
        if self._tail is None or hidden is None:
            return None
        self.head = f"chunks of {chunk} targets"
        head, tail = self.model.get_output_embeddings(), self._tail
        return [
            chunked_loss(head, tail, some, targets, chunk)
            for some, targets in zip(hidden.chunk(parts, dim=1), batch.targets.chunk(parts), strict=True)
        ]


def _takes_borders(model: Any) -> bool:
    """Return whether a model's FlashAttention gets the samples' borders, which each layer would look for otherwise.

    Looking for them in the position ids makes the host wait for the GPU. Others make one mask for all layers.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    kinds = {parameter.kind for parameter in inspect.signature(base.forward).parameters.values()}
    return attention_of(base) == "flash_attention_2" and inspect.Parameter.VAR_KEYWORD in kinds


def _targets_of_gradient(head: Any) -> int:
    """Return how many targets' logits take the memory that the gradient of an output layer does.

    That is 4 bytes and its own 2 (or 4) for each trained weight; logits are 12 (or 16) for each word.
    """
    trained = sum(full_shape(weight).numel() for weight in head.parameters() if weight.requires_grad)
    return trained // (2 * full_shape(head.weight)[0])


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
