"""``submit`` and ``job``: a sweep on a cluster that runs already, without this terminal."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from massive_sft.cli.budget import BudgetHours
from massive_sft.cli.options import File, Overlays, Where
from massive_sft.cli.run import Retrain
from massive_sft.core.errors import ExitCode, InvalidInput, Problem
from massive_sft.scheduling.jobs import Job, job_logs, job_status, list_jobs, stop_job
from massive_sft.scheduling.submit import Command, submit_sweep
from massive_sft.sweep.load import load_sweep

Address = Annotated[
    str | None,
    typer.Option(help="The cluster's dashboard; else $RAY_ADDRESS if it is http, else port 8265 of this machine."),
]


def submit(
    file: File,
    overlay: Overlays = None,
    address: Address = None,
    working_dir: Annotated[
        Path, typer.Option(help="The folder that the job takes along, without what .gitignore and .rayignore name.")
    ] = Path(),
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="<path>",
            help="A file, folder or pattern below it to take along though it would be left out; repeatable.",
        ),
    ] = None,
    verb: Annotated[str, typer.Option("--verb", help="What the job does: run, retry or fetch.")] = "run",
    where: Where = None,
    budget: BudgetHours = None,
    retrain: Retrain = False,
    python: Annotated[str, typer.Option("--python", help="The interpreter's name on the cluster.")] = "python",
) -> None:
    """Run the sweep on a Ray cluster, by its Jobs API, and return at once. Submitting again is resuming.

    Of a git repository the job takes along what git tracks and what the sweep names; credentials in no case.
    """
    overlays = overlay or []
    command = Command(verb, where, budget, retrain, python)
    sent = submit_sweep(load_sweep(file, overlays), overlays, address, working_dir, typer.echo, command, include or ())
    job, there = sent.id, f" --address {shlex.quote(address)}" if address else ""
    typer.echo(f"submitted {job}; it goes on without this terminal" if sent.is_new else f"it goes on already, as {job}")
    for option, what in (
        ("", "how far it is"),
        (" --follow", "what it prints"),
        (" --stop", "end it; submitting again goes on from there"),
    ):
        typer.echo(f"  massive-sft job {job}{there}{option:<9}    {what}")


def job(
    job_id: Annotated[str | None, typer.Argument(help="The id that submit printed; without it all jobs.")] = None,
    logs: Annotated[bool, typer.Option("--logs", help="Print what it has printed.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Print what it prints, until it ends.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End it after its step in hand, and wait for that.")] = False,
    now: Annotated[
        bool, typer.Option("--now", help="With --stop: as the cluster is set up to, perhaps before a checkpoint.")
    ] = False,
    address: Address = None,
) -> None:
    """How a submitted job is, or what it prints. Exits with 1 when it failed or was stopped, 75 when it may go on."""
    if job_id is None:
        for item in list_jobs(address):
            typer.echo(_line(item))
        return
    if stop or now:
        if not stop:
            raise InvalidInput(Problem("--now", "says how to stop: give --stop too"))
        with _left_by_interrupt("left; the job was told to end"):
            typer.echo(_line(stop_job(address, job_id, now, typer.echo)))
        return
    if logs or follow:
        with _left_by_interrupt("left; the job goes on"):
            for text in job_logs(address, job_id, follow):
                typer.echo(text, nl=False)
    state = job_status(address, job_id)
    # Beside its output the job's own words are enough; the status goes where they do not mix.
    typer.echo(_line(state), err=logs or follow)
    if state.message:
        typer.echo(state.message, err=logs or follow)
    if state.has_failed:
        raise typer.Exit(ExitCode.TRY_AGAIN if state.exit_code == ExitCode.TRY_AGAIN else ExitCode.INCOMPLETE)


@contextmanager
def _left_by_interrupt(text: str) -> Iterator[None]:
    """Have Ctrl-C end what only looks on."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(text, err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _line(item: Job) -> str:
    started = item.started.strftime("%Y-%m-%d %H:%M:%S UTC") if item.started else "not started"
    took = f", {(item.ended - item.started).total_seconds():.0f} s" if item.started and item.ended else ""
    return f"{item.id}  {item.status:<9}  {item.sweep or item.entrypoint}  {started}{took}"
