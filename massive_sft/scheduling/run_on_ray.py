"""A run on Ray: a fresh Tune experiment over what is missing, lanes beside scorers, and a watchdog."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from queue import SimpleQueue
from typing import Any

os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault(
    "TUNE_MAX_PENDING_TRIALS_PG", "16"
)  # that start at once; Tune's own is one where a source decides
# A place may be waited for at any length, here ten days: else it counts as a start that failed.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "864000")
# The controllers of lanes are threads of the run, whose log is not theirs to set up.
os.environ.setdefault("RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING", "0")
# Else a process for each lane asks what ``live_nodes`` asks for all of them.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from massive_sft.core.errors import ClusterLost, Interrupted
from massive_sft.core.fingerprint import digest
from massive_sft.core.stop import StopSignal
from massive_sft.planning.adapter_groups import grouped
from massive_sft.planning.plan import CellPlan, Plan, RunPlan
from massive_sft.running.events import CellRecorded, Listen, RunEvent
from massive_sft.running.recorder import RecordWriter
from massive_sft.running.trial import make_record_writer, retain, todo, trainings_left
from massive_sft.running.work import FixedWork, WorkSource
from massive_sft.scheduling.cell_queue import CellQueue, cell_bytes
from massive_sft.scheduling.claims import Claims, await_room
from massive_sft.scheduling.demand import Demand, make_demand
from massive_sft.scheduling.expected import Expected
from massive_sft.scheduling.experiment import TrialDeaths, TrialsLost, run_experiment
from massive_sft.scheduling.judges import Judges
from massive_sft.scheduling.lane_pool import LanePool
from massive_sft.scheduling.lanes import Lanes
from massive_sft.scheduling.leaving import leave
from massive_sft.scheduling.live_nodes import is_alone, live_nodes
from massive_sft.scheduling.named_cluster import named_cluster
from massive_sft.scheduling.nodes import Shape
from massive_sft.scheduling.pool import MAX_CONCURRENCY
from massive_sft.scheduling.relay import Relay, heard
from massive_sft.scheduling.roles import Roles
from massive_sft.scheduling.scorers import ScorerGroups
from massive_sft.scheduling.trial_source import Assigner
from massive_sft.scheduling.trials import Setup
from massive_sft.scheduling.watchdog import Limits, State, Watchdog, is_starting, is_working, who_waits

QUEUE_DIED = "the process of a queue died; run the same command to go on"
LIMITS = Limits()  # of silence
POLL_S = 0.5  # seconds between looks at how far everything is

Scorable = tuple[CellPlan, RunPlan | None]  # a cell and its run; a base model has none


def run_on_ray(
    plan: Plan,
    listen: Listen,
    say: Callable[[str], None],
    retrain: bool = False,
    stop: StopSignal | None = None,
    work: WorkSource | None = None,
) -> None:
    """Do what a plan leaves to do on the Ray cluster that this process is connected to, or until ``stop`` says so.

    When it is stopped, trainings in hand write a checkpoint at their next step and scorers end after their shard.
    Where nodes lack on a cluster that ``RAY_ADDRESS`` names, they are waited for as ``cluster.wait`` says.
    With a source of ``work``, what the plan leaves is what that chooses from: only base models' cells are sure to come.

    Args:
        plan: of the sweep, checked.
        listen: told what happens, from several threads, one at a time.
        say: told of lanes and waiting.
        retrain: as for ``running.trial.train_run``.
        stop: the wish that it ends.
        work: gives the trainings, the plan's and others that it decides; None for all that the plan leaves. A run that
            is trained already has its cells scored. It is told of each of their records.

    Raises:
        NoRoom: the cluster's nodes cannot hold what is asked for.
        Stuck: when nothing moves and nobody works, as ``Watchdog``, or awaited nodes do not come.
        TrialsLost: when processes of trials died and what they did could not be taken up.
    """
    recorder = make_record_writer(plan)
    to_train = trainings_left(plan, recorder.ledger, retrain)
    ready: list[Scorable] = [(cell, None) for cell in plan.base if not cell.is_done]
    if work is None:
        ready += [(cell, run) for run in plan.todo if run not in to_train for cell in todo(run)]
    stop = stop or StopSignal()
    wait_s = float(plan.sweep.file.cluster.wait) if named_cluster() else 0.0  # a Ray of this machine alone never grows
    try:
        demand = await_room(partial(make_demand, plan, to_train, ready), wait_s, say, stop)
    except Interrupted:
        return
    say(str(demand))
    if work is None:
        by_length = sorted(to_train, key=lambda run: -demand.chain_s[run.trajectory.id])
        work = FixedWork(grouped(by_length, {run.trajectory.id for run in to_train}))
    _Run(plan, demand, work, ready, recorder, listen, say, retrain, stop, wait_s).run()


@dataclass
class _Run:
    """One Tune experiment with its lanes, and the scorers of what it trains and of what is ``ready`` before."""

    plan: Plan
    demand: Demand
    work: WorkSource
    ready: Sequence[Scorable]
    recorder: RecordWriter
    listen: Listen
    say: Callable[[str], None]
    retrain: bool
    stop: StopSignal
    wait_s: float
    errors: list[BaseException] = field(default_factory=list)
    threads: dict[str, threading.Thread] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.expected = Expected()
        for run in (*self.work.known, *(run for _, run in self.ready if run)):
            self.expected.add(run)
        self.pool = _started(LanePool, Counter(map(self._shape, self.work.known)), self.work.grows)
        sizes = self.demand.size_bytes
        estimates = {cell: (seconds, sizes[cell]) for cell, seconds in self.demand.scoring_s.items()}
        bases = {cell.cell.id: digest(cell.cell.base) for cell in self.plan.cells}
        self.queue = _started(CellQueue, self.work.grows, estimates, bases)
        self.relay = _started(Relay)
        self.relay_up = self.relay.__ray_ready__.remote()
        self.lanes = Lanes(self.pool, self.say)
        shared, scorer = (self.queue, self.relay, self.recorder), self.demand.rules.scorer
        self.judges = Judges(*shared, self._told)
        self.scorers = ScorerGroups(*shared, self.judges, scorer, self._told, self.say, self.errors.append)
        self.claims = Claims()
        lack = self.claims.ask if named_cluster() else lambda *_: None
        self.roles = Roles(self.pool, self.queue, self.demand, self.lanes, self.scorers, lack)
        self.lock = threading.Lock()
        self.heard = 0  # events
        self.ended = threading.Event()
        self.assigner = Assigner(self.work, self._shape, self._assign, self._close, lambda: self.roles.trials)
        self.assigned = dict[str, RunPlan]()  # by trajectory
        self.lost = list[str]()  # trajectories whose trials died
        self.complete = SimpleQueue[RunPlan | None]()  # runs whose cells all have their records; None at the end

    def run(self) -> None:
        """Train and score; return when every cell has its record, or when nothing is in hand in a run that ends."""
        if not self._queues_are_up():
            return
        ray.get(self.queue.put.remote([cell_bytes(cell, run) for cell, run in self.ready]))
        self._begin("hear", self._hear)
        self._begin("retain", self._retain)
        self._begin("judge", self.judges.serve)
        try:
            self._states()  # the pool knows the nodes before a lane starts on one
            self._begin("serve", self.roles.serve)
            if self.work.known or self.work.grows:
                self._begin("tune", self._tune)
                self._watch("tune")
            ray.get(self.queue.close.remote())
            self._watch("serve")
            self.judges.close()
            self._watch("judge")
            self.complete.put(None)
            self._watch("retain")
        except Interrupted:
            self._wind_up()
        except Exception:  # whatever ends a run, trainings in hand write their checkpoints first
            self.errors.clear()
            with suppress(Exception):  # the run ends with its first error, not with what comes of it
                self._wind_up()
            raise
        finally:
            self._leave()

    def _queues_are_up(self) -> bool:
        """Wait for the processes that all meet at; return whether the run goes on: until then nothing is in hand."""
        up = [actor.__ray_ready__.remote() for actor in (self.pool, self.queue)]
        until_s = time.monotonic() + LIMITS.start_s  # who asks them then, is told what became of them
        while len(ray.wait(up, num_returns=len(up), timeout=POLL_S)[0]) < len(up) and time.monotonic() < until_s:
            if self.stop():
                return False
        return True

    def _wind_up(self) -> None:
        """End what is in hand where it can go on from: a training after its step, a cell after its shard."""

        def ended(pool: State, queue: State) -> bool:
            tuning, scoring = self._is_alive("tune"), any(thread.is_alive() for thread in self.scorers.threads())
            judging = self._is_alive("judge") and bool(queue["begun"] & queue["judging"])
            return not (pool["held"] or (tuning and pool["begun"]) or (scoring and queue["begun"]) or judging)

        self.roles.stop()
        ray.get([self.pool.stop.remote(), self.queue.stop.remote()])
        self._until(ended)

    def _leave(self) -> None:
        """End the threads, however it went."""
        self.roles.stop()
        self.ended.set()
        self.complete.put(None)
        self.judges.close()
        pools = self.pool, self.queue
        leave(self.threads, pools, self.relay, self.relay_up, self.lanes, self.scorers, self.claims)

    def _is_alive(self, name: str) -> bool:
        return name in self.threads and self.threads[name].is_alive()

    def _begin(self, name: str, target: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                target()
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
                self.errors.append(error)

        self.threads[name] = threading.Thread(target=guarded, name=name, daemon=True)
        self.threads[name].start()

    def _watch(self, name: str) -> None:
        """Wait for a thread's end. Raises Interrupted when the run should end, Stuck as ``_until``."""

        def over(*_: State) -> bool:
            self.stop.check()
            return not self.threads[name].is_alive()

        self._until(over, self.threads[name].join)

    def _until(self, over: Callable[[State, State], bool], pause: Callable[[float], None] = time.sleep) -> None:
        """Wait until the pools' states say so; a watchdog looks on.

        Args:
            over: asked of the pools' states.
            pause: waits for so many seconds, or for what may change the answer.
        """
        longer = self.wait_s > LIMITS.start_s
        limits = replace(LIMITS, start_s=self.wait_s) if longer else LIMITS
        watchdog = Watchdog(self.say, time.monotonic, limits)
        while not self.errors:
            try:
                pool, queue = self._states()
            except GetTimeoutError:
                watchdog.no_answer()
                continue
            if over(pool, queue):
                break
            lanes, scores = self.lanes.holders(), bool(self.scorers.threads() or queue["judging"])
            watchdog.look(
                self.heard + pool["progress"] + queue["progress"],
                is_working(pool, queue),
                is_starting(pool, queue, lanes, scores),
                partial(self._who_waits, pool, queue, lanes),  # asks the cluster: only where it is told
            )
            pause(POLL_S)
        if self.errors:
            self.roles.stop()
            if isinstance(self.errors[0], ActorDiedError):  # of a thread that asked a queue
                raise ClusterLost(QUEUE_DIED) from self.errors[0]
            raise self.errors[0]

    def _who_waits(self, pool: State, queue: State, lanes: Sequence[str]) -> str:
        """Return in a sentence who waits for what, and how much of the cluster is free or other jobs have."""
        pool = {**pool, "up": pool["up"] | self.lanes.placed()}
        held, scorers = self.lanes.needs(pool["up"]), self.demand.rules.scorer.needs()
        scoring = sum(group.size for group in self.scorers.seen(queue, {}) if not group.waits_s)
        total, available = ray.cluster_resources(), ray.available_resources()
        free = {name: available.get(name, 0.0) for name in ("CPU", "GPU") if name in total}
        taken = {name: total[name] - left - held[name] - scoring * scorers[name] for name, left in free.items()}
        taken = {} if is_alone() else taken  # then what is left is this run's own, of scorers that start
        return who_waits(pool, queue, lanes, free, taken)

    def _states(self) -> tuple[State, State]:
        """Tell the pool of the nodes; return the pools' states. Raises ClusterLost when a pool is gone."""
        nodes, draining = live_nodes()
        looks = self.pool.look.remote([node.id for node in nodes], draining, nodes)
        calls = [looks, self.pool.state.remote(), self.queue.state.remote()]
        try:
            _, pool, queue = ray.get(calls, timeout=LIMITS.answer_s)
        except ActorDiedError as error:
            raise ClusterLost(QUEUE_DIED) from error
        return pool, queue

    def _hear(self) -> None:
        while (told := ray.get(self.relay.take.remote())) is not None:
            for data in told:
                self._told(heard(data))

    def _tune(self) -> None:
        setup = Setup(self.pool, self.queue, self.relay, self.recorder, self.retrain, waits=self.work.grows)
        deaths = TrialDeaths(self.say, self._lost_trial)
        run_experiment(self.plan.sweep.file.name, setup, self.assigner, deaths, self.ended)
        if self.lost and not self.stop():
            raise TrialsLost(self.lost)

    def _lost_trial(self, trajectory: str) -> None:
        """Take note of a trial whose process died again and again: nothing of it is waited for any more."""
        self.lost.append(trajectory)
        shape = self._shape(self.assigned[trajectory])
        ray.get([self.pool.skip.remote(shape, trajectory), self.pool.end.remote(trajectory)])

    def _shape(self, run: RunPlan) -> Shape:
        return self.demand.shape_of(run)

    def _assign(self, run: RunPlan, shape: Shape, priority: float, is_unexpected: bool) -> None:
        """Leave in the pool what a trial that is about to begin has to do."""
        if is_unexpected:
            self.expected.add(run)
        self.assigned[run.trajectory.id] = run
        data = pickle.dumps((run, shape, priority))
        ray.get(self.pool.assign.remote(run.trajectory.id, data, shape if is_unexpected else None))

    def _close(self) -> None:
        ray.get(self.pool.close.remote())

    def _told(self, event: RunEvent) -> None:
        if isinstance(event, CellRecorded):
            self.assigner.told(event)
        with self.lock:
            self.heard += 1
            self.listen(event)
            if isinstance(event, CellRecorded) and (run := self.expected.recorded(event.cell.id)):
                self.complete.put(run)

    def _retain(self) -> None:
        """Remove the snapshots that are not kept: it may take minutes, in which the others listen on."""
        while (run := self.complete.get()) is not None:
            retain(run, self.plan.sweep.file.storage.keep_snapshots, self.recorder.ledger)


def _started(actor: Any, *arguments: Any) -> Any:
    """Start an actor on this process's node: the loss of another one must not reach what all meet at."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return actor.options(scheduling_strategy=here, max_concurrency=MAX_CONCURRENCY).remote(*arguments)
