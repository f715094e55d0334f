"""Scorers: one Ray Data stream from the queue of cells to their records, over a warm pool of actors.

A Ray Data actor pool is made anew for each execution, so there is one execution a run: its single read task pulls
cells from the queue for as long as there may be more.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource, ExecutionResources, ReadTask
from ray.data.block import BlockMetadata

from massive_sft.core.errors import MassiveSFTError
from massive_sft.running.events import CellRecorded, RunEvent
from massive_sft.running.recorder import RecordWriter
from massive_sft.scheduling.node_health import STARTS
from massive_sft.scheduling.relay import error_bytes, heard
from massive_sft.scheduling.resource_split import Scorers

Row = dict[str, Any]

GROUP = "scorers"  # all of them: there is one execution


class ScorersFailed(MassiveSFTError):
    """No scorer can be started."""


DONE = pa.schema({"cell": pa.string(), "happened": pa.binary()})


class _Cells(Datasource):
    """The queue as a source: one read task, one row a cell, each a block of its own."""

    def __init__(self, queue: Any):
        self._queue = queue

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        queue = self._queue
        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(lambda: _read(queue), metadata)]


def _read(queue: Any) -> Iterator[pa.Table]:
    reader = ray.get(queue.again.remote(GROUP))
    while True:
        taken = ray.get(queue.take.remote(GROUP, reader))
        if taken is None:
            return
        yield pa.table({"cell": [taken[0]], "data": [taken[1]]})


class ScoringActor:
    """Scores and measures cells, one after another, with imports and benchmarks kept warm."""

    def __init__(self, recorder: RecordWriter, queue: Any, relay: Any, scorers: Scorers):
        if not ray.get(queue.enter.remote(GROUP, scorers.count)):
            raise ScorersFailed("no more of them is started")

        from massive_sft.running.cell import CellEvaluator

        self._queue = queue
        stopped = queue.stopped.remote()

        def progress(event: RunEvent) -> None:
            relay.tell.remote(pickle.dumps(event))  # not waited for: nothing depends on it

        self._evaluator = CellEvaluator(
            recorder, lambda: bool(ray.wait([stopped], timeout=0)[0]), scorers.gpus > 0, progress
        )
        ray.get(queue.ready.remote(GROUP))

    def __call__(self, batch: pa.Table) -> pa.Table:
        from massive_sft.running.cell import evaluate_cell

        done: list[tuple[str, bytes]] = []
        for row in batch.to_pylist():
            identity, (cell, run) = row["cell"], pickle.loads(row["data"])
            happened: list[RunEvent] = []
            if ray.get(self._queue.begin.remote(identity)):
                try:
                    evaluate_cell(cell, run, self._evaluator, happened.append)
                except Exception as error:  # noqa: BLE001 - it ends the run, as it does inline
                    done.append((identity, error_bytes(error)))
            ray.get(self._queue.end.remote(identity))
            done += [(identity, pickle.dumps(item)) for item in happened]
        return pa.table({"cell": [cell for cell, _ in done], "happened": [item for _, item in done]}, schema=DONE)


def score_stream(
    queue: Any, relay: Any, recorder: RecordWriter, scorers: Scorers, listen: Callable[[RunEvent], None]
) -> None:
    """Score the queue's cells until it is closed; each is acknowledged once its record is written.

    What happens on the way goes through ``relay``, records through the stream.

    Raises:
        ScorersFailed: the scorers' processes die while they start.
        OSError, MassiveSFTError: what a scorer met beyond a cell's own failure, as a full disk.
    """
    context = DataContext.get_current()
    context.target_max_block_size = 1  # else rows wait for a block to fill, which is at the end
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it would say is raised here
    # Without limits of its own it would count the lanes' CPUs as its to wait for.
    context.execution_options.resource_limits = ExecutionResources(
        cpu=scorers.count * scorers.cpus, gpu=scorers.count * scorers.gpus
    )
    rows = ray.data.read_datasource(_Cells(queue), override_num_blocks=1, num_cpus=0).map_batches(
        ScoringActor,
        fn_constructor_args=(recorder, queue, relay, scorers),
        batch_size=1,  # a block, which None would take as well, but Ray Data refuses None with GPUs
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=scorers.count, max_tasks_in_flight_per_actor=1),
        num_cpus=scorers.cpus,
        num_gpus=scorers.gpus,
        zero_copy_batch=True,
    )
    try:
        for row in _rows(rows):
            event = heard(row["happened"])
            listen(event)
            record = row["happened"] if isinstance(event, CellRecorded) else b""
            ray.get(queue.acknowledge.remote(row["cell"], record))
    except Exception as error:
        if ray.get(queue.state.remote())["entered"][GROUP] <= STARTS * scorers.count:
            raise
        died = f"their processes died {STARTS} times before they could take a cell; see Ray's logs of the workers"
        raise ScorersFailed(f"the scorers cannot be started: {died}") from error


def _rows(dataset: Any) -> Iterable[Row]:
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()
