"""The rows of ``scores`` that are not there yet: what a sweep asks of its cells and no run has tried or told of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from massive_sft.ledger.asked import is_answered
from massive_sft.ledger.record import Record
from massive_sft.planning.plan import CellPlan, Plan
from massive_sft.study.frames import SCORES

NOT_YET = "not scored yet"


def unscored_rows(plan: Plan, records: Mapping[str, Record]) -> pd.DataFrame:
    """Return a row without a value for each benchmark of a cell that its record neither has nor names as missing.

    Args:
        records: of ``asked.asked_records``, by cell id.

    Returns:
        The columns of ``frames.SCORES``, as the rows that ``frames.tidy`` makes of ``Record.missing``: ``missing`` says
        why, ``column`` is the benchmark.
    """
    rows = [row for item in plan.cells for row in _rows(item, records.get(item.cell.id))]
    return pd.DataFrame(rows, columns=list(SCORES)).astype(SCORES)


def _rows(item: CellPlan, record: Record | None) -> Iterator[dict[str, Any]]:
    told = record.missing if record is not None else {}
    answers = record.answers if record is not None else ()
    scored = {scores.benchmark for scores in record.scores.values()} if record is not None else set()
    recipe, why = item.cell.recipe, NOT_YET if record is None else _reason(record)
    identity = {"cell": item.cell.id, "trajectory": recipe.id if recipe else None, **item.cell.coordinates._asdict()}
    lacking = [asked for asked in item.requirements if asked.is_benchmark and not is_answered(asked.id, answers)]
    for benchmark in dict.fromkeys(asked.label for asked in lacking if asked.label not in told):
        about = {"status": str(item.status if record is None else record.status), "benchmark": benchmark}
        yield identity | about | {"missing": why, "primary": benchmark not in scored, "column": benchmark}


def _reason(record: Record) -> str:
    return f"{record.status}: {record.error}" if record.error else NOT_YET
