"""Send a sweep to a running cluster: package the tree, check that it means the same there, start it, let go."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from massive_sft.core.errors import InvalidInput
from massive_sft.scheduling.jobs import cluster_problem, resolve_address, send_job
from massive_sft.scheduling.package import Tree, find_tree, write_package
from massive_sft.scheduling.portable import client_only
from massive_sft.sweep.load import Sweep


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
        return send_job(resolved, entrypoint(sweep, overlays, tree), archive, sweep.file.name)


def entrypoint(sweep: Sweep, overlays: Sequence[Path], tree: Tree) -> str:
    """Return the job's command line; files are named relative to the package."""
    words = ["python", "-m", "massive_sft", "run", _inside(sweep.path, tree)]
    for overlay in overlays:
        words += ["--overlay", _inside(overlay, tree)]
    return shlex.join(words)


def _inside(path: Path, tree: Tree) -> str:
    return path.resolve().relative_to(tree.root).as_posix()
