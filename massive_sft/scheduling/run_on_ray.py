"""A run on Ray: a fresh Tune experiment over what is missing, lanes beside a stream of scorers, and a watchdog."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # Train polls its workers every 2 s otherwise
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")

import ray
from ray import tune
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from massive_sft.core.errors import Interrupted, MassiveSFTError
from massive_sft.core.stop import StopSignal
from massive_sft.planning.plan import CellPlan, Plan, RunPlan
from massive_sft.running.events import CellRecorded, Listen, RunEvent
from massive_sft.running.recorder import RecordWriter
from massive_sft.running.trial import is_trained, make_record_writer, retain, todo
from massive_sft.scheduling.cell_queue import CellQueue, cell_bytes
from massive_sft.scheduling.cluster import kill_actors
from massive_sft.scheduling.lane_pool import LanePool
from massive_sft.scheduling.lanes import Lanes, join, shape_of
from massive_sft.scheduling.relay import Relay, heard
from massive_sft.scheduling.resource_split import Mode, choose_mode
from massive_sft.scheduling.scorers import score_stream
from massive_sft.scheduling.trials import run_trial

SILENCE_S = 60.0  # seconds without progress after which the watchdog speaks where nobody works
SILENT_WORK_S = 1800.0  # the same where a lane or a scorer has work in hand: one step or one shard may take minutes
PATIENCE = 3  # times it speaks before it ends the run
# A trial holds no CPU: it would wait forever once lanes hold them all. It lives where the loss of a node, which lanes
# and scorers survive, does not reach it.
DRIVER = {"memory": float(1 << 20), "node:__internal_head__": 1e-4}
POLL_S = 0.5  # seconds between looks at how far everything is
SETTLE_S = 5.0  # seconds that Tune and Data may take to end once nothing is in hand any more
LEAVE_S = 30.0  # the same, for the workers of lanes

State = Mapping[str, Any]  # of a pool
Scorable = tuple[CellPlan, RunPlan | None]  # a cell and its run; a base model has none


class Stuck(MassiveSFTError):
    """Nothing moves: the text says who waits for what, and who holds it."""


def run_on_ray(
    plan: Plan, listen: Listen, say: Callable[[str], None], retrain: bool = False, stop: StopSignal | None = None
) -> None:
    """Do what a plan leaves to do on the Ray cluster that this process is connected to, or until ``stop`` says so.

    When it is stopped, trainings in hand write a checkpoint at their next step and scorers end after their shard.

    Args:
        plan: of the sweep, checked.
        listen: told what happens, from several threads, one at a time.
        say: told of lanes and waiting.
        retrain: as for ``running.trial.train_run``.
        stop: the wish that it ends.

    Raises:
        Stuck: when nothing moved for ``PATIENCE`` times ``SILENCE_S``.
    """
    recorder = make_record_writer(plan)
    to_train = [run for run in plan.todo if retrain or not is_trained(run, recorder.ledger)]
    ready: list[Scorable] = [(cell, None) for cell in plan.base if not cell.is_done]
    ready += [(cell, run) for run in plan.todo if run not in to_train for cell in todo(run)]
    mode = choose_mode(plan, to_train, ray.cluster_resources())
    say(str(mode))
    stop = stop or StopSignal()
    for runs in mode.rounds(to_train):
        if stop():
            return
        _Round(plan, mode, runs, ready, recorder, listen, say, retrain, stop).run()
        ready = []  # scored in the first round


@dataclass
class _Round:
    """One Tune experiment with its lanes, and the stream that scores what it trains and what is ``ready`` before."""

    plan: Plan
    mode: Mode
    runs: tuple[RunPlan, ...]
    ready: Sequence[Scorable]
    recorder: RecordWriter
    listen: Listen
    say: Callable[[str], None]
    retrain: bool
    stop: StopSignal
    errors: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shapes = {run.trajectory.id: shape_of(run.layout, self.mode.lane_cpus(run.layout)) for run in self.runs}
        runs = (*self.runs, *(run for _, run in self.ready if run))
        self.by_cell = {cell.cell.id: run for run in runs for cell in run.cells}
        self.left = {run.trajectory.id: len(todo(run)) for run in runs}
        self.pool = _started(LanePool, Counter(self.shapes.values()))
        self.queue = _started(CellQueue)
        self.relay = _started(Relay)
        self.lanes = Lanes(self.pool, self.mode.lane_capacity, self.say)
        self.lock = threading.Lock()
        self.heard = 0  # events
        self.ended = threading.Event()

    def run(self) -> None:
        """Train and score; return when every cell has its record, or when nothing is in hand in a run that ends."""
        ray.get(self.queue.put.remote([cell_bytes(cell, run) for cell, run in self.ready]))
        threads = {"hear": self._thread(self._hear)}
        try:
            if not self.mode.alternates:
                threads["score"] = self._thread(self._score)
            if self.runs:
                threads["serve"], threads["tune"] = self._thread(self.lanes.serve), self._thread(self._tune)
                self._watch(threads["tune"])
                self._watch(threads["serve"])
            ray.get(self.queue.close.remote())
            if self.mode.alternates:
                threads["score"] = self._thread(self._score)
            self._watch(threads["score"])
        except Interrupted:
            self._wind_up(threads)
        except Exception:
            self.errors.clear()
            with suppress(Exception):  # the run ends with its first error, not with what comes of it
                self._wind_up(threads)
            raise
        finally:
            self._leave(threads)

    def _wind_up(self, threads: Mapping[str, threading.Thread]) -> None:
        """End what is in hand where it can go on from: a training after its step, a cell after its shard."""

        def ended(pool: State, queue: State) -> bool:
            tuning, scoring = (name in threads and threads[name].is_alive() for name in ("tune", "score"))
            return not (pool["held"] or (tuning and pool["begun"]) or (scoring and queue["begun"]))

        self.lanes.stop()
        ray.get([self.pool.stop.remote(), self.queue.stop.remote()])
        self._until(ended)

    def _leave(self, threads: Mapping[str, threading.Thread]) -> None:
        """End the threads, however it went: one that still uses Ray when it is shut down takes the process with it."""
        self.lanes.stop()
        self.ended.set()
        busy = [thread for name, thread in threads.items() if name != "hear"]
        join([*busy, *self.lanes.threads(self.lanes.holders())], SETTLE_S)
        with suppress(RayError):  # a cluster that is lost must not hide why the run ends
            up = ray.get(self.pool.state.remote(), timeout=SETTLE_S)["groups"]
            join(self.lanes.threads(up), LEAVE_S)  # not those that wait
            ray.get(self.relay.close.remote(), timeout=SETTLE_S)
            join([threads["hear"]], SETTLE_S)
            kill_actors()
        join([*busy, *self.lanes.threads(self.lanes.holders())], LEAVE_S)  # nothing answers them any more

    def _thread(self, target: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                target()
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
                self.errors.append(error)

        thread = threading.Thread(target=guarded, name=target.__name__, daemon=True)
        thread.start()
        return thread

    def _watch(self, thread: threading.Thread) -> None:
        """Wait for a thread's end. Raises Interrupted when the run should end, Stuck as ``_until``."""

        def over(*_: State) -> bool:
            self.stop.check()
            return not thread.is_alive()

        self._until(over, thread.join)

    def _until(self, over: Callable[[State, State], bool], pause: Callable[[float], None] = time.sleep) -> None:
        """Wait until the pools' states say so; speak when nothing moves, and give up when nobody works either.

        Args:
            over: asked of the pools' states.
            pause: waits for so many seconds, or for what may change the answer.
        """
        moved, seen, spoken = time.monotonic(), -1, 0
        while not self.errors:
            states = ray.get([self.pool.state.remote(), self.queue.state.remote()])
            if over(*states):
                break
            progress = self.heard + sum(state["progress"] for state in states)
            silence = SILENT_WORK_S if states[0]["held"] or states[1]["begun"] else SILENCE_S
            if progress != seen:
                moved, seen, spoken = time.monotonic(), progress, 0
            elif time.monotonic() - moved > silence * (spoken + 1):
                spoken += 1
                text = self._waiting(*states)
                self.say(f"nothing moved for {time.monotonic() - moved:.0f} s: {text}")
                if spoken >= PATIENCE and not states[0]["held"] and not states[1]["out"]:
                    raise Stuck(f"nothing moves and nobody works: {text}")
            pause(POLL_S)
        if self.errors:
            self.lanes.stop()
            raise self.errors[0]

    def _waiting(self, pool: State, queue: State) -> str:
        """Say who waits for what, and who holds it."""
        waits = [f"{count} trainings wait for a lane of {shape}" for shape, count in pool["queued"].items() if count]
        late = [(shape, count) for shape, count in pool["expected"].items() if count > 0]
        waits += [f"{count} trainings for {shape} are still to begin" for shape, count in late]
        waits += [f"{queue['waiting']} cells wait for a scorer"] if queue["waiting"] else []
        holds = [f"lane {lane} trains {order}" for lane, order in pool["held"].items()]
        holds += [f"lane {lane} is up" for lane in self.lanes.holders() if lane not in pool["held"]]
        holds += [f"scorers have {', '.join(queue['out'])}"] if queue["out"] else []
        free = ", ".join(f"{count:g} {name}" for name, count in _free().items())
        return "; ".join(
            [*(waits or ["nobody waits in a queue"]), *(holds or ["no lane and no scorer works"]), f"free: {free}"]
        )

    def _score(self) -> None:
        score_stream(self.queue, self.relay, self.recorder, self.mode.scorers, self._told)

    def _hear(self) -> None:
        while (told := ray.get(self.relay.take.remote())) is not None:
            for data in told:
                self._told(heard(data))

    def _tune(self) -> None:
        driver = tune.with_parameters(
            run_trial,
            runs={run.trajectory.id: run for run in self.runs},
            shapes=self.shapes,
            actors=(self.pool, self.queue, self.relay),
            recorder=self.recorder,
            retrain=self.retrain,
        )
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what goes wrong in a trial, the trial tells
        with tempfile.TemporaryDirectory(prefix="massive-sft-tune-") as folder:
            tune.Tuner(
                tune.with_resources(driver, DRIVER),
                param_space={"trajectory": tune.grid_search([run.trajectory.id for run in self.runs])},
                tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=self.mode.trials),
                run_config=tune.RunConfig(
                    storage_path=folder, name=self.plan.sweep.file.name, verbose=0, stop=_Until(self.ended)
                ),
            ).fit()

    def _told(self, event: RunEvent) -> None:
        with self.lock:
            self.heard += 1
            self.listen(event)
            if isinstance(event, CellRecorded) and event.cell.id in self.by_cell:
                run = self.by_cell[event.cell.id]
                self.left[run.trajectory.id] -= 1
                if self.left[run.trajectory.id] == 0:
                    retain(run, self.plan.sweep.file.storage.keep_snapshots, self.recorder.ledger)


class _Until(tune.Stopper):
    """Ends Tune, whatever it has not begun, once an event is set. The copies that Tune stores never do."""

    def __init__(self, ended: threading.Event | None = None):
        self._ended = ended or threading.Event()

    def __reduce__(self) -> tuple[type[_Until], tuple[()]]:
        return _Until, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._ended.is_set()


def _started(actor: Any, *arguments: Any) -> Any:
    """Start an actor on this process's node: the loss of another one must not reach what all meet at."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return actor.options(scheduling_strategy=here).remote(*arguments)


def _free() -> dict[str, float]:
    available = ray.available_resources()
    return {name: available.get(name, 0.0) for name in ("CPU", "GPU") if name in ray.cluster_resources()}
