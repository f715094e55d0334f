"""Whether a log is what its search decides: each decision made again from what it was given, and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from massive_sft.core.fingerprint import canonical_json
from massive_sft.ledger.store import Ledger
from massive_sft.search.confirming import next_confirmation
from massive_sft.search.decider import Decider, take_given
from massive_sft.search.outcomes import Outcome
from massive_sft.search.plan import Planned
from massive_sft.search.proposing import versions
from massive_sft.search.rules import FAILED_BEFORE, WAS_THERE, Decision, Given, Rules, asks_of, is_confirmation

LEDGERS = ("given_up", "infeasible")  # kinds that say what the ledger has, which nothing that was given tells
WRITTEN = ("n", "previous", "given", FAILED_BEFORE, WAS_THERE)  # fields that are not decided


@dataclass(frozen=True)
class Replay:
    """What came of it.

    Attributes:
        equal: decisions that are decided again just so.
        believed: those that are not: of other versions of what proposes, of the ledger's outcomes, or resting on some
            that the ledger has no more.
        differs: the first that is decided otherwise now, and in what: a sentence; None where there is none.
        stale: numbers of those whose outcome later ones were given and that have it no longer.
    """

    equal: int
    believed: int
    differs: str | None
    stale: tuple[int, ...] = ()


def replay(planned: Planned, ledger: Ledger, tell: Callable[[int, int], None] = lambda number, of: None) -> Replay:
    """Decide again everything that the log of a search holds, which takes as long as it took at first.

    Args:
        tell: called before each decision with its number and how many there are.

    Raises Corrupt for a log whose chain is broken.
    """
    decider = Decider.of(planned, ledger)
    decider.look()
    entries, now = list(decider.entries), decider.outcomes()
    outcomes, bases = dict[int, Outcome](), dict[str, Outcome]()
    equal = believed = 0
    for place, entry in enumerate(entries):
        tell(place, len(entries))
        take_given(entry, outcomes, bases)
        before, given = entries[:place], Given(dict(outcomes), dict(bases))
        if is_confirmation(entry):  # rests on everything that was asked, which the ledger has
            given = Given({one["n"]: now[one["n"]] for one in asks_of(before) if one["n"] in now}, given.bases)
        if not _can_be_made(decider.rules, before, entry, given):
            believed += 1
            continue
        confirms = is_confirmation(entry)
        draft = next_confirmation(decider.rules, before, given) if confirms else decider.decided(before, given)
        if "drop" in (entry["kind"], (draft or {}).get("kind")) and _limit(entry) != decider.rules.parked_most:
            believed += 1
            continue
        differs = _difference(draft, entry)
        if differs is not None:
            return Replay(equal, believed, f"decision {entry['n']} {differs}")
        equal += 1
    return Replay(equal, believed, None, tuple(decider.stale()))


def _can_be_made(rules: Rules, before: Sequence[Decision], entry: Decision, given: Given) -> bool:
    """Whether what a decision rests on is there: versions, outcomes, and what may be changed in a sweep file."""
    search = rules.space.search
    if entry["kind"] in LEDGERS or entry.get("versions", versions()) != versions():
        return False
    if is_confirmation(entry):
        return search.confirm is not None and given.hash == entry["given_hash"]
    if entry["kind"] in ("stop", "go_on"):
        return search.stop is not None and (search.stop.regret, search.stop.probability) == (
            entry["regret"],
            entry["probability"],
        )
    return entry["kind"] != "ask" or search.trials is None or len(asks_of(before)) < search.trials


def _limit(entry: Decision) -> int | None:
    """Return the bytes that parked trainings might take when one was dropped."""
    most = entry["why"].get("at_most")
    return None if most is None else int(most)


def _difference(draft: Mapping[str, Any] | None, entry: Decision) -> str | None:
    """Return in what a decision differs from one that is made now; None where it does not."""
    if draft is None:
        return "would not be made now"
    now = {key: value for key, value in draft.items() if key not in WRITTEN}
    then = {key: value for key, value in entry.items() if key not in WRITTEN}
    fields: Sequence[str] = [key for key in sorted(now.keys() | then.keys()) if _text(now, key) != _text(then, key)]
    if not fields:
        return None
    return "; ".join(f"has {key} {_text(then, key)}, decided now {_text(now, key)}" for key in fields[:2])


def _text(fields: Mapping[str, Any], key: str) -> str:
    return canonical_json(fields[key]) if key in fields else "nothing"
