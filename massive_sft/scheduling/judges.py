"""Verdicts on what scorers have models write: asked by one process of the run that holds no GPU, cell by cell."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import ray
from ray.exceptions import RayActorError

from massive_sft.core.errors import ExitCode, MassiveSFTError
from massive_sft.core.imports import heavy_imports
from massive_sft.running.events import AnswersWritten, CellRecorded, RunEvent
from massive_sft.running.recorder import RecordWriter
from massive_sft.scheduling.relay import error_bytes, heard

RESTARTS = 3  # of the process that asks; its calls are kept, so that each goes on where the one before ended


class JudgesLost(MassiveSFTError):
    """The process that asks judges died as often as it may."""

    exit_code = ExitCode.TRY_AGAIN


@ray.remote(num_cpus=0, max_restarts=RESTARTS, max_task_retries=RESTARTS)
class JudgingActor:
    """Asks judges of one cell after another, so that their pace and number of calls at a time hold for the run."""

    def __init__(self, recorder: RecordWriter, queue: Any, relay: Any):
        with heavy_imports():
            from massive_sft.running.cell import CellEvaluator

        stopped = queue.stopped.remote()
        self._queue = queue
        self._evaluator = CellEvaluator(
            recorder,
            lambda: bool(ray.wait([stopped], timeout=0)[0]),
            progress=lambda event: relay.tell.remote(pickle.dumps(event)),
        )

    def judge(self, data: bytes) -> list[bytes]:
        """Take a cell, told of by ``AnswersWritten``, to its record; return what happened, as ``heard`` takes it."""
        from massive_sft.running.cell import judge_cell

        event: AnswersWritten = pickle.loads(data)
        happened: list[RunEvent] = []
        try:
            if ray.get(self._queue.begin.remote(event.plan.cell.id)):
                judge_cell(event.plan, event.weights, self._evaluator, happened.append)
        except Exception as error:  # noqa: BLE001 - it ends the run, as it does inline
            return [error_bytes(error)]
        finally:
            ray.get(self._queue.end.remote(event.plan.cell.id))
        return [pickle.dumps(item) for item in happened]


@dataclass
class Judges:
    """Cells whose answers wait for verdicts; the process that asks for them is started with the first.

    Attributes:
        queue, relay: handles of the ``CellQueue`` and the ``Relay``.
        recorder: makes the records.
        listen: told what happens.
    """

    queue: Any
    relay: Any
    recorder: RecordWriter
    listen: Callable[[RunEvent], None]
    _waiting: SimpleQueue[AnswersWritten | None] = field(default_factory=SimpleQueue)

    def take(self, event: AnswersWritten) -> None:
        """Take a cell over from its scorer, which is free for the next."""
        ray.get(self.queue.hand_on.remote(event.plan.cell.id))
        self._waiting.put(event)

    def close(self) -> None:
        """Say that no more come."""
        self._waiting.put(None)

    def serve(self) -> None:
        """See each cell to its record, until ``close``. Raises what ends the run, JudgesLost."""
        process: Any = JudgingActor
        actor = None
        while (event := self._waiting.get()) is not None:
            actor = actor or process.remote(self.recorder, self.queue, self.relay)
            try:
                happened = ray.get(actor.judge.remote(pickle.dumps(event)))
            except RayActorError as error:
                why = "the process that asks judges died again and again; see Ray's logs of the workers"
                raise JudgesLost(f"{why}. What is judged stays: run the same command to go on") from error
            for data in happened:
                told = heard(data)
                self.listen(told)
                record = data if isinstance(told, CellRecorded) else b""
                ray.get(self.queue.acknowledge.remote(event.plan.cell.id, record))
