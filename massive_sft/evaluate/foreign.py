"""Benchmarks' own code: whatever it raises costs that benchmark its score, and no other."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

from massive_sft.errors import MassiveSFTError


class TaskUnavailable(MassiveSFTError):
    """A benchmark cannot be built or scored here; the text says why. The other benchmarks go on."""


@contextlib.contextmanager
def foreign(doing: str) -> Iterator[None]:
    """Call a benchmark's code, its data's readers or its metrics within this.

    Args:
        doing: what could not be done if it fails, e.g. ``mmlu cannot be loaded``.

    Raises:
        TaskUnavailable: for whatever was raised but for this package's own errors, with ``doing`` and the reason.
    """
    try:
        yield
    except MassiveSFTError:
        raise
    # A task may raise a class of its own, and a script in it may call sys.exit: no list of types holds them all.
    except (Exception, SystemExit) as error:
        raise TaskUnavailable(f"{doing}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """Return an error in words, with what caused it; where it has no message, the place that raised it."""
    said = _said(error)
    return said if error.__cause__ is None else f"{said} (because of {reason_of(error.__cause__)})"


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if isinstance(error, MassiveSFTError):
        return "; ".join(lines)
    if lines:
        return f"{type(error).__name__}: {lines[0]}"
    raised = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f", raised in {frame.name} of {frame.filename}:{frame.lineno}" for frame in raised)
    return f"{type(error).__name__} without a message{place}"
