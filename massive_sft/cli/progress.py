"""Progress of a run: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, TextIO, cast

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from massive_sft.cli.event_lines import headline_text, part_text, run_event_line
from massive_sft.cli.views import print_line
from massive_sft.cost.estimate import runs_to_train
from massive_sft.cost.time_left import TimeLeft
from massive_sft.ledger.record import Record, Status
from massive_sft.planning.plan import Plan
from massive_sft.running.events import (
    BenchmarkProgressed,
    BenchmarkScored,
    CellRecorded,
    Decided,
    RunEvent,
    ScoringStarted,
    TrainingEnded,
    TrainingProgressed,
    TrainingStarted,
)
from massive_sft.training.events import (
    Event,
    StepDone,
)

PAUSE_S = 2.0  # seconds without a step, beside three of its longest, after which a training is doing something else
STEPS = 20  # of a training, over which its speed is counted


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
    """Tells what happens in a run; a context manager. Its methods are called by one thread at a time.

    Args:
        retrain: whether trainings whose snapshots were removed are done again.
    """

    def __init__(self, plan: Plan, console: Console, retrain: bool = False):
        self._runs = {run.trajectory.id: run for run in runs_to_train(plan, retrain)}
        self._training: dict[str, _Training] = {}
        self._begun: set[str] = set()
        self._trained: set[str] = set()
        self._scoring: set[str] = set()
        self._last_score = ""
        self._statuses: Counter[Status] = Counter()
        self._began = time.monotonic()
        # Estimates of a large plan take seconds, and only the bar shows them.
        self._is_shown = console.is_terminal
        self._left = TimeLeft.of(plan, retrain) if self._is_shown else TimeLeft({}, {})
        self._bar = _Rows(self.clock, console)
        has_runs = bool(self._runs)  # a search's come later
        self._trainings = self._bar.add_task("trained", total=len(self._runs), done=0, detail="", visible=has_runs)
        self._to_score = sum(not cell.is_done for cell in plan.cells)
        self._cells = self._bar.add_task("scored", total=self._to_score, done=0, detail="")

    def listen(self, event: RunEvent) -> None:
        """Take note of what happened, and print a line when it is worth one."""
        match event:
            case TrainingStarted():
                self._training[event.trajectory.id] = _Training()
            case TrainingProgressed():
                self._note_training(event.trajectory.id, event.event)
            case TrainingEnded():
                self._end_training(event.trajectory.id)
            case ScoringStarted():
                self._scoring.add(event.cell.id)
                self._left.scoring(event.cell.id, time.monotonic())
            case BenchmarkScored():
                self._last_score = headline_text(event.scores) or self._last_score
                found = None if event.resumed else 0.0
                self._left.answered(event.cell.id, event.scores.benchmark, 1.0, time.monotonic(), found)
            case BenchmarkProgressed():
                self._last_score, part = part_text(event.part) or self._last_score, event.part
                share, found = (number / max(1, part.of) for number in (part.answered, part.found))
                self._left.answered(event.cell.id, part.scores.benchmark, share, time.monotonic(), found)
            case CellRecorded():
                self._note_record(event.record)
            case Decided():
                self._note_decision(event.plan)
        line = run_event_line(event)
        if isinstance(event, TrainingStarted):
            line.append(" (again)" if event.trajectory.id in self._begun else "")
            self._begun.add(event.trajectory.id)
        if line:
            print_line(self._bar.console, line)
        self._show()

    def _note_decision(self, plan: Plan) -> None:
        """More is to be done than was known."""
        more = {run.trajectory.id: run for run in plan.todo if run.trajectory.id not in self._runs}
        self._runs |= more
        self._bar.update(self._trainings, total=len(self._runs), visible=bool(self._runs))
        self._to_score += sum(not cell.is_done for run in more.values() for cell in run.cells)
        self._bar.update(self._cells, total=self._to_score)
        if self._is_shown:
            self._left.add(plan)

    def _note_training(self, trajectory: str, event: Event) -> None:
        run = self._runs.get(trajectory)
        if isinstance(event, StepDone):
            training = self._training.setdefault(trajectory, _Training())
            training.add(event)
            if run is not None and run.steps_per_epoch:
                steps = run.steps_per_epoch * run.trajectory.epochs
                training.share = event.step / steps
                self._left.stepped(trajectory, event.step, steps, event.seconds, time.monotonic())

    def _note_record(self, record: Record) -> None:
        self._statuses[record.status] += 1
        self._scoring.discard(record.cell)
        went_well = record.status in (Status.COMPLETE, Status.PARTIAL)
        self._left.recorded(record.cell, time.monotonic(), went_well)

    def _end_training(self, trajectory: str) -> None:
        self._training.pop(trajectory, None)
        self._left.trained(trajectory)
        if trajectory in self._runs:
            self._trained.add(trajectory)

    def say(self, text: str) -> None:
        """Print a line about the run itself."""
        print_line(self._bar.console, Text(text, style="dim"))

    def _show(self) -> None:
        trained, scored = len(self._trained), self._statuses.total()
        # A bar moves with each step, its number with each training that has ended.
        shares = sum(one.share for trajectory, one in self._training.items() if trajectory not in self._trained)
        trainings, cells = self._training_detail(), self._scoring_detail()
        self._bar.update(self._trainings, completed=trained + shares, done=trained, detail=trainings)
        self._bar.update(self._cells, completed=scored, done=scored, detail=cells)

    def clock(self) -> str:
        """Return how long the run has taken, and what it still takes; ``≈`` as long as that is a guess, as in plan."""
        now = time.monotonic()
        left, guessed = _duration(self._left.shown(now)), self._left.guessed
        told = f"≈ {left} left, {' and '.join(guessed)} not measured yet" if guessed else f"about {left} left"
        return f"{_duration(now - self._began)}, {told}"

    def _training_detail(self) -> str:
        now = [training for training in self._training.values() if training.is_stepping]
        parts = [f"{len(now)} now"]
        waiting = len(self._training) - len(now)
        parts += [f"{waiting} starting or saving"] if waiting else []
        parts += [f"loss {now[-1].loss:.3f}", f"{sum(one.speed for one in now):,.0f} tokens/s"] if now else []
        return ", ".join(parts)

    def _scoring_detail(self) -> str:
        parts = [f"{len(self._scoring)} now"]
        parts += [f"{self._statuses[status]} {status}" for status in Status if self._statuses[status]]
        return ", ".join([*parts, *([self._last_score] if self._last_score else [])])

    def __enter__(self) -> RunProgress:
        self._show()
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


class _Rows(Progress):
    """A row for trainings, one for scorings, and below them the time: beside them a terminal has no room for it."""

    def __init__(self, clock: Callable[[], str], console: Console):
        self._clock = clock
        super().__init__(
            TextColumn("{task.description}", style="bold"), BarColumn(bar_width=16),
            TextColumn("{task.fields[done]}/{task.total:.0f}", style="progress.download"),
            TextColumn("{task.fields[detail]}"),
            console=console, disable=not console.is_terminal, transient=True,
        )  # fmt: skip

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the rows, and the time made anew whenever they are drawn."""
        yield from super().get_renderables()
        yield Text.assemble(("time    ", "bold"), (self._clock(), "progress.elapsed"), no_wrap=True)


class _Training:
    """A training in hand: its last loss, and its speed over its last steps alone, whatever it waited for between.

    Attributes:
        share: of its steps that are taken; 0 where it is not known how many there are.
    """

    def __init__(self) -> None:
        self.loss, self.share = float("nan"), 0.0
        self._steps: deque[tuple[int, float]] = deque(maxlen=STEPS)
        self._heard = 0.0

    def add(self, step: StepDone) -> None:
        self.loss = step.loss
        self._steps.append((step.tokens, step.seconds))
        self._heard = time.monotonic()

    @property
    def is_stepping(self) -> bool:
        """Whether it took a step, and the next is not overdue: else it waits for a lane, loads or writes a snapshot."""
        if not self._steps:
            return False
        return time.monotonic() - self._heard < PAUSE_S + 3 * max(seconds for _, seconds in self._steps)

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return sum(tokens for tokens, _ in self._steps) / max(1e-9, sum(seconds for _, seconds in self._steps))


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
