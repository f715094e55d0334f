"""What judges are told: prompts of our own, or those of a file in a published form."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.sweep.yaml_file import read_yaml

OWN = Path(__file__).with_name("prompts.yaml")
RATE, RATE_REFERENCE = "rate", "rate_with_reference"
RATE_SECOND, RATE_SECOND_REFERENCE = "rate_second_turn", "rate_second_turn_with_reference"
COMPARE = "compare"
# Of each prompt: its name in FastChat's file, and what it must have a place for.
_FASTCHAT = {
    RATE: "single-v1",
    RATE_REFERENCE: "single-math-v1",
    RATE_SECOND: "single-v1-multi-turn",
    RATE_SECOND_REFERENCE: "single-math-v1-multi-turn",
}
_SECOND = frozenset({"question_1", "answer_1", "question_2", "answer_2"})
FIELDS: Mapping[str, frozenset[str]] = {
    RATE: frozenset({"question", "answer"}),
    RATE_REFERENCE: frozenset({"question", "answer", "ref_answer_1"}),
    RATE_SECOND: _SECOND,
    RATE_SECOND_REFERENCE: _SECOND | {"ref_answer_1", "ref_answer_2"},
    COMPARE: frozenset({"instruction", "output_1", "output_2"}),
}
_PART = re.compile(r"<\|im_start\|>(system|user)\n(.*?)\n?<\|im_end\|>", re.DOTALL)


@dataclass(frozen=True)
class Prompt:
    """A text for the judge with ``{name}`` for what is filled in.

    Attributes:
        system: what it is told to be.
    """

    system: str
    user: str

    def fill(self, **values: str) -> str:
        """Return the text with each ``{name}`` of ``values`` replaced; other braces, and those in values, stay."""
        pattern = "|".join(map(re.escape, values))
        return re.sub(rf"\{{({pattern})\}}", lambda match: values[match[1]], self.user)


def read_prompts(kind: str, path: str | None, place: str) -> Mapping[str, Prompt]:
    """Return the prompts of a kind of benchmark by name, of a file or our own.

    Args:
        kind: ``mt_bench`` or ``win_rate``.
        path: FastChat's JSON lines for ``mt_bench``, AlpacaEval's text for ``win_rate``; None for our own.
        place: where the file is named.

    Raises:
        InvalidInput: it cannot be read, lacks a prompt, or one lacks a place for what it is about.
    """
    names = (COMPARE,) if kind == "win_rate" else tuple(_FASTCHAT)
    if path is None:
        own = _own()
        return {name: own[name] for name in names}
    try:
        text = Path(path).read_text(encoding="utf-8")
        found = {COMPARE: _marked_up(text)} if kind == "win_rate" else _of_fastchat(text)
    except OSError as error:
        raise InvalidInput(Problem(place, f"cannot be read ({error.strerror})", path)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(Problem(place, f"is no file of prompts ({type(error).__name__}: {error})", path)) from None
    problems = [
        Problem(place, f"has no {{{field}}} in its prompt {_FASTCHAT.get(name, name)}", path)
        for name in names
        for field in sorted(FIELDS[name])
        if f"{{{field}}}" not in found[name].user
    ]
    if problems:
        raise InvalidInput(problems)
    return found


@functools.cache
def _own() -> Mapping[str, Prompt]:
    return {str(name): Prompt(str(entry["system"]), str(entry["user"])) for name, entry in read_yaml(OWN).items()}


def _of_fastchat(text: str) -> dict[str, Prompt]:
    entries = {entry["name"]: entry for entry in map(json.loads, filter(None, text.split("\n")))}
    return {
        name: Prompt(str(entries[published]["system_prompt"]), str(entries[published]["prompt_template"]))
        for name, published in _FASTCHAT.items()
    }


def _marked_up(text: str) -> Prompt:
    """Return the prompt of a text in ChatML, as AlpacaEval keeps them. Raises KeyError without a user's part."""
    parts = {match[1]: match[2] for match in _PART.finditer(text)}
    return Prompt(parts.get("system", ""), parts["user"])
