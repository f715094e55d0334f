"""What a reader of one record should know before trusting its numbers."""

from __future__ import annotations

from collections.abc import Iterator

from massive_sft.ledger.record import Record

ROUNDING_FLOORS = 2.0
"""A change below so many times what rounding alone makes is mostly not in the stored weights."""

MUCH_TRUNCATED = 0.1
"""Share of a mixture's samples that may be truncated or dropped without a warning."""


def find_warnings(record: Record) -> list[str]:
    """Return what to warn of, each a sentence."""
    return [*_truncated(record), *_rounded_away(record), *_plain(record)]


def _truncated(record: Record) -> Iterator[str]:
    total = record.counts.get("total")
    numbers = total if isinstance(total, dict) else {}
    found = (numbers.get(name) for name in ("samples", "dropped", "truncated"))
    samples, dropped, truncated = (count if isinstance(count, int) else 0 for count in found)
    for count, what in ((truncated, "lost text to"), (dropped, "were left out, being longer than")):
        if count > MUCH_TRUNCATED * (samples + dropped):
            yield f"{count:,} of {samples + dropped:,} samples {what} the maximum length"


def _rounded_away(record: Record) -> Iterator[str]:
    change = record.measures.get("layer_change")
    if not isinstance(change, dict):
        return
    relative, floor = change.get("relative"), change.get("rounding_floor")
    if not isinstance(relative, float) or not isinstance(floor, float) or not relative < ROUNDING_FLOORS * floor:
        return
    text = (
        f"layer change {relative:.2g} lies below {ROUNDING_FLOORS:g} x {floor:.2g}, which rounding to bf16 alone makes"
    )
    changed, weights = change.get("changed"), change.get("weights")
    if isinstance(changed, int) and isinstance(weights, int):
        text += f"; {changed:,} of {weights:,} weights changed"
    yield f"{text}: the training may be too small for the precision that its weights are stored in"


def _plain(record: Record) -> Iterator[str]:
    if isinstance(why := record.cost.get("plainly"), str):
        yield f"scored by the plain engine: {why}"
