"""One generated answer in the making: its tokens, where it ends, its text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from massive_sft.evaluation.sampling import Draw, Sampling

# A stop may begin inside a token and a character may span four of them.
_SLACK_TOKENS = 4
_HALF_A_CHARACTER = "\ufffd"


@dataclass(frozen=True)
class GeneratedText:
    """A text before its first stop, the tokens that were made (the stop's included), and why it ended."""

    text: str
    tokens: int
    finish: str


@dataclass(frozen=True)
class Prompt:
    """One answer to make.

    Attributes:
        tokens: what the model reads.
        lead: what it writes before the answer.
        until: the texts that end the answer; a special token's among them.
        limit: tokens of the answer at most; those of the lead alone do not count.
        cut: whether its beginning was left out, for it is longer than the model's context.
        sampling: how its tokens are drawn; None: each is the likeliest.
    """

    tokens: list[int]
    lead: str
    until: tuple[str, ...]
    limit: int
    cut: bool = False
    sampling: Sampling | None = None

    @property
    def most(self) -> int:
        """Tokens that may be made: a lead has at most a token a byte."""
        return self.limit + len(self.lead.encode())

    def draw(self, place: int) -> Draw | None:
        """Return what draws the token at a place of the answer; None where it is the likeliest."""
        return None if self.sampling is None else Draw(self.sampling, place)


def cut(text: str, until: Sequence[str]) -> str:
    """Return the text before the first of the stop strings."""
    return text[: min((text.find(stop) for stop in until if stop in text), default=len(text))]


class Endings:
    """What ends answers: tokens, and the texts of stops. Of one tokenizer, for all answers.

    Args:
        ends: the tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, ends: Collection[int]):
        self.tokenizer = tokenizer
        self.ends = frozenset(ends)
        added = tokenizer.added_tokens_decoder.items()
        self.special = {index: token.content for index, token in added if token.special}
        self._texts: dict[int, str] = {}
        self._completing: dict[tuple[str, ...], dict[int, bool]] = {}

    def completes(self, token: int, until: tuple[str, ...]) -> bool:
        """Return whether a text may hold one of the stops for the first time once the token is added to it.

        That is so where the token holds a stop's last character, or a part of a character. A token's text is decoded
        once, not for every answer.
        """
        known = self._completing.setdefault(until, {})
        if token not in known:
            text = self._text(token)
            last = {stop[-1:] for stop in until}
            known[token] = not text or _HALF_A_CHARACTER in text or any(end in text for end in last)
        return known[token]

    def plain(self, text: str) -> str:
        """Return a text without what the tokenizer's special tokens stand for in it."""
        for token in self.special.values():
            text = text.replace(token, "")
        return text

    def _text(self, token: int) -> str:
        """Return what a token may add to a text, at its beginning or later: some decoders leave a first space out."""
        if token not in self._texts:
            self._texts[token] = self.tokenizer.decode([token, token])
        return self._texts[token]


class Writing:
    """One answer in the making.

    Attributes:
        made: its tokens so far, those of the lead and of the stop included.
        finish: why it ended; None while it goes on.
    """

    def __init__(self, prompt: Prompt, endings: Endings):
        self.prompt, self._endings = prompt, endings
        self.made: list[int] = []
        self.finish: str | None = None
        self._leading = 0  # how many of the made tokens hold the lead alone
        self._window = max((len(stop.encode()) for stop in prompt.until), default=0) + _SLACK_TOKENS

    def take(self, token: int) -> None:
        """Add a token to an answer that is not finished, and see whether that finishes it."""
        made, prompt, decode = self.made, self.prompt, self._endings.tokenizer.decode
        made.append(token)
        if token in self._endings.ends:
            self.finish = "eos"
            return
        leading = bool(prompt.lead) and self._leading == len(made) - 1
        if leading and len(made) <= prompt.most - prompt.limit:
            self._leading += prompt.lead.startswith(decode(made))
        # What began like a lead may turn out to be none, and to hold a stop.
        if leading or self._endings.completes(token, prompt.until):
            recent = decode(made[-self._window :])
            # The whole text decides: a tokenizer may decode the beginning of a window differently.
            if any(stop in recent for stop in prompt.until):
                text = _after(prompt.lead, decode(made))
                self.finish = "stop" if any(stop in text for stop in prompt.until) else None
        if self.finish is None and len(made) - self._leading == prompt.limit:
            self.finish = "length"

    def answer(self) -> GeneratedText:
        """Return the answer as far as it is made."""
        made, prompt, decode = self.made, self.prompt, self._endings.tokenizer.decode
        plain = decode([token for token in made if token not in self._endings.ends], skip_special_tokens=True)
        whole, lead = decode(made), prompt.lead
        leads = whole.startswith(lead) or lead.startswith(whole)
        text = cut(_after(self._endings.plain(lead) if leads else lead, plain), prompt.until)
        # A stop may be a special token, or hold one: a chat template may close its answers with a space and </s>.
        earlier = cut(_after(lead, whole), prompt.until)
        for token in self._endings.special.keys() & made:
            earlier = earlier.replace(self._endings.special[token], "")
        return GeneratedText(earlier if text.startswith(earlier) else text, len(made), self.finish or "length")


def _after(lead: str, text: str) -> str:
    """Return what a text holds after a lead, or after the beginning of one that is white space."""
    if lead.startswith(text):
        return ""
    lengths = range(len(lead), -1, -1) if lead.isspace() else (len(lead), 0)
    return text[next(length for length in lengths if text.startswith(lead[:length])) :]
