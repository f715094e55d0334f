"""AlpacaEval's win rate: how often an answer is preferred to a baseline's, asked in both orders."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from massive_sft.evaluation.intervals import Interval
from massive_sft.judging.endpoint import Reply
from massive_sft.judging.length_control import Gamed, length_controlled
from massive_sft.judging.prompts import COMPARE, Prompt
from massive_sft.judging.questions import Question
from massive_sft.judging.scores import Scale, Tables, Verdicts, agreement, failures, filter_of, plain
from massive_sft.judging.verdicts import Call

METRIC, CONTROLLED = "win_rate", "lc_win_rate"
SCALE = Scale(0.0, 1.0)
WITHIN = 0.25  # of a preference, by which two judges may differ and agree
FIRST, SECOND = "m", "M"  # what the two outputs are called
_WORD = re.compile(r"[\s\"'`*]*(m|M)[\s\"'`*.]*")


def parse(reply: Reply) -> float | None:
    """Return the preference for the second output, from 0 to 1; None where the answer names none of the two.

    With log-probabilities it is p(M) / (p(m) + p(M)) of the first token, as AlpacaEval 2 has it; else the answer must
    be ``m`` or ``M`` alone, but for quotes and white space.
    """
    if reply.top is not None:
        weights = [math.exp(reply.top[name]) if name in reply.top else 0.0 for name in (FIRST, SECOND)]
        return weights[1] / sum(weights) if sum(weights) > 0 else None
    match = _WORD.fullmatch(reply.text)
    return None if match is None else float(match[1] == SECOND)


def calls(
    questions: Sequence[Question],
    answers: Sequence[Sequence[str]],
    told: Mapping[str, Prompt],
    max_tokens: int,
    logprobs: bool,
) -> dict[tuple[int, int], Call]:
    """Return what a judge is asked, by question and order: 0 has the baseline's output first, 1 the model's."""
    asked, prompt = {}, told[COMPARE]
    tokens = 1 if logprobs else max_tokens
    for question, (answer,) in zip(questions, answers, strict=True):
        pair = (question.baseline or "", answer)
        for order, (first, second) in enumerate((pair, pair[::-1])):
            text = prompt.fill(instruction=question.turns[0], output_1=first, output_2=second)
            asked[question.number, order] = Call(prompt.system, text, tokens, logprobs)
    return asked


def preferences(verdicts: Verdicts) -> dict[tuple[int, int], float | None]:
    """Return the preference for the model's answer in each order."""
    return {
        (number, order): value if value is None or order == 0 else 1.0 - value
        for (number, order), value in verdicts.items()
    }


def tables(
    title: str,
    questions: Sequence[Question],
    answers: Sequence[Sequence[str]],
    judged: Mapping[str, Verdicts],
    gamed: Gamed | None,
) -> Tables:
    """Return the scores of one task: both win rates, mean lengths, and what no preference was in.

    Args:
        judged: by judge, the first one first; as ``parse`` gives them.
    """
    found = Tables()
    entries = found.tasks.setdefault(title, {})
    lengths = [
        (len(question.baseline or ""), len(answer)) for question, (answer,) in zip(questions, answers, strict=True)
    ]
    preferred = {judge: preferences(verdicts) for judge, verdicts in judged.items()}
    for number, (judge, verdicts) in enumerate(preferred.items()):
        name = filter_of(number, judge)
        by_question = {
            question.number: [verdicts[question.number, order] for order in (0, 1)] for question in questions
        }
        entries[f"{METRIC},{name}"] = SCALE.mean(list(by_question.values()))
        means = {key: SCALE.mean([parts])["value"] for key, parts in by_question.items()}
        controlled = length_controlled(list(means.values()), lengths, list(means), gamed)
        known = sum(value is not None for value in means.values())
        entries[f"{CONTROLLED},{name}"] = _controlled_entry(controlled, known)
        entries[f"without_verdict,{name}"] = plain(float(failures(verdicts)), len(verdicts))
        found.add_rows(title, METRIC, name, means)
        if number:
            first = next(iter(preferred.values()))
            entries |= {f"{metric},{name}": entry for metric, entry in agreement(first, verdicts, WITHIN).items()}
    entries["mean_characters,none"] = plain(sum(own for _, own in lengths) / len(lengths), len(lengths))
    return found


def _controlled_entry(controlled: tuple[float, Interval] | None, known: int) -> dict[str, Any]:
    if controlled is None:
        return plain(None, known, higher_is_better=True)
    rate, interval = controlled
    found = {"stderr": interval.stderr, "interval": [interval.low, interval.high], "method": interval.method}
    return plain(rate, known, higher_is_better=True) | found
