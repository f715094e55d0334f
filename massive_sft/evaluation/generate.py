"""Answers to generation requests, by the engine that a model's family allows."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

import torch

from massive_sft.core.errors import Unsupported
from massive_sft.evaluation import padded, recomputed, slots
from massive_sft.evaluation.encoding import RequestEncoder
from massive_sft.evaluation.requests import Generation
from massive_sft.evaluation.responses import CONTEXTS_CUT
from massive_sft.evaluation.sampled_tokens import perturbed
from massive_sft.evaluation.sampling import Draw
from massive_sft.evaluation.writing import Endings, GeneratedText, Prompt, Writing
from massive_sft.models.tree_support import depends_on_length, refusal

log = logging.getLogger(__name__)
# On a CPU as many answers as make its matrix products efficient, in memory that several scorers can have.
CPU_SLOTS, CPU_CACHE_BYTES = 64, 2**31
GPU_SLOTS = 512
GPU_CACHE_SHARE = 0.6  # of a GPU's memory without the weights; activations have the rest
PROVEN_ROWS = 2
# How an engine fails with a family that it does not fit.
_FAILURES = (Unsupported, RuntimeError, TypeError, ValueError, AttributeError, IndexError)
TRIED_ROWS = 3  # whose guesses show whether blocks of tokens round as single ones
# How far below the largest logit that of a written token may be in a plain pass, absolute and relative to the largest:
# rounding between two layouts. Engines that are wrong miss by several.
_EXACT = (1e-3, 1e-4)
_ROUNDED = (0.5, 0.05)


class Generator:
    """Writes answers, greedily where a request does not sample. The model's own generation settings play no part.

    As lm-eval's backend does, stops are looked for in the text with special tokens in it, the text of EOS is one more
    stop, and the answer is without special tokens. A context too long for the model loses its beginning.

    Answers are written in slots of one cache (``slots``), in padded batches with the model's own cache where its
    family does not compute that way (``padded``), and by plain passes where it does not compute that way either
    (``recomputed``): one refused by its configuration, one that fails, and one whose answers a plain forward pass does
    not confirm. The first answers are looked at, and again longer ones.

    Args:
        ends: the tokens that end an answer.
        token_budget: tokens of prompts that are computed at once; of padded batches answers are counted too.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        encoder: RequestEncoder,
        ends: Collection[int],
        max_length: int,
        token_budget: int,
    ):
        self._model, self._tokenizer, self._encoder = model, tokenizer, encoder
        self._max_length, self._token_budget = max_length, token_budget
        self._endings = Endings(tokenizer, ends)
        self._proven_tokens = 0  # of the longest sequence that a plain pass confirmed
        self._disproof: str | None = None
        self._padded_disproof: str | None = None
        self._refused = refusal(model.config)
        self._told: set[str] = set()
        self._rounds_alike: bool | None = True if model.dtype == torch.float32 else None  # None: not tried yet

    @property
    def fallback(self) -> str | None:
        """Why padded batches answer; None while slots do."""
        return self._refused or self._disproof

    @property
    def uses_drafts(self) -> bool:
        """Whether drafts are of any use: slots write, and a block of tokens is not known to round otherwise than one
        token after another."""
        return self.fallback is None and self._rounds_alike is not False

    def generate(
        self, requests: Sequence[Generation], drafts: Sequence[str] = ()
    ) -> tuple[list[GeneratedText], dict[str, int]]:
        """Answer requests; returns the answers in order, and counts of what happened.

        Args:
            drafts: a text for each request that its answer may resemble, or an empty one; none: none of them. The
                answers do not depend on them. Where weights have less than fp32, of two tokens that are nearly as
                likely either may win by rounding; so drafts are used where a block of tokens gives the logits of one
                token after another to the bit. That is tried on the longest of the first.

        Raises:
            Unsupported: an answer may be as long as the model's context, which leaves no room for a question; the model
            gives no numbers.
        """
        if not requests:
            return [], {"memory_splits": 0}
        eos = self._tokenizer.decode([self._tokenizer.eos_token_id])
        prompts = [prompt_of(request, self._encoder, eos, self._max_length) for request in requests]
        written = None
        if self.fallback is None:
            written, happened = self._in_slots(prompts, self._guesses(requests, drafts))
        if written is None:
            written, happened = self._without_slots(prompts)
        cut = sum(prompt.cut for prompt in prompts)
        return [answer.answer() for answer in written], happened | ({CONTEXTS_CUT: cut} if cut else {})

    def _guesses(self, requests: Sequence[Generation], drafts: Sequence[str]) -> list[list[int]]:
        if not drafts or not self.uses_drafts:
            return [[] for _ in requests]
        return [
            self._encoder.continuation(request.context, request.lead + draft) if draft else []
            for request, draft in zip(requests, drafts, strict=True)
        ]

    def _in_slots(
        self, prompts: Sequence[Prompt], guesses: Sequence[Sequence[int]]
    ) -> tuple[list[Writing] | None, dict[str, int]]:
        """Return the answers, confirmed; or None, once it is known why slots cannot be used."""
        try:
            if not self._may_guess(prompts, guesses):
                guesses = [[] for _ in prompts]
            written, counts = slots.write(self._model, prompts, guesses, self._endings, self._room())
        except _FAILURES as error:
            self._disproof = f"its family does not compute by slots: {error}"
            return None, {}
        self._disproof = self._unconfirmed(prompts, written)
        return (written if self._disproof is None else None), vars(counts)

    def _without_slots(self, prompts: Sequence[Prompt]) -> tuple[list[Writing], dict[str, int]]:
        asked = self._model, prompts, self._endings, self._token_budget
        if self._padded_disproof is None:
            self._tell("in padded batches", self.fallback)
            try:
                written, happened = padded.write(*asked)
            except _FAILURES as error:
                self._padded_disproof = f"its family does not compute padded batches: {error}"
            else:
                # Where lengths change positions, a pass over a whole answer is not the one that wrote its beginning.
                if not depends_on_length(self._model.config):
                    self._padded_disproof = self._unconfirmed(prompts, written)
                if self._padded_disproof is None:
                    return written, happened
        self._tell("by plain passes over all of their tokens, which is slow", self._padded_disproof)
        return recomputed.write(*asked)

    def _tell(self, how: str, why: str | None) -> None:
        if how not in self._told:
            log.warning("answers are written %s: %s", how, why)
            self._told.add(how)

    def _may_guess(self, prompts: Sequence[Prompt], guesses: Sequence[Sequence[int]]) -> bool:
        """Return whether guesses change no answer; what is not known yet is tried."""
        places = sorted((i for i in range(len(prompts)) if len(guesses[i]) > 1), key=lambda i: -len(guesses[i]))
        if self._rounds_alike is None and places:
            tried = [(prompts[i].tokens, guesses[i]) for i in places[:TRIED_ROWS]]
            self._rounds_alike = slots.rounds_alike(self._model, *zip(*tried, strict=True))
            if not self._rounds_alike:
                log.info("no drafts are used: blocks of tokens round otherwise than one token after another")
        return bool(self._rounds_alike)

    def _room(self) -> slots.Room:
        if self._model.device.type != "cuda":
            return slots.Room(CPU_SLOTS, CPU_CACHE_BYTES, self._token_budget)
        memory = torch.cuda.get_device_properties(self._model.device).total_memory  # what is free may change
        free = memory - sum(weight.nbytes for weight in self._model.parameters())
        return slots.Room(GPU_SLOTS, max(0, int(GPU_CACHE_SHARE * free)), self._token_budget)

    def _unconfirmed(self, prompts: Sequence[Prompt], written: Sequence[Writing]) -> str | None:
        """Return where a plain forward pass would have written something else; None where it would not."""
        pairs = [(prompt, one.made) for prompt, one in zip(prompts, written, strict=True) if one.made]
        longest_first = sorted(pairs, key=lambda pair: -len(pair[0].tokens) - len(pair[1]))
        longest = len(longest_first[0][0].tokens) + len(longest_first[0][1]) if pairs else 0
        if longest <= self._proven_tokens:
            return None
        for prompt, made in longest_first[:: max(1, len(pairs) - 1)][:PROVEN_ROWS]:
            difference = _difference(self._model, prompt, made)
            if difference is not None:
                self._proven_tokens = 0  # of the engine that writes instead, nothing is known
                return difference
        self._proven_tokens = longest
        return None


def prompt_of(request: Generation, encoder: RequestEncoder, eos: str, max_length: int) -> Prompt:
    """Return what is read for a request; a context too long loses its beginning.

    Args:
        eos: the text of the tokenizer's EOS, which is one more stop.
        max_length: of the model's context, in tokens.

    Raises:
        Unsupported: an answer may be as long as the context, which leaves no room for a question.
    """
    tokens, lead = encoder.prompt(request.context, request.lead)
    prompt = Prompt(tokens, lead, (*request.until, eos), request.max_tokens)
    room = max_length - prompt.most
    if room <= 0:
        raise Unsupported(f"an answer of up to {prompt.most} tokens leaves no room in the model's {max_length}")
    cut = len(tokens) > room
    return Prompt(tokens[-room:], lead, prompt.until, prompt.limit, cut=cut, sampling=request.sampling)


@torch.inference_mode()
def _difference(model: Any, prompt: Prompt, made: Sequence[int]) -> str | None:
    """Return which token a plain forward pass would not have written; None where it would have written all.

    A sampled token is to have won against all that are likelier: whatever may be drawn, they may be.
    """
    tokens = torch.tensor([[*prompt.tokens, *made[:-1]]], device=model.device)
    logits = model(input_ids=tokens, use_cache=False, logits_to_keep=len(made)).logits[0, -len(made) :].float()
    written = torch.tensor(made, device=model.device)[:, None]
    absolute, relative = _EXACT if model.dtype == torch.float32 else _ROUNDED
    allowed, scores = absolute + relative * logits.max(dim=-1).values.abs(), logits
    if prompt.sampling is not None:
        allowed = allowed / prompt.sampling.temperature
        draws = [Draw(prompt.sampling, place) for place in range(len(made))]
        scores = perturbed(logits, draws).masked_fill(logits < logits.gather(1, written), -torch.inf)
    below = scores.max(dim=-1).values - scores.gather(1, written)[:, 0]
    wrong = ~(below <= allowed)
    if not wrong.any():
        return None
    place = int(wrong.nonzero()[0])
    return f"a plain pass finds token {place + 1} of an answer less likely than another, by {float(below[place]):.3g}"
