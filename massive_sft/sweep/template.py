"""Templates: how a prompt and its completion become one text."""

from __future__ import annotations

from massive_sft.core.errors import Problem


def field_problem(place: str, text: str, field: str) -> Problem | None:
    """Return what is wrong with a template string, which must hold ``{field}`` exactly once and no other brace."""
    rest = text.replace("{" + field + "}", "", 1)
    if rest != text and "{" not in rest and "}" not in rest:
        return None
    return Problem(place, f"must contain {{{field}}} exactly once and no other brace", text)


# The paper's template (Harada et al. 2025): `###Question: {instruction}`, newline, `###Answer: {response}`.
PAPER = "###Question: {prompt}\n###Answer: "
PROMPTS = {"paper": PAPER, "plain": "{prompt}"}
CHAT = "chat"  # the tokenizer's own chat template
NAMES = (*PROMPTS, CHAT)
