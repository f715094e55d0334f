"""Models and tokenizers: on the hub, as files, and made without their weights with the attention of the run."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.models import hub
from massive_sft.models.attention import meta_model
from massive_sft.models.configuration import positions_of
from massive_sft.models.tokenizer import load_tokenizer, token_problems
from massive_sft.planning.plan import Plan, RunPlan
from massive_sft.sweep.schema import Dataset, Model
from massive_sft.training.lora import drops_out, target_problems

ASKED_AT_ONCE = 8  # of the hub's repositories, so that one that does not answer costs its time once


@dataclass(frozen=True)
class UsableModel:
    """A base model that loads.

    Attributes:
        name: of the sweep file.
        tokenizer: loaded.
        rows: of the input embeddings: token ids lie below.
        positions: the longest sequence in tokens; None where its configuration declares none.
        config: its configuration.
    """

    name: str
    model: Model
    tokenizer: Any
    rows: int
    positions: int | None
    config: Any


class Models:
    """The distinct base models of a plan, each tried once.

    Attributes:
        usable: by model, those that ``problems`` found nothing wrong with.
    """

    def __init__(self, plan: Plan, lost: Container[str]):
        self._plan, self._lost = plan, lost
        self.usable: dict[Model, UsableModel] = {}

    def problems(self, say: Callable[[str], None]) -> Iterator[Problem]:
        """Try each model; what is wrong with one leaves it out of ``usable``, but for what a setting asks of it."""
        names = {cell.cell.model: cell.cell.coordinates.model for cell in self._plan.cells}
        for model, name in names.items():
            place = self._plan.sweep.place(f"models.{name}")
            missing = any(problem.place.startswith(f"{place}.") for problem in self._plan.missing)
            if missing or f"models.{name}" in self._lost:
                continue
            say(f"model {name}")
            found = list(self._problems(model, name))
            yield from (Problem(f"{place}: {item.place}", item.rule, item.value, item.choices) for item in found)
            if model in self.usable:
                yield from self._training_problems(model, name)

    def _problems(self, model: Model, name: str) -> Iterator[Problem]:
        """Yield what is wrong with a model whatever it is used for; put it into ``usable`` when that is nothing."""
        tokenizer = made = None
        try:
            tokenizer = load_tokenizer(model)
        except InvalidInput as error:
            yield from error.problems
        try:
            made = meta_model(model)  # as it is scored; its weight files were looked at with its content
        except InvalidInput as error:
            yield from error.problems
            return
        if tokenizer is None:
            return
        embeddings: Any = made.get_input_embeddings()
        rows = int(embeddings.weight.shape[0])
        named = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
        too_large = token_problems(model, rows, max(named))
        yield from too_large
        if not too_large:
            positions = positions_of(made.config)
            self.usable[model] = UsableModel(name, model, tokenizer, rows, positions, made.config)

    def _training_problems(self, model: Model, name: str) -> Iterator[Problem]:
        """Yield what the trainings of a model ask of it in vain: an attention, LoRA targets."""
        runs = [run for run in self._plan.runs if run.trajectory.recipe.model == model]
        layouts: dict[tuple[str, bool], RunPlan] = {(run.layout.attention, run.layout.gpus > 0): run for run in runs}
        rules = self._plan.rules
        for (attention, gpu), run in layouts.items():
            try:
                meta_model(model, attention, gpu)
            except InvalidInput as error:
                place = f"{rules.place(run.trajectory.recipe)}.attention"
                yield from (replace(item, place=place, rule=f"{name}: {item.rule}") for item in error.problems)
        recipes = {run.trajectory.recipe.setting_name: run.trajectory.recipe for run in runs}
        adapted = {name: one.setting.lora for name, one in recipes.items() if one.setting.method == "lora"}
        if adapted:
            made = meta_model(model)
            together = next((run.trajectory.recipe for run in runs if run.layout.lora_at_once > 1), None)
            if together is not None and drops_out(made):
                rule = f"must be 1 for {name}: it drops out, and adapters would drop out others than each alone"
                yield Problem(f"{rules.place(together)}.lora_at_once", rule)
            for setting, lora in adapted.items():
                for item in target_problems(made, lora):
                    place = self._plan.sweep.setting_place(setting, item.place)
                    yield Problem(place, f"{item.rule} {name}", item.value, item.choices)


def unreachable(plan: Plan) -> Mapping[str, tuple[Problem, ...]]:
    """Return why models and datasets that this node lacks cannot be had from the hub, by place in the file.

    Each is asked for once: the libraries that load them would try for minutes, and not say that a model is gated.
    """
    sources: dict[str, Model | Dataset] = {
        f"models.{cell.cell.coordinates.model}": cell.cell.model for cell in plan.cells
    }
    for run in plan.runs:
        sources |= {f"datasets.{part.name}": part.dataset for part in run.trajectory.recipe.mixture.parts}
    asked = {
        place: hub.repository_of(source, plan.sweep.place(f"{place}.hub"))
        for place, source in sources.items()
        if source.hub is not None and hub.cached(hub.kind_of(source), source.hub, source.revision) is None
    }
    with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
        answers = list(threads.map(_refusals, asked.values()))
    return {place: tuple(found) for place, found in zip(asked, answers, strict=True) if found}


def _refusals(repository: hub.Repository) -> list[Problem]:
    try:
        hub.resolve(repository)
    except InvalidInput as error:
        return error.problems
    return []
