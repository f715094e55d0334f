"""Problems found in data: all of them at once, but a bad file of a million rows is not a million lines."""

from __future__ import annotations

from typing import Any

from massive_sft.core.errors import UNSET, InvalidInput, Problem

LISTED = 10  # problems of one kind that are printed; the rest is counted
_SHOWN = 80  # characters of a value that are printed


class Findings:
    """Collects problems by kind and raises them together."""

    def __init__(self) -> None:
        self._listed: dict[str, list[Problem]] = {}
        self._count: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._count)

    def add(self, kind: str, place: str, rule: str, value: Any = UNSET, choices: tuple[str, ...] = ()) -> None:
        """Note one problem. ``kind`` says what problems of its sort have in common, e.g. ``no completion``."""
        self._count[kind] = self._count.get(kind, 0) + 1
        listed = self._listed.setdefault(kind, [])
        if len(listed) < LISTED:
            listed.append(Problem(place, rule, _shortened(value), choices))

    def problems(self) -> list[Problem]:
        """Return at most ``LISTED`` problems of each kind, then one that counts the others."""
        found = []
        for kind, listed in self._listed.items():
            found += listed
            more = self._count[kind] - len(listed)
            if more:
                found.append(Problem(listed[-1].place, f"and {more} more: {kind}"))
        return found

    def raise_if_any(self) -> None:
        """Raise InvalidInput with everything noted, if anything was."""
        if self:
            raise InvalidInput(self.problems())


def _shortened(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _SHOWN:
        return value[:_SHOWN] + "…"
    if isinstance(value, (list, dict)) and len(repr(value)) > _SHOWN:
        return repr(value)[:_SHOWN] + "…"
    return value
