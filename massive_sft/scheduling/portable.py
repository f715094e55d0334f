"""Whether a sweep means the same on a cluster: what it names is packaged, or the cluster is asked for it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.ledger.provenance import redact
from massive_sft.scheduling.named_paths import VARIABLE, NamedPath, sweep_paths, task_paths
from massive_sft.scheduling.package import Tree
from massive_sft.sweep.load import Sweep
from massive_sft.sweep.paths import expand_variables

SHARED = "name a path that all nodes have, such as ${NAME:-/its/path}"
SQLITE = "sqlite:///"


def client_only(sweep: Sweep, overlays: Iterable[Path], tree: Tree) -> list[Problem]:
    """Return why a sweep would not find on a cluster what it names, or lose there what it writes.

    Files that it names are packaged, though git does not track them. Absolute paths, and those with a ``${NAME}``, are
    the cluster's, which knows them (``cluster_paths``).

    Args:
        sweep: loaded; its ``${NAME}`` are not expanded here.
        overlays: files that were merged over it.
        tree: what the job takes along.
    """
    return list(_Paths(sweep, tree).problems(overlays))


class _Paths:
    def __init__(self, sweep: Sweep, tree: Tree):
        self.sweep, self.tree = sweep, tree

    def problems(self, overlays: Iterable[Path]) -> Iterator[Problem]:
        for path in (self.sweep.path, *overlays):
            yield from self._packaged(path.resolve(), str(path))
        for named in sweep_paths(self.sweep):
            yield from self._input(named)
            if named.place.startswith("evaluation.") and VARIABLE not in named.text and not named.is_elsewhere:
                yield from self._task(named)
        yield from self._storage(self.sweep.file.storage.root)
        yield from self._tracker(self.sweep.file.tracking.mlflow)

    def _input(self, named: NamedPath) -> Iterator[Problem]:
        """Check that a path is packaged, with all that is read of it when it is a folder."""
        place = self.sweep.place(named.place)
        if named.is_elsewhere:
            if not named.is_certain:
                yield Problem(place, "names a path of this machine: write it relative to the file", named.text)
            return
        known, variable, _ = named.text.partition(VARIABLE)
        path = Path(os.path.abspath(named.folder / known))
        if variable:  # its end is known on the cluster only
            if not path.is_relative_to(self.tree.root):
                yield self._outside(place, named.text)
        elif path.is_dir():
            try:
                files = named.within(path)
            except InvalidInput as error:
                yield Problem(place, f"{error.problems[0].place} {error.problems[0].rule}", named.text)
                return
            for file in files:
                yield from self._packaged(file, place)
        else:
            yield from self._packaged(path, place)

    def _packaged(self, path: Path, place: str) -> Iterator[Problem]:
        """Check that an absolute path is a packaged file."""
        if self.tree.take(path):
            return
        if not path.is_relative_to(self.tree.root):
            yield self._outside(place, str(path))
        elif not path.exists():
            yield Problem(place, "there is no such file or folder", str(path))
        else:
            name = path.relative_to(self.tree.root).as_posix()
            why = self.tree.credentials.get(name, ".gitignore, .rayignore")
            rule = f"is left out of the package ({why}): let it in (--include), or {SHARED}"
            yield Problem(place, rule, str(path))

    def _outside(self, place: str, text: str) -> Problem:
        return Problem(place, f"is outside the packaged folder {self.tree.root}: move it there, or {SHARED}", text)

    def _task(self, named: NamedPath) -> Iterator[Problem]:
        """Check the files that a task file names; what its variables are is known on the cluster only."""
        path = Path(os.path.abspath(named.folder / named.text))
        if not path.is_file():
            return
        try:
            for inner in task_paths(path, named.place, self.tree.root, {}, set()):
                yield from self._input(inner)
        except InvalidInput as error:
            yield from (
                Problem(self.sweep.place(problem.place), problem.rule, problem.value) for problem in error.problems
            )

    def _storage(self, text: str) -> Iterator[Problem]:
        """Check where results go. A default in ``${NAME:-default}`` counts, for the cluster may not set NAME."""
        try:
            default = expand_variables(text, {})
        except KeyError:
            default = "/" if text.startswith(VARIABLE) else text
        if not default.startswith(("/", "~", "s3://")):
            rule = "must be a folder of the cluster that all its nodes see, such as ${RUNS:-/shared/runs}/my-study"
            rule += "; what is written into the package is lost with the job"
            yield Problem(self.sweep.place("storage.root"), rule, redact(text))

    def _tracker(self, text: str) -> Iterator[Problem]:
        place = self.sweep.place("tracking.mlflow")
        if redact(text) != text:
            yield Problem(
                place, "holds a secret, which would travel with the package: write it as ${NAME}", redact(text)
            )
        elif text.startswith(SQLITE) and not text.removeprefix(SQLITE).startswith((VARIABLE, "/")):
            rule = (
                "is a file in the package, which is lost with the job: leave it empty for one beside the results, or "
            )
            yield Problem(place, rule + "name a path of the cluster: sqlite:////its/path/mlflow.db", text)
