"""Ray Train's trainer of a lane: it starts nothing but the workers.

All else that Ray Train starts for each would be processes on the head node, of 120 to 130 MB, for that is what they
import. So the controller is a thread of the run, and four actors are left out: the one where workers meet to report,
which a lane's never do; the one that gives back what a dead controller held; the one that deals out datasets of Ray
Data, of which a lane has none; the one that tells the autoscaler what trainings hold, for the run makes ``Claims``.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import worker_group
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.util.placement_group import PlacementGroup, remove_placement_group

from massive_sft.core.errors import MassiveSFTError

LOOK_S = 1.0  # between looks whether a lane that waits for its place is still wanted


class LaneGivenUp(MassiveSFTError):
    """A lane ends because who holds it gave it up; the text says why."""


class Place:
    """Where a lane's workers are: a placement group, another one with each start. Other threads may give it up.

    Attributes:
        group: None before the first.
        since_s: since when the newest is there, by the monotonic clock; infinite while it is waited for.
        given_up: why the lane is to end; empty where it is not.
    """

    def __init__(self) -> None:
        self.group: PlacementGroup | None = None
        self.since_s = math.inf
        self.given_up = ""

    def is_up(self, groups: Collection[str]) -> bool:
        """Return whether its newest group is among these, by their ids."""
        return self.group is not None and self.group.id.hex() in groups

    def give_up(self, reason: str) -> None:
        """Have the lane end, whatever it waits for: its workers are killed with their group, and no others start."""
        if not self.given_up:
            self.given_up = reason
            self.leave()

    def leave(self) -> None:
        """Give back what is held."""
        if self.group is not None:
            remove_placement_group(self.group)

    def check(self) -> None:
        """Raise LaneGivenUp if the lane is."""
        if self.given_up:
            self.leave()  # a group that was being made then
            raise LaneGivenUp(self.given_up)


class LaneTrainer(TorchTrainer):
    """A trainer whose controller runs in the thread that calls ``fit``.

    Args:
        loop: what the workers run.
        place: where they are.
        poll_s: between looks at them.
    """

    def __init__(self, loop: Callable[[dict[str, Any]], None], *, place: Place, poll_s: float, **arguments: Any):
        super().__init__(loop, **arguments)
        self._place, self._poll_s = place, poll_s

    def _create_default_callbacks(self) -> list[Any]:
        trainer: Any = super()  # of the second version of Train, which type checkers do not see
        callbacks = trainer._create_default_callbacks()
        left_out = PlacementGroupCleanerCallback, DatasetsCallback
        return [*(each for each in callbacks if not isinstance(each, left_out)), _NoBarrier()]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        scaling: Any = self.scaling_config
        controller = _Controller(self._place, self._poll_s, **arguments | {"scaling_policy": _Unasked(scaling)})
        asyncio.run(controller.run())
        return controller.get_result()


class _Controller(TrainController):
    def __init__(self, place: Place, poll_s: float, **arguments: Any):
        workers: Any = type("LaneWorkers", (_Workers,), {"place": place})
        self.worker_group_cls = workers
        super().__init__(**arguments)
        self._health_check_interval_s = poll_s


class _Unasked(FixedScalingPolicy):
    """As many workers as are asked for, of which the autoscaler is told by nobody but ``Claims``."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Called when Ray Train would tell it."""

    def _maybe_send_resource_request(self) -> None:
        pass


class _Workers(worker_group.WorkerGroup):
    """A group of workers that can be given up, whose controller is no actor that they could ask anything."""

    place: Place

    def _start(self) -> None:
        self.place.check()
        self.place.since_s = math.inf
        try:
            super()._start()
        except Exception:  # Ray Train forgets workers that fail once their processes are up, and their place with them
            self.place.leave()
            raise

    def _create_placement_group(self, *arguments: Any) -> _Group:
        made: Any = super()._create_placement_group(*arguments)
        self.place.group = made.placement_group
        return _Group(self.place, made.placement_group)

    def _init_train_context_on_workers(
        self, workers: list[Any], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        told = [
            worker.actor.init_train_context.remote(
                train_run_context=self._train_run_context,
                distributed_context=worker.distributed_context,
                synchronization_actor=sync_actor,
                storage_context=self._storage_context,
                worker_callbacks=self._worker_callbacks_to_propagate,
                controller_actor=sync_actor,
                **{name: values[index] for name, values in train_context_args.items()},
            )
            for index, worker in enumerate(workers)
        ]
        ray.get(told)
        self._decorate_worker_log_file_paths(workers)


class _Group(DefaultPlacementGroupHandle):
    """A placement group that is waited for until it is there or given up."""

    def __init__(self, place: Place, group: PlacementGroup):
        super().__init__(group)
        self._place = place

    def wait(self, timeout_seconds: float = math.inf) -> bool:
        until_s = time.monotonic() + timeout_seconds
        while time.monotonic() < until_s:
            self._place.check()
            if super().wait(LOOK_S):
                self._place.since_s = time.monotonic()
                return True
        return False


class _NoBarrier(WorkerGroupCallback):
    """Gives workers, for the actor where they would meet to report, one that is dead before it has a process."""

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Called right before Ray Train would start that process."""
        vars(worker_group)["SynchronizationActor"] = self

    def options(self, **options: Any) -> _NoBarrier:
        """Take what an actor's class takes."""
        return self

    def remote(self, **arguments: Any) -> Any:
        """Return the handle."""
        nobody: Any = ray.remote(num_cpus=0)(_Nobody).remote()
        ray.kill(nobody)
        return nobody


class _Nobody:
    """Whom nobody calls."""
