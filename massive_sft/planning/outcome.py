"""What a sweep gets to see of a cell's record: its own scores, status and reasons, not those of others on the root."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from massive_sft.core.fingerprint import fingerprint
from massive_sft.core.wording import counted
from massive_sft.ledger.asked import full_id, is_answered
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import CellPlan, Plan
from massive_sft.planning.requirements import several_templates
from massive_sft.planning.trained import needs_retraining

RETRAIN = "--retrain"  # what reasons name, where a snapshot that is needed is gone or damaged
GONE = f"its snapshot was removed (storage.keep_snapshots); run with {RETRAIN} to train it again"


def as_asked(record: Record, item: CellPlan, ledger: Ledger) -> Record:
    """Return a cell's newest record as far as its sweep asks for it, under the sweep's names.

    Another sweep may have scored and measured the cell on more, failed at something that this one never asked, or call
    it by another name.

    Args:
        item: the cell's plan, as of this record or an older one.
    """
    fresh = item.with_record(record)
    wanted = {asked.id for asked in item.requirements}
    scores = {
        protocol: benchmark
        for protocol, benchmark in record.scores.items()
        if any(is_answered(asked, (benchmark.asked,)) for asked in wanted)
    }
    named = wanted | {asked.measure for asked in item.requirements}  # of texts the id, of others the name
    own = {
        "status": fresh.status,
        "coordinates": item.cell.coordinates._asdict(),
        "scores": scores,
        "measures": {name: found for name, found in record.measures.items() if name in named},
        "missing": find_reasons(fresh, ledger) if fresh.status is Status.PARTIAL else {},
    }
    return record.model_copy(update=own | ({"error": None} if fresh.status is Status.COMPLETE else {}))


def newest_as_asked(cell: str, ledger: Ledger, as_asked: Callable[[Record], Record]) -> Record | None:
    """Return a cell's newest record as a sweep asks for it; None where there is none.

    Of several that say the same it is the oldest: what another sweep added since is neither this one's work nor its
    time, and may have been made by other software.

    Args:
        as_asked: makes of a record what the sweep asks of it.
    """
    found: Record | None = None
    for record in ledger.history(cell):
        asked = as_asked(record)
        if found is not None and not _say_the_same(asked, found):
            break
        found = asked
    return found


def _say_the_same(older: Record, newer: Record) -> bool:
    """Return whether two records of a cell differ in nothing but when and how they came to be."""
    is_replaced = any(newer.files.get(name, checksum) != checksum for name, checksum in older.files.items())
    return not is_replaced and _said(older) == _said(newer)


def _said(record: Record) -> tuple[object, ...]:
    layers = {name: checksum for name, checksum in record.files.items() if name.endswith("/layers.parquet")}
    outcome = (record.status, record.error, record.missing, record.scores, record.measures)
    return (*outcome, record.coordinates, record.trajectory, record.counts, record.training, layers)


class AsPlanAsks:
    """Makes of a record what ``as_asked`` does; that of a cell outside the plan stays as it is.

    It reads reasons through a ledger of its own, so another thread may call it.

    Args:
        plan: of the sweep.
        tags: what else is to be said of cells, by their ids.

    Attributes:
        templates: as of ``requirements.several_templates``.
    """

    def __init__(self, plan: Plan, tags: Mapping[str, Mapping[str, str]] | None = None):
        self._items = {item.cell.id: item for item in plan.cells}
        self._ledger = Ledger(plan.storage)
        self.templates = several_templates(item for cell in plan.cells for item in cell.requirements)
        self._tags: Mapping[str, Mapping[str, str]] = tags or {}

    def add(self, plan: Plan, tags: Mapping[str, Mapping[str, str]]) -> None:
        """Take note of cells that came later, and of what is to be said of them."""
        self._items = self._items | {item.cell.id: item for item in plan.cells}
        self._tags = {**self._tags, **tags}

    def tags(self, cell: str) -> Mapping[str, str]:
        """Return what else is to be said of a cell."""
        return self._tags.get(cell, {})

    def __call__(self, record: Record) -> Record:
        """Return the record as far as its sweep asks for it, under the sweep's names."""
        item = self._items.get(record.cell)
        return record if item is None else as_asked(record, item, self._ledger)

    def stamp(self, cell: str) -> str:
        """Return what is the same as long as the plan asks the same of a cell, under the same names."""
        item = self._items.get(cell)
        if item is None:
            return ""
        ids = [asked.id for asked in item.requirements]
        named = {full_id(asked): self.templates[full_id(asked)] for asked in ids if full_id(asked) in self.templates}
        return fingerprint([item.cell.coordinates._asdict(), sorted(ids), *([named] if named else [])])


def find_reasons(item: CellPlan, ledger: Ledger) -> dict[str, str]:
    """Return why a cell lacks what its sweep asks of it, by label; nothing for what no run has tried yet.

    A record says what its own run found missing, so a reason may stand in an older one than the newest.
    """
    left = {asked.label for asked in item.unmet}
    found: dict[str, str] = {}
    for record in ledger.history(item.cell.id) if left else ():
        found = {name: why for name, why in record.missing.items() if name in left} | found
        if found.keys() == left:
            break
    return found


def with_work_in_hand(plan: Plan, ledger: Ledger) -> Plan:
    """Return the plan with those PARTIAL and FAILED cells RUNNING that somebody trains or scores again now."""

    def now(item: CellPlan, trajectory: str | None) -> CellPlan:
        if item.status not in (Status.PARTIAL, Status.FAILED):
            return item
        is_trained = trajectory is not None and ledger.has_snapshot(trajectory, item.cell.epoch)
        is_running = ledger.is_in_work(item.cell.id, None if is_trained else trajectory)
        return replace(item, recorded=Status.RUNNING) if is_running else item

    runs = (replace(run, cells=tuple(now(cell, run.trajectory.id) for cell in run.cells)) for run in plan.runs)
    return replace(plan, runs=tuple(runs), base=tuple(now(cell, None) for cell in plan.base))


def explain(item: CellPlan, ledger: Ledger, gone: bool = False) -> list[str]:
    """Return why a cell is PARTIAL, FAILED or DIVERGED, a sentence each; empty for any other.

    Args:
        gone: whether the snapshot that it needs was removed.
    """
    if item.status in (Status.FAILED, Status.DIVERGED):
        record = ledger.read_record(item.cell.id)
        return [record.error.splitlines()[0]] if record is not None and record.error else []
    if item.status is not Status.PARTIAL:
        return []
    reasons = find_reasons(item, ledger)
    untried = ", ".join(untried_labels(item, reasons))
    why_untried = GONE if gone else "not done yet"
    return [*(f"{name}: {why}" for name, why in reasons.items()), *([f"{untried}: {why_untried}"] if untried else [])]


def untried_labels(item: CellPlan, reasons: Collection[str]) -> list[str]:
    """Return the labels of what a cell lacks without one of these reasons: no run has tried it yet."""
    return [asked.label for asked in item.unmet if asked.label not in reasons]


def find_gone(plan: Plan) -> frozenset[str]:
    """Return the cells that lack something for which their snapshot, which was removed, is needed."""
    return frozenset(
        cell.cell.id
        for run in plan.runs
        if run.needs_retraining
        for cell in run.cells
        if needs_retraining(plan.storage, run.trajectory, [cell])
    )


def find_remedies(plan: Plan, among: Collection[str] | None = None) -> list[str]:
    """Return the commands that fill what PARTIAL and FAILED cells lack, a sentence each; none where none is so.

    Args:
        among: ids of the cells that are meant; None for all of the plan's.
    """
    wanted = [item for item in plan.cells if among is None or item.cell.id in among]
    items, ledger = [item for item in wanted if item.status in (Status.PARTIAL, Status.FAILED)], Ledger(plan.storage)
    reasons = {item.cell.id: find_reasons(item, ledger) for item in items}
    gone = find_gone(plan) if items else frozenset()
    gone |= {cell for cell, found in reasons.items() if any(RETRAIN in why for why in found.values())}
    # What no run has tried yet lacks no remedy: the next run does it.
    failed = {item.cell.id: ledger.read_record(item.cell.id) for item in items if item.status is Status.FAILED}
    again = {cell for cell, record in failed.items() if record and record.is_invalidated} - gone
    lacking = [
        cell for cell, found in reasons.items() if (found or cell in failed or cell in gone) and cell not in again
    ]
    sentences = []
    for cells, verb, option, what in (
        ([cell for cell in reasons if cell in again], "run", [], "since that was invalidated"),
        ([cell for cell in lacking if cell not in gone], "retry", [], "once its reason is gone"),
        ([cell for cell in lacking if cell in gone], "retry", [RETRAIN], "by training again what was removed"),
    ):
        if cells:
            where = [] if among is None else ["--where", f"cell={'|'.join(cells)}"]
            overlays = [part for overlay in plan.sweep.overlays for part in ("--overlay", _shown(overlay.path))]
            command = shlex.join(["massive-sft", verb, _shown(plan.sweep.path), *overlays, *option, *where])
            lack = f"{counted(len(cells), 'cell')} lack{'s' if len(cells) == 1 else ''}"
            sentences.append(f"{command} fills what {lack}, {what}")
    return sentences


def _shown(path: Path) -> str:
    """Return a path as a command in this folder takes it: relative where it is below, absolute elsewhere."""
    relative = os.path.relpath(path)
    return os.path.abspath(path) if relative.startswith(os.pardir) else relative
