"""A benchmark's questions as a model gets them: decoded from its own tokens, with the scored answer marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from rich.console import Group
from rich.text import Text

from massive_sft.core.wording import counted
from massive_sft.data.preview import CLOSE, OPEN
from massive_sft.evaluation.encoding import RequestEncoder, windows
from massive_sft.evaluation.gold import read_gold
from massive_sft.evaluation.requests import Generation, Likelihood, Request, RequestSet, Rolling, read_requests
from massive_sft.evaluation.sampling import Sampling

SCORED = f"What stands between {OPEN} and {CLOSE} is scored; the model reads what is before it."
WRITTEN = "The model goes on where a question ends; what it writes there is its answer."


def questions_view(requests: RequestSet, tokenizer: Any, max_length: int, count: int) -> Group:
    """Return a benchmark's questions for a rich console, spread over all of them.

    Args:
        max_length: the model's context in tokens: what is longer loses its beginning, as in scoring.
        count: how many.
    """
    encoder = RequestEncoder(tokenizer)
    listed = [
        (leaf.name, doc, list(group), read_gold(requests, leaf.name).get(doc))
        for leaf in requests.leaves
        for doc, group in groupby(read_requests(requests, leaf), key=lambda request: request.doc)
    ]
    shown = min(count, len(listed))
    shots = "each task's own shots" if requests.shots is None else counted(requests.shots, "shot")
    head = f"{requests.label}: {counted(len(listed), 'question')}, {shots}, template {requests.template_kind}"
    written = {isinstance(request, Generation) for _, _, asked, _ in listed for request in asked}
    legends = [legend for legend, kind in ((SCORED, False), (WRITTEN, True)) if kind in written]
    parts = [Text(head, style="bold"), *(Text(legend, style="dim") for legend in legends)]
    for task, doc, asked, gold in (listed[index * len(listed) // shown] for index in range(shown)):
        parts += [Text(), Text(f"{task} question {doc}" + ("" if gold is None else f", right: {gold}"), style="bold")]
        parts += _question(asked, encoder, tokenizer, max_length)
    return Group(*parts)


def _question(asked: Sequence[Request], encoder: RequestEncoder, tokenizer: Any, max_length: int) -> Iterator[Text]:
    known: list[int] | None = None
    for request in asked:
        if isinstance(request, Generation):
            if request is not asked[0]:  # a further sampled answer
                continue
            tokens, lead = encoder.prompt(request.context, request.lead)
            yield from _passage(tokens, [], tokenizer, max_length - request.max_tokens)
            until = ", ".join(map(repr, request.until))
            rest = f" after {lead!r}, which is no part of it" if lead else ""
            made = "generated" if request.sampling is None else _drawn(request.sampling, len(asked))
            yield Text(f"{made}: up to {counted(request.max_tokens, 'token')}{rest}, ended by {until}", style="magenta")
        elif isinstance(request, Rolling):
            for before, scored in windows(encoder.encode(request.text), encoder.prefix, max_length):
                yield from _passage(before, scored, tokenizer, max_length)
        elif isinstance(request, Likelihood):
            before, scored = encoder.pair(request.context, request.continuation, request.joined)
            if before == known:  # the choices of one question
                yield Text(f"or {_marked([], scored, tokenizer)} ({counted(len(scored), 'token')})")
            else:
                yield from _passage(before, scored, tokenizer, max_length)
            known = before


def _drawn(sampling: Sampling, times: int) -> str:
    limits = f", top_k {sampling.top_k}" * (sampling.top_k > 0) + f", top_p {sampling.top_p:g}" * (sampling.top_p < 1)
    return f"sampled {counted(times, 'time')} at temperature {sampling.temperature:g}{limits}"


def _passage(before: Sequence[int], scored: Sequence[int], tokenizer: Any, max_length: int) -> Iterator[Text]:
    """Yield what is read and what is scored, after a line of their sizes."""
    cut = max(0, len(before) + len(scored) - (1 if scored else 0) - max_length)
    lost = f", the first {cut} cut off" if cut else ""
    marked = f", {len(scored)} scored" if scored else ""
    yield Text(f"{counted(len(before), 'token')} read{lost}{marked}", style="dim")
    yield _marked(before[cut:], scored, tokenizer)


def _marked(before: Sequence[int], scored: Sequence[int], tokenizer: Any) -> Text:
    whole = _decoded(tokenizer, [*before, *scored])
    read = _decoded(tokenizer, before) if before else ""
    text = Text(read)
    if scored:
        text.append(OPEN, style="dim").append(whole[len(read) :], style="bold green").append(CLOSE, style="dim")
    return text


def _decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))
