"""Whether a task's own code runs a text as a program, by ``eval`` or ``exec``: found in its bytecode, without a run."""

from __future__ import annotations

import dis
import functools
import inspect
import os
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

_RUN = {"eval", "exec"}


def runs_text(function: Any) -> bool:
    """Return whether a function, or one that it names, calls ``eval`` or ``exec``.

    Followed are functions of its own module and of task modules; what libraries do is not looked at.
    """
    function = _unwrapped(function)
    waiting, seen = [function], set()
    while waiting:
        one = _unwrapped(waiting.pop())
        if one in seen or not isinstance(one, FunctionType) or not _is_followed(one, function):
            continue
        seen.add(one)
        names = set(_global_names(one.__code__))
        if _RUN & (names - one.__globals__.keys()):
            return True
        waiting += [one.__globals__[name] for name in names & one.__globals__.keys()]
        waiting += inspect.getclosurevars(one).nonlocals.values()
    return False


def _unwrapped(value: Any) -> Any:
    """Return what is called in the end; None for what is no function."""
    while isinstance(value, functools.partial):
        value = value.func
    value = getattr(inspect.unwrap(value), "__func__", value) if callable(value) else value
    return value if isinstance(value, FunctionType) else None


def _is_followed(one: FunctionType, root: FunctionType) -> bool:
    """lm-eval names a module that it loads from a file by its path, or as one of its tasks."""
    name = one.__module__ or ""
    return name == root.__module__ or name.startswith("lm_eval.tasks.") or os.path.isabs(name)


def _global_names(code: CodeType) -> Iterator[str]:
    yield from (str(step.argval) for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)
