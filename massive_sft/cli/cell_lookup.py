"""Finds a cell by the beginning of its id: in a sweep or its ledger, given or looked for in the current folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from massive_sft.cli.options import console, load_plan
from massive_sft.core.errors import Corrupt, InvalidInput, MassiveSFTError, Problem
from massive_sft.ledger.cell_ids import match_id
from massive_sft.ledger.last_plan import read_last_plan
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.outcome import as_asked, newest_as_asked, untried_labels
from massive_sft.planning.plan import CellPlan, Plan, RunPlan
from massive_sft.planning.requirements import named_templates
from massive_sft.study.imported import coordinates_of
from massive_sft.suites.metrics import protocol_name
from massive_sft.sweep.cell import Coordinates

FOLDERS = (Path("."), Path("sweeps"))  # where sweep files are looked for, as seen from the current folder


@dataclass(frozen=True)
class CellMatch:
    """A cell.

    Attributes:
        id: the whole.
        sweep: the plan of all of the sweep; None where only the ledger is known.
        plan, run: of the sweep; ``plan`` is None for a cell that only the ledger knows, ``run`` for a base row too.
        record: its newest; None while it has none.
    """

    id: str
    plan: CellPlan | None
    run: RunPlan | None
    record: Record | None
    ledger: Ledger
    sweep: Plan | None = None

    @property
    def status(self) -> Status:
        """For the sweep where it has the cell, else as the record states it."""
        if self.plan is not None:
            return self.plan.with_record(self.record).status
        return self.record.status if self.record else Status.WAITING

    @property
    def trajectory(self) -> str | None:
        return self.run.trajectory.id if self.run else self.record.trajectory if self.record else None

    @cached_property
    def coordinates(self) -> Coordinates:
        """What people call it: by the sweep, else as its record has it. Raises Corrupt for another version's names."""
        if self.plan is not None:
            return self.plan.cell.coordinates
        assert self.record is not None, "it is found by its plan or by its record"
        return coordinates_of(self.record)

    @property
    def untried(self) -> list[str]:
        """Labels of what its sweep asks of a cell that is PARTIAL, and no run has tried yet."""
        record = self.asked_record
        if self.plan is None or record is None or self.status is not Status.PARTIAL:
            return []
        return untried_labels(self.plan.with_record(self.record), record.missing)

    @property
    def templates(self) -> dict[str, str]:
        """The names of the templates under which its sweep asks for benchmarks, as of ``frames.tidy``."""
        return named_templates(self.plan.requirements if self.plan else ())

    def benchmark_name(self, protocol: str) -> str:
        """Return a benchmark's name by its protocol, with the template's where several of that name count here."""
        assert self.record is not None, "who asks has its scores"
        scores = self.record.scores
        name = scores[protocol].benchmark
        alike = {key for key, item in scores.items() if item.benchmark == name and key not in self.beside} | {protocol}
        return name if len(alike) == 1 else f"{name} [{self.template_name(protocol)}]"

    def template_name(self, protocol: str) -> str:
        """Return the name of the template of one of its record's protocols, else what tells the protocol apart."""
        assert self.record is not None, "who asks has its scores"
        return protocol_name(self.record.scores[protocol].asked, self.templates)

    @cached_property
    def _own_record(self) -> Record | None:
        """What its sweep asks of it, with the provenance of the run that made it; its record where no sweep does."""
        plan = self.plan
        if plan is None or self.record is None:
            return self.record
        return newest_as_asked(self.id, self.ledger, lambda record: as_asked(record, plan, self.ledger))

    @property
    def asked_record(self) -> Record | None:
        """Its record, status and reasons as its sweep asks for them, with all results; as it is where no sweep does."""
        if self.record is None or self._own_record is None:
            return None
        results = {name: getattr(self.record, name) for name in ("scores", "measures", "files")}
        return self._own_record.model_copy(update=results)

    @property
    def error(self) -> str:
        """Why it has no results: its record's error, with what an invalidated one waits for; empty without one."""
        error = (self.asked_record.error or "").partition("\n")[0] if self.asked_record is not None else ""
        if self.record is None or not self.record.is_invalidated:
            return error
        run = self.trajectory
        is_trained = run is not None and self.ledger.has_snapshot(run, self.coordinates.epoch)
        then = (
            "its training is there, `massive-sft run` scores it" if is_trained else "`massive-sft run` makes it again"
        )
        return f"{error}; {then}"

    @cached_property
    def beside(self) -> frozenset[str]:
        """The protocols of its record that its sweep does not ask for; none where no sweep does."""
        if self.record is None or self._own_record is None:
            return frozenset()
        return frozenset(self.record.scores.keys() - self._own_record.scores.keys())

    @cached_property
    def content(self) -> dict[str, Any]:
        """What the id is the hash of. Raises ``Corrupt`` or FileNotFoundError where only the ledger would know it."""
        if self.plan is not None:
            return self.plan.cell.content
        return self.ledger.read_cell(self.id)


def find_record(ledger: Ledger, beginning: str) -> Record:
    """Return the newest record of the cell whose id begins so.

    Raises:
        InvalidInput: no cell with a record begins so, or more than one does.
        Corrupt: the record is damaged.
    """
    cell = match_id(list(ledger.entries()), beginning)
    record = ledger.read_record(cell)
    if record is None:
        raise Corrupt(f"{ledger.cell_dir(cell)}: its record is damaged")
    return record


def locate_cell(beginning: str, sweep: Path | None, overlays: Sequence[Path] | None = None) -> CellMatch:
    """Return the cell whose id begins so, as ``locate_cells``."""
    return locate_cells([beginning], sweep, overlays)[0]


def locate_cells(
    beginnings: Sequence[str], sweep: Path | None, overlays: Sequence[Path] | None = None
) -> list[CellMatch]:
    """Return the cells whose ids begin so, whatever their status; of several sweep files as one asks, which is told.

    That is one that has all of them, where there is one.

    Args:
        sweep: a sweep file, or a storage root; None for all sweep files in the current folder and its ``sweeps``. Those
            are what says what a storage root's cells are, too, with the ones beside it.
        overlays: merged over the sweep file.

    Raises:
        InvalidInput: no cell begins so, or more than one does.
        Corrupt: its newest record is damaged and no sweep file says what it is.
    """
    if sweep is not None and not sweep.is_dir():
        plan = load_plan(sweep, overlays)
        return [find_cell(plan, _ledger(plan), beginning) for beginning in beginnings]
    if overlays:
        raise InvalidInput(Problem("--overlay", "needs the sweep file, too: --sweep FILE"))
    places = dict(_known(sweep))
    if not places:
        rule = "no sweep file is here whose storage could hold it; name one: --sweep FILE"
        raise InvalidInput(Problem("cell", rule, beginnings[0]))
    ids = {place: {*_planned(plan), *ledger.entries()} for place, (plan, ledger) in places.items()}
    every = list(dict.fromkeys(cell for known in ids.values() for cell in sorted(known)))
    chosen = [match_id(every, beginning) for beginning in beginnings]
    found = {
        place: {cell: find_cell(*places[place], cell) for cell in chosen if cell in known}
        for place, known in ids.items()
    }
    return [_as_one_asks(cell, found) for cell in chosen]


def _as_one_asks(cell: str, found: Mapping[Path, Mapping[str, CellMatch]]) -> CellMatch:
    """Return a cell as a sweep asks for it that has the most of those that were found, which is told if others do.

    Of several it is one that has been run with the cell, and no draft beside it.
    """

    def rank(place: Path) -> tuple[bool, int, bool, bool]:
        match = found[place][cell]
        planned = sum(other.plan is not None for other in found[place].values())
        return match.plan is not None, planned, match.record is not None, _was_run(match)

    having = [place for place in found if cell in found[place]]
    place = max(having, key=rank)
    others = [other for other in having if other != place and found[other][cell].plan is not None]
    if others:
        named = ", ".join(os.path.relpath(other) for other in others)
        note = f"{cell}: as {os.path.relpath(place)} asks; it is a cell of {named}, too (--sweep FILE)"
        console(is_error=True).print(note, style="dim", soft_wrap=True)
    return found[place][cell]


def _was_run(match: CellMatch) -> bool:
    """Return whether the last run of a cell's sweep had the cell."""
    if match.sweep is None:
        return False
    last = read_last_plan(match.ledger.sweep(match.sweep.sweep.file.name))
    return last is not None and match.id in last["cells"]


def _known(root: Path | None) -> Iterator[tuple[Path, tuple[Plan | None, Ledger]]]:
    """Yield the sweep files at hand, with their plans, and the storage root that was named, with its ledger."""
    beside = () if root is None else (root.absolute(), root.absolute().parent)
    folders = dict.fromkeys(folder.absolute() for folder in (*FOLDERS, *beside))
    for path in (path for folder in folders for path in sorted(folder.glob("*.y*ml"))):
        with suppress(MassiveSFTError, OSError):  # is no sweep file, or one that cannot be planned
            plan = load_plan(path, None)
            if root is None or plan.root == root.resolve() or plan.root == root.absolute():
                yield path, (plan, _ledger(plan))
    if root is not None:
        yield root, (None, Ledger.open(root, create=False, place="--sweep"))


def plans_here(root: Path | None) -> Iterator[Plan]:
    """Yield the plans of the sweep files that ``locate_cell`` looks at without one."""
    yield from (plan for _, (plan, _) in _known(root) if plan is not None)


def _ledger(plan: Plan) -> Ledger:
    """Return a plan's ledger, open for reading; where nothing was ever run, one without records."""
    return plan.open_ledger(create=False) if plan.storage.exists() else Ledger(plan.storage)


def _planned(plan: Plan | None) -> dict[str, tuple[CellPlan, RunPlan | None]]:
    if plan is None:
        return {}
    trained = {cell.cell.id: (cell, run) for run in plan.runs for cell in run.cells}
    return {**trained, **{cell.cell.id: (cell, None) for cell in plan.base}}


def find_cell(plan: Plan | None, ledger: Ledger, beginning: str) -> CellMatch:
    """Return the cell of a sweep or else of its ledger.

    Raises:
        InvalidInput: as ``match_id``.
        Corrupt: its newest record is damaged and no sweep says what it is.
    """
    of_sweep = _planned(plan)
    chosen = match_id(list(dict.fromkeys([*of_sweep, *ledger.entries()])), beginning)
    cell, run = of_sweep.get(chosen, (None, None))
    record = ledger.read_record(chosen)
    if record is None and cell is None:
        raise Corrupt(f"{ledger.cell_dir(chosen)}: its record is damaged")
    return CellMatch(chosen, cell, run, record, ledger, plan)
