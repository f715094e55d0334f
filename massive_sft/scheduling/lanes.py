"""Lanes: warm Ray Train worker groups that train one trajectory after another.

Starting a group of workers (processes, imports, process group) takes half a minute, training a small trajectory less
than a second, so a lane is started once and fed through the ``LanePool``.
"""

from __future__ import annotations

import logging
import math
import pickle
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

from massive_sft.core.errors import Interrupted, LedgerError, MassiveSFTError, TrainAgain
from massive_sft.core.imports import heavy_imports
from massive_sft.ledger.folder_cache import is_machine_full
from massive_sft.ledger.marker import why_unseen
from massive_sft.ledger.provenance import redact
from massive_sft.running.failures import error_text
from massive_sft.running.trial import Order
from massive_sft.scheduling.cluster_state import Lane
from massive_sft.scheduling.lane_trainer import LaneTrainer, Place
from massive_sft.scheduling.live_nodes import NODE
from massive_sft.scheduling.node_health import STARTS, UP_S
from massive_sft.scheduling.nodes import Shape
from massive_sft.scheduling.orders import Message
from massive_sft.scheduling.process_group import ProcessGroupConfig
from massive_sft.training.events import CheckpointWritten, Event, Resumed, StepDone
from massive_sft.training.ranks import all_ranks, broadcast_from_rank0, is_rank0

# Between looks at a lane's workers, which cost the run's process: a fiftieth of a second for each lane that there is
# when it starts, within limits. The upper one is Ray Train's own.
POLL_S, POLL_A_LANE_S, MOST_POLL_S = 0.1, 0.02, 2.0


def lane_loop(config: dict[str, Any]) -> None:
    """Serve orders until there are no more: what Ray Train runs in every worker of a lane.

    Rank 0 asks the pool and broadcasts, so that all ranks train the same. A single worker survives a failing order;
    of several, those still in a collective would wait forever, so the group is restarted. There an error that is none
    of ours may be the loss of another worker, so the order is tried again. So it is where one ran out of memory.
    A machine whose own disk is full, or that does not see the ledger, costs the lane; another one takes up the order.
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
            unseen = why_unseen(order.root, order.ledger)
            reason = unseen or _reason(error)
            if unseen or is_machine_full(error, order.root):
                ray.get(pool.give_up.remote(lane, shape, reason))
            elif shape.workers == 1 or isinstance(error, MassiveSFTError):
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
    with heavy_imports():
        from massive_sft.models.kept_base import KeptBase
        from massive_sft.running import serving

    bases = KeptBase()

    def report(number: int, event: Event) -> None:
        step = event.step if isinstance(event, StepDone) else 0
        checkpoint = event.step if isinstance(event, CheckpointWritten | Resumed) else 0
        pool.tell.remote(lane, Message("event", pickle.dumps((number, event)), step, checkpoint))

    def serve(order: Order) -> Message:
        if unseen := why_unseen(order.root, order.ledger):
            raise LedgerError(unseen)
        told = [pool.told_to_stop.remote(lane)] if is_rank0() else []  # who else asks would only wait in the pool
        try:
            return ended(serving.serve(order, report, lambda: bool(ray.wait(told, timeout=0)[0]), bases))
        except Interrupted:
            return Message("stopped")

    return serve


def ended(errors: Sequence[Exception | None]) -> Message:
    """Return how an order ended, by what it and those beside it raised; stopped where any of them was."""
    each = [(_reason(error), isinstance(error, Interrupted)) for error in errors]
    return Message("stopped" if any(stopped for _, stopped in each) else "done", pickle.dumps(each))


def _reason(error: Exception | None) -> str:
    return "" if error is None else error_text(error)


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
    place: Place = field(default_factory=Place)
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

    def start(self, shape: Shape, nodes: tuple[str, ...]) -> None:
        """Start a lane with a worker on each of these nodes."""
        logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # what a controller would say is raised here
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

    def placed(self) -> set[str]:
        """Return the names of the lanes that have their place, whether or not their processes are up."""
        return {lane.name for lane in list(self._lanes.values()) if math.isfinite(lane.place.since_s)}

    def needs(self, names: Collection[str]) -> Counter[str]:
        """Return the CPUs and GPUs of these lanes."""
        shapes = [lane.shape for lane in list(self._lanes.values()) if lane.name in names]
        return Counter({name: sum(shape.needs()[name] for shape in shapes) for name in ("CPU", "GPU")})

    def reap(self, state: Mapping[str, Any], alive: Collection[str]) -> None:
        """Take leave of lanes that have ended; end those whose node is gone or starts no process: they would wait.

        A node that lacks memory, or on which Python does not start, is asked by Ray again and again, for ever.

        Args:
            state: of the pool.
            alive: the cluster's nodes.
        """
        for lane in list(self._lanes.values()):
            if lane.thread.is_alive():
                if not set(lane.nodes) <= set(alive):
                    lane.place.give_up("a node of it is gone")
                elif not lane.place.is_up(state["groups"]) and time.monotonic() - lane.place.since_s > UP_S:
                    lane.failed_to_start = True
                    lane.place.give_up(f"its processes did not come up for {UP_S:g} s")
                continue
            del self._lanes[lane.name]
            lane.error = state["refused"].get(lane.name, lane.error)
            if not lane.error:
                ray.get(self.pool.ended.remote(lane.name))
                continue
            self.say(f"lane {lane.name} is lost: {lane.error}")
            nodes = lane.nodes if lane.failed_to_start else ()
            ray.get(self.pool.lost.remote(lane.name, lane.shape, lane.error, nodes))

    def give_up(self) -> None:
        """End all lanes at once, whatever they wait for; their threads end soon after. Raises what Ray does."""
        for lane in list(self._lanes.values()):
            lane.place.give_up("the run ends")

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
        group: Any = ProcessGroupConfig(self.pool, lane.name, lane.shape)
        # Of the second version of Train, whose settings type checkers do not see.
        scaling: dict[str, Any] = {"label_selector": [{NODE: node} for node in lane.nodes]}
        # The pool counts restarts, for it knows what came of them, but for those whose processes never came up.
        failures: dict[str, Any] = {"max_failures": -1, "controller_failure_limit": STARTS}
        with tempfile.TemporaryDirectory(prefix="massive-sft-lane-") as folder:
            trainer = LaneTrainer(
                lane_loop,
                place=lane.place,
                poll_s=min(MOST_POLL_S, max(POLL_S, POLL_A_LANE_S * len(self._lanes))),
                train_loop_config={"pool": self.pool, "lane": lane.name, "shape": lane.shape},
                torch_config=group,
                scaling_config=ScalingConfig(
                    num_workers=lane.shape.workers,
                    use_gpu=lane.shape.gpus > 0,
                    resources_per_worker=lane.shape.worker(),
                    **scaling,
                ),
                run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(**failures)),
            )
            try:
                trainer.fit()
            except Exception as error:  # noqa: BLE001 - a thread's exception would be lost; the pool must know
                lines = redact(str(error)).strip().splitlines()
                lane.error = lane.place.given_up or f"{type(error).__name__}: {lines[0] if lines else ''}"
                reason = getattr(error, "controller_failure", None)
                if isinstance(reason, WorkerGroupStartupFailedError) and not lane.place.given_up:
                    lane.failed_to_start, lane.error = True, f"its processes cannot be started: {lines[-1]}"
            finally:
                with suppress(RayError):  # of a start that failed halfway
                    lane.place.leave()


def join(threads: Sequence[threading.Thread], seconds: float) -> None:
    """Wait for the threads' ends, for so long at most altogether."""
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
