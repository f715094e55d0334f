"""Lanes: warm Ray Train worker groups that train one trajectory after another.

Starting a group of workers (processes, imports, process group) takes half a minute, training a small trajectory less
than a second, so a lane is started once and fed through the ``LanePool``.
"""

from __future__ import annotations

import math
import pickle
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import PlacementGroupID
from ray.core.generated import gcs_pb2
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.util.placement_group import (
    PlacementGroup,
    remove_placement_group,
)

from massive_sft.core.errors import Interrupted, MassiveSFTError, TrainAgain
from massive_sft.running.trial import Order
from massive_sft.scheduling.cluster import kill_actor
from massive_sft.scheduling.lane_trainer import LaneTrainer
from massive_sft.scheduling.live_nodes import NODE
from massive_sft.scheduling.node_health import STARTS
from massive_sft.scheduling.nodes import Shape
from massive_sft.scheduling.orders import Message
from massive_sft.scheduling.process_group import ProcessGroupConfig
from massive_sft.scheduling.situation import Lane
from massive_sft.training.events import CheckpointWritten, Event, Resumed, StepDone
from massive_sft.training.ranks import all_ranks, broadcast_from_rank0, is_rank0

UP_S = 600.0  # that a lane's processes may take to come up, before they import anything, once it has its place
LOOK_S = 10.0  # between looks for those that do not


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
        except Exception as error:  # whatever a training raises fails its order, and never the lane
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
    from massive_sft.models.kept_base import KeptBase
    from massive_sft.running.training import train

    bases = KeptBase()

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
                bases=bases,
            )
        except Interrupted:
            return Message("stopped")
        return Message("done")

    return serve


@dataclass
class _Lane:
    """A lane that is held, and since when (by the monotonic clock) it is there, was last up, and has its order."""

    name: str
    shape: Shape
    nodes: tuple[str, ...]
    since_s: float
    up_at_s: float = 0.0
    busy_from_s: float = math.inf
    leaving: bool = False
    error: str = ""
    failed_to_start: bool = False  # whether its processes could not be started
    thread: threading.Thread = field(default_factory=threading.Thread)


@dataclass
class Lanes:
    """Starts lanes, looks after them, and lets them end.

    Attributes:
        pool: the ``LanePool``'s handle.
        say: told of starts and losses.
    """

    pool: Any
    say: Callable[[str], None]
    _lanes: dict[str, _Lane] = field(default_factory=dict)
    _started: Counter[Shape] = field(default_factory=Counter)
    _placed_from_s: dict[str, float] = field(default_factory=dict)  # placement groups whose workers are not up
    _hung: Counter[tuple[str, ...]] = field(default_factory=Counter)  # lanes that were ended for that, by their nodes
    _looked_s: float = 0.0

    def start(self, shape: Shape, nodes: tuple[str, ...]) -> None:
        """Start a lane with a worker on each of these nodes."""
        self._started[shape] += 1
        lane = _Lane(f"{shape} #{self._started[shape]}", shape, nodes, time.monotonic())
        lane.thread = threading.Thread(target=self._hold, args=(lane,), name=lane.name, daemon=True)
        self._lanes[lane.name] = lane
        self.say(f"lane {lane.name} starts")
        lane.thread.start()

    def leave(self, names: Sequence[str]) -> None:
        """Let lanes end after their orders; they take no others."""
        if names:
            ray.get(self.pool.leave.remote(list(names)))
            for name in names:
                self._lanes[name].leaving = True

    def threads(self, names: Collection[str]) -> list[threading.Thread]:
        """Return the threads of these lanes, which end when they do."""
        return [lane.thread for lane in list(self._lanes.values()) if lane.name in names]

    def holders(self) -> list[str]:
        """Return the names of the lanes that are up."""
        return sorted(self._lanes)

    def needs(self, names: Collection[str]) -> Counter[str]:
        """Return the CPUs and GPUs of these lanes."""
        shapes = [lane.shape for lane in list(self._lanes.values()) if lane.name in names]
        return Counter({name: sum(shape.needs()[name] for shape in shapes) for name in ("CPU", "GPU")})

    def reap(self, state: Mapping[str, Any], alive: Collection[str]) -> None:
        """Take leave of lanes that have ended; end those whose node is gone or starts no process: they would wait.

        Args:
            state: of the pool.
            alive: the cluster's nodes.
        """
        if time.monotonic() - self._looked_s > LOOK_S:
            self._end_hung(state["groups"])
        for lane in list(self._lanes.values()):
            if lane.thread.is_alive():
                if not set(lane.nodes) <= set(alive):
                    end_lanes_elsewhere(alive)
                continue
            del self._lanes[lane.name]
            if self._hung[lane.nodes]:
                self._hung[lane.nodes] -= 1
                lane.failed_to_start, lane.error = True, f"its processes did not come up for {UP_S:g} s"
            lane.error = state["refused"].get(lane.name, lane.error)
            if not lane.error:
                ray.get(self.pool.ended.remote(lane.name))
                continue
            self.say(f"lane {lane.name} is lost: {lane.error}")
            free_groups()
            nodes = lane.nodes if lane.failed_to_start else ()
            ray.get(self.pool.lost.remote(lane.name, lane.shape, lane.error, nodes))

    def _end_hung(self, up: Collection[str]) -> None:
        """Kill what holds lanes together that have their place, but whose processes do not come up.

        A node that lacks memory, or on which Python does not start, is asked by Ray again and again, for ever.

        Args:
            up: placement groups whose workers are up, or were.
        """
        self._looked_s = now_s = time.monotonic()
        placed = {group.placement_group_id.hex(): group for group in _groups() if group.state == group.CREATED}
        self._placed_from_s = {
            name: self._placed_from_s.get(name, now_s)
            for name, group in placed.items()
            if name not in up and not group.creator_actor_dead
        }
        for name in [name for name, since_s in self._placed_from_s.items() if now_s - since_s > UP_S]:
            del self._placed_from_s[name]
            self._hung[tuple(bundle.label_selector[NODE] for bundle in placed[name].bundles)] += 1
            kill_actor(placed[name].creator_actor_id)

    def seen(self, state: Mapping[str, Any], seconds: Mapping[str, float]) -> tuple[Lane, ...]:
        """Return the lanes as a decision sees them.

        Args:
            state: of the pool.
            seconds: that orders are estimated to take, by their ids.
        """
        return tuple(self._seen(lane, state, seconds, time.monotonic()) for lane in self._lanes.values())

    def _seen(self, lane: _Lane, state: Mapping[str, Any], seconds: Mapping[str, float], now_s: float) -> Lane:
        order = state["held"].get(lane.name)
        lane.busy_from_s = min(lane.busy_from_s, now_s) if order else math.inf
        left_s = max(0.0, lane.busy_from_s + seconds.get(order, 0.0) - now_s) if order else 0.0
        idle_s = state["idle"].get(lane.name, 0.0)
        lane.up_at_s = now_s if lane.name in state["up"] else max(lane.up_at_s, lane.since_s)
        up_s, waits_s = now_s - lane.since_s, now_s - lane.up_at_s
        return Lane(lane.name, lane.shape, lane.nodes, order is not None, up_s, idle_s, left_s, lane.leaving, waits_s)

    def _hold(self, lane: _Lane) -> None:
        """Hold one lane's worker group from its start to its end."""
        resources = {"CPU": lane.shape.cpus}
        resources |= {"GPU": lane.shape.gpus} if lane.shape.gpus else {}
        resources |= {"memory": lane.shape.memory_bytes} if lane.shape.memory_bytes else {}
        group: Any = ProcessGroupConfig(self.pool, lane.name, lane.shape)
        # Of the second version of Train, whose settings type checkers do not see.
        scaling: dict[str, Any] = {"label_selector": [{NODE: node} for node in lane.nodes]}
        # The pool counts restarts, for it knows what came of them, but for those whose processes never came up.
        failures: dict[str, Any] = {"max_failures": -1, "controller_failure_limit": STARTS}
        with tempfile.TemporaryDirectory(prefix="massive-sft-lane-") as folder:
            trainer = LaneTrainer(
                lane_loop,
                train_loop_config={"pool": self.pool, "lane": lane.name, "shape": lane.shape},
                torch_config=group,
                scaling_config=ScalingConfig(
                    num_workers=lane.shape.workers,
                    use_gpu=lane.shape.gpus > 0,
                    resources_per_worker=resources,
                    **scaling,
                ),
                run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(**failures)),
            )
            try:
                trainer.fit()
            except Exception as error:  # noqa: BLE001 - a thread's exception would be lost; the pool must know
                lines = str(error).strip().splitlines()
                lane.error = f"{type(error).__name__}: {lines[0] if lines else ''}"
                reason = getattr(error, "controller_failure", None)
                if isinstance(reason, WorkerGroupStartupFailedError):
                    lane.failed_to_start, lane.error = True, f"its processes cannot be started: {lines[-1]}"


def join(threads: Sequence[threading.Thread], seconds: float) -> None:
    """Wait for the threads' ends, for so long at most altogether."""
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def free_groups() -> None:
    """Give back the placement groups of this job whose makers are dead: those of lost lanes, which outlive them.

    Train has a process for this, but it asks the dashboard, which a local Ray and many a cluster do not have; so lanes
    are without it (``LaneTrainer``).
    """
    for group in _groups():
        if group.creator_actor_dead:
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))


def end_lanes_elsewhere(alive: Collection[str]) -> None:
    """Kill the processes that hold lanes together on other nodes than these: they would wait for them for ever."""
    for group in _groups():
        nodes = {bundle.label_selector[NODE] for bundle in group.bundles if NODE in bundle.label_selector}
        if not (nodes <= set(alive) or group.creator_actor_dead):
            kill_actor(group.creator_actor_id)


def _groups() -> Iterator[Any]:
    """Yield this job's placement groups; who made them, only private parts of Ray tell."""
    job = ray.get_runtime_context().get_job_id()
    accessor: Any = ray._private.state.state._connect_and_get_accessor()
    table: Any = vars(gcs_pb2)["PlacementGroupTableData"]
    for data in accessor.get_placement_group_table():
        group = table.FromString(data)
        is_ours = group.creator_job_id.hex() == job and group.state != table.REMOVED
        if is_ours and group.creator_actor_id.strip(b"\xff"):  # by an actor, not by the driver, as those of trials
            yield group
