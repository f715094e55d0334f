"""What the files of a declared benchmark say of it, read without lm-eval."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from massive_sft.suites.task_files import GENERATES, Node, TaskFacts, TaskFiles, facts_of, members_of, task_facts
from massive_sft.sweep.schema import Task
from massive_sft.sweep.yaml_file import YAMLError, read_tagged, yaml_problem


def facts_by_task(tasks: Iterable[Task]) -> dict[Task, TaskFacts]:
    """Return what the task files of benchmarks say of each."""
    declared = list(dict.fromkeys(tasks))
    named = task_facts(task.name for task in declared if task.name is not None)
    return {task: named[str(task.name)] if task.path is None else _file_facts(Path(task.path)) for task in declared}


def shots_of(task: Task, facts: TaskFacts) -> tuple[int | None, ...]:
    """Return the numbers of shots that a benchmark is asked for: declared, or its task file's own.

    None stands for each task's own where they differ (a group's), or where only lm-eval can tell.
    """
    if task.shots is not None:
        return task.shots
    return facts.shots if len(facts.shots) == 1 else (None,)


def title(task: Task) -> str:
    """Return a benchmark's name for people: lm-eval's, or its file's."""
    return task.name or Path(str(task.path)).stem


def own_name(task: Task) -> str:
    """Return what a benchmark's own file calls its task or group, which scores are listed under; else its title."""
    content = {} if task.path is None else _content(Path(task.path), frozenset())
    name = content.get("task") or content.get("group")
    return name if isinstance(name, str) else title(task)


def label(task: Task, shots: int | None) -> str:
    """Return a benchmark's name for people at a number of shots, e.g. ``mmlu-5shot``; ``ownshot`` for each its own."""
    return f"{title(task)}-{'own' if shots is None else shots}shot"


def standing_for(name: str, groups: Iterable[str], tasks: Iterable[str]) -> frozenset[tuple[str, str]]:
    """Return the (kind, name) pairs whose scores stand for a benchmark: its own group, else all groups, else tasks.

    Args:
        name: of ``title``.
        groups, tasks: that have scores.
    """
    listed = tuple(groups)
    if name in listed:
        return frozenset({("group", name)})
    return frozenset(("group", group) for group in listed) or frozenset(("task", task) for task in tasks)


def number_of_shots(named: Any) -> int | None:
    """Return the number that a task file's ``num_fewshot`` is, 0 where it is empty; None of what is no whole number."""
    if named is None:
        return 0
    return int(named) if isinstance(named, int) or (isinstance(named, float) and named.is_integer()) else None


def unread(path: Path, above: frozenset[Path] = frozenset()) -> Iterator[str]:
    """Yield why a benchmark's file, what it includes and a group's members cannot be read, though lm-eval may do so.

    Ids and numbers of shots are made of these files by YAML's rules, which lm-eval's reader keeps less strictly.
    """
    try:
        read = read_tagged(path)
    except (YAMLError, ValueError) as error:
        yield str(yaml_problem(path, error))
        return
    if not isinstance(read, dict) or path in above:
        return
    beside = [Path(os.path.normpath(path.parent / str(name))) for name in _included(read)]
    if "group" in read:
        files = TaskFiles(path.parent)
        facts_of(node for member, shots in members_of(read) for node in files.below(member, set(), shots))
        beside += [Path(file) for file in files.take_read() if not file.endswith(".py")]
    for file in beside:
        if file.is_file():
            yield from unread(file, above | {path})


def _file_facts(path: Path) -> TaskFacts:
    try:
        return facts_of(_of_file(path))
    except RecursionError:  # a group that is its own member
        return TaskFacts()


def _of_file(path: Path) -> Iterator[Node]:
    content = _content(path, frozenset())
    name = path.stem
    if "group" in content:
        files = TaskFiles(path.parent)
        for member, shots in members_of(content):
            yield from files.below(member, set(), shots)
        return
    shots = content.get("num_fewshot")
    is_known = isinstance(shots, int) or "class" not in content  # whose code may say so
    output = content.get("output_type") or GENERATES
    yield Node(name, None, True, number_of_shots(shots) if is_known else None, output == GENERATES)


def _content(path: Path, above: frozenset[Path]) -> dict[str, Any]:
    """Return a task file's content over that of what it includes; nothing of what cannot be read."""
    try:
        read = read_tagged(path)
    except (OSError, YAMLError, ValueError):
        return {}
    if not isinstance(read, dict) or path in above:
        return {}
    below: dict[str, Any] = {}
    for name in _included(read):
        below |= _content(Path(os.path.normpath(path.parent / str(name))), above | {path})
    return below | read


def _included(read: dict[str, Any]) -> list[Any]:
    included = read.get("include") or []
    return included if isinstance(included, list) else [included]
