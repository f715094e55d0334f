"""Writes snapshots beside the training: copied between two steps, then written and published while others are taken.

One is in the making at a time: the next waits for it, so that never more than one copy of the weights is held. Of all
weights each rank of the first one's node copies, writes and hashes a piece. What goes wrong with one is raised on all
ranks after the step in which it did.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from massive_sft.sweep.spec import TrainingSpec
from massive_sft.training import snapshot
from massive_sft.training.engine import Engine
from massive_sft.training.events import Event, SnapshotPublished, SnapshotWritten
from massive_sft.training.ranks import broadcast_from_rank0, from_all_ranks, group_of_a_thread, is_rank0
from massive_sft.training.snapshot import Piece, Written
from massive_sft.training.summary import Publish, TrainingSummary


@dataclass(frozen=True)
class _Coming:
    """A snapshot in the making.

    Attributes:
        end: whether it is published, once it is; on all ranks but 0 that this rank has done its part.
    """

    epoch: int
    folder: Path
    end: Future[bool]


class SnapshotWriter:
    """The snapshots of one training, on every rank, which writes its piece on a thread of its own.

    Args:
        spec: what is trained.
        engine, model: whose weights they are.
        report: called with what is written and published, by ``begin`` and ``finish`` alone.
        publish: as of ``loop.train_trajectory``; called on the thread.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        engine: Engine,
        model: nn.Module,
        report: Callable[[Event], None],
        publish: Publish,
    ):
        self._spec = spec
        self._engine = engine
        self._model = model
        self._report = report
        self._publish = publish
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snapshot")
        self._coming: _Coming | None = None
        self._group = group_of_a_thread()

    def begin(self, folder: Path, epoch: int, step: int, summary: TrainingSummary) -> None:
        """Copy the weights, and leave the rest to the thread. All ranks call it; waits for the snapshot before.

        Args:
            folder: where it ends up.
            epoch, step: after which it is.
            summary: of the training up to it.

        Raises what ``finish`` does, of the snapshot before.
        """
        self.finish()
        partial = broadcast_from_rank0(lambda: snapshot.prepare(folder))
        piece = self._own_piece(partial)
        weights = snapshot.gather(self._engine, self._model, piece)
        facts = {
            "trajectory": self._spec.trajectory,
            "epoch": epoch,
            "step": step,
            "method": self._spec.setting.method,
            "precision": self._spec.setting.precision,
        }
        end = self._threads.submit(self._make, partial, folder, weights, piece, facts, summary)
        self._coming = _Coming(epoch, folder, end)

    def _own_piece(self, partial: Path) -> Piece:
        """Return what this rank writes of a snapshot, which is nothing where the files of rank 0 may be seen late."""
        if self._spec.setting.method == "lora":
            return Piece(0 if is_rank0() else None, 1)
        nodes = from_all_ranks(socket.gethostname() if partial.is_dir() else None)
        writers = [rank for rank, node in enumerate(nodes) if node == nodes[0]][: snapshot.most_pieces(self._model)]
        own = dist.get_rank() if dist.is_initialized() else 0
        return Piece(writers.index(own) if own in writers else None, len(writers))

    def _make(
        self,
        partial: Path,
        folder: Path,
        weights: dict[str, torch.Tensor],
        piece: Piece,
        facts: Mapping[str, Any],
        summary: TrainingSummary,
    ) -> bool:
        if self._engine.device.type == "cuda":
            torch.cuda.set_device(self._engine.device)  # a thread begins with the first one
        pieces = self._write(partial, weights, piece)
        if not is_rank0():
            return False
        snapshot.complete(partial, folder, pieces, facts)
        return self._publish(facts["epoch"], summary)

    def _write(self, partial: Path, weights: dict[str, torch.Tensor], piece: Piece) -> list[Written]:
        """Write this rank's piece; return those of all, once they are written. Raises what any rank could not do."""
        written: Written | Exception | None = None
        try:
            if piece.number is not None:
                written = snapshot.write(partial, self._model, weights, piece)
        except Exception as error:  # noqa: BLE001 - the others must not wait for a rank that failed
            written = error
        weights.clear()
        pieces = from_all_ranks(written, self._group)
        for one in pieces:
            if isinstance(one, Exception):
                raise one
        return [one for one in pieces if isinstance(one, Written)]

    @property
    def has_ended(self) -> bool:
        """Whether a snapshot is written and published, or could not be, and ``finish`` has not said so; on rank 0."""
        return self._coming is not None and self._coming.end.done()

    def finish(self) -> None:
        """Wait until the snapshot in the making is published, if there is one. All ranks call it.

        Raises:
            Corrupt, OSError: it could not be written.
            Exception: what ``publish`` raised.
        """
        coming, self._coming = self._coming, None
        if coming is None:
            return
        is_published = broadcast_from_rank0(coming.end.result)
        if is_rank0():
            self._report(SnapshotWritten(coming.epoch, coming.folder))
            if is_published:
                self._report(SnapshotPublished(coming.epoch))

    def close(self) -> None:
        """End the thread, after the snapshot that it has in hand; what becomes of that is not told."""
        if self._coming is not None:
            wait_for([self._coming.end])
        self._threads.shutdown()
