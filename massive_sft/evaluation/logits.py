"""Log-probabilities at chosen positions only."""

from __future__ import annotations

from typing import Any

import torch

from massive_sft.core.errors import Unsupported
from massive_sft.models.chosen_positions import ChosenPositions

# Positions whose logits are normalised, in fp32, at the same time; on a CPU so few that they stay in its cache, which
# takes half the time.
GPU_POSITIONS_AT_ONCE, CPU_POSITIONS_AT_ONCE = 256, 16
LOGITS_AT_ONCE = 2**29  # logits of a batch where every position is needed: 1 GiB in bf16

NO_NUMBERS = "the model gives no numbers (NaN): its weights hold some, or its dtype is too small for it"


def dense_budget(model: Any, token_budget: int) -> int:
    """Return the tokens of a batch where every position's logits are needed: fewer for a large vocabulary."""
    return min(token_budget, LOGITS_AT_ONCE // int(model.get_output_embeddings().weight.shape[0]))


@torch.inference_mode()
def chosen_logits(model: Any, tokens: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Run a causal model and return its logits at the positions (rows[i], columns[i]).

    Right padding needs no mask: no position sees a later one.

    Args:
        tokens: int64, shape (batch, length), padded on the right.
        rows, columns: int64, shape (positions,).

    Returns:
        The model's dtype, shape (positions, vocabulary).
    """
    chosen = ChosenPositions(model)
    try:
        with chosen.at(rows * tokens.shape[1] + columns):
            logits = model(input_ids=tokens, use_cache=False).logits
    finally:
        chosen.release()
    return logits[0] if chosen.gathered else logits[rows, columns]


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """Return the likeliest token of each row of logits, shape (..., vocabulary).

    Raises:
        Unsupported: one has a NaN.
    """
    largest, tokens = logits.max(dim=-1)
    if bool(largest.isnan().any()):
        raise Unsupported(NO_NUMBERS)
    return tokens


@torch.inference_mode()
def target_logprobs(
    logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the fp32 log-probability of each target, and whether it is the most likely token of its row, on the CPU.

    Args:
        logits: any dtype, shape (positions, vocabulary); normalised in fp32.
        rows: int64, shape (targets,): the position of each target; one position may have several.
        targets: int64, same shape.
    """
    parts = logits.split(GPU_POSITIONS_AT_ONCE if logits.is_cuda else CPU_POSITIONS_AT_ONCE)
    found = [(part.float().logsumexp(dim=-1), part.argmax(dim=-1)) for part in parts]
    norms, likeliest = (torch.cat(column) for column in zip(*found, strict=True))
    logprobs = logits[rows, targets].float() - norms[rows]
    return logprobs.cpu(), (likeliest[rows] == targets).cpu()
