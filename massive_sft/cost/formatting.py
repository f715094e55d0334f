"""Costs as lines of text (``≈`` marks what rests on more than measurements), and as JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from massive_sft.core.files import format_bytes
from massive_sft.core.wording import counted
from massive_sft.cost.budget import BudgetedPlan
from massive_sft.cost.disk import Disk
from massive_sft.cost.duration import Quantity
from massive_sft.cost.estimate import Cost
from massive_sft.cost.extension import Extensions
from massive_sft.cost.fit import Fit
from massive_sft.cost.gpu_counts import GpuCount, GpuCounts

MAX_LINES = 10  # lines of what does not fit, or is left out, before "and so many more"


def cost_lines(cost: Cost) -> list[str]:
    """Return a plan's cost for people; nothing when nothing is left to do.

    A sum of which a part could not be estimated is not known: what is left of it would read as the whole.
    """
    again = f"cost of `run --retrain`: {counted(cost.retrainings, 'training')} again and what needs them, "
    more = [again + format_time(cost.retraining)] if cost.retrainings else []
    if not (cost.training.value or cost.evaluation.value or cost.unknown):
        return more
    total = f"cost: training {format_time(cost.training)}, evaluation {format_time(cost.evaluation)}, one after another"
    if cost.gpu_seconds is not None and cost.gpu_seconds.complete:
        total += f"; {_about(cost.gpu_seconds)}{_number(cost.gpu_seconds.value / 3600)} GPU-hours"
    if cost.money is not None and cost.money.complete:
        total += f"; money {_about(cost.money)}{_number(cost.money.value)} at {cost.price:g} a GPU-hour"
    priced = f"{cost.measured} priced by finished ones of the same kind (model, method, layout)"
    measured = f"of {counted(cost.runs, 'training')} to do {priced}; ≈ rests on data sheets and rough counts"
    shared = f"  a training run for each cell would take {format_time(cost.saved)} longer"
    lines = [
        total,
        shared if cost.saved.value and cost.saved.complete else "",
        f"  {measured}" if cost.measured < cost.runs else "",
    ]
    if cost.groups:
        together = f"{counted(cost.grouped, 'training')} take their steps in {counted(cost.groups, 'group')}"
        lines.append(f"  {together} (lora_at_once); priced as if each was alone, which is the most")
    lines += [f"  unknown, {count:,} part{'s' if count > 1 else ''}: {why}" for why, count in cost.unknown.items()]
    lines += _extension_lines(cost.extensions) + _disk_lines(cost.disk) + _fit_lines(cost.fits)
    return [line for line in (*lines, *more) if line]


def _about(figure: Quantity) -> str:
    return "" if figure.sure else "≈ "


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def format_time(figure: Quantity) -> str:
    if not figure.complete:
        return "not known"
    seconds = figure.value
    if seconds < 120:
        return f"{_about(figure)}{seconds:.0f} s"
    return _about(figure) + (f"{seconds / 60:.0f} min" if seconds < 7200 else f"{_number(seconds / 3600)} h")


def _extension_lines(extensions: Extensions) -> list[str]:
    lines = []
    if extensions.resumed:
        lines.append(f"  {_trainings(extensions.resumed)} on from a checkpoint or a state that was kept")
    if extensions.repeated:
        again = f"{counted(extensions.epochs, 'epoch')} again, {format_time(extensions.again)}"
        lines.append(
            f"  {_trainings(extensions.repeated)} on after epochs of which no state was kept (storage.keep_state), "
            f"so from the start: {again}"
        )
    return lines


def _trainings(count: int) -> str:
    return "1 training goes" if count == 1 else f"{count:,} trainings go"


def _disk_lines(peak: Disk | None) -> list[str]:
    if peak is None or not peak.peak:
        return []
    parts = [
        (peak.kept, "kept"),
        (peak.states, "states to go on from"),
        (peak.waiting, "waiting to be scored"),
        (peak.resume, "a resume checkpoint"),
    ]
    listed = ", ".join(f"{format_bytes(size)} {what}" for size, what in parts if size)
    return [f"  snapshots at their peak: {'' if peak.sure else '≈ '}{format_bytes(peak.peak)} ({listed})"]


def _fit_lines(fits: Sequence[Fit]) -> list[str]:
    judged = [fit for fit in fits if fit.available]
    lines = []
    if fits and not judged:
        most = max(fits, key=lambda fit: fit.needed)
        lines.append(f"  memory, the most: {most.what} on {most.where} needs ≈ {format_bytes(most.needed)} on each")
    if judged:
        tightest = max(judged, key=lambda fit: fit.needed / (fit.available or 1))
        lines.append(f"  memory, the tightest: {_fit(tightest)}")
    bad = [fit for fit in judged if fit.verdict != "fits"]
    lines += [f"  {_judgement(fit)}: {_fit(fit)}: {fit.remedy}" for fit in bad[:MAX_LINES]]
    if len(bad) > MAX_LINES:
        lines.append(f"  and {len(bad) - MAX_LINES} kinds more that are tight or do not fit (--json lists them)")
    return lines


def _judgement(fit: Fit) -> str:
    return "does not fit" if fit.verdict == "does not fit" else "may run out of memory"


def _fit(fit: Fit) -> str:
    runs = f", each of {fit.runs} training runs" if fit.runs > 1 else ""
    needed = f"{'' if fit.measured else '≈ '}{format_bytes(fit.needed)} of {format_bytes(fit.available or 0)}"
    chosen = fit.gradient_checkpointing
    way = "" if chosen is None else f" with gradient_checkpointing: {str(chosen).lower()}"
    return f"{fit.what} on {fit.where} needs {needed}{way}{runs}"


def gpu_count_lines(compared: Sequence[GpuCounts]) -> list[str]:
    """Return what trainings would take by the number of their GPUs, for people: a line for each model and setting."""
    if not compared:
        return []
    lines = ["GPU-hours (and MFU) by the number of a training's GPUs, ≈ by the formulas:"]
    lines += [f"  {_counts(row)}" for row in compared[:MAX_LINES]]
    if len(compared) > MAX_LINES:
        lines.append(f"  and {len(compared) - MAX_LINES} models and settings more (--json lists them)")
    return lines


def _counts(row: GpuCounts) -> str:
    marks = (", taken" if count.layout.gpus == row.taken else "" for count in row.counts)
    shown = (f"{count.layout.gpus}: {_count(count)}{mark}" for count, mark in zip(row.counts, marks, strict=True))
    runs = f", {row.runs} training runs" if row.runs > 1 else ""
    return f"{row.model} {row.setting} on {row.kind}{runs}: {'; '.join(shown)}"


def _count(count: GpuCount) -> str:
    if not count.fits:
        return "too small"
    if count.gpu_seconds is None:
        return "not known"
    return f"{_number(count.gpu_seconds / 3600)} ({count.mfu:.2f})"


def gpu_counts_json(compared: Sequence[GpuCounts]) -> list[dict[str, Any]]:
    """Return what trainings would take by the number of their GPUs as JSON values."""
    return [
        {
            **{name: getattr(row, name) for name in ("model", "setting", "kind", "runs", "taken")},
            "counts": [
                {
                    "gpus": count.layout.gpus,
                    "zero": count.layout.zero,
                    **{name: getattr(count, name) for name in ("needed", "fits", "gpu_seconds", "mfu")},
                }
                for count in row.counts
            ],
        }
        for row in compared
    ]


def budget_lines(portion: BudgetedPlan) -> list[str]:
    """Return what a budget takes of a plan and what it leaves out, for people."""
    kept, hours = portion.plan, f"{_about(portion.taken)}{_number(portion.taken.value)}"
    taken = f"{counted(len(kept.base), 'base row')} and {counted(len(kept.runs), 'training run')}"
    hour = "hour" if portion.hours == 1 else "hours"
    head = f"budget of {portion.hours:g} {hour}, what is done counted too: {taken} take {hours}"
    if not portion.left_out:
        return [f"{head}; nothing is left out"]
    lines = [f"{head}; left out: {counted(portion.runs_left_out, 'training run')}:"]
    lines += [f"  {item}" for item in portion.left_out[:MAX_LINES]]
    if len(portion.left_out) > MAX_LINES:
        lines.append(f"  and {len(portion.left_out) - MAX_LINES} more (--json lists them all)")
    return lines


def budget_json(portion: BudgetedPlan) -> dict[str, Any]:
    """Return what a budget takes of a plan as JSON values."""
    return {
        "hours": portion.hours,
        "taken_hours": portion.taken.value,
        "sure": portion.taken.sure,
        "runs": len(portion.plan.runs),
        "base_rows": len(portion.plan.base),
        "left_out": list(portion.left_out),
        "runs_left_out": portion.runs_left_out,
    }


def cost_json(cost: Cost) -> dict[str, Any]:
    """Return a plan's cost as JSON values: seconds and bytes; null for what means nothing here.

    A figure that is not ``complete`` is the sum of what could be estimated; ``unknown`` says what it lacks.
    """
    return {
        "training": figure_json(cost.training),
        "evaluation": figure_json(cost.evaluation),
        "gpu_seconds": figure_json(cost.gpu_seconds),
        "money": figure_json(cost.money),
        "saved_by_sharing": figure_json(cost.saved),
        "disk": None if cost.disk is None else {**vars(cost.disk), "peak": cost.disk.peak},
        "unknown": dict(cost.unknown),
        "retrainings": cost.retrainings,
        "retraining": figure_json(cost.retraining),
        "extensions": vars(cost.extensions) | {"again": figure_json(cost.extensions.again)},
        "trainings": cost.runs,
        "measured_trainings": cost.measured,
        "grouped_trainings": cost.grouped,
        "groups": cost.groups,
        "memory": [_fit_json(fit) for fit in cost.fits],
    }


def figure_json(figure: Quantity | None) -> dict[str, Any] | None:
    """Return a figure as JSON values; null for none."""
    return None if figure is None else {"value": figure.value, "sure": figure.sure, "complete": figure.complete}


def _fit_json(fit: Fit) -> dict[str, Any]:
    addends: Mapping[str, int] = {**fit.memory.certain, **fit.memory.estimated}
    named = ("what", "where", "runs", "needed", "available", "verdict", "remedy", "measured", "gradient_checkpointing")
    return {**{name: getattr(fit, name) for name in named}, "least": fit.memory.least, "addends": dict(addends)}
