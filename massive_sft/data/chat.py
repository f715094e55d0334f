"""Chat templates: a tokenizer's own, rendered under a fixed clock, and what it writes around an answer.

Training text and scoring prompts both come from here, so that they are the same text on every day.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template

from massive_sft.core.errors import InvalidInput, MassiveSFTError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FROZEN = datetime(2024, 7, 26)
"""What a template that asks for the time is told: the date that Llama 3.2's own falls back on."""

_ANOTHER = datetime(2031, 11, 5, 13, 57, 41)
# What a template's code may raise besides Jinja's own errors: None + "text", messages[0] of an empty list.
_RAISED = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)
Message = Mapping[str, str]

# Private-use characters: no template looks for them.
_QUESTION, _ANSWER = "\ue000q\ue001", "\ue000a\ue001"
_SAID = ({"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER})


class RenderError(MassiveSFTError):
    """A conversation that a chat template refuses, or does not hold as it stands; the text says why."""


class Chat:
    """A tokenizer's chat template.

    Args:
        tokenizer: one with a chat template.
        place: names it in messages.

    Attributes:
        source: the template, Jinja.

    Raises:
        InvalidInput: when there is no template, or several without a default, or it is no valid Jinja, or yields
            another text each time.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, place: str):
        self._tokenizer = tokenizer
        try:
            self.source = str(tokenizer.get_chat_template())
            self._compiled = _compile_jinja_template(self.source)
        except ValueError as error:
            rule = "chat needs a tokenizer with one chat template of its own; use paper, plain or a template text"
            raise InvalidInput(Problem(place, rule)) from error
        except jinja2.TemplateError as error:
            raise InvalidInput(Problem(place, f"the chat template is no valid Jinja: {error}")) from error
        if self._varies():
            rule = "the chat template yields another text each time; use a template text, or a copy of it that does not"
            raise InvalidInput(Problem(place, rule))

    @property
    def specials(self) -> Mapping[str, str]:
        """The special tokens that the template may name, e.g. ``bos_token``."""
        return dict(self._tokenizer.special_tokens_map)

    def render(self, messages: Sequence[Message], asks: bool, clock: datetime = FROZEN) -> str:
        """Return a conversation's text; ``asks``: with the generation prompt.

        Raises:
            RenderError: the template refuses the conversation, or its text lacks what a system or user message says.
        """
        try:
            text = self._rendered(messages, asks, clock)
        except _RAISED as error:
            raise RenderError(f"is refused by the chat template: {error}") from error
        for message in messages:
            if message["role"] != "assistant" and message["content"].strip() not in text:
                rule = f"has a chat template that drops or changes the {message['role']} message; use a template text"
                raise RenderError(rule)
        return text

    def _rendered(self, messages: Sequence[Message], asks: bool, clock: datetime) -> str:
        return self._compiled.render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=asks,
            strftime_now=clock.strftime,
            **self.specials,
        )

    def _probe(self, clock: datetime = FROZEN, asks: bool = False) -> str:
        return self.render(_SAID[:1] if asks else _SAID, asks, clock)

    def _varies(self) -> bool:
        """Whether the template draws by chance: Jinja has ``random`` and ``lipsum``."""
        state = random.getstate()
        try:
            texts = set()
            for seed in range(4):
                random.seed(seed)
                texts.add(self._probe())
            return len(texts) > 1
        except RenderError:
            return False
        finally:
            random.setstate(state)

    @cached_property
    def reads_the_clock(self) -> bool:
        """Whether the text holds the date or the time: what it is told is ``FROZEN``."""
        try:
            return self._probe(FROZEN) != self._probe(_ANOTHER)
        except RenderError:
            return False

    @cached_property
    def closing(self) -> str:
        """What the template writes after every answer up to the first added token, e.g. ``<|im_end|>``, `` </s>``.

        Where it holds none, all that is written but the next header, which some templates write whether asked or not.

        Raises RenderError when the template refuses a plain question and answer, or changes the answer.
        """
        text = self._probe()
        if text.count(_ANSWER) != 1:
            raise RenderError("has a chat template that changes the completion")
        rest = text.split(_ANSWER)[1]
        ends = self._added.search(rest)
        if ends is not None:
            return rest[: ends.end()]
        header = self._common_header(text, rest)
        return rest.removesuffix(header)

    @cached_property
    def end_of_turn(self) -> str | None:
        """The token that ends every answer, e.g. ``<|im_end|>``, ``<|eot_id|>``, ``</s>``; None when there is none."""
        ends = self._added.search(self.closing)
        return None if ends is None else ends.group()

    @cached_property
    def lead(self) -> str:
        """What the template writes between the generation prompt and an answer that is the last.

        Qwen3's writes an empty think block, Mistral's a space, most nothing. A tuned model writes it first.
        """
        text, asked = self._probe(), self._probe(asks=True)
        return text[len(asked) : text.index(_ANSWER)] if text.startswith(asked) else ""

    @cached_property
    def _added(self) -> re.Pattern[str]:
        added = {token.content for token in self._tokenizer.added_tokens_decoder.values() if token.content.strip()}
        known = sorted({*added, *self._tokenizer.all_special_tokens}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, known)) or r"(?!)")

    def _common_header(self, text: str, rest: str) -> str:
        """Return the header that ``rest`` ends with because the template writes it after every message; or nothing."""
        if self.lead.strip() or self.render(_SAID, True) != text:
            return ""
        asked = self._probe(asks=True)
        shared = len(rest)
        while not asked.endswith(rest[len(rest) - shared :]):
            shared -= 1
        return rest[len(rest) - shared :]


def end_of_turn(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """Return the token that a tokenizer's chat template ends every answer with, e.g. ``<|im_end|>``.

    None when there is no chat template, or it ends answers with no token, or refuses a plain question and answer.
    """
    try:
        return Chat(tokenizer, str(tokenizer.name_or_path)).end_of_turn
    except (InvalidInput, RenderError):
        return None
