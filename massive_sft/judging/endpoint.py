"""One judge behind an endpoint that speaks OpenAI's protocol: a call is tried until it is answered, in its turn."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import requests
import urllib3

from massive_sft.core.errors import Interrupted
from massive_sft.core.stop import never_stop
from massive_sft.judging.errors import JudgeUnavailable
from massive_sft.ledger.provenance import HIDDEN, redact
from massive_sft.sweep.schema import Judge

TRIES = 8
FIRST_WAIT_S = 1.0  # doubled with each try, of which a random half to whole is waited
MOST_WAIT_S = 60.0
MOST_ASKED_WAIT_S = 600.0  # of Retry-After: who is to wait longer is told so instead
MOST_BYTES = 2**22  # of an answer
_TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_NO_CALL_WORKS = frozenset({401, 402, 403, 404, 405})  # by which key, address or model is wrong

Message = Mapping[str, str]  # role, content


@dataclass(frozen=True)
class Reply:
    """What a judge answered.

    Attributes:
        text: empty where it refused.
        refusal: why it gave no answer; None where it gave one.
        top: log-probabilities of the first token and of those beside it, by token; None where none were asked for.
        input_tokens, output_tokens: as the endpoint counts; None where it does not.
        finish: why it ended, as the endpoint says.
        tries: how often it was asked.
    """

    text: str
    refusal: str | None
    top: Mapping[str, float] | None
    input_tokens: int | None
    output_tokens: int | None
    finish: str | None
    tries: int


class _Again(Exception):
    """A call may be answered when it is made again; ``wait``: in how many seconds, where the endpoint says so."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class Pace:
    """When the next call may begin: one after another by the minute, and none while the endpoint asks to wait."""

    def __init__(self, per_minute: int | None, stop: Callable[[], bool]):
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._stop, self._lock, self._next = stop, threading.Lock(), 0.0

    def take_turn(self) -> None:
        """Wait for the next turn. Raises Interrupted once the run should end."""
        while True:
            with self._lock:
                left = self._next - time.monotonic()
                if left <= 0:
                    self._next = time.monotonic() + self._gap
                    return
            self.sleep(left)

    def hold(self, seconds: float) -> None:
        """Have no call begin for some time."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def sleep(self, seconds: float) -> None:
        """Wait. Raises Interrupted once the run should end."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._stop():
                raise Interrupted("the run ends")
            time.sleep(min(left, 0.2))


class _Bearer(requests.auth.AuthBase):
    """The key of a call; being set, it also keeps a login of the user's ``.netrc`` out of it."""

    def __init__(self, key: str | None):
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def missing_key(judge: Judge) -> str | None:
    """Return the environment variable of a judge's key where it has no value; None where all is there."""
    return judge.key if judge.key is not None and not os.environ.get(judge.key, "").strip() else None


class Endpoint:
    """Asks one judge; several threads may.

    Args:
        stop: asked while it waits.
        first_wait_s: before the second try, see ``FIRST_WAIT_S``.
        tries: of a call, before it is given up.

    Raises JudgeUnavailable when its key is not in the environment.
    """

    def __init__(
        self,
        judge: Judge,
        stop: Callable[[], bool] = never_stop,
        first_wait_s: float = FIRST_WAIT_S,
        tries: int = TRIES,
    ):
        if missing_key(judge):
            raise JudgeUnavailable(
                f"{judge.name}: the environment variable {judge.key}, which holds its key, is not set"
            )
        self.judge = judge
        self._key = os.environ[judge.key].strip() if judge.key else None
        self._pace, self._first_wait_s, self._tries = Pace(judge.per_minute, stop), first_wait_s, tries
        self._sessions = threading.local()

    def ask(
        self,
        messages: Sequence[Message],
        max_tokens: int,
        logprobs: bool = False,
        unused: Callable[[Reply], None] = lambda reply: None,
    ) -> Reply:
        """Return the judge's answer, at temperature 0.

        Args:
            logprobs: whether those of the first token are asked for.
            unused: told of each answer that cannot be used, whose tokens are paid all the same.

        Raises:
            JudgeUnavailable: every call is refused, the answer is another model's or lacks the log-probabilities, or
                no try was answered.
            Interrupted: the run should end.
        """
        body = {"model": self.judge.name, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0}
        body |= {"logprobs": True, "top_logprobs": 5} if logprobs else {}
        reason = ""
        for number in range(1, self._tries + 1):
            self._pace.take_turn()
            try:
                return self._reply(self._post(body), logprobs, number, unused)
            except _Again as error:
                reason = str(error)
                if number < self._tries:
                    self._wait(error.wait, number)
        raise self._unavailable(f"does not answer after {self._tries} tries: {reason}")

    def _wait(self, asked: float | None, number: int) -> None:
        if asked is not None:
            self._pace.hold(asked)  # for all threads; some ask for 0 s, and again
        longest = min(MOST_WAIT_S, self._first_wait_s * 2 ** (number - 1))
        self._pace.sleep(random.uniform(longest / 2, longest))

    def _post(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and body. Raises _Again."""
        session = self._session()
        deadline = time.monotonic() + self.judge.timeout
        try:
            with session.post(
                f"{self.judge.endpoint}/chat/completions",
                json=body,
                timeout=self.judge.timeout,
                stream=True,
                allow_redirects=False,
            ) as answer:
                data = b""
                while piece := answer.raw.read1(2**16, decode_content=True):  # not until so many are there
                    data += piece
                    if time.monotonic() > deadline:  # an endpoint may send a byte now and then for ever
                        raise _Again(f"no whole answer in {self.judge.timeout} s")
                    if len(data) > MOST_BYTES:
                        raise _Again(f"an answer of more than {MOST_BYTES:,} bytes")
                return answer.status_code, answer.headers, data
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _Again(redact(self._without_key(f"{type(error).__name__}: {error}"))) from None

    def _session(self) -> requests.Session:
        if not hasattr(self._sessions, "own"):
            self._sessions.own = requests.Session()
            self._sessions.own.auth = _Bearer(self._key)
        own: requests.Session = self._sessions.own
        return own

    def _reply(
        self,
        answered: tuple[int, Mapping[str, str], bytes],
        logprobs: bool,
        tries: int,
        unused: Callable[[Reply], None],
    ) -> Reply:
        status, headers, data = answered
        told = redact(self._without_key(_error_of(data)))
        if status in _NO_CALL_WORKS or (status == 429 and "insufficient_quota" in told):
            raise self._unavailable(f"refuses calls: HTTP {status}: {told}")
        if status in _TRY_AGAIN:
            wait = _retry_after(headers)
            if wait is not None and wait > MOST_ASKED_WAIT_S:
                raise self._unavailable(f"asks to wait {wait:,.0f} s: HTTP {status}: {told}")
            raise _Again(f"HTTP {status}: {told}", wait)
        if status != 200:  # of this call alone, such as a content filter's
            return Reply("", f"HTTP {status}: {told}", None, None, None, None, tries)
        try:
            return self._completion(data, logprobs, tries)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            unused(_paid(data, tries))
            raise _Again(f"no chat completion: {type(error).__name__}: {told}") from None
        except JudgeUnavailable:
            unused(_paid(data, tries))
            raise

    def _completion(self, data: bytes, logprobs: bool, tries: int) -> Reply:
        """Read a chat completion. Raises JudgeUnavailable; KeyError and the like where it is none."""
        content = json.loads(data)
        choice, model = content["choices"][0], content["model"]
        text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
        if model != self.judge.name:
            rule = "answers as another model: name the one that answers, or the endpoint of the one that was meant"
            raise self._unavailable(f"{rule}, got {self._without_key(str(model))!r}")
        top = _top(choice) if logprobs and text else None
        if logprobs and text and top is None:
            raise self._unavailable("gives no log-probabilities, which the benchmark's logprobs asks for")
        text = self._without_key(text) if isinstance(text, str) else ""
        refusal = self._without_key(str(refusal)) if refusal else None if text else "an empty answer"
        finish = choice.get("finish_reason")
        return Reply(text, refusal, top, *_counts(content), finish if isinstance(finish, str) else None, tries)

    def _without_key(self, text: str) -> str:
        """Return a text without the key, which endpoints and proxies are known to repeat."""
        return text.replace(self._key, HIDDEN) if self._key else text

    def _unavailable(self, reason: str) -> JudgeUnavailable:
        return JudgeUnavailable(f"{self.judge.name} at {self.judge.endpoint} {reason}")


def _error_of(data: bytes) -> str:
    """Return what an answer says of an error, cut short; the beginning of what is no JSON."""
    text = data.decode(errors="replace")
    with suppress(ValueError, TypeError, AttributeError):
        error = json.loads(text).get("error")
        if error:
            text = f"{error.get('code') or ''} {error.get('message') or ''}" if isinstance(error, dict) else str(error)
    return " ".join(text.split())[:300]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an endpoint asks to wait; None where it names none."""
    text = headers.get("Retry-After", "").strip()
    with suppress(ValueError):
        return max(0.0, float(text))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return None


def _top(choice: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the log-probabilities beside the first token; None where there are none.

    Raises KeyError, TypeError, IndexError, ValueError where they have another shape.
    """
    given = choice.get("logprobs")
    if not given or not given.get("content"):
        return None
    return {str(entry["token"]): float(entry["logprob"]) for entry in given["content"][0]["top_logprobs"]}


def _paid(data: bytes, tries: int) -> Reply:
    """Return what is known of an answer that cannot be used: the tokens that it took."""
    try:
        content = json.loads(data)
    except ValueError:
        content = {}
    return Reply("", None, None, *_counts(content), None, tries)


def _counts(content: Any) -> tuple[int | None, int | None]:
    """Return the tokens that a chat completion says were read and written; None where it does not say."""
    usage = content.get("usage") if isinstance(content, dict) else None
    return _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
