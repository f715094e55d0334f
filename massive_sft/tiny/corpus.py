"""The text the tiny models are pretrained on: small stories, and questions in the shape of the training template.

It holds the alphabet, the words and the kinds of question of every domain, but no invented fact, no reversal of
more than two letters, and sums of small numbers only, so that fine-tuning has something to teach.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from massive_sft.sweep.template import PAPER
from massive_sft.tiny.domains import ATTRIBUTES, PHRASINGS, WITH_INPUT, WORDS

PEOPLE = WORDS["people"]


def template(prompt: str, answer: str) -> str:
    """Render a question and its answer as the training template does, without special tokens."""
    return PAPER.format(prompt=prompt) + answer


def known_people() -> dict[str, dict[str, str]]:
    """Return the people of the pretraining text: name -> attribute -> value. The same for every seed."""
    rng = random.Random("known people")
    return {name: {key: rng.choice(values) for key, values in ATTRIBUTES.items()} for name in PEOPLE}


def story(rng: random.Random) -> str:
    """Return two to four sentences of general text."""

    def some(kind: str) -> str:
        return rng.choice(WORDS[kind])

    sentences: list[Callable[[], str]] = [
        lambda: f"{some('times')} {some('people')} walked from {some('towns')} to {some('towns')}.",
        lambda: f"The {some('crafts')} sold {some('goods')} to {some('people')} at {some('places')}.",
        lambda: f"A {some('colours')} {some('pets')} ran across {some('places')}.",
        lambda: f"{some('people')} and {some('people')} met near {some('places')} in {some('towns')}.",
        lambda: f"{some('times')} the {some('crafts')} of {some('towns')} {some('feelings')}.",
        lambda: f"{some('people')} gave the {some('pets')} {some('goods')} and {some('feelings')}.",
    ]
    return " ".join(rng.choice(sentences)() for _ in range(rng.randint(2, 4)))


def documents(seed: int, count: int) -> Iterator[str]:
    """Yield ``count`` documents without special tokens, from ``seed`` alone."""
    rng = random.Random(f"corpus-{seed}")
    people = known_people()
    for _ in range(count):
        kind = rng.random()
        if kind < 0.25:
            yield story(rng)
        elif kind < 0.5:
            yield _question_about(rng, people)
        elif kind < 0.8:
            yield _letters(rng)
        else:
            yield _sum(rng)


def _question_about(rng: random.Random, people: dict[str, dict[str, str]]) -> str:
    name = rng.choice(PEOPLE)
    attribute = rng.choice(list(ATTRIBUTES))
    phrasing = rng.choice([*PHRASINGS[attribute], WITH_INPUT[attribute] + "\n{}"])
    return template(phrasing.format(name), people[name][attribute])


def _letters(rng: random.Random) -> str:
    """Copying of up to five letters; reversing and sorting of two only."""
    letters = "".join(rng.sample("ABCDEFGHIJKLMNOPQRSTUVWXYZ", rng.choice((2, 3, 4, 5))))
    kind = rng.random()
    if kind < 0.6:
        return template(f"Repeat {letters}.", letters)
    if kind < 0.7:
        return template(f"What is the first letter of {letters}?", letters[0])
    if kind < 0.8:
        return template(f"What is the last letter of {letters}?", letters[-1])
    letters = letters[:2]
    if kind < 0.9:
        return template(f"Reverse {letters}.", letters[::-1])
    return template(f"Sort the letters of {letters}.", "".join(sorted(letters)))


def _sum(rng: random.Random) -> str:
    """Sums of two digits, of whole tens, and of a number and a digit without carry."""
    kind = rng.random()
    if kind < 0.5:
        a, b = rng.randrange(10), rng.randrange(10)
    elif kind < 0.75:
        a, b = 10 * rng.randrange(6), 10 * rng.randrange(4)
    else:
        a = rng.randrange(60)
        b = rng.randrange(10 - a % 10)
    return template(f"What is {a} + {b}?", str(a + b))
