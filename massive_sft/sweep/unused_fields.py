"""Refuses fields of a sweep file that have no effect, for their author expects one.

Only what has no effect anywhere is refused: an axis that some of a block's settings use, such as LoRA's rank over full
tuning and LoRA, is accepted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from massive_sft.core.errors import Problem
from massive_sft.sweep.schema import Block, Resource, Setting, StrictModel, SweepFile
from massive_sft.sweep.setting import Variant, flatten_fields
from massive_sft.sweep.yaml_errors import Location, ToPlace

# Fields of a rule of ``resources`` that only one phase knows.
TRAINING_FIELDS = (
    "gpus", "workers", "zero", "offload", "micro_batch", "packing", "gradient_checkpointing", "attention",
    "kernels", "lora_at_once",
)  # fmt: skip
EVALUATION_FIELDS = ("gpus_per_replica", "replicas")


def find_unused(
    file: SweepFile,
    settings: Mapping[str, Setting],
    blocks: Mapping[int, tuple[Block, tuple[Variant, ...]]],
    rules: Mapping[int, Resource],
    to_place: ToPlace,
) -> Iterator[Problem]:
    """Yield what has no effect in the models, datasets, settings, blocks and resources.

    Args:
        settings: without overrides, by name.
        blocks: by index in the file, each with its variants.
        rules: by index in the file.
    """
    yield from _sources(file, to_place)
    yield from _settings(file, settings, [variants for _, variants in blocks.values()], to_place)
    for index, (block, variants) in blocks.items():
        for number, schedule in enumerate(block.schedule):
            for field in sorted(schedule.unused_fields & schedule.model_fields_set):
                yield _idle(to_place(("blocks", index, "schedule", number, field)), f"a {schedule.name} schedule")
        for field, _ in flatten_fields(block.override):
            if variants and all(is_unused(variant.setting, field) for variant in variants):
                yield _idle(to_place(("blocks", index, "override", *field.split("."))), "any setting of the block")
    for index, rule in rules.items():
        yield from _resource(rule, ("resources", index), to_place)
    yield from _tasks(file, to_place)


def is_unused(setting: Setting, field: str) -> bool:
    """Whether a dotted field of a setting has no effect beside the values of the others."""
    entry: Any = setting
    for step in field.split("."):
        if isinstance(entry, StrictModel) and step in entry.unused_fields:
            return True
        entry = getattr(entry, step, None)
    return False


def _idle(place: str, beside: str) -> Problem:
    return Problem(place, f"has no effect in {beside}; leave it out")


def _sources(file: SweepFile, to_place: ToPlace) -> Iterator[Problem]:
    for name, model in file.models.items():
        if model.gated and model.hub is None:
            yield _idle(to_place(("models", name, "gated")), "a model at a path")
    for name, dataset in file.datasets.items():
        if "turns" in dataset.model_fields_set and dataset.mapping.messages is None:
            yield _idle(to_place(("datasets", name, "turns")), "a dataset without messages")
    for section, sources in (("models", file.models), ("datasets", file.datasets)):
        written: dict[str, str] = {}
        for name, source in sources.items():  # type: ignore[attr-defined]
            first = written.setdefault(str(source.hub).lower(), str(source.hub))
            if source.hub is not None and first != source.hub:
                rule = f"is {first} in other letters, which would make two ids of one content; write it alike"
                yield Problem(to_place((section, name, "hub")), rule, source.hub)


def _settings(
    file: SweepFile, settings: Mapping[str, Setting], blocks: Iterable[Iterable[Variant]], to_place: ToPlace
) -> Iterator[Problem]:
    used_settings: dict[str, list[Setting]] = defaultdict(list)
    for variant in (variant for variants in blocks for variant in variants):
        used_settings[variant.name].append(variant.setting)
    for name, plain in settings.items():
        for field, _ in flatten_fields(file.settings[name]):
            if all(is_unused(setting, field) for setting in used_settings.get(name, [plain])):
                beside = f"a setting of method {plain.method}"
                beside += " and weight_decay 0" if field == "optimizer.decay" else ""
                yield _idle(to_place(("settings", name, *field.split("."))), beside)


def _resource(rule: Resource, at: Location, to_place: ToPlace) -> Iterator[Problem]:
    phase = rule.when.phase
    foreign = {"evaluate": TRAINING_FIELDS, "train": EVALUATION_FIELDS}.get(phase or "", ())
    for field in foreign:
        if field in rule.model_fields_set:
            yield _idle(to_place((*at, field)), f"a rule of phase {phase}")
    if rule.gpu is not None and not rule.gpus and phase != "evaluate":
        yield Problem(to_place((*at, "gpu")), "names a kind of GPU, but gpus is 0; say how many", rule.gpu)


def _tasks(file: SweepFile, to_place: ToPlace) -> Iterator[Problem]:
    for index, task in enumerate(file.evaluation.tasks):
        if task in file.evaluation.tasks[:index]:
            yield Problem(to_place(("evaluation", "tasks", index)), "is there twice", task.name or task.path)
        shots = task.shots or ()
        if len(set(shots)) < len(shots):
            yield Problem(to_place(("evaluation", "tasks", index, "shots")), "must name each once")
