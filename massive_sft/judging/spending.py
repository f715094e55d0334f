"""What judging has cost under a storage root, whoever asked, held against the sweep's budget."""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from massive_sft.judging.errors import BudgetSpent
from massive_sft.ledger.storage import Storage
from massive_sft.sweep.schema import Judge

if TYPE_CHECKING:  # what asks imports more than prices need
    from massive_sft.judging.endpoint import Message, Reply

log = logging.getLogger(__name__)
SPENT = "verdicts/spent"  # below the ledger's cache: what each process has spent, an object each
READ_EVERY_S = 5.0  # for so long what other processes have spent may be unknown
BYTES_PER_TOKEN = 3  # of a text whose tokens nobody counted: few, so that it is not taken for cheaper than it is
MILLION = 1_000_000


def tokens_of(messages: Sequence[Message]) -> int:
    """Return about how many tokens messages have, rather too many than too few."""
    return sum(len(message["content"].encode()) for message in messages) // BYTES_PER_TOKEN + 10 * len(messages)


class Spending:
    """Counts tokens and cost by judge. Each process writes an object of its own into ``place`` and reads the others'.

    Several threads may use it.

    Args:
        place: of the storage root's spending.
        budget: what all may cost; None for no bound.
    """

    def __init__(self, place: Storage, budget: float | None = None):
        self._place, self._budget = place, budget
        self._name = f"{secrets.token_hex(8)}.json"
        self._lock = threading.Lock()
        self._own: dict[str, dict[str, float]] = {}
        self._reserved = 0.0
        self._others, self._read_at = 0.0, -READ_EVERY_S

    def reserve(self, judge: Judge, messages: Sequence[Message], max_tokens: int) -> float:
        """Return what a call may cost at most, set aside until ``settle``. Raises BudgetSpent."""
        most = price_of(judge, tokens_of(messages), max_tokens)
        with self._lock:
            if self._budget is not None:
                spent = self._spent()
                if spent + self._reserved + most > self._budget:
                    raise BudgetSpent(
                        f"{spent:.4g} of evaluation.judging.budget ({self._budget:g}) are spent, and a call of "
                        f"{judge.name} may cost {most:.2g}: raise it and run again, what is judged stays"
                    )
            self._reserved += most
        return most

    def settle(self, judge: Judge, reserved: float, messages: Sequence[Message], reply: Reply | None) -> None:
        """Count what a call took; with ``reply`` None nothing was answered."""
        with self._lock:
            self._reserved -= reserved
        if reply is not None:
            self.count(judge, messages, reply)

    def count(self, judge: Judge, messages: Sequence[Message], reply: Reply) -> None:
        """Count what an answer took, also one that cannot be used. Tokens that nobody counted are guessed."""
        with self._lock:
            read = tokens_of(messages) if reply.input_tokens is None else reply.input_tokens
            wrote = len(reply.text.encode()) // BYTES_PER_TOKEN if reply.output_tokens is None else reply.output_tokens
            own = self._own.setdefault(judge.name, {"calls": 0, "input": 0, "output": 0, "cost": 0.0})
            cost = price_of(judge, read, wrote)
            for name, value in (("calls", 1), ("input", read), ("output", wrote), ("cost", cost)):
                own[name] += value
            self._place.put(self._name, json.dumps(self._own).encode())

    def _spent(self) -> float:
        if time.monotonic() - self._read_at > READ_EVERY_S:
            self._others, self._read_at = read_spending(self._place, but=self._name), time.monotonic()
        return self._others + sum(own["cost"] for own in self._own.values())


def read_spending(place: Storage, but: str = "") -> float:
    """Return what was spent by all who wrote into ``place``.

    Args:
        but: the name of an object that is left out.
    """
    total = 0.0
    for listed in place.list():
        if listed.name != but and listed.name.endswith(".json"):
            with suppress(FileNotFoundError):
                try:
                    total += sum(float(own["cost"]) for own in json.loads(place.get(listed.name).data).values())
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    log.warning("%s/%s: cannot be read (%s); what it says is not counted", place, listed.name, error)
    return total


def price_of(judge: Judge, read: float, wrote: float) -> float:
    """Return what so many tokens cost; 0 for a judge without a price."""
    return 0.0 if judge.price is None else (read * judge.price.input + wrote * judge.price.output) / MILLION
