"""Paths as users write them: with ``${NAME}``, from home, relative, or as a URL of a file of this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

Paths = str | Path | Iterable[str | Path]
"""Files; one stands for a list of it."""


def listed(paths: Paths) -> list[Path]:
    """Return paths as a list, also one alone: the characters of a text are no paths."""
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]


def expand_variables(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Replace ``${NAME}`` and ``${NAME:-default}`` by the environment's values.

    Raises:
        KeyError: with the name of a variable that is not set and has no default.
    """

    def value(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        replacement = environment.get(name) or default
        if replacement is None:
            raise KeyError(name)
        return replacement

    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", value, text)


def local_candidates(
    text: str, folder: Path, working: Path | None = None, environment: Mapping[str, str] = os.environ
) -> list[tuple[Path, str]]:
    """Return where the readers of a task file's data may look for what it names: (start, path or pattern), in order.

    That is beside the task file, then in the working folder; there alone for the path within a URL of ``fsspec``:
    ``file:///a/q.jsonl``, or what a chain ends in, such as ``zip://q.jsonl::a.zip``. What is no path has none.

    Args:
        text: a value of a task file, perhaps no path at all.
        folder: the task file's.
        working: the working folder; this process's if not given.
        environment: gives the values of ``${NAME}``.
    """
    if not text or "\n" in text or "\0" in text or len(text) > 1024:
        return []
    try:
        expanded = expand_variables(text, environment)
        bare = re.sub(r"^(file|local):(//)?", "", expanded.rpartition("::")[2])
        named = str(Path(bare).expanduser())
    except (KeyError, RuntimeError):  # a variable or a home that is not known here
        return []
    working = working or Path.cwd()
    starts = [folder, working] if bare == expanded else [working]
    return [(start, named) for start in dict.fromkeys(starts)]
