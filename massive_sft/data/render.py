"""A row as text: what the model reads, and which characters of it are completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from massive_sft.data.chat import Chat, Message, RenderError
from massive_sft.data.rows import Row
from massive_sft.sweep import template
from massive_sft.sweep.schema import TemplateText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


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


Render = Callable[[Row], Rendered]

_MARK = "\ue000answer\ue001"  # private-use characters: no template looks for them


TEMPLATE = "template"  # the setting's field, which names what is wrong with it


def renderer(form: str | TemplateText, tokenizer: PreTrainedTokenizerFast) -> Render:
    """Return the function that renders rows with a template.

    Args:
        form: ``paper``, ``plain``, ``chat``, or a template of one's own.
        tokenizer: gives the EOS text between turns, and the chat template.

    Raises:
        InvalidInput: for ``chat`` when the tokenizer has no chat template that can be used (``data.chat.Chat``).
    """
    if form == template.CHAT:
        chat = Chat(tokenizer, TEMPLATE)
        return lambda row: _chat(row, chat)
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


def _chat(row: Row, chat: Chat) -> Rendered:
    """The tokenizer's chat template, rendered once: the answers are found in the whole conversation's text.

    An answer begins behind the generation prompt and ends with the token that the template closes answers with. What
    the template puts between the two, such as an empty think block, is trained: no generation prompt has it. A
    template that ends the last answer only leaves nothing to learn where earlier ones end, so they may not be trained.
    """
    messages: list[Message] = [] if row.system is None else [{"role": "system", "content": row.system}]
    for prompt, completion in row.turns:
        messages.append({"role": "user", "content": prompt})
        messages.append({"role": "assistant", "content": completion})
    text = chat.render(messages, asks=False)
    asked = [chat.render(messages[:count], asks=True) for count in range(len(messages) - 1, 0, -2)][::-1]
    out = "use a template of your own (template: {prompt: ...})"
    if len(row.turns) > 1:
        out = f"use turns: first, or {out.removeprefix('use ')}"
    if not text.startswith(asked[-1]):
        raise RenderError(f"has a chat template whose generation prompt is not how an answer begins; {out}")
    pieces = _around_answers(messages, chat)
    answers = [completion.strip() for _, completion in row.turns]
    places = _between(text, pieces, answers) or _directly_after(text, asked, answers, chat.closing)
    if places is None:
        raise RenderError(f"has a chat template that changes the completion; {out}")
    spans = []
    ended = []
    for prompt, (begin, end) in zip(asked, places, strict=True):
        start = len(prompt) if text.startswith(prompt) else begin
        ended.append(chat.end_of_turn is not None and text.startswith(chat.closing, end))
        end += len(chat.closing) if text.startswith(chat.closing, end) else 0
        spans.append((start, start, end))  # white space after a header stands in every prompt: no border
    if not all(done or turn in row.untrained for turn, done in enumerate(ended[:-1])):
        raise RenderError(_never_ends(chat))
    return Rendered(text[: spans[-1][2]], tuple(spans), ended[-1])


def _never_ends(chat: Chat) -> str:
    last = f"ends the last with {chat.closing!r} alone" if chat.end_of_turn else "has no token for it"
    return (
        f"trains answers whose end its chat template (settings: template) does not write: it {last}, so a model would "
        "not learn to stop; use turns: first, or weight 0 for earlier answers, or a template of your own "
        "(template: {prompt: ...}), which ends each with EOS"
    )


def _around_answers(messages: Sequence[Message], chat: Chat) -> list[str]:
    """Return what the template writes before, between and behind the answers."""
    marked = [{**message, "content": _MARK} if message["role"] == "assistant" else message for message in messages]
    return chat.render(marked, asks=False).split(_MARK)


def _between(text: str, pieces: Sequence[str], answers: Sequence[str]) -> list[tuple[int, int]] | None:
    """Return (begin, end) of each answer between the pieces around them; None when the text is not made of these.

    A template may strip what is said, so the white space around an answer may or may not be there.
    """
    if len(pieces) != len(answers) + 1 or not text.startswith(pieces[0]):
        return None
    places = []
    end = 0
    for number, answer in enumerate(answers):
        begin = end + len(pieces[number])
        following = pieces[number + 1]
        end = _past_space(text, answer, begin) + len(answer)
        if number == len(answers) - 1:
            behind = len(text) - len(following)
            whole = text.endswith(following) and behind >= end and not text[end:behind].strip()
            end = behind
        else:
            end = _past_space(text, following, end)
            whole = text.startswith(following, end)
        if not whole or text[begin:end].strip() != answer:
            return None
        places.append((begin, end))
    return places


def _past_space(text: str, wanted: str, place: int) -> int:
    """Return the first place where ``wanted`` begins, or where something other than white space does."""
    while not text.startswith(wanted, place) and text[place : place + 1].isspace():
        place += 1
    return place


def _directly_after(
    text: str, asked: Sequence[str], answers: Sequence[str], closing: str
) -> list[tuple[int, int]] | None:
    """Return (begin, end) of answers that turn the template another way, as one with a thought of its own does.

    Each must follow its generation prompt directly, and the closing it; None when one does not.
    """
    places = []
    for prompt, answer in zip(asked, answers, strict=True):
        begin = _past_space(text, answer, len(prompt))
        if not (text.startswith(prompt) and text.startswith(answer + closing, begin)):
            return None
        places.append((begin, begin + len(answer)))
    return places
