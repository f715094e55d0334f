"""A vLLM server as its HTTP API has it: what it serves, adapters that come and go, completions of tokens."""

from __future__ import annotations

import http.client
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from massive_sft.core.errors import Unsupported

log = logging.getLogger(__name__)
TRIES = 3
FIRST_WAIT_S = 1.0  # doubled with each try
LOOK_S = 20.0  # for what computes nothing
# Named in every call: else vLLM takes them from the model's generation_config.json.
_NEUTRAL = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_p": 0.0}
_TRY_AGAIN = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Served:
    """A model that a server has.

    Attributes:
        name: by which it is asked for.
        root: the folder or hub id that its weights are from, without a slash at its end.
        max_tokens: of prompt and answer together.
    """

    name: str
    root: str
    max_tokens: int


@dataclass(frozen=True)
class VllmServer:
    """One server. Every method raises Unsupported, with the server's own words, where it does not do as it is asked.

    A call is tried again where the server is overloaded, cut off or too late.

    Attributes:
        address: such as ``http://localhost:8000/v1``.
        timeout: seconds after which an answer is late.
        first_wait_s: before the second try.
    """

    address: str
    timeout: float
    first_wait_s: float = FIRST_WAIT_S

    def version(self) -> str:
        """Return the server's version."""
        return str(self._call(f"{self.address.removesuffix('/v1')}/version", None, LOOK_S).get("version", "unknown"))

    def bases(self) -> list[Served]:
        """Return the models that are served, adapters left out."""
        try:
            return [
                Served(one["id"], str(one["root"]).rstrip("/"), int(one["max_model_len"]))
                for one in self._listed()
                if not one["parent"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise Unsupported(f"{self.address}: does not list its models as vLLM does ({error!r})") from error

    def _listed(self) -> list[dict[str, Any]]:
        """Return all that is served, adapters among it, as the server lists it."""
        return list(self._call(f"{self.address}/models", None, LOOK_S).get("data") or ())

    @contextmanager
    def adapter(self, folder: Path) -> Iterator[str]:
        """Within it the server has an adapter, by the name that is given; one that no other adapter had before.

        Args:
            folder: as the server sees it too.
        """
        name = f"massive-sft-{uuid4().hex}"
        self._load(name, folder)
        try:
            yield name
        finally:
            try:
                self._call(f"{self.address}/unload_lora_adapter", {"lora_name": name}, LOOK_S)
            except Unsupported as error:  # what was answered stands
                if self._serves(name) is not False:
                    log.warning("an adapter stays loaded: %s", error)

    def _load(self, name: str, folder: Path) -> None:
        try:
            self._call(
                f"{self.address}/load_lora_adapter",
                {"lora_name": name, "lora_path": str(folder.resolve())},
                self.timeout,
            )
        except Unsupported as error:
            if self._serves(name):  # by an earlier try, whose answer was lost
                return
            needs = "it must be started with --enable-lora, --max-lora-rank of the adapter's at least, and "
            needs += "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and see the same folders"
            raise Unsupported(f"the adapter cannot be loaded ({error}); {needs}") from error

    def _serves(self, name: str) -> bool | None:
        """Return whether the server lists a model; None where it does not say."""
        try:
            return any(one.get("id") == name for one in self._listed())
        except (Unsupported, AttributeError, TypeError):
            return None

    def complete(self, model: str, tokens: Sequence[int], **asked: Any) -> dict[str, Any]:
        """Return the one choice for a prompt, greedily where nothing else is asked, without penalties.

        Args:
            asked: further fields of the call, such as ``max_tokens``.
        """
        body = {"model": model, "prompt": list(tokens), "temperature": 0, "seed": 0, "n": 1, **_NEUTRAL, **asked}
        choices = self._call(f"{self.address}/completions", body, self.timeout).get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise Unsupported(f"{self.address}: gives {choices!r:.100} where one choice was asked for")
        return choices[0]

    def _call(self, url: str, body: dict[str, Any] | None, timeout: float) -> dict[str, Any]:
        """Return the answer to a GET, or to a POST of a body; an empty one where it is no object."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        wait = self.first_wait_s
        for left in reversed(range(TRIES)):
            try:
                with urllib.request.urlopen(request, timeout=timeout) as reply:
                    text = reply.read()
                return _object(text)
            except urllib.error.HTTPError as error:
                why, again = f"answers {error.code}: {_said(error)}", error.code in _TRY_AGAIN
            except TimeoutError:
                why, again = f"does not answer within {timeout:.0f} s", True
            except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
                reason = getattr(error, "reason", error)
                late = isinstance(reason, TimeoutError)
                why, again = f"does not answer{f' within {timeout:.0f} s' if late else f' ({reason})'}", True
            if not again or not left:
                break
            time.sleep(wait)
            wait *= 2
        raise Unsupported(f"the vLLM server at {url} {why}")


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:  # adapters are answered with a sentence
        return {}
    return found if isinstance(found, dict) else {}


def _said(error: urllib.error.HTTPError) -> str:
    """Return a refusal in the server's words, on one line."""
    with error:
        text = error.read()
    body = _object(text)
    inner = body.get("error")
    said = (
        (inner if isinstance(inner, dict) else body).get("message")
        or body.get("detail")
        or text.decode(errors="replace")
    )
    return " ".join(str(said).split())[:300] or str(error.reason)
