"""What lm-eval's task files say of the benchmarks that it ships, read off them: importing lm-eval takes seconds.

That is versions, numbers of shots, and whether answers are generated. A benchmark's authors raise ``metadata.version``
when its scores change, so an upgrade of lm-eval that does so asks for these scores anew; a task without a version is
known by its text. Which file declares a name is found by looking through all 14,000 (a second), once: it is remembered
in the user's cache folder with the sizes and times of the files, and looked for again when one of them changed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from massive_sft.core.files import user_cache_file, write_json
from massive_sft.core.fingerprint import digest, hash_file
from massive_sft.sweep.yaml_file import YAMLError, read_tagged

_DECLARED = re.compile(r"^['\"]?(task|group)['\"]?:[ \t]*['\"]?([^\s'\"#\[{]+)", re.M)
_TAGS = re.compile(r"^['\"]?tag['\"]?:((?:[^\n]*\n)(?:[ \t]*-[^\n]*\n?)*)", re.M)
_INCLUDE = re.compile(r"^['\"]?include['\"]?:[ \t]*['\"]?([^\s'\"#]+)", re.M)
_VERSION = re.compile(
    r"^['\"]?metadata['\"]?:(?:[ \t]*\{[^}]*?\bversion['\"]?:[ \t]*([^\s,}]+)"  # on one line
    r"|[^\n]*\n(?:[ \t]+[^\n]*\n)*?[ \t]+['\"]?version['\"]?:[ \t]*([^\s#]+))",  # or below
    re.M,
)
_SHOTS = re.compile(r"^['\"]?num_fewshot['\"]?:[ \t]*(\d+)", re.M)
_OUTPUT = re.compile(r"^['\"]?output_type['\"]?:[ \t]*['\"]?(\w+)", re.M)
GENERATES = "generate_until"  # lm-eval's default too
_CLASS = re.compile(r"^['\"]?class['\"]?:[ \t]*!function[ \t]+(\S+)\.\w+", re.M)

Versions = dict[str, str]


@dataclass(frozen=True)
class TaskFacts:
    """What task files say of a benchmark.

    Attributes:
        versions: of it and of what it is made of, by name.
        shots: the numbers of few-shot examples that its tasks name, each once; a task that names none has 0. Empty
            where a file does not tell: it is a class, or not found.
        generates: whether any of its tasks has generated answers, or may have.
    """

    versions: Versions = field(default_factory=dict)
    shots: tuple[int, ...] = ()
    generates: bool = True


def task_facts(names: Iterable[str], memory: Path | None = None) -> dict[str, TaskFacts]:
    """Return what is said of each name of a task, group or tag.

    Of a name that lm-eval does not know nothing is, and of none where lm-eval is not installed.

    Args:
        memory: a file; the user's cache folder when None.
    """
    wanted = list(dict.fromkeys(names))
    spec = importlib.util.find_spec("lm_eval") if wanted else None
    if spec is None or spec.origin is None:
        return {name: TaskFacts() for name in wanted}
    folder = Path(spec.origin).parent / "tasks"
    memory = memory or user_cache_file("task-versions.json")
    # What an entry means, this module's text says: those of another are none.
    key = f"{metadata.version('lm_eval')} {folder} {hash_file(Path(__file__))}"
    known = _remembered(memory, key)
    entries, tasks = {}, None
    for name in wanted:
        entry = known.get(name)
        if entry is None or not _is_unchanged(folder, entry["files"]):
            tasks = tasks or TaskFiles(folder)
            entry = {**asdict(tasks.facts(name)), "files": tasks.take_read()}
        entries[name] = entry
    if tasks is not None and memory is not None:
        with contextlib.suppress(OSError):
            write_json(memory, {key: known | entries})
    return {
        name: TaskFacts(dict(entry["versions"]), tuple(entry["shots"]), entry["generates"])
        for name, entry in entries.items()
    }


@dataclass(frozen=True)
class Node:
    """A task (``shots`` None: not told) or, with neither shots nor an output, a group."""

    name: str
    version: str | None
    is_task: bool = False
    shots: int | None = None
    generates: bool = True


def facts_of(nodes: Iterable[Node]) -> TaskFacts:
    """Return the facts of a benchmark made of these nodes: versions of all, shots of the tasks."""
    listed = list(nodes)
    tasks = [node for node in listed if node.is_task]
    shots = [node.shots for node in tasks if node.shots is not None]
    return TaskFacts(
        {node.name: node.version for node in listed if node.version is not None},
        tuple(sorted(set(shots))) if len(shots) == len(tasks) else (),
        any(node.generates for node in tasks) or not tasks,
    )


class TaskFiles:
    """lm-eval's task files by the names that they declare; the first in order of paths counts, as with lm-eval."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._texts: dict[str, str] = {}
        self._read: set[str] = set()

    def facts(self, name: str) -> TaskFacts:
        return facts_of(self.below(name, set()))

    def take_read(self) -> dict[str, list[int]]:
        """Return size and time of the files that the versions were read off since this was asked last."""
        files, self._read = self._read, set()
        return {str(file): _state(Path(file)) for file in files or {str(self._folder)}}

    @cached_property
    def _declared(self) -> dict[str, str]:
        """Files by the task or group that they declare."""
        files = [f"{top}/{name}" for top, _, names in os.walk(self._folder) for name in names if name.endswith(".yaml")]
        declared: dict[str, str] = {}
        for file in sorted(files):
            if name := _name(self._text(file)):
                declared.setdefault(name, file)
        return declared

    @cached_property
    def _tagged(self) -> dict[str, list[str]]:
        """Files by tag, their own or of what they include."""
        tagged: dict[str, list[str]] = {}
        for file in self._declared.values():
            for tag in self._first(file, _tags) or ():
                tagged.setdefault(tag, []).append(file)
        return tagged

    def below(self, name: str, above: set[str], shots: int | None = None) -> Iterator[Node]:
        """Yield what a name stands for; ``shots``: as the group above has it."""
        if name in above:
            return
        if name in self._declared:
            yield from self._of_file(self._declared[name], name, above | {name}, shots)
        elif name in self._tagged:
            for file in self._tagged[name]:
                yield from self._of_file(file, str(_name(self._text(file))), above | {name}, shots)
        else:
            yield Node(name, None, is_task=True)

    def _of_file(self, file: str, name: str, above: set[str], shots: int | None) -> Iterator[Node]:
        module = self._first(file, lambda text: _module(text, Path(file).parent))
        version = self._first(file, _version) or (hash_file(module)[:16] if module else None)
        version = version or digest("".join(map(self._text, self._chain(file))))
        self._read |= {*self._chain(file), *([str(module)] if module else [])}
        if dict(_DECLARED.findall(self._text(file))).get("group"):
            yield Node(name, version)
            for member, own in self._members(file, shots):
                yield from self.below(member, above, own)
            return
        named = self._first(file, lambda text: _matched(_SHOTS, text))
        known = None if named is None and self._first(file, _CLASS.search) else int(named or 0)
        output = self._first(file, lambda text: _matched(_OUTPUT, text)) or GENERATES
        yield Node(name, version, True, known if shots is None else shots, output == GENERATES)

    def _members(self, file: str, shots: int | None) -> Iterator[tuple[str, int | None]]:
        try:
            content = read_tagged(Path(file))
        except (OSError, YAMLError, ValueError):
            return
        yield from members_of(content if isinstance(content, dict) else {}, shots)

    def _chain(self, file: str) -> Iterator[str]:
        """Yield a file and those it includes, the nearest first."""
        seen: set[str] = set()
        while file not in seen and (text := self._text(file)):
            seen.add(file)
            yield file
            included = _INCLUDE.search(text) if "include" in text else None
            if included is None:
                return
            file = os.path.normpath(f"{os.path.dirname(file)}/{included[1]}")

    def _first(self, file: str, of: Any) -> Any:
        return next((value for link in self._chain(file) if (value := of(self._text(link)))), None)

    def _text(self, file: str) -> str:
        if file not in self._texts:
            try:
                with open(file, "rb") as source:
                    self._texts[file] = source.read().decode(errors="replace")
            except OSError:
                self._texts[file] = ""
        return self._texts[file]


def _name(text: str) -> str | None:
    names = dict(_DECLARED.findall(text))
    return names.get("group") or names.get("task")


def _tags(text: str) -> list[str]:
    match = _TAGS.search(text) if "tag" in text else None
    return re.findall(r"[^\s,'\"\[\]-][^\s,'\"\[\]]*", re.sub(r"#.*", "", match[1])) if match else []


def _version(text: str) -> str | None:
    match = _VERSION.search(text)
    return (match[1] or match[2]).strip("'\"") if match else None


def _module(text: str, folder: Path) -> Path | None:
    """Return the module of a task that is a class of its own: its version may be a line of code."""
    match = _CLASS.search(text)
    module = folder / f"{match[1].replace('.', '/')}.py" if match else None
    return module if module and module.is_file() else None


def _matched(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    return match[1] if match else None


def members_of(group: Mapping[str, Any], shots: int | None = None) -> Iterator[tuple[str, int | None]]:
    """Yield the tasks, groups and tags that a group names, however deep, with the number of shots that it gives them.

    As lm-eval has it (0.4.13): of groups within groups the outermost with a number counts; a task's entry has its own.

    Args:
        shots: as a group above has it.
    """
    number = group.get("num_fewshot")
    shots = number if shots is None and isinstance(number, int) else shots
    listed = group.get("task")
    for member in listed if isinstance(listed, list) else [listed]:
        if isinstance(member, str):
            yield member, shots
        elif isinstance(member, dict) and isinstance(member.get("task"), str):
            own = member.get("num_fewshot")
            yield member["task"], own if isinstance(own, int) else shots
        elif isinstance(member, dict) and "task" in member:
            yield from members_of(member, shots)
        elif isinstance(member, dict) and isinstance(member.get("group"), str):
            yield from members_of({**member, "task": member["group"]}, shots)


def _state(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _is_unchanged(folder: Path, files: Any) -> bool:
    try:
        return all(_state(folder / name) == state for name, state in files.items())
    except (OSError, AttributeError, TypeError):
        return False


def _remembered(memory: Path | None, key: str) -> dict[str, Any]:
    """Return what is remembered of one installation; nothing where it cannot be read."""
    try:
        read = json.loads(memory.read_bytes())[key] if memory else {}
        return {name: entry for name, entry in read.items() if _is_sound(entry)}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return {}


def _is_sound(entry: Any) -> bool:
    """Return whether an entry has the shape of one: somebody may have written or cut the file."""
    return (
        isinstance(entry, dict)
        and entry.keys() == {"versions", "shots", "generates", "files"}
        and isinstance(entry["versions"], dict)
        and isinstance(entry["shots"], list)
        and all(isinstance(number, int) for number in entry["shots"])
        and isinstance(entry["generates"], bool)
        and isinstance(entry["files"], dict)
    )
