"""A judge on this machine that speaks OpenAI's protocol over HTTP, and misbehaves as it is told."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from local_server import serving


@dataclass(frozen=True)
class Answer:
    """What is sent: ``cut`` sends half of it, ``late`` after so many seconds."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    late: float = 0.0


@dataclass
class JudgeServer:
    """Counts calls; ``answer`` gets the call's number, from 1, and its body."""

    url: str = ""
    answer: Callable[[int, dict[str, Any]], Answer] = lambda number, body: says("")
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0


def says(text: str | None, model: str = "judge-1", top: Mapping[str, float] | None = None, **message: Any) -> Answer:
    """A chat completion."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    choice["message"] = {"role": "assistant", "content": text, **message}
    if top is not None:
        entries = [{"token": token, "logprob": value} for token, value in top.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": 0.0, "top_logprobs": entries}]}
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return Answer({"object": "chat.completion", "model": model, "choices": [choice], "usage": usage})


def rating(body: Mapping[str, Any]) -> Answer:
    """A rating from 1 to 10 that hangs on the prompt alone."""
    text = json.dumps(body["messages"]).encode()
    return says(f"It is fine. Rating: [[{int(hashlib.sha256(text).hexdigest(), 16) % 10 + 1}]]", body["model"])


def error(status: int, message: str, code: str = "", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer({"error": {"message": message, "code": code}}, status, named)


@contextmanager
def judge_server() -> Iterator[JudgeServer]:
    """Serve until the block ends."""
    state, lock = JudgeServer(answer=lambda number, body: rating(body)), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state.bodies.append(body)
                state.keys.append(self.headers.get("Authorization", ""))
                number = len(state.bodies)
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            try:
                answer = state.answer(number, body)
                time.sleep(answer.late)
                self.send(answer)
            except OSError:  # who asked has gone
                pass
            finally:
                with lock:
                    state.at_once -= 1

        def send(self, answer: Answer) -> None:
            data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if answer.cut else data)

    with serving(Handler) as address:
        state.url = f"{address}/v1"
        yield state
