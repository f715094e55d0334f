"""Generation in padded batches with the model's own cache: for families whose cache is their own affair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from massive_sft.evaluation.sampled_tokens import picked
from massive_sft.evaluation.writing import Endings, Prompt, Writing


@torch.inference_mode()
def write(model: Any, prompts: Sequence[Prompt], endings: Endings) -> list[Writing]:
    """Write one batch of answers. Finished ones leave once they are half of the batch.

    Args:
        prompts: of equal ``most``; padded on the left here, so that all rows end together.

    Raises:
        Unsupported: the model gives no numbers.
    """
    device = model.device
    answers = [Writing(prompt, endings) for prompt in prompts]
    contexts = [prompt.tokens for prompt in prompts]
    longest = max(map(len, contexts))
    tokens = torch.tensor([[0] * (longest - len(row)) + row for row in contexts], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in contexts], device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    alive, cache = list(answers), None
    for _ in range(prompts[0].most):
        output = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        draws = [answer.prompt.draw(len(answer.made)) if answer.finish is None else None for answer in alive]
        picks = picked(output.logits[:, -1], draws)
        for answer, token in zip(alive, picks.tolist(), strict=True):
            if answer.finish is None:
                answer.take(token)
        running = [i for i, answer in enumerate(alive) if answer.finish is None]
        if not running:
            break
        tokens, mask, positions = picks.unsqueeze(1), _grown(mask), positions[:, -1:] + 1
        if len(running) <= len(alive) // 2:
            keep = torch.tensor(running, device=device)
            cache.batch_select_indices(keep)
            tokens, mask, positions = tokens[keep], mask[keep], positions[keep]
            alive = [alive[i] for i in running]
    return answers


def _grown(mask: torch.Tensor) -> torch.Tensor:
    return torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
