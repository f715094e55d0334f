"""What of a sweep changed since its last run, its file or what that names: said before anything is done under it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from massive_sft.core.fingerprint import flatten
from massive_sft.core.wording import counted
from massive_sft.ledger.last_plan import read_last_plan, write_last_plan
from massive_sft.ledger.provenance import redact
from massive_sft.ledger.record import Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import CellPlan, Plan
from massive_sft.planning.requirements import Requirement
from massive_sft.planning.retention import kept_cells
from massive_sft.sweep.load import Sweep
from massive_sft.sweep.semantics import (
    CHAT_SEMANTICS,
    GENERATION_SEMANTICS,
    MEASURE_SEMANTICS,
    SCORE_SEMANTICS,
    TRAIN_SEMANTICS,
    VLLM_SEMANTICS,
)

NAMED = 3  # benchmarks or measures in one line


def save_last_plan(plan: Plan, ledger: Ledger) -> None:
    """Keep what a sweep means now as ``sweeps/<name>/plan.json``: its file with every default, its cells.

    By it the other sweeps on the root know which snapshots and states it keeps.

    Args:
        plan: of the whole sweep.
    """
    cells = {cell.cell.id: str(cell.cell.coordinates) for cell in plan.cells}
    states = [run.trajectory.id for run in plan.runs if run.keeps_state]
    asked = {item.id for cell in plan.cells for item in cell.requirements}
    trainings = [run.trajectory.id for run in plan.runs]
    sweep = ledger.sweep(plan.sweep.file.name)
    write_last_plan(sweep, _content(plan.sweep), cells, kept_cells(plan), states, asked, trainings)


def find_changes(plan: Plan) -> list[str]:
    """Return what differs from the sweep's last run, a line each; empty when nothing does or it never ran.

    Args:
        plan: of the whole sweep.
    """
    last, now = read_last_plan(Ledger(plan.storage).sweep(plan.sweep.file.name)), _content(plan.sweep)
    if last is None:
        return []
    before: dict[str, Any] = {**_FIRST_SEMANTICS, **last["file"]}  # older massive-sft did not write the numbers down
    places = [place for place in {**before, **now} if _said(place, before) != _said(place, now)]
    if plan.sweep.file.evaluation.protocol.engine != "vllm":
        places = [place for place in places if place != _BY_VLLM]
    written = flatten(plan.sweep.file.model_dump(mode="json", by_alias=True, exclude_unset=True)).keys()
    lines = list(dict.fromkeys(_line(place, before, now, written) for place in places))
    known, cells = set(last["cells"]), {cell.cell.id for cell in plan.cells}
    has_grown = bool(plan.sweep.points) and known <= cells  # by what its searches decided since, which is no change
    if known != cells and (lines or not has_grown):
        if not lines:
            lines.append(_changed_inputs(plan, last["cells"]))
        lines.append(
            f"{counted(len(cells - known), 'new cell')}, {len(cells & known)} stay, "
            f"{len(known - cells)} no longer asked for (what is done of them stays in the ledger)"
        )
    elif lines:
        lines.append(f"all {counted(len(cells), 'cell')} as before")
    asked = frozenset(last.get("asked", ()))
    lacks = _lacks(plan, asked)
    if again := _again(plan, lacks, asked):
        # Ids also hang on how all benchmarks are scored, which is said above where it changed.
        is_told = any(place.startswith((_SEMANTICS, "evaluation.")) and place in before for place in places)
        if changed := [] if is_told else _asked_otherwise(lacks, asked):
            lines.append(f"{', '.join(changed)}: file, data or version, or the tokens that end an answer")
        elif not lines:
            lines.append("what is asked: a benchmark's file, data or version, or the tokens that end an answer")
        lines.append(again)
    return lines


def _changed_inputs(plan: Plan, before: Mapping[str, str]) -> str:
    """Return what the file names that is another now, by the cells whose ids changed under the same coordinates.

    Args:
        before: coordinates by the ids of the last run's cells.
    """
    now = {item.cell.id for item in plan.cells}
    names = {text for cell, text in before.items() if cell not in now}
    changed = [item.cell for item in plan.cells if item.cell.id not in before and str(item.cell.coordinates) in names]
    models = {cell.coordinates.model for cell in changed if cell.recipe is None}
    mixtures = [cell.recipe.mixture for cell in changed if cell.recipe and cell.coordinates.model not in models]
    same = [cell.cell.recipe.mixture for cell in plan.cells if cell.cell.recipe and cell.cell.id in before]
    kept = {part.name for mixture in same for part in mixture.parts}
    data = {part.name for mixture in mixtures for part in mixture.parts} - kept
    found = [f"weights of {', '.join(sorted(models))}"] if models else []
    if data and (kept or models):  # else it may as well be the weights of models that have no row of their own
        found.append(f"data of {', '.join(sorted(data))}")
    said = f"{' and '.join(found)}, or the commit that is pinned" if found else ""
    return f"what the file names: {said or 'data, weights, the commits they are pinned to, or training semantics'}"


def _lacks(plan: Plan, before: Set[str]) -> list[list[Requirement]]:
    """Return what each finished cell lacks that was not asked ``before``: of the rest, cells of another sweep do."""
    ledger = Ledger(plan.storage)
    finished = [cell.unmet for cell in plan.cells if cell.unmet and _was_finished(cell, ledger, before)]
    return [[item for item in unmet if item.id not in before] for unmet in finished]


def _was_finished(cell: CellPlan, ledger: Ledger, before: Set[str]) -> bool:
    """Whether a cell had what it lacks now, as it was asked ``before``; a PARTIAL record may lack another sweep's."""
    if cell.recorded is not Status.PARTIAL:
        return cell.recorded is Status.COMPLETE
    record, asked = ledger.read_record(cell.cell.id), set(map(_name, before))
    had = {_name(identity) for identity in (record.answers if record else ()) if identity in before}
    return {_name(item.id) for item in cell.unmet} & asked <= had


def _asked_otherwise(lacks: Sequence[Sequence[Requirement]], before: Set[str]) -> list[str]:
    """Return the benchmarks of the last run that are asked by another id now, which is of their content."""
    names = set(map(_name, before))
    found = (item for lack in lacks for item in lack if item.is_benchmark)
    return list(dict.fromkeys(item.label for item in found if _name(item.id) in names))


def _name(identity: str) -> str:
    """Return what is asked, without how it is: of a benchmark's id or a measure's."""
    return re.split(r"[ /]", identity, maxsplit=1)[0]


def _again(plan: Plan, lacks: Sequence[Sequence[Requirement]], before: Set[str]) -> str:
    """Return how many finished cells lack what, and whether it was asked ``before``; empty when none lacks any."""
    names, parts = set(map(_name, before)), []
    for done, is_benchmark in (("scored", True), ("measured", False)):
        found = [[item for item in lack if item.is_benchmark is is_benchmark] for lack in lacks]
        labels = list(dict.fromkeys(item.label for items in found for item in items))
        if labels:
            again = " again" if any(_name(item.id) in names for items in found for item in items) else ""
            more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
            parts.append(f"{_cells(sum(map(bool, found)))} {done}{again} ({', '.join(labels[:NAMED])}{more})")
    if not parts:
        return ""
    gone = sum(run.needs_retraining for run in plan.runs)
    retrained = f"it takes {counted(gone, 'training')}, for snapshots were removed: run with --retrain"
    return f"{' and '.join(parts)}; {retrained if gone else 'nothing is trained for it'}"


def _cells(count: int) -> str:
    return f"{count:,} finished cell{'s are' if count > 1 else ' is'}"


def _content(sweep: Sweep) -> dict[str, Any]:
    """Return a sweep's file, every default written out, by dotted place; an address in it may hold a password."""
    flat = flatten(sweep.file.model_dump(mode="json", by_alias=True)) | _semantics()
    return {place: redact(value) if isinstance(value, str) else value for place, value in flat.items()}


def _semantics() -> dict[str, int]:
    """Return the numbers of what is computed, by the name of a place that no sweep file has."""
    numbers = {"training": TRAIN_SEMANTICS, "chat templates": CHAT_SEMANTICS, "scoring": SCORE_SEMANTICS}
    numbers |= {"generation": GENERATION_SEMANTICS, "generation by vLLM": VLLM_SEMANTICS}
    return {f"{_SEMANTICS}{name}": number for name, number in (numbers | MEASURE_SEMANTICS).items()}


_SEMANTICS = "semantics of "
_BY_VLLM = f"{_SEMANTICS}generation by vLLM"
_FIRST_SEMANTICS = dict.fromkeys(_semantics(), 1)


def _said(place: str, content: Mapping[str, Any]) -> Any:
    """Return what a file says at a place; None where it says nothing, or that there is none."""
    value = content.get(place)
    return None if value in ([], {}) else value


def _line(place: str, old: Mapping[str, Any], new: Mapping[str, Any], written: Set[str]) -> str:
    """Return what to say of a place; the same line for all places of an entry that is new, or no longer there.

    Of a new entry what the file says, ``written``, and not the defaults.
    """
    if place.startswith(_SEMANTICS) and place in new:
        name = place.removeprefix(_SEMANTICS)
        return f"{name} of this massive-sft gives other results (semantics {old[place]} -> {new[place]})"
    if place in old and place in new:
        return f"{place}: {_text(new[place])}, was {_text(old[place])}"
    here, there, change = (new, old, "new") if place in new else (old, new, "no longer there, was")
    entry = _entry(place, there)
    inside = {known[len(entry) :].lstrip("."): here[known] for known in here if _is_within(known, entry)}
    said = {name: value for name, value in inside.items() if here is old or _is_said(entry, name, written)}
    content = _text(here[entry]) if entry in here else _listed(said or inside)
    return f"{entry}: {change}{' ' if there is new else ', '}{content}"


def _is_said(entry: str, name: str, written: Set[str]) -> bool:
    return f"{entry}.{name}" in written or f"{entry}{name}" in written


def _listed(inside: Mapping[str, Any]) -> str:
    """Return values by name, those of a list beside each other; nothing of what is not given."""
    by_name: dict[str, list[str]] = {}
    for name, value in inside.items():
        if value is not None:
            by_name.setdefault(re.sub(r"\[\d+\]$", "", name), []).append(_text(value))
    return "; ".join(f"{name} {', '.join(values)}".lstrip() for name, values in by_name.items())


def _entry(place: str, absent_from: Mapping[str, Any]) -> str:
    """Return the shortest beginning of a place that is a whole entry of which ``other`` has nothing."""
    ends = [match.start() for match in re.finditer(r"[.\[]", place)]
    whole = (place[:end] for end in ends if not any(_is_within(known, place[:end]) for known in absent_from))
    return next(whole, place)


def _is_within(place: str, entry: str) -> bool:
    return place == entry or place.startswith((f"{entry}.", f"{entry}["))


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
