"""How many GPUs a training should have: what each number of them would take, and the cheapest that fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from massive_sft.core.errors import Problem
from massive_sft.core.files import format_bytes
from massive_sft.cost.devices import Device, find_gpu, gpus_here, known_gpus
from massive_sft.cost.duration import training_seconds, useful_operations
from massive_sft.cost.inputs import CostInputs
from massive_sft.cost.memory import ROOM, capacity, find_remedy, planned_layout, training_memory
from massive_sft.cost.shapes import ModelShape
from massive_sft.cost.workload import TrainingWorkload
from massive_sft.planning.plan import Plan, RunPlan
from massive_sft.sweep.schema import Setting
from massive_sft.sweep.spec import Layout

COUNTS = (1, 2, 4, 8)  # GPUs of a node, between which the links of ``devices.json`` are
NO_KIND = (
    "auto counts GPUs of one known kind, and neither a GPU of this machine nor what was measured tells which: name it "
    "(gpu: H100, A100-80GB, ...), or say how many gpus"
)
_Work = tuple[Setting, TrainingWorkload, int, int]  # with epochs and snapshots


@dataclass(frozen=True)
class GpuCount:
    """What trainings would take on so many GPUs each.

    Attributes:
        layout: of one training.
        needed: bytes on each GPU, by the formulas.
        fits: whether they are there, or a training of the kind was measured here.
        gpu_seconds: of all trainings, start and snapshots included; None where their size is not known.
        mfu: what they must compute over what the GPUs could in that time (``duration.useful_operations``).
    """

    layout: Layout
    needed: int
    fits: bool
    gpu_seconds: float | None
    mfu: float | None


@dataclass(frozen=True)
class GpuCounts:
    """Trainings of one model with one setting, by the number of their GPUs.

    Attributes:
        model, setting: their names.
        kind: of GPU.
        runs: how many trainings.
        taken: GPUs of each.
        counts: by number, the smallest first.
    """

    model: str
    setting: str
    kind: str
    runs: int
    taken: int
    counts: tuple[GpuCount, ...]


def compare_gpu_counts(plan: Plan, runs: Iterable[RunPlan]) -> list[GpuCounts]:
    """Return what trainings on GPUs would take by the number of them; those that cannot be told are left out."""
    inputs, compared = CostInputs(plan), []
    for group in _groups(run for run in runs if run.layout.gpus):
        kind = _kind(inputs, group)
        if kind is None:
            continue
        layout, recipe = group[0].layout, group[0].trajectory.recipe
        free = layout.model_copy(update={"zero": "auto"})
        counts = {number: kind.best(free, number) for number in COUNTS} | {layout.gpus: kind.count(layout)}
        ordered = tuple(counts[number] for number in sorted(counts))
        compared.append(
            GpuCounts(recipe.model_name, recipe.setting_name, kind.device.name, len(group), layout.gpus, ordered)
        )
    return compared


def with_gpu_counts(plan: Plan) -> Plan:
    """Return a plan whose trainings under ``gpus: auto`` have the number of GPUs that takes the fewest GPU-hours.

    All trainings of a model with a setting have the same, whatever of them is done, for their results are compared.
    Where none can be chosen, one GPU stays, and ``undecided`` says why for what is left to do.
    """
    choosing = [run for run in plan.runs if run.chooses_gpus]
    if not choosing:
        return plan
    inputs = CostInputs(plan)
    chosen: dict[str, RunPlan] = {}
    undecided: dict[Problem, None] = {}
    left = {run.trajectory.id for run in plan.todo}
    for group in _groups(choosing):
        found = _choose(inputs, group, plan.rules.place(group[0].trajectory.recipe))
        if not isinstance(found, Problem):
            layout, device = found
            chosen |= {run.trajectory.id: replace(run, layout=layout, gpu=device.name) for run in group}
        elif any(run.trajectory.id in left for run in group):
            undecided[found] = None
    runs = tuple(chosen.get(run.trajectory.id, run) for run in plan.runs)
    return replace(plan, runs=runs, undecided=tuple(undecided))


def _groups(runs: Iterable[RunPlan]) -> Iterable[list[RunPlan]]:
    """Return trainings of one model with one setting (variants of its overrides too) under one rule, together."""
    groups: dict[tuple[object, ...], list[RunPlan]] = {}
    for run in runs:
        recipe = run.trajectory.recipe
        groups.setdefault((recipe.model, recipe.setting_name, run.layout, run.gpu), []).append(run)
    return groups.values()


def _kind(inputs: CostInputs, group: Sequence[RunPlan]) -> _Kind | None:
    shape, device = inputs.shape(group[0].trajectory.recipe.model), inputs.device(group[0])
    return None if shape is None or device is None else _Kind(inputs, group, shape, device)


def _choose(inputs: CostInputs, group: Sequence[RunPlan], place: str) -> tuple[Layout, Device] | Problem:
    """Return the cheapest layout that fits, or why there is none."""
    kind, named = _kind(inputs, group), group[0].gpu
    if inputs.device(group[0]) is None and named is not None:
        rule = "is a kind of GPU without a data sheet here, so auto cannot count for it: say how many gpus, or name one"
        return Problem(f"{place}.gpu", rule, named, tuple(sorted(known_gpus())))
    if inputs.device(group[0]) is None:
        return Problem(f"{place}.gpus", NO_KIND)
    if kind is None:
        name = group[0].trajectory.recipe.model_name
        rule = f"auto needs the size of {name}, which is not known until it is on the disk: fetch it, or say how many"
        return Problem(f"{place}.gpus", rule)
    here = sum(find_gpu(name) == kind.device for name in gpus_here())
    counts = [kind.best(group[0].layout, number) for number in COUNTS if not here or number <= here]
    fitting = [count for count in counts if count.fits]
    if fitting:
        # Where rows are not counted yet, the fewest GPUs: no number of them shares a step without loss.
        return min(fitting, key=lambda count: (count.gpu_seconds or 0.0, count.layout.gpus)).layout, kind.device
    return Problem(f"{place}.gpus", kind.explain(counts))


class _Kind:
    """Trainings of one model with one setting, and the GPU that they run on."""

    def __init__(self, inputs: CostInputs, group: Sequence[RunPlan], shape: ModelShape, device: Device):
        self.device = device
        self._inputs, self._group, self._shape = inputs, group, shape
        recipes = [run.trajectory.recipe for run in group]
        self._settings = {recipe.setting for recipe in recipes}
        workloads = [inputs.workload(recipe) for recipe in recipes]
        self._longest = max(
            workload.longest if workload else recipe.setting.max_length
            for workload, recipe in zip(workloads, recipes, strict=True)
        )
        # None where the size of any is not known; else how many trainings there are of each amount of work.
        self._work: Counter[_Work] | None = (
            None
            if None in workloads
            else Counter(
                (run.trajectory.recipe.setting, workload, run.trajectory.epochs, len(run.trajectory.snapshots))
                for run, workload in zip(group, workloads, strict=True)
                if workload is not None
            )
        )

    def best(self, layout: Layout, number: int) -> GpuCount:
        """Return what so many GPUs would take, sharing no more among them than must be."""
        counts = [self.count(candidate) for candidate in _candidates(layout, number)]
        return next((count for count in counts if count.fits), counts[-1])

    def count(self, layout: Layout) -> GpuCount:
        """Return what a layout would take."""
        needed = max(self._needed(setting, layout) for setting in self._settings)
        alike = self._inputs.trained_alike(replace(self._group[0], layout=layout), self._shape, self.device)
        fits = needed <= ROOM * capacity(self.device, layout) or (alike is not None and alike.peak > 0)
        if self._work is None:
            return GpuCount(layout, needed, fits, None, None)
        used = useful = 0.0
        for work, trainings in self._work.items():
            used += trainings * layout.gpus * self._seconds(work, layout)
            useful += trainings * self._peak_seconds(work, layout)
        return GpuCount(layout, needed, fits, used, useful / used)

    def _needed(self, setting: Setting, layout: Layout) -> int:
        return training_memory(self._shape, setting, self._planned(setting, layout), self._longest).total

    def _planned(self, setting: Setting, layout: Layout) -> Layout:
        return planned_layout(self._shape, setting, layout, self._longest, self.device)

    def _seconds(self, work: _Work, layout: Layout) -> float:
        """Return the seconds of a training by the formulas alone, which are alike for all layouts."""
        setting, workload, epochs, snapshots = work
        shape, table, layout = self._shape, self._inputs.table, self._planned(setting, layout)
        return training_seconds(shape, setting, layout, workload, epochs, snapshots, self.device, None, table).value

    def _peak_seconds(self, work: _Work, layout: Layout) -> float:
        """Return the seconds that one GPU at its peak would take for what a training must compute."""
        setting, workload, epochs, _ = work
        return useful_operations(self._shape, setting, layout, workload, epochs) / self.device.flops(setting.precision)

    def explain(self, counts: Sequence[GpuCount]) -> str:
        """Return that none of some numbers of GPUs is enough, and what would be."""
        recipe, most = self._group[0].trajectory.recipe, counts[-1]
        numbers = ", ".join(str(count.layout.gpus) for count in counts)
        needed = f"{format_bytes(most.needed)} of {format_bytes(self.device.memory)}"
        layout = self._planned(recipe.setting, most.layout)
        remedy = find_remedy(self._shape, recipe.setting, layout, self._longest, self.device)
        ways = [str(remedy)] if remedy else []
        lora = recipe.setting.model_copy(update={"method": "lora"})
        lora_fits = (
            count.layout.gpus for count in counts if self._needed(lora, count.layout) <= ROOM * self.device.memory
        )
        if recipe.setting.method == "full" and (number := next(lora_fits, None)):
            ways.append(f"take a setting of method lora, which fits on {number}")
        ways.append("name a kind of gpu with more memory")
        what = f"auto finds {recipe.model_name} {recipe.setting_name} too large for {numbers} × {self.device.name}"
        return f"{what} (≈ {needed} on each of {most.layout.gpus}): {', or '.join(ways)}"


def _candidates(layout: Layout, number: int) -> Iterator[Layout]:
    """Yield layouts on so many GPUs: at the stage of ZeRO that is asked for, else sharing little, then all."""
    wide = layout.model_copy(update={"gpus": number, "workers": number})
    yield wide
    if layout.zero == "auto" and number > 1 and not layout.within_layers:  # which exclude stage 3
        yield wide.model_copy(update={"zero": 3})
