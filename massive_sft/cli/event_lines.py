"""What happened in a run, as lines for people."""

from __future__ import annotations

import math

from rich.text import Text

from massive_sft.cli.views import STYLES
from massive_sft.ledger.record import BenchmarkScores, Record, Score
from massive_sft.ledger.scores_so_far import PartScores
from massive_sft.running.events import (
    CellRecorded,
    CellSkipped,
    Decided,
    RunEvent,
    TrainingProgressed,
    TrainingStarted,
)
from massive_sft.suites.metrics import EARLY, full_name, headline, primary_metric, scale, split, unit
from massive_sft.sweep.trajectory import Trajectory
from massive_sft.training.events import CheckpointFailed, Event, Resumed, SnapshotWritten, StartedOver

TOLD = 4  # scores of a cell on its line


def headline_text(benchmark: BenchmarkScores) -> str:
    """Return a benchmark's score as people read it, such as ``gsm8k-5shot exact_match 41.2 %``; empty without one."""
    found = _headline(benchmark)
    return "" if found is None else f"{_score_text(benchmark, *found)}" + (f" {EARLY}" if benchmark.early else "")


def part_text(part: PartScores) -> str:
    """Return what is scored so far, such as ``gsm8k-5shot exact_match 41.2 % ±2.7, 256 of 1,319``; empty without it."""
    found = _headline(part.scores)
    if found is None:
        return ""
    key, score = found
    metric, _ = split(key)
    low, high = score.interval or (math.nan, math.nan)
    half = scale(metric) * (high - low) / 2
    interval = f" ±{half:.1f}" if unit(metric) else f" ±{half:.2g}"
    shown = _score_text(part.scores, key, score) + (interval if score.interval else "")
    return f"{shown}, {part.answered:,} of {part.of:,}"


def _headline(benchmark: BenchmarkScores) -> tuple[str, Score] | None:
    """Return the metric and filter that stand for a benchmark, and their score; None where it has no value."""
    for kind, name in sorted(headline(benchmark)):
        scores = (benchmark.groups if kind == "group" else benchmark.tasks)[name]
        key = primary_metric(scores)
        if key is not None and scores[key].value is not None:
            return key, scores[key]
    return None


def _score_text(benchmark: BenchmarkScores, key: str, score: Score) -> str:
    value, (metric, chosen_by) = score.value or 0.0, split(key)
    shown = f"{scale(metric) * value:.1f} {unit(metric)}" if unit(metric) else f"{value:.4g}"
    return f"{benchmark.benchmark} {full_name(metric, chosen_by)} {shown}"


def run_event_line(event: RunEvent) -> Text:
    """Return a progress line for what happened, or an empty text when it is not worth one."""
    if isinstance(event, TrainingStarted):
        return Text(f"training {event.trajectory.cells[-1].coordinates}")
    if isinstance(event, CellRecorded):
        record = event.record
        missing = "; ".join(f"{name}: {why}" for name, why in record.missing.items())
        detail = record.error or "; ".join([*([f"missing {missing}"] if missing else []), *_scores_told(record)])
        status = (str(record.status), STYLES[record.status])
        return Text.assemble(status, f" {record.cell} {event.cell.coordinates}", f": {detail}" if detail else "")
    if isinstance(event, Decided):
        return Text("\n").join(Text(f"search {event.search}: {line}") for line in event.lines)
    if isinstance(event, CellSkipped):
        return Text(f"skipped, somebody else works on it: {event.what}")
    return Text(_training_line(event.trajectory, event.event) if isinstance(event, TrainingProgressed) else "")


def _scores_told(record: Record) -> list[str]:
    found = [text for text in map(headline_text, record.scores.values()) if text]
    more = [f"and {len(found) - TOLD} more"] if len(found) > TOLD else []
    return [", ".join([*found[:TOLD], *more])] if found else []


def _training_line(trajectory: Trajectory, event: Event) -> str:
    """Return a line with the training's name, for others may go on beside it."""
    name = trajectory.cells[-1].coordinates
    match event:
        case SnapshotWritten():
            names = [cell.coordinates for cell in trajectory.cells if cell.epoch == event.epoch]
            return f"snapshot {names[0] if names else f'of epoch {event.epoch}, {name}'}"
        case Resumed():
            notes = f"; it may differ in its last bits: {'; '.join(event.notes)}" if event.notes else ""
            over = f"; {'; '.join(event.passed_over)}" if event.passed_over else ""
            return f"training {name} goes on after step {event.step:,} of attempt {event.attempt}{notes}{over}"
        case StartedOver():
            again = f"; {event.steps:,} steps are taken again" if event.steps else ""
            return (
                f"training {name} begins at the start, what it had to go on from cannot be used: {event.reason}{again}"
            )
        case CheckpointFailed():
            return f"training {name} has no checkpoint after step {event.step:,}: {event.reason}"
        case _:
            return ""
