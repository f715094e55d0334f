"""``cancel``: ask the runs of a sweep to end, from another terminal or another machine that shares the storage."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer

from massive_sft.cli.options import File, Json, Overlays, console, print_json
from massive_sft.ledger.lease import this_process
from massive_sft.ledger.runs import Run, find_live_runs
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import storage_root
from massive_sft.sweep.load import load_sweep

POLL_S = 0.2  # seconds between looks at whether a run has ended


def cancel(
    file: File,
    overlay: Overlays = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait for the end.")] = 120.0,
    as_json: Json = False,
) -> None:
    """End all runs of the sweep as Ctrl-C does, wherever they are. One that still checks ends after that.

    Each training writes a checkpoint first and each scorer ends its shard; running the sweep again goes on from there.
    Exits with 1 when one has not ended in time; it still may.
    """
    sweep = load_sweep(file, overlay or ())
    asked = find_live_runs(Ledger(storage_root(sweep)).sweep(sweep.file.name))
    left = end_runs(asked, timeout_s)
    if as_json:
        runs = [{"run": run.name, "since": run.since, "ended": run not in left} for run in asked]
        print_json({"sweep": sweep.file.name, "runs": runs})
    else:
        _tell(asked, left, timeout_s)
    if left:
        raise typer.Exit(1)


def end_runs(runs: Sequence[Run], timeout_s: float) -> list[Run]:
    """Ask runs to end and wait for it; return those that had not ended after so many seconds."""
    by = this_process()
    for run in runs:
        run.request_end(by)
    deadline = time.monotonic() + timeout_s
    left = list(runs)
    while (left := [run for run in left if run.is_live()]) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left


def _tell(asked: Sequence[Run], left: Sequence[Run], timeout_s: float) -> None:
    out = console()
    if not asked:
        out.print("nothing to cancel: no run of this sweep goes on")
    for run in asked:
        what = f"has not ended within {timeout_s:g} s; it is asked and may still" if run in left else "has ended"
        out.print(f"{run.name}, since {run.since}: {what}", soft_wrap=True)
