"""Scorers: Ray Data streams from the queue of cells to their records, each over a warm pool of actors.

A group of them on one node is one execution, for its pool of actors cannot move or shrink at will: its single read task
pulls cells from the queue until the group is told to leave.
"""

from __future__ import annotations

import logging
import pickle
import re
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources
from ray.exceptions import ActorHandleNotFoundError, WorkerCrashedError
from ray.util.annotations import RayDeprecationWarning

from massive_sft.core.errors import MassiveSFTError
from massive_sft.ledger.lease import TTL_S
from massive_sft.ledger.marker import ledger_id
from massive_sft.ledger.provenance import redact
from massive_sft.running.events import AnswersWritten, CellRecorded, RunEvent, skipped
from massive_sft.running.recorder import RecordWriter
from massive_sft.scheduling.cell_source import CellSource
from massive_sft.scheduling.cluster import kill_actor
from massive_sft.scheduling.cluster_state import Group
from massive_sft.scheduling.judges import Judges
from massive_sft.scheduling.live_nodes import NODE, is_alone, starting_actors
from massive_sft.scheduling.node_health import STARTS, UP_S
from massive_sft.scheduling.nodes import Shape
from massive_sft.scheduling.relay import heard
from massive_sft.scheduling.scoring_actor import MachineUnfit, ScorersFailed, ScoringActor

# Ray Data has no parameter of its own name for ``max_restarts`` yet.
warnings.filterwarnings("ignore", r"`ray_remote_args` is deprecated", RayDeprecationWarning)

Row = dict[str, Any]

TRIES = 3  # scorers that a cell may cost before it counts as what kills them
_ACTOR = re.compile(r"actor[ _]id[:=] ?([0-9a-f]{32})", re.IGNORECASE)  # in what Ray says of one that died
LATE_S = 60.0  # after which it is said that scorers are not up, and again after five times that
HELD_S = 2 * TTL_S  # seconds until which the ledger knows of a scorer elsewhere that it is gone


class GroupLost(MassiveSFTError):
    """A process of a group of scorers, or its node, is gone; what the group had is scored by others.

    Attributes:
        is_reader: whether it was the one that takes cells for the group.
        scorer: the id of the actor that died, where Ray says which.
    """

    def __init__(self, text: str, is_reader: bool = False, scorer: str = ""):
        super().__init__(text)
        self.is_reader = is_reader
        self.scorer = scorer


@dataclass
class _Group:
    """Scorers of one node, since when they are there, and since when each of their cells is out.

    Attributes:
        late_s: how late they were when that was said last.
        given_up: why they are to end before they are up; empty where they are not.
    """

    name: str
    node: str
    size: int
    since_s: float
    leaving: bool = False
    late_s: float = 0.0
    given_up: str = ""
    out_from_s: dict[str, float] = field(default_factory=dict)
    error: BaseException | None = None
    thread: threading.Thread = field(default_factory=threading.Thread)


@dataclass
class ScorerGroups:
    """Starts groups of scorers, each a Ray Data execution on one node, and lets them end.

    A scorer whose process dies ends its group; another one takes up its cells, from the last shard of responses. A cell
    that cost ``TRIES`` scorers is given up: its record is FAILED.

    Attributes:
        queue, relay: handles of the ``CellQueue`` and the ``Relay``.
        recorder: makes the records.
        judges: get cells whose answers wait for verdicts.
        scorer: the shape of one.
        listen: told what happens.
        say: told of losses.
        fail: called with what ends the run: scorers that cannot be started anywhere (ScorersFailed), or what a scorer
            met beyond a cell's own failure, as a full disk.
    """

    queue: Any
    relay: Any
    recorder: RecordWriter
    judges: Judges
    scorer: Shape
    listen: Callable[[RunEvent], None]
    say: Callable[[str], None]
    fail: Callable[[BaseException], None]
    _groups: dict[str, _Group] = field(default_factory=dict)
    _started: int = 0
    _failed: Counter[str] = field(default_factory=Counter)  # starts on each node, in a row
    _unfit: set[str] = field(default_factory=set)  # nodes with a full disk, or without the ledger
    _proven: bool = False
    _left_behind: list[threading.Thread] = field(default_factory=list)
    _lost_from_s: dict[str, float] = field(default_factory=dict)  # cells of lost groups
    _building: threading.Lock = field(default_factory=threading.Lock)

    def start(self, node: str, size: int) -> None:
        """Start so many scorers on a node."""
        self._started += 1
        group = _Group(f"scorers #{self._started}", node, size, time.monotonic())
        group.thread = threading.Thread(target=self._guarded, args=(group,), name=group.name, daemon=True)
        self._groups[group.name] = group
        group.thread.start()

    def leave(self, names: Sequence[str]) -> None:
        """Let groups end after the cells that they have."""
        if names:
            ray.get(self.queue.leave.remote(list(names)))
            for name in names:
                self._groups[name].leaving = True

    def drain(self, nodes: Collection[str]) -> None:
        """Let groups end on nodes that are about to go."""
        self.leave([group.name for group in self._groups.values() if group.node in nodes and not group.leaving])

    def threads(self, names: Collection[str] | None = None) -> list[threading.Thread]:
        """Return the threads of these groups, of all if none are named; they end when the groups do."""
        return [group.thread for group in list(self._groups.values()) if names is None or group.name in names]

    def ready(self, state: Mapping[str, Any]) -> list[str]:
        """Return the names of the groups of which a scorer has imported all it needs; ``state`` is the queue's."""
        return [name for name, entered in state["entered"].items() if entered == 0]

    @property
    def left_behind(self) -> list[threading.Thread]:
        """The threads of groups whose node is gone: they may wait for it until Ray is left."""
        return list(self._left_behind)

    @property
    def unfit(self) -> frozenset[str]:
        """The nodes that cannot serve, or on which scorers died as often as they may before they could take a cell."""
        return frozenset({node for node, failed in self._failed.items() if failed >= STARTS} | self._unfit)

    def reap(self, state: Mapping[str, Any], alive: Collection[str], places: Collection[str]) -> None:
        """Take leave of groups that have ended, or whose node is gone; see to the cells of those that were lost before.

        Args:
            state: of the queue.
            alive: the cluster's nodes.
            places: those on which a scorer could be.
        """
        for group in [group for group in self._groups.values() if group.node not in alive and group.thread.is_alive()]:
            del self._groups[group.name]
            self._left_behind.append(group.thread)
            self.say(f"{group.name} are lost: their node is gone")
            ray.get(self.queue.lost.remote(group.name))
        for group in [group for group in self._groups.values() if not group.thread.is_alive()]:
            del self._groups[group.name]
            was_up = state["entered"].get(group.name) == 0
            if was_up:
                self._proven, self._failed[group.node] = True, 0
            if isinstance(group.error, GroupLost):
                self._lose(group, group.error, was_up, places)
            elif isinstance(group.error, MachineUnfit):
                self._leave_unfit(group, group.error, places)
            elif group.error is not None:
                self.fail(group.error)
        self._take_up_lost(state["lost"])
        self._see_to_late(state)

    def _see_to_late(self, state: Mapping[str, Any]) -> None:
        """Say which scorers are not up yet, though lanes may be busy all the while, and what there is for them.

        Where no other job can be in their way they are given up in the end, for Ray would wait for ever.
        """
        for group in self._groups.values():
            late_s = time.monotonic() - group.since_s
            if group.name in state["entered"] or group.leaving:
                continue
            if late_s > UP_S and not group.given_up and is_alone():
                group.given_up = f"their processes did not come up for {UP_S:g} s"
                for actor in starting_actors(group.node):
                    with suppress(ActorHandleNotFoundError):
                        kill_actor(actor)
            elif late_s >= max(LATE_S, 5 * group.late_s):
                group.late_s = late_s
                self._tell_late(group)

    def _tell_late(self, group: _Group) -> None:
        left = ray._private.state.available_resources_per_node().get(group.node, {})
        free = ", ".join(f"{left.get(name, 0.0):g} {name}" for name, count in self.scorer.needs().items() if count)
        told = f"{group.name} ({group.size} of {self.scorer}, node {group.node[:8]}) are not up"
        told += f" after {group.late_s:.0f} s; free there: {free}"
        self.say(f"{told}; where nobody else holds it, see Ray's logs of that node")

    def _lose(self, group: _Group, error: GroupLost, was_up: bool, places: Collection[str]) -> None:
        """Leave the cells of a group of which a process died to others, and its node, if it died too often there."""
        self.say(f"{group.name} (node {group.node[:8]}) are lost: {group.given_up or error}")
        if not was_up and group.node in places:
            self._failed[group.node] += STARTS if group.given_up else 1
        if error.is_reader:
            ray.get(self.queue.lost.remote(group.name))
        else:
            ray.get(self.queue.died.remote(group.name, error.scorer))
        why = group.given_up or f"their processes died {STARTS} times before they could take a cell"
        why = f"the scorers cannot be started: {why}; see Ray's logs of the workers"
        self._fail_if_nowhere(ScorersFailed(why), places)

    def _leave_unfit(self, group: _Group, error: MachineUnfit, places: Collection[str]) -> None:
        """Leave the cells of a group, and its node, which cannot serve, to others."""
        self.say(f"{group.name} (node {group.node[:8]}) are lost: {error}")
        self._unfit.add(group.node)
        ray.get(self.queue.lost.remote(group.name))
        self._fail_if_nowhere(error, places)

    def _fail_if_nowhere(self, error: MassiveSFTError, places: Collection[str]) -> None:
        """End the run with an error where scorers can be started nowhere any more; with no place at all it waits."""
        if (places and self.unfit.issuperset(places)) or (len(self.unfit) > 1 and not self._proven):
            self.fail(error)

    def _take_up_lost(self, deaths: Mapping[str, int]) -> None:
        """Give cells out again once their lost scorers hold them no more; give up those that cost too many.

        Args:
            deaths: of scorers, by cell.
        """
        now_s = time.monotonic()
        self._lost_from_s = {cell: self._lost_from_s.get(cell, now_s) for cell in deaths}
        for cell, died in deaths.items():
            if self.recorder.ledger.is_free(cell) or now_s - self._lost_from_s[cell] > HELD_S:
                if died < TRIES:
                    ray.get(self.queue.release.remote(cell))
                else:
                    self._give_up(cell)

    def _give_up(self, cell: str) -> None:
        """Record that a cell kills its scorers."""
        data = ray.get(self.queue.data_of.remote(cell))
        if data is None:
            return
        plan, _ = pickle.loads(data)
        why = f"{TRIES} scorers died while they had it (out of memory, or a crash in native code?)"
        self.say(f"{plan.cell.coordinates} is given up: {why}")
        record = self.recorder.failed(plan, 1, f"{why}; see Ray's logs of the workers")
        event = CellRecorded(plan.cell, record) if record else skipped(str(plan.cell.coordinates), [plan])
        self.listen(event)
        ray.get(self.queue.acknowledge.remote(cell, pickle.dumps(event) if record else b""))

    def seen(self, state: Mapping[str, Any], seconds: Mapping[str, float]) -> tuple[Group, ...]:
        """Return the groups as a decision sees them.

        Args:
            state: of the queue.
            seconds: that cells are estimated to take, by their ids.
        """
        return tuple(self._seen(group, state, seconds, time.monotonic()) for group in list(self._groups.values()))

    def _seen(self, group: _Group, state: Mapping[str, Any], seconds: Mapping[str, float], now_s: float) -> Group:
        out = [cell for cell, owner in state["out"].items() if owner == group.name]
        group.out_from_s = {cell: group.out_from_s.get(cell, now_s) for cell in out}
        left_s = max([0.0, *(since + seconds.get(cell, 0.0) - now_s for cell, since in group.out_from_s.items())])
        waits_s = 0.0 if group.name in state["entered"] else now_s - group.since_s
        return Group(group.name, group.node, group.size, min(group.size, len(out)), left_s, group.leaving, waits_s)

    def _guarded(self, group: _Group) -> None:
        try:
            self._score(group)
        except BaseException as error:  # noqa: BLE001 - raised by the thread that reaps
            group.error = error

    def _score(self, group: _Group) -> None:
        """Score the queue's cells until the group is told to leave; each is acknowledged once its record is written.

        What happens on the way goes through the relay, records through the stream.
        """
        with self._building:  # Ray Data has one context for all; a dataset keeps what that was when it was made
            rows = _rows(self._dataset(group))
        with closing(rows):  # else the scorers of a machine that is full would stay
            while (row := _next(rows)) is not None:
                event = heard(row["happened"])
                if isinstance(event, AnswersWritten):
                    self.judges.take(event)
                    continue
                self.listen(event)
                record = row["happened"] if isinstance(event, CellRecorded) else b""
                ray.get(self.queue.acknowledge.remote(row["cell"], record))

    def _dataset(self, group: _Group) -> ray.data.Dataset:
        context = DataContext.get_current()
        context.target_max_block_size = 1  # else rows wait for a block to fill, which is at the end
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it would say is raised here
        # Without limits of its own it would count the lanes' CPUs as its to wait for.
        context.execution_options.resource_limits = ExecutionResources(
            cpu=group.size * self.scorer.cpus, gpu=group.size * self.scorer.gpus
        )
        on_node = {"label_selector": {NODE: group.node}}
        cells = CellSource(self.queue, group.name, group.size)
        # A reader that Ray starts again would have its first cells taken for those that the one before gave out.
        once = {"ray_remote_args": {"max_retries": 0}}
        return ray.data.read_datasource(cells, override_num_blocks=1, num_cpus=0, **once, **on_node).map_batches(
            ScoringActor,
            fn_constructor_args=(
                self.recorder, self.queue, self.relay, group.name, group.size, self.scorer.gpus > 0,
                ledger_id(self.recorder.ledger.storage),
            ),
            batch_size=1,  # a block, which None would take as well, but Ray Data refuses None with GPUs
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=group.size, max_tasks_in_flight_per_actor=1),
            num_cpus=self.scorer.cpus,
            num_gpus=self.scorer.gpus,
            zero_copy_batch=True,
            max_restarts=0,  # Ray would start it again on its node for ever, though that is gone
            **on_node,
        )  # fmt: skip


def _rows(dataset: Any) -> Generator[Row]:
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


def _next(rows: Iterator[Row]) -> Row | None:
    """Return the next row; None at the end. Raises GroupLost for whatever Ray raises."""
    try:
        return next(rows, None)
    except Exception as error:  # Ray Data raises its own errors, Ray's, and those of user code
        lines = redact(str(error)).strip().splitlines()
        named = _ACTOR.search(str(error))
        text, scorer = f"{type(error).__name__}: {lines[-1] if lines else ''}", named.group(1) if named else ""
        raise GroupLost(text, isinstance(error, WorkerCrashedError), scorer) from error
