"""What a training gives: its summary, so far or to its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class TrainingSummary:
    """How a trajectory went, to its end or so far; equal on every rank but for ``seconds``.

    Attributes:
        diverged: by snapshot epoch, why the run had diverged by then; empty when it had not. So far: those judged.
        steps: optimizer steps done.
        first_loss, last_loss: mean loss over the first and last 5 % of steps (at least 5), nats per token.
        tokens, trainable_tokens: seen in all, without padding.
        seconds: from the first step to the end, snapshots included; of what was done before a resume, the steps.
        snapshots: folder by epoch.
        parameters, trained_parameters: numbers of weights.
        micro_batch: the final limit of a micro-batch, such as ``{"samples": 4}`` or ``{"tokens": 4096}``.
        attention: the implementation that computed it.
        kernels: ``compiled`` or ``plain``, see ``kernels.choose_kernels``.
        gradient_checkpointing: what of activations was computed again, as in ``resources``; never ``auto``.
        head: how the output layer was computed, see ``loss.SummedLoss``.
        resumed: one entry for each time that it went on from a checkpoint or began again, see
            ``checkpoints.continuity.Resumption``.
    """

    diverged: dict[int, str]
    steps: int
    first_loss: float
    last_loss: float
    tokens: int
    trainable_tokens: int
    seconds: float
    snapshots: dict[int, Path]
    parameters: int
    trained_parameters: int
    micro_batch: dict[str, int]
    attention: str
    kernels: str
    gradient_checkpointing: bool | str
    head: str
    resumed: tuple[Mapping[str, Any], ...] = ()

    @property
    def reason(self) -> str:
        """Why the whole run diverged; empty when it did not."""
        return self.diverged[max(self.diverged)]

    @property
    def status(self) -> Literal["COMPLETE", "DIVERGED"]:
        return "DIVERGED" if self.reason else "COMPLETE"


# Called on rank 0, on another thread than the training's, with an epoch whose snapshot was just written and the
# training up to its end; returns whether its cell can be scored now.
Publish = Callable[[int, TrainingSummary], bool]


def publish_nothing(epoch: int, summary: TrainingSummary) -> bool:
    """A ``Publish`` for trainings whose snapshots stay in their directory."""
    return False
