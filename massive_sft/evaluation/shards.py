"""How a list of requests is cut into shards: what a crash loses at most, and after which a score is told anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from massive_sft.evaluation.beginnings import common
from massive_sft.evaluation.requests import Generation, Likelihood, Request, Rolling

# Tokens of a shard, as predicted: some seconds of a 7B model on a large GPU, minutes of a small one on a CPU. Of
# generated answers four times as many, for the last ones of a shard leave most of a GPU's slots empty: 1,319 answers of
# up to 256 tokens take 2,816 steps in shards of 128, and 437 at once.
SHARD_TOKENS, ANSWER_TOKENS = 2**18, 2**20
SHARD_REQUESTS = 1024  # of a shard at most, but for the last document's, however short they are
BYTES_PER_TOKEN = 4.0  # of English under a common tokenizer; the same for all models, so that their shards are
ANSWERED = 0.5  # of the tokens that an answer may have: models end or ramble


def shards(requests: Sequence[Request], shared: bool) -> Iterator[Sequence[Request]]:
    """Yield slices of the list, in order, that never cut a document's requests apart.

    A shard closes at the first end of a document at which it costs ``SHARD_TOKENS``, of generated answers
    ``ANSWER_TOKENS``, or has ``SHARD_REQUESTS``. A pure function of the list, and what follows a shard does not depend
    on it: the same shards on every machine, however many workers take them and wherever one goes on.

    Args:
        shared: whether what requests begin with alike is computed once, as the tree engine does.
    """
    start, share, before = 0, 0.0, ""
    for end, request in enumerate(requests, 1):
        generates = isinstance(request, Generation)
        tokens = predicted_tokens(request, before if shared or generates else "")
        share += tokens / (ANSWER_TOKENS if generates else SHARD_TOKENS)
        before = _text(request)
        at_boundary = end == len(requests) or requests[end].doc != request.doc
        is_full = share >= 1.0 or end - start >= SHARD_REQUESTS or end == len(requests)
        if at_boundary and is_full:
            yield requests[start:end]
            start, share, before = end, 0.0, ""


def predicted_tokens(request: Request, before: str) -> float:
    """Return what a request costs, in tokens of a prompt: by the bytes of its text, for all tokenizers alike.

    Args:
        before: a text whose common beginning with the request's costs nothing.
    """
    text = _text(request)
    cost = len(text[common(before, text) :].encode()) / BYTES_PER_TOKEN
    if isinstance(request, Likelihood):
        cost += len(request.continuation.encode()) / BYTES_PER_TOKEN
    if isinstance(request, Generation):
        cost += ANSWERED * request.max_tokens
    return cost


def _text(request: Request) -> str:
    if isinstance(request, Rolling):
        return request.text
    return request.context if isinstance(request, (Likelihood, Generation)) else ""
