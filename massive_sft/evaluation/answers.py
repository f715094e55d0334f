"""What a model was asked and what it answered, for people: one row an answer, read from files without lm-eval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from massive_sft.evaluation.gold import read_gold
from massive_sft.evaluation.interim_looks import Looks
from massive_sft.evaluation.requests import Generation, Likelihood, Request, RequestSet, Rolling
from massive_sft.evaluation.responses import GenerationResponse, LikelihoodResponse, Response, read_responses
from massive_sft.ledger.storage import Storage


@dataclass(frozen=True)
class Answer:
    """One document's prompt and answer.

    Attributes:
        task, doc: lm-eval's names of them.
        draw: which of the document's sampled answers it is, from 0.
        kind: of the request: ``loglikelihood``, ``loglikelihood_rolling`` or ``generate_until``.
        prompt: all that the model read before it answered; of a rolling request the text.
        gold: the right answer; None where the task says none or none was kept.
        answer: what was written, before the task's filters; of choices the likeliest; None for a rolling request.
        logprob: of the answer (or of the rolling text), in nats; None for a generated one.
        finish: why a generated answer ended: ``stop``, ``eos`` or ``length``.
    """

    task: str
    doc: int
    draw: int
    kind: str
    prompt: str
    gold: str | None
    answer: str | None
    logprob: float | None
    finish: str | None


def read_answers(requests: RequestSet, place: Storage) -> Iterator[Answer]:
    """Yield a cell's answers to a benchmark, task by task, in the documents' order.

    Args:
        requests: what was asked.
        place: the cell's responses under the protocol.

    Raises:
        FileNotFoundError: it was not answered here, or not to its end.
        Corrupt: a file is damaged, or answers other requests.
    """
    for leaf in requests.leaves:
        yield from _leaf_answers(requests, leaf.name, *read_responses(requests, leaf, place, None))


def read_early_answers(requests: RequestSet, place: Storage, look: int) -> Iterator[Answer]:
    """Yield the answers that an early score rests on, as ``read_answers``.

    Args:
        requests: of the whole benchmark.
        place: the cell's responses look by look (``looks.looks_key``).
        look: after which the score was made.

    Raises: as ``read_answers``.
    """
    for leaf, answered in Looks(requests, place).read(look, None).items():
        yield from _leaf_answers(requests, leaf, *answered)


def _leaf_answers(
    requests: RequestSet, leaf: str, asked: Sequence[Request], answered: Sequence[Response]
) -> Iterator[Answer]:
    golds = read_gold(requests, leaf)
    for doc, group in groupby(zip(asked, answered, strict=True), key=lambda pair: pair[0].doc):
        pairs = list(group)
        generated = isinstance(pairs[0][0], Generation)
        for draw, together in enumerate([[pair] for pair in pairs] if generated else [pairs]):
            yield _answer(leaf, doc, draw, golds.get(doc), together)


def _answer(task: str, doc: int, draw: int, gold: str | None, pairs: Sequence[tuple[Request, Response]]) -> Answer:
    request, response = pairs[0]
    if isinstance(request, Generation) and isinstance(response, GenerationResponse):
        return Answer(task, doc, draw, request.kind, request.context, gold, response.text, None, response.finish)
    if isinstance(request, Rolling) and isinstance(response, LikelihoodResponse):
        return Answer(task, doc, draw, request.kind, request.text, None, None, response.logprob, None)
    choices = _choices(pairs)
    prompt = _common_beginning([asked.context for asked, _ in choices])
    chosen, likeliest = max(choices, key=lambda pair: pair[1].logprob)
    said = chosen.context[len(prompt) :] + chosen.continuation
    return Answer(task, doc, draw, chosen.kind, prompt, gold, said.strip(), likeliest.logprob, None)


def _choices(pairs: Sequence[tuple[Request, Response]]) -> list[tuple[Likelihood, LikelihoodResponse]]:
    """Return a document's choices, but for those without a context, which only correct the others' scores."""
    asked = [
        (request, response)
        for request, response in pairs
        if isinstance(request, Likelihood) and isinstance(response, LikelihoodResponse)
    ]
    return [pair for pair in asked if pair[0].context] or asked


def _common_beginning(texts: Sequence[str]) -> str:
    """Return how all texts begin; Winogrande's choices stand before the end of the context."""
    first, last = min(texts), max(texts)
    length = next((index for index, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1), None)
    return first[:length]
