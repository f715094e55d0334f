"""Send a sweep to a running cluster: package the tree, check that it means the same there, start it, let go."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from massive_sft.errors import InvalidInput
from massive_sft.scheduling.jobs import Job, cluster_problem, job_logs, job_status, list_jobs, resolve_address
from massive_sft.scheduling.jobs import send_job as _send
from massive_sft.scheduling.jobs import stop_job as _stop
from massive_sft.scheduling.package import Tree, find_tree, write_package
from massive_sft.scheduling.portable import client_only
from massive_sft.sweep.load import Sweep, load_sweep

Address = Annotated[
    str | None,
    typer.Option(help="The cluster's dashboard; else $RAY_ADDRESS if it is http, else http://127.0.0.1:8265."),
]


def submit_sweep(
    sweep: Sweep, overlays: Sequence[Path], address: str | None, working_dir: Path, say: Callable[[str], None]
) -> str:
    """Start ``massive-sft run`` of a sweep on a cluster and return the job's id; the job goes on without this process.

    The job runs in a copy of ``working_dir``, so a ``massive_sft`` folder at its top is the code that runs there;
    otherwise it is the one installed on the nodes, as all its dependencies must be in either case.

    Args:
        sweep: loaded.
        overlays: files that were merged over it.
        address: of the cluster's dashboard; None for the default one.
        working_dir: the folder to package; holds the sweep file and the local files that it names.
        say: told what is sent, before it is.

    Raises:
        InvalidInput: with everything that stands in the way: no cluster that answers, a tree that cannot be packaged,
            paths that the cluster would not find.
        JobError: the cluster refused it.
    """
    resolved = resolve_address(address)
    tree = find_tree(working_dir)
    unreachable = cluster_problem(resolved)
    problems = [*([unreachable] if unreachable else []), *tree.problems, *client_only(sweep, overlays, tree)]
    if problems:
        raise InvalidInput(problems)
    say(f"packaging {tree.root}: {tree}")
    with tempfile.TemporaryDirectory(prefix="massive-sft-package-") as folder:
        archive = Path(folder) / "package.zip"
        write_package(tree, archive)
        return _send(resolved, entrypoint(sweep, overlays, tree), archive, sweep.file.name)


def entrypoint(sweep: Sweep, overlays: Sequence[Path], tree: Tree) -> str:
    """Return the job's command line; files are named relative to the package."""
    words = ["python", "-m", "massive_sft", "run", _inside(sweep.path, tree)]
    for overlay in overlays:
        words += ["--overlay", _inside(overlay, tree)]
    return shlex.join(words)


def _inside(path: Path, tree: Tree) -> str:
    return path.resolve().relative_to(tree.root).as_posix()


def submit(
    file: Annotated[Path, typer.Argument(help="The sweep file.", show_default=False)],
    overlay: Annotated[
        list[Path] | None, typer.Option("--overlay", help="A file merged over the sweep file; repeatable.")
    ] = None,
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
        typer.echo("stopping" if _stop(address, job_id) else "it had ended before")
        return
    if logs or follow:
        try:
            for text in job_logs(address, job_id, follow):
                typer.echo(text, nl=False)
        except KeyboardInterrupt:
            typer.echo("left; the job goes on", err=True)
            raise typer.Exit(130) from None
    found = job_status(address, job_id)
    # Beside its output the job's own words are enough; the status goes where they do not mix.
    typer.echo(_line(found), err=logs or follow)
    if found.message:
        typer.echo(found.message, err=logs or follow)
    if found.has_failed:
        raise typer.Exit(1)


def _line(item: Job) -> str:
    started = item.started.strftime("%Y-%m-%d %H:%M:%S UTC") if item.started else "not started"
    took = f", {(item.ended - item.started).total_seconds():.0f} s" if item.started and item.ended else ""
    return f"{item.id}  {item.status:<9}  {item.sweep or item.entrypoint}  {started}{took}"
