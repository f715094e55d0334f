"""The outcome of a cell, and the sealed form in which it lies on disk."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from typing_extensions import TypeAliasType

from massive_sft.core.checksummed_json import seal, unseal
from massive_sft.core.errors import Corrupt, Unsupported
from massive_sft.ledger.provenance import redact
from massive_sft.sweep.semantics import measure_id

SCHEMA = 1
INVALIDATED = "invalidated: "  # how the error of a record begins that says what was there is wrong
# Why a benchmark is missing whose answers are there, until the judges were asked: nothing that failed.
AWAITED = "its answers are written, and verdicts on them are asked next; a run that ended meanwhile goes on with them"


class Status(StrEnum):
    """How far a cell is. WAITING and RUNNING are derived; the others are outcomes that a record states."""

    WAITING = "WAITING"
    """It has no record, and no process works on it."""
    RUNNING = "RUNNING"
    """It has no record, and a live lease covers it."""
    COMPLETE = "COMPLETE"
    """Everything that was asked is there."""
    PARTIAL = "PARTIAL"
    """Trained, but something that was asked is not there; ``Record.missing`` says why."""
    DIVERGED = "DIVERGED"
    """The training diverged: a result, never retried."""
    FAILED = "FAILED"
    """An error ended it; the next run takes it up again."""
    PRUNED = "PRUNED"
    """A searcher stopped it early."""


def _utc(text: str) -> str:
    moment = datetime.fromisoformat(text)
    if moment.utcoffset() is None or moment.utcoffset():
        raise ValueError(f"must be a UTC time in ISO format such as 2026-01-31T12:00:00+00:00, got {text!r}")
    return text


Scalar = int | FiniteFloat | None
Nested = TypeAliasType("Nested", "bool | int | FiniteFloat | str | list[Nested] | dict[str, Nested] | None")
Time = Annotated[str, AfterValidator(_utc)]
Told = Annotated[str, AfterValidator(redact)]  # what software says of itself may hold what it was given
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Score(BaseModel):
    """One number of a benchmark, with what its certainty is judged by; what cannot be had is None, never 0.

    Attributes:
        value: in the metric's own unit.
        stderr, interval, method: from the per-sample values; the interval is the 95 % one.
        n: samples behind the value; None where it is not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: FiniteFloat | None
    stderr: FiniteFloat | None
    interval: tuple[FiniteFloat, FiniteFloat] | None
    method: str | None
    n: int | None
    higher_is_better: bool | None


class Early(BaseModel):
    """What an early answer rests on: scores of a benchmark of which not all questions were asked.

    Its values are the base model's score on all questions plus the mean difference to it on those that were asked.

    Attributes:
        protocol: id of the protocol by which all questions are asked.
        questions, of: how many were asked, of how many.
        look: how often it was judged, from 1.
        until: the half-width that was asked for, in points.
        half_width: of the benchmark's widest score, in points: so far at most, at the level of the look, it is from the
            score that all questions would give.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: str
    questions: int
    of: int
    look: int
    until: FiniteFloat
    half_width: FiniteFloat

    def __str__(self) -> str:
        return f"{self.questions:,} of {self.of:,} questions, within ±{self.half_width:.2g} points of the full score"


class BenchmarkScores(BaseModel):
    """All scores of one benchmark under one protocol.

    Attributes:
        benchmark: its name for people, with the number of shots.
        shots: examples before each question; None where its tasks differ.
        asked: what of the sweep it answers (``planning.requirements.Requirement.id``).
        tasks, groups: scores by name, then by ``metric,filter``.
        early: of an early answer; None, and not in the file, where all questions were asked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    benchmark: str
    asked: str
    shots: int | None
    tasks: dict[str, dict[str, Score]]
    groups: dict[str, dict[str, Score]] = {}
    early: Early | None = None

    @model_serializer(mode="wrap")
    def _without_none(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = dump(self)
        if fields.get("early", True) is None:
            del fields["early"]
        return fields

    def full_protocol(self, protocol: str) -> str:
        """Return the protocol by which all questions are asked.

        Args:
            protocol: that of these scores.
        """
        return self.early.protocol if self.early else protocol


class Record(BaseModel):
    """One row of the results table. What could not be measured is ``None``, never 0; NaN and infinities are refused.

    Attributes:
        cell: id of the cell.
        trajectory: id of the training run it is a point on; ``None`` for a base model's row.
        coordinates: display names by axis (model, data, method, size, schedule, epoch, ...).
        status: an outcome, so neither WAITING nor RUNNING.
        attempt: number of the attempt that produced it (from 1).
        scores: by protocol id; the per-sample values lie in ``scores/<protocol>.parquet`` of the cell.
        measures: perplexity, layer change, token length, ... by name.
        counts: samples and tokens of the data: used, truncated, dropped, duplicated, trainable, ...
        training: summary of the run: final loss (nats per token), steps, tokens, seconds, layout; empty for a base row.
        cost: what scoring and measuring took that this record was written after: ``device``, and ``seconds`` by what
            was asked (``Asked.id``, a measure's name), ``load`` and ``other``; ``resumed``, what was asked of
            which answers were there before, so that its seconds are of the rest alone; ``attention``, the
            implementation that computed the scores; ``plainly``, why the plain engine did where the tree was asked for.
        missing: why a benchmark has no score, by its name (PARTIAL); secrets are hidden whoever says it.
        error: why it is FAILED (or DIVERGED, PRUNED); likewise.
        provenance: see ``provenance.capture_provenance``.
        created, finished: when the work began and ended, ISO 8601, UTC.
        files: SHA-256 by path below the storage root of every file the record rests on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_version: Literal[1] = Field(1, alias="schema")
    cell: str
    trajectory: str | None
    coordinates: dict[str, str | Scalar]
    status: Status
    attempt: int = Field(ge=1)
    scores: dict[str, BenchmarkScores] = {}
    measures: dict[str, Nested] = {}
    counts: dict[str, Nested] = {}
    training: dict[str, Nested] = {}
    cost: dict[str, Nested] = {}
    missing: dict[str, Told] = {}
    error: Told | None = None
    provenance: dict[str, Nested]
    created: Time
    finished: Time
    files: dict[str, Sha256] = {}

    @property
    def answers(self) -> tuple[str, ...]:
        """What was asked of the cell and is there: ids of benchmarks and of measures, sorted."""
        numbers = {name: value.get("schema") if isinstance(value, dict) else 1 for name, value in self.measures.items()}
        measures = (measure_id(name, n if isinstance(n, int) else 1) for name, n in numbers.items())
        return tuple(sorted({*(item.asked for item in self.scores.values()), *measures}))

    @property
    def is_invalidated(self) -> bool:
        """Whether it says that what was there is wrong: the next run makes it again."""
        return self.status is Status.FAILED and (self.error or "").startswith(INVALIDATED)

    @model_validator(mode="after")
    def _status_matches_content(self) -> Record:
        if self.status in (Status.WAITING, Status.RUNNING):
            raise ValueError(f"{self.status} is derived from the ledger, never recorded")
        if (self.status is Status.PARTIAL) != bool(self.missing):
            raise ValueError(f"missing must name tasks exactly when the status is PARTIAL, got {self.missing!r}")
        if self.status is Status.FAILED and not self.error:
            raise ValueError("a FAILED record needs its error")
        if self.status in (Status.COMPLETE, Status.PARTIAL) and self.error:
            raise ValueError(f"a {self.status} record has no error, got {self.error!r}")
        return self


# One envelope for everything that must be trusted later: valid JSON, and the checksum covers the very bytes between
# a head of fixed length and a closing brace, so that verifying needs neither parsing nor serialising again.
def dump_record(record: Record) -> bytes:
    """Return the bytes of a record's file."""
    return seal(record.model_dump(mode="json", by_alias=True))


def load_record(data: bytes, place: str) -> Record:
    """Return the record that ``dump_record`` made these bytes of.

    Args:
        data: the content of its file.
        place: the file, for messages.

    Raises:
        Corrupt: the checksum or the content is wrong.
        Unsupported: a newer version of massive-sft wrote it.
    """
    body = unseal(data, place)
    try:
        return Record.model_validate_json(body)
    except ValidationError as error:
        schema = json.loads(body).get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise newer_schema(place, schema, SCHEMA) from error
        raise Corrupt(f"{place}: is no record: {error}") from error


def newer_schema(place: str, schema: int, known: int) -> Unsupported:
    """Return the refusal of a file that a newer version wrote."""
    return Unsupported(
        f"{place}: has schema {schema}, this version reads up to {known}: use the massive-sft that wrote it, or newer"
    )


_NAME = re.compile(r"record-(?:([0-9]+)-)?([0-9]+)\.json")


@dataclass(frozen=True, order=True, slots=True)
class Revision:
    """A record's place in the order of its cell's records; the highest counts, ``Revision()`` is below all.

    The number of the lease comes first, so that whoever was superseded sorts below its successor, whatever it believes
    when it writes.

    Attributes:
        lease: number of the lease on the cell; 0 where there was none, and in ledgers of schema 1 (``record-<n>``).
        sequence: from 1.
    """

    lease: int = 0
    sequence: int = 0

    @classmethod
    def of(cls, name: str) -> Revision | None:
        """Return the revision of a file by its name; None when it is no record's."""
        match = _NAME.fullmatch(name)
        return None if match is None else cls(int(match[1] or 0), int(match[2]))

    @property
    def name(self) -> str:
        """The name of the record's file."""
        return f"record-{self.lease:08d}-{self.sequence:04d}.json"

    def next(self) -> Revision:
        """Return the one after it under the same lease."""
        return Revision(self.lease, self.sequence + 1)
