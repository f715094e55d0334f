"""Step 2: a model answers requests. The plain engine here; ``tree`` has another behind the same interface."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from massive_sft.core.errors import Unsupported
from massive_sft.evaluation import batching, generate
from massive_sft.evaluation.encoding import RequestEncoder, max_length_of, truncated
from massive_sft.evaluation.end_tokens import ends_of
from massive_sft.evaluation.logits import chosen_logits, dense_budget, target_logprobs
from massive_sft.evaluation.requests import Generation, Likelihood, Request, Rolling
from massive_sft.evaluation.responses import GenerationResponse, LikelihoodResponse, Response
from massive_sft.models.attention import attention_of


class Scorer(Protocol):
    """Answers requests with one model.

    ``score`` is a pure function of the requests: equal lists give bit-equal responses on equal hardware, whatever ran
    before. An out-of-memory split is another layout: in fp32 it moves a log-probability by its rounding (1e-6 of it).
    """

    engine: str

    def score(self, requests: Sequence[Request]) -> tuple[list[Response], dict[str, int]]:
        """Return one response for each request, in order, and counts of what happened (``memory_splits``)."""
        ...


@dataclass(frozen=True)
class Span:
    """``continuation`` is predicted by the last positions of ``tokens``; ``owner`` is the request's place."""

    owner: int
    tokens: tuple[int, ...]
    continuation: tuple[int, ...]


_NOTHING = (0.0, True, 0)  # the score of no tokens: certain


class PlainScorer:
    """Batches of whole sequences, sorted by length; requests that feed equal tokens share one row.

    Args:
        model: a causal model in eval mode, on its device.
        tokenizer: its fast tokenizer.
        max_length: context length in tokens; the model's own when ``None``.
        token_budget: tokens of a batch with padding; by the kind of device when ``None``. A layout: it changes fp32
            log-probabilities in the sixth digit.
        ends: the tokens that end an answer; the model's own and the tokenizer's EOS when ``None``.
    """

    engine = "plain"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_length: int | None = None,
        token_budget: int | None = None,
        ends: Collection[int] | None = None,
    ):
        self.model = model
        self._tokenizer = tokenizer
        self._encoder = RequestEncoder(tokenizer, rows=int(model.get_input_embeddings().weight.shape[0]))
        self._max_length = max_length or max_length_of(model.config, tokenizer)
        self._token_budget = token_budget or batching.default_budget(model.device)
        self._ends = ends_of(model.generation_config, tokenizer) if ends is None else ends

    @property
    def attention(self) -> str:
        """The attention implementation that answers."""
        return attention_of(self.model)

    def score(self, requests: Sequence[Request]) -> tuple[list[Response], dict[str, int]]:
        """See ``Scorer.score``.

        Raises:
            Unsupported: a continuation or an answer is longer than the model's context, or a text has a token that the
                model has no embedding for.
        """
        responses: dict[int, Response] = {}
        likelihoods = [place for place, request in enumerate(requests) if not isinstance(request, Generation)]
        dense = any(isinstance(requests[i], Rolling) for i in likelihoods)
        budget = dense_budget(self.model, self._token_budget) if dense else self._token_budget
        spans = [span for i in likelihoods for span in self._spans(i, requests[i])]
        scored, splits = self._score_spans(spans, budget)
        for i in likelihoods:
            responses[i] = LikelihoodResponse(requests[i].index, *scored.get(i, _NOTHING))
        generations = [(i, request) for i, request in enumerate(requests) if isinstance(request, Generation)]
        answers, more_splits = generate.generate(
            self.model,
            self._tokenizer,
            self._encoder,
            [request for _, request in generations],
            self._ends,
            self._max_length,
            self._token_budget,
        )
        for (i, request), answer in zip(generations, answers, strict=True):
            responses[i] = GenerationResponse(request.index, answer.text, answer.tokens, answer.finish)
        return [responses[i] for i in range(len(requests))], {"memory_splits": splits + more_splits}

    def _spans(self, place: int, request: Request) -> list[Span]:
        if isinstance(request, Rolling):
            pairs = self._encoder.windows(request.text, self._max_length)
        elif isinstance(request, Likelihood):
            pairs = [self._encoder.pair(request.context, request.continuation, request.joined)]
        else:
            raise Unsupported(f"the plain engine does not answer requests of kind {request.kind}")
        for _, continuation in pairs:
            if len(continuation) > self._max_length:
                raise Unsupported(
                    f"a continuation of {len(continuation)} tokens is longer than the model's {self._max_length}"
                )
        return [
            Span(place, tuple(truncated(context, continuation, self._max_length)), tuple(continuation))
            for context, continuation in pairs
        ]

    def _score_spans(self, spans: list[Span], budget: int) -> tuple[dict[int, tuple[float, bool, int]], int]:
        """Return (log-probability, greedy, tokens) by request, summed over its spans, and the memory splits."""
        sharing: dict[tuple[int, ...], list[Span]] = defaultdict(list)
        for span in spans:
            if span.continuation:
                sharing[span.tokens].append(span)
        rows = list(sharing.values())
        totals: dict[int, tuple[float, bool, int]] = {}
        splits = 0
        for batch in self.plan([row[0].tokens for row in rows], budget):
            results, made = batching.run_split(batch, lambda part: self.answer([rows[i] for i in part]))
            splits += made
            for row, values in zip((rows[i] for i in batch), results, strict=True):
                for span, (logprob, greedy) in zip(row, values, strict=True):
                    total, all_greedy, count = totals.get(span.owner, _NOTHING)
                    totals[span.owner] = (total + logprob, all_greedy and greedy, count + len(span.continuation))
        return totals, splits

    def plan(self, sequences: list[tuple[int, ...]], budget: int) -> list[list[int]]:
        """Group sequences into batches of at most ``budget`` tokens: a pure function of both."""
        return batching.plan([len(sequence) for sequence in sequences], budget)

    def answer(self, rows: list[list[Span]]) -> list[list[tuple[float, bool]]]:
        """Return (log-probability, greedy) of every span of every row of a batch."""
        row_of: list[int] = []
        column_of: list[int] = []
        positions: list[int] = []  # of each target, among the chosen positions
        targets: list[int] = []
        for number, row in enumerate(rows):
            length = len(row[0].tokens)
            first = length - max(len(span.continuation) for span in row)
            row_of += [number] * (length - first)
            column_of += range(first, length)
            for span in row:
                positions += range(len(row_of) - len(span.continuation), len(row_of))
                targets += span.continuation
        device = self.model.device
        tokens = batching.right_padded([row[0].tokens for row in rows], device)
        chosen, wanted = (
            torch.tensor([row_of, column_of], device=device),
            torch.tensor([positions, targets], device=device),
        )
        return summed(rows, chosen_logits(self.model, tokens, chosen[0], chosen[1]), wanted)


def summed(rows: list[list[Span]], logits: torch.Tensor, wanted: torch.Tensor) -> list[list[tuple[float, bool]]]:
    """Return (log-probability, greedy) of every span of every row.

    Args:
        logits: shape (positions, vocabulary).
        wanted: int64, shape (2, targets): the place in ``logits`` and the token of each target, span after span.
    """
    logprobs, greedy = target_logprobs(logits, wanted[0], wanted[1])
    lengths = [len(span.continuation) for row in rows for span in row]
    values = iter(
        (float(logprob.sum()), bool(picks.all()))
        for logprob, picks in zip(logprobs.double().split(lengths), greedy.split(lengths), strict=True)
    )
    return [[next(values) for _ in row] for row in rows]
