"""``import-table`` and ``export-table``: a released table becomes a ledger, and a ledger the table again."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from massive_sft.cli.options import console, print_json, report_write_errors
from massive_sft.cli.publish import mirror_imported
from massive_sft.core.errors import InvalidInput, LedgerError, Problem
from massive_sft.core.files import write_bytes, write_json
from massive_sft.core.fingerprint import hash_file
from massive_sft.ledger.lease import Claim, Lease, LeaseWatch, this_process
from massive_sft.ledger.provenance import redact
from massive_sft.ledger.record import Record
from massive_sft.ledger.storage import Storage
from massive_sft.ledger.store import Ledger
from massive_sft.study.imported import (
    TABLE,
    Imported,
    ImportedLedger,
    approximation_note,
    cell_content,
    coordinates_of,
    describe_import,
    find_tables,
    open_imported,
    read_rows,
    record_of,
)
from massive_sft.study.released import ReleasedRow, ReleasedTable, known_columns, read_table, write_table
from massive_sft.sweep.schema.field_types import MAX_NAME_BYTES

NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_BYTES - 1}}}")  # as a sweep's
LEASE = "import-lease"
POLL_S = 0.5  # seconds between looks at whether a process elsewhere still lives
WRITERS = 8
"""Records written at once: each waits for the disk, which flushes several together."""


def import_table(
    table: Annotated[Path, typer.Argument(help="A CSV file of the released table's form.", show_default=False)],
    root: Annotated[Path, typer.Argument(help="The storage root of the ledger; made if missing.", show_default=False)],
    name: Annotated[str, typer.Option(help="The name under which the table is kept.", show_default=False)],
    scales: Annotated[
        Path | None, typer.Option(help="A JSON file that declares further columns: metric, scale, shots.")
    ] = None,
    mlflow: Annotated[str, typer.Option(help="The tracker's address, as a sweep file has it.")] = "",
    mirror: Annotated[bool, typer.Option("--mirror/--no-mirror", help="Show it in the tracker now.")] = True,
) -> None:
    """Make a released table a ledger: a record for each row, the report, and the tracker's runs.

    Running it again does only what is missing. The row of a base model, which gains are taken over, has pretrain as its
    data_name, 0 as data_size and epoch, and an empty lora and lr_strategy.
    """
    from massive_sft.report.imported import read_imported_data, write_imported_report

    read = read_table(table, known_columns(scales))
    table_ledger, written = write_ledger(root, name, read, mlflow)
    out, data = console(), read_imported_data(table_ledger)
    counts = ", ".join(f"{count} {print_status}" for print_status, count in data.statuses)
    out.print(f"{len(data.records)} rows of {read.file} in {table_ledger.ledger.root}, {written} of them new: {counts}")
    out.print(f"beside cells of the same names they are {approximation_note('lora')}", soft_wrap=True)
    for finding in data.findings:
        out.print(f"{finding.kind}: {finding.text}", soft_wrap=True)
    out.print(f"report: {write_imported_report(data, table_ledger.folder / 'report')}", soft_wrap=True)
    if mirror:
        out.print(f"writing {len(data.records)} runs to the tracker; `massive-sft mirror` goes on where this stops")
        mirror_imported(table_ledger)
    out.print(
        f"report, mirror, ui, status and show take {table_ledger.folder / TABLE} for a sweep file", soft_wrap=True
    )


def write_ledger(root: Path, name: str, table: ReleasedTable, mlflow: str) -> tuple[ImportedLedger, int]:
    """Write what is missing of a table into the ledger under ``root``; return it, and how many records were written.

    Raises:
        InvalidInput: the name is taken by a sweep or by another table, or is none; the root cannot be written.
        LedgerError: another process imports under this name.
    """
    if redact(mlflow) != mlflow:
        raise InvalidInput(Problem("--mlflow", "holds a secret: put it into the environment and write ${NAME}"))
    if not NAME.fullmatch(name):
        rule = f"must be at most {MAX_NAME_BYTES} letters, digits, dots, dashes and underscores"
        raise InvalidInput(Problem("--name", rule, name))
    ledger = Ledger.open(root, place="root")
    path = ledger.sweep_dir(name) / TABLE
    if path.parent.is_dir() and not path.exists() and any(item.name != LEASE for item in path.parent.iterdir()):
        raise InvalidInput(Problem("--name", "is the name of a sweep of this storage root", name))
    with _importing(ledger.sweep(name).at(LEASE), name) as lease:
        imported = _described(path, name, table, mlflow)
        written = _write(ledger, imported, table.rows, lease.claim)
    return open_imported(path), written


def _importing(place: Storage, name: str) -> Lease:
    """Take the lease of an import, of a process that died elsewhere once it stood still for a minute."""
    watch = LeaseWatch()
    while (lease := Lease.acquire(place, this_process(), watch)) is None:
        if watch.saw_life(place):
            raise LedgerError(f"another process imports under the name {name}; wait for it, then run this again")
        time.sleep(POLL_S)
    return lease


def _described(path: Path, name: str, table: ReleasedTable, mlflow: str) -> Imported:
    """Return what was written of the table before, or write it."""
    now = describe_import(name, table, datetime.now(UTC).isoformat(timespec="seconds"), mlflow)
    if path.exists():
        before = open_imported(path).table
        now = now.model_copy(update={"when": before.when})
        if _recorded(before) != _recorded(now):
            rule = f"is the name of another table, {before.file} with SHA-256 {before.sha256[:12]}; choose another one"
            if before.sha256 == now.sha256:
                rule = "is the name of this table under another name of the file or other scales; choose another one"
            raise InvalidInput(Problem("--name", rule, name))
        if before == now:
            return now
    write_json(path, now.model_dump(mode="json", by_alias=True))
    return now


def _recorded(table: Imported) -> Imported:
    """Return a table with only what its records rest on, for comparison."""
    columns = {name: column.model_copy(update={"tasks": ()}) for name, column in table.columns.items()}
    return table.model_copy(update={"mlflow": "", "columns": columns})


def _write(ledger: Ledger, imported: Imported, rows: Sequence[ReleasedRow], claim: Claim) -> int:
    """Write the records that are missing, each whole after what its cell is; return their number."""
    known = ledger.entries(set(imported.cells))

    def write(number: int) -> None:
        row, cell = rows[number], imported.cells[number]
        ledger.write_cell(cell, cell_content(imported.name, row.coordinates))
        ledger.write_record(record_of(imported, number, row), claim)

    missing = [number for number, cell in enumerate(imported.cells) if cell not in known]
    with ThreadPoolExecutor(WRITERS) as writers:
        for done in [writers.submit(write, number) for number in missing]:
            done.result()
    return len(missing)


def export_table(
    root: Annotated[Path, typer.Argument(help="The storage root of the ledger.", show_default=False)],
    name: Annotated[str, typer.Argument(help="The name that the table was imported under.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The CSV file to write.", show_default=False)],
) -> None:
    """Write an imported table back from its records: the same columns, rows and values."""
    ledger = Ledger.open(root, create=False, place="root")
    paths = find_tables(ledger.root)
    if name not in paths:
        raise InvalidInput(Problem("name", "is no imported table of this ledger", name, tuple(paths)))
    table_ledger = open_imported(paths[name])
    table = table_ledger.table
    content = write_table(table.header, table.newline, read_rows(table_ledger))
    with report_write_errors("out", out):
        write_bytes(out, content)
    same = "byte for byte" if hash_file(out) == table.sha256 else "value for value"
    console().print(f"{out}: {len(table.cells)} rows, {same} as in {table.file}", soft_wrap=True)


def print_status(file: Path, where: str | None, as_json: bool) -> None:
    """Say how far every row of an imported table is, as ``print_status`` says it of a sweep's cells."""
    if where is not None:
        raise InvalidInput(Problem("--where", "picks cells of a sweep; an imported table is shown whole", where))
    table_ledger = open_imported(file)
    records = {cell: record for cell, record in table_ledger.records().items() if record is not None}
    if as_json:
        print_json([_status_json(record) for record in records.values()])
        return
    out = console()
    for cell, record in records.items():
        lacks = f"  lacks {', '.join(record.missing)}" if record.missing else ""
        out.print(f"{cell}  {coordinates_of(record)}  {record.status}{lacks}", soft_wrap=True)
    counts = Counter(record.status for record in records.values())
    summary = ", ".join(f"{count} {print_status}" for print_status, count in counts.items())
    table = table_ledger.table
    out.print(f"{len(records)} of {len(table.cells)} rows of {table.file} are in the ledger: {summary}")


def _status_json(record: Record) -> dict[str, Any]:
    about = {"cell": record.cell, "trajectory": record.trajectory, "status": str(record.status)}
    lacks = {"lacking": list(record.missing), "why": [f"{name}: {why}" for name, why in record.missing.items()]}
    return about | lacks | coordinates_of(record).by_shown_name()
