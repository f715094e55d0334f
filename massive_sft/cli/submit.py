"""``submit`` and ``job``: a sweep on a cluster that runs already, without this terminal."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from massive_sft.cli.options import File, Overlays
from massive_sft.scheduling.jobs import Job, job_logs, job_status, list_jobs, stop_job
from massive_sft.scheduling.submit import submit_sweep
from massive_sft.sweep.load import load_sweep

Address = Annotated[
    str | None,
    typer.Option(help="The cluster's dashboard; else $RAY_ADDRESS if it is http, else http://127.0.0.1:8265."),
]


def submit(
    file: File,
    overlay: Overlays = None,
    address: Address = None,
    working_dir: Annotated[
        Path, typer.Option(help="The folder that the job takes along, without what .gitignore and .rayignore name.")
    ] = Path(),
) -> None:
    """Run the sweep on a Ray cluster, by its Jobs API, and return at once. Submitting again is resuming."""
    overlays = overlay or []
    job = submit_sweep(load_sweep(file, overlays), overlays, address, working_dir, typer.echo)
    where = f" --address {shlex.quote(address)}" if address else ""
    typer.echo(f"submitted {job}; it goes on without this terminal")
    for option, what in (
        ("", "how far it is"),
        (" --follow", "what it prints"),
        (" --stop", "end it; submitting again goes on from there"),
    ):
        typer.echo(f"  massive-sft job {job}{where}{option:<9}    {what}")


def job(
    job_id: Annotated[str | None, typer.Argument(help="The id that submit printed; without it all jobs.")] = None,
    logs: Annotated[bool, typer.Option("--logs", help="Print what it has printed.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Print what it prints, until it ends.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End it.")] = False,
    address: Address = None,
) -> None:
    """How a submitted job is, or what it prints. Exits with 1 when it failed or was stopped."""
    if job_id is None:
        for item in list_jobs(address):
            typer.echo(_line(item))
        return
    if stop:
        typer.echo("stopping" if stop_job(address, job_id) else "it had ended before")
        return
    if logs or follow:
        try:
            for text in job_logs(address, job_id, follow):
                typer.echo(text, nl=False)
        except KeyboardInterrupt:
            typer.echo("left; the job goes on", err=True)
            raise typer.Exit(130) from None
    state = job_status(address, job_id)
    # Beside its output the job's own words are enough; the status goes where they do not mix.
    typer.echo(_line(state), err=logs or follow)
    if state.message:
        typer.echo(state.message, err=logs or follow)
    if state.has_failed:
        raise typer.Exit(1)


def _line(item: Job) -> str:
    started = item.started.strftime("%Y-%m-%d %H:%M:%S UTC") if item.started else "not started"
    took = f", {(item.ended - item.started).total_seconds():.0f} s" if item.started and item.ended else ""
    return f"{item.id}  {item.status:<9}  {item.sweep or item.entrypoint}  {started}{took}"
