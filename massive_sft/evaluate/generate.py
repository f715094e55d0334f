"""Greedy generation in batches, with a key-value cache, that ends each answer at its own stop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from massive_sft.errors import Unsupported
from massive_sft.evaluate import batching
from massive_sft.evaluate.encoding import Encoder
from massive_sft.evaluate.requests import Generation

# A stop may begin inside a token and a character may span four of them.
_SLACK_TOKENS = 4


@dataclass(frozen=True)
class Answer:
    """A text before its first stop, the tokens that were made (the stop's included), and why it ended."""

    text: str
    tokens: int
    finish: str


def cut(text: str, until: Sequence[str]) -> str:
    """Return the text before the first of the stop strings."""
    return text[: min((text.find(stop) for stop in until if stop in text), default=len(text))]


def generate(
    model: Any,
    tokenizer: Any,
    encoder: Encoder,
    requests: Sequence[Generation],
    max_length: int,
    token_budget: int,
) -> tuple[list[Answer], int]:
    """Answer generation requests; returns the answers in order, and the memory splits made.

    A context too long for the model loses its beginning. The model's own generation settings play no part but for its
    end-of-sequence tokens. Batches hold requests of equal length limits, and count context and answer as tokens.

    Raises:
        Unsupported: an answer may be as long as the model's context, which leaves no room for a question.
    """
    by_limit: dict[int, list[int]] = defaultdict(list)
    contexts = []
    for place, request in enumerate(requests):
        room = max_length - request.max_tokens
        if room <= 0:
            raise Unsupported(
                f"an answer of up to {request.max_tokens} tokens leaves no room in the model's {max_length}"
            )
        by_limit[request.max_tokens].append(place)
        contexts.append((encoder.encode(request.context) or [encoder.prefix])[-room:])
    ends = _end_tokens(model, tokenizer)
    answers: dict[int, Answer] = {}
    splits = 0
    for limit, places in sorted(by_limit.items()):
        for batch in batching.plan([len(contexts[place]) + limit for place in places], token_budget):
            members = [places[i] for i in batch]
            results, made = batching.run_split(
                members,
                lambda part: _Batch(model, tokenizer, [requests[i] for i in part], ends).run(
                    [contexts[i] for i in part]
                ),
            )
            splits += made
            answers.update(zip(members, results, strict=True))
    return [answers[place] for place in range(len(requests))], splits


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    declared = getattr(model.generation_config, "eos_token_id", None)
    ends = set(declared) if isinstance(declared, (list, tuple)) else {declared}
    return frozenset({int(token) for token in (*ends, tokenizer.eos_token_id) if token is not None})


class _Batch:
    """One batch of answers in the making. Rows are requests; finished ones leave once they are half of the batch."""

    def __init__(self, model: Any, tokenizer: Any, requests: list[Generation], ends: frozenset[int]):
        self._model = model
        self._tokenizer = tokenizer
        self._requests = requests
        self._ends = ends
        self._made: list[list[int]] = [[] for _ in requests]
        self._finish: list[str | None] = [None] * len(requests)

    @torch.inference_mode()
    def run(self, contexts: list[list[int]]) -> list[Answer]:
        """Generate greedily. ``contexts`` are tokens, padded on the left here so that all rows end together."""
        device = self._model.device
        longest = max(map(len, contexts))
        tokens = torch.tensor([[0] * (longest - len(row)) + row for row in contexts], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in contexts], device=device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        alive = list(range(len(contexts)))
        cache = None
        for _ in range(self._requests[0].max_tokens):
            output = self._model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            picks = output.logits[:, -1].argmax(dim=-1)
            for row, token in zip(alive, picks.tolist(), strict=True):
                self._take(row, token)
            running = [i for i, row in enumerate(alive) if self._finish[row] is None]
            if not running:
                break
            tokens, mask, positions = picks.unsqueeze(1), _grown(mask), positions[:, -1:] + 1
            if len(running) <= len(alive) // 2:
                keep = torch.tensor(running, device=device)
                cache.batch_select_indices(keep)
                tokens, mask, positions = tokens[keep], mask[keep], positions[keep]
                alive = [alive[i] for i in running]
        return [self._answer(row) for row in range(len(contexts))]

    def _take(self, row: int, token: int) -> None:
        """Add a token to a row that is not finished, and see whether that finishes it."""
        if self._finish[row] is not None:
            return
        made = self._made[row]
        made.append(token)
        if token in self._ends:
            self._finish[row] = "eos"
            return
        until = self._requests[row].until
        window = max((len(stop.encode()) for stop in until), default=0) + _SLACK_TOKENS
        recent = self._decode(made[-window:])
        # The whole text decides: a tokenizer may decode the beginning of a window differently.
        if any(stop in recent for stop in until) and any(stop in self._decode(made) for stop in until):
            self._finish[row] = "stop"

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)

    def _answer(self, row: int) -> Answer:
        made = self._made[row]
        text = self._decode([token for token in made if token not in self._ends])
        return Answer(cut(text, self._requests[row].until), len(made), self._finish[row] or "length")


def _grown(mask: torch.Tensor) -> torch.Tensor:
    return torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
