"""The errors a user can cause, each saying the place, the rule, the value and the valid choices.

Every exception here survives pickling, so it can cross process borders unchanged.
"""

from __future__ import annotations

import difflib
import enum
import re
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


class _Unset(enum.Enum):
    UNSET = "unset"


UNSET: Any = _Unset.UNSET


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the input.

    Attributes:
        place: where, e.g. ``sweeps/x.yaml: blocks[2].snapshots`` or ``data.jsonl:17``.
        rule: what must hold, e.g. ``must be > 0``.
        value: what was found; ``UNSET`` when nothing is worth printing.
        choices: the valid values, when they can be listed.
        hint: what to write instead, where that is known from more than likeness to a choice.
    """

    place: str
    rule: str
    value: Any = UNSET
    choices: Sequence[str] = ()
    hint: str = ""

    def __str__(self) -> str:
        return self.tell()

    def tell(self, listed: bool = True) -> str:
        """Return it as a sentence.

        Args:
            listed: whether with all valid values; else with the closest one alone.
        """
        text = f"{self.place}: {self.rule}"
        if self.value is not UNSET:
            text += f", got {self.value!r}"
        if self.hint:
            text += f" ({self.hint})"
        elif close := self._closest_choice():
            text += f" (did you mean {close!r}?)"
        if self.choices and listed:
            text += f"; valid: {', '.join(map(str, self.choices))}"
        return text

    def _closest_choice(self) -> str | None:
        """Return the choice that the value is nearest to, whatever its capitals; None where none is near."""
        if self.value in self.choices:
            return None  # what is wrong is something else
        same = next((choice for choice in self.choices if str(choice).lower() == str(self.value).lower()), None)
        return same or next(iter(difflib.get_close_matches(str(self.value), list(self.choices), n=1)), None)


class ExitCode(enum.IntEnum):
    """What the command line ends with: whether the same command, run again, may get further by itself.

    A scheduler retries TRY_AGAIN (EX_TEMPFAIL of sysexits.h) and what ended by a signal, and leaves the others to a
    person.
    """

    COMPLETE = 0
    INCOMPLETE = 1  # something failed or is missing, for reasons that stand
    INVALID = 2  # input, machine or cluster; nothing was done
    TRY_AGAIN = 75  # SIGTERM; a cluster that was lost or stands still; killed trials
    INTERRUPTED = 130  # a person's wish: Ctrl-C, ``massive-sft cancel``, a closed terminal


class MassiveSFTError(Exception):
    """Base of every error that is reported as a sentence, never as a traceback.

    ``exit_code`` is what the command line ends with.
    """

    exit_code = ExitCode.INCOMPLETE


class InvalidInput(MassiveSFTError):
    """The user's input is wrong: holds every problem found, not only the first."""

    exit_code = ExitCode.INVALID

    def __init__(self, problems: Iterable[Problem] | Problem):
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__(self.problems)

    def lines(self) -> list[str]:
        """Return a sentence a problem; what is valid in one place is listed once."""
        seen, lines = set[object](), []
        for problem in self.problems:
            valid = problem.place, tuple(problem.choices)
            lines.append(problem.tell(valid not in seen))
            seen.add(valid)
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())


class LedgerError(MassiveSFTError):
    """The storage root cannot be read or written as a ledger."""


class Corrupt(LedgerError):
    """A file's content does not match its checksum, or cannot be parsed."""


class LeaseLost(MassiveSFTError):
    """Another owner took the lease; what this attempt wrote must not be published."""


class TrainAgain(MassiveSFTError):
    """One of several workers ran out of memory, where the others wait for it: train again with new workers.

    The attempt's folder names the smaller micro-batch.
    """


class Interrupted(MassiveSFTError):
    """Work ended because it was asked to, at a point from which the same command goes on."""

    exit_code = ExitCode.INTERRUPTED


class ClusterLost(MassiveSFTError):
    """The cluster that a run was on is gone; what has a record or a checkpoint is not done again."""

    exit_code = ExitCode.TRY_AGAIN


class Unsupported(MassiveSFTError):
    """A valid request that this version refuses, with the reason and the remedy."""

    exit_code = ExitCode.INVALID


def describe_error(error: BaseException) -> str:
    """Return an error of any code as one sentence, with what caused it; without a message, the place that raised it.

    An error of this package is a sentence already.
    """
    lines = str(error).strip().splitlines()
    if isinstance(error, MassiveSFTError) and lines:
        return "; ".join(lines)
    kind, cause = type(error).__name__, error.__cause__
    raised = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f", raised in {frame.name} of {frame.filename}:{frame.lineno}" for frame in raised)
    if isinstance(error, re.error) and error.pattern is not None:
        kind = f"pattern {error.pattern!r}"
    text = f"{kind}: {lines[0]}" if lines else f"{kind} without a message{place}"
    return text if cause is None else f"{text} (because of {describe_error(cause)})"
