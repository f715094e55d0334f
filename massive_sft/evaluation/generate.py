"""Greedy generation in batches, with a key-value cache, that ends each answer at its own stop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from massive_sft.core.errors import Unsupported
from massive_sft.evaluation import batching
from massive_sft.evaluation.encoding import RequestEncoder
from massive_sft.evaluation.requests import Generation

# A stop may begin inside a token and a character may span four of them.
_SLACK_TOKENS = 4


@dataclass(frozen=True)
class GeneratedText:
    """A text before its first stop, the tokens that were made (the stop's included), and why it ended."""

    text: str
    tokens: int
    finish: str


@dataclass(frozen=True)
class _Prompt:
    """One answer to make.

    Attributes:
        tokens: what the model reads.
        lead: what it writes before the answer.
        until: the texts that end the answer; a special token's among them.
        limit: tokens of the answer at most; those of the lead alone do not count.
    """

    tokens: list[int]
    lead: str
    until: tuple[str, ...]
    limit: int

    @property
    def most(self) -> int:
        """Tokens that may be made: a lead has at most a token a byte."""
        return self.limit + len(self.lead.encode())


def cut(text: str, until: Sequence[str]) -> str:
    """Return the text before the first of the stop strings."""
    return text[: min((text.find(stop) for stop in until if stop in text), default=len(text))]


def generate(
    model: Any,
    tokenizer: Any,
    encoder: RequestEncoder,
    requests: Sequence[Generation],
    ends: Collection[int],
    max_length: int,
    token_budget: int,
) -> tuple[list[GeneratedText], int]:
    """Answer generation requests; returns the answers in order, and the memory splits made.

    A context too long for the model loses its beginning. The model's own generation settings play no part.
    Batches hold requests of equal length limits, and count context and answer as tokens. As lm-eval's backend does,
    stops are looked for in the text with special tokens in it, the text of EOS is one more stop, and the answer is
    without special tokens.

    Args:
        ends: the tokens that end an answer.

    Raises:
        Unsupported: an answer may be as long as the model's context, which leaves no room for a question.
    """
    eos = tokenizer.decode([tokenizer.eos_token_id])
    prompts = [_prompt(encoder, request, eos, max_length) for request in requests]
    by_limit: dict[int, list[int]] = defaultdict(list)
    for place, prompt in enumerate(prompts):
        by_limit[prompt.most].append(place)
    answers: dict[int, GeneratedText] = {}
    splits = 0
    special = {index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    for most, places in sorted(by_limit.items()):
        for batch in batching.plan([len(prompts[place].tokens) + most for place in places], token_budget):
            members = [places[i] for i in batch]
            results, made = batching.run_split(
                members,
                lambda part: _Batch(model, tokenizer, [prompts[i] for i in part], frozenset(ends), special).run(),
            )
            splits += made
            answers.update(zip(members, results, strict=True))
    return [answers[place] for place in range(len(requests))], splits


def _prompt(encoder: RequestEncoder, request: Generation, eos: str, max_length: int) -> _Prompt:
    tokens, lead = encoder.prompt(request.context, request.lead)
    prompt = _Prompt(tokens, lead, (*request.until, eos), request.max_tokens)
    room = max_length - prompt.most
    if room <= 0:
        raise Unsupported(f"an answer of up to {prompt.most} tokens leaves no room in the model's {max_length}")
    return _Prompt(tokens[-room:], lead, prompt.until, prompt.limit)


class _Batch:
    """One batch of answers in the making. Rows are prompts; finished ones leave once they are half of the batch.

    Args:
        prompts: of equal ``most``.
        special: the texts of the tokenizer's special tokens.
    """

    def __init__(
        self, model: Any, tokenizer: Any, prompts: list[_Prompt], ends: frozenset[int], special: dict[int, str]
    ):
        self._model = model
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._ends = ends
        self._special = special
        self._made: list[list[int]] = [[] for _ in prompts]
        self._leading = [0] * len(prompts)  # how many of the made tokens hold the lead alone
        self._finish: list[str | None] = [None] * len(prompts)

    @torch.inference_mode()
    def run(self) -> list[GeneratedText]:
        """Generate greedily. Prompts are padded on the left here, so that all rows end together."""
        device = self._model.device
        contexts = [prompt.tokens for prompt in self._prompts]
        longest = max(map(len, contexts))
        tokens = torch.tensor([[0] * (longest - len(row)) + row for row in contexts], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in contexts], device=device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        alive = list(range(len(contexts)))
        cache = None
        for _ in range(self._prompts[0].most):
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
        made, prompt = self._made[row], self._prompts[row]
        made.append(token)
        if token in self._ends:
            self._finish[row] = "eos"
            return
        if self._leading[row] == len(made) - 1 and len(made) <= prompt.most - prompt.limit:
            self._leading[row] += prompt.lead.startswith(self._tokenizer.decode(made))
        window = max((len(stop.encode()) for stop in prompt.until), default=0) + _SLACK_TOKENS
        recent = self._tokenizer.decode(made[-window:])
        # The whole text decides: a tokenizer may decode the beginning of a window differently.
        if any(stop in recent for stop in prompt.until):
            text = _after(prompt.lead, self._tokenizer.decode(made))
            self._finish[row] = "stop" if any(stop in text for stop in prompt.until) else None
        if self._finish[row] is None and len(made) - self._leading[row] == prompt.limit:
            self._finish[row] = "length"

    def _answer(self, row: int) -> GeneratedText:
        made, prompt = self._made[row], self._prompts[row]
        plain = self._tokenizer.decode([token for token in made if token not in self._ends], skip_special_tokens=True)
        text = cut(_after(prompt.lead, plain), prompt.until)
        # A stop may be a special token, or hold one: a chat template may close its answers with a space and </s>.
        earlier = cut(_after(prompt.lead, self._tokenizer.decode(made)), prompt.until)
        for token in self._special.keys() & made:
            earlier = earlier.replace(self._special[token], "")
        return GeneratedText(earlier if text.startswith(earlier) else text, len(made), self._finish[row] or "length")


def _after(lead: str, text: str) -> str:
    """Return what a text holds after a lead, or after the beginning of one that is white space."""
    if lead.startswith(text):
        return ""
    lengths = range(len(lead), -1, -1) if lead.isspace() else (len(lead), 0)
    return text[next(length for length in lengths if text.startswith(lead[:length])) :]


def _grown(mask: torch.Tensor) -> torch.Tensor:
    return torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
