"""The paths that a sweep and its task files name: what a package must hold, or the nodes of a cluster must have."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.sweep import weight_files
from massive_sft.sweep.content import CODE, TOKENIZER
from massive_sft.sweep.load import Sweep
from massive_sft.sweep.paths import local_candidates
from massive_sft.sweep.task_content import DATA
from massive_sft.sweep.yaml_file import YAMLError, read_tagged

CONFIGURATION = ("config.json", "generation_config.json")  # of a model, beside its weights
VARIABLE = "${"
NAMES_FILES = frozenset({*DATA, "include"})  # keys of a task file


@dataclass(frozen=True)
class NamedPath:
    """A path that a sweep or a task file reads.

    Attributes:
        place: where it is named, within the sweep file.
        text: the path, as it is written where it is not known here what it means.
        folder: where a relative one begins.
        within: returns the files of it that are read when it is a folder; raises InvalidInput where it may be none.
        is_certain: whether it is a path wherever it is read, or a text that happens to be one here.
    """

    place: str
    text: str
    folder: Path
    within: Callable[[Path], list[Path]]
    is_certain: bool = True

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is a path of the machines that a job runs on, rather than of its package."""
        return self.text.startswith((VARIABLE, "~")) or os.path.isabs(self.text)


def sweep_paths(sweep: Sweep) -> Iterator[NamedPath]:
    """Yield what a sweep file reads: models, tokenizers, datasets, task files."""
    file, folder = sweep.file, sweep.folder
    for name, model in file.models.items():
        read = (*TOKENIZER, *(CODE if model.trust_remote_code else ()))
        if model.path is not None:
            within = partial(_read_files, (*CONFIGURATION, *read), weight_files.find_with_index)
            yield NamedPath(f"models.{name}.path", model.path, folder, within)
        if model.tokenizer is not None:
            yield NamedPath(f"models.{name}.tokenizer", model.tokenizer, folder, partial(_read_files, read, None))
    for name, dataset in file.datasets.items():
        for below in dataset.files or ("",) if dataset.path is not None else ():
            yield NamedPath(f"datasets.{name}.path", str(Path(str(dataset.path)) / below), folder, _no_folder)
    for index, task in enumerate(file.evaluation.tasks):
        if task.path is not None:
            yield NamedPath(f"evaluation.tasks[{index}].path", task.path, folder, _no_folder)


def task_paths(
    task: Path, place: str, working: Path, environment: Mapping[str, str], seen: set[Path]
) -> Iterator[NamedPath]:
    """Yield the files and folders that a task file names, and so do the task files that it names.

    A relative path or pattern is yielded where something is found; else it may be none, but the name of a format.

    Args:
        place: where the task file is named.
        working: the folder that the job runs in, where data is looked for that is not beside its task file.
        environment: gives the values of ``${NAME}``; a path with one that is not set is yielded as it is written.
        seen: the task files that were read; this one is added.

    Raises:
        InvalidInput: it cannot be read.
    """
    seen.add(task)
    inside = f"{place}: {task.name}"
    try:
        texts = list(_texts(read_tagged(task), False))
    except (OSError, YAMLError, ValueError) as error:
        rule = f"cannot be read as YAML ({str(error).splitlines()[0]})"
        raise InvalidInput(Problem(inside, rule, str(task))) from None
    for text, is_certain in texts:
        for start, name in _find(text, is_certain, task.parent, working, environment):
            yield NamedPath(inside, name, start, _all_files, is_certain)
            named = Path(os.path.abspath(start / name))
            if named.suffix in (".yaml", ".yml") and named not in seen and named.is_file():
                yield from task_paths(named, inside, working, environment, seen)


def _find(
    text: str, is_certain: bool, folder: Path, working: Path, environment: Mapping[str, str]
) -> list[tuple[Path, str]]:
    """Return what a text of a task file names, each with the folder where it begins."""
    if text.startswith("!function "):
        module = text.split()[1].rpartition(".")[0].replace(".", "/") + ".py"
        return [(folder, module)] if (folder / module).is_file() else []
    candidates = local_candidates(text, folder, working, environment)
    for start, name in candidates if is_certain else candidates[:1]:
        if os.path.isfile(start / name) or (is_certain and os.path.isdir(start / name)):  # which take any length
            return [(start, name)]
        matches = sorted(glob.iglob(name, root_dir=start, recursive=True)) if is_certain else []
        if matches:
            return [(start, match) for match in matches if os.path.isfile(start / match)]
    if not is_certain:
        return []
    if not candidates:
        return [(folder, text)] if VARIABLE in text else []
    return [candidates[0]] if os.path.isabs(candidates[0][1]) else []


def _texts(value: Any, is_certain: bool) -> Iterator[tuple[str, bool]]:
    """Yield every text in a parsed task file that may be a path, and whether its key says that it is one."""
    if isinstance(value, str) and value and "\n" not in value and len(value) <= 1024:
        yield value, is_certain
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, is_certain or key in NAMES_FILES)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, is_certain)


def _read_files(patterns: tuple[str, ...], weights: Callable[[Path], list[Path]] | None, folder: Path) -> list[Path]:
    files = dict.fromkeys(weights(folder) if weights else ())
    files |= {file: None for pattern in patterns for file in sorted(folder.glob(pattern)) if file.is_file()}
    if not files:
        raise InvalidInput(Problem(str(folder), f"has no file that matches {', '.join(patterns)}"))
    return list(files)


def _no_folder(folder: Path) -> list[Path]:
    raise InvalidInput(Problem(str(folder), "is a folder: name its files"))


def _all_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())
