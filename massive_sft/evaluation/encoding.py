"""Text to tokens for scoring, by the rules of lm-eval's Hugging Face backend (``HFLM``, lm-eval 0.4.13)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import tokenizers
from transformers import PreTrainedTokenizerFast

from massive_sft.core.errors import Unsupported
from massive_sft.core.fingerprint import fingerprint
from massive_sft.evaluation.requests import Generation, Likelihood, Request, Rolling
from massive_sft.models.tokenizer import text_head

DEFAULT_MAX_LENGTH = 2048
_LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")
_NO_LENGTH = int(1e29)  # tokenizers say this for "unknown"
RECENT_TEXTS = 4
_ENCODING = ("encode", "_encode_plus")  # a tokenizer whose class has one of its own has rules of its own (CodeLlama)
ENCODING_SEMANTICS = 1  # goes up when a text's tokens change, so that kept ones are not taken for them


class RequestEncoder:
    """Encodes contexts and continuations with one tokenizer.

    A text gets what the tokenizer puts before it by itself (``text_head``) unless it begins with that, or with the
    prefix, already; an EOS never.

    Args:
        tokenizer: a fast tokenizer.
        rows: of the model's input embeddings; a text with a token beyond them is refused. None: any token is taken.

    Attributes:
        prefix: the token that stands before an empty context: BOS, or EOS where there is no BOS.

    Each method raises Unsupported for a text with a token that the model does not know.
    """

    def __init__(self, tokenizer: Any, rows: int | None = None):
        self._tokenizer = tokenizer
        self._rows = rows if rows is not None and _largest_id(tokenizer) >= rows else None
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.prefix: int = bos if bos is not None else eos
        self._encodes_itself = any(
            getattr(type(tokenizer), name) is not getattr(PreTrainedTokenizerFast, name) for name in _ENCODING
        )
        self._prefix_text = tokenizer.decode([self.prefix])
        self._head = list(text_head(tokenizer))
        self._recent: dict[str, tuple[int, ...]] = {}  # a question's choices have its context in common

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text that begins a sequence."""
        has_prefix = bool(self._prefix_text) and text.startswith(self._prefix_text)
        tokens = self._bare(text)
        return tokens if has_prefix or tokens[: len(self._head)] == self._head else [*self._head, *tokens]

    def _bare(self, text: str) -> list[int]:
        tokens = self._recent.get(text)
        if tokens is None:
            tokens = self._ids(text)
            self.require_known(max(tokens, default=0))
            if len(self._recent) == RECENT_TEXTS:
                del self._recent[next(iter(self._recent))]
            self._recent[text] = tokens
        return list(tokens)

    def _ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens as ``tokenizer.encode`` does; without offsets, which take up to half of its time."""
        if self._encodes_itself:
            return tuple(self._tokenizer.encode(text, add_special_tokens=False))
        backend = self._tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = bool(self._tokenizer.split_special_tokens)
        return tuple(backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def prompt(self, context: str, lead: str) -> tuple[list[int], str]:
        """Return the tokens of a generation prompt, and the white space that is left to the answer.

        That is ``lead``, but for what the tokenizer joins to the text before it (Llama-3 has ``:`` and a newline as one
        token): such a token is the prompt's in training too (``data.encoding``). A prompt has at least one token.
        """
        tokens, whole = self.encode(context), self.encode(context + lead)
        if whole[: len(tokens)] == tokens:
            return tokens or [self.prefix], lead
        offsets = self._backend.encode(context + lead, add_special_tokens=False).offsets
        own = [start for start, end in offsets if end > start >= len(context)]
        left = (context + lead)[own[0] :] if own else ""
        return whole[: len(whole) - len(own)], left

    def continuation(self, context: str, text: str) -> list[int]:
        """Return the tokens of a text behind those of a context; they may differ where both are joined."""
        return self.encode(context + text)[len(self.encode(context)) :]

    @functools.cached_property
    def _backend(self) -> Any:
        """A copy without the post-processor, which may take white space off the offsets (``data.encoding``)."""
        backend = copy.deepcopy(self._tokenizer.backend_tokenizer)
        backend.post_processor = None
        backend.no_truncation()
        backend.no_padding()
        return backend

    def pair(self, context: str, continuation: str, joined: bool = False) -> tuple[list[int], list[int]]:
        """Return the tokens of context and continuation; the context has at least one.

        White space at the context's end belongs to the continuation. Both are encoded as one text and split where
        the context, encoded alone, ends. Where they merge so that nothing is left of the continuation (lm-eval stops
        there), it is encoded alone, so that it cannot win by being empty.

        Where a token joins the context's last text with the white space after it (``:`` and a newline), lm-eval feeds
        that text alone; with ``joined`` the token is fed, as training has it.
        """
        if context == "":
            tokens = self._bare(continuation)
            if tokens[:1] == [self.prefix]:
                return tokens[:1], tokens[1:]
            return [self.prefix], tokens
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        head, whole = self.encode(stripped), self.encode(stripped + continuation)
        tail = whole[len(head) :]
        if joined and tail:
            head = whole[: len(head)]
        if not tail and continuation:
            tail = self._bare(continuation)
        return head or [self.prefix], tail

    def request(self, request: Likelihood | Rolling) -> tuple[list[int], list[int]]:
        """Return the tokens of a likelihood request as ``pair`` does; of a rolling one none, and all of its text."""
        if isinstance(request, Rolling):
            return [], self.encode(request.text)
        return self.pair(request.context, request.continuation, request.joined)

    def require_known(self, largest: int) -> None:
        """Raise Unsupported where the model has no embedding for a text's largest token."""
        if self._rows is not None and largest >= self._rows:
            raise Unsupported(f"the model must know every token id of its tokenizer, below {self._rows}, got {largest}")

    @functools.cached_property
    def fingerprint(self) -> str:
        """The id of what texts become: equal ones give equal tokens to every request."""
        self._tokenizer.encode("")  # takes off a truncation that the tokenizer's file or an earlier call left on it
        content = {
            "semantics": ENCODING_SEMANTICS,
            "tokenizers": tokenizers.__version__,
            "tokenizer": self._tokenizer.backend_tokenizer.to_str(),
            "splits special": bool(getattr(self._tokenizer, "split_special_tokens", False)),
            "prefix": self.prefix,
            "adds bos": (adds_bos := self._head == [self._tokenizer.bos_token_id]),
        }
        return fingerprint(content | ({"head": self._head} if self._head and not adds_bos else {}))


def windows(tokens: Sequence[int], prefix: int, max_length: int) -> list[tuple[list[int], list[int]]]:
    """Return (context, continuation) windows that predict every token of a text once.

    The first predicts ``max_length`` tokens after the prefix token; each later one predicts up to ``max_length``
    more, with as much context as fits (one token at least).
    """
    first = min(max_length, len(tokens))
    found = [([prefix], list(tokens[:first]))] if tokens else []
    done = first
    while done < len(tokens):
        end = min(done + max_length, len(tokens))
        found.append((list(tokens[max(0, end - max_length - 1) : done]), list(tokens[done:end])))
        done = end
    return found


@functools.lru_cache(maxsize=16)
def _largest_id(tokenizer: Any) -> int:
    return max(tokenizer.get_vocab().values())


def require_known_tokens(requests: Iterable[Request], tokenizer: Any, rows: int) -> None:
    """Raise Unsupported, as scoring does, where requests hold a token that a model has no embedding for.

    Nothing is encoded where the model knows all that its tokenizer can make.

    Args:
        rows: of the model's input embeddings.
    """
    if _largest_id(tokenizer) < rows:
        return
    encoder = RequestEncoder(tokenizer, rows)
    for request in requests:
        if isinstance(request, Generation):
            encoder.prompt(request.context, request.lead)
        elif isinstance(request, (Likelihood, Rolling)):
            encoder.request(request)


def max_length_of(config: Any, tokenizer: Any) -> int:
    """Return a model's context length in tokens: its configuration's, else its tokenizer's, else 2048."""
    text = getattr(config, "text_config", None) or config
    for holder in (text, config):
        for name in _LENGTHS:
            value = getattr(holder, name, None)
            if value is not None:
                return int(value)
    known = getattr(tokenizer, "model_max_length", None)
    return int(known) if known is not None and known < _NO_LENGTH else DEFAULT_MAX_LENGTH


def truncated(context: Sequence[int], continuation: Sequence[int], max_length: int) -> list[int]:
    """Return the tokens to feed for a pair: the last is only predicted, the first ones go when it is too long."""
    return list((*context, *continuation)[-(max_length + 1) :][:-1])
