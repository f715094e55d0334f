"""How sampled answers are drawn: with random numbers that are a function of the request alone."""

from __future__ import annotations

from dataclasses import dataclass

from massive_sft.core.fingerprint import fingerprint


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one answer are drawn.

    Attributes:
        temperature: the logits are divided by it; > 0.
        seed: of the answer's random numbers, below 2**63.
        top_k: only so many of the likeliest tokens are drawn from; 0: all.
        top_p: only the fewest of the likeliest tokens that have this probability together; 1.0: all.
    """

    temperature: float
    seed: int
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Draw:
    """The place of one token among those of a sampled answer, from 0."""

    sampling: Sampling
    place: int


def seed_of(seed: int, doc_hash: str, choice: int, number: int) -> int:
    """Return the seed of one of the answers to a document.

    Args:
        seed: of the task.
        number: of the answer, from 0.
    """
    return int(fingerprint([seed, doc_hash, choice, number]), 16) % 2**63
