"""Mixtures whose weights are searched: a finite set of candidates that keep every limit, each of them whole samples.

A candidate is rounded to numbers of samples before anything else is made of it, so it is a training set like any other,
and one that a block has too is the same cell.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from massive_sft.core.fingerprint import fingerprint
from massive_sft.sweep.mixture import largest_remainder
from massive_sft.sweep.schema import Dataset, Search, Weights
from massive_sft.sweep.spec import Mixture, Part

POOL = 512  # candidates beside those of the start
STRENGTHS = (0.3, 1.0, 3.0)  # of the draws: from few datasets to nearly equal shares
Shares = dict[str, float]


def start_shares(search: Search, names: Sequence[str]) -> list[Shares]:
    """Return the shares that a search begins with: singles, all, all but one, pairs."""
    start, count = search.start, len(names)
    groups: list[tuple[str, ...]] = []
    groups += [(name,) for name in names] if start.singles else []
    groups += [tuple(names)] if start.all else []
    groups += [tuple(one for one in names if one != out) for out in names] if start.leave_one_out and count > 2 else []
    groups += list(itertools.combinations(names, 2))[: start.pairs]
    return [dict.fromkeys(group, 1 / len(group)) for group in dict.fromkeys(groups)]


def pool_shares(names: Sequence[str], seed: int) -> Iterator[Shares]:
    """Yield shares drawn around the middle of the simplex, without end, the same for one seed."""
    import numpy as np

    generator = np.random.default_rng(seed)
    for strength in itertools.cycle(STRENGTHS):
        drawn = generator.dirichlet([strength] * len(names))
        yield dict(zip(names, drawn.tolist(), strict=True))


def fitted(shares: Mapping[str, float], mixture: Weights) -> dict[str, int] | None:
    """Return the samples of each dataset at the shares nearest to these that keep the limits; None where none does.

    Limits on shares hold to half a sample.
    """
    bounds = mixture.weights
    kept = set(sorted(bounds, key=lambda name: (-shares.get(name, 0.0), name))[: mixture.at_most or len(bounds)])
    kept |= {name for name, (least, _) in bounds.items() if least > 0}
    if len(kept) > (mixture.at_most or len(bounds)):
        return None
    held = dict.fromkeys(bounds, 0.0)
    held |= {name: min(max(shares.get(name, 0.0), bounds[name][0]), bounds[name][1]) for name in kept}
    for _ in range(len(bounds) + 1):  # what is missing or too much goes to who has room, in proportion
        over = 1 - math.fsum(held.values())
        if abs(over) < 1e-9:
            break
        room = {name: (bounds[name][1] - held[name] if over > 0 else held[name] - bounds[name][0]) for name in kept}
        whole = math.fsum(room.values())
        if whole < abs(over) - 1e-9:
            return None
        held |= {name: held[name] + over * room[name] / whole for name in kept}
    counts = largest_remainder({name: share for name, share in held.items() if share > 1e-9}, mixture.samples)
    return {name: count for name, count in counts.items() if count}


def candidates(
    search: Search, datasets: Mapping[str, Dataset], contents: Mapping[str, str], sample_seed: int, seed: int
) -> tuple[list[Mixture], int]:
    """Return the mixtures that a search may try, those of its start first, and how many those are.

    Args:
        contents: what is hashed of each dataset; the order of candidates hangs on it, and on no name.
    """
    mixture = search.mixture
    assert isinstance(mixture, Weights)
    names = sorted(mixture.weights, key=lambda name: contents[name])
    found: dict[str, Mixture] = {}

    def add(shares: Shares) -> None:
        counts = fitted(shares, mixture)
        if counts is not None and all(_has_rows(datasets[name], count, mixture) for name, count in counts.items()):
            made = _made(search, datasets, counts, sample_seed)
            found.setdefault(fingerprint(sorted((contents[name], count) for name, count in counts.items())), made)

    for shares in start_shares(search, names):
        add(shares)
    begun = len(found)
    for shares in itertools.islice(pool_shares(names, seed), 4 * POOL):
        if len(found) - begun >= POOL:
            break
        add(shares)
    return list(found.values()), begun


def _has_rows(dataset: Dataset, count: int, mixture: Weights) -> bool:
    """Whether a dataset has so many rows, as far as its limit tells."""
    return dataset.limit is None or count <= dataset.limit * mixture.max_repeats


def _made(search: Search, datasets: Mapping[str, Dataset], counts: Mapping[str, int], sample_seed: int) -> Mixture:
    assert isinstance(search.mixture, Weights)
    most = search.mixture.max_repeats
    parts = [Part(name=name, dataset=datasets[name], count=counts[name], max_repeats=most) for name in sorted(counts)]
    name = parts[0].name if len(parts) == 1 else f"{search.name}-{fingerprint(dict(counts))[:8]}"
    return Mixture(name=name, parts=tuple(parts), sample_seed=sample_seed)


def shares_of(mixture: Mixture) -> Shares:
    """Return the share of each dataset in a mixture whose parts are counted."""
    counts = {part.name: part.count or 0 for part in mixture.parts}
    return {name: count / sum(counts.values()) for name, count in counts.items()}
