"""Generation in padded batches with the model's own cache: for families whose cache is their own affair."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from massive_sft.core.errors import Unsupported
from massive_sft.evaluation import batching
from massive_sft.evaluation.sampled_tokens import picked
from massive_sft.evaluation.writing import Endings, Prompt, Writing
from massive_sft.models.configuration import length_borders

_CACHES = ("past_key_values", "cache_params")  # as transformers names them; Mamba's is the second
_NEVER = sys.maxsize  # tokens that no sequence has


def write(
    model: Any, prompts: Sequence[Prompt], endings: Endings, token_budget: int
) -> tuple[list[Writing], dict[str, int]]:
    """Write all answers; returns them in the order of the prompts, and counts of what happened (``memory_splits``).

    No batch computes sequences on both sides of a border (``length_borders``) at once: answers go up to it together,
    and those that pass it go on together, all of their keys computed anew. Where the model's class does not compute
    them anew in transformers' ``generate``, an answer that may pass the border is written alone. Where memory runs out,
    each half of a batch goes on.

    Args:
        token_budget: tokens of a batch, contexts and answers counted.

    Raises:
        Unsupported: the model gives no numbers or no cache, or a single sequence does not fit into memory.
    """
    cache = _cache_of(model)
    answers = [Writing(prompt, endings) for prompt in prompts]
    borders = length_borders(model.config)
    anew = all(_computes_anew(model, border) for border in borders)
    splits = 0
    for border in (*borders, _NEVER):
        for batch, end in _batches(answers, border, anew, token_budget):
            splits += batching.run_split(batch, partial(_go_on, model, cache, answers, end))[1]
    return answers, {"memory_splits": splits}


def _batches(answers: Sequence[Writing], border: int, anew: bool, token_budget: int) -> list[tuple[list[int], int]]:
    """Return the places of answers of equal limits that go on together up to a border, and where each batch ends."""
    batches: list[tuple[list[int], int]] = []
    by_limit: dict[int, list[int]] = defaultdict(list)
    for place, answer in enumerate(answers):
        if not _goes_on(answer, border):
            continue
        most = answer.prompt.most
        if anew or len(answer.prompt.tokens) + most - 1 <= border:  # the last token is not computed
            by_limit[most].append(place)
        else:
            batches.append(([place], _NEVER))
    for most, places in sorted(by_limit.items()):
        lengths = [min(len(answers[place].prompt.tokens) + most, border) for place in places]
        batches += [([places[i] for i in batch], border) for batch in batching.plan(lengths, token_budget)]
    return batches


def _goes_on(answer: Writing, end: int) -> bool:
    """Return whether an answer is to have another token that is computed from a sequence of up to ``end`` tokens."""
    made, prompt = len(answer.made), answer.prompt
    return answer.finish is None and made < prompt.most and len(prompt.tokens) + made <= end


@torch.inference_mode()
def _cache_of(model: Any) -> str:
    """Return by which name a model takes a cache and gives it back."""
    output = model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=True)
    for name in _CACHES:
        if hasattr(getattr(output, name, None), "reorder_cache"):
            return name
    raise Unsupported("its class gives no cache of transformers' back")


@torch.inference_mode()
def _computes_anew(model: Any, border: int) -> bool:
    """Return whether ``generate`` drops the cache of such a model where a sequence passes a border, as Phi-3's does."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    cache, longer = model(input_ids=token, use_cache=True).past_key_values, token.expand(1, border + 1)
    mask = torch.ones_like(longer)
    read = base.prepare_inputs_for_generation(
        longer, past_key_values=cache, attention_mask=mask, next_sequence_length=1
    )
    return read.get("past_key_values") is None


@torch.inference_mode()
def _go_on(model: Any, name: str, answers: Sequence[Writing], end: int, batch: list[int]) -> list[int]:
    """Go on with the answers of a batch until they are finished, or longer than ``end`` tokens with their prompts.

    Finished ones leave once they are half of the batch. Contexts are padded on the left, so that all rows end together.

    Args:
        name: of the model's cache.
    """
    device, of_all = model.device, name == "past_key_values"  # Mamba takes the mask of the tokens that it reads now
    alive, cache = [answers[place] for place in batch if _goes_on(answers[place], end)], None
    if not alive:  # of a batch that was too large for memory these had ended
        return batch
    contexts = [[*answer.prompt.tokens, *answer.made] for answer in alive]
    longest = max(map(len, contexts))
    tokens = torch.tensor([[0] * (longest - len(row)) + row for row in contexts], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in contexts], device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    while True:
        output = model(
            input_ids=tokens,
            attention_mask=mask if of_all else mask[:, -tokens.shape[1] :],
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{name: cache},
        )
        cache = output[name]
        draws = [answer.prompt.draw(len(answer.made)) if _goes_on(answer, end) else None for answer in alive]
        picks = picked(output.logits[:, -1], draws)
        for answer, token in zip(alive, picks.tolist(), strict=True):
            if _goes_on(answer, end):
                answer.take(token)
        running = [i for i, answer in enumerate(alive) if _goes_on(answer, end)]
        if not running:
            break
        # Those that are fed though they have ended stay on this side of the border.
        tokens, mask, positions = picks.unsqueeze(1), _grown(mask), (positions[:, -1:] + 1).clamp(max=end - 1)
        if len(running) <= len(alive) // 2:
            keep = torch.tensor(running, device=device)
            cache.reorder_cache(keep)  # of every kind of layer, which batch_select_indices is not
            tokens, mask, positions = tokens[keep], mask[keep], positions[keep]
            alive = [alive[i] for i in running]
    return batch


def _grown(mask: torch.Tensor) -> torch.Tensor:
    return torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
