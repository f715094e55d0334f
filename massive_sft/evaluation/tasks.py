"""Benchmarks through lm-eval: which there are, what one is made of, loading it.

Only this module, ``task_index``, ``task_keys``, ``task_identity``, ``build``, ``fewshot``, ``sample_values``,
``aggregate``, ``metrics``, ``opencompass``, ``templates`` and ``code_eval`` know lm-eval.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import glob
import os
import random
import re
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lm_eval.api.task
import numpy as np
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from massive_sft.core.errors import Problem
from massive_sft.core.files import name_beside
from massive_sft.core.fingerprint import hash_file
from massive_sft.data.hub_data import at_commits
from massive_sft.evaluation import local_files, metrics
from massive_sft.evaluation.code_eval import in_place_of_the_hub_s, require_walls
from massive_sft.evaluation.opencompass import runs_programs, runs_without_walls
from massive_sft.evaluation.task_errors import TaskUnavailable, as_task_unavailable, did_you_mean, quieten_libraries
from massive_sft.evaluation.task_index import shipped_tasks
from massive_sft.evaluation.task_keys import CLOSEST, keys_problem
from massive_sft.evaluation.templates import compile_once
from massive_sft.models.hub import not_asking_in_vain
from massive_sft.planning.lock import DataCommits
from massive_sft.sandbox.run import Choice
from massive_sft.suites.declared import title, unread
from massive_sft.sweep import schema
from massive_sft.sweep.paths import expand_variables

_HUB_FILE = re.compile(r"hf://datasets/([^@\s]+)@([0-9a-f]{40})/")
local_files.track_changes()


@dataclasses.dataclass(frozen=True)
class TaskDefaults:
    """How a task comes: its number of shots (``None``: free), few-shot sampler and split. Building changes them."""

    shots: int | None
    sampler: Any
    split: str | None


READERS = ("json", "csv", "parquet", "text", "arrow")  # of local files, as a task's ``dataset_path``


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedTasks:
    """A benchmark's leaf tasks and groups by name, how each leaf came, and the commits of the hub's data sets."""

    tasks: dict[str, Task]
    groups: dict[str, Group]
    defaults: dict[str, TaskDefaults]
    commits: dict[str, str]

    def is_at(self, commits: DataCommits) -> bool:
        """Return whether none of its data is of another commit."""
        known = dict(commits)
        return all(known.get(name, commit) == commit for name, commit in self.commits.items())


@functools.cache
def _known() -> TaskManager:
    quieten_libraries()
    manager = TaskManager(include_defaults=False)
    manager.task_index.update(shipped_tasks())
    return manager


def known_tasks() -> list[str]:
    """Return the names of all tasks, groups and tags that lm-eval ships."""
    return sorted(_known().task_index)


def problems(tasks: Iterable[schema.Task], place: str = "evaluation.tasks") -> list[Problem]:
    """Return what is wrong with declared benchmarks: unknown names, task files that are missing or do not parse.

    Reads no data.
    """
    found = []
    for number, task in enumerate(tasks):
        where = f"{place}[{number}]"
        if task.path is not None:
            reason = _file_problem(Path(task.path))
            if reason:
                found.append(Problem(f"{where}.path", reason, task.path))
        elif task.name not in _known().task_index:
            near = difflib.get_close_matches(str(task.name), known_tasks(), n=CLOSEST, cutoff=0.5)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
            rule = "must be a task or group that lm-eval knows"
            found.append(Problem(f"{where}.name", rule, task.name, hint=hint))
        elif reason := keys_problem(_known().task_index[str(task.name)].cfg or {}):
            found.append(Problem(f"{where}.name", reason, task.name))
    return found


def _file_problem(path: Path) -> str | None:
    if not path.is_file():
        return f"there is no such file{name_beside(path)}"
    try:
        with as_task_unavailable("must be a YAML task file"):
            config = dict(load_yaml(path, resolve_func=False))
    except TaskUnavailable as error:
        return next(unread(path), str(error))  # with the line, where that is known
    if not isinstance(config.get("task"), str) and not isinstance(config.get("group"), str):
        return "must hold a task or a group"
    return next(unread(path), None) or keys_problem(config)


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Give the task's code lm-eval's default seeds, and put the process's generators back afterwards."""
    python, array = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(1234)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


_Source = tuple[schema.Task, Choice | None, str]
_loaded: deque[tuple[_Source, DataCommits, LoadedTasks]] = deque(maxlen=64)


def load(task: schema.Task, sandbox: Choice | None = None, commits: DataCommits = frozenset()) -> LoadedTasks:
    """Load a benchmark with its data, once per process, content of its task file and commits of its data.

    Args:
        sandbox: what generated code must be walled in by at least; None where none may run.
        commits: of the hub's data sets, where they stay at one.

    Raises:
        TaskUnavailable: it executes generated code and that is not allowed, or cannot be walled in; its data or code
            cannot be had, or it needs images or sound.
    """
    source = task.model_copy(update={"shots": None, "limit": None}), sandbox, content_of(task)
    for known, asked, loaded in tuple(_loaded):
        if known == source and (asked == commits or loaded.is_at(commits)):
            return loaded
    loaded = _load(source[0], sandbox, commits)
    _loaded.append((source, commits, loaded))
    return loaded


def content_of(task: schema.Task) -> str:
    """Return the hash of a benchmark's task file, empty for one that lm-eval ships. Raises TaskUnavailable."""
    try:
        return hash_file(Path(task.path)) if task.path is not None else ""
    except OSError as error:
        raise TaskUnavailable(f"{task.path} cannot be read: {error.strerror}") from error


def _load(task: schema.Task, sandbox: Choice | None, commits: DataCommits) -> LoadedTasks:
    compile_once()
    name = title(task)
    with as_task_unavailable(f"{name} cannot be loaded"):
        if _executes_code(task):
            require_walls(name, sandbox)
        asking = not_asking_in_vain() if _may_ask_hub(task) else contextlib.nullcontext()
        with seeded(), in_place_of_the_hub_s(), at_commits(commits), asking:
            loaded = _load_file(Path(task.path)) if task.path is not None else _known().load([task.name])
    leaves = loaded["tasks"]
    for leaf, built in leaves.items():
        if getattr(built, "MULTIMODAL", False):
            raise TaskUnavailable(f"{leaf} needs images or sound")
        if runs_programs(built):
            require_walls(leaf, sandbox, by_itself=runs_without_walls(built))
        if wrong := list(metrics.reasons(built)):
            raise TaskUnavailable(f"{f'{task.path}: ' if task.path else ''}{leaf}: {'; '.join(wrong)}")
    defaults = {leaf: _defaults(built) for leaf, built in leaves.items()}
    return LoadedTasks(leaves, loaded.get("groups", {}), defaults, _data_commits(leaves.values()))


def _data_commits(tasks: Iterable[Task]) -> dict[str, str]:
    """Return the commits of the hub's data sets that tasks were loaded from, where the data itself says so."""
    loaded = (getattr(task, "dataset", None) for task in tasks)
    splits = (split for splits in loaded if isinstance(splits, dict) for split in splits.values())
    files = (file for split in splits for file in split.info.download_checksums or ())
    found = (_HUB_FILE.match(str(file)) for file in files)
    return {match[1]: match[2] for match in found if match}


def _may_ask_hub(task: schema.Task) -> bool:
    return task.path is None or load_yaml(Path(task.path), resolve_func=False).get("dataset_path") not in READERS


def _defaults(task: Task) -> TaskDefaults:
    fewshot = getattr(task, "fewshot_cfg", None)
    return TaskDefaults(task.get_config("num_fewshot"), getattr(task, "sampler", None), getattr(fewshot, "split", None))


def _load_file(path: Path) -> Any:
    """Load a task file, or a group file with its siblings.

    A task's data files may be relative to the task file, and ``${NAME}`` in what names its data is expanded, as in
    sweep files; those of a group's members are relative to the working folder and taken as they stand, as lm-eval reads
    them.
    """
    quieten_libraries()
    config = load_yaml(path, resolve_func=True)
    if "group" in config:
        manager = TaskManager(include_path=path.parent, include_defaults=False)
        if any(name not in manager.task_index for name in config.get("task") or [] if isinstance(name, str)):
            manager.task_index.update(_known().task_index | manager.task_index)  # of two of a name the sibling counts
        return manager.load([config["group"]])
    kwargs = _expanded(config.get("dataset_kwargs") or {}, path)
    config |= {"dataset_kwargs": kwargs} if kwargs else {}
    if isinstance(config.get("dataset_path"), str):
        config["dataset_path"] = _expanded(config["dataset_path"], path)
    if "data_files" not in kwargs:
        return _built(config, path)
    files = _beside(path.parent, kwargs["data_files"])
    config["dataset_kwargs"] = {**kwargs, "data_files": files}
    listed = list(dict.fromkeys(_listed(files)))
    with as_task_unavailable(f"{path.stem} cannot be loaded from {', '.join(listed)}"):
        empty = [file for file in listed if Path(file).is_file() and not Path(file).read_bytes().strip()]
        if empty:
            raise TaskUnavailable(f"{path.stem} cannot be loaded: {', '.join(empty)} is empty")
        absent = [file for file in listed if ":" not in file and not glob.glob(file, recursive=True)]
        if absent and config.get("dataset_path") in READERS:
            places = ", ".join(os.path.normpath(path.parent / file) for file in absent)
            raise TaskUnavailable(f"{path.stem} cannot be loaded: there is no file {places}")
        _require_splits(config, files, path)
        return _built(config, path)


def _built(config: dict[str, Any], path: Path) -> Any:
    try:
        return TaskManager(include_defaults=False).load([config])
    except ValueError as error:  # ast.literal_eval's, of what lm-eval takes a name for that is no column's
        choices = config.get("doc_to_choice")
        if not isinstance(choices, str) or "malformed node or string" not in str(error):
            raise
        rule = "is neither a column of its data nor a template that gives a list"
        raise TaskUnavailable(f"{path.stem} cannot be loaded: doc_to_choice {rule}, got {choices!r}") from error
    except IndexError as error:  # as it is loaded, the first question's right choice is looked up
        raised, target = traceback.extract_tb(error.__traceback__)[-1], config.get("doc_to_target")
        if raised.filename != lm_eval.api.task.__file__ or raised.name != "__init__":
            raise
        rule = "gives the first question a number that none of its choices has; they count from 0"
        raise TaskUnavailable(f"{path.stem} cannot be loaded: doc_to_target {rule}, got {target!r}") from error


def _require_splits(config: Mapping[str, Any], files: Any, path: Path) -> None:
    """Raise TaskUnavailable where a task names a split for which its data files have no key."""
    for key in (name for name in config if name.endswith("_split")):
        if isinstance(files, dict) and config[key] is not None and config[key] not in files:
            got = f"{config[key]!r}{did_you_mean(config[key], files)}; valid: {', '.join(files)}"
            raise TaskUnavailable(f"{path.stem} cannot be loaded: {key} is no key of its data_files, got {got}")


def _expanded(value: Any, path: Path) -> Any:
    """Return a value with ``${NAME}`` replaced in its texts. Raises TaskUnavailable where a variable is not set."""
    if isinstance(value, dict):
        return {key: _expanded(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, path) for item in value]
    try:
        return expand_variables(value) if isinstance(value, str) else value
    except KeyError as error:
        reason = f"{path} needs the environment variable {error.args[0]}, which is not set"
        raise TaskUnavailable(f"{path.stem} cannot be loaded: {reason}") from None


def _beside(folder: Path, data_files: Any) -> Any:
    if isinstance(data_files, dict):
        return {split: _beside(folder, entry) for split, entry in data_files.items()}
    if isinstance(data_files, list):
        return [_beside(folder, entry) for entry in data_files]
    located = folder / data_files
    return str(located) if located.exists() or glob.glob(data_files, root_dir=folder, recursive=True) else data_files


def _listed(data_files: Any) -> Iterator[str]:
    if isinstance(data_files, (dict, list)):
        for entry in data_files.values() if isinstance(data_files, dict) else data_files:
            yield from _listed(entry)
    else:
        yield str(data_files)


def _executes_code(task: schema.Task) -> bool:
    """Whether a benchmark runs what the model writes. Requirement before loading: loading such a task runs a probe."""
    if task.path is not None:
        return _marked_unsafe(load_yaml(Path(task.path), resolve_func=False))
    return any(_marked_unsafe(config) for config in _configs(str(task.name)))


def _marked_unsafe(config: dict[str, Any]) -> bool:
    metrics = config.get("metric_list") or []
    return bool(config.get("unsafe_code")) or any("code_eval" in str(metric.get("metric")) for metric in metrics)


def _configs(name: str) -> Iterator[dict[str, Any]]:
    """Yield the unresolved configurations below a task, group or tag."""
    entry = _known().task_index.get(name)
    if entry is None:
        return
    if entry.tags and entry.cfg is None:
        for tagged in sorted(entry.tags):
            yield from _configs(tagged)
        return
    yield from _below(entry.cfg or {})


def _below(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield config
    members = config.get("task")
    for member in members if isinstance(members, list) else []:
        if isinstance(member, dict):
            yield member
        named = member if isinstance(member, str) else member.get("group") or member.get("task")
        if isinstance(named, str):
            yield from _configs(named)
        elif isinstance(named, list):
            yield from _below({"task": named})
