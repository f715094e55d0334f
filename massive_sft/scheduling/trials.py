"""A Tune trial: one training run on its way to a lane, and its cells on theirs to the scorers.

It computes nothing, and on the head node there is a process for as many trials as lanes. So that imports nothing of
torch, nor of Tune and Train, which bring pandas and pyarrow.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from massive_sft.core.errors import Interrupted, MassiveSFTError
from massive_sft.planning.plan import CellPlan, RunPlan
from massive_sft.running.events import CellRecorded, RunEvent, TrainingProgressed
from massive_sft.running.recorder import RecordWriter
from massive_sft.running.trial import Order, train_runs
from massive_sft.scheduling.cell_queue import cell_bytes
from massive_sft.scheduling.nodes import Shape
from massive_sft.scheduling.orders import Message
from massive_sft.scheduling.relay import error_bytes, heard
from massive_sft.training.events import Event, StepDone

# A trial holds no CPU: it would wait forever once lanes hold them all. It lives where the loss of a node, which lanes
# and scorers survive, does not reach it.
PLACE = {"memory": float(1 << 20), "node:__internal_head__": 1e-4}


class LaneFailed(MassiveSFTError):
    """A training failed in its lane; the text is what the lane said."""


@dataclass(frozen=True)
class Setup:
    """What is the same for all trials of a run.

    Attributes:
        pool, queue, relay: handles of the run's actors.
        recorder: makes the records of what failed.
        retrain: as for ``running.trial.train_run``.
        waits: whether a trial waits for the scores, and reports them to Tune, by epoch.
    """

    pool: Any
    queue: Any
    relay: Any
    recorder: RecordWriter
    retrain: bool
    waits: bool


class TrialProcess:
    """The process of a trial, and of others after it, with those methods of ``ray.tune.Trainable`` that Tune calls.

    It holds no CPU and no GPU. What it has to do it gets from the pool.

    Attributes:
        setup: a reference to the ``Setup``, set by the class that Tune is given.
    """

    setup: Any

    def __init__(self, config: dict[str, Any], storage: object = None):
        self.reset(config)

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> Any:
        """Return what Tune reserves for it; asked in the run's process."""
        from ray.tune.execution.placement_groups import resource_dict_to_pg_factory

        return resource_dict_to_pg_factory(PLACE)

    def reset(self, config: dict[str, Any], storage: object = None) -> bool:
        """Get ready for another trial."""
        self._results = _run_trial(config["trajectory"], ray.get(self.setup))
        return True

    def train(self) -> dict[str, Any]:
        """Go on until there is something to tell Tune; return it."""
        return next(self._results)

    def get_auto_filled_metrics(self, debug_metrics_only: bool = False) -> dict[str, Any]:
        """Return what Tune shows of a trial before its first result."""
        return {}

    def stop(self) -> None:
        """End; there is nothing to give back."""


def nothing(what: object) -> None:
    """What a trial gets in place of something of Tune's."""


def _run_trial(trial: str, setup: Setup) -> Iterator[dict[str, Any]]:
    """Have a run trained by a lane, each cell handed to the scorers as soon as it can be scored; yield Tune's results.

    The last one is the last step.
    """
    last: dict[str, Any] = {"step": 0}
    with suppress(Interrupted):  # the run is gone: it says why, and nobody hears a trial any more
        assigned = ask(setup.pool.take_up.remote(trial))
        if assigned is not None:
            run, shape, priority = pickle.loads(assigned)
            trained = _Trial(run, shape, priority, setup)
            _train(trained)
            for data in ask(setup.queue.outcomes.remote(trained.handed)) if setup.waits else ():
                yield _scores(heard(data))
            last = trained.last
    yield last | {"done": True}


def _train(trial: _Trial) -> None:
    setup = trial.setup
    try:
        runs = (trial.run, *trial.run.grouped_with)
        train_runs(runs, setup.recorder, trial.submit, trial.tell, trial.hand_over, setup.retrain)
    except Exception as error:  # noqa: BLE001 - Tune would print it and go on; it ends the run, as it does inline
        ask(setup.relay.tell.remote(error_bytes(error)))
    finally:
        if not trial.ordered:
            ask(setup.pool.skip.remote(trial.shape, trial.run.trajectory.id))
        ask(setup.pool.end.remote(trial.run.trajectory.id))


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
    setup: Setup
    ordered: bool = False
    handed: list[str] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=lambda: {"step": 0})

    def submit(self, order: Order, report: Callable[[int, Event], None]) -> Sequence[Exception | None]:
        """Have an order served by the pool's lanes, as ``running.trial.SubmitAll``."""
        pool = self.setup.pool
        self.ordered = True
        ask(pool.submit.remote(self.shape, order.id, pickle.dumps(order), self.priority))
        while True:
            for message in ask(pool.messages.remote(order.id)):
                if message.kind == "event":
                    report(*pickle.loads(message.content))
                    continue
                errors = _errors(message, 1 + len(order.grouped_with))
                if not order.grouped_with and errors[0] is not None:
                    raise errors[0]
                return errors

    def tell(self, event: RunEvent) -> None:
        """Tell the run what happened."""
        ask(self.setup.relay.tell.remote(pickle.dumps(event)))
        if isinstance(event, TrainingProgressed) and isinstance(event.event, StepDone):
            self.last = {"step": event.event.step, "loss": event.event.loss}

    def hand_over(self, run: RunPlan, cells: Sequence[CellPlan]) -> None:
        """Queue cells of a run for the scorers."""
        ask(self.setup.queue.put.remote([cell_bytes(cell, run) for cell in cells], self.priority))
        self.handed += [cell.cell.id for cell in cells]


def _errors(message: Message, orders: int) -> list[Exception | None]:
    """Return what each of the orders that were served together raises in its trial, by the message that ends them."""
    if message.kind == "failed":
        return [LaneFailed(message.content)] * orders
    if message.content is None:
        return [Interrupted("the run ends")] * orders
    each = pickle.loads(message.content)
    return [
        Interrupted("the run ends") if stopped else LaneFailed(reason) if reason else None for reason, stopped in each
    ]


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
