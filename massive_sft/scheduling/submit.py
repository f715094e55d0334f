"""Send a sweep to a running cluster: package the tree, check that it means the same there, start it, let go.

What is packaged is looked for here. Absolute paths and those with a ``${NAME}`` are the cluster's: a first, small job
asks each of its nodes for them, and a sweep of which a node lacks one is not started.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.ledger.provenance import redact
from massive_sft.scheduling.jobs import JobError, cluster_problem, resolve_address, run_job, send_job
from massive_sft.scheduling.package import Tree, find_tree, write_package
from massive_sft.scheduling.portable import client_only
from massive_sft.sweep.load import Sweep

CHECK = "massive_sft.scheduling.cluster_paths"
CHECK_S = 300.0  # seconds that the cluster may take for it


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
        InvalidInput: with everything that stands in the way here: no cluster that answers, a tree that cannot be
            packaged, paths outside it; then with everything that nodes of the cluster lack.
        JobError: the cluster refused it, or could not be asked.
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
        say("asking every node of the cluster for the paths that the sweep names")
        say(_require_seen(sweep, run_job(resolved, check_entrypoint(sweep, overlays, tree), archive, CHECK_S)))
        return send_job(resolved, entrypoint(sweep, overlays, tree), archive, sweep.file.name)


def entrypoint(sweep: Sweep, overlays: Sequence[Path], tree: Tree) -> str:
    """Return the job's command line; files are named relative to the package."""
    words = ["python", "-m", "massive_sft", "run", _inside(sweep.path, tree)]
    for overlay in overlays:
        words += ["--overlay", _inside(overlay, tree)]
    return shlex.join(words)


def check_entrypoint(sweep: Sweep, overlays: Sequence[Path], tree: Tree) -> str:
    """Return the command line of the job that looks for the sweep's paths."""
    return shlex.join(["python", "-m", CHECK, *(_inside(path, tree) for path in (sweep.path, *overlays))])


def _require_seen(sweep: Sweep, printed: str) -> str:
    """Return in a sentence what the nodes said. Raises InvalidInput with what they lack, JobError when they did not."""
    from massive_sft.scheduling.cluster_paths import Answer

    answer = Answer.find(printed)
    if answer is None:
        last = "; ".join(printed.strip().splitlines()[-3:]) or "it printed nothing"
        raise JobError(f"the cluster could not look for the sweep's paths ({redact(last)})")
    if answer.problems:
        raise InvalidInput(_with_hint(sweep, *problem) for problem in answer.problems)
    return f"{answer.nodes} nodes see the storage root and all {answer.paths} paths"


def _with_hint(sweep: Sweep, place: str, rule: str, value: str) -> Problem:
    """Return what nodes lack as a problem, and what to do where this machine has it."""
    path = Path(value).expanduser()
    if path.is_absolute() and path.exists():
        relative = os.path.relpath(path, sweep.folder)
        rule += f"; this machine has it: put it where all nodes see it, or package it and write {relative}"
    return Problem(f"{sweep.path}: {place}", rule, redact(value))


def _inside(path: Path, tree: Tree) -> str:
    return path.resolve().relative_to(tree.root).as_posix()
