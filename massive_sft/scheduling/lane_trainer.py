"""Ray Train's trainer of a lane, with fewer processes on the head node, where there are as many as there are lanes."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from massive_sft.scheduling.process_group import NoBarrier


class LaneTrainer(TorchTrainer):
    """A trainer whose controller is all there is beside the workers.

    What Ray Train starts there else: the actor where workers meet to report, which a lane's never do; and a cleaner
    that gives back what a dead controller held, which ``lanes.free_groups`` does for all of them.
    """

    def _create_default_callbacks(self) -> list[Any]:
        trainer: Any = super()  # of the second version of Train, which type checkers do not see
        callbacks = trainer._create_default_callbacks()
        return [*(each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback)), NoBarrier()]
