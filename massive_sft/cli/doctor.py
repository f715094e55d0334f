"""``doctor``: whether this machine can run sweeps, line by line; with a sweep file also its storage and tracker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from massive_sft.cli import machine_checks
from massive_sft.cli.machine_checks import CheckResult, Level
from massive_sft.cli.options import Json, Overlays, console, print_json
from massive_sft.core.errors import Corrupt, InvalidInput, Unsupported
from massive_sft.core.wording import counted
from massive_sft.ledger.provenance import redact
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import storage_root
from massive_sft.search.plan import plan_searches
from massive_sft.search.replay import replay
from massive_sft.search.view import stale_text
from massive_sft.sweep.load import Sweep, load_sweep
from massive_sft.tracking import tracking_problem
from massive_sft.tracking.address import local_folder, resolve_uri


def doctor(
    file: Annotated[Path | None, typer.Argument(help="A sweep file, to look at its storage and tracker too.")] = None,
    overlay: Overlays = None,
    as_json: Json = False,
) -> None:
    """Look at this machine: versions, CPU, memory, disk, GPUs, compiler, limits, Ray, tracker, hub cache."""
    sweep = None if file is None else load_sweep(file, overlay or ())
    with console(is_error=True).status("looking at this machine") as status:
        findings = list(examine(sweep, status.update))
    if as_json:
        print_json([{"level": str(result.level), "what": result.what, "text": result.text} for result in findings])
    else:
        console().print(doctor_view(findings))
    if any(result.level is Level.BAD for result in findings):
        raise typer.Exit(1)


def examine(sweep: Sweep | None, say: Callable[[str], None] = lambda text: None) -> Iterator[CheckResult]:
    """Yield what was found, on this machine and of a sweep's storage and tracker; ``say`` is told what takes long."""
    yield machine_checks.check_python()
    yield from machine_checks.check_packages(machine_checks.pinned_versions())
    yield machine_checks.check_cpu()
    yield machine_checks.check_memory()
    if sweep is None:
        yield machine_checks.check_disk(Path.cwd(), "disk")
    else:
        yield from _storage(sweep)
        yield from _searches(sweep, say)
    yield machine_checks.check_gpus()
    yield machine_checks.check_compiler()
    yield machine_checks.check_open_files()
    yield machine_checks.check_shared_memory()
    yield machine_checks.check_import("ray")
    yield from machine_checks.check_hub_cache(sweep is not None and _uses_hub(sweep))


def _storage(sweep: Sweep) -> Iterator[CheckResult]:
    try:
        root = storage_root(sweep).local()
    except InvalidInput as error:
        yield from (CheckResult(Level.BAD, "storage", str(problem)) for problem in error.problems)
        return
    yield machine_checks.check_disk(root, "storage")
    uri = sweep.file.tracking.mlflow
    problem = tracking_problem(uri, sweep.place("tracking.mlflow"), root, sweep.file.name)
    shared = local_folder(root) != root.resolve()
    if shared:
        yield CheckResult(
            Level.WARN, "file system", f"{root} is on a network file system: slower; no SQLite store there"
        )
    if problem is not None:
        yield CheckResult(Level.BAD, "tracker", str(problem))
    else:
        yield CheckResult(Level.OK, "tracker", redact(resolve_uri(uri, root)))


def _searches(sweep: Sweep, say: Callable[[str], None]) -> Iterator[CheckResult]:
    """Yield whether the log of each search is whole, and decides the same again."""
    try:
        planned, ledger = plan_searches(sweep), Ledger(storage_root(sweep))
    except (InvalidInput, Unsupported):
        return  # `plan` says so
    for one in planned:
        what = f"search {one.search.name}"
        try:
            found = replay(one, ledger, partial(_say_progress, say, what))
        except Corrupt as error:
            yield CheckResult(Level.BAD, what, str(error))
            continue
        if found.differs is not None:
            yield CheckResult(Level.BAD, what, f"{found.differs}: the log was made by other code, or edited")
        elif found.equal or found.believed:
            rest = f"; {found.believed} cannot be decided again and are believed" if found.believed else ""
            yield CheckResult(Level.OK, what, f"{counted(found.equal, 'decision')} made again, equal{rest}")
        if found.stale:
            yield CheckResult(Level.WARN, what, stale_text(found.stale))


def _say_progress(say: Callable[[str], None], what: str, number: int, of: int) -> None:
    say(f"{what}: decision {number:,} of {of:,} is made again")


def _uses_hub(sweep: Sweep) -> bool:
    models, datasets = sweep.file.models.values(), sweep.file.datasets.values()
    return any(source.hub for source in models) or any(source.hub for source in datasets)


def doctor_view(findings: list[CheckResult]) -> Table:
    """Return the findings for people: one line each, its level in colour and as a word."""
    words = {Level.OK: "ok", Level.WARN: "warn", Level.BAD: "BAD"}
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column()
    table.add_column(overflow="fold")
    for result in findings:
        table.add_row(Text(words[result.level], style=str(result.level)), Text(result.what), Text(result.text))
    return table
