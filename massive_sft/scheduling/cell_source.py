"""The queue of cells as Ray Data reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata


class CellSource(Datasource):
    """The queue as a source: one read task, one row a cell, each a block of its own."""

    def __init__(self, queue: Any, group: str, size: int):
        self._arguments = queue, group, size

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        arguments = self._arguments
        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(lambda: _read(*arguments), metadata)]


def _read(queue: Any, group: str, size: int) -> Iterator[pa.Table]:
    reader = ray.get(queue.again.remote(group))
    while True:
        taken = ray.get(queue.take.remote(group, reader, size))
        if taken is None:
            return
        yield pa.table({"cell": [taken[0]], "data": [taken[1]]})
