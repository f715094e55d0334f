"""A judged benchmark from its files to its scores: what is asked of the judges, and what their verdicts come to."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.fingerprint import canonical_json, fingerprint
from massive_sft.evaluation.sample_values import SAMPLES
from massive_sft.judging import ratings, win_rate
from massive_sft.judging.endpoint import Endpoint
from massive_sft.judging.errors import TooManyFailures
from massive_sft.judging.length_control import Gamed, read_gamed
from massive_sft.judging.prompts import Prompt, read_prompts
from massive_sft.judging.questions import WRONG_REFERENCES, Question, read_questions
from massive_sft.judging.scores import Tables, Verdicts, failures
from massive_sft.judging.spending import SPENT, Spending
from massive_sft.judging.verdicts import Asked, Parse, ask_all, transcript
from massive_sft.judging.verdicts import Verdicts as KeptVerdicts
from massive_sft.ledger.storage import Storage
from massive_sft.sweep import semantics
from massive_sft.sweep.schema import JudgedBenchmark, Judging

SCHEMA = 1
VERDICTS = "verdicts"  # below the ledger's cache


@dataclass(frozen=True)
class Prepared:
    """A benchmark whose files are read.

    Attributes:
        told: the judge's prompts by name.
        gamed: of the length-controlled win rate; None where there is no such file.
    """

    benchmark: JudgedBenchmark
    questions: Sequence[Question]
    told: Mapping[str, Prompt]
    gamed: Gamed | None

    @property
    def doubtful(self) -> list[int]:
        """The questions whose published references are wrong, of those that are judged by one."""
        return sorted({question.number for question in self.questions if question.references} & WRONG_REFERENCES)

    def protocol(self, answers: str, judging: Judging) -> str:
        """Return the id of how the benchmark is scored.

        Args:
            answers: the id of the protocol by which the model writes its answers.
        """
        return fingerprint(
            {
                "answers": answers,
                "kind": self.benchmark.kind,
                "questions": [[item.number, list(item.references), item.baseline] for item in self.questions],
                "prompts": {name: [prompt.system, prompt.user] for name, prompt in self.told.items()},
                "gamed": None if self.gamed is None else self.gamed.features.tolist(),
                "logprobs": self.benchmark.logprobs,
                "judges": [[judge.name, judge.max_tokens] for judge in judging.judges],
                "judging": semantics.JUDGING_SEMANTICS,
            }
        )


def prepare(benchmark: JudgedBenchmark, place: str) -> Prepared:
    """Read a benchmark's files. Raises InvalidInput with what is wrong with them, by ``place`` in the sweep file."""
    questions = read_questions(benchmark, place)
    told = read_prompts(benchmark.kind, benchmark.prompts, f"{place}.prompts")
    gamed = None if benchmark.gamed is None else read_gamed(benchmark.gamed, f"{place}.gamed")
    if gamed is not None and (lacking := [item.number for item in questions if item.number not in gamed.difficulty]):
        rule = f"has no instruction_difficulty of question {lacking[0]} and {len(lacking) - 1} others"
        raise InvalidInput(Problem(f"{place}.gamed", rule, benchmark.gamed))
    return Prepared(benchmark, questions, told, gamed)


@dataclass
class Outcome:
    """What judging came to.

    Attributes:
        table: as ``aggregate`` has it, but for the protocol.
        samples: per-sample values.
        transcript: every prompt, answer and verdict, as compressed JSON lines.
    """

    table: dict[str, Any]
    samples: pa.Table
    transcript: bytes
    asked: Mapping[str, Asked] = field(default_factory=dict)


def judge(
    prepared: Prepared,
    answers: Sequence[Sequence[str]],
    judging: Judging,
    cache: Storage,
    stop: Callable[[], bool],
) -> Outcome:
    """Have every judge rate or compare a model's answers; what was asked before is not asked again.

    Args:
        answers: by question, a turn each.
        cache: the ledger's, where verdicts and what they cost are kept.
        stop: asked before each call.

    Raises:
        JudgeUnavailable: a judge cannot be asked.
        BudgetSpent: what judging may cost is spent.
        TooManyFailures: more answers than allowed hold no verdict.
        Interrupted: ``stop`` said so.
    """
    spending = Spending(cache.at(SPENT), judging.budget)
    parse = ratings.parse if prepared.benchmark.kind == "mt_bench" else win_rate.parse
    found: dict[str, Verdicts] = {}
    lines, asked = list[dict[str, Any]](), dict[str, Asked]()
    for one in judging.judges:
        calls = _calls(prepared, answers, one.max_tokens)
        kept = KeptVerdicts(cache.at(VERDICTS), one.name)
        replies, asked[one.name] = ask_all(calls.values(), Endpoint(one, stop), kept, spending, parse, stop)
        found[one.name] = {key: parse(replies[call.id]) for key, call in calls.items()}
        told = transcript(list(calls.values()), replies, parse)
        lines += [
            {"judge": one.name, "question": number, "part": part, **entry}
            for (number, part), entry in zip(calls, told, strict=True)
        ]
        _require_few_failures(one.name, found[one.name], judging.max_failures, lines, parse)
    tables = _tables(prepared, answers, found)
    text = "\n".join(json.dumps(line, ensure_ascii=False, sort_keys=True) for line in lines)
    return Outcome(
        _table(prepared, judging, tables),
        pa.Table.from_pylist(tables.rows, schema=SAMPLES),
        gzip.compress(text.encode(), mtime=0),
        asked,
    )


def _calls(prepared: Prepared, answers: Sequence[Sequence[str]], max_tokens: int) -> dict[tuple[int, int], Any]:
    if prepared.benchmark.kind == "mt_bench":
        return dict(ratings.calls(prepared.questions, answers, prepared.told, max_tokens))
    logprobs = prepared.benchmark.logprobs
    return dict(win_rate.calls(prepared.questions, answers, prepared.told, max_tokens, logprobs))


def _tables(prepared: Prepared, answers: Sequence[Sequence[str]], found: Mapping[str, Verdicts]) -> Tables:
    title = prepared.benchmark.title
    if prepared.benchmark.kind == "mt_bench":
        return ratings.tables(title, prepared.questions, found)
    return win_rate.tables(title, prepared.questions, answers, found, prepared.gamed)


def _require_few_failures(
    judge: str, verdicts: Verdicts, most: float, lines: Sequence[Mapping[str, Any]], parse: Parse
) -> None:
    failed = failures(verdicts)
    if failed > most * len(verdicts):
        first = next(line for line in lines if line["judge"] == judge and line["verdict"] is None)
        shown = first["reply"]["refusal"] or first["reply"]["text"]
        raise TooManyFailures(
            f"{judge}: {failed} of {len(verdicts)} answers hold no verdict, more than evaluation.judging.max_failures "
            f"({most:g}); the next run asks them again; the first: {canonical_json(shown[:120])}"
        )


def _table(prepared: Prepared, judging: Judging, tables: Tables) -> dict[str, Any]:
    judges = {one.name: one.endpoint for one in judging.judges}
    return {
        "schema": SCHEMA,
        "benchmark": f"{prepared.benchmark.title}-0shot",
        "shots": 0,
        "provenance": {"judges": judges, "wrong_references": prepared.doubtful},
        "tasks": tables.tasks,
        "groups": tables.groups,
    }
