"""Problems found in data: all of them at once, but a bad file of a million rows is not a million lines."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from massive_sft.core.errors import UNSET, InvalidInput, Problem

LISTED = 10  # problems of one kind that are printed; the rest is counted
PLACES = 5  # of one problem that are printed
_SHOWN = 80  # characters of a value that are printed


@dataclass
class _Found:
    """A problem with the first places where it is so, of ``count``."""

    rule: str
    value: Any
    choices: tuple[str, ...]
    places: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, place: str) -> None:
        self.count += 1
        if len(self.places) < PLACES:
            self.places.append(place)

    def problem(self) -> Problem:
        return Problem(_joined(self.places, self.count), self.rule, self.value, self.choices)


class Findings:
    """Collects problems by kind and raises them together; what is so in several places is said once."""

    def __init__(self) -> None:
        self._listed: dict[str, dict[tuple[object, ...], _Found]] = {}
        self._others = Counter[str]()

    def __bool__(self) -> bool:
        return bool(self._listed)

    def add(self, kind: str, place: str, rule: str, value: Any = UNSET, choices: tuple[str, ...] = ()) -> None:
        """Note one problem. ``kind`` says what problems of its sort have in common, e.g. ``no completion``."""
        listed, shown = self._listed.setdefault(kind, {}), _shortened(value)
        key = rule, repr(shown), choices
        if key not in listed and len(listed) == LISTED:
            self._others[kind] += 1
            return
        listed.setdefault(key, _Found(rule, shown, choices)).add(place)

    def problems(self) -> list[Problem]:
        """Return at most ``LISTED`` problems of each kind, then one that counts the others."""
        found = []
        for kind, listed in self._listed.items():
            found += [one.problem() for one in listed.values()]
            if self._others[kind]:
                found.append(Problem(found[-1].place, f"and {self._others[kind]:,} more: {kind}"))
        return found

    def raise_if_any(self) -> None:
        """Raise InvalidInput with everything noted, if anything was."""
        if self:
            raise InvalidInput(self.problems())


def _joined(places: list[str], count: int) -> str:
    """Return places as one: ``d.jsonl:1, 2, 3 and 20 more``; what they begin with alike is said once."""
    more = f" and {count - len(places):,} more" if count > len(places) else ""
    heads, _, numbers = zip(*(place.rpartition(":") for place in places), strict=True)
    if len(set(heads)) == 1 and all(number.isdecimal() for number in numbers):
        return f"{heads[0]}:{', '.join(sorted(numbers, key=int))}{more}"
    return ", ".join(places) + more


def _shortened(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _SHOWN:
        return value[:_SHOWN] + "…"
    if isinstance(value, (list, dict)) and len(repr(value)) > _SHOWN:
        return repr(value)[:_SHOWN] + "…"
    return value
