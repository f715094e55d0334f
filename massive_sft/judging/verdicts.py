"""Calls of a judge and their answers, kept by content: what was asked once is not asked again, whoever asks it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from threading import Event
from typing import Any

from massive_sft.core.checksummed_json import seal, unseal
from massive_sft.core.errors import Corrupt, Interrupted
from massive_sft.core.fingerprint import fingerprint
from massive_sft.core.stop import never_stop
from massive_sft.judging.endpoint import Endpoint, Reply
from massive_sft.judging.spending import Spending
from massive_sft.ledger.storage import Storage

log = logging.getLogger(__name__)
SCHEMA = 1


@dataclass(frozen=True)
class Call:
    """What a judge is asked.

    Attributes:
        system: what it is told to be; empty for nothing.
        prompt: what it is asked.
        max_tokens: of its answer.
        logprobs: whether those of the first token are wanted.
    """

    system: str
    prompt: str
    max_tokens: int
    logprobs: bool = False

    @property
    def messages(self) -> list[dict[str, str]]:
        """As the endpoint takes it."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.prompt}]

    @cached_property
    def id(self) -> str:
        """The hash of what is asked."""
        return fingerprint(asdict(self))


Parse = Callable[[Reply], float | None]
"""Returns the verdict in an answer; None where there is none."""


@dataclass
class Asked:
    """How a judge's calls went: how many were asked, and found answered."""

    asked: int = 0
    found: int = 0


class Verdicts:
    """A judge's answers in ``place``, a sealed object each."""

    def __init__(self, place: Storage, judge: str):
        self._place = place.at(fingerprint({"judge": judge}))
        self._judge = judge

    def get(self, call: Call) -> Reply | None:
        """Return the answer to a call; None where there is none that is sound."""
        key = _key(call)
        try:
            entry = json.loads(unseal(self._place.get(key).data, f"{self._place}/{key}"))
            return Reply(**entry["reply"]) if entry["schema"] == SCHEMA else None
        except FileNotFoundError:
            return None
        except (Corrupt, KeyError, TypeError) as error:
            log.warning("%s; it is asked again", error)
            return None

    def put(self, call: Call, reply: Reply) -> None:
        """Keep the answer to a call."""
        content = {"schema": SCHEMA, "judge": self._judge, "call": asdict(call), "reply": asdict(reply)}
        self._place.put(_key(call), seal(content))


def _key(call: Call) -> str:
    return f"{call.id[:2]}/{call.id}.json"


def ask_all(
    calls: Iterable[Call],
    endpoint: Endpoint,
    verdicts: Verdicts,
    spending: Spending,
    parse: Parse,
    stop: Callable[[], bool] = never_stop,
) -> tuple[Mapping[str, Reply], Asked]:
    """Have a judge answer calls, several at once, each kept as it comes; return the answers by ``Call.id``.

    What is kept already is not asked again, unless no verdict was in it. Once one call cannot be made no other is
    begun; those that are on their way are kept.

    Args:
        parse: finds the verdict in an answer.
        stop: asked before each call.

    Raises:
        JudgeUnavailable, BudgetSpent, Interrupted: as ``Endpoint.ask``, ``Spending.reserve``.
        OSError: the disk takes no more.
    """
    distinct = list({call.id: call for call in calls}.values())
    known = {call.id: verdicts.get(call) for call in distinct}
    found = {name: reply for name, reply in known.items() if reply is not None and parse(reply) is not None}
    left = [call for call in distinct if call.id not in found]
    ended = Event()

    def ask(call: Call) -> Reply | None:
        if ended.is_set():
            return None
        try:
            if stop():
                raise Interrupted("the run ends")
            return _ask(call, endpoint, verdicts, spending)
        except BaseException:
            ended.set()
            raise

    with ThreadPoolExecutor(endpoint.judge.concurrency) as threads:
        waiting = [threads.submit(ask, call) for call in left]
    failed = [error for future in waiting if (error := future.exception()) is not None]
    if failed:
        raise next((error for error in failed if not isinstance(error, Interrupted)), failed[0])
    answered = {call.id: future.result() for call, future in zip(left, waiting, strict=True)}
    replies = {name: reply for name, reply in answered.items() if reply is not None}
    return {**found, **replies}, Asked(len(left), len(found))


def _ask(call: Call, endpoint: Endpoint, verdicts: Verdicts, spending: Spending) -> Reply:
    reserved, reply = spending.reserve(endpoint.judge, call.messages, call.max_tokens), None
    try:
        count = partial(spending.count, endpoint.judge, call.messages)
        reply = endpoint.ask(call.messages, call.max_tokens, call.logprobs, unused=count)
        verdicts.put(call, reply)
    finally:
        spending.settle(endpoint.judge, reserved, call.messages, reply)
    return reply


def transcript(calls: Sequence[Call], replies: Mapping[str, Reply], parse: Parse) -> list[dict[str, Any]]:
    """Return every prompt, answer and verdict, an entry a call, in the order of the calls."""
    return [
        {"call": call.id, **asdict(call), "reply": asdict(replies[call.id]), "verdict": parse(replies[call.id])}
        for call in calls
    ]
