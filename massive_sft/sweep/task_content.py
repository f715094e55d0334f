"""What a benchmark's task file *is*: its YAML, with the files that it names as their hashes."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from massive_sft.core.fingerprint import FileHashes, digest, fingerprint
from massive_sft.sweep.paths import local_candidates
from massive_sft.sweep.yaml_file import read_tagged

# Keys of a task file that name its data: files, patterns of files, or folders of them.
DATA = ("data_files", "data_dir", "dataset_path")


class TaskContent:
    """Turns task files into content ids.

    Args:
        hashes: of files, each read once.
    """

    def __init__(self, hashes: FileHashes):
        self._hashes = hashes

    def of(self, path: Path, above: frozenset[Path] = frozenset()) -> str:
        """Return the content id of a task file.

        In it are its data and functions, what it includes, and of a group the tasks beside it; so the id moves with
        them, and not with the folder they lie in. A file that does not parse is known by its bytes: ``check`` says what
        is wrong with it. So is one that holds what JSON does not (a date, a key that is a number, an infinity), unless
        it names files.

        Args:
            above: the files that include this one, or whose group it is in.
        """
        try:
            read = read_tagged(path)
            content = self._content(read, path, above)
            try:
                return "task:" + fingerprint(content)
            except (TypeError, ValueError):
                if content not in (read, {**read, "members": {}}):
                    return "task:" + digest(_exact_text(content))
        except (YAMLError, TypeError, ValueError, RecursionError):
            pass
        return f"sha256:{self._hashes.of(path)}"

    def _content(self, read: Any, path: Path, above: frozenset[Path]) -> Any:
        """Return what was read of a task file with the files that it names as their hashes."""
        content = self._with_hashes(read, path.parent)
        if not isinstance(read, dict) or path in above:
            return content
        within = above | {path}
        included = read.get("include") or []
        files = [path.parent / str(name) for name in (included if isinstance(included, list) else [included])]
        if files:
            content["include"] = [self.of(file, within) if file.is_file() else str(file) for file in files]
        if members := _texts_in(read.get("task")) if "group" in read else set():
            siblings = (file for file in sorted(path.parent.rglob("*.yaml")) if file not in within)
            named = {str(file.relative_to(path.parent)): file for file in siblings if _names(file) & members}
            content["members"] = {name: self.of(file, within) for name, file in named.items()}
        return content

    def _with_hashes(self, value: Any, folder: Path) -> Any:
        if isinstance(value, Mapping):
            read = {key: self._with_hashes(item, folder) for key, item in value.items()}
            data = {key: found for key in DATA if (found := self._data(value.get(key), folder))}
            return read | ({"data": data} if data else {})
        if isinstance(value, list):
            return [self._with_hashes(item, folder) for item in value]
        if not isinstance(value, str):
            return value
        if named := re.match(r"!function (\S+)\.\w+", value):
            module = folder / f"{named[1].replace('.', '/')}.py"
            return [value, self._hashes.of(module)] if module.is_file() else value
        place = next((start / name for start, name in local_candidates(value, folder)), None)
        if place is None or not os.path.isfile(place):  # which takes a text of any length
            return value
        within = value.rpartition("::")[0]  # such as the file of an archive
        return f"{within}::sha256:{self._hashes.of(place)}" if within else f"sha256:{self._hashes.of(place)}"

    def _data(self, named: Any, folder: Path) -> list[list[str]]:
        """Return (name, hash) of what values name as data and ``_with_hashes`` does not see: many files, or one in the
        working folder, where lm-eval looks for what is not beside the task file.
        """
        if isinstance(named, (Mapping, list)):
            parts = named.values() if isinstance(named, Mapping) else named
            return [found for part in parts for found in self._data(part, folder)]
        for number, (start, name) in enumerate(local_candidates(named, folder) if isinstance(named, str) else ()):
            place = start / name
            if os.path.isfile(place):
                return [[place.name, self._hashes.of(place)]] if number else []  # the first is hashed where it is named
            is_folder = os.path.isdir(place)
            found = (
                place.rglob("*") if is_folder else map(start.joinpath, glob.iglob(name, root_dir=start, recursive=True))
            )
            if files := sorted(file for file in found if file.is_file()):
                within = {file: file.relative_to(place).as_posix() if is_folder else file.name for file in files}
                return [[name, self._hashes.of(file)] for file, name in within.items()]
        return []


def _exact_text(value: Any) -> str:
    """Return a text that is another for every other value that YAML can hold, and the same in every session."""
    if isinstance(value, Mapping):
        entries = [f"{_exact_text(key)}: {_exact_text(item)}" for key, item in value.items()]
        return f"{{{', '.join(sorted(entries))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_exact_text, value))}]"
    if isinstance(value, (set, frozenset)):
        return f"set({', '.join(sorted(map(_exact_text, value)))})"
    return repr(value)


def _texts_in(value: Any) -> set[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    parts = value if isinstance(value, list) else []
    return {value} if isinstance(value, str) else {text for part in parts for text in _texts_in(part)}


def _names(task_file: Path) -> set[str]:
    """Return what a group may call a task file: its task, group or tags."""
    try:
        read = read_tagged(task_file)
    except (OSError, YAMLError, TypeError, ValueError, RecursionError):
        return set()
    return _texts_in([read.get(key) for key in ("task", "group", "tag")]) if isinstance(read, dict) else set()
