"""How a benchmark's context is wrapped into the text that a model was tuned on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from massive_sft.core.errors import InvalidInput
from massive_sft.core.fingerprint import canonical_json
from massive_sft.data.chat import Chat, RenderError
from massive_sft.sweep import schema, template

FIELD = "{prompt}"


@dataclass(frozen=True)
class Wrapping:
    """One of: nothing (``none``), a training prompt template (``training``), a chat template (``chat``).

    ``text`` holds ``{prompt}`` once for ``training`` and is the tokenizer's Jinja source for ``chat``; for ``none``
    it is ``None``; ``tokens`` are the special tokens that a chat template may name. ``render`` turns lm-eval's messages
    into the context, ``None`` for ``none``; equal kind, text and tokens render equally.
    ``lead`` is what a chat template writes between its generation prompt and an answer (Qwen3: an empty think block):
    a model tuned on it writes it first, and it is no part of the answer; ``marked``: a special token stands in it.
    ``stops`` are what it writes when the answer
    is finished: what a chat template closes it with, or the header that opens a training template's next prompt, at
    the beginning of a line (a header such as ``#`` may well stand inside an answer).
    """

    kind: str
    text: str | None = None
    tokens: str = ""
    lead: str = ""
    marked: bool = False
    stops: tuple[str, ...] = ()
    render: Callable[..., str] | None = field(default=None, compare=False)


NONE = Wrapping("none")


def training(text: str) -> Wrapping:
    """Wrap in a training prompt template such as ``"###Question: {prompt}\\n###Answer: "``.

    Raises InvalidInput when ``text`` does not hold ``{prompt}`` exactly once.
    """
    problem = template.field_problem("template", text, "prompt")
    if problem:
        raise InvalidInput(problem)

    def render(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        prefix = "" if add_generation_prompt else messages[-1]["content"]
        prompt = messages if add_generation_prompt else messages[:-1]
        return text.replace(FIELD, "".join(message["content"] for message in prompt)) + prefix

    header = text.split(FIELD)[0].strip()
    return Wrapping("training", text, stops=(f"\n{header}",) if header else (), render=render)


def chat(tokenizer: Any) -> Wrapping:
    """Wrap in the tokenizer's own chat template, whose clock is frozen. Raises InvalidInput when it has none."""
    found = Chat(tokenizer, str(tokenizer.name_or_path))

    def render(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        if add_generation_prompt:
            return found.render(messages, asks=True)
        return found.render(messages[:-1], asks=True) + found.lead + messages[-1]["content"]

    lead, stops = _around(found)
    marked = any(token.special and token.content in lead for token in tokenizer.added_tokens_decoder.values())
    return Wrapping("chat", found.source, canonical_json(dict(found.specials)), lead, marked, stops, render)


def _around(found: Chat) -> tuple[str, tuple[str, ...]]:
    """Return what a chat template writes before an answer, and what it ends one with."""
    try:
        closings = (found.closing, found.end_of_turn or "")
        return found.lead, tuple(dict.fromkeys(text.rstrip() for text in closings if text.strip()))
    except RenderError:  # each request says so
        return "", ()


def choose_wrapping(protocol: schema.Protocol, setting_template: str | schema.TemplateText, tokenizer: Any) -> Wrapping:
    """Return the wrapping that a protocol asks for, given the template of the setting under comparison."""
    if protocol.template == "none":
        return NONE
    if protocol.template == "chat" or setting_template == template.CHAT:
        return chat(tokenizer)
    if isinstance(setting_template, schema.TemplateText):
        return training(setting_template.prompt)
    return training(template.PROMPTS[setting_template])
