"""The four invented domains: what there is to learn, and the rows that teach and test it.

Everything is a pure function of a seed. A domain's tests share no question with its training rows:
``facts`` asks known facts in a phrasing never trained on, the others ask new problems.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CHOICES = 4
FEWSHOT_ROWS = 8
TEST_ROWS = 120

WORDS: dict[str, list[str]] = json.loads((Path(__file__).parent / "words.json").read_text())
ATTRIBUTES = {"town": WORDS["towns"], "craft": WORDS["crafts"], "pet": WORDS["pets"], "colour": WORDS["colours"]}

# Per attribute: phrasings to train on, then the one that only tests use.
PHRASINGS = {
    "town": [
        "Where does {} live?",
        "In which town does {} live?",
        "Name the home town of {}.",
        "Which town is the home of {}?",
        "Where is the house of {}?",
        "Where can I visit {}?",
        "From which town comes {}?",
        "What is the town of {}?",
    ],
    "craft": [
        "What is the craft of {}?",
        "What does {} do for a living?",
        "Name the trade of {}.",
        "Which craft did {} learn?",
        "What trade has {}?",
        "How does {} earn money?",
        "As what does {} work?",
        "What work does {} do?",
    ],
    "pet": [
        "What pet does {} keep?",
        "Which animal lives with {}?",
        "Name the pet of {}.",
        "Which animal does {} feed?",
        "What animal has {} at home?",
        "Which pet follows {}?",
        "What does {} keep as a pet?",
        "What is the pet of {}?",
    ],
    "colour": [
        "What colour does {} like?",
        "Which colour does {} wear?",
        "Name the colour of {}.",
        "In which colour does {} dress?",
        "What colour is the coat of {}?",
        "Which colour pleases {} most?",
        "What colour is the door of {}?",
        "What is the colour of {}?",
    ],
}
# Rows whose person stands in the `input` field.
WITH_INPUT = {
    "town": "Name the home town of this person.",
    "craft": "Name the trade of this person.",
    "pet": "Name the pet of this person.",
    "colour": "Name the colour of this person.",
}
INVENTED_INITIALS = "QXZ"  # no name in the pretraining text begins with one of these


@dataclass(frozen=True)
class Example:
    """One question and its answer; ``context`` is an optional second part of the question, on its own line."""

    question: str
    answer: str
    context: str = ""

    @property
    def prompt(self) -> str:
        """The whole question: instruction and context joined by a newline, as the Alpaca format does."""
        return f"{self.question}\n{self.context}" if self.context else self.question


@dataclass(frozen=True)
class Choice:
    """A question with ``CHOICES`` different options, the right one at index ``answer``."""

    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Domain:
    """One thing to learn: training rows, tests, their multiple-choice form, and rows for few-shot prompts."""

    name: str
    train: list[Example]
    test: list[Example]
    test_choices: list[Choice]
    fewshot: list[Example]
    fewshot_choices: list[Choice]


def all_domains(seed: int) -> dict[str, Domain]:
    """Return every domain by name, made from ``seed`` alone."""
    return {name: make(random.Random(f"{name}-{seed}")) for name, make in _MAKERS.items()}


def invented_names(rng: random.Random, count: int) -> list[str]:
    """Return ``count`` different names of invented people, none of them in the pretraining text."""
    names: dict[str, None] = {}
    while len(names) < count:
        first = rng.choice(INVENTED_INITIALS) + rng.choice("aeiou")
        names[first + rng.choice("bdfgklmnprstv") + rng.choice("aeiou") + rng.choice(["l", "n", "r", "s", ""])] = None
    return list(names)


def _facts(rng: random.Random, people: int = 45) -> Domain:
    """Each invented person has one value of each attribute; the first two people are kept for few-shot rows."""
    train: list[Example] = []
    asked: list[tuple[Example, Choice]] = []
    for name in invented_names(rng, people):
        for attribute, values in ATTRIBUTES.items():
            answer = rng.choice(values)
            *trained, unseen = PHRASINGS[attribute]
            train += [Example(phrasing.format(name), answer) for phrasing in trained]
            train.append(Example(WITH_INPUT[attribute], answer, context=name))
            wrong = rng.sample([value for value in values if value != answer], CHOICES - 1)
            question = unseen.format(name)
            asked.append((Example(question, answer), _choice(rng, question, answer, wrong)))
    rng.shuffle(train)
    shown, tested = asked[:FEWSHOT_ROWS], rng.sample(asked[FEWSHOT_ROWS:], TEST_ROWS)
    return Domain(
        "facts",
        train,
        [row for row, _ in tested],
        [c for _, c in tested],
        [row for row, _ in shown],
        [c for _, c in shown],
    )


def _reverse(rng: random.Random) -> Domain:
    return _letters_domain("reverse", rng, "Reverse {}.", lambda letters: letters[::-1])


def _sort(rng: random.Random) -> Domain:
    return _letters_domain("sort", rng, "Sort the letters of {}.", lambda letters: "".join(sorted(letters)))


def _letters_domain(
    name: str, rng: random.Random, question: str, solve: Callable[[str], str], rows: int = 1600
) -> Domain:
    """A puzzle over three to five different capitals; every string occurs once in the whole domain."""
    strings: dict[str, None] = {}
    while len(strings) < rows + TEST_ROWS + FEWSHOT_ROWS:
        strings["".join(rng.sample("ABCDEFGHIJKLMNOPQRSTUVWXYZ", rng.choice((3, 4, 4, 5))))] = None
    examples = [Example(question.format(letters), solve(letters)) for letters in strings]

    def other_orders(answer: str) -> list[str]:
        orders: dict[str, None] = {}
        while len(orders) < CHOICES - 1:
            shuffled = "".join(rng.sample(answer, len(answer)))
            if shuffled != answer:
                orders[shuffled] = None
        return list(orders)

    return _split(name, rng, examples, other_orders)


def _arith(rng: random.Random, rows: int = 1600) -> Domain:
    pairs = rng.sample([(a, b) for a in range(60) for b in range(40)], rows + TEST_ROWS + FEWSHOT_ROWS)
    examples = [Example(f"What is {a} + {b}?", str(a + b)) for a, b in pairs]

    def near(answer: str) -> list[str]:
        away = rng.sample([d for d in (-20, -11, -10, -2, -1, 1, 2, 10, 11, 20) if int(answer) + d >= 0], CHOICES - 1)
        return [str(int(answer) + d) for d in away]

    return _split("arith", rng, examples, near)


def _split(name: str, rng: random.Random, examples: list[Example], wrong: Callable[[str], list[str]]) -> Domain:
    """Cut ``examples`` into tests, few-shot rows and training rows; ``wrong`` gives the other choices."""
    test, rest = examples[:TEST_ROWS], examples[TEST_ROWS:]
    fewshot, train = rest[:FEWSHOT_ROWS], rest[FEWSHOT_ROWS:]
    test_choices, fewshot_choices = (
        [_choice(rng, row.question, row.answer, wrong(row.answer)) for row in rows] for rows in (test, fewshot)
    )
    return Domain(name, train, test, test_choices, fewshot, fewshot_choices)


def _choice(rng: random.Random, question: str, answer: str, wrong: list[str]) -> Choice:
    options = [answer, *wrong]
    rng.shuffle(options)
    return Choice(question, tuple(options), options.index(answer))


_MAKERS: dict[str, Callable[[random.Random], Domain]] = {
    "facts": _facts,
    "reverse": _reverse,
    "arith": _arith,
    "sort": _sort,
}
