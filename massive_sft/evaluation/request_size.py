"""How much a model reads and writes to answer requests."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Sequence

from massive_sft.evaluation.requests import Generation, Likelihood, Request, Rolling


def size_of(requests: list[Request]) -> dict[str, int]:
    """Return how much a model reads and writes, for estimates; choices of one token share a row with their question."""
    likelihoods = [item for item in requests if isinstance(item, Likelihood)]
    rows = {(item.context, item.continuation if len(item.continuation.strip()) > 1 else "") for item in likelihoods}
    answers = [item for item in requests if isinstance(item, Generation)]
    rolling = sum(len(item.text.encode()) for item in requests if isinstance(item, Rolling))
    prompts = [item.context.encode() for item in answers]
    return {
        "bytes": rolling + sum(len((context + continuation).encode()) for context, continuation in rows),
        "tree_bytes": rolling + _tree_bytes([(item.context + item.continuation).encode() for item in likelihoods]),
        "answers": len(answers),
        "prompt_bytes": sum(map(len, prompts)),
        "prompt_tree_bytes": _tree_bytes(prompts),
        "answer_tokens": sum(item.max_tokens for item in answers),
        "longest_answer": max((item.max_tokens for item in answers), default=0),
    }


def _tree_bytes(texts: Sequence[bytes]) -> int:
    """Return the bytes of texts without those that each begins with like the one before it, as in a token tree."""
    return sum(len(text) - _shared_bytes(before, text) for before, text in itertools.pairwise([b"", *texts]))


def _shared_bytes(one: bytes, other: bytes) -> int:
    """Return how many bytes two texts begin with alike."""
    sizes = range(1, min(len(one), len(other)) + 1)
    return bisect_left(sizes, True, key=lambda size: one[:size] != other[:size])
