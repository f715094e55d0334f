"""Send a sweep to a running cluster: package the tree, check that it means the same there, start it, let go.

What is packaged is looked for here. Absolute paths and those with a ``${NAME}`` are the cluster's: a first, small job
asks each of its nodes for them, and a sweep of which a node lacks one is not started.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.ledger.provenance import redact
from massive_sft.planning.selection import parse_where
from massive_sft.scheduling.jobs import JobError, Sent, cluster_problem, resolve_address, run_job, send_job
from massive_sft.scheduling.package import Tree, find_tree, write_package
from massive_sft.scheduling.portable import client_only
from massive_sft.sweep.load import Sweep

CHECK = "massive_sft.scheduling.cluster_paths"
CHECK_S = 300.0  # seconds that the cluster may take for it
DIGEST = 10  # hex digits of a submission's id
TAKEN = {"run": ("where", "budget", "retrain"), "retry": ("where", "retrain"), "fetch": ()}  # options, by verb


@dataclass(frozen=True)
class Command:
    """What the cluster does with a sweep.

    Attributes:
        verb: run, retry or fetch.
        where: only these cells, as ``--where``.
        budget: GPU-hours, as ``--budget-gpu-hours``.
        retrain: as ``--retrain``.
        python: the interpreter's name on the cluster.
    """

    verb: str = "run"
    where: str | None = None
    budget: float | None = None
    retrain: bool = False
    python: str = "python"

    def problems(self) -> list[Problem]:
        """Return why the cluster would refuse it."""
        if self.verb not in TAKEN:
            return [Problem("--verb", "must be what a job can do", self.verb, list(TAKEN))]
        given = {"where": self.where is not None, "budget": self.budget is not None, "retrain": self.retrain}
        options = [name for name, is_given in given.items() if is_given and name not in TAKEN[self.verb]]
        try:
            parse_where(self.where)
        except InvalidInput as error:
            return error.problems
        if self.budget is not None and not math.isfinite(self.budget):
            return [Problem("--budget-gpu-hours", "must be a finite number", self.budget)]
        names = {"budget": "budget-gpu-hours"}
        return [Problem(f"--{names.get(name, name)}", f"is no option of {self.verb}") for name in options]

    def words(self) -> list[str]:
        """Return the options as words of a command line."""
        words = [] if self.where is None else ["--where", self.where]
        words += [] if self.budget is None else ["--budget-gpu-hours", str(self.budget)]
        return words + (["--retrain"] if self.retrain else [])


def submit_sweep(
    sweep: Sweep,
    overlays: Sequence[Path],
    address: str | None,
    working_dir: Path,
    say: Callable[[str], None],
    command: Command | None = None,
    include: Sequence[str] = (),
) -> Sent:
    """Start a command on a sweep on a cluster and return the job; it goes on without this process.

    The job runs in a copy of ``working_dir``, so a ``massive_sft`` folder at its top is the code that runs there;
    otherwise it is the one installed on the nodes, as all its dependencies must be in either case. The same command on
    the same files is started once: while that job goes on, it is returned.

    Args:
        sweep: loaded.
        overlays: files that were merged over it.
        address: of the cluster's dashboard; None for the default one.
        working_dir: the folder to package; holds the sweep file and the local files that it names.
        say: told what is sent and what is left out, before it is.
        command: what the job does; ``run`` by default.
        include: files, folders and patterns that are packaged in any case, as for ``find_tree``.

    Raises:
        InvalidInput: with everything that stands in the way here: no cluster that answers, a tree that cannot be
            packaged, paths outside it; then with everything that nodes of the cluster lack.
        JobError: the cluster refused it, or could not be asked.
    """
    command = command or Command()
    resolved = resolve_address(address)
    tree = find_tree(working_dir, include)
    unreachable = cluster_problem(resolved)
    named = client_only(sweep, overlays, tree)  # packages what the sweep names
    problems = [*([unreachable] if unreachable else []), *command.problems(), *tree.problems, *named]
    if problems:
        raise InvalidInput(problems)
    say(f"packaging {tree.root}: {tree}")
    for sentence in tree.left_out():
        say(sentence)
    with tempfile.TemporaryDirectory(prefix="massive-sft-package-") as folder:
        archive = Path(folder) / "package.zip"
        write_package(tree, archive)
        say("asking every node of the cluster for the paths that the sweep names")
        check = check_entrypoint(sweep, overlays, tree, command)
        say(_require_seen(sweep, run_job(resolved, check, archive, CHECK_S)))
        line = entrypoint(sweep, overlays, tree, command)
        return send_job(resolved, line, archive, sweep.file.name, submission_stem(sweep, line, archive))


def entrypoint(sweep: Sweep, overlays: Sequence[Path], tree: Tree, command: Command) -> str:
    """Return the job's command line; files are named relative to the package."""
    words = [command.python, "-m", "massive_sft", command.verb, _inside(sweep.path, tree)]
    for overlay in overlays:
        words += ["--overlay", _inside(overlay, tree)]
    return shlex.join([*words, *command.words()])


def check_entrypoint(sweep: Sweep, overlays: Sequence[Path], tree: Tree, command: Command) -> str:
    """Return the command line of the job that looks for the sweep's paths."""
    return shlex.join([command.python, "-m", CHECK, *(_inside(path, tree) for path in (sweep.path, *overlays))])


def submission_stem(sweep: Sweep, line: str, archive: Path) -> str:
    """Return how the job's id begins: by the sweep's name, and by what is done and sent."""
    digest = hashlib.sha256(line.encode() + b"\0" + archive.read_bytes()).hexdigest()[:DIGEST]
    return f"{re.sub('[^A-Za-z0-9_.-]', '-', sweep.file.name)}-{digest}"


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
    return Problem(sweep.place(place), rule, redact(value))


def _inside(path: Path, tree: Tree) -> str:
    return path.resolve().relative_to(tree.root).as_posix()
