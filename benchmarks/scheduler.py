"""The scheduler's own decisions on the paper's grid, on clusters that are not there: how busy, how long, how fast.

    python benchmarks/scheduler.py [--seed N]

Nothing is trained and no Ray is started: ``scheduling.allocation`` decides, and a clock jumps from one event to the
next. Full tuning takes gangs of 8 GPUs of one node, LoRA and scoring one GPU each; a node has 8. What a training or a
cell really takes differs from its estimate by a factor of standard deviation 0.2 (log-normal); lanes and scorers take
45 s to start.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from paper_grid import SCORING_S, Trajectory, trajectories

from massive_sft.scheduling.allocation import Allocator
from massive_sft.scheduling.cluster_state import (
    Cells,
    Group,
    Lane,
    Orders,
    ScoringRules,
    Situation,
    size_of,
)
from massive_sft.scheduling.nodes import Node, Shape

START_S = 45.0  # of a lane or a scorer, as it turns out
TICK_S = 120.0  # between decisions when nothing happens
NOISE = 0.2
GPUS_A_NODE = 8
MAX_WAITING_BYTES = 2e12  # the default of storage.max_waiting


@dataclass
class Cell:
    """A cell: seconds by estimate and as it turns out, and the bytes of its snapshot."""

    estimate_s: float
    real_s: float
    size_bytes: float


@dataclass
class Training:
    """A training on its lane: seconds by estimate and as it turns out, and the cells of its epochs."""

    shape: Shape
    estimate_s: float
    real_s: float
    cells: list[tuple[float, Cell]]  # at which part of the training

    def __post_init__(self) -> None:
        self.scoring_s = sum(cell.estimate_s for _, cell in self.cells)
        self.chain_s = self.estimate_s + max(cell.estimate_s for _, cell in self.cells)


@dataclass
class SimulatedLane:
    name: str
    shape: Shape
    nodes: tuple[str, ...]
    since_s: float
    training: Training | None = None
    until_s: float = 0.0  # by estimate
    idle_from_s: float = math.inf
    leaving: bool = False

    @property
    def up(self) -> bool:
        return math.isfinite(self.idle_from_s)

    def seen(self, now_s: float) -> Lane:
        """Return it as a decision sees it."""
        busy = self.training is not None
        left_s = max(0.0, self.until_s - now_s) if busy else 0.0
        idle_s = now_s - self.idle_from_s if self.up and not busy else 0.0
        return Lane(self.name, self.shape, self.nodes, busy, now_s - self.since_s, idle_s, left_s, self.leaving)


@dataclass
class SimulatedGroup:
    name: str
    node: str
    size: int
    until_s: dict[int, float] = field(default_factory=dict)  # by estimate, of each cell in hand
    up: bool = False
    leaving: bool = False

    def seen(self, now_s: float) -> Group:
        """Return it as a decision sees it."""
        left_s = max([0.0, *(until_s - now_s for until_s in self.until_s.values())])
        return Group(self.name, self.node, self.size, len(self.until_s), left_s, self.leaving)


@dataclass
class Outcome:
    """What came of a simulation.

    Attributes:
        busy: share of all GPUs' time until 95 % of the work (GPU seconds) was begun.
        makespan_s, bound_s: the time it took, and the least that it could have.
        slowest_s, decisions: of one decision, and how many there were.
    """

    busy: float
    makespan_s: float
    bound_s: float
    slowest_s: float
    decisions: int

    @property
    def ratio(self) -> float:
        return self.makespan_s / self.bound_s


class Simulation:
    """One run of a grid on a cluster."""

    def __init__(self, nodes: Sequence[Node], trainings: Sequence[Training], base: Sequence[Cell], rules: ScoringRules):
        self.nodes = tuple(nodes)
        self.allocator = Allocator(rules)
        self.scorer = rules.scorer
        self.todo = sorted(trainings, key=lambda training: -training.chain_s)
        self.queued: list[Training] = []
        self.waiting: list[tuple[float, int, Cell]] = []
        self.lanes: dict[str, SimulatedLane] = {}
        self.groups: dict[str, SimulatedGroup] = {}
        self.now_s = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.number = itertools.count()
        self.cells_left = sum(len(training.cells) for training in trainings) + len(base)
        self.hold = False
        self.trials = 0
        self.in_hand = 0
        self.done: list[tuple[float, float, float]] = []  # begin, end, GPUs of each piece of work
        self.slowest_s, self.decisions = 0.0, 0
        for cell in base:
            self._wait(cell)

    def run(self, until_s: float = math.inf) -> None:
        """Run to the end, or to some moment."""
        self._at(0.0, self._tick)
        self._decide()
        while self.cells_left and self.now_s < until_s:
            self.now_s, _, event = heapq.heappop(self.events)
            event()
            while self.events and self.events[0][0] == self.now_s:
                heapq.heappop(self.events)[2]()
            self._decide()

    def _at(self, time_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self.events, (time_s, next(self.number), event))

    def _tick(self) -> None:
        self._at(self.now_s + TICK_S, self._tick)

    def _wait(self, cell: Cell) -> None:
        heapq.heappush(self.waiting, (-cell.estimate_s, next(self.number), cell))

    def _situation(self) -> Situation:
        lanes = tuple(lane.seen(self.now_s) for lane in self.lanes.values())
        groups = tuple(group.seen(self.now_s) for group in self.groups.values())
        left: dict[Shape, list[Training]] = {}
        for training in (*self.queued, *self.todo):
            left.setdefault(training.shape, []).append(training)
        orders = {}
        for shape, trainings in left.items():
            queued = sum(training.shape == shape for training in self.queued)
            seconds = sum(training.estimate_s for training in trainings) / len(trainings)
            scoring_s = sum(training.scoring_s for training in trainings) / len(trainings)
            orders[shape] = Orders(queued, len(trainings) - queued, seconds, scoring_s)
        more = bool(orders or any(lane.training for lane in self.lanes.values()))
        cells = [cell for _, _, cell in self.waiting]
        waiting = Cells(
            len(cells), sum(cell.estimate_s for cell in cells), sum(cell.size_bytes for cell in cells), more
        )
        return Situation(self.now_s, self.nodes, lanes, groups, orders, waiting)

    def _decide(self) -> None:
        situation = self._situation()
        begun = time.thread_time()
        decision = self.allocator.decide(situation)
        self.slowest_s = max(self.slowest_s, time.thread_time() - begun)
        self.decisions += 1
        self.hold, self.trials = decision.hold_orders, decision.trials
        for name in decision.end_lanes:
            self.lanes[name].leaving = True
        for name in decision.end_groups:
            self.groups[name].leaving = True
        for shape, nodes in decision.start_lanes:
            lane = SimulatedLane(f"lane {next(self.number)}", shape, nodes, self.now_s)
            self.lanes[lane.name] = lane
            self._at(self.now_s + START_S, lambda lane=lane: self._is_idle(lane))
        for node, size in decision.start_groups:
            group = SimulatedGroup(f"group {next(self.number)}", node, size)
            self.groups[group.name] = group
            self._at(self.now_s + START_S, lambda group=group: setattr(group, "up", True))
        self._work()
        if decision.start_lanes or decision.start_groups or decision.end_lanes or decision.end_groups:
            self._at(self.now_s + 1.0, lambda: None)  # it has more to decide, as a run has at its next look

    def _is_idle(self, lane: SimulatedLane) -> None:
        lane.training, lane.idle_from_s = None, self.now_s

    def _work(self) -> None:
        while self.todo and len(self.queued) + self.in_hand < self.trials:
            self.queued.append(self.todo.pop(0))
        for lane in list(self.lanes.values()):
            if lane.training is None and lane.leaving:
                del self.lanes[lane.name]
            elif lane.training is None and lane.up and not self.hold:
                self._train(lane)
        for group in list(self.groups.values()):
            if group.leaving and not group.until_s:
                del self.groups[group.name]
            while group.up and not group.leaving and self.waiting and len(group.until_s) < group.size:
                self._score(group, heapq.heappop(self.waiting)[2])

    def _train(self, lane: SimulatedLane) -> None:
        mine = next((training for training in self.queued if training.shape == lane.shape), None)
        if mine is None:
            return
        self.queued.remove(mine)
        self.in_hand += 1
        lane.training, lane.until_s = mine, self.now_s + mine.estimate_s
        for part, cell in mine.cells:
            self._at(self.now_s + part * mine.real_s, lambda cell=cell: self._wait(cell))
        self._at(self.now_s + mine.real_s, lambda: self._trained(lane))
        self.done.append((self.now_s, self.now_s + mine.real_s, size_of(lane.shape)))

    def _trained(self, lane: SimulatedLane) -> None:
        self._is_idle(lane)
        self.in_hand -= 1

    def _score(self, group: SimulatedGroup, cell: Cell) -> None:
        number = next(self.number)
        group.until_s[number] = self.now_s + cell.estimate_s
        self._at(self.now_s + cell.real_s, lambda: self._scored(group, number))
        self.done.append((self.now_s, self.now_s + cell.real_s, size_of(self.scorer)))

    def _scored(self, group: SimulatedGroup, number: int) -> None:
        del group.until_s[number]
        self.cells_left -= 1

    def outcome(self, chain_s: float) -> Outcome:
        """Return what came of it.

        Args:
            chain_s: the longest training with its longest cell.
        """
        gpus = sum(node.gpus for node in self.nodes)
        work = sum((end - begin) * held for begin, end, held in self.done)
        begun = itertools.accumulate((end - begin) * held for begin, end, held in self.done)
        last_s = next(begin for (begin, _, _), so_far in zip(self.done, begun, strict=True) if so_far >= 0.95 * work)
        busy = sum((min(end, last_s) - begin) * held for begin, end, held in self.done if begin < last_s)
        bound_s = max(work / gpus, chain_s)
        return Outcome(busy / (gpus * last_s), self.now_s, bound_s, self.slowest_s, self.decisions)


def simulate(gpus: int, kinds: Sequence[str], seed: int = 1, max_waiting_bytes: float = MAX_WAITING_BYTES) -> Outcome:
    """Run the paper's grid on so many GPUs.

    Args:
        kinds: of GPUs, as many of each. With two, full tuning asks for the first and LoRA for the second; what scores
            is of any kind. Both are equally fast, as an H100 and an H200 compute.
    """
    chance = random.Random(seed)
    count = gpus // GPUS_A_NODE
    nodes = [Node(f"{n:03}", 128, GPUS_A_NODE, kinds[n * len(kinds) // count]) for n in range(count)]
    shapes = {
        full: Shape(8 if full else 1, 8, 1, (kinds[0] if full else kinds[-1]) if len(kinds) > 1 else "")
        for full in (True, False)
    }
    trainings = [_training(item, shapes[item.full], chance) for item in trajectories()]
    base = [_cell(seconds, 0.0, chance) for seconds in SCORING_S.values()]
    rules = ScoringRules(Shape(1, 8, 1), None, max_waiting_bytes)
    simulation = Simulation(nodes, trainings, base, rules)
    simulation.run()
    return simulation.outcome(max(_chain(training) for training in trainings))


def _training(item: Trajectory, shape: Shape, chance: random.Random) -> Training:
    seconds = item.gpu_s / shape.workers
    cells = [(epoch / item.epochs, _cell(item.cell_s, item.cell_bytes, chance)) for epoch in item.snapshots]
    return Training(shape, seconds, seconds * _noise(chance), cells)


def _cell(seconds: float, size_bytes: float, chance: random.Random) -> Cell:
    return Cell(seconds, seconds * _noise(chance), size_bytes)


def _chain(training: Training) -> float:
    return max(part * training.real_s + cell.real_s for part, cell in training.cells)


def _noise(chance: random.Random) -> float:
    return math.exp(chance.gauss(0.0, NOISE))


def slowest_decision(orders: int = 10_000) -> float:
    """Return the seconds of the slowest decision while so many trajectories wait, on 512 GPUs."""
    shapes = [Shape(8, 8, 1), Shape(1, 8, 1)]
    trainings = [Training(shapes[n % 2], 240.0, 240.0, [(1.0, Cell(600.0, 600.0, 1e9))]) for n in range(orders)]
    rules = ScoringRules(Shape(1, 8, 1), None, MAX_WAITING_BYTES)
    simulation = Simulation([Node(f"{n:03}", 128, 8) for n in range(64)], trainings, [], rules)
    simulation.run(until_s=3600.0)
    return simulation.slowest_s


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print("| GPUs | kinds | busy | hours | bound | ratio | decisions |")
    print("|---|---|---|---|---|---|---|")
    for gpus, kinds in itertools.product((8, 64, 512), (("H100",), ("H200", "H100"))):
        if gpus // GPUS_A_NODE < len(kinds):
            continue
        found = simulate(gpus, kinds, arguments.seed)
        hours, bound = found.makespan_s / 3600, found.bound_s / 3600
        print(
            f"| {gpus} | {len(kinds)} | {found.busy:.3f} | {hours:.1f} | {bound:.1f} | {found.ratio:.3f} "
            f"| {found.decisions:,} |"
        )
    print(f"\nslowest decision with 10,000 trajectories queued on 512 GPUs: {1000 * slowest_decision():.1f} ms")


if __name__ == "__main__":
    main()
