"""Inputs of a plan's estimates, each read once: shapes, devices, workloads, measured costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from massive_sft.cost.cost_table import (
    CostTable,
    ScoringCosts,
    TrainingCosts,
    read_cost_table,
    scoring_key,
    training_key,
)
from massive_sft.cost.devices import CPU, Device, find_gpu, gpus_here, this_machine
from massive_sft.cost.shapes import ModelShape, shape_of
from massive_sft.cost.workload import BYTES_PER_TOKEN, ScoringWorkloads, TrainingWorkload, training_workload
from massive_sft.planning.plan import Plan, RunPlan
from massive_sft.planning.token_cache import TokenCache
from massive_sft.sweep.cell import Recipe
from massive_sft.sweep.resources import ScoringResources, scoring_resources
from massive_sft.sweep.schema import Model


class CostInputs:
    """Everything that estimates of one plan rest on. Reads small files only, each once.

    Attributes:
        table: what was measured under the plan's storage root.
        requests: sizes of benchmarks.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self.table: CostTable = read_cost_table(plan.storage)
        self.requests = ScoringWorkloads(plan.root, plan.sweep.file.evaluation.protocol.engine == "trie")
        self._tokens = TokenCache(plan.root)
        self._shapes: dict[Model, ModelShape | None] = {}
        self._workloads: dict[str, TrainingWorkload | None] = {}

    def shape(self, model: Model) -> ModelShape | None:
        """Return a base model's shape."""
        if model not in self._shapes:
            self._shapes[model] = shape_of(model)
        return self._shapes[model]

    def workload(self, recipe: Recipe) -> TrainingWorkload | None:
        """Return an epoch's amount."""
        if recipe.id not in self._workloads:
            self._workloads[recipe.id] = training_workload(self._tokens, recipe)
        return self._workloads[recipe.id]

    def bytes_per_token(self, model: Model) -> float:
        """Return the text bytes of a token under a model's tokenizer, where its training data was counted."""
        return self._text.get(model, BYTES_PER_TOKEN)

    @cached_property
    def _text(self) -> dict[Model, float]:
        recipes = (run.trajectory.recipe for run in self.plan.runs)
        counted = ((recipe.model, self.workload(recipe)) for recipe in recipes)
        return {model: workload.bytes_per_token for model, workload in counted if workload and workload.bytes_per_token}

    def device(self, run: RunPlan) -> Device | None:
        """Return what a run trains on; None for GPUs of which no kind is named, measured or here, or several are."""
        return self._gpu(run.gpu) if run.layout.gpus else this_machine()

    @cached_property
    def scoring_device(self) -> Device | None:
        """What cells are scored on: a GPU of the kind that the resources name for it, else for trainings."""
        if not self.uses_gpus:
            return this_machine()
        rules = [rule for rule in self.plan.sweep.file.resources if rule.when.phase is None]
        kinds = [self._scoring.kind, *(rule.gpu for rule in rules), *(run.gpu for run in self.plan.runs)]
        return self._gpu(next((kind for kind in kinds if kind), None))

    @cached_property
    def uses_gpus(self) -> bool:
        """Whether anything is trained or scored on GPUs."""
        return self.plan.uses_gpus

    @cached_property
    def scoring_gpus(self) -> int:
        """The GPUs that score one cell."""
        return self._scoring.gpus

    @cached_property
    def _scoring(self) -> ScoringResources:
        return scoring_resources(self.plan.sweep.file.resources)

    def _gpu(self, kind: str | None) -> Device | None:
        if kind is not None:
            return find_gpu(kind)
        kinds = self._measured_gpus or sorted({*gpus_here()})
        return find_gpu(kinds[0]) if len(kinds) == 1 else None

    @cached_property
    def _measured_gpus(self) -> list[str]:
        return sorted(_devices([*self.table.training, *self.table.scoring]) - {CPU})

    def trained_alike(self, run: RunPlan, shape: ModelShape, device: Device) -> TrainingCosts | None:
        """Return the sums of measured trainings of a run's kind, where there are any."""
        setting, layout = run.trajectory.recipe.setting, run.layout.model_dump(mode="json")
        return self.table.training.get(training_key(shape.key, setting.method, setting.precision, layout, device.name))

    def scored_alike(self, shape: ModelShape, method: str, device: Device) -> Mapping[str, ScoringCosts]:
        """Return the sums of measured scoring by what was done; ``method`` is ``none`` for a base model.

        A base model and a fully tuned one are scored alike, so each stands in for the other.
        """
        dtype = self.plan.sweep.file.evaluation.protocol.dtype
        by_method = {
            kind: self.table.scoring.get(scoring_key(shape.key, kind, dtype, device.name), {})
            for kind in ("none", "full", "lora")
        }
        stand_in = {"none": "full", "full": "none"}.get(method, method)
        return {**by_method[stand_in], **by_method[method]}


def _devices(keys: Iterable[str]) -> set[str]:
    return {key.rpartition("|")[2] for key in keys}
