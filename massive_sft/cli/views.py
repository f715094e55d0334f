"""What the command line prints: plans, statuses, records, progress. Values in, Rich renderables or JSON out."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.cost.budget import BudgetedPlan
from massive_sft.cost.estimate import estimate
from massive_sft.cost.formatting import budget_lines, cost_json, cost_lines
from massive_sft.ledger.record import BenchmarkScores, Record, Status
from massive_sft.ledger.record_warnings import find_warnings
from massive_sft.planning.plan import Plan, RunPlan
from massive_sft.running import events
from massive_sft.running.events import RunEvent
from massive_sft.sweep.cell import Coordinates
from massive_sft.sweep.resources import describe_layouts
from massive_sft.sweep.semantics import GENERATION_SEMANTICS, SCORE_SEMANTICS, TRAIN_SEMANTICS
from massive_sft.training.events import CheckpointFailed, Event, Resumed, SnapshotWritten, StartedOver

STYLES = {
    Status.COMPLETE: "green",
    Status.PARTIAL: "yellow",
    Status.DIVERGED: "magenta",
    Status.FAILED: "red",
    Status.RUNNING: "cyan",
    Status.WAITING: "dim",
    Status.PRUNED: "dim",
}
ROWS = 40  # rows of the plan shown before "and N rows more"
NOTES = 10  # warnings shown before "and N more"


def plan_view(plan: Plan) -> Group:
    """Return the plan for people."""
    table = Table(box=None, pad_edge=False, show_header=True, header_style="bold")
    for column in ("model", "data", "size", "setting", "schedule", "snapshots", "steps", "tokens", "cells to do"):
        table.add_column(column, justify="right" if column in ("size", "steps", "tokens") else "left")
    rows = _alike(plan.runs)
    for (model, data, size, setting, schedule, snapshots), runs in list(rows.items())[:ROWS]:
        steps, tokens = _sum(runs, "steps_per_epoch"), _sum(runs, "tokens_per_epoch")
        left = sum(not cell.is_done for run in runs for cell in run.cells)
        table.add_row(model, data, size, setting, schedule, snapshots, steps, tokens, f"{left} of {_cells(runs)}")
    more = [Text(f"and {len(rows) - ROWS} rows more (--json or --cells lists them all)")] if len(rows) > ROWS else []
    return Group(table, *more, Text(), *_totals(plan), *map(Text, cost_lines(estimate(plan))), warnings_view(plan))


def budget_view(portion: BudgetedPlan | None) -> Group:
    """Return what a budget takes and leaves out; an empty group without a budget."""
    return Group(*(Text(line, style="yellow") for line in (budget_lines(portion) if portion else ())))


def _alike(runs: Iterable[RunPlan]) -> dict[tuple[str, ...], list[RunPlan]]:
    """Group runs that differ only in their seed."""
    groups: dict[tuple[str, ...], list[RunPlan]] = {}
    for run in runs:
        recipe, first = run.trajectory.recipe, run.trajectory.cells[0].coordinates
        size = "≈ all" if recipe.mixture.size is None else f"{recipe.mixture.size:,}"
        schedule = recipe.schedule.label + (f"/{first.horizon}" if first.horizon else "")
        setting = " ".join(filter(None, (recipe.setting_name, first.variant)))
        snapshots = _ranges(run.trajectory.snapshots)
        groups.setdefault((recipe.model_name, recipe.mixture.name, size, setting, schedule, snapshots), []).append(run)
    return groups


def _cells(runs: Iterable[RunPlan]) -> int:
    return sum(len(run.cells) for run in runs)


def _sum(runs: list[RunPlan], what: str) -> str:
    values = [getattr(run, what) for run in runs]
    if None in values:
        return "≈"
    return f"{sum(value * run.trajectory.epochs for value, run in zip(values, runs, strict=True)):,}"


def _ranges(epochs: tuple[int, ...]) -> str:
    """Return ``1..3, 5`` for (1, 2, 3, 5)."""
    parts: list[list[int]] = []
    for epoch in epochs:
        if parts and parts[-1][-1] == epoch - 1:
            parts[-1].append(epoch)
        else:
            parts.append([epoch])
    return ", ".join(f"{part[0]}..{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _totals(plan: Plan) -> list[Text]:
    saved, counts = plan.sharing, plan.statuses
    lines = [
        f"{len(plan.cells)} cells: {', '.join(f'{counts[status]} {status}' for status in Status if counts[status])}; "
        f"{sum(not cell.is_done for cell in plan.cells)} to do",
        f"{saved.runs} training runs of {saved.run_epochs} epochs give {saved.cells} trained cells, "
        f"which one by one would take {saved.cell_epochs} epochs",
    ]
    if saved.run_samples is not None and saved.cell_samples is not None:
        lines[-1] += f" ({saved.run_samples:,} samples instead of {saved.cell_samples:,})"
    if saved.split_by_horizon:
        lines.append(
            f"{saved.split_by_horizon} runs differ only in the horizon of a decaying schedule: "
            "the shorter is no prefix of the longer, so they are not shared"
        )
    lines.append(f"training runs: {describe_layouts(run.layout for run in plan.runs)}")
    gone = sum(run.needs_retraining for run in plan.runs)
    if gone:
        lines.append(
            f"{gone} runs lack scores whose snapshots were removed: they stay PARTIAL unless run with --retrain"
        )
    lines.append(f"semantics: training {TRAIN_SEMANTICS}, scoring {SCORE_SEMANTICS}, generation {GENERATION_SEMANTICS}")
    lines.append(f"storage: {plan.root}")
    return [Text(line) for line in lines]


def warnings_view(plan: Plan) -> Group:
    """Return what the user should know about a plan; an empty group when there is nothing."""
    notes = [
        *(("missing", "red", item) for item in plan.missing),
        *(("warning", "yellow", item) for item in plan.warnings),
        *(("provisional", "yellow", item) for item in plan.unpinned),
    ]
    lines = [Text.assemble((f"{kind}: ", style), str(item)) for kind, style, item in notes[:NOTES]]
    if len(notes) > NOTES:
        lines.append(Text(f"and {len(notes) - NOTES} more"))
    return Group(*lines)


def changes_view(lines: Sequence[str]) -> Group:
    """Return what ``planning.changes.find_changes`` found; an empty group when nothing changed."""
    head = [Text("changed since the sweep's last run:", style="yellow")] if lines else []
    # What it comes to stands in the last line.
    shown = [*lines[: NOTES - 1], f"and {len(lines) - NOTES} more", lines[-1]] if len(lines) > NOTES else lines
    return Group(*head, *(Text(f"  {line}") for line in shown))


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON values; what is not known yet is null."""
    saved = plan.sharing
    return {
        "schema": 1,
        "name": plan.sweep.file.name,
        "root": str(plan.root),
        "semantics": {"train": TRAIN_SEMANTICS, "score": SCORE_SEMANTICS, "generation": GENERATION_SEMANTICS},
        "statuses": {str(status): count for status, count in plan.statuses.items()},
        "cells": saved.cells + len(plan.base),
        "to_do": sum(not cell.is_done for cell in plan.cells),
        "sharing": {name: getattr(saved, name) for name in saved.__dataclass_fields__},
        "runs": [
            {
                "id": run.trajectory.id,
                "cells": {str(cell.cell.epoch): cell.cell.id for cell in run.cells},
                "layout": run.layout.model_dump(mode="json"),
                "steps_per_epoch": run.steps_per_epoch,
                "tokens_per_epoch": run.tokens_per_epoch,
            }
            for run in plan.runs
        ],
        "cost": cost_json(estimate(plan)),
        "warnings": [str(item) for item in plan.warnings],
        "missing": [str(item) for item in plan.missing],
        "unpinned": [str(item) for item in plan.unpinned],
    }


# The released table's names of a cell's coordinates, and ours for what it has no column for.
RELEASED = ("model_name", "data_name", "lora", "epoch", "data_size", "lr_strategy")
BESIDE = ("setting", "method", "horizon", "seed", "variant")


def cells_csv(plan: Plan) -> str:
    """Return one CSV line a cell: the released table's keys, our further coordinates, ids and status.

    A base model's line has ``data_name`` pretrain, ``data_size`` 0, and neither ``lora`` nor ``lr_strategy``.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*RELEASED, *BESIDE, "cell", "trajectory", "status"))
    for item in plan.cells:
        found, recipe = item.cell.coordinates, item.cell.recipe
        if recipe is None:
            keys: tuple[Any, ...] = (found.model, "pretrain", None, found.epoch, 0, None)
        else:
            lora = str(found.method == "lora").lower()
            keys = (found.model, found.data, lora, found.epoch, found.size, found.schedule)
        beside = (getattr(found, name) for name in BESIDE)
        writer.writerow((*keys, *beside, item.cell.id, recipe.id if recipe else None, item.status))
    return text.getvalue()


def status_json(plan: Plan) -> list[dict[str, Any]]:
    """Return one object a cell."""
    return [
        {
            "cell": item.cell.id,
            "trajectory": item.cell.recipe.id if item.cell.recipe else None,
            "status": str(item.status),
            "lacking": [asked.id for asked in item.unmet],
            **item.cell.coordinates._asdict(),
        }
        for item in plan.cells
    ]


def status_view(plan: Plan) -> Group:
    """Return every cell's status for people, those with something to do first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("cell", "what", "status", "lacks"):
        table.add_column(column, overflow="fold")
    for item in sorted(plan.cells, key=lambda item: item.is_done):
        lacks = ", ".join(asked.name for asked in item.unmet) if item.status is not Status.WAITING else ""
        status = Text(str(item.status), style=STYLES[item.status])
        table.add_row(item.cell.id, str(item.cell.coordinates), status, lacks)
    return Group(table, Text(), *_totals(plan), warnings_view(plan))


def record_view(record: Record) -> Group:
    """Return a record for people."""
    coordinates = Coordinates(**record.coordinates)  # type: ignore[arg-type]
    head = Text.assemble(
        (record.cell, "bold"), "  ", str(coordinates), "  ", (str(record.status), STYLES[record.status])
    )
    parts: list[Any] = [head, _facts(record)]
    if record.error:
        parts.append(Text(record.error, style="red"))
    if record.scores:
        parts += [Text(), scores_table(record.scores.values())]
    for name, why in record.missing.items():
        parts.append(Text(f"missing {name}: {why}", style="yellow"))
    parts += [Text(f"warning: {text}", style="yellow") for text in find_warnings(record)]
    for name, value in record.measures.items():
        parts += [Text(), Text(name, style="bold"), _tree(value)]
    if record.counts:
        parts += [Text(), Text("data", style="bold"), _tree(record.counts.get("total", record.counts))]
    return Group(*parts)


def scores_table(scores: Iterable[BenchmarkScores]) -> Table:
    """Return a table of scores: one row a task, metric and filter."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("benchmark", "task", "metric", "value", "95 % interval", "n"):
        table.add_column(column, justify="right" if column in ("value", "95 % interval", "n") else "left")
    for one in sorted(scores, key=lambda one: one.benchmark):
        for task, metrics in {**one.tasks, **one.groups}.items():
            for metric, score in metrics.items():
                interval = "" if score.interval is None else f"{score.interval[0]:.4g} .. {score.interval[1]:.4g}"
                value = "missing" if score.value is None else f"{score.value:.4g}"
                size = "" if score.n is None else str(score.n)
                table.add_row(one.benchmark, task, metric.removesuffix(",none"), value, interval, size)
    return table


def _facts(record: Record) -> Text:
    facts = [f"attempt {record.attempt}", f"finished {record.finished}"]
    for name in ("steps", "tokens", "first_loss", "last_loss", "seconds"):
        value = record.training.get(name)
        if value is not None:
            facts.append(f"{name.replace('_', ' ')} {value:,.4g}" if isinstance(value, float) else f"{name} {value:,}")
    resumed = record.training.get("resumed")
    facts += [_resumed(entry) for entry in resumed] if isinstance(resumed, list) else []
    return Text(", ".join(facts), style="dim")


def _resumed(entry: Any) -> str:
    if entry["source"] is None:
        return f"attempt {entry['attempt']} began at the start ({'; '.join(entry['notes'])})"
    same = {True: ", exactly", False: ", not exactly", None: ""}[entry["exact"]]
    notes = f" ({'; '.join(entry['notes'])})" if entry["notes"] else ""
    return f"attempt {entry['attempt']} went on after step {entry['step']:,}{same}{notes}"


def _tree(value: Any, depth: int = 1) -> Text:
    if not isinstance(value, dict):
        return Text("  " * depth + _plain(value))
    lines = []
    for key, item in value.items():
        if isinstance(item, dict):
            lines += [Text("  " * depth + str(key)), _tree(item, depth + 1)]
        elif key != "schema":
            lines.append(Text("  " * depth + f"{key}: {_plain(item)}"))
    return Text("\n").join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def run_event_line(event: RunEvent) -> Text:
    """Return a progress line for what happened, or an empty text when it is not worth one."""
    if isinstance(event, events.TrainingStarted):
        cell = event.trajectory.cells[-1]
        return Text(f"training {cell.coordinates} (attempt {event.attempt})")
    if isinstance(event, events.CellRecorded):
        record = event.record
        missing = "; ".join(f"{name}: {why}" for name, why in record.missing.items())
        detail = f": {record.error}" if record.error else f": missing {missing}" if missing else ""
        status = (str(record.status), STYLES[record.status])
        return Text.assemble(status, f" {record.cell} {event.cell.coordinates}{detail}")
    if isinstance(event, events.CellSkipped):
        return Text(f"skipped, somebody else works on it: {event.what}")
    return Text(_event_line(event.event))


def _event_line(event: Event) -> str:
    match event:
        case SnapshotWritten():
            return f"  snapshot of epoch {event.epoch}"
        case Resumed():
            notes = f"; it may differ in its last bits: {'; '.join(event.notes)}" if event.notes else ""
            return f"  goes on after step {event.step:,} of attempt {event.attempt}{notes}"
        case StartedOver():
            return f"  begins at the start, its checkpoint cannot be used: {event.reason}"
        case CheckpointFailed():
            return f"  no checkpoint after step {event.step:,}: {event.reason}"
        case _:
            return ""


def pick_run(plan: Plan, model: str | None, mixture: str | None, setting: str | None) -> RunPlan:
    """Return the first run of the named model, mixture and setting. Raises InvalidInput with the valid names."""
    axes = {"model": model, "mixture": mixture, "setting": setting}
    problems, left = [], list(plan.runs)
    for axis, wanted in axes.items():
        names = list(Counter(_axis(run, axis) for run in plan.runs))
        if wanted is not None and wanted not in names:
            problems.append(Problem(f"--{axis}", "is not in the sweep", wanted, names))
        left = [run for run in left if wanted is None or _axis(run, axis) == wanted]
    if problems or not left:
        raise InvalidInput(
            problems or Problem("inspect", "no training run has this model, mixture and setting together")
        )
    return left[0]


def _axis(run: RunPlan, axis: str) -> str:
    recipe = run.trajectory.recipe
    return {"model": recipe.model_name, "mixture": recipe.mixture.name, "setting": recipe.setting_name}[axis]
