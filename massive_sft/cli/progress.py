"""Progress of a run: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from massive_sft.cli.views import STYLES
from massive_sft.ledger.record import Status
from massive_sft.planning.plan import Plan
from massive_sft.running import events
from massive_sft.running.events import CellRecorded, RunEvent, TrainingProgressed, TrainingStarted
from massive_sft.training.events import CheckpointFailed, Event, Resumed, SnapshotWritten, StartedOver, StepDone

WINDOW_S = 30.0  # seconds over which tokens per second are counted


class _Outlived:
    """A stream whose reader may go away, as a terminal does: that costs what is written from then on, nothing else."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with self._losing():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._losing():
            self._stream.flush()

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # from now on it leads nowhere, for this and for whoever else writes to it
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def survive_lost_output() -> Iterator[None]:
    """Let the block go on when the terminal or the pipe that this process prints to is gone: only lines are lost."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Outlived(stream)) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


class RunProgress:
    """Tells what happens in a run; a context manager. Its methods are called by one thread at a time."""

    def __init__(self, plan: Plan, console: Console):
        self._console = console
        self._training: set[str] = set()
        self._statuses: Counter[Status] = Counter()
        self._steps: deque[tuple[float, int]] = deque()
        todo = sum(not cell.is_done for cell in plan.cells)
        self._bar = Progress(
            TextColumn("{task.description}", style="bold"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console, disable=not console.is_terminal, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("cells", total=todo, detail="")

    def listen(self, event: RunEvent) -> None:
        """Take note of what happened, and print a line when it is worth one."""
        if isinstance(event, TrainingStarted):
            self._training.add(event.trajectory.id)
        elif isinstance(event, TrainingProgressed) and isinstance(event.event, StepDone):
            self._steps.append((time.monotonic(), event.event.tokens))
        elif isinstance(event, CellRecorded):
            self._statuses[event.record.status] += 1
            self._training.discard(str(event.record.trajectory))
            self._bar.advance(self._task)
        line = run_event_line(event)
        if line:
            self._bar.console.print(line, highlight=False, soft_wrap=True)
        self._bar.update(self._task, detail=self._detail())

    def say(self, text: str) -> None:
        """Print a line about the run itself."""
        self._bar.console.print(Text(text, style="dim"), highlight=False, soft_wrap=True)

    def _detail(self) -> str:
        now = time.monotonic()
        while self._steps and self._steps[0][0] < now - WINDOW_S:
            self._steps.popleft()
        span = now - self._steps[0][0] if self._steps else 0.0
        parts = [f"{len(self._training)} training"]
        parts += [f"{self._statuses[status]} {status}" for status in Status if self._statuses[status]]
        parts += [f"{sum(tokens for _, tokens in self._steps) / span:,.0f} tokens/s"] if span > 1 else []
        return ", ".join(parts)

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


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
