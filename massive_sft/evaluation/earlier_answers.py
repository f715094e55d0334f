"""Answers that other weights gave to the same requests: drafts for those that are asked now."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from massive_sft.core.errors import Corrupt
from massive_sft.core.files import decompress_lines
from massive_sft.evaluation.requests import Request
from massive_sft.evaluation.responses import checksum_of
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
        wanted = checksum_of(requests)
        for number, place in enumerate(self._places):
            if number == len(self._keys):
                self._keys.append(_keys_by_requests(place))
            key = self._keys[number].get(wanted)
            answers = [] if key is None else _entries(place, key)[1:]
            if len(answers) == len(requests):
                log.info("the answers of %s/%s are drafts", place, key)
                return [str(answer.get("text", "")) for answer in answers]
        return []


def _keys_by_requests(place: Storage) -> dict[str, str]:
    try:
        headers = {key: entry for key in _keys(place, "") for entry in _entries(place, key, most=1)}
    except OSError as error:
        log.warning("%s: cannot be listed (%s); there are no drafts in it", place, error)
        return {}
    return {str(header.get("requests")): key for key, header in headers.items()}


def _keys(place: Storage, prefix: str) -> Iterator[str]:
    for listed in place.list(prefix):
        key = f"{prefix}{listed.name}"
        if key.endswith(SUFFIX):
            yield key
        else:
            yield from _keys(place, f"{key.rstrip('/')}/")


def _entries(place: Storage, key: str, most: int | None = None) -> list[dict[str, Any]]:
    """Return a shard's header and its answers, or the first of these; nothing of what is damaged."""
    try:
        lines = decompress_lines(place.get(key).data, f"{place}/{key}")[:most]
        entries = [json.loads(line) for line in lines]
    except (OSError, Corrupt, ValueError) as error:
        log.warning("%s/%s: cannot be read (%s); it is no draft", place, key, error)
        return []
    return entries if all(isinstance(entry, dict) for entry in entries) else []
