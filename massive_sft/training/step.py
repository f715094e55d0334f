"""One optimizer step: the gradients of its micro-batches, the sum over the ranks, the update."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path

import numpy as np
import torch

from massive_sft.core.errors import TrainAgain
from massive_sft.data.samples import Samples
from massive_sft.models.out_of_memory import is_out_of_memory
from massive_sft.sweep.spec import TrainingSpec
from massive_sft.training import micro_batch, packing
from massive_sft.training.batches import Batch, steps_per_epoch
from massive_sft.training.engine import Engine
from massive_sft.training.events import StepDone
from massive_sft.training.ranks import sum_over_ranks
from massive_sft.training.schedule import learning_rate


class Decision(IntEnum):
    """What happens after a step. Rank 0 decides; the others learn of it with the sum of the loss."""

    GO_ON = 0
    CHECKPOINT = 1
    STOP = 2
    SNAPSHOT = 3  # the one in the making has come to its end


class StepRunner:
    """Takes the optimizer steps of one training on this rank.

    Args:
        spec, samples: what is trained.
        engine: whose weights are updated.
        rank: of this process.
        limit: the micro-batch to begin with.
        borders: lengths that no micro-batch has samples on both sides of (``configuration.length_borders``).
        directory: of the attempt, where a smaller micro-batch is left for who goes on.

    Attributes:
        limit: the micro-batch now; running out of memory halves it.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        samples: Samples,
        engine: Engine,
        rank: int,
        limit: packing.Limit,
        borders: Sequence[int],
        directory: Path,
    ):
        self.limit = limit
        self._spec = spec
        self._samples = samples
        self._engine = engine
        self._rank = rank
        self._borders = borders
        self._directory = directory
        self._lengths, self._targets = samples.lengths, samples.trainable_lengths
        self._horizon_steps = spec.horizon * steps_per_epoch(len(samples), spec.setting.batch)

    def run(self, batch: Batch, decide: Callable[[], Decision]) -> tuple[StepDone, Decision]:
        """Take a step. A loss that is not finite makes no update.

        Args:
            batch: of all ranks.
            decide: asked on rank 0 what comes after the step.

        Returns:
            The step, and what was decided; equal on all ranks but for ``seconds``.

        Raises:
            OutOfMemory: when the smallest micro-batch does not fit.
            TrainAgain: on a rank that ran out of memory among several.
        """
        began = time.perf_counter()
        setting = self._spec.setting
        targets = int(self._targets[batch.indices].sum())
        lr = learning_rate(self._spec.schedule, setting.lr, batch.step, self._horizon_steps, setting.warmup_steps)
        summed = self._accumulate(batch, targets)
        decision = float(decide() if self._rank == 0 else 0)
        total, decision = sum_over_ranks(torch.stack([summed, summed.new_tensor(decision)]))
        loss = total / targets
        done = StepDone(
            step=batch.step + 1,
            epoch=batch.epoch,
            loss=loss,
            lr=lr,
            grad_norm=self._engine.step(lr) if math.isfinite(loss) else math.nan,
            tokens=int(self._lengths[batch.indices].sum()),
            trainable_tokens=targets,
            seconds=time.perf_counter() - began,
        )
        return done, Decision(int(decision))

    def _accumulate(self, batch: Batch, targets: int) -> torch.Tensor:
        """Gradients of one batch; a micro-batch that does not fit is halved and the batch begun again."""
        while True:
            micro_batches = self._micro_batches(batch.indices)
            try:
                return self._engine.accumulate(micro_batches, targets)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                what = f"out of memory at step {batch.step + 1} with a micro-batch of {micro_batch.as_dict(self.limit)}"
                smaller = micro_batch.halved_limit(self.limit, self._samples, what)
                micro_batch.write_limit(self._directory, smaller)
                if self._engine.ranks > 1:
                    raise TrainAgain(what) from error
            # Outside the handler, so that the broken pass's tensors are no longer held by its traceback.
            self.limit = smaller
            self._engine.discard_gradients()

    def _micro_batches(self, indices: np.ndarray) -> list[packing.MicroBatch]:
        packed = self._spec.layout.packing
        plan = packing.plan_step(indices, self._lengths, self._engine.ranks, self.limit, packed, self._borders)
        return [packing.collate(self._samples, members, packed) for members in plan[self._rank]]
