"""What judges are asked for what is left of a plan: calls, tokens, and their price, held against the sweep's budget.

It is counted from the files of questions alone. Answers that two cells share are judged once, and what was asked before
is not asked again, so that it is the most; how long answers and verdicts become is a guess, with the longest beside it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from massive_sft.core.errors import InvalidInput
from massive_sft.cost.workload import BYTES_PER_TOKEN, typical_answer_tokens
from massive_sft.judging.questions import read_entries
from massive_sft.judging.spending import MILLION, SPENT, price_of, read_spending
from massive_sft.planning.plan import Plan
from massive_sft.sweep.schema import Judge, JudgedBenchmark

CALLS = 2  # of a question and a judge: its turns, or the two orders of a pair
PROMPT_TOKENS = 250  # of what a judge is told beside the texts
TYPICAL_VERDICT = 300  # tokens, with its reasons


@dataclass(frozen=True)
class JudgingCost:
    """What all judges are asked.

    Attributes:
        calls: one after another; none of them may be needed.
        read, written: tokens.
        cost, most: by the judges' prices, as guessed and with the longest answers and verdicts; None where a judge has
            no price.
        spent: what was spent under the root.
        unread: files of questions that cannot be read; what is asked of them is not counted.
    """

    calls: int = 0
    read: float = 0.0
    written: float = 0.0
    cost: float | None = 0.0
    most: float | None = 0.0
    budget: float | None = None
    spent: float = 0.0
    unread: tuple[str, ...] = ()


def judging_cost(plan: Plan) -> JudgingCost | None:
    """Return what is left to be judged of a plan; None where nothing is."""
    judging = plan.sweep.file.evaluation.judging
    left = [item.judged for cell in plan.cells for item in cell.unmet if item.judged is not None]
    if judging is None or not left:
        return None
    total = JudgingCost(budget=judging.budget, spent=read_spending(plan.storage.at(f"cache/{SPENT}")))
    for benchmark in left:
        sizes = _question_bytes(benchmark.questions, benchmark.limit)
        if sizes is None:
            unread = tuple(dict.fromkeys((*total.unread, benchmark.questions)))
            total = replace(total, unread=unread)
            continue
        for judge in judging.judges:
            total = _added(total, benchmark, judge, sizes)
    return total


def _added(total: JudgingCost, benchmark: JudgedBenchmark, judge: Judge, sizes: tuple[int, ...]) -> JudgingCost:
    calls = CALLS * len(sizes)
    asked = CALLS * sum(sizes) / BYTES_PER_TOKEN + calls * PROMPT_TOKENS
    answers = 1.5 if benchmark.kind == "mt_bench" else 2.0  # a call shows one turn or both; or the pair of answers
    longest = 1 if benchmark.logprobs else judge.max_tokens
    read = asked + calls * answers * typical_answer_tokens(benchmark.max_tokens)
    written = calls * min(longest, TYPICAL_VERDICT)
    most = _price(judge, asked + calls * answers * benchmark.max_tokens, calls * longest)
    cost = _price(judge, read, written)
    return replace(
        total,
        calls=total.calls + calls,
        read=total.read + read,
        written=total.written + written,
        cost=None if total.cost is None or cost is None else total.cost + cost,
        most=None if total.most is None or most is None else total.most + most,
    )


def _price(judge: Judge, read: float, written: float) -> float | None:
    return None if judge.price is None else price_of(judge, read, written)


@functools.lru_cache(maxsize=64)
def _question_bytes(path: str, limit: int | None) -> tuple[int, ...] | None:
    """Return the bytes of each question of a file in one of the published forms; None where it cannot be read."""
    try:
        entries = read_entries(path, path)
        return tuple(sum(map(len, map(str.encode, _texts(entry)))) for entry in entries[:limit])
    except (InvalidInput, TypeError):  # `check` says what is wrong with it
        return None


def _texts(entry: dict[str, Any]) -> list[str]:
    return [*map(str, entry.get("turns") or [entry.get("instruction", "")]), *map(str, entry.get("reference") or [])]


def judging_lines(cost: JudgingCost | None) -> list[str]:
    """Return it for people; nothing where nothing is left to judge."""
    if cost is None:
        return []
    line = f"judging: {cost.calls:,} calls at most, ≈ {_tokens(cost.read)} read and ≈ {_tokens(cost.written)} written"
    lines = [line]
    if cost.cost is not None and cost.most is not None:
        lines[0] += f": cost ≈ {cost.cost:,.2f}, {cost.most:,.2f} at most"
        lines[0] += "" if cost.budget is None else f"; of the budget of {cost.budget:g}, {cost.spent:,.2f} are spent"
        if cost.budget is not None and cost.spent + cost.cost > cost.budget:
            lines.append(
                "  evaluation.judging.budget is likely too small: what is beyond it stays PARTIAL until it is raised"
            )
    lines += [f"  not counted: the questions in {path}, which cannot be read" for path in cost.unread]
    return lines


def _tokens(count: float) -> str:
    return f"{count / MILLION:,.1f} M tokens" if count >= MILLION else f"{count:,.0f} tokens"
