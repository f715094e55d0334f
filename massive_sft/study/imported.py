"""A released table in a ledger: each row a record, whose cell is known by its names alone.

``<root>/sweeps/<name>/table.json`` says what the table was and which cell each of its rows is; the records hold the
rest. It is written first and the records last, so an import that died goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from massive_sft.core.errors import Corrupt, InvalidInput, LedgerError, Problem
from massive_sft.core.files import read_json
from massive_sft.core.fingerprint import fingerprint
from massive_sft.ledger.record import BenchmarkScores, Record, Score, Sha256, Status, Time
from massive_sft.ledger.store import Ledger
from massive_sft.study.released import ReleasedRow, ReleasedTable, ScoreColumn, task_of
from massive_sft.sweep.cell import Coordinates
from massive_sft.sweep.load import TABLE

NOT_IN_TABLE = "not in the table"
_KNOWN = ("model", "data", "method", "size", "schedule", "epoch")
_UNKNOWN = (
    "warm-up", "max length", "learning rate", "batch", "template", "loss mask", "precision", "horizon",
    "sampled rows", "evaluation protocol",
)  # fmt: skip


class Imported(BaseModel):
    """What ``table.json`` says of an imported table.

    Attributes:
        name: of the study; also the tracker's experiment.
        file, sha256, header, newline, columns: of the table (``released.ReleasedTable``).
        when: when it was first imported.
        mlflow: the tracker's address, as a sweep file's ``tracking.mlflow``.
        cells: the cell of each row, in the table's order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_version: Literal[1] = Field(1, alias="schema")
    name: str
    file: str
    sha256: Sha256
    when: Time
    mlflow: str
    header: tuple[str, ...]
    newline: str
    columns: dict[str, ScoreColumn]
    cells: tuple[str, ...]


@dataclass(frozen=True)
class ImportedLedger:
    """An imported table and the ledger that holds it, open for reading."""

    table: Imported
    ledger: Ledger

    @property
    def folder(self) -> Path:
        """Where the table's ``table.json`` and report lie."""
        return self.ledger.sweep_dir(self.table.name)

    def records(self) -> dict[str, Record | None]:
        """Return the record of each row's cell, in the table's order; None where there is none yet."""
        return {cell: self.ledger.read_record(cell) for cell in self.table.cells}

    def names(self) -> dict[str, Coordinates]:
        """Return the names of the rows that have a record, by cell."""
        return {cell: coordinates_of(record) for cell, record in self.records().items() if record is not None}


def is_imported(path: Path) -> bool:
    """Whether a path that stands for a sweep file is an imported table's ``table.json``."""
    return path.name == TABLE


def open_imported(path: Path) -> ImportedLedger:
    """Open an imported table by its ``table.json``.

    Raises:
        InvalidInput: there is none.
        Corrupt: it is unsound, or lies where no ledger has it.
    """
    try:
        table = Imported.model_validate(read_json(path))
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidInput(Problem(str(path), "is no imported table; import-table makes one")) from None
    except ValidationError as error:
        raise Corrupt(f"{path}: is no {TABLE}: {error}; import the table again under another name") from error
    ledger = Ledger.open(path.absolute().parents[2], create=False, place=str(path))
    if ledger.sweep_dir(table.name) != path.absolute().parent:
        raise Corrupt(f"{path}: belongs into the folder of {table.name} under a ledger's sweeps")
    return ImportedLedger(table, ledger)


def find_tables(root: Path) -> dict[str, Path]:
    """Return the ``table.json`` of each imported table under a storage root, by name."""
    return {path.parent.name: path for path in sorted((root / "sweeps").glob(f"*/{TABLE}"))}


def open_imported_tables(path: Path) -> list[ImportedLedger]:
    """Open an imported table by its ``table.json``, or all under a storage root.

    Raises InvalidInput where there is none, Corrupt for an unsound one.
    """
    paths = [path] if is_imported(path) else list(find_tables(path).values())
    if not paths:
        raise InvalidInput(Problem(str(path), "holds no imported table; import-table makes one"))
    return [open_imported(path) for path in paths]


def describe_import(name: str, table: ReleasedTable, when: str, mlflow: str) -> Imported:
    """Return what ``table.json`` says of a table that is imported under ``name``."""
    return Imported(
        schema=1,
        name=name,
        file=table.file,
        sha256=table.sha256,
        when=when,
        mlflow=mlflow,
        header=table.header,
        newline=table.newline,
        columns=dict(table.columns),
        cells=tuple(cell_id(name, row.coordinates) for row in table.rows),
    )


def unknown_fields(method: str) -> tuple[str, ...]:
    """Return what a table does not say of a row whose ``method`` is full, lora or none (a base model's)."""
    if method == "none":
        return ("evaluation protocol",)
    return ("seed", *(("LoRA rank",) if method == "lora" else ()), *_UNKNOWN)


def approximation_note(method: str) -> str:
    """Return the caution with which a row may be set beside a cell of the same names."""
    return f"approximate: unknown {', '.join(unknown_fields(method))}"


def _known(coordinates: Coordinates, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(coordinates, name) for name in names}


def cell_id(name: str, coordinates: Coordinates) -> str:
    """Return the id of a row's cell: of its names and the table's, so never that of a trained cell."""
    return fingerprint({"imported": name, **_known(coordinates, _KNOWN)})


def cell_content(name: str, coordinates: Coordinates) -> dict[str, Any]:
    """Return what is known of a row's cell (what its id hashes), and the names of what is not."""
    return {"imported": name, **_known(coordinates, _KNOWN), "unknown": list(unknown_fields(coordinates.method))}


def record_of(table: Imported, number: int, row: ReleasedRow) -> Record:
    """Return the record of a table's row. A score that is not in the table is None and named in ``missing``.

    Rows of equal names but for the epoch are taken for snapshots of one training run, as those of the paper are.

    Args:
        number: of the row, from 0.
    """
    at, base = row.coordinates, row.coordinates.method == "none"
    run = {"imported": table.name, **_known(at, [name for name in _KNOWN if name != "epoch"])}
    missing = {name: NOT_IN_TABLE for name, value in row.scores.items() if value is None}
    source: dict[str, Any] = {"file": table.file, "sha256": table.sha256, "row": number + 1, "when": table.when}
    source |= {"texts": dict(row.texts), "unknown": list(unknown_fields(at.method))}
    scores = {name: value for name, value in row.scores.items() if value is not None}
    return Record(
        schema=1,
        cell=table.cells[number],
        trajectory=None if base else fingerprint(run),
        coordinates=at._asdict(),
        status=Status.PARTIAL if missing else Status.COMPLETE,
        attempt=1,
        scores={protocol_id(table.name, name): _scores(table, name, value) for name, value in scores.items()},
        missing=missing,
        provenance={"imported": source},
        created=table.when,
        finished=table.when,
    )


@cache
def protocol_id(name: str, column: str) -> str:
    """Return the id of the unknown protocol of a table's column: rows of one table share it, nothing else does."""
    return fingerprint({"imported": name, "column": column})


def _scores(table: Imported, name: str, value: float) -> BenchmarkScores:
    column = table.columns[name]
    score = Score(
        value=value,
        stderr=None,
        interval=None,
        method=None,
        n=None,
        higher_is_better=column.higher_is_better,
    )
    asked = f"{name} {protocol_id(table.name, name)}"
    return BenchmarkScores(
        benchmark=name,
        asked=asked,
        shots=column.shots,
        tasks={task_of(name, column): {f"{column.recorded},none": score}},
    )


def coordinates_of(record: Record) -> Coordinates:
    """Return a record's names. Raises Corrupt when another version wrote others."""
    try:
        return Coordinates(**record.coordinates)  # type: ignore[arg-type]
    except TypeError as error:
        raise Corrupt(f"the record of {record.cell} has names that this version does not know: {error}") from error


def row_of(table: Imported, record: Record) -> ReleasedRow:
    """Return the row that a record was made of.

    Raises Corrupt when it was not made of this table.
    """
    source = record.provenance.get("imported")
    if not isinstance(source, Mapping) or source.get("sha256") != table.sha256:
        raise Corrupt(f"the record of {record.cell} is none of the table {table.name}")
    values = {benchmark.benchmark: value for benchmark in record.scores.values() for value in _values(benchmark)}
    scores = {name: values.get(name) for name in table.columns}
    texts = {str(name): str(text) for name, text in dict(source["texts"]).items()}  # type: ignore[arg-type]
    return ReleasedRow(coordinates_of(record), scores, texts)


def _values(benchmark: BenchmarkScores) -> Iterable[float | None]:
    return (score.value for scores in benchmark.tasks.values() for score in scores.values())


def read_rows(source: ImportedLedger) -> list[ReleasedRow]:
    """Return all rows of an imported table from the ledger's records.

    Raises LedgerError when some have no record, Corrupt when one is of something else.
    """
    records = source.records()
    absent = sum(record is None for record in records.values())
    if absent:
        raise LedgerError(f"{absent} of {len(records)} rows have no record: import {source.table.file} again")
    return [row_of(source.table, record) for record in records.values() if record is not None]
