"""What a plan asks of a cluster: the shapes of its lanes and scorers, and what each piece of work should take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.files import format_bytes
from massive_sft.core.wording import counted
from massive_sft.cost.devices import find_gpu
from massive_sft.cost.disk import parse_size, snapshot_bytes
from massive_sft.cost.estimate import Estimator
from massive_sft.cost.inputs import CostInputs
from massive_sft.cost.memory import trained_weights, training_memory
from massive_sft.ledger.storage import Folder
from massive_sft.planning.plan import CellPlan, Plan, RunPlan
from massive_sft.running.trial import todo
from massive_sft.scheduling.cluster_state import ScoringRules
from massive_sft.scheduling.nodes import Node, Room, Shape
from massive_sft.sweep.resources import scoring_resources

UNKNOWN_SNAPSHOT_BYTES = 20 * 10**9  # of a base model whose size is not known: 8B parameters in bf16, and some more
OFFLOADED_BYTES = 16  # of host memory for each trained weight: its master copy, two moments and a gradient in fp32
HALF = 0.5  # of each node's CPUs is the lanes', the other the scorers', where nobody has a GPU


class NoRoom(InvalidInput):
    """The cluster's nodes could not hold all that is asked for, even empty: says each, with its rule and what is there.

    Attributes:
        shapes: that have no room.
    """

    def __init__(self, problems: Sequence[Problem], shapes: Sequence[Shape]):
        self.shapes = list(shapes)
        super().__init__(problems)

    def __reduce__(self) -> tuple[type[NoRoom], tuple[list[Problem], list[Shape]]]:
        return NoRoom, (self.problems, self.shapes)


@dataclass(frozen=True)
class Demand:
    """What is left of a plan, as far as it asks for room.

    Attributes:
        rules: how cells are scored.
        shapes, training_s: of each training, by trajectory.
        cells_s, chain_s: of its cells together, and of it with the longest of them, by trajectory.
        scoring_s, size_bytes: of each cell and its snapshot, by cell; what cannot be estimated counts as nothing.
        shape_of: returns the shape of the lanes that train a run, of these or another one.
    """

    rules: ScoringRules
    shapes: Mapping[str, Shape]
    training_s: Mapping[str, float]
    cells_s: Mapping[str, float]
    chain_s: Mapping[str, float]
    scoring_s: Mapping[str, float]
    size_bytes: Mapping[str, float]
    shape_of: Callable[[RunPlan], Shape]

    def __str__(self) -> str:
        scorer = f"scorers have {_each(self.rules.scorer)} each"
        if not self.shapes:
            return f"nothing is left to train; {scorer}"
        lanes = ", ".join(str(shape) for shape in sorted(set(self.shapes.values())))
        return f"lanes of {lanes}; {scorer}"


def _each(shape: Shape) -> str:
    return f"{shape.gpus:g} {shape.kind or 'GPU'}" if shape.gpus else f"{shape.cpus:g} CPU"


def make_demand(
    plan: Plan, runs: Sequence[RunPlan], ready: Sequence[tuple[CellPlan, RunPlan | None]], nodes: Sequence[Node]
) -> Demand:
    """Return what trainings and cells ask for.

    Args:
        runs: those that are to be trained.
        ready: cells that can be scored at once, with their runs.
        nodes: of the cluster, as it is now.

    Raises:
        NoRoom: some of it has no room even when nothing else is there; all such problems at once.
    """
    estimator = Estimator(plan)
    training_s, scoring_s, size_bytes = dict[str, float](), dict[str, float](), dict[str, float]()
    for run in runs:
        seconds = estimator.training(run)
        training_s[run.trajectory.id] = seconds.value if seconds else 0.0
    for cell, of in [*ready, *((cell, run) for run in runs for cell in todo(run))]:
        scoring_s[cell.cell.id] = estimator.cell(cell, of, cell.unmet).value
        size_bytes[cell.cell.id] = _snapshot_bytes(of, estimator.inputs) if of else 0.0
    scorer = _scorer(plan, bool(runs), nodes)
    share = HALF if runs and not scorer.gpus else 1.0
    work_s = sum(run.layout.workers * training_s[run.trajectory.id] for run in runs if not run.layout.gpus)
    part = work_s / (work_s + sum(scoring_s.values())) if work_s and not scorer.gpus else share
    shape_of = partial(_lane, nodes=nodes, share=share, part=part, inputs=estimator.inputs)
    shapes = {run.trajectory.id: shape_of(run) for run in runs}
    unplaceable = dict(_unplaceable(plan, runs, shapes, scorer, nodes, share))
    if unplaceable:
        raise NoRoom(list(unplaceable.values()), list(unplaceable))
    resources = scoring_resources(plan.sweep.file.resources)
    allowed = parse_size(plan.sweep.file.storage.max_waiting)
    cells_s = {run.trajectory.id: [scoring_s[cell.cell.id] for cell in todo(run)] for run in runs}
    return Demand(
        ScoringRules(scorer, resources.most, allowed, HALF),
        shapes,
        training_s,
        {run: sum(seconds) for run, seconds in cells_s.items()},
        {run: training_s[run] + max(seconds, default=0.0) for run, seconds in cells_s.items()},
        scoring_s,
        size_bytes,
        shape_of,
    )


def gpu_kinds(nodes: Iterable[Node]) -> list[str]:
    """Return the kinds of GPU that nodes have, as Ray names them."""
    return sorted({node.kind for node in nodes if node.gpus and node.kind})


def _scorer(plan: Plan, trains: bool, nodes: Sequence[Node]) -> Shape:
    resources = scoring_resources(plan.sweep.file.resources)
    if resources.gpus:
        kind = _kind(resources.kind, nodes)
        return Shape(1, resources.gpus * _cpus_a_gpu(nodes, kind), resources.gpus, kind)
    largest = max((node.cpus for node in nodes), default=1.0)
    return Shape(1, min(1.0, HALF * largest if trains else largest), 0.0)


def _lane(run: RunPlan, nodes: Sequence[Node], share: float, part: float, inputs: CostInputs) -> Shape:
    """Return the shape of the lanes that train a run; without GPUs a worker holds one CPU, or what there is for it.

    Args:
        share: of each node's CPUs that lanes may hold.
        part: of the work without GPUs that is training. Where it is more than the share, workers hold less than the
            CPU that they keep busy, so that more of them train while scorers wait.
    """
    layout = run.layout
    if layout.gpus:
        kind = _kind(run.gpu or "", nodes)
        gpus = layout.gpus / layout.workers
        return Shape(layout.workers, gpus * _cpus_a_gpu(nodes, kind), gpus, kind, _host_bytes(run, inputs))
    held = share * sum(node.cpus for node in nodes)
    cpus = min(_cpus_a_worker(run, nodes, share, part, inputs), held / layout.workers)
    shape, room = Shape(layout.workers, cpus, 0.0), Room(nodes, share)
    while shape.cpus > 1 / 64 and not room.could_hold(shape):  # nodes' parts are small: several workers share a CPU
        shape = shape._replace(cpus=shape.cpus / 2)
    return shape


def _cpus_a_worker(run: RunPlan, nodes: Sequence[Node], share: float, part: float, inputs: CostInputs) -> float:
    """Return what a worker without GPU holds, by the largest node: less than a CPU only where memory is known to do."""
    recipe, largest = run.trajectory.recipe, max(nodes, key=lambda node: node.cpus, default=None)
    shape, workload = inputs.shape(recipe.model), inputs.workload(recipe)
    if largest is None or shape is None or workload is None:
        return 1.0
    needed = training_memory(shape, recipe.setting, run.layout, workload.longest, smallest=False).total
    workers = min(round(part * largest.cpus), share * largest.memory_bytes / needed)
    return min(1.0, share * largest.cpus / max(1, math.floor(workers)))


def _kind(named: str, nodes: Sequence[Node]) -> str:
    """Return a kind of GPU by Ray's name for it; as it is where no node has it, empty where no node says."""
    kinds = gpu_kinds(nodes)
    if not named or not kinds:
        return ""
    device = find_gpu(named)
    alike = [kind for kind in kinds if kind == named or (device is not None and find_gpu(kind) == device)]
    return alike[0] if alike else named


def _cpus_a_gpu(nodes: Sequence[Node], kind: str) -> float:
    """Return the CPUs that go with a GPU: a node's own, in equal parts, one of them left to what has no GPU."""
    shares = [_share(node) for node in nodes if node.gpus and kind in ("", node.kind)]
    return min(shares, default=1.0)


def _share(node: Node) -> float:
    return max(min(1.0, node.cpus / node.gpus), math.floor((node.cpus - 1) / node.gpus))


def _host_bytes(run: RunPlan, inputs: CostInputs) -> float:
    """Return the host memory of a worker's part of an offloaded optimizer; 0 where nothing is, or it is not known."""
    shape = inputs.shape(run.trajectory.recipe.model)
    if run.layout.offload == "none" or shape is None:
        return 0.0
    return OFFLOADED_BYTES * trained_weights(shape, run.trajectory.recipe.setting) / run.layout.workers


def _snapshot_bytes(run: RunPlan, inputs: CostInputs) -> float:
    shape = inputs.shape(run.trajectory.recipe.model)
    return float(snapshot_bytes(shape, run.trajectory.recipe.setting) if shape else UNKNOWN_SNAPSHOT_BYTES)


def _unplaceable(
    plan: Plan, runs: Sequence[RunPlan], shapes: Mapping[str, Shape], scorer: Shape, nodes: Sequence[Node], share: float
) -> Iterator[tuple[Shape, Problem]]:
    """Yield the shapes that these nodes could never hold, and why: with the rule that asks for it and what there is."""
    room = Room(nodes, share)
    places = {shapes[run.trajectory.id]: plan.rules.place(run.trajectory.recipe) for run in reversed(runs)}
    named = {shapes[run.trajectory.id]: run.gpu for run in runs}
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    kinds, there = gpu_kinds(nodes), describe_nodes(nodes)
    for shape in sorted({*shapes.values(), *([scorer] if scorer.gpus else [])}):
        place, asked = places.get(shape, plan.sweep.place("resources")), round(shape.workers * shape.gpus)
        if shape.kind and shape.kind not in kinds:
            rule = f"names a kind of GPU that no node of the cluster has: there are {', '.join(kinds)}"
            yield shape, Problem(f"{place}.gpu", rule, named.get(shape) or shape.kind)
        elif asked > gpus:
            rule = f"asks for more GPUs than the {gpus:g} that the cluster has: {there}"
            yield shape, Problem(place, rule, asked)
        elif not shape.gpus and shape.workers > cpus:
            rule = f"asks for more workers than the {cpus:g} CPUs that the cluster has: {there}"
            yield shape, Problem(place, rule, shape.workers)
        elif not room.could_hold(shape):
            rule = f"asks for what no nodes of one kind have room for, even empty: {there}"
            yield shape, Problem(place, rule, _needs(shape))
        elif shape.workers > 1 and not isinstance(plan.storage, Folder) and not room.one_could_hold(shape):
            rule = f"must fit on one node, for storage.root is in an object store: {there}"
            yield shape, Problem(place, rule, _needs(shape))


def describe_nodes(nodes: Iterable[Node]) -> str:
    """Return how many nodes of which size there are, for people."""
    sizes = Counter(map(_size, sorted(nodes, key=lambda node: (-node.gpus, -node.cpus, node.kind))))
    return "; ".join(f"{counted(count, 'node')} with {size}" for size, count in sizes.items()) or "no node"


def _size(node: Node) -> str:
    gpus = f"{node.gpus:g} {node.kind or 'GPU'}, " if node.gpus else ""
    memory = "" if math.isinf(node.memory_bytes) else f", {format_bytes(node.memory_bytes)}"
    return f"{gpus}{node.cpus:g} CPU{memory}"


def _needs(shape: Shape) -> str:
    memory = f" and {format_bytes(shape.memory_bytes)} of host memory each" if shape.memory_bytes else ""
    return f"{shape}{memory}"
