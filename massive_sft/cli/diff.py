"""``diff CELL CELL``: what differs between two cells in content, layout and provenance, and their scores side by side.

Differences are the second cell's number less the first's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from massive_sft.cli.cell_lookup import CellMatch, locate_cells
from massive_sft.cli.options import CellId, Json, Overlays, Sweep, console, print_json
from massive_sft.cli.views import STYLES, indented, make_table, with_interval
from massive_sft.core.fingerprint import flatten
from massive_sft.ledger.record import BenchmarkScores, Score
from massive_sft.study.paired import Paired
from massive_sft.suites.metrics import EARLY, EARLY_NOTE, full_name, possible_difference, split, unit

if TYPE_CHECKING:  # pandas takes half a second to import, and every verb imports this module
    from massive_sft.study.paired_gains import Tables

# Of the provenance: different for any two records, and no reason for different results.
_OWN = ("captured", "argv")
_ABSENT = object()
_HASH = re.compile(r"[0-9a-f]{40,}")


@dataclass(frozen=True)
class Pair:
    """One metric of one task, of both cells.

    Attributes:
        same_protocol: whether both were scored the same way; else the difference means little.
        overlap: whether the 95 % intervals overlap; None when one of them is not there.
        paired: on the samples that both have; None without such values.
        early: whether one of them is an early answer.
    """

    benchmark: str
    task: str
    metric: str
    same_protocol: bool
    first: Score | None
    second: Score | None
    paired: Paired | None
    early: bool

    @property
    def difference(self) -> float | None:
        values = [score.value if score else None for score in (self.first, self.second)]
        return None if values[0] is None or values[1] is None else values[1] - values[0]

    @property
    def overlap(self) -> bool | None:
        intervals = [score.interval if score else None for score in (self.first, self.second)]
        if intervals[0] is None or intervals[1] is None:
            return None
        return intervals[0][0] <= intervals[1][1] and intervals[1][0] <= intervals[0][1]


Differences = dict[str, tuple[Any, Any]]


def diff(first: CellId, second: CellId, sweep: Sweep = None, overlay: Overlays = None, as_json: Json = False) -> None:
    """What differs between two cells, and their scores side by side; differences are second less first."""
    first_cell, second_cell = locate_cells((first, second), sweep, overlay)
    if as_json:
        print_json(diff_json(first_cell, second_cell))
    else:
        console().print(diff_view(first_cell, second_cell))


def differing_keys(first: Any, second: Any) -> Differences:
    """Return the flattened keys whose values differ, in the first's order; ``_ABSENT`` where one has no such key."""
    left, right = flatten(first), flatten(second)
    keys = dict.fromkeys((*left, *right))
    pairs = {key: (left.get(key, _ABSENT), right.get(key, _ABSENT)) for key in keys if key}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def find_differences(first_cell: CellMatch, second_cell: CellMatch) -> dict[str, Differences]:
    """Return what differs, by section. Without a record on both sides only the content is compared."""
    differences = {
        "names": differing_keys(*(_names(cell) for cell in (first_cell, second_cell))),
        "content": differing_keys(*(_content(cell) for cell in (first_cell, second_cell))),
    }
    first, second = first_cell.asked_record, second_cell.asked_record
    if first is None or second is None:
        return differences
    records = (first, second)
    layouts = [_layout(record.training) for record in records]
    known = (record.provenance.items() for record in records)
    origins = [{key: value for key, value in one if key not in _OWN and value is not None} for one in known]
    return differences | {
        "layout": differing_keys(*layouts),
        "provenance": differing_keys(*origins),
        "measures": _differing_measures(*(record.measures for record in records)),
    }


def _names(cell: CellMatch) -> dict[str, Any]:
    """Return what people call a cell by; what it has none of is left out."""
    return {name: value for name, value in cell.coordinates.by_shown_name().items() if value not in (None, "")}


def _content(cell: CellMatch) -> dict[str, Any]:
    """Return a cell's content, without a base model's method: the names say it."""
    return {key: value for key, value in cell.content.items() if key != "method"}


def _layout(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a run was laid out; nothing for a base model, which has none."""
    layout, used = training.get("layout"), training.get("micro_batch")
    return {**layout, "micro_batch used": used} if isinstance(layout, dict) else {}


def _differing_measures(first: Mapping[str, Any], second: Mapping[str, Any]) -> Differences:
    """Return what differs between measures. The version of one that a side lacks altogether says nothing."""
    found = differing_keys(_without_layers(first), _without_layers(second))
    versions = {f"{name}.schema" for name in first.keys() ^ second.keys()}
    return {key: pair for key, pair in found.items() if key not in versions}


def _without_layers(measures: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is listed layer by layer: always different, and in the report."""
    return {
        name: {key: item for key, item in value.items() if not key.endswith("_by_layer")}
        if isinstance(value, dict)
        else value
        for name, value in measures.items()
    }


def pairs(first_cell: CellMatch, second_cell: CellMatch) -> list[Pair]:
    """Return the scores of two cells side by side: under one protocol first, then by benchmark where that is unique.

    What one of them alone has, and its sweep does not ask for, is left out.
    """
    cells = (first_cell, second_cell)
    sides = [dict(cell.record.scores) if cell.record else {} for cell in cells]
    rows: list[Pair] = []
    for protocol in [name for name in sides[0] if name in sides[1]]:
        samples = (_samples(first_cell, protocol), _samples(second_cell, protocol))
        label = max((cell.benchmark_name(protocol) for cell in cells), key=len)  # with its template where one has it
        rows += _rows(label, sides[0].pop(protocol), sides[1].pop(protocol), True, samples)
    sides = [
        {name: side[name] for name in side if name not in cell.beside} for cell, side in zip(cells, sides, strict=True)
    ]
    for benchmark in dict.fromkeys(item.benchmark for side in sides for item in side.values()):
        left, right = ([name for name, item in side.items() if item.benchmark == benchmark] for side in sides)
        if len(left) == len(right) == 1:
            names = first_cell.template_name(left[0]), second_cell.template_name(right[0])
            label = benchmark if names[0] == names[1] else f"{benchmark} [{names[0]} / {names[1]}]"
            rows += _rows(label, sides[0][left[0]], sides[1][right[0]], False)
            continue
        for name in left:
            rows += _rows(first_cell.benchmark_name(name), sides[0][name], None, False)
        for name in right:
            rows += _rows(second_cell.benchmark_name(name), None, sides[1][name], False)
    return sorted(rows, key=lambda row: row.benchmark)


def _samples(match: CellMatch, protocol: str) -> Tables:
    from massive_sft.study.paired_gains import read_tables

    return {} if match.record is None else read_tables(match.ledger, match.record, protocol)


def _rows(
    benchmark: str,
    first: BenchmarkScores | None,
    second: BenchmarkScores | None,
    same_protocol: bool,
    samples: tuple[Tables, Tables] = ({}, {}),
) -> Iterator[Pair]:
    tables = [{**item.tasks, **item.groups} if item else {} for item in (first, second)]
    groups = {name for item in (first, second) if item for name in item.groups}
    early = any(item.early for item in (first, second) if item)
    for task in dict.fromkeys((*tables[0], *tables[1])):
        metrics = [table.get(task, {}) for table in tables]
        for metric in dict.fromkeys((*metrics[0], *metrics[1])):
            scores = metrics[0].get(metric), metrics[1].get(metric)
            paired = _paired("" if task in groups else task, metric, scores, samples)
            yield Pair(benchmark, task, metric, same_protocol, *scores, paired, early)


def _paired(
    task: str, key: str, scores: tuple[Score | None, Score | None], samples: tuple[Tables, Tables]
) -> Paired | None:
    """Return what the questions that both answered tell of a metric; None where they do not tell its score.

    Args:
        task: empty for a group's score, of which all tasks of the protocol have to be.
        key: metric and filter.
        samples: per-sample values, as of ``paired_gains.read_tables``.
    """
    from massive_sft.study.paired_gains import compare, samples_at

    metric, chosen = split(key)
    found = [samples_at(side, task, metric, chosen) for side in samples]
    known = [(score, side) for score, side in zip(scores, found, strict=True) if score and side]
    if len(known) < 2 or (not task and any(score.n != len(side.values) for score, side in known)):
        return None
    (first, left), (second, right) = known
    if first.value is None or second.value is None:
        return None
    paired = compare(left, right, (first.value, second.value))
    if paired is None or paired.interval is None:
        return paired
    return replace(paired, interval=possible_difference(metric, paired.mean, *paired.interval))


def diff_json(first_cell: CellMatch, second_cell: CellMatch) -> dict[str, Any]:
    """Return what ``diff`` shows as JSON values; a side that lacks a key has no entry for it."""
    return {
        "schema": 1,
        "cells": [
            {"cell": f.id, "status": str(f.status), **f.coordinates.by_shown_name()} for f in (first_cell, second_cell)
        ],
        "differs": {
            name: {
                key: {side: item for side, item in zip(("first", "second"), pair, strict=True) if item is not _ABSENT}
                for key, pair in section.items()
            }
            for name, section in find_differences(first_cell, second_cell).items()
        },
        "scores": [
            {
                "benchmark": row.benchmark,
                "task": row.task,
                "metric": row.metric,
                "same_protocol": row.same_protocol,
                "first": row.first.model_dump(mode="json") if row.first else None,
                "second": row.second.model_dump(mode="json") if row.second else None,
                "difference": row.difference,
                "intervals_overlap": row.overlap,
                "paired": row.paired.to_json() if row.paired else None,
                "early": row.early,
            }
            for row in pairs(first_cell, second_cell)
        ],
    }


def diff_view(first_cell: CellMatch, second_cell: CellMatch) -> Group:
    """Return what ``diff`` shows, for people."""
    parts: list[Any] = [
        Text.assemble((f.id, "bold"), "  ", str(f.coordinates), "  ", (str(f.status), STYLES[f.status]))
        for f in (first_cell, second_cell)
    ]
    for name, section in find_differences(first_cell, second_cell).items():
        parts += [Text(), _section_view(name, section)]
    missing = [cell.id for cell in (first_cell, second_cell) if cell.record is None]
    rows = pairs(first_cell, second_cell)
    if missing:
        parts += [Text(), Text(f"no record yet: {', '.join(missing)}", style="yellow")]
    parts += [Text(f"{cell.id}: {why}", style="yellow") for cell in (first_cell, second_cell) if (why := cell.error)]
    if rows:
        parts += [Text(), _scores_view(rows)]
    if any(not row.same_protocol and row.difference is not None for row in rows):
        parts.append(Text("* scored under different protocols: the difference is not of the models alone"))
    if any(row.early for row in rows):
        parts.append(Text(EARLY_NOTE))
    return Group(*parts)


def _section_view(name: str, section: Differences) -> Any:
    if not section:
        return Text.assemble((name, "bold"), ": no difference")
    table = make_table(name, "first", "second")
    for key, pair in section.items():
        table.add_row(Text(key), *map(Text, _shown(*pair)))
    return table


def _shown(first: Any, second: Any) -> tuple[str, str]:
    """Return two values that differ for people: floats and hashes with as many digits as it takes, six at least."""
    for digits in (6, 9, 12, 17):
        texts = tuple("—" if item is _ABSENT else _plain(item, digits) for item in (first, second))
        if texts[0] != texts[1]:
            break
    return texts[0], texts[1]


def _plain(value: Any, digits: int) -> str:
    if isinstance(value, str) and _HASH.fullmatch(value):
        return value[: 2 * digits]
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


_COLUMNS = ("benchmark", "first", "second", "difference [95 %]", "n", "McNemar p")


def _scores_view(rows: list[Pair]) -> Table:
    """Return the scores by benchmark, a line a metric, in the unit people read."""
    table = make_table(*_COLUMNS, right=_COLUMNS[1:])
    for label, of_benchmark in groupby(rows, key=_shown_benchmark):
        table.add_row(Text(label))
        for row in of_benchmark:
            label, *numbers = _score_cells(row)
            table.add_row(indented(label), *map(Text, numbers))
    return table


def _shown_benchmark(row: Pair) -> str:
    marks = f" {EARLY}" if row.early else ""
    return row.benchmark + marks if row.same_protocol or row.difference is None else f"{row.benchmark}{marks} *"


def _score_cells(row: Pair) -> tuple[str, ...]:
    name, _, chosen = row.metric.rpartition(",")
    label = " ".join(filter(None, (row.task, full_name(name, chosen), unit(name))))
    values = (with_interval(name, score.value if score else None) for score in (row.first, row.second))
    test = row.paired.mcnemar if row.paired else None
    count = "" if row.paired is None else f"{row.paired.n:,}"
    mcnemar = f"{test.p:.3g} ({test.only_first} : {test.only_second})" if test else ""
    return f"  {label}", *(value or "—" for value in values), _difference(row, name) or "—", count, mcnemar


def _difference(row: Pair, metric: str) -> str:
    """Return a difference, of the questions that both answered where they are known, with what says how sure it is."""
    paired = row.paired
    overlap = {True: ", intervals overlap", False: ", intervals apart", None: ""}[row.overlap]
    if paired is None:
        return with_interval(metric, row.difference, sign="+") + overlap
    left_out = f", {paired.unpaired:,} questions of one alone left out" if paired.unpaired else ""
    interval = paired.interval or _independent(row, metric)
    sure = "" if interval else overlap
    return with_interval(metric, paired.mean, interval, "+") + sure + left_out


def _independent(row: Pair, metric: str) -> tuple[float, float] | tuple[()]:
    """Return a difference's interval from those of its two scores, as ``best`` has it where no question differs."""
    from massive_sft.study.ranking import Interval

    known = [score for score in (row.first, row.second) if score and score.value is not None and score.interval]
    if len(known) < 2 or (row.paired and row.paired.unpaired):
        return ()
    first, second = (Interval(score.value or 0.0, *(score.interval or ())) for score in known)
    found = second.minus(first)
    return possible_difference(metric, found.value, found.low, found.high)
