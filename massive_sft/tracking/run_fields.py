"""What the tracker shows of a cell: its record as a run's name, parameters, tags and numbers. Pure; no tracker here."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from massive_sft.core.fingerprint import digest, fingerprint
from massive_sft.ledger.provenance import redact
from massive_sft.ledger.record import BenchmarkScores, Record, Status
from massive_sft.ledger.record_warnings import find_warnings
from massive_sft.sweep.cell import Coordinates

# Limits of every MLflow server since 2.0, though newer ones take more; the whole is in the run's record.json.
KEY_LENGTH = 250
PARAM_LENGTH = 500
TAG_LENGTH = 1000

SWEEP, CELL, RECORD, CURVE, WRITTEN = (
    f"massive_sft.{name}" for name in ("sweep", "cell", "record", "curve", "written")
)


@dataclass(frozen=True)
class Point:
    """One number at one step; ``timestamp`` is in milliseconds since 1970."""

    key: str
    value: float
    timestamp: int
    step: int


@dataclass(frozen=True)
class CellRun:
    """A cell's record as the tracker shows it.

    Attributes:
        cell: its id.
        checksum: of the record; the same record is never written twice.
        name: the coordinates, for people.
        status: the tracker's word; the record's own is a tag.
        start, end: milliseconds since 1970.
        params: coordinates and content; what makes the cell what it is.
        tags: ids, status, origin.
        points: scores, measures and the training's summary, at the cell's epoch.
    """

    cell: str
    checksum: str
    name: str
    status: Literal["FINISHED", "FAILED"]
    start: int
    end: int
    params: Mapping[str, str]
    tags: Mapping[str, str]
    points: tuple[Point, ...]


def describe_record(
    record: Record, content: Mapping[str, Any], coordinates: Coordinates | None, ledger: str
) -> CellRun:
    """Return what to show of a record.

    Args:
        record: the cell's newest.
        content: what the cell is, of its ``cell.json``.
        coordinates: its names in the sweep; None for a cell that left the sweep, shown under its record's names.
        ledger: path of the storage root, for people.
    """
    names = record.coordinates if coordinates is None else coordinates._asdict()
    epoch, end = int(names.get("epoch") or 0), to_milliseconds(record.finished)
    values = _unique({**_scores(record), **_numbers(_measures(record))})
    return CellRun(
        cell=record.cell,
        checksum=checksum(record),
        name=_title(names) if coordinates is None else str(coordinates),
        status="FAILED" if record.status is Status.FAILED else "FINISHED",
        start=to_milliseconds(record.created),
        end=end,
        params=_params(names, content),
        tags=_tags(record, ledger),
        points=tuple(Point(key, value, end, epoch) for key, value in values.items()),
    )


def checksum(record: Record) -> str:
    """Return what tells one record of a cell from another; a field that a later version adds changes nothing."""
    return fingerprint(record.model_dump(mode="json", by_alias=True, exclude_defaults=True))


def to_milliseconds(time: str) -> int:
    """Return a record's time in milliseconds since 1970."""
    return round(datetime.fromisoformat(time).timestamp() * 1000)


def clean_name(name: str) -> str:
    """Return one part of a metric's or parameter's name with only what MLflow allows, on any system."""
    kept = re.sub(r"[^\w.\- ]", "_", name, flags=re.ASCII)
    return re.sub(r"^\.{1,2}$|^$", "_", kept)


def _title(names: Mapping[str, Any]) -> str:
    if names.keys() == set(Coordinates._fields):
        return str(Coordinates(**names))
    return ", ".join(f"{axis}={value}" for axis, value in names.items())  # made by another version


def _params(names: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, str]:
    """Return coordinates, then content under dotted names; what is None or empty is left out, not made up."""
    flat = {**dict(_flattened(content)), **names}
    shown = {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat.items() if value != ""}
    return {
        _shortened(clean_name(key), KEY_LENGTH): _shortened(redact(value), PARAM_LENGTH)
        for key, value in sorted(shown.items())
        if value != "null"
    }


def _flattened(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flattened(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _tags(record: Record, ledger: str) -> dict[str, str]:
    git = record.provenance.get("git")
    commit = git.get("commit") if isinstance(git, Mapping) else None
    layout = record.training.get("layout")
    tags = {
        "mlflow.source.name": "massive-sft",
        "mlflow.source.git.commit": commit,
        "massive_sft.trajectory": record.trajectory,
        "massive_sft.status": record.status.value,
        "massive_sft.attempt": str(record.attempt),
        "massive_sft.git": commit,
        "massive_sft.host": record.provenance.get("host"),
        "massive_sft.ledger": ledger,
        "massive_sft.layout": json.dumps(layout) if layout else None,
        # Written even when empty, so that what an earlier record said is gone once it no longer holds.
        "massive_sft.error": record.error or "",
        "massive_sft.warning": "; ".join(find_warnings(record)),
        "massive_sft.missing": json.dumps(record.missing) if record.missing else "",
    }
    return {key: _shortened(redact(value), TAG_LENGTH) for key, value in tags.items() if isinstance(value, str)}


def _scores(record: Record) -> dict[tuple[str, ...], float]:
    """Return ``benchmark/task/metric`` → value; a score that could not be had is left out.

    A benchmark under several protocols (a base model under several templates) carries the protocol's id.
    """
    protocols = Counter(scores.benchmark for scores in record.scores.values())
    numbers: dict[tuple[str, ...], float] = {}
    for protocol, scores in record.scores.items():
        name = scores.benchmark if protocols[scores.benchmark] == 1 else f"{scores.benchmark} {protocol[:8]}"
        numbers |= {(name, *key): value for key, value in _values(scores)}
    return numbers


def _values(scores: BenchmarkScores) -> Iterator[tuple[tuple[str, str], float]]:
    for name, metrics in [*scores.groups.items(), *scores.tasks.items()]:
        for metric, score in metrics.items():
            if score.value is not None:
                # ``none`` is the name of lm-eval's filter that filters nothing.
                yield (name, metric.removesuffix(",none").replace(",", ".")), float(score.value)


def _measures(record: Record) -> dict[str, Any]:
    measures: dict[str, Any] = dict(record.measures)
    change = measures.get("layer_change")
    if isinstance(change, Mapping):
        by_layer = change.get("relative_by_layer")
        layers = by_layer if isinstance(by_layer, Mapping) else {}
        kept = {key: value for key, value in change.items() if key != "relative_by_layer"}
        measures["layer_change"] = {**kept, **{f"layer_{layer:0>2}": value for layer, value in layers.items()}}
    training = {key: value for key, value in record.training.items() if key != "layout"}
    return {**measures, "training": training}


def _numbers(value: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], float]:
    """Return the numbers among nested values by path; lists, texts and schema numbers are in record.json."""
    numbers: dict[tuple[str, ...], float] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            numbers |= _numbers(item, (*path, key))
        elif isinstance(item, int | float) and not isinstance(item, bool) and key != "schema" and math.isfinite(item):
            numbers[*path, key] = float(item)
    return numbers


def _unique(values: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    """Return values by MLflow's names; where two names would become one, each gets a hash of its own."""
    names = {path: "/".join(map(clean_name, path)) for path in values}
    taken = Counter(names.values())
    unique = {p: name if taken[name] == 1 else f"{name}-{digest(json.dumps(p))[:6]}" for p, name in names.items()}
    return {_shortened(unique[path], KEY_LENGTH): value for path, value in values.items()}


def _shortened(text: str, limit: int) -> str:
    """Return a text of at most ``limit`` characters; a shortened one ends with a hash of the whole."""
    return text if len(text) <= limit else f"{text[: limit - 20]}...{digest(text)}"
