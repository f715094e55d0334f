"""A server on this machine that speaks vLLM's HTTP API, with a tiny model behind it, and misbehaves as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import torch
from local_server import serving
from peft import PeftModel

Reply = tuple[int, Any]


@dataclass
class StandIn:
    """What is served, and what was asked.

    Attributes:
        reply: what a call is answered with in place of what vLLM would; None: that.
        late: seconds before each answer.
        uses_adapters: whether an adapter that was loaded makes a difference.
        defaults: of the model's ``generation_config.json``, ``repetition_penalty`` and ``max_new_tokens`` of them; as
            vLLM does it takes the former where a call names none, and of the latter and ``max_tokens`` the least.
    """

    model: Any
    tokenizer: Any
    root: str
    url: str = ""
    adapters: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    reply: Callable[[str, dict[str, Any]], Reply | None] = lambda path, body: None
    late: float = 0.0
    uses_adapters: bool = True
    defaults: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str, body: dict[str, Any]) -> Reply:
        if path == "/version":
            return 200, {"version": "0.11.0"}
        if path == "/v1/models":
            shown = {"object": "model", "max_model_len": 256}
            adapters = [{"id": name, "root": name, "parent": "base", **shown} for name in self.adapters]
            return 200, {"data": [{"id": "base", "root": self.root, "parent": None, **shown}, *adapters]}
        if path == "/v1/load_lora_adapter":
            self.adapters[body["lora_name"]] = body["lora_path"]
            return 200, "Success: LoRA adapter was added."
        if path == "/v1/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
            return 200, "Success: LoRA adapter was removed."
        if body["model"] != "base" and body["model"] not in self.adapters:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}}
        if len(body["prompt"]) + body["max_tokens"] > 256:
            return 400, {"error": {"message": "This model's maximum context length is 256 tokens.", "code": 400}}
        return 200, {"choices": [self.choice(body)]}

    @torch.inference_mode()
    def choice(self, body: dict[str, Any]) -> dict[str, Any]:
        adapter = self.adapters.get(body["model"]) if self.uses_adapters else None
        model = self.model if adapter is None else PeftModel.from_pretrained(self.model, adapter).eval()
        try:
            return self.computed(model, body)
        finally:
            if adapter is not None:
                model.unload()

    def computed(self, model: Any, body: dict[str, Any]) -> dict[str, Any]:
        tokens, made, finish = list(body["prompt"]), list[int](), "length"
        logprobs = model(torch.tensor([tokens])).logits[0].log_softmax(dim=-1)
        penalty = body.get("repetition_penalty", self.defaults.get("repetition_penalty", 1.0))
        most = min(body["max_tokens"], self.defaults.get("max_new_tokens", body["max_tokens"]))
        while len(made) < most and finish == "length":
            logits = model(torch.tensor([[*tokens, *made]])).logits[0, -1]
            seen = torch.tensor(sorted({*tokens, *made}))
            logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
            made.append(int(logits.argmax()))
            text = self.tokenizer.decode(made)
            ended = made[-1] in body.get("stop_token_ids", []) or any(stop in text for stop in body.get("stop", []))
            finish = "stop" if ended else "length"
        shown = None
        if "prompt_logprobs" in body:
            pairs = zip(logprobs, tokens[1:], strict=False)
            shown = [None] + [shown_at(row, token, body["prompt_logprobs"]) for row, token in pairs]
        return {"index": 0, "token_ids": made, "finish_reason": finish, "prompt_logprobs": shown}


def shown_at(row: torch.Tensor, token: int, count: int) -> dict[str, dict[str, float]]:
    """Return what vLLM 0.10 and later shows of a token: all as likely count in its rank, unless it is of the first."""
    shown = {str(token): {"logprob": float(row[token]), "rank": int((row >= row[token]).sum())}}
    for place, other in enumerate(row.argsort(descending=True, stable=True)[:count].tolist()):
        shown[str(other)] = {"logprob": float(row[other]), "rank": place + 1}
    return shown


@contextmanager
def stand_in(model: Any, tokenizer: Any, root: str) -> Iterator[StandIn]:
    """Serve until the block ends."""
    state = StandIn(model, tokenizer, root)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.handle_call({})

        def do_POST(self) -> None:
            self.handle_call(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def handle_call(self, body: dict[str, Any]) -> None:
            with state.lock:
                state.asked.append((self.path, body))
                status, found = state.reply(self.path, body) or state.answer(self.path, body)
            time.sleep(state.late)
            data = (found if isinstance(found, str) else json.dumps(found)).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # who asked has gone
                pass

    with serving(Handler) as address:
        state.url = f"{address}/v1"
        yield state
