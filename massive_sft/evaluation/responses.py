"""Responses in the ledger: one checksummed object per shard of a request set's leaf task."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from massive_sft.core.errors import Corrupt
from massive_sft.core.files import decompress_lines
from massive_sft.evaluation import requests as sets
from massive_sft.evaluation.requests import Leaf, Request, RequestSet
from massive_sft.evaluation.shards import Cut, shards
from massive_sft.ledger.storage import Storage

log = logging.getLogger(__name__)
SCHEMA = 1
WHOLE = Cut()  # of an engine that shares nothing, on a CPU
CONTEXTS_CUT = "contexts_cut"  # counts requests whose context lost its beginning; not there where none did
TOKENS = "tokens"  # the folder of a request set where its tokens are kept


@dataclass(frozen=True)
class LikelihoodResponse:
    """The answer to a likelihood or rolling request: nats over ``tokens`` tokens, and whether all were the argmax."""

    kind: ClassVar[str] = "scored"
    index: int
    logprob: float
    greedy: bool
    tokens: int


@dataclass(frozen=True)
class GenerationResponse:
    """The answer to a generation request: the text before the stop, the tokens made, and why it ended.

    ``finish`` is ``stop``, ``eos`` or ``length``.
    """

    kind: ClassVar[str] = "generated"
    index: int
    text: str
    tokens: int
    finish: str


Response = LikelihoodResponse | GenerationResponse
_KINDS: dict[str, Callable[..., Response]] = {"scored": LikelihoodResponse, "generated": GenerationResponse}
AnswerShard = Callable[[Sequence[Request], Path], tuple[list[Response], dict[str, int]]]
Tell = Callable[[str, Sequence[Request], Sequence[Response], bool], None]
"""Called with a leaf task, a shard of its requests, the responses, and whether these were there already."""


def untold(leaf: str, requests: Sequence[Request], responses: Sequence[Response], was_there: bool) -> None:
    """Tell nobody."""


def shard_key(leaf: str, number: int) -> str:
    """Return where a shard's responses lie below those of a request set: ``<leaf>/<number>.jsonl.gz``."""
    return f"{sets.file_name(leaf)}/{shard_name(number)}"


def shard_name(number: int) -> str:
    """Return a shard's name in its leaf task's folder."""
    return f"{number:05d}.jsonl.gz"


def shard_bytes(
    weights: str, requests: Sequence[Request], responses: list[Response], happened: dict[str, int]
) -> bytes:
    """Return one shard: a header with weights, checksums and what happened, then one line per response."""
    lines = [json.dumps({"kind": r.kind, **vars(r)}, ensure_ascii=False, sort_keys=True) for r in responses]
    header = {
        "schema": SCHEMA,
        "weights": weights,
        "requests": checksum_of(requests),
        "responses": sets.checksum(lines),
        "count": len(lines),
        "happened": happened,
    }
    text = "\n".join([json.dumps(header, sort_keys=True), *lines])
    return gzip.compress(text.encode(), mtime=0)


def read_shard(
    place: Storage, key: str, weights: str | None, requests: Sequence[Request]
) -> tuple[list[Response], dict[str, int]]:
    """Read one shard's responses, and what happened; with ``weights`` None whatever weights answered.

    Args:
        requests: those from the shard's first on. The shard says how many of them it answers: another version may have
            cut the list otherwise.

    Raises:
        FileNotFoundError: it has not been scored.
        Corrupt: it cannot be read, fails its checksum, or holds other weights' answers or answers to other requests.
    """
    path = f"{place}/{key}"
    header_line, *lines = decompress_lines(place.get(key).data, path)
    try:
        header: dict[str, Any] = json.loads(header_line)
    except ValueError as error:
        raise Corrupt(f"{path}: cannot be read ({error})") from error
    if header.get("schema") != SCHEMA or header.get("responses") != sets.checksum(lines):
        raise Corrupt(f"{path}: does not match its checksum")
    if weights is not None and header["weights"] != weights:
        raise Corrupt(f"{path}: was answered by other weights")
    asked = requests[: len(lines)]
    if not lines or len(asked) != len(lines) or header["requests"] != checksum_of(asked):
        raise Corrupt(f"{path}: answers other requests")
    entries = [json.loads(line) for line in lines]
    return [_KINDS[entry.pop("kind")](**entry) for entry in entries], header["happened"]


def checksum_of(requests: Sequence[Request]) -> str:
    """Return what a shard's header knows the requests by that it answers."""
    digest = hashlib.sha256()
    for request in requests:
        digest.update(sets.to_line(request).encode() + b"\n")
    return digest.hexdigest()


def answer_requests(
    requests: RequestSet, place: Storage, weights: str, answer: AnswerShard, cut: Cut = WHOLE, tell: Tell = untold
) -> dict[str, int]:
    """Answer every shard that is not valid in ``place`` yet; return the sums of what happened.

    Args:
        answer: the ``score`` of a scorer of these weights.
        cut: how requests are cut into shards.
        tell: called with each shard's leaf task, requests and responses.
    """
    totals = Counter[str]()
    for leaf in requests.leaves:
        asked = sets.read_requests(requests, leaf)
        totals.update(answer_list(place, leaf.name, weights, asked, requests.folder, answer, cut, tell))
    return dict(totals)


def answer_list(
    place: Storage,
    leaf: str,
    weights: str,
    requests: Sequence[Request],
    folder: Path,
    answer: AnswerShard,
    cut: Cut,
    tell: Tell = untold,
) -> dict[str, int]:
    """Answer a leaf task's requests, as ``answer_requests``.

    A shard that is corrupt or of other weights is answered again (``shards_replaced``); finished ones are left as they
    are, however they were cut.

    Args:
        place: where responses lie below ``<leaf>/``.
        folder: of the request set, where its tokens are kept.
    """
    totals = Counter({"shards": 0, "shards_found": 0, "shards_replaced": 0})
    done = 0
    while done < len(requests):
        key, left = shard_key(leaf, totals["shards"]), requests[done:]
        totals["shards"] += 1
        was_there = True
        try:
            answered, happened = read_shard(place, key, weights, left)
            totals["shards_found"] += 1
        except (FileNotFoundError, Corrupt) as error:
            if isinstance(error, Corrupt):
                log.warning("%s; it is answered again", error)
                totals["shards_replaced"] += 1
            shard, was_there = next(shards(left, cut)), False
            answered, happened = answer(shard, folder / TOKENS)
            place.put(key, shard_bytes(weights, shard, answered, happened))
        totals.update(happened)
        tell(leaf, left[: len(answered)], answered, was_there)
        done += len(answered)
    return dict(totals)


def read_list(place: Storage, leaf: str, weights: str | None, requests: Sequence[Request]) -> list[Response]:
    """Read the responses to a leaf task's requests, in order. Raises like ``read_shard``."""
    answered: list[Response] = []
    number = 0
    while len(answered) < len(requests):
        answered += read_shard(place, shard_key(leaf, number), weights, requests[len(answered) :])[0]
        number += 1
    return answered


def read_responses(
    requests: RequestSet, leaf: Leaf, place: Storage, weights: str | None
) -> tuple[list[Request], list[Response]]:
    """Read a leaf's requests and their responses, in order. Raises like ``read_shard``."""
    asked = sets.read_requests(requests, leaf)
    return asked, read_list(place, leaf.name, weights, asked)
