"""Files of questions, references and baseline answers, in the forms in which MT-Bench and AlpacaEval publish them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.sweep.schema import JudgedBenchmark

NEED_REFERENCES = frozenset({"math", "reasoning", "coding"})
"""Categories whose answers are compared with a reference, as MT-Bench does."""
WRONG_REFERENCES = frozenset({104, 105, 109, 111, 113, 114, 120, 122, 124, 125, 126, 128, 130})
"""Questions whose published reference (FastChat's ``reference_answer/gpt-4.jsonl``) is wrong in one turn or both, by
two people who checked all 30 (pull request 3158 of lm-sys/FastChat, open since March 2024)."""


@dataclass(frozen=True)
class Question:
    """One conversation.

    Attributes:
        number: MT-Bench's ``question_id``, or the position in the file, from 0.
        category: empty for AlpacaEval's.
        turns: what the user says.
        references: reference answers, one a turn; empty where there are none.
        baseline: the answer that is compared with; None where ratings are given.
    """

    number: int
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...] = ()
    baseline: str | None = None


def read_questions(benchmark: JudgedBenchmark, place: str) -> list[Question]:
    """Return a benchmark's questions in the order of their file, as many as are asked.

    Args:
        place: where the sweep file has the benchmark.

    Raises:
        InvalidInput: with every problem of its files.
    """
    read = _mt_bench if benchmark.kind == "mt_bench" else _win_rate
    return read(benchmark, place)[: benchmark.limit]


def _mt_bench(benchmark: JudgedBenchmark, place: str) -> list[Question]:
    entries = read_entries(benchmark.questions, f"{place}.questions")
    named = {} if benchmark.references is None else _references(benchmark.references, f"{place}.references")
    questions, problems = [], []
    for number, entry in enumerate(entries):
        try:
            turns = tuple(str(turn) for turn in entry["turns"])
            own = tuple(map(str, entry.get("reference") or ()))
            one = Question(int(entry["question_id"]), str(entry["category"]), turns, own)
            if len(turns) != 2:
                raise ValueError(f"has {len(turns)} turns, not 2")
        except (KeyError, TypeError, ValueError) as error:
            rule = f"question {number + 1} must have question_id, category and two turns ({_told(error)})"
            problems.append(Problem(f"{place}.questions", rule, benchmark.questions))
            continue
        if one.category not in NEED_REFERENCES:
            questions.append(Question(one.number, one.category, turns))
            continue
        references = own if benchmark.references is None else named.get(one.number, ())
        if benchmark.references is not None and len(references) < len(turns):
            rule = f"has no reference for both turns of question {one.number} ({one.category})"
            problems.append(Problem(f"{place}.references", rule, benchmark.references))
        questions.append(Question(one.number, one.category, turns, references if len(references) > 1 else ()))
    if problems:
        raise InvalidInput(problems)
    _refuse_twins([question.number for question in questions], f"{place}.questions", benchmark.questions)
    return questions


def _references(path: str, place: str) -> Mapping[int, tuple[str, ...]]:
    try:
        return {
            int(entry["question_id"]): tuple(map(str, entry["choices"][0]["turns"]))
            for entry in read_entries(path, place)
        }
    except (KeyError, TypeError, ValueError, IndexError) as error:
        rule = f"must have question_id and choices[0].turns in each line ({_told(error)})"
        raise InvalidInput(Problem(place, rule, path)) from None


def _win_rate(benchmark: JudgedBenchmark, place: str) -> list[Question]:
    asked = read_entries(benchmark.questions, f"{place}.questions")
    answered = read_entries(str(benchmark.baseline), f"{place}.baseline")
    try:
        texts = [str(entry["instruction"]) for entry in asked]
        baselines = [(str(entry["instruction"]), str(entry["output"])) for entry in answered]
    except (KeyError, TypeError) as error:
        rule = f"must have instruction in each entry, and output in each of the baseline ({_told(error)})"
        raise InvalidInput(Problem(place, rule, benchmark.questions)) from None
    if [text for text, _ in baselines] != texts:
        rule = f"must answer the instructions of {benchmark.questions}, all of them and in their order"
        raise InvalidInput(Problem(f"{place}.baseline", rule, benchmark.baseline))
    return [
        Question(number, "", (text,), baseline=output)
        for number, (text, (_, output)) in enumerate(zip(texts, baselines, strict=True))
    ]


def read_entries(path: str, place: str) -> list[Any]:
    """Return the objects of a JSON array, or of JSON lines. Raises InvalidInput, about ``place``."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        entries = json.loads(text) if text.lstrip()[:1] == "[" else list(_lines(text))
    except OSError as error:
        raise InvalidInput(Problem(place, f"cannot be read ({error.strerror})", path)) from None
    except ValueError as error:
        raise InvalidInput(Problem(place, f"must be a JSON array or JSON lines ({error})", path)) from None
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InvalidInput(Problem(place, "must hold objects, one at least", path))
    for number, entry in enumerate(entries, 1):
        try:
            json.dumps(entry, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # such as "\ud800" alone, which neither a model nor a judge can be sent
            raise InvalidInput(Problem(place, f"holds half of a character in entry {number}", path)) from None
    return list(entries)


def _lines(text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None


def _told(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _refuse_twins(numbers: list[int], place: str, path: str) -> None:
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    if twice:
        raise InvalidInput(Problem(place, f"has questions of one question_id: {', '.join(map(str, twice))}", path))
