"""A Tune trial: one training run on its way to a lane, and its cells on theirs to the scorers.

It computes nothing, so its process imports neither torch nor Ray Train.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError

from massive_sft.core.errors import Interrupted, MassiveSFTError
from massive_sft.planning.plan import CellPlan, RunPlan
from massive_sft.running.events import RunEvent, TrainingProgressed
from massive_sft.running.recorder import RecordWriter
from massive_sft.running.trial import Order, Submit, train_run
from massive_sft.scheduling.cell_queue import cell_bytes
from massive_sft.scheduling.lane_pool import Shape
from massive_sft.scheduling.relay import error_bytes
from massive_sft.training.events import Event, StepDone


class LaneFailed(MassiveSFTError):
    """A training failed in its lane; the text is what the lane said."""


class TrialsLost(MassiveSFTError):
    """The processes of trials were killed as often as they were started again: what they had to do is not done."""

    def __init__(self, trajectories: Sequence[str]):
        self.trajectories = list(trajectories)
        super().__init__(self.trajectories)

    def __str__(self) -> str:
        names = ", ".join(self.trajectories)
        return (
            f"the trials of {names} were killed again and again (out of memory on the head node?), so their cells are "
            "not all done; run the same command to go on"
        )


class TrialDeaths(tune.Callback):
    """Hears of trials whose process was killed. The copies that Tune stores hear of nothing.

    Args:
        say: told when one begins again.
        lost: called with the trajectory of one that does not.
    """

    def __init__(self, say: Callable[[str], None] = print, lost: Callable[[str], None] = print):
        self._say = say
        self._lost = lost

    def __reduce__(self) -> tuple[type[TrialDeaths], tuple[()]]:
        return TrialDeaths, ()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._say(f"the trial of {trial.config['trajectory']} was killed; it begins again")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._lost(trial.config["trajectory"])


def run_trial(
    config: dict[str, Any],
    runs: dict[str, RunPlan],
    shapes: dict[str, Shape],
    actors: tuple[Any, Any, Any],
    recorder: RecordWriter,
    retrain: bool,
) -> None:
    """One trial: have a run trained by a lane, hand each cell to the scorers as soon as it can be scored.

    Holds no CPU and no GPU.
    """
    pool, queue, relay = actors
    run, shape = runs[config["trajectory"]], shapes[config["trajectory"]]
    ordered = False

    def submit(order: Order, report: Callable[[Event], None]) -> None:
        nonlocal ordered
        ordered = True
        submit_to(pool, shape)(order, report)

    def tell(event: RunEvent) -> None:
        ask(relay.tell.remote(pickle.dumps(event)))
        if isinstance(event, TrainingProgressed) and isinstance(event.event, StepDone):
            last.update(step=event.event.step, loss=event.event.loss)

    def hand_over(cells: Sequence[CellPlan]) -> None:
        ask(queue.put.remote([cell_bytes(cell, run) for cell in cells]))

    last: dict[str, Any] = {"step": 0}
    trial = run.trajectory.id
    try:
        if ray.get(pool.begin.remote(trial)):
            train_run(run, recorder, submit, tell, hand_over, retrain)
    except Exception as error:  # noqa: BLE001 - Tune would print it and go on; it ends the run, as it does inline
        ask(relay.tell.remote(error_bytes(error)))
    finally:
        if not ordered:
            ray.get(pool.skip.remote(shape, trial))
        ray.get(pool.end.remote(trial))
    tune.report(last)


def ask(reference: Any) -> Any:
    """Return what an actor of the run answers. Raises Interrupted when it is gone: then the run is, and no training."""
    try:
        return ray.get(reference)
    except RayError as error:
        raise Interrupted("the run is gone") from error


def submit_to(pool: Any, shape: Shape) -> Submit:
    """Return a ``submit`` that has orders served by the pool's lanes."""

    def submit(order: Order, report: Callable[[Event], None]) -> None:
        ask(pool.submit.remote(shape, order.id, pickle.dumps(order)))
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

    return submit
