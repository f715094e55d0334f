"""How a list of requests is cut into shards: what a crash loses at most, and after which a score is told anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from massive_sft.evaluation.beginnings import common
from massive_sft.evaluation.requests import Generation, Likelihood, Request, Rolling

# Tokens of a shard, as predicted: some seconds of a 7B model on a large GPU, minutes of a small one on a CPU.
SHARD_TOKENS = 2**18
SHARD_REQUESTS = 1024  # of a shard at most, but for the last document's, however short they are
# Of generated answers by how many are written at once, for the last ones of a shard leave most slots empty: 5,000
# answers of up to 1,024 tokens in 512 slots take 7,042 steps in shards of 1,024, and 4,332 at once.
ANSWERS_A_SLOT, ANSWER_TOKENS_A_SLOT = 16, 2**14
BYTES_PER_TOKEN = 4.0  # of English under a common tokenizer; the same for all models, so that their shards are
ANSWERED = 0.5  # of the tokens that an answer may have: models end or ramble


@dataclass(frozen=True)
class Cut:
    """What shards depend on beside the requests.

    Attributes:
        shared: whether what requests begin with alike is computed once, as the tree engine does.
        slots: answers that are written at once, by the kind of device.
    """

    shared: bool = False
    slots: int = 64


def shards(requests: Sequence[Request], cut: Cut) -> Iterator[Sequence[Request]]:
    """Yield slices of the list, in order, that never cut a document's requests apart.

    A shard closes at the first end of a document at which it costs ``SHARD_TOKENS`` or has ``SHARD_REQUESTS``; of
    generated answers by the slots, so that on a GPU all of a benchmark is planned at once. A pure function of list and
    cut, and what follows a shard does not depend on it: the same shards however many workers take them and wherever one
    goes on.
    """
    start, share, before = 0, 0.0, ""
    for end, request in enumerate(requests, 1):
        generates = isinstance(request, Generation)
        tokens = predicted_tokens(request, before if cut.shared or generates else "")
        share += tokens / (cut.slots * ANSWER_TOKENS_A_SLOT if generates else SHARD_TOKENS)
        most = cut.slots * ANSWERS_A_SLOT if generates else SHARD_REQUESTS
        before = _text(request)
        at_boundary = end == len(requests) or requests[end].doc != request.doc
        is_full = share >= 1.0 or end - start >= most or end == len(requests)
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
