"""The tree engine: requests that begin alike share what they share, in one row, without a KV cache."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from massive_sft.core.errors import Unsupported
from massive_sft.evaluation.logits import dense_budget
from massive_sft.evaluation.requests import Generation, Request
from massive_sft.evaluation.responses import LikelihoodResponse, Response
from massive_sft.evaluation.scorer import PlainScorer, Span, summed
from massive_sft.evaluation.token_tree import plan_rows, tree_row
from massive_sft.models.chosen_positions import ChosenPositions
from massive_sft.models.tree_attention import NAME, attending
from massive_sft.models.tree_support import as_tree, refusal

log = logging.getLogger(__name__)
CPU_ROW_TOKENS = 4096
GPU_ROW_TOKENS = 32768
PROOF_REQUESTS = 8
# Of a log-probability, against the plain engine: a fixed part and one for each token. Families that are wrong were off
# by 0.2 nats at least; bf16 rounds logits to 0.06.
_TOLERANCE = {torch.float32: (1e-4, 1e-5)}
_ROUNDED = (0.1, 0.1)


class TreeScorer(PlainScorer):
    """Scores likelihoods over a trie of their tokens; generates as the plain engine does.

    A model that a tree cannot be exact for is scored plainly: one refused by its configuration, and one whose first
    requests have other scores than the plain engine gives them.

    Args:
        as in ``PlainScorer``.

    Attributes:
        fallback: why the plain engine answers; None while the tree does.
    """

    engine = "trie"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_length: int | None = None,
        token_budget: int | None = None,
        ends: Collection[int] | None = None,
    ):
        super().__init__(model, tokenizer, max_length, token_budget, ends)
        self._row_tokens = token_budget or (CPU_ROW_TOKENS if model.device.type == "cpu" else GPU_ROW_TOKENS)
        self._proven = False
        self.fallback = refusal(model.config)
        if self.fallback is not None:
            log.warning("scored by the plain engine: %s", self.fallback)

    @property
    def attention(self) -> str:
        """As ``PlainScorer.attention``, with the reason where it is not the tree's."""
        return NAME if self.fallback is None else f"{super().attention}, for {self.fallback}"

    def score(self, requests: Sequence[Request]) -> tuple[list[Response], dict[str, int]]:
        """See ``Scorer.score``; counts ``plain_requests`` as well, which the tree did not answer."""
        likelihoods = [request for request in requests if not isinstance(request, Generation)]
        if likelihoods and not self._proven and self.fallback is None:
            self.fallback = self._disproof(likelihoods[:PROOF_REQUESTS])
            self._proven = True
            if self.fallback is not None:
                log.warning("scored by the plain engine: %s", self.fallback)
        responses, happened = super().score(requests)
        if likelihoods and self.fallback is not None:
            happened = {**happened, "plain_requests": len(likelihoods)}
        return responses, happened

    def _disproof(self, requests: Sequence[Request]) -> str | None:
        """Return how the tree's scores differ from the plain engine's; None where they agree."""
        failure = None
        try:
            found, _ = super().score(requests)
        except (Unsupported, RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
            failure = f"the tree fails: {error}"
            found = []
        self.fallback = "not proven"
        expected, _ = super().score(requests)  # raises what is wrong with the requests
        self.fallback = None
        if not found:
            return failure
        fixed, each = _TOLERANCE.get(self.model.dtype, _ROUNDED)
        for one, other in zip(found, expected, strict=True):
            assert isinstance(one, LikelihoodResponse) and isinstance(other, LikelihoodResponse)
            both_nan = math.isnan(one.logprob) and math.isnan(other.logprob)
            if not both_nan and not abs(one.logprob - other.logprob) <= fixed + each * other.tokens:
                return f"the tree gives {one.logprob:.6g} where the plain engine gives {other.logprob:.6g}"
        return None

    def plan(self, sequences: list[tuple[int, ...]], budget: int) -> list[list[int]]:
        """See ``PlainScorer.plan``: rows by the tokens of their trees."""
        if self.fallback is not None:
            return super().plan(sequences, budget)
        return plan_rows(sequences, dense_budget(self.model, self._row_tokens))

    def answer(self, rows: list[list[Span]]) -> list[list[tuple[float, bool]]]:
        """See ``PlainScorer.answer``."""
        if self.fallback is not None:
            return super().answer(rows)
        row, paths = tree_row([spans[0].tokens for spans in rows])
        places: dict[int, int] = {}  # of a token, among the chosen
        chosen: list[int] = []
        targets: list[int] = []
        for spans, path in zip(rows, paths, strict=True):
            for span in spans:
                for position in path[-len(span.continuation) :]:
                    chosen.append(places.setdefault(position, len(places)))
                targets += span.continuation
        logits = _tree_logits(self.model, row.to(self.model.device), list(places))
        wanted = torch.tensor([chosen, targets], device=logits.device)
        return summed(rows, logits, wanted)


@torch.inference_mode()
def _tree_logits(model: Any, row: Any, positions: Sequence[int]) -> torch.Tensor:
    """Return logits of the tree's tokens at ``positions``, shape (positions, vocabulary).

    Raises:
        Unsupported: not every layer asked for the tree's attention.
    """
    places = torch.tensor(positions, device=row.tokens.device)
    chosen = ChosenPositions(model)
    try:
        with as_tree(model), attending(row), chosen.at(places), _exact_head(model):
            logits = model(input_ids=row.tokens[None], position_ids=row.depths[None], use_cache=False).logits
    finally:
        chosen.release()
    layers = model.config.get_text_config().num_hidden_layers
    if row.layers != layers:
        raise RuntimeError(f"{row.layers} of {layers} layers asked for the tree's attention")
    return logits[0] if chosen.gathered else logits[0, places]


@contextmanager
def _exact_head(model: Any) -> Iterator[None]:
    """Within it the output layer multiplies in fp32, where it is an ordinary one of less precision."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.dtype == torch.float32:
        yield
        return

    def multiply(module: nn.Linear, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> torch.Tensor:
        bias = None if module.bias is None else module.bias.float()
        return nn.functional.linear(inputs[0].float(), module.weight.float(), bias)

    hook = head.register_forward_hook(multiply)
    try:
        yield
    finally:
        hook.remove()
