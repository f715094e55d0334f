"""Sampled tokens whose random numbers are a function of the request: the same for every model, batch and engine.

Sampling is an argmax over perturbed logits (Gumbel-max trick; Gumbel 1954, Maddison et al. 2014,
https://arxiv.org/abs/1411.0030): a token is drawn with the probability that the softmax gives it. So a sampled answer
is as reproducible as a greedy one, drafts serve both, and two models' answers to a question are drawn with common
random numbers, which makes their difference less noisy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from massive_sft.evaluation.logits import likeliest
from massive_sft.evaluation.sampling import Draw

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
LOGITS_AT_ONCE = 2**24  # whose noise is made together, in several times 128 MiB
_BITS = 40  # of a uniform number: finer than fp32 has them near 1, where none is needed, and fine near 0


def picked(logits: torch.Tensor, draws: Sequence[Draw | None]) -> torch.Tensor:
    """Return a token for each row of logits, drawn where there is a draw, else the likeliest; int64, shape (rows,).

    Args:
        logits: shape (rows, vocabulary).

    Raises:
        Unsupported: a row has a NaN.
    """
    tokens = likeliest(logits)
    drawn = [(row, draw) for row, draw in enumerate(draws) if draw is not None]
    at_once = _at_once(logits.shape[-1])
    for first in range(0, len(drawn), at_once):
        places, chosen = zip(*drawn[first : first + at_once], strict=True)
        rows = torch.tensor(places, device=logits.device)
        scaled = _scaled(logits[rows], chosen)
        scores = scaled + gumbel(chosen, logits.shape[-1], logits.device)
        tokens[rows] = scores.masked_fill_(~_allowed(scaled, chosen), -torch.inf).argmax(dim=-1)
    return tokens


def perturbed(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Return logits over the temperature, plus each draw's Gumbel noise: the largest is drawn. fp32.

    Args:
        logits: shape (draws, vocabulary).
    """
    size = logits.shape[-1]
    at_once = _at_once(size)
    parts = (draws[first : first + at_once] for first in range(0, len(draws), at_once))
    return _scaled(logits, draws) + torch.cat([gumbel(part, size, logits.device) for part in parts])


def gumbel(draws: Sequence[Draw], count: int, device: torch.device) -> torch.Tensor:
    """Return standard Gumbel noise for ``count`` tokens; fp32, (draws, count), alike on all devices but for rounding.

    The bits are SplitMix64's (Steele et al. 2014) at the seed, the place and the token: integers, which wrap alike.
    """
    seeds = torch.tensor([[draw.sampling.seed, draw.place + 1] for draw in draws], device=device)
    first = _mixed(seeds[:, :1] + seeds[:, 1:] * _signed(_GOLDEN))
    bits = _mixed(first + torch.arange(1, count + 1, device=device) * _signed(_GOLDEN))
    uniform = (_shifted(bits, 64 - _BITS).double() + 0.5).mul_(2.0**-_BITS).float()
    return -torch.log(-torch.log1p(-uniform))


def _at_once(size: int) -> int:
    """Return for how many draws of a vocabulary's size noise is made together."""
    return max(1, LOGITS_AT_ONCE // size)


def _scaled(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    temperatures = [[draw.sampling.temperature] for draw in draws]
    return logits.float() / torch.tensor(temperatures, device=logits.device)


def _mixed(state: torch.Tensor) -> torch.Tensor:
    for shift, factor in _MIX:
        state = (state ^ _shifted(state, shift)) * _signed(factor)
    return state ^ _shifted(state, 31)


def _shifted(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Shift to the right as if the numbers had no sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    """Return the number below 2**63 that has the same lowest 64 bits."""
    return (number + 2**63) % 2**64 - 2**63


def _allowed(scaled: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Return which tokens may be drawn: top_k first, then top_p of what is left, as transformers does.

    Args:
        scaled: logits over the temperature, shape (draws, vocabulary), as is what is returned.
    """
    size = scaled.shape[-1]
    most = torch.tensor([[min(draw.sampling.top_k or size, size)] for draw in draws], device=scaled.device)
    shares = torch.tensor([[draw.sampling.top_p] for draw in draws], device=scaled.device)
    if bool((most == size).all()) and bool((shares == 1.0).all()):
        return torch.ones_like(scaled, dtype=torch.bool)
    ordered, order = scaled.sort(descending=True, stable=True)
    ordered = ordered.masked_fill(ordered < ordered.gather(1, most - 1), -torch.inf)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = (ordered > -torch.inf) & ((before < shares) | (shares == 1.0))
    return torch.zeros_like(kept).scatter(1, order, kept)
