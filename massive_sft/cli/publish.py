"""``report``, ``ui`` and ``mirror``: what a sweep's ledger says, for people and in the tracker."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Annotated

import typer

from massive_sft.cli.options import File, Overlays, console, read_plan, report_write_errors
from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.imports import heavy_imports
from massive_sft.core.wording import counted
from massive_sft.planning.outcome import AsPlanAsks
from massive_sft.planning.plan import storage_place
from massive_sft.report.source import PAGE, report_folder
from massive_sft.search.tags import search_tags
from massive_sft.study.imported import TABLE, ImportedLedger, is_imported, open_imported, open_imported_tables
from massive_sft.tracking.queue import Pending

PORT = 5000
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


def report(
    file: File,
    overlay: Overlays = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write into; in the storage if not given.")] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="<path>",
            help="A storage root or table.json of imported tables, shown beside the own cells; repeatable.",
        ),
    ] = None,
) -> None:
    """Write the sweep's report: one HTML page that needs no network, and its tables beside it."""
    with heavy_imports():
        from massive_sft.report.write import write_report
        from massive_sft.study.results import results_of

    if out is not None:
        with report_write_errors("--out", out):
            out.mkdir(parents=True, exist_ok=True)
    if is_imported(file):
        if beside:
            raise InvalidInput(Problem("--beside", "goes with a sweep's cells, not with an imported table", str(file)))
        _report_imported(file, out)
        return
    imported = [table_ledger for path in beside or () for table_ledger in open_imported_tables(path)]
    plan, _ = read_plan(file, overlay)
    folder = out or report_folder(plan)
    try:
        page = write_report(plan, results_of(plan), folder, imported)
    except OSError as error:
        if error.errno not in NOT_ALLOWED:
            raise
        rule = f"does not let the report be written ({error.strerror}): name another folder, --out DIR"
        raise InvalidInput(Problem(storage_place(plan.sweep), rule, str(folder))) from error
    console().print(f"report: {page}", soft_wrap=True)


def ui(
    file: File,
    overlay: Overlays = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the pages, on this machine only.")] = PORT,
) -> None:
    """Show the sweep's MLflow pages: serve the local store until interrupted, or say where the server is."""
    from massive_sft.tracking.address import database_path, resolve_uri
    from massive_sft.tracking.ui import serve_ui, ui_address

    if is_imported(file):
        table_ledger = open_imported(file)
        name, uri = table_ledger.table.name, resolve_uri(table_ledger.table.mlflow, table_ledger.ledger.root)
    else:
        plan, _ = read_plan(file, overlay)
        name, uri = plan.sweep.file.name, resolve_uri(plan.sweep.file.tracking.mlflow, plan.root)
    is_local = database_path(uri) is not None
    with console(is_error=True).status("starting MLflow" if is_local else "asking the tracker") as starting:
        from massive_sft.tracking.tracker import runs_page  # it takes seconds, as MLflow does

        page = ui_address(uri, port) + runs_page(uri, name)

        def ready() -> None:
            starting.stop()
            console().print(f"MLflow: {page} (Ctrl-C ends it)", soft_wrap=True)

        status = serve_ui(uri, port, ready) if is_local else 0
    if not is_local:
        console().print(f"open {page} in a browser", soft_wrap=True)
    if status:
        raise typer.Exit(status)


def mirror(file: File, overlay: Overlays = None) -> None:
    """Bring the tracker to what the ledger says: catch up, or rebuild a store that was deleted."""
    with heavy_imports():
        from massive_sft.tracking.mirror import mirror_all

    if is_imported(file):
        mirror_imported(open_imported(file))
        return
    plan, ledger = read_plan(file, overlay)
    names = {cell.cell.id: cell.cell.coordinates for cell in plan.cells}
    as_asked = AsPlanAsks(plan, search_tags(plan.sweep, plan.storage))
    files = (plan.sweep.path, report_folder(plan) / PAGE)
    left = mirror_all(ledger, plan.sweep.file.name, names, plan.sweep.file.tracking.mlflow, as_asked, _say, files)
    _tell(left, len(ledger.entries(names)))


def mirror_imported(table_ledger: ImportedLedger) -> None:
    """Bring the tracker to what the ledger says of an imported table, and say so. Raises typer.Exit when it cannot."""
    from massive_sft.tracking.mirror import Mirror

    mirror = Mirror.open(table_ledger.ledger, table_ledger.table.name, table_ledger.names(), table_ledger.table.mlflow)
    for path in (table_ledger.folder / TABLE, table_ledger.folder / "report" / "report.html"):
        if path.exists():
            mirror.artifact(path)
    _tell(mirror.close(say=_say), len(table_ledger.names()))


def _say(text: str) -> None:
    console().print(text, soft_wrap=True)


def _tell(left: Pending, cells: int) -> None:
    if left:
        console().print(f"not everything could be written: {left}", soft_wrap=True)
        raise typer.Exit(1)
    console().print(f"the tracker shows what the ledger has: {counted(cells, 'cell')}")


def _report_imported(file: Path, out: Path | None) -> None:
    from massive_sft.report.imported import read_imported_data, write_imported_report

    table_ledger = open_imported(file)
    page = write_imported_report(read_imported_data(table_ledger), out or table_ledger.folder / "report")
    console().print(f"report: {page}", soft_wrap=True)
