"""A benchmark's questions in an order of their own, asked look by look, and the answers so far on disk.

The order is a pure function of the questions: the same for every model, template and number of shots, so that the
questions of a look are the same for all cells of a root and for their base models.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from massive_sft.evaluation import requests as sets
from massive_sft.evaluation import responses
from massive_sft.evaluation.requests import Request, RequestSet
from massive_sft.evaluation.responses import AnswerShard, Response
from massive_sft.evaluation.shards import Cut, shards
from massive_sft.ledger.storage import Storage

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Of a benchmark's questions that have been asked by each look; the last is of all, and there is nothing to judge."""

Question = tuple[str, int]
"""A leaf task, and a document of it."""


def looks_key(protocol: str) -> str:
    """Return where a cell's answers lie that are given look by look, among its responses.

    Args:
        protocol: by which all questions are asked.
    """
    return f"{protocol}.looks"


def shuffled(asked: Mapping[str, Sequence[Request]]) -> list[Question]:
    """Return the questions in the order in which they are asked: that of hashes of what they say.

    Of questions that say the same each has a place of its own: side by side they would be answered alike, and tell
    less than as many others.

    Args:
        asked: requests by leaf task.
    """
    digests: dict[Question, str] = {}
    met = Counter[tuple[str, str]]()
    for leaf, requests in asked.items():
        for request in requests:
            if (leaf, request.doc) not in digests:
                said = leaf, request.doc_hash
                digests[leaf, request.doc] = _digest(*said, met[said])
                met[said] += 1
    return sorted(digests, key=lambda question: (digests[question], question))


def _digest(leaf: str, doc_hash: str, number: int) -> str:
    """Return what a question is sorted by; ``number`` is how many before it say the same."""
    text = f"{leaf}\n{doc_hash}" + (f"\n{number}" if number else "")
    return hashlib.sha256(text.encode()).hexdigest()


class Looks:
    """The answers of one model's weights to a benchmark, look by look: ``<look>/<leaf>/<shard>.jsonl.gz``.

    What is answered stays answered: whoever goes on later, with whatever half-width, goes on with the same looks.

    Args:
        requests: all of the benchmark's.
        place: of ``looks_key``.
        cut: as of ``shards``.
    """

    def __init__(self, requests: RequestSet, place: Storage, cut: Cut = responses.WHOLE):
        self._requests, self._place, self._cut = requests, place, cut
        self._asked = {leaf.name: sets.read_requests(requests, leaf) for leaf in requests.leaves}
        questions = shuffled(self._asked)
        self.sizes = tuple(math.ceil(share * len(questions)) for share in SHARES)
        looks = (next(look for look, size in enumerate(self.sizes, 1) if place < size) for place in range(self.total))
        self._look_of = dict(zip(questions, looks, strict=True))

    @property
    def total(self) -> int:
        """All questions of the benchmark; ``sizes`` has how many have been asked by each look."""
        return self.sizes[-1]

    def answer(self, look: int, weights: str, answer: AnswerShard) -> dict[str, int]:
        """Answer what a look adds to those before it, as ``responses.answer_requests`` does.

        Args:
            look: from 1.
            weights: the id of the weights that answer.
            answer: the ``score`` of a scorer of these weights.
        """
        totals = Counter[str]()
        place, folder = self._place.at(str(look)), self._requests.folder
        for leaf, added in self._added(look):
            totals.update(responses.answer_list(place, leaf, weights, added, folder, answer, self._cut))
        return dict(totals)

    def read(self, look: int, weights: str | None) -> dict[str, tuple[list[Request], list[Response]]]:
        """Return what has been asked by a look and its answers, by leaf task, in the order of the whole benchmark.

        Raises like ``responses.read_shard``.
        """
        found: dict[str, list[tuple[Request, Response]]] = {leaf: [] for leaf in self._asked}
        for number in range(1, look + 1):
            for leaf, added in self._added(number):
                answered = responses.read_list(self._place.at(str(number)), leaf, weights, added)
                found[leaf] += zip(added, answered, strict=True)
        ordered = {leaf: sorted(pairs, key=lambda pair: pair[0].index) for leaf, pairs in found.items()}
        return {leaf: ([pair[0] for pair in pairs], [pair[1] for pair in pairs]) for leaf, pairs in ordered.items()}

    def merge(self, weights: str, place: Storage) -> None:
        """Put the answers to all questions where those lie that were asked in the benchmark's own order."""
        for leaf, (asked, answered) in self.read(len(SHARES), weights).items():
            begin = 0
            for number, shard in enumerate(shards(asked, self._cut)):
                part = answered[begin : begin + len(shard)]
                place.put(responses.shard_key(leaf, number), responses.shard_bytes(weights, shard, part, {}))
                begin += len(shard)

    def _added(self, look: int) -> Iterator[tuple[str, list[Request]]]:
        for leaf, asked in self._asked.items():
            added = [request for request in asked if self._look_of[leaf, request.doc] == look]
            if added:
                yield leaf, added
