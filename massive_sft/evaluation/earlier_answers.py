"""Answers that other weights gave to the same requests: drafts for those that are asked now."""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from massive_sft.evaluation import requests as sets
from massive_sft.evaluation.requests import Request
from massive_sft.ledger.storage import Storage

log = logging.getLogger(__name__)
SUFFIX = ".jsonl.gz"  # of a shard of responses


class EarlierAnswers:
    """Looks answers up by the shard of requests that they were given to. What is damaged is left out: they are guesses.

    Args:
        places: of cells' responses, those whose answers are likely to be alike first.
    """

    def __init__(self, places: Sequence[Storage] = ()):
        self._places = places
        self._keys: list[dict[str, str]] = []  # of each place that was looked at: a shard's key by its requests

    def texts(self, requests: Sequence[Request]) -> list[str]:
        """Return what was answered to each request of a shard, an empty text to one that asks for none; or no texts."""
        wanted = sets.checksum([*map(sets.to_line, requests), ""])
        for number, place in enumerate(self._places):
            if number == len(self._keys):
                self._keys.append(_keys_by_requests(place))
            key = self._keys[number].get(wanted)
            answers = [] if key is None else _lines(place, key)[1:]
            if len(answers) == len(requests):
                log.info("the answers of %s/%s are drafts", place, key)
                return [str(json.loads(line).get("text", "")) for line in answers]
        return []


def _keys_by_requests(place: Storage) -> dict[str, str]:
    found: dict[str, str] = {}
    for key in _keys(place, ""):
        header: Any = json.loads(next(iter(_lines(place, key)), "null"))
        if isinstance(header, dict) and "requests" in header:
            found[header["requests"]] = key
    return found


def _keys(place: Storage, prefix: str) -> Iterator[str]:
    for listed in place.list(prefix):
        key = f"{prefix}{listed.name}"
        if key.endswith(SUFFIX):
            yield key
        else:
            yield from _keys(place, f"{key.rstrip('/')}/")


def _lines(place: Storage, key: str) -> list[str]:
    try:
        return gzip.decompress(place.get(key).data).decode().splitlines()
    except (OSError, EOFError, zlib.error, ValueError) as error:
        log.warning("%s/%s: cannot be read (%s); it is no draft", place, key, error)
        return []
