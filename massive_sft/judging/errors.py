"""Why there is no score of a judged benchmark, each a sentence that says what helps."""

from __future__ import annotations

from massive_sft.core.errors import MassiveSFTError


class JudgeUnavailable(MassiveSFTError):
    """A judge refuses every call, cannot be reached, or is not the model that was asked for: no verdict is lost."""


class BudgetSpent(MassiveSFTError):
    """What judging may cost is spent."""


class TooManyFailures(MassiveSFTError):
    """More answers than allowed got no verdict."""
