"""Progress of a run: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter, deque
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from massive_sft.ledger.record import Status
from massive_sft.plan import Plan
from massive_sft.sft.events import StepDone
from massive_sft.show import happening_line
from massive_sft.trial import Began, Happening, Progressed, Recorded

WINDOW = 30.0  # seconds over which tokens per second are counted


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

    def listen(self, happening: Happening) -> None:
        """Take note of what happened, and print a line when it is worth one."""
        if isinstance(happening, Began):
            self._training.add(happening.trajectory.id)
        elif isinstance(happening, Progressed) and isinstance(happening.event, StepDone):
            self._steps.append((time.monotonic(), happening.event.tokens))
        elif isinstance(happening, Recorded):
            self._statuses[happening.record.status] += 1
            self._training.discard(str(happening.record.trajectory))
            self._bar.advance(self._task)
        line = happening_line(happening)
        if line:
            self._bar.console.print(line, highlight=False, soft_wrap=True)
        self._bar.update(self._task, detail=self._detail())

    def say(self, text: str) -> None:
        """Print a line about the run itself."""
        self._bar.console.print(Text(text, style="dim"), highlight=False, soft_wrap=True)

    def _detail(self) -> str:
        now = time.monotonic()
        while self._steps and self._steps[0][0] < now - WINDOW:
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
