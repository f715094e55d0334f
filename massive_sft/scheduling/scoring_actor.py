"""A scorer: the process of a Ray Data pool that takes cells to their records."""

from __future__ import annotations

import pickle
from typing import Any

import pyarrow as pa
import ray

from massive_sft.core.errors import MassiveSFTError
from massive_sft.core.files import explain_os_error
from massive_sft.core.imports import heavy_imports
from massive_sft.ledger.folder_cache import is_machine_full
from massive_sft.ledger.marker import why_unseen
from massive_sft.planning.plan import CellPlan, RunPlan
from massive_sft.running.events import RunEvent
from massive_sft.running.recorder import RecordWriter
from massive_sft.scheduling.relay import error_bytes

DONE = pa.schema({"cell": pa.string(), "happened": pa.binary()})


class ScorersFailed(MassiveSFTError):
    """No scorer can be started."""


class MachineUnfit(MassiveSFTError):
    """A scorer's machine cannot serve: a disk of it is full, or it does not see the ledger; the text says which."""


class ScoringActor:
    """Scores and measures cells, one after another, with imports, benchmarks and the model kept warm."""

    def __init__(self, recorder: RecordWriter, queue: Any, relay: Any, group: str, size: int, gpu: bool, ledger: str):
        if not ray.get(queue.enter.remote(group, size)):
            raise ScorersFailed("no more of them is started")

        with heavy_imports():
            from massive_sft.models.warm_model import WarmModel
            from massive_sft.running.cell import CellEvaluator
            from massive_sft.running.read_ahead import ReadAhead

        self._queue, self._root, self._ledger = queue, recorder.ledger.storage, ledger
        self._id = ray.get_runtime_context().get_actor_id()
        stopped = queue.stopped.remote()

        def progress(event: RunEvent) -> None:
            relay.tell.remote(pickle.dumps(event))  # not waited for: nothing depends on it

        def upcoming() -> tuple[CellPlan, RunPlan | None] | None:
            data = ray.get(queue.upcoming.remote(group))
            return None if data is None else pickle.loads(data)

        warm = WarmModel()
        ahead = ReadAhead(upcoming, warm)
        self._evaluator = CellEvaluator(
            recorder, lambda: bool(ray.wait([stopped], timeout=0)[0]), gpu, progress, warm, ahead.open, unjudged={}
        )
        ray.get(queue.ready.remote(group))

    def __call__(self, batch: pa.Table) -> pa.Table:
        from massive_sft.running.cell import evaluate_cell

        done: list[tuple[str, bytes]] = []
        for row in batch.to_pylist():
            identity, (cell, run) = row["cell"], pickle.loads(row["data"])
            happened: list[RunEvent] = []
            if ray.get(self._queue.begin.remote(identity, self._id)):
                try:
                    self._require_ledger()
                    evaluate_cell(cell, run, self._evaluator, happened.append)
                    self._require_ledger()  # else nobody sees what was written of the cell
                except Exception as error:  # noqa: BLE001 - it ends the run, as it does inline
                    if isinstance(error, OSError) and is_machine_full(error, self._root):
                        error = MachineUnfit(explain_os_error(error))  # which costs this machine's scorers alone
                    done.append((identity, error_bytes(error)))
            ray.get(self._queue.end.remote(identity))
            done += [(identity, pickle.dumps(item)) for item in happened]
        return pa.table({"cell": [cell for cell, _ in done], "happened": [item for _, item in done]}, schema=DONE)

    def _require_ledger(self) -> None:
        """Raise MachineUnfit where this machine does not see the ledger."""
        if unseen := why_unseen(self._root, self._ledger):
            raise MachineUnfit(unseen)
