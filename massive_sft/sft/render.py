"""A row as text: what the model reads, and which characters of it are completions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jinja2

from massive_sft.errors import InvalidInput, Problem
from massive_sft.sft.rows import Row
from massive_sft.sweep import template
from massive_sft.sweep.schema import TemplateText

if TYPE_CHECKING:
    from massive_sft.modeling import PreTrainedTokenizerFast


class Rendered(NamedTuple):
    """A row's full text.

    Attributes:
        text: everything that is encoded, at once.
        spans: (border, start, end) of each completion, in characters of ``text``: ``border`` where the white space
            before it begins, ``end`` behind the end token that the text itself holds after it, if any.
        closed: whether the last completion is followed by such a token; else the encoder appends EOS.
    """

    text: str
    spans: tuple[tuple[int, int, int], ...]
    closed: bool


class RenderError(Exception):
    """A row that its chat template cannot render so that the completions can be found."""


Render = Callable[[Row], Rendered]


def renderer(form: str | TemplateText, tokenizer: PreTrainedTokenizerFast, special: tuple[str, ...]) -> Render:
    """Return the function that renders rows with a template.

    Args:
        form: ``paper``, ``plain``, ``chat``, or a template of one's own.
        tokenizer: gives the EOS text between turns, and the chat template.
        special: the texts of its special tokens.

    Raises:
        InvalidInput: for ``chat`` when the tokenizer has no chat template.
    """
    if form == template.CHAT:
        try:
            tokenizer.get_chat_template()
        except ValueError as error:
            rule = "chat needs a tokenizer with one chat template of its own; use paper, plain or a template text"
            raise InvalidInput(Problem("settings: template", f"{rule}: {str(error).splitlines()[0]}")) from error
        return lambda row: _chat(row, tokenizer, special)
    pattern = form.prompt if isinstance(form, TemplateText) else template.PROMPTS[form]
    return lambda row: _turns(row, pattern, str(tokenizer.eos_token))


def _turns(row: Row, pattern: str, eos: str) -> Rendered:
    """The template around each prompt, then its completion. A further turn follows EOS and a newline.

    A system message stands before the first prompt, inside the template, with a newline between them.
    """
    pieces: list[str] = []
    spans = []
    length = 0
    last = len(row.turns) - 1
    for turn, (prompt, completion) in enumerate(row.turns):
        if turn == 0 and row.system is not None:
            prompt = f"{row.system}\n{prompt}"
        opening = ("\n" if turn else "") + pattern.replace("{prompt}", prompt)
        closing = completion if turn == last else completion + eos
        border, start = length + len(opening.rstrip()), length + len(opening)
        length = start + len(closing)
        pieces += (opening, closing)
        spans.append((border, start, length))
    return Rendered("".join(pieces), tuple(spans), closed=False)


def _chat(row: Row, tokenizer: PreTrainedTokenizerFast, special: tuple[str, ...]) -> Rendered:
    """The tokenizer's chat template. A completion lies between two renderings of its conversation's beginnings:

    up to its question, with the generation prompt, and up to its answer. Both must be prefixes of the whole.
    The end-of-turn token is trained, white space that the template puts after it is not.
    """
    messages = [] if row.system is None else [{"role": "system", "content": row.system}]
    cuts = []
    for prompt, completion in row.turns:
        messages.append({"role": "user", "content": prompt})
        messages.append({"role": "assistant", "content": completion})
        cuts.append(len(messages))

    def render(count: int, asks: bool) -> str:
        try:
            return str(tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=asks))
        except jinja2.TemplateError as error:
            raise RenderError(f"is refused by the chat template: {error}") from error

    text = render(len(messages), False)
    spans = []
    closed = False
    for cut, (_, completion) in zip(cuts, row.turns, strict=True):
        asked = render(cut - 1, True)
        answered = text if cut == len(messages) else render(cut, False)
        if not (text.startswith(asked) and text.startswith(answered) and len(asked) <= len(answered)):
            raise RenderError("has a chat template that renders a conversation's beginning differently from the whole")
        trimmed = answered.rstrip()
        closed = len(trimmed) >= len(asked) and trimmed.endswith(special)
        end = len(trimmed) if closed else len(answered)
        if completion.strip() not in text[len(asked) : end]:
            raise RenderError("has a chat template that changes the completion")
        spans.append((len(asked), len(asked), end))  # white space after a header stands in every prompt: no border
    return Rendered(text[: spans[-1][2]], tuple(spans), closed)
