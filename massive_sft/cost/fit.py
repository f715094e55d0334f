"""Whether each kind of training of a plan fits into its device's memory, and what to change where it does not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from massive_sft.cost.inputs import CostInputs
from massive_sft.cost.memory import (
    Memory,
    Verdict,
    capacity,
    find_remedy,
    judge,
    planned_layout,
    scoring_memory,
    training_memory,
)
from massive_sft.planning.plan import RunPlan
from massive_sft.sweep.schema import Model

NO_REMEDY = "no setting of resources is enough: use a device with more memory, or a smaller model"


@dataclass(frozen=True)
class Fit:
    """The memory of trainings that are alike.

    Attributes:
        what: model and setting, or what is scored.
        where: ``8 × H100``, or ``cpu``.
        runs: how many trainings.
        memory: by the formulas, on one GPU or in one process.
        needed: bytes: measured where a training of this kind ran here, else the formulas' sum.
        available: bytes; None where the kind of GPU is not known.
        verdict: ``does not fit`` only where weights, gradients and optimizer alone are too much.
        remedy: what to change; empty when it fits.
        measured: whether ``needed`` rests on a measurement.
        gradient_checkpointing: that ``memory`` counts with where it is ``auto``; None where it is not.
    """

    what: str
    where: str
    runs: int
    memory: Memory
    needed: int
    available: int | None
    verdict: Verdict
    remedy: str
    measured: bool
    gradient_checkpointing: bool | str | None = None


def check_fits(inputs: CostInputs, todo: Iterable[RunPlan]) -> list[Fit]:
    """Return the memory of what is left of a plan: of each kind of training, and of scoring each model where it does
    not fit; unknown shapes are left out.

    Args:
        todo: the runs that are still to train.
    """
    groups: dict[tuple[object, ...], list[RunPlan]] = {}
    for run in todo:
        recipe = run.trajectory.recipe
        setting, workload = recipe.setting, inputs.workload(recipe)
        longest = workload.longest if workload else setting.max_length
        kind = (recipe.model, setting.method, setting.precision, setting.lora.rank, run.layout, run.gpu, longest)
        groups.setdefault(kind, []).append(run)
    trained = (_training(inputs, group) for group in groups.values())
    models = {cell.cell.model: cell.cell.coordinates.model for cell in inputs.plan.cells if not cell.is_done}
    scored = (_scoring(inputs, model, name) for model, name in models.items())
    return [fit for fit in (*trained, *scored) if fit is not None]


def _training(inputs: CostInputs, group: list[RunPlan]) -> Fit | None:
    run = group[0]
    recipe = run.trajectory.recipe
    shape, device, workload = inputs.shape(recipe.model), inputs.device(run), inputs.workload(recipe)
    if shape is None:
        return None
    longest = workload.longest if workload else recipe.setting.max_length
    layout = planned_layout(shape, recipe.setting, run.layout, longest, device)
    chosen = layout.gradient_checkpointing if layout != run.layout else None
    memory = training_memory(shape, recipe.setting, layout, longest)
    where = f"{layout.gpus} × {run.gpu or 'GPU'}" if layout.gpus else "cpu"
    what = f"{recipe.model_name} {recipe.setting_name}"
    if device is None:
        return Fit(what, where, len(group), memory, memory.total, None, "unknown", "", False, chosen)
    begun = training_memory(shape, recipe.setting, layout, longest, smallest=False)
    alike, available = inputs.trained_alike(run, shape, device), capacity(device, layout)
    if alike is not None and alike.peak:
        # What the libraries really take beside the formula was seen once for this kind.
        needed = max(alike.peak + begun.total - alike.peak_formula, 0)
        return Fit(what, where, len(group), begun, needed, available, "fits", "", True, chosen)
    # The longest sample is known only once it is tokenised, so until then a batch proves nothing.
    verdict = judge(memory, available, certain=shape.source != "name")
    advice = ""
    if verdict != "fits":
        advice = str(find_remedy(shape, recipe.setting, layout, longest, device) or NO_REMEDY)
    return Fit(what, where, len(group), memory, begun.total, available, verdict, advice, False, chosen)


def _scoring(inputs: CostInputs, model: Model, name: str) -> Fit | None:
    """Return the memory of scoring a model, where it does not fit; that it does is no news."""
    shape, device = inputs.shape(model), inputs.scoring_device
    if shape is None or device is None:
        return None
    memory = scoring_memory(shape, inputs.plan.sweep.file.evaluation.protocol.dtype, device)
    verdict = judge(memory, device.memory, certain=shape.source != "name")
    if verdict == "fits":
        return None
    advice = "a model is scored on one device: use one with more memory"
    where = f"1 × {device.name}" if device.is_gpu else "cpu"
    return Fit(f"scoring {name}", where, 0, memory, memory.total, device.memory, verdict, advice, measured=False)
