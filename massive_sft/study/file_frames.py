"""Frames of what lies in files beside the records: loss curves, per-sample values, answers.

A file that is not there adds no rows. One that is unsound does not either, and is noted (``Ledger.report_corrupt``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TypeVar

import pandas as pd
import pyarrow.parquet as pq

from massive_sft.core.errors import Corrupt
from massive_sft.core.wording import counted
from massive_sft.evaluation.answers import Answer, read_answers, read_early_answers
from massive_sft.evaluation.interim_looks import looks_key
from massive_sft.evaluation.requests import RequestSet, read_set
from massive_sft.ledger.loss_curve import StepDone, curve_file, read_end_losses, read_steps
from massive_sft.ledger.record import BenchmarkScores, Record
from massive_sft.ledger.store import Ledger
from massive_sft.study.frames import to_rows
from massive_sft.study.paired import samples_file
from massive_sft.suites import metrics
from massive_sft.training.divergence import window_of

T = TypeVar("T")

_OF = {"cell": "string", "benchmark": "string", "protocol": "string"}
LOSSES: dict[str, str] = {"trajectory": "string", "step": "int64", "epoch": "int64"} | {
    name: "int64" if "tokens" in name else "float64"
    for name in StepDone.__dataclass_fields__
    if name not in ("step", "epoch")
}
SAMPLES: dict[str, str] = (
    _OF
    | {"task": "string", "doc": "int64", "metric": "string", "filter": "string"}
    | {"value": "float64", "weight": "float64", "detail": "string"}
)
ANSWERS: dict[str, str] = (
    _OF
    | dict.fromkeys(Answer.__dataclass_fields__, "string")
    | {"doc": "int64", "draw": "int64", "logprob": "float64"}
    | {"metric": "string", "value": "float64", "extracted": "string"}
)


def loss_frame(ledger: Ledger, records: Iterable[Record]) -> pd.DataFrame:
    """Return one row per training run and optimizer step: ``trajectory`` and the fields of ``StepDone``.

    Each run's curve is the one that its last recorded epoch rests on.
    """
    by_epoch = sorted(records, key=lambda record: int(record.coordinates["epoch"] or 0))
    last = {record.trajectory: (record, name) for record in by_epoch if (name := curve_file(record))}
    rows = [
        {"trajectory": trajectory, **asdict(step)}
        for trajectory, (record, name) in last.items()
        for step in _read(ledger, ledger.root / name, lambda _: _verified_steps(ledger, record, name))  # noqa: B023
    ]
    return pd.DataFrame(rows, columns=list(LOSSES)).astype(LOSSES)


def _verified_steps(ledger: Ledger, record: Record, name: str) -> list[StepDone]:
    return list(read_steps(ledger.verified_file(record, name)))


def end_losses(ledger: Ledger, record: Record) -> tuple[float, float] | None:
    """Return the loss at a cell's first and last optimizer step; None where no curve tells them.

    A record has means over several steps alone: see ``loss_words``.
    """
    name, steps = curve_file(record), record.training.get("steps")
    if name is None or not isinstance(steps, int):
        return None
    return next(
        iter(_read(ledger, ledger.root / name, lambda _: [read_end_losses(ledger.verified_file(record, name), steps)])),
        None,
    )


def loss_words(record: Record, ends: tuple[float, float] | None) -> dict[str, float]:
    """Return a cell's losses, in nats per trainable token, by what they are in words.

    Args:
        ends: of ``end_losses``.
    """
    steps = record.training.get("steps")
    if not isinstance(steps, int):
        return {}
    words = dict(zip(("loss at step 1", f"loss at step {steps}"), ends or (), strict=False))
    window = min(window_of(steps), steps)
    for field, end in (("first_loss", "first"), ("last_loss", "last")):
        mean = record.training.get(field)
        if isinstance(mean, float):
            words[f"mean loss of the {end} {counted(window, 'step')}" if window < steps else "mean loss"] = mean
    return words


def sample_frame(ledger: Ledger, records: Iterable[Record]) -> pd.DataFrame:
    """Return one row per cell, protocol, task, document, metric and filter: the columns of ``SAMPLES``.

    ``value`` is the metric's on one document, ``weight`` what it is divided by in sums over bytes or words; ``detail``
    is JSON, of metrics whose value for a document is no number.
    """
    parts = [
        _sample_rows(ledger, record, protocol).assign(cell=record.cell, benchmark=scores.benchmark, protocol=protocol)
        for record in records
        for protocol, scores in record.scores.items()
    ]
    whole = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return whole.reindex(columns=list(SAMPLES)).astype(SAMPLES)


def _sample_rows(ledger: Ledger, record: Record, protocol: str) -> pd.DataFrame:
    """Return the rows of a file, with ``extracted`` where it has that."""
    columns = [name for name in SAMPLES if name not in _OF]

    def read(_: Path) -> list[pd.DataFrame]:
        path = samples_file(ledger, record, protocol)
        if path is None:
            return []
        more = [name for name in pq.read_schema(path).names if name == "extracted"]
        return [pq.read_table(path, columns=columns + more).to_pandas()]

    folder = ledger.cell_dir(record.cell) / "scores"
    return next(iter(_read(ledger, folder / f"{protocol}.parquet", read)), pd.DataFrame(columns=columns))


def answer_frame(ledger: Ledger, records: Iterable[Record]) -> pd.DataFrame:
    """Return one row per cell, protocol, task, document and sampled answer: the columns of ``ANSWERS``.

    The fields of ``evaluation.answers.Answer``; ``value``: the document's value of ``metric``, the task's score; and
    ``extracted``: what that metric's filter took of a generated answer, which is what was compared with ``gold``. It
    is missing of answers that were scored before it was kept.
    A cell has no rows where the requests are no longer cached (``gc`` removes them), or where equal weights were
    scored in another cell, whose rows they are.
    """
    request_sets = cache(lambda path: read_set(path))
    rows = [
        row
        for record in records
        for protocol, scores in record.scores.items()
        for row in _answer_rows(ledger, record, protocol, scores, request_sets)
    ]
    return pd.DataFrame(rows, columns=list(ANSWERS)).astype(ANSWERS)


def _answer_rows(
    ledger: Ledger,
    record: Record,
    protocol: str,
    scores: BenchmarkScores,
    request_sets: Callable[[Path], RequestSet],
) -> Iterator[dict[str, object]]:
    home, table = ledger.cell(record.cell), f"scores/{protocol}.json"

    def read(_: Path) -> list[Answer]:
        written = json.loads(home.get(table).data)
        requests = request_sets(ledger.cache_dir("requests") / written["requests"])
        early, place = scores.early, home.at("responses")
        if early is None:  # answers that are judged lie under the protocol that they were written by
            return list(read_answers(requests, place.at(written.get("responses", protocol))))
        return list(read_early_answers(requests, place.at(looks_key(early.protocol)), early.look))

    answers = _read(ledger, home.local(table), read)
    if not answers:
        return
    keys = {task: metrics.primary_metric(by_key) for task, by_key in scores.tasks.items()}
    frame = _sample_rows(ledger, record, protocol)
    samples = {(row["task"], row["doc"], f"{row['metric']},{row['filter']}"): row for row in to_rows(frame)}
    for answer in answers:
        key = keys.get(answer.task)
        about = {"cell": record.cell, "benchmark": scores.benchmark, "protocol": protocol, **asdict(answer)}
        sample = samples.get((answer.task, answer.doc, str(key)), {})
        about |= {"metric": key and metrics.split(key)[0], "value": sample.get("value")}
        if "extracted" in sample and answer.kind == "generate_until":
            about["extracted"] = answer.answer if pd.isna(sample["extracted"]) else sample["extracted"]
        yield about


def _read(ledger: Ledger, path: Path, read: Callable[[Path], list[T]]) -> list[T]:
    """Return what ``read`` makes of a file; nothing where it is not there, or unsound, which is noted."""
    try:
        return read(path)
    except FileNotFoundError:
        return []
    except (Corrupt, OSError, ValueError, KeyError) as error:
        ledger.report_corrupt(path, f"{path}: cannot be read ({error})")
        return []
