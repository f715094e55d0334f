"""Whether a sweep means the same on a cluster: what it names is packaged, or declared to be there as ``${NAME}``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.ledger.provenance import redact
from massive_sft.scheduling.package import Tree
from massive_sft.sweep import weight_files
from massive_sft.sweep.content import CODE, TOKENIZER
from massive_sft.sweep.load import Sweep
from massive_sft.sweep.paths import expand_variables, local_candidates
from massive_sft.sweep.yaml_file import YAMLError, read_tagged

CONFIGURATION = ("config.json", "generation_config.json")  # of a model, beside its weights
ON_CLUSTER = "${"  # how a path begins that is expanded on the cluster, where it is used
DECLARE = "write a path of the cluster as ${NAME} or ${NAME:-/its/path}"
SQLITE = "sqlite:///"


def client_only(sweep: Sweep, overlays: Iterable[Path], tree: Tree) -> list[Problem]:
    """Return why a sweep would not find on a cluster what it names, or lose there what it writes.

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
        file = self.sweep.file
        for name, model in file.models.items():
            read = (*TOKENIZER, *(CODE if model.trust_remote_code else ()))
            yield from self._input(
                model.path, f"models.{name}.path", (*CONFIGURATION, *read), weight_files.find_with_index
            )
            yield from self._input(model.tokenizer, f"models.{name}.tokenizer", read)
        for name, dataset in file.datasets.items():
            for below in dataset.files or ("",) if dataset.path is not None else ():
                yield from self._input(str(Path(str(dataset.path)) / below), f"datasets.{name}.path")
        for index, task in enumerate(file.evaluation.tasks):
            yield from self._task(task.path, f"evaluation.tasks[{index}].path")
        yield from self._storage(file.storage.root)
        yield from self._tracker(file.tracking.mlflow)

    def _place(self, where: str) -> str:
        return f"{self.sweep.path}: {where}"

    def _input(
        self,
        text: str | None,
        where: str,
        wanted: tuple[str, ...] = (),
        weights: Callable[[Path], list[Path]] | None = None,
    ) -> Iterator[Problem]:
        """Check a path that is read: a file, or a folder's files that match ``wanted``, and its ``weights``."""
        if text is None or text.startswith(ON_CLUSTER):
            return
        place = self._place(where)
        known, variable, _ = text.partition(ON_CLUSTER)
        path = Path(os.path.abspath(self.sweep.folder / Path(known).expanduser()))
        if Path(known).expanduser().is_absolute():
            inside = path.is_relative_to(self.tree.root)
            relative = os.path.relpath(path, self.sweep.folder)
            remedy = f"the package is unpacked elsewhere there, write {relative}" if inside else DECLARE
            yield Problem(place, f"is a path of this machine: {remedy}", text)
        elif variable:  # its end is known on the cluster only
            if not path.is_relative_to(self.tree.root):
                yield self._outside(place, text)
        elif path.is_dir() and wanted:
            try:
                files = dict.fromkeys(weights(path) if weights else ())
            except InvalidInput as error:
                yield Problem(place, f"{error.problems[0].place} {error.problems[0].rule}", text)
                return
            files |= {file: None for pattern in wanted for file in sorted(path.glob(pattern)) if file.is_file()}
            if not files:
                yield Problem(place, f"has no file that matches {', '.join(wanted)}", text)
            for file in files:
                yield from self._packaged(file, place)
        else:
            yield from self._packaged(path, place)

    def _packaged(self, path: Path, place: str) -> Iterator[Problem]:
        """Check that an absolute path is a packaged file."""
        if self.tree.holds(path):
            return
        if not path.is_relative_to(self.tree.root):
            yield self._outside(place, str(path))
        elif not path.exists():
            yield Problem(place, "there is no such file or folder", str(path))
        elif path.is_dir():
            yield Problem(place, "is a folder: name its files", str(path))
        else:
            yield Problem(
                place, "is left out of the package (.gitignore, .rayignore): let it in, or " + DECLARE, str(path)
            )

    def _outside(self, place: str, text: str) -> Problem:
        return Problem(place, f"is outside the packaged folder {self.tree.root}: move it there, or {DECLARE}", text)

    def _task(self, text: str | None, where: str) -> Iterator[Problem]:
        """Check a benchmark's file and the files that it names."""
        yield from self._input(text, where)
        if text is not None and ON_CLUSTER not in text and not Path(text).expanduser().is_absolute():
            path = Path(os.path.abspath(self.sweep.folder / text))
            if path.is_file():
                yield from self._named_by(path, self._place(where), set())

    def _named_by(self, task: Path, place: str, seen: set[Path]) -> Iterator[Problem]:
        seen.add(task)
        place = f"{place}: {task.name}"
        try:
            texts = list(_texts(read_tagged(task)))
        except (OSError, YAMLError, ValueError) as error:
            yield Problem(place, f"cannot be read as YAML ({str(error).splitlines()[0]})", str(task))
            return
        for text in texts:
            if text.startswith("!function "):
                text = text.split()[1].rpartition(".")[0] + ".py"
            start, name = next(iter(local_candidates(text, task.parent)), (task.parent, ""))
            named = Path(os.path.abspath(start / name))
            if ON_CLUSTER in text or not os.path.isfile(named):  # which takes a name of any length
                continue
            if os.path.isabs(name):
                yield Problem(place, "names a path of this machine: write it relative to the file", text)
                continue
            yield from self._packaged(named, place)
            if named.suffix in (".yaml", ".yml") and named not in seen:
                yield from self._named_by(named, place, seen)

    def _storage(self, text: str) -> Iterator[Problem]:
        """Check where results go. A default in ``${NAME:-default}`` counts, for the cluster may not set NAME."""
        try:
            default = expand_variables(text, {})
        except KeyError:
            default = "/" if text.startswith(ON_CLUSTER) else text
        is_declared = text.startswith(ON_CLUSTER) and default.startswith(("/", "~"))
        if not is_declared or default.startswith(f"{self.tree.root}/"):
            rule = "must be a folder of the cluster that all its nodes see, such as ${RUNS:-/shared/runs}/my-study"
            rule += "; what is written into the package is lost with the job"
            yield Problem(self._place("storage.root"), rule, redact(text))

    def _tracker(self, text: str) -> Iterator[Problem]:
        place = self._place("tracking.mlflow")
        if redact(text) != text:
            yield Problem(
                place, "holds a secret, which would travel with the package: write it as ${NAME}", redact(text)
            )
        elif text.startswith(SQLITE) and not text.removeprefix(SQLITE).startswith(ON_CLUSTER):
            rule = "is a file of this machine: leave it empty for one beside the results, or " + DECLARE
            yield Problem(place, rule, text)


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a parsed YAML file that may be a file's name."""
    if isinstance(value, str) and value and "\n" not in value and len(value) <= 1024:
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
