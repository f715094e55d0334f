"""A table of tokenizers and templates: what is trained, and whether scoring's prompt is how the training text begins.

Run: ``python benchmarks/templates.py FOLDER...``, each a folder with a tokenizer; the table is Markdown.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from massive_sft.core.errors import InvalidInput
from massive_sft.data.encoding import Encoded, RowEncoder
from massive_sft.data.findings import Findings
from massive_sft.data.rows import Row
from massive_sft.evaluation import wrapping
from massive_sft.evaluation.encoding import RequestEncoder
from massive_sft.models.tokenizer import load_tokenizer
from massive_sft.sweep import template
from massive_sft.sweep.schema import Model, Setting

QUESTION = "What is the name?"
ANSWERS = ("Paris", "42", "apple 7 é 😀", "日本", "a city.\n\nThe name is Paris", "x = [\n    1,\n]", "\n    return x")
COLUMNS = (
    "tokenizer",
    "template",
    "begins with",
    "trained, first answer",
    "prompt = beginning",
    "whole again",
    "turns",
)


def encode(tokenizer: Any, form: str, *answers: str) -> Encoded:
    """Return the sample of a conversation. Raises InvalidInput when it is refused."""
    findings = Findings()
    encoder = RowEncoder(tokenizer, Setting(method="full", lr=1e-5, batch=1, template=form))
    row = Row(0, tuple((QUESTION, answer) for answer in answers), None, "row", 1)
    samples = encoder.encode([row], "data", findings)
    findings.raise_if_any()
    return samples[0]


def runs(tokenizer: Any, sample: Encoded) -> list[str]:
    """Return the text of each trained run of tokens."""
    found, shown, end = [], "", 0
    for trained, run in groupby(sample.trainable):
        end += len(list(run))
        decoded = tokenizer.decode(sample.tokens[:end].tolist(), clean_up_tokenization_spaces=False)
        found += [decoded[len(shown) :]] if trained else []
        shown = decoded
    return found


def prompt_tokens(tokenizer: Any, form: str) -> list[int]:
    """Return the tokens of the prompt that scoring makes for the question."""
    if form == template.CHAT:
        text = wrapping.chat(tokenizer).render([{"role": "user", "content": QUESTION}])
    else:
        text = template.PROMPTS[form].replace("{prompt}", QUESTION).rstrip()
    return RequestEncoder(tokenizer).encode(text)


def row_of(tokenizer: Any, name: str, form: str) -> list[str]:
    """Return a row of the table: a tokenizer under a template, or the sentence that refuses it."""
    try:
        samples = [encode(tokenizer, form, answer) for answer in ANSWERS]
        several = encode(tokenizer, form, *ANSWERS)
    except InvalidInput as error:
        return [name, form, *["-"] * 4, f"refused: {error.problems[0].rule}"]
    prompt = prompt_tokens(tokenizer, form)
    same = sum(
        sample.tokens[: len(prompt)].tolist() == prompt
        and not sample.trainable[: len(prompt)].any()
        and bool(sample.trainable[len(prompt) :].all())
        for sample in samples
    )
    whole = sum(answer in runs(tokenizer, sample)[0] for answer, sample in zip(ANSWERS, samples, strict=True))
    first = tokenizer.convert_ids_to_tokens(int(samples[0].tokens[0]))
    turns = sum(answer in run for answer, run in zip(ANSWERS, runs(tokenizer, several), strict=True))
    total = len(ANSWERS)
    shown = f"`{runs(tokenizer, samples[0])[0]!r}`"
    return [name, form, f"`{first}`", shown, f"{same} of {total}", f"{whole} of {total}", f"{turns} of {total}"]


def main(folders: list[str]) -> None:
    """Print the table of the tokenizers in ``folders``."""
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for folder in folders:
        tokenizer = load_tokenizer(Model(path=folder))
        name = next((part for part in reversed(Path(folder).parts) if part not in ("models", "package")), folder)
        for form in template.NAMES:
            print("| " + " | ".join(text.replace("|", "\\|") for text in row_of(tokenizer, name, form)) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
