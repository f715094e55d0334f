"""The answers that are judged: written by the model in turns, as those to any benchmark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from massive_sft.core.fingerprint import fingerprint
from massive_sft.evaluation import requests as sets
from massive_sft.evaluation.requests import Generation, Leaf, Request, RequestSet
from massive_sft.evaluation.responses import (
    WHOLE,
    AnswerShard,
    GenerationResponse,
    Response,
    answer_list,
    answer_requests,
    read_list,
    read_responses,
)
from massive_sft.evaluation.wrapping import Wrapping
from massive_sft.judging.questions import Question
from massive_sft.ledger.storage import Storage
from massive_sft.sweep.schema import JudgedBenchmark

VERSION = "1"  # of how questions become prompts
BARE = "\n\n"  # between question and answer where nothing wraps them


@dataclass(frozen=True)
class Conversation:
    """How turns become a prompt.

    Attributes:
        wrapping: of the protocol.
        closing: what ends an answer before a next turn, in a training template: the text of EOS and a line's end, as
            training has it.
        max_tokens: of an answer.
    """

    wrapping: Wrapping
    closing: str
    max_tokens: int

    def request(self, index: int, question: Question, answers: Sequence[str]) -> Generation:
        """Return the request for the next turn of a question, after the answers to those before it."""
        context = self._context(question.turns[: len(answers) + 1], answers)
        prompt = context.rstrip() if self.wrapping.kind == "training" else context
        stops = tuple(dict.fromkeys(stop for stop in self.wrapping.stops if stop))
        identity = fingerprint({"question": question.number, "turns": list(question.turns)})[:16]
        lead = context[len(prompt) :] + self.wrapping.lead
        return Generation(
            index, question.number, len(answers), identity, 1, prompt, stops, self.max_tokens, lead
        )  # fmt: skip

    def _context(self, turns: Sequence[str], answers: Sequence[str]) -> str:
        render = self.wrapping.render
        if render is None:
            pieces = [f"{turn}{BARE}{answer}{BARE}" for turn, answer in zip(turns, answers, strict=False)]
            return "".join(pieces) + turns[-1] + BARE
        if self.wrapping.kind == "chat":
            messages = [{"role": "user", "content": turns[0]}]
            for answer, turn in zip(answers, turns[1:], strict=True):
                messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
            return render(messages)
        asked = [render([{"role": "user", "content": turn}]) for turn in turns]
        return "".join(a + b + self.closing for a, b in zip(asked, answers, strict=False)) + asked[-1]


def first_turns(
    benchmark: JudgedBenchmark, questions: Sequence[Question], conversation: Conversation, root: Path
) -> RequestSet:
    """Return the requests of the first turns, written under ``root``; those of later turns hang on answers."""
    asked: list[Request] = [conversation.request(number, item, ()) for number, item in enumerate(questions)]
    lines = [sets.to_line(request) for request in asked]
    turns = [list(question.turns) for question in questions]
    leaf = Leaf(benchmark.title, VERSION, fingerprint({"turns": turns}), len(asked), len(asked), sets.checksum(lines))
    rendered = sum(len(turn.encode()) for question in questions for turn in question.turns)
    answers = sum(len(question.turns) for question in questions)
    described = RequestSet(
        folder=root,
        label=f"{benchmark.title}-0shot",
        shots=0,
        limit=benchmark.limit,
        sampler=None,
        sampler_seed=None,
        template_kind=conversation.wrapping.kind,
        template_text=conversation.wrapping.text,
        leaves=(leaf,),
        provenance={
            "size": {
                "bytes": 0,
                "answers": answers,
                "prompt_bytes": rendered,
                "answer_tokens": answers * benchmark.max_tokens,
                "longest_answer": benchmark.max_tokens,
            }
        },
        generates=True,
        marked_lead=conversation.wrapping.marked,
    )
    return sets.write_set(root, described, {leaf.name: asked})


def answer_turns(
    requests: RequestSet,
    questions: Sequence[Question],
    conversation: Conversation,
    place: Storage,
    weights: str,
    answer: AnswerShard,
) -> tuple[list[list[str]], Mapping[str, int]]:
    """Answer what is not answered yet; return each question's answers, a turn each, and counts of what happened.

    Args:
        requests: of ``first_turns``.
        place: where responses lie, a folder a turn.
        answer: the ``score`` of a scorer of these weights.
    """
    (leaf,) = requests.leaves
    happened = Counter(answer_requests(requests, place, weights, answer))
    _, first = read_responses(requests, leaf, place, weights)
    answers = [[_text(response)] for response in first]
    for turn in range(1, max(len(question.turns) for question in questions)):
        asked: list[Request] = [
            conversation.request(number, question, answers[number])
            for number, question in enumerate(questions)
            if len(question.turns) > turn
        ]
        name = f"{leaf.name}-turn-{turn + 1}"
        happened.update(answer_list(place, name, weights, asked, requests.folder, answer, WHOLE))
        for request, response in zip(asked, read_list(place, name, weights, asked), strict=True):
            answers[request.index].append(_text(response))
    return answers, dict(happened)


def _text(response: Response) -> str:
    assert isinstance(response, GenerationResponse)
    return response.text.strip()
