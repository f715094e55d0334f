"""Lanes: warm Ray Train worker groups that train one trajectory after another.

Starting a group of workers (processes, imports, process group) takes half a minute, training a small trajectory less
than a second, so a lane is started once and fed through the ``LanePool``.
"""

from __future__ import annotations

import pickle
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import PlacementGroupID
from ray.core.generated import gcs_pb2
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.placement_group import (
    PlacementGroup,
    remove_placement_group,
)

from massive_sft.core.errors import Interrupted, MassiveSFTError, TrainAgain
from massive_sft.running.trial import Order
from massive_sft.scheduling.nodes import Shape
from massive_sft.scheduling.orders import Message
from massive_sft.scheduling.process_group import ProcessGroupConfig
from massive_sft.sweep.spec import Layout
from massive_sft.training.events import CheckpointWritten, Event, Resumed, StepDone
from massive_sft.training.ranks import all_ranks, broadcast_from_rank0, is_rank0

POLL_S = 0.2  # seconds between looks at what could be started
NODE = "ray.io/node-id"  # label of a node


def shape_of(layout: Layout, cpus_per_worker: float) -> Shape:
    """Return the shape of the lanes that serve a layout. A GPU's worker holds one CPU beside it."""
    if layout.gpus:
        return Shape(layout.workers, 1.0, layout.gpus / layout.workers)
    return Shape(layout.workers, cpus_per_worker, 0.0)


def lane_loop(config: dict[str, Any]) -> None:
    """Serve orders until there are no more: what Ray Train runs in every worker of a lane.

    Rank 0 asks the pool and broadcasts, so that all ranks train the same. A single worker survives a failing order;
    of several, those still in a collective would wait forever, so the group is restarted. There an error that is none
    of ours may be the loss of another worker, so the order is tried again. So it is where one ran out of memory.
    """
    pool, lane, shape = config["pool"], config["lane"], config["shape"]
    rank = ray.train.get_context().get_world_rank()
    serve = _server(pool, lane)
    ray.get(pool.ready.remote(lane, rank))
    all_ranks(True)  # nobody takes an order before all can train it
    while True:
        data = broadcast_from_rank0(lambda: ray.get(pool.next.remote(lane, shape)))
        if data is None:
            return
        order: Order = pickle.loads(data)
        try:
            outcome = serve(order)
        except TrainAgain:
            ray.get(pool.again.remote(lane))
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if shape.workers == 1 or isinstance(error, MassiveSFTError):
                ray.get(pool.tell.remote(lane, Message("failed", reason)))
            else:
                ray.get(pool.blame.remote(lane, reason))
            if shape.workers > 1:
                raise
        else:
            if rank == 0:
                ray.get(pool.tell.remote(lane, outcome))


def _server(pool: Any, lane: str) -> Callable[[Order], Message]:
    """Return what trains an order, tells the pool of it as it goes, and returns how it ended."""
    from massive_sft.ledger.store import Ledger
    from massive_sft.running.training import train

    def report(event: Event) -> None:
        step = event.step if isinstance(event, StepDone) else 0
        checkpoint = event.step if isinstance(event, CheckpointWritten | Resumed) else 0
        pool.tell.remote(lane, Message("event", pickle.dumps(event), step, checkpoint))

    def serve(order: Order) -> Message:
        told = [pool.told_to_stop.remote(lane)] if is_rank0() else []  # who else asks would only wait in the pool
        try:
            train(
                order.run,
                Ledger.open(order.root),
                order.attempt,
                report,
                stop=lambda: bool(ray.wait(told, timeout=0)[0]),
            )
        except Interrupted:
            return Message("stopped")
        return Message("done")

    return serve


@dataclass
class _Lane:
    name: str
    shape: Shape
    not_on: frozenset[str] = frozenset()
    error: str = ""
    thread: threading.Thread = field(default_factory=threading.Thread)


@dataclass
class Lanes:
    """Starts lanes while resources are free, the largest waiting shape first.

    Attributes:
        pool: the ``LanePool``'s handle.
        capacity: CPUs and GPUs that the lanes may hold together.
        say: told of starts and losses.
    """

    pool: Any
    capacity: Mapping[str, float]
    say: Callable[[str], None]
    _lanes: dict[str, _Lane] = field(default_factory=dict)
    _started: Counter[Shape] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)

    def serve(self) -> None:
        """Return when all expected orders are served and the lanes have ended; after ``stop`` once none is in hand."""
        while True:
            self._reap(ray.get(self.pool.state.remote()))
            state = ray.get(self.pool.state.remote())  # what a lost lane had is queued again
            if self._stop.is_set():
                if not state["held"]:
                    return
            elif not self._lanes and all(n <= 0 for n in (*state["expected"].values(), *state["queued"].values())):
                return
            else:
                self._start_lanes(_positive(state["queued"]), _positive(state["expected"]), state)
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Start no more lanes."""
        self._stop.set()

    def threads(self, names: Collection[str]) -> list[threading.Thread]:
        """Return the threads of these lanes, which end when they do."""
        return [lane.thread for lane in list(self._lanes.values()) if lane.name in names]

    def holders(self) -> list[str]:
        """Return the names of the lanes that are up."""
        return sorted(self._lanes)

    def _reap(self, state: Mapping[str, Any]) -> None:
        for lane in [lane for lane in self._lanes.values() if not lane.thread.is_alive()]:
            del self._lanes[lane.name]
            lane.error = state["refused"].get(lane.name, lane.error)
            if not lane.error:
                ray.get(self.pool.ended.remote(lane.name))
                continue
            self.say(f"lane {lane.name} is lost: {lane.error}")
            free_groups()
            ray.get(self.pool.lost.remote(lane.name, lane.shape, lane.error))

    def _start_lanes(
        self, queued: Mapping[Shape, int], expected: Mapping[Shape, int], state: Mapping[str, Any]
    ) -> None:
        """Start what fits. A shape without a lane and without room reserves what smaller lanes give back.

        While nothing starves, a lane of each shape that is only expected is started too: its trials take a while to
        begin, and so does the lane.
        """
        starved: Shape | None = None
        for shape in sorted(queued, key=_size, reverse=True):
            lanes = [lane for lane in self._lanes.values() if lane.shape == shape]
            waiting = sum(lane.name not in state["held"] for lane in lanes)
            for _ in range(queued[shape] - waiting if starved is None else 0):
                if not self._fits(shape):
                    break
                lanes.append(self._start(shape, state["unfit"].get(shape, set())))
            if not lanes and starved is None:
                starved = shape
        if starved is None:
            for shape in sorted(expected, key=_size, reverse=True):
                if all(lane.shape != shape for lane in self._lanes.values()) and self._fits(shape):
                    self._start(shape, state["unfit"].get(shape, set()))
        leaving = [lane.name for lane in self._lanes.values() if starved and _size(lane.shape) < _size(starved)]
        ray.get([self.pool.starve.remote(starved is not None), self.pool.leave.remote(leaving)])

    def _fits(self, shape: Shape) -> bool:
        return all(
            sum(lane.shape.needs()[name] for lane in self._lanes.values()) + needed <= self.capacity.get(name, 0) + 1e-6
            for name, needed in shape.needs().items()
        )

    def _start(self, shape: Shape, unfit: Collection[str]) -> _Lane:
        self._started[shape] += 1
        lane = _Lane(f"{shape} #{self._started[shape]}", shape, frozenset(unfit))
        lane.thread = threading.Thread(target=self._hold, args=(lane,), name=lane.name, daemon=True)
        self._lanes[lane.name] = lane
        self.say(f"lane {lane.name} starts")
        lane.thread.start()
        return lane

    def _hold(self, lane: _Lane) -> None:
        """Hold one lane's worker group from its start to its end."""
        resources = {"CPU": lane.shape.cpus, **({"GPU": lane.shape.gpus} if lane.shape.gpus else {})}
        group: Any = ProcessGroupConfig(self.pool, lane.name, lane.shape)
        # Of the second version of Train, whose settings type checkers do not see.
        scaling: dict[str, Any] = {}
        if lane.not_on:
            scaling["label_selector"] = {NODE: f"!in({','.join(sorted(lane.not_on))})"}
        with tempfile.TemporaryDirectory(prefix="massive-sft-lane-") as folder:
            trainer = TorchTrainer(
                lane_loop,
                train_loop_config={"pool": self.pool, "lane": lane.name, "shape": lane.shape},
                torch_config=group,
                scaling_config=ScalingConfig(
                    num_workers=lane.shape.workers,
                    use_gpu=lane.shape.gpus > 0,
                    resources_per_worker=resources,
                    **scaling,
                ),
                # The pool counts restarts, for it knows what came of them; and a place may be waited for at any length.
                run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=-1)),
            )
            try:
                trainer.fit()
            except Exception as error:  # noqa: BLE001 - a thread's exception would be lost; the pool must know
                lines = str(error).strip().splitlines()
                lane.error = f"{type(error).__name__}: {lines[0] if lines else ''}"


def join(threads: Sequence[threading.Thread], seconds: float) -> None:
    """Wait for the threads' ends, for so long at most altogether."""
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def free_groups() -> None:
    """Give back the placement groups of this job whose makers are dead: those of lost lanes, which outlive them.

    Train has a process for this, but it asks the dashboard, which a local Ray and many a cluster do not have. Who made
    a group, only private parts of Ray tell.
    """
    job = ray.get_runtime_context().get_job_id()
    accessor: Any = ray._private.state.state._connect_and_get_accessor()
    table: Any = vars(gcs_pb2)["PlacementGroupTableData"]
    for data in accessor.get_placement_group_table():
        group = table.FromString(data)
        is_ours = group.creator_job_id.hex() == job and group.state != table.REMOVED
        by_an_actor = bool(group.creator_actor_id.strip(b"\xff"))  # not by the driver, as those of trials
        if is_ours and by_an_actor and group.creator_actor_dead:
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))


def _positive(counts: Mapping[Shape, int]) -> dict[Shape, int]:
    return {shape: count for shape, count in counts.items() if count > 0}


def _size(shape: Shape) -> tuple[float, float]:
    return shape.workers * shape.gpus, shape.workers * shape.cpus
