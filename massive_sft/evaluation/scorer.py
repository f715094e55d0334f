"""Step 2: a model answers requests. The plain engine here; ``tree`` has another behind the same interface."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from massive_sft.core.errors import Unsupported
from massive_sft.evaluation import batching, token_files
from massive_sft.evaluation.earlier_answers import EarlierAnswers
from massive_sft.evaluation.encoding import RequestEncoder, max_length_of, truncated, windows
from massive_sft.evaluation.end_tokens import ends_of
from massive_sft.evaluation.generate import Generator
from massive_sft.evaluation.logits import chosen_logits, dense_budget, target_logprobs
from massive_sft.evaluation.requests import Generation, Likelihood, Request, Rolling
from massive_sft.evaluation.responses import CONTEXTS_CUT, GenerationResponse, LikelihoodResponse, Response
from massive_sft.models.attention import attention_of
from massive_sft.models.configuration import length_borders


class Scorer(Protocol):
    """Answers requests with one model.

    ``score`` is a pure function of the requests: equal lists give bit-equal responses on equal hardware, whatever ran
    before. An out-of-memory split is another layout: in fp32 it moves a log-probability by its rounding (1e-6 of it).
    """

    engine: str

    def score(self, requests: Sequence[Request], tokens: Path | None = None) -> tuple[list[Response], dict[str, int]]:
        """Return one response for each request, in order, and counts of what happened (``memory_splits``).

        Args:
            tokens: the folder where the requests' tokens are kept; None: they are encoded and not kept.
        """
        ...


@dataclass(frozen=True)
class Span:
    """``continuation`` is predicted by the last positions of ``tokens``; ``owner`` is the request's place."""

    owner: int
    tokens: tuple[int, ...]
    continuation: tuple[int, ...]


Row = list[Span]
"""Spans of equal ``tokens``, computed once."""
Value = tuple[float, bool]
"""The log-probability of a span's continuation, and whether each of its tokens was the likeliest."""
_NOTHING = (0.0, True, 0)  # the score of no tokens: certain


def rows_of(spans: Sequence[Span]) -> list[Row]:
    """Return the spans that have a token to predict, those that feed equal tokens together."""
    sharing: dict[tuple[int, ...], Row] = defaultdict(list)
    for span in spans:
        if span.continuation:
            sharing[span.tokens].append(span)
    return list(sharing.values())


def in_groups(
    groups: Sequence[list[int]], rows: Sequence[Row], answer: Callable[[Sequence[Row]], list[list[Value]]]
) -> tuple[list[list[Value]], int]:
    """Return the value of every span of every row, and how often memory split a group.

    Args:
        groups: the places of rows that are computed at once; each row in one.
        answer: computes the rows of a group.
    """
    found: dict[int, list[Value]] = {}
    splits = 0
    for group in groups:
        values, made = batching.run_split(group, lambda part: answer([rows[i] for i in part]))
        splits += made
        found.update(zip(group, values, strict=True))
    return [found[i] for i in range(len(rows))], splits


def reads(row: Row) -> int:
    """Return at how many of a row's last positions something is predicted."""
    return max(len(span.continuation) for span in row)


@dataclass(frozen=True)
class Batches:
    """Whole sequences, longest first, padded on the right."""

    model: Any
    token_budget: int

    def values(self, rows: Sequence[Row]) -> tuple[list[list[Value]], int]:
        """Return the value of every span of every row, and the memory splits.

        Batches are a pure function of the rows. Logits at every position of a batch take their own share of memory.
        """
        dense = any(reads(row) == len(row[0].tokens) for row in rows)
        budget = dense_budget(self.model, self.token_budget) if dense else self.token_budget
        lengths = [len(row[0].tokens) for row in rows]
        return in_groups(batching.plan(lengths, budget, length_borders(self.model.config)), rows, self._answer)

    def _answer(self, rows: Sequence[Row]) -> list[list[Value]]:
        row_of: list[int] = []
        column_of: list[int] = []
        positions: list[int] = []  # of each target, among the chosen positions
        targets: list[int] = []
        for number, row in enumerate(rows):
            length = len(row[0].tokens)
            first = length - reads(row)
            row_of += [number] * (length - first)
            column_of += range(first, length)
            for span in row:
                positions += range(len(row_of) - len(span.continuation), len(row_of))
                targets += span.continuation
        device = self.model.device
        tokens = batching.right_padded([row[0].tokens for row in rows], device)
        chosen = torch.tensor([row_of, column_of], device=device)
        wanted = torch.tensor([positions, targets], device=device)
        return summed(rows, chosen_logits(self.model, tokens, chosen[0], chosen[1]), wanted)


class PlainScorer:
    """Batches of whole sequences, sorted by length; requests that feed equal tokens share one row.

    Args:
        model: a causal model in eval mode, on its device.
        tokenizer: its fast tokenizer.
        max_length: context length in tokens; the model's own when ``None``.
        token_budget: tokens that are computed at once, with padding; by the kind of device when ``None``. A layout: it
            changes fp32 log-probabilities in the sixth digit.
        ends: the tokens that end an answer; the model's own and the tokenizer's EOS when ``None``.
        earlier: where answers that these may resemble are looked up; None: nowhere.
    """

    engine = "plain"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_length: int | None = None,
        token_budget: int | None = None,
        ends: Collection[int] | None = None,
        earlier: EarlierAnswers | None = None,
    ):
        self.model = model
        self.token_budget = token_budget
        self._encoder = RequestEncoder(tokenizer, rows=int(model.get_input_embeddings().weight.shape[0]))
        self._max_length = max_length or max_length_of(model.config, tokenizer)
        self._batches = Batches(model, token_budget or batching.default_budget(model.device))
        ends = ends_of(model.generation_config, tokenizer) if ends is None else ends
        self._earlier = earlier or EarlierAnswers()
        self._generator = Generator(model, tokenizer, self._encoder, ends, self._max_length, self._batches.token_budget)

    @property
    def attention(self) -> str:
        """The attention implementation that answers."""
        return attention_of(self.model)

    def score(self, requests: Sequence[Request], tokens: Path | None = None) -> tuple[list[Response], dict[str, int]]:
        """See ``Scorer.score``.

        Raises:
            Unsupported: a continuation or an answer is longer than the model's context, or a text has a token that the
                model has no embedding for.
        """
        likelihoods = [i for i, request in enumerate(requests) if not isinstance(request, Generation)]
        generations = [(i, request) for i, request in enumerate(requests) if isinstance(request, Generation)]
        spans, cut = spans_of(requests, likelihoods, self._encoder, self._max_length, tokens)
        rows = rows_of(spans)
        values, happened = self.values(rows)
        scored = totals(rows, values)
        responses: dict[int, Response] = {
            i: LikelihoodResponse(requests[i].index, *scored.get(i, _NOTHING)) for i in likelihoods
        }
        drafts = self._earlier.texts(requests) if generations and self._generator.uses_drafts else []
        answers, written = self._generator.generate(
            [request for _, request in generations], [drafts[i] for i, _ in generations] if drafts else ()
        )
        for (i, request), answer in zip(generations, answers, strict=True):
            responses[i] = GenerationResponse(request.index, answer.text, answer.tokens, answer.finish)
        for name, count in [*written.items(), *([(CONTEXTS_CUT, cut)] if cut else [])]:
            happened[name] = happened.get(name, 0) + count
        return [responses[i] for i in range(len(requests))], happened

    def log_likelihoods(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """Return the log-probability of each text's tokens, in nats, and how many there are.

        The first token stands behind the one that begins a sequence, which is not counted as the text's, as it is in
        rolling requests where a tokenizer adds it by itself. Longer texts are read in windows.

        Raises:
            Unsupported: a text has a token that the model has no embedding for.
        """
        spans = [
            Span(place, tuple(truncated(context, continuation, self._max_length)), tuple(continuation))
            for place, text in enumerate(texts)
            for context, continuation in windows(
                self._encoder.pair("", text)[1], self._encoder.prefix, self._max_length
            )
        ]
        rows = rows_of(spans)
        values, _ = self.values(rows)
        found = totals(rows, values)
        scores = [found.get(place, _NOTHING) for place in range(len(texts))]
        return [(logprob, count) for logprob, _, count in scores]

    def values(self, rows: Sequence[Row]) -> tuple[list[list[Value]], dict[str, int]]:
        """Return the value of every span of every row, and counts of what happened (``memory_splits``)."""
        values, splits = self._batches.values(rows)
        return values, {"memory_splits": splits}


def spans_of(
    requests: Sequence[Request], places: Sequence[int], encoder: RequestEncoder, max_length: int, kept: Path | None
) -> tuple[list[Span], int]:
    """Return the spans of likelihood and rolling requests, and how many of the former lost their context's beginning.

    The owners of spans are their places among ``requests``.

    Args:
        places: of these requests.
        max_length: context length in tokens.
        kept: the folder where their tokens are kept; None: they are not.

    Raises:
        Unsupported: a continuation is longer than the context, or a text has a token that the model does not know.
    """
    asked = [request for i in places if isinstance(request := requests[i], (Likelihood, Rolling))]
    found, cut = [], 0
    for place, request, encoded in zip(places, asked, token_files.encode(asked, encoder, kept), strict=True):
        pairs = [encoded]
        if isinstance(request, Rolling):
            pairs = windows(encoded[1], encoder.prefix, max_length)
        for context, continuation in pairs:
            if len(continuation) > max_length:
                raise Unsupported(
                    f"a continuation of {len(continuation)} tokens is longer than the model's {max_length}"
                )
            fed = tuple(truncated(context, continuation, max_length))
            found.append(Span(place, fed, tuple(continuation)))
            cut += isinstance(request, Likelihood) and len(context) + len(continuation) > len(fed) + 1
    return found, cut


def totals(rows: Sequence[Row], values: Sequence[Sequence[Value]]) -> dict[int, tuple[float, bool, int]]:
    """Return (log-probability, greedy, tokens) by request, summed over its spans."""
    totals: dict[int, tuple[float, bool, int]] = {}
    for row, found in zip(rows, values, strict=True):
        for span, (logprob, greedy) in zip(row, found, strict=True):
            total, all_greedy, count = totals.get(span.owner, _NOTHING)
            totals[span.owner] = (total + logprob, all_greedy and greedy, count + len(span.continuation))
    return totals


def summed(rows: Sequence[Row], logits: torch.Tensor, wanted: torch.Tensor) -> list[list[Value]]:
    """Return the value of every span of every row.

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
