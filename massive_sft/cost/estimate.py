"""What is left of a plan in hours, GPU-hours, money, bytes and memory, with what could not be estimated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from massive_sft.cost.calibrate import measured_inputs
from massive_sft.cost.cost_table import ScoringCosts
from massive_sft.cost.devices import Device
from massive_sft.cost.disk import Disk, peak_disk
from massive_sft.cost.duration import (
    READ_BYTES_PER_SECOND,
    SCORING_SHARE,
    UNKNOWN,
    ZERO,
    Quantity,
    perplexity_operations,
    scoring_seconds,
    training_seconds,
)
from massive_sft.cost.extension import Extensions, trained_part
from massive_sft.cost.fit import Fit, check_fits
from massive_sft.cost.inputs import CostInputs
from massive_sft.cost.lack import NO_GPU_KIND, NO_REQUESTS, NO_ROWS, NO_SIZE, NO_SUCH_GPU, Lack, told
from massive_sft.cost.memory import bytes_per_number, planned_layout
from massive_sft.cost.shapes import ModelShape
from massive_sft.ledger.asked import full_id
from massive_sft.ledger.record import Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.adapter_groups import grouped
from massive_sft.planning.plan import CellPlan, Plan, RunPlan, perplexity_key
from massive_sft.planning.requirements import Requirement
from massive_sft.planning.trained import epochs_to_retrain, trained_epochs
from massive_sft.sweep.cell import Recipe
from massive_sft.sweep.schema import Model

GPU_LOAD_S, CPU_LOAD_S = 5.0, 0.5  # of a model to score, beside reading its weights
GPU_OTHER_S, CPU_OTHER_S = 2.0, 0.3  # of a cell, beside loading, scoring and measuring: files, checksums, its record
INSTANT = frozenset({"token_length"})  # measures that cost nothing worth counting


@dataclass(frozen=True)
class Cost:
    """The price of what is left to do.

    Attributes:
        training, evaluation: seconds, one after another; not ``complete`` where something could not be estimated.
        gpu_seconds: None where no GPU is used.
        price: of a GPU-hour; None where the file names none.
        saved: seconds that the trainings left would take more with a run for each cell.
        disk: None where a model's shape is not known.
        fits: memory of each kind of training.
        unknown: what the sums lack: how many trainings or benchmarks by why.
        runs, measured: trainings left, and how many of them are of a kind that was measured here.
        retrainings, retraining: trainings whose snapshots are needed and were removed, and the seconds of repeating
            them and of what they are needed for; in none of the sums above, for only ``--retrain`` does it.
        extensions: of the trainings left, those of which a part was trained before.
        grouped, groups: trainings left that take their steps with others, and in how many groups. They are priced as if
            each was alone, which is the most they take: the work is the same, and a pass's own cost is paid once.
    """

    training: Quantity
    evaluation: Quantity
    gpu_seconds: Quantity | None
    price: float | None
    saved: Quantity
    disk: Disk | None
    fits: tuple[Fit, ...]
    unknown: Mapping[str, int]
    runs: int
    measured: int
    retrainings: int
    retraining: Quantity
    extensions: Extensions
    grouped: int
    groups: int

    @property
    def money(self) -> Quantity | None:
        """The price, in the currency of ``price``; None without a price or a GPU."""
        if self.gpu_seconds is None or self.price is None:
            return None
        return self.gpu_seconds.times(self.price / 3600)


class Estimator:
    """Estimates of one plan's parts. A mixture's perplexity under a base is counted once, where it is first needed.

    Attributes:
        whole: whether to count what is in caches already, as if the sweep began anew.
        lacks: what could not be estimated so far, counted.
    """

    def __init__(self, plan: Plan, whole: bool = False):
        self.inputs, self.whole = measured_inputs(plan), whole
        self.lacks: Counter[Lack] = Counter()
        self._perplexed: set[str] = set()
        self._measured: dict[tuple[str, str], Mapping[str, ScoringCosts]] = {}
        self._alike: dict[tuple[object, ...], tuple[Quantity, Counter[Lack]]] = {}

    def training(self, run: RunPlan) -> Quantity | None:
        """Return the seconds of a run's training; None, and counted in ``unknown``, where it cannot be told."""
        recipe, inputs = run.trajectory.recipe, self.inputs
        shape, device, workload = inputs.shape(recipe.model), inputs.device(run), inputs.workload(recipe)
        if shape is None or device is None or workload is None:
            self.lacks[self._why(run, shape is None, device is None)] += 1
            return None
        return training_seconds(
            shape,
            recipe.setting,
            planned_layout(shape, recipe.setting, run.layout, workload.longest, device),
            workload,
            run.trajectory.epochs,
            len(run.trajectory.snapshots),
            device,
            inputs.trained_alike(run, shape, device),
            inputs.table,
        )

    def _why(self, run: RunPlan, no_shape: bool, no_device: bool) -> Lack:
        recipe = run.trajectory.recipe
        if no_shape:
            return Lack(NO_SIZE, recipe.model_name)
        if no_device:
            return NO_GPU_KIND if run.gpu is None else Lack(NO_SUCH_GPU, run.gpu)
        return Lack(NO_ROWS, recipe.mixture.name)

    def cell(self, cell: CellPlan, run: RunPlan | None, items: Iterable[Requirement]) -> Quantity:
        """Return the seconds of scoring and measuring ``items`` of a cell; what cannot be told is left out."""
        inputs, recipe = self.inputs, run.trajectory.recipe if run else None
        wanted = [item for item in items if item.measure not in INSTANT]
        if not wanted:
            return ZERO
        shape, device = inputs.shape(cell.cell.model), inputs.scoring_device
        if shape is None or device is None:
            self.lacks[NO_GPU_KIND if shape else Lack(NO_SIZE, cell.cell.coordinates.model)] += 1
            return ZERO
        method = recipe.setting.method if recipe else "none"
        alike = (cell.cell.model, method, *(item.id for item in wanted))
        rows = self._rows(shape, method, device)
        if alike not in self._alike:
            self._alike[alike] = self._own(wanted, cell.cell.model, rows, shape, device)
        total, lacks = self._alike[alike]
        self.lacks.update(lacks)
        if recipe is not None and any(item.measure == "perplexity" for item in wanted):
            total += self._perplexity(recipe, rows, shape, device)
        return total

    def unmet(self, cell: CellPlan, run: RunPlan | None) -> Quantity:
        """Return the seconds of what a cell lacks; not ``complete`` where some of that cannot be told."""
        before = self.lacks.total()
        seconds = self.cell(cell, run, cell.unmet)
        return seconds + UNKNOWN if self.lacks.total() > before else seconds

    def _rows(self, shape: ModelShape, method: str, device: Device) -> Mapping[str, ScoringCosts]:
        if (shape.key, method) not in self._measured:
            self._measured[shape.key, method] = self.inputs.scored_alike(shape, method, device)
        return self._measured[shape.key, method]

    def _own(
        self,
        wanted: Iterable[Requirement],
        model: Model,
        rows: Mapping[str, ScoringCosts],
        shape: ModelShape,
        device: Device,
    ) -> tuple[Quantity, Counter[Lack]]:
        """Return what every cell of a kind takes by itself, and what of it could not be told."""
        inputs, lacks = self.inputs, Counter[Lack]()
        dtype = inputs.plan.sweep.file.evaluation.protocol.dtype

        def mean(what: str, otherwise: float) -> Quantity:
            if what in rows:
                return Quantity(rows[what].mean, True)
            measured = inputs.table.mean(device.name, what)
            return Quantity(otherwise if measured is None else measured, False)

        load_s, other_s = (GPU_LOAD_S, GPU_OTHER_S) if device.is_gpu else (CPU_LOAD_S, CPU_OTHER_S)
        total = mean("other", other_s)
        tasks = [item for item in wanted if item.is_benchmark or item.texts is not None]
        if tasks:
            total += mean("load", load_s + bytes_per_number(dtype) * shape.parameters / READ_BYTES_PER_SECOND)
        for item in tasks:
            load = inputs.requests.load(item, inputs.bytes_per_token(model))
            # What is not known of early answers is what all questions take, which is the most.
            row = rows.get(item.id) or rows.get(full_id(item.id))
            seconds = scoring_seconds(shape, dtype, load, device, row, inputs.table)
            if seconds is None:
                lacks[Lack(NO_REQUESTS, item.label)] += 1
            total += seconds or ZERO
        if any(item.measure == "layer_change" for item in wanted):
            reading = 2 * bytes_per_number("fp32") * shape.parameters / READ_BYTES_PER_SECOND
            total += mean("layer_change", reading)
        return total, lacks

    def _perplexity(
        self, recipe: Recipe, rows: Mapping[str, ScoringCosts], shape: ModelShape, device: Device
    ) -> Quantity:
        if recipe.id in self._perplexed:
            return ZERO
        key, workload = perplexity_key(recipe), self.inputs.workload(recipe)
        cached = not self.whole and self.inputs.plan.storage.exists(f"cache/perplexity/{key}/perplexity.json")
        done = cached or key in self._perplexed
        self._perplexed |= {key, recipe.id}
        if done:
            return ZERO
        if workload is None:
            self.lacks[Lack(NO_ROWS, recipe.mixture.name)] += 1
            return ZERO
        operations, row = perplexity_operations(shape, workload), rows.get("perplexity")
        if row is not None and row.operations and row.seconds:
            return Quantity(operations / row.operations * row.seconds, workload.sure)
        speed = self.inputs.table.speed(device.name, "score") or SCORING_SHARE * device.flops(recipe.setting.precision)
        return Quantity(operations / speed, False)


def estimate(plan: Plan) -> Cost:
    """Estimate what is left of a plan. Reads small files under its storage root; nothing is written."""
    estimator = Estimator(plan)
    inputs = estimator.inputs
    training = evaluation = gpus = again = saved = ZERO
    extensions, begun = Extensions(), set(Ledger(plan.storage).ids("trajectories"))
    to_train = runs_to_train(plan)
    for run in to_train:
        seconds, epochs = estimator.training(run) or UNKNOWN, run.trajectory.epochs
        saved += seconds.times(sum(run.trajectory.snapshots) / epochs - 1)
        resumed, published = trained_part(plan.storage, run) if run.trajectory.id in begun else (0.0, 0)
        if resumed:
            seconds, extensions = seconds.times(1 - resumed / epochs), extensions.resuming()
        elif published:
            extensions = extensions.repeating(published, seconds.times(published / epochs))
        training += seconds
        gpus += seconds.times(run.layout.gpus)
    groups = [run for run in grouped(to_train, {run.trajectory.id for run in to_train}) if run.grouped_with]
    gone = _retrainings(plan)
    for run in gone:
        again += estimator.training(run) or UNKNOWN
    for of, cell in _cells(plan):
        seconds = estimator.unmet(cell, of)
        if of is not None and of.needs_retraining:
            again += seconds
            continue
        evaluation += seconds
        gpus += seconds.times(inputs.scoring_gpus)
    return Cost(
        training,
        evaluation,
        gpus if inputs.uses_gpus else None,
        plan.sweep.file.budget.price_per_gpu_hour,
        saved,
        peak_disk(inputs, to_train),
        tuple(check_fits(inputs, [*to_train, *gone])),
        told(estimator.lacks),
        len(to_train),
        sum(_is_measured(inputs, run) for run in to_train),
        len(gone),
        again,
        extensions,
        sum(1 + len(run.grouped_with) for run in groups),
        len(groups),
    )


def _cells(plan: Plan) -> Iterable[tuple[RunPlan | None, CellPlan]]:
    for run in plan.todo:
        yield from ((run, cell) for cell in run.cells)
    yield from ((None, cell) for cell in plan.base)


def _is_measured(inputs: CostInputs, run: RunPlan) -> bool:
    shape, device = inputs.shape(run.trajectory.recipe.model), inputs.device(run)
    return shape is not None and device is not None and inputs.trained_alike(run, shape, device) is not None


_TRAINED: Collection[Status] = frozenset({Status.COMPLETE, Status.PARTIAL, Status.DIVERGED, Status.PRUNED})


def runs_to_train(plan: Plan, retrain: bool = False) -> list[RunPlan]:
    """Return the runs that a run of this plan trains, with ``retrain`` those too whose snapshots were removed.

    The latter end with the last snapshot that is needed again.
    """
    again = {run.trajectory.id: run for run in _retrainings(plan)} if retrain else {}
    runs = (run if must_train(plan, run) else again.get(run.trajectory.id) for run in plan.todo)
    return [run for run in runs if run is not None]


def _retrainings(plan: Plan) -> list[RunPlan]:
    flagged = [run for run in plan.todo if run.needs_retraining]
    lost = [epochs_to_retrain(plan.storage, run.trajectory, run.cells) for run in flagged]
    return [
        replace(run, trajectory=run.trajectory.up_to(max(epochs)))
        for run, epochs in zip(flagged, lost, strict=True)
        if epochs
    ]


def must_train(plan: Plan, run: RunPlan) -> bool:
    """Return whether a run's training is still to do: some epoch is not trained yet. ``--retrain`` is apart."""
    if all(cell.status in _TRAINED for cell in run.cells if not cell.is_done):
        return False
    wanted = {str(epoch) for epoch in run.trajectory.snapshots}
    return not wanted <= trained_epochs(plan.storage, run.trajectory)
