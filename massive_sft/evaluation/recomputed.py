"""Generation by plain passes over whole sequences: right for every causal model, and slow, for nothing is kept."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from massive_sft.evaluation import batching
from massive_sft.evaluation.logits import chosen_logits
from massive_sft.evaluation.sampled_tokens import picked
from massive_sft.evaluation.writing import Endings, Prompt, Writing


def write(
    model: Any, prompts: Sequence[Prompt], endings: Endings, token_budget: int
) -> tuple[list[Writing], dict[str, int]]:
    """Write all answers; returns them in the order of the prompts, and counts of what happened (``memory_splits``).

    Each token is computed from all before it, as likelihoods are.

    Args:
        token_budget: tokens of a batch, contexts and answers counted.

    Raises:
        Unsupported: the model gives no numbers, or a single sequence does not fit into memory.
    """
    answers = [Writing(prompt, endings) for prompt in prompts]
    splits = 0
    for batch in batching.plan([len(prompt.tokens) + prompt.most for prompt in prompts], token_budget):
        splits += batching.run_split(batch, partial(_go_on, model, answers))[1]
    return answers, {"memory_splits": splits}


def _go_on(model: Any, answers: Sequence[Writing], batch: list[int]) -> list[int]:
    """Go on with the answers of a batch until all are finished."""
    members = [answers[place] for place in batch]
    while alive := [one for one in members if one.finish is None and len(one.made) < one.prompt.most]:
        rows = [[*answer.prompt.tokens, *answer.made] for answer in alive]
        last = torch.tensor([len(row) - 1 for row in rows], device=model.device)
        tokens = batching.right_padded(rows, model.device)
        logits = chosen_logits(model, tokens, torch.arange(len(rows), device=model.device), last)
        picks = picked(logits, [answer.prompt.draw(len(answer.made)) for answer in alive])
        for answer, token in zip(alive, picks.tolist(), strict=True):
            answer.take(token)
    return batch
