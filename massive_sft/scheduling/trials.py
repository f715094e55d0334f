"""A Tune trial: one training run on its way to a lane, and its cells on theirs to the scorers.

It computes nothing, so its process imports neither torch nor Ray Train.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError

from massive_sft.core.errors import Interrupted, MassiveSFTError
from massive_sft.planning.plan import CellPlan, RunPlan
from massive_sft.running.events import CellRecorded, RunEvent, TrainingProgressed
from massive_sft.running.recorder import RecordWriter
from massive_sft.running.trial import Order, train_run
from massive_sft.scheduling.cell_queue import cell_bytes
from massive_sft.scheduling.nodes import Shape
from massive_sft.scheduling.relay import error_bytes, heard
from massive_sft.training.events import Event, StepDone


class LaneFailed(MassiveSFTError):
    """A training failed in its lane; the text is what the lane said."""


def run_trial(
    config: dict[str, Any], actors: tuple[Any, Any, Any], recorder: RecordWriter, retrain: bool, waits: bool
) -> None:
    """One trial: have a run trained by a lane, hand each cell to the scorers as soon as it can be scored.

    Holds no CPU and no GPU. What it has to do it gets from the pool.

    Args:
        waits: whether to wait for the scores, and report them to Tune, by epoch.
    """
    with suppress(Interrupted):  # the run is gone: it says why, and nobody hears a trial any more
        _do_trial(config["trajectory"], actors, recorder, retrain, waits)


def _do_trial(trial: str, actors: tuple[Any, Any, Any], recorder: RecordWriter, retrain: bool, waits: bool) -> None:
    pool, queue, relay = actors
    last: dict[str, Any] = {"step": 0}
    assigned = ask(pool.take_up.remote(trial))
    if assigned is not None:
        run, shape, priority = pickle.loads(assigned)
        trained = _Trial(run, shape, priority, actors)
        try:
            train_run(run, recorder, trained.submit, trained.tell, trained.hand_over, retrain)
        except Exception as error:  # noqa: BLE001 - Tune would print it and go on; it ends the run, as it does inline
            ask(relay.tell.remote(error_bytes(error)))
        finally:
            if not trained.ordered:
                ask(pool.skip.remote(shape, trial))
            ask(pool.end.remote(trial))
        for data in ask(queue.outcomes.remote(trained.handed)) if waits else ():
            tune.report(_scores(heard(data)))
        last = trained.last
    tune.report(last)


@dataclass
class _Trial:
    """What a trial does for its run.

    Attributes:
        ordered: whether a lane was asked for.
        handed: ids of the cells that scorers have or had.
        last: step and loss of the last step.
    """

    run: RunPlan
    shape: Shape
    priority: float
    actors: tuple[Any, Any, Any]
    ordered: bool = False
    handed: list[str] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=lambda: {"step": 0})

    def submit(self, order: Order, report: Callable[[Event], None]) -> None:
        """Have an order served by the pool's lanes."""
        pool, _, _ = self.actors
        self.ordered = True
        ask(pool.submit.remote(self.shape, order.id, pickle.dumps(order), self.priority))
        while True:
            for message in ask(pool.messages.remote(order.id)):
                if message.kind == "event":
                    report(pickle.loads(message.content))
                elif message.kind == "failed":
                    raise LaneFailed(message.content)
                elif message.kind == "stopped":
                    raise Interrupted("the run ends")
                else:
                    return

    def tell(self, event: RunEvent) -> None:
        """Tell the run what happened."""
        _, _, relay = self.actors
        ask(relay.tell.remote(pickle.dumps(event)))
        if isinstance(event, TrainingProgressed) and isinstance(event.event, StepDone):
            self.last = {"step": event.event.step, "loss": event.event.loss}

    def hand_over(self, cells: Sequence[CellPlan]) -> None:
        """Queue cells for the scorers."""
        _, queue, _ = self.actors
        ask(queue.put.remote([cell_bytes(cell, self.run) for cell in cells], self.priority))
        self.handed += [cell.cell.id for cell in cells]


def _scores(event: RunEvent) -> dict[str, Any]:
    """Return what Tune is told of a cell that has its record: its epoch, status, and scores by benchmark and task."""
    assert isinstance(event, CellRecorded)
    scores = {
        one.benchmark: {task: {name: score.value for name, score in of.items()} for task, of in one.tasks.items()}
        for one in event.record.scores.values()
    }
    return {"epoch": event.cell.epoch, "status": event.record.status.value, "scores": scores}


def ask(reference: Any) -> Any:
    """Return what an actor of the run answers. Raises Interrupted when it is gone: then the run is, and no training."""
    try:
        return ray.get(reference)
    except RayError as error:
        raise Interrupted("the run is gone") from error
