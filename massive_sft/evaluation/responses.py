"""Responses in the ledger: one checksummed object per shard of a request set's leaf task."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from massive_sft.core.errors import Corrupt
from massive_sft.core.files import decompress_lines
from massive_sft.evaluation import requests as sets
from massive_sft.evaluation.requests import Leaf, Request, RequestSet
from massive_sft.ledger.storage import Storage

log = logging.getLogger(__name__)
SCHEMA = 1
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


def shard_key(leaf: str, number: int) -> str:
    """Return where a shard's responses lie below those of a request set: ``<leaf>/<number>.jsonl.gz``."""
    return f"{sets.file_name(leaf)}/{number:05d}.jsonl.gz"


def shard_bytes(
    weights: str, requests: Sequence[Request], responses: list[Response], happened: dict[str, int]
) -> bytes:
    """Return one shard: a header with weights, checksums and what happened, then one line per response."""
    lines = [json.dumps({"kind": r.kind, **asdict(r)}, ensure_ascii=False, sort_keys=True) for r in responses]
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
    if header["requests"] != checksum_of(requests) or len(lines) != len(requests):
        raise Corrupt(f"{path}: answers other requests")
    entries = [json.loads(line) for line in lines]
    return [_KINDS[entry.pop("kind")](**entry) for entry in entries], header["happened"]


def checksum_of(requests: Sequence[Request]) -> str:
    """Return what a shard's header knows the requests by that it answers."""
    digest = hashlib.sha256()
    for request in requests:
        digest.update(sets.to_line(request).encode() + b"\n")
    return digest.hexdigest()


def answer_requests(requests: RequestSet, place: Storage, weights: str, answer: AnswerShard) -> dict[str, int]:
    """Answer every shard that is not valid in ``place`` yet; return the sums of what happened.

    ``answer`` is the ``score`` of a scorer of these weights. A shard that is corrupt or of other weights is answered
    again (``shards_replaced``); finished ones are left as they are.
    """
    totals = Counter({"shards": 0, "shards_found": 0, "shards_replaced": 0})
    for leaf in requests.leaves:
        for number, shard in enumerate(sets.shards(sets.read_requests(requests, leaf))):
            totals.update(answer_shard(place, shard_key(leaf.name, number), weights, shard, requests.folder, answer))
    return dict(totals)


def answer_shard(
    place: Storage, key: str, weights: str, shard: Sequence[Request], folder: Path, answer: AnswerShard
) -> dict[str, int]:
    """Answer one shard unless it has a valid file; return counts of what happened, as ``answer_requests``.

    Args:
        place, key: where its responses lie.
        folder: of the request set, where its tokens are kept.
    """
    counts = {"shards": 1, "shards_found": 0, "shards_replaced": 0}
    try:
        _, happened = read_shard(place, key, weights, shard)
        counts["shards_found"] = 1
    except (FileNotFoundError, Corrupt) as error:
        if isinstance(error, Corrupt):
            log.warning("%s; it is answered again", error)
            counts["shards_replaced"] = 1
        answered, happened = answer(shard, folder / TOKENS)
        place.put(key, shard_bytes(weights, shard, answered, happened))
    return counts | happened


def read_responses(
    requests: RequestSet, leaf: Leaf, place: Storage, weights: str | None
) -> tuple[list[Request], list[Response]]:
    """Read a leaf's requests and their responses, in order. Raises like ``read_shard``."""
    asked = sets.read_requests(requests, leaf)
    answered: list[Response] = []
    for number, shard in enumerate(sets.shards(asked)):
        answered += read_shard(place, shard_key(leaf.name, number), weights, shard)[0]
    return asked, answered
