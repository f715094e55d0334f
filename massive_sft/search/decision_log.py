"""The log of a search: a file a decision, written once and never again, each holding the hash of the one before.

    <root>/searches/<id>/search.json             what the search is; the first decision holds its hash
    <root>/searches/<id>/decisions/000017.json   one decision
    <root>/searches/<id>/lease                   who decides

A decision is written before anything is done about it. So whoever dies leaves nothing half done: what is not written is
decided again, and is the same; what is written and not done is found by the next run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from massive_sft.core.checksummed_json import seal, unseal
from massive_sft.core.errors import Corrupt, LeaseLost
from massive_sft.core.fingerprint import canonical_json
from massive_sft.ledger.lease import Lease, LeaseWatch
from massive_sft.ledger.paths import checked_id
from massive_sft.ledger.storage import Root

FOLDER = "searches"
_NAME = re.compile(r"(\d{6,})\.json")


class DecisionLog:
    """The decisions of one search, each verified when it is read.

    Args:
        root: the storage root.
        search: the search's id.

    Attributes:
        entries: the decisions that were read or written so far, in their order.
    """

    def __init__(self, root: Root, search: str):
        self.storage = root.at(f"{FOLDER}/{checked_id(search)}")
        self.entries: list[dict[str, Any]] = []
        self._last_hash = ""

    def begin(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Write what the search is, unless that is there; return what is there. Raises Corrupt."""
        self.storage.put_if_absent("search.json", seal(content))
        stored = self.content()
        assert stored is not None
        return stored

    def content(self) -> dict[str, Any] | None:
        """Return what the search is, as ``begin`` wrote it; None where it never began. Raises Corrupt."""
        try:
            data = self.storage.get("search.json").data
        except (FileNotFoundError, NotADirectoryError):
            return None
        content: dict[str, Any] = json.loads(unseal(data, f"{self.storage}/search.json"))
        self._last_hash = self._last_hash or _hash(data)
        return content

    def read(self) -> list[dict[str, Any]]:
        """Return all decisions in their order; those that came since the last call are read.

        Raises:
            Corrupt: one was edited, or is missing while later ones are there; says its number.
        """
        if not self.entries and self.content() is None:
            return []
        found = (_NAME.fullmatch(item.name) for item in self.storage.list("decisions"))
        numbers = sorted(int(match[1]) for match in found if match)
        for number in numbers[len(self.entries) :] if self._is_whole(numbers) else ():
            self._append(number)
        return self.entries

    def _is_whole(self, numbers: list[int]) -> bool:
        """Whether all decisions up to the last listed one are there. Raises Corrupt with the first that is not."""
        there = set(numbers) | set(range(len(self.entries)))
        gap = next((number for number in range(max(there, default=-1) + 1) if number not in there), None)
        if gap is not None:
            raise Corrupt(
                f"{self._place(gap)}: decision {gap} is missing, but later ones are there; put it back, or remove "
                "those after it, which are then decided again"
            )
        return True

    def _append(self, number: int) -> None:
        place = self._place(number)
        try:
            data = self.storage.get(_key(number)).data
        except FileNotFoundError:
            raise Corrupt(f"{place}: decision {number} was removed while it was read") from None
        try:
            entry: dict[str, Any] = json.loads(unseal(data, place))
        except Corrupt as error:
            remedy = "put it back, or remove it and those after it, which are then decided again"
            raise Corrupt(f"{error}: decision {number} was edited; {remedy}") from None
        if entry.get("n") != number or entry.get("previous") != self._last_hash:
            raise Corrupt(
                f"{place}: decision {number} does not follow from decision {number - 1}, of which it holds another "
                "hash: one of the two was edited; put it back, or remove both and what is after them"
            )
        self.entries.append(entry)
        self._last_hash = _hash(data)

    def write(self, entry: Mapping[str, Any], lease: Lease) -> dict[str, Any]:
        """Write the next decision and return it, with its number and the hash of the one before.

        Raises LeaseLost when somebody else decides by now: nothing was written.
        """
        number = len(self.entries)
        whole = {**entry, "n": number, "previous": self._last_hash}
        lease.verify()
        data = seal(whole)
        if not self.storage.put_if_absent(_key(number), data):
            raise LeaseLost(f"{self._place(number)}: decision {number} is there already: somebody else decides")
        stored: dict[str, Any] = json.loads(canonical_json(whole))
        self.entries.append(stored)
        self._last_hash = _hash(data)
        return stored

    def lease(self, owner: str, watch: LeaseWatch) -> Lease | None:
        """Take the right to decide; None while another process has it."""
        return Lease.acquire(self.storage.at("lease"), owner, watch)

    def _place(self, number: int) -> str:
        return f"{self.storage}/{_key(number)}"


def _key(number: int) -> str:
    return f"decisions/{number:06d}.json"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
