"""MT-Bench: each of two turns is rated from 1 to 10, some against a reference answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from massive_sft.judging import prompts
from massive_sft.judging.endpoint import Reply
from massive_sft.judging.prompts import Prompt
from massive_sft.judging.questions import WRONG_REFERENCES, Question
from massive_sft.judging.scores import Scale, Tables, Verdicts, agreement, failures, filter_of, plain
from massive_sft.judging.verdicts import Call

METRIC = "judge_rating"
SCALE = Scale(1.0, 10.0)
WITHIN = 1.0  # points by which two judges may differ and agree
# In this order, as FastChat looks for them; the last one in an answer counts less than the first in two brackets.
_RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


def parse(reply: Reply) -> float | None:
    """Return the rating in an answer: the first number in two pairs of brackets, else in one; None outside 1 to 10."""
    for pattern in _RATINGS:
        match = pattern.search(reply.text)
        if match:
            rating = float(match[1])
            return rating if SCALE.worst <= rating <= SCALE.best else None
    return None


def calls(
    questions: Sequence[Question], answers: Sequence[Sequence[str]], told: Mapping[str, Prompt], max_tokens: int
) -> dict[tuple[int, int], Call]:
    """Return what a judge is asked, by question and turn."""
    asked = {}
    for question, (first, second) in zip(questions, answers, strict=True):
        referred = bool(question.references)
        values = {"question": question.turns[0], "answer": first}
        both = {"question_1": question.turns[0], "answer_1": first}
        both |= {"question_2": question.turns[1], "answer_2": second}
        if referred:
            values["ref_answer_1"] = question.references[0]
            both |= {"ref_answer_1": question.references[0], "ref_answer_2": question.references[1]}
        one = told[prompts.RATE_REFERENCE if referred else prompts.RATE]
        two = told[prompts.RATE_SECOND_REFERENCE if referred else prompts.RATE_SECOND]
        asked[question.number, 0] = Call(one.system, one.fill(**values), max_tokens)
        asked[question.number, 1] = Call(two.system, two.fill(**both), max_tokens)
    return asked


def tables(title: str, questions: Sequence[Question], judged: Mapping[str, Verdicts]) -> Tables:
    """Return the scores: a task a category, and over all of them a group with both turns and what was not rated.

    Args:
        judged: by judge, the first one first.
    """
    found = Tables()
    overall = found.groups.setdefault(title, {})
    categories = dict.fromkeys(question.category for question in questions)
    for number, (judge, verdicts) in enumerate(judged.items()):
        name = filter_of(number, judge)
        by_question = {question.number: [verdicts[question.number, turn] for turn in (0, 1)] for question in questions}
        for category in categories:
            members = [question.number for question in questions if question.category == category]
            entry = SCALE.mean([by_question[member] for member in members])
            task = f"{title}-{category}"
            found.tasks.setdefault(task, {})[f"{METRIC},{name}"] = entry
            values = {member: SCALE.mean([by_question[member]])["value"] for member in members}
            found.add_rows(task, METRIC, name, values)
        overall[f"{METRIC},{name}"] = SCALE.mean(list(by_question.values()))
        for turn in (0, 1):
            overall[f"{METRIC}_turn_{turn + 1},{name}"] = SCALE.mean([[parts[turn]] for parts in by_question.values()])
        doubtful = {question.number for question in questions if question.references} & WRONG_REFERENCES
        if doubtful:
            sound = [parts for key, parts in by_question.items() if key not in doubtful]
            overall[f"{METRIC}_without_wrong_references,{name}"] = SCALE.mean(sound)
        overall[f"without_verdict,{name}"] = plain(float(failures(verdicts)), len(verdicts))
        if number:
            first = next(iter(judged.values()))
            entries = agreement(first, verdicts, WITHIN)
            overall |= {f"{metric},{name}": entry for metric, entry in entries.items()}
    return found
