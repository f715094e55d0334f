"""Cells: the rows of the results table, their ids (what they are) and their coordinates (what people call them)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.fingerprint import canonical_json, digest, join_canonical
from massive_sft.sweep.content import Contents
from massive_sft.sweep.exclude import Exclude
from massive_sft.sweep.identity import schedule_content, setting_content
from massive_sft.sweep.load import Sweep
from massive_sft.sweep.mixture import declared_at
from massive_sft.sweep.point import Point
from massive_sft.sweep.schema import Dataset, Model, Schedule, Setting
from massive_sft.sweep.semantics import TRAIN_SEMANTICS
from massive_sft.sweep.setting import Variant
from massive_sft.sweep.spec import Mixture, Part


def mixture_label(name: str, size: int | None) -> str:
    """Return what people call a mixture of so many samples, ``gsm8k[1000]``; ``gsm8k[all]`` where ``size`` is None."""
    return f"{name}[{'all' if size is None else size}]"


class Coordinates(NamedTuple):
    """What people read, group and join by. ``size``, ``horizon`` and ``seed`` are None where unknown or meaningless.

    ``schedule`` says what is unusual about it, e.g. ``wsd(decay=0.5)``; ``variant`` lists overridden fields beside the
    seed, e.g. ``lr=1e-05,lora.rank=8``.
    """

    model: str
    data: str
    setting: str
    method: str
    size: int | None
    schedule: str
    horizon: int | None
    epoch: int
    seed: int | None
    variant: str

    def __str__(self) -> str:
        if self.method == "none":
            return f"{self.model} (base)"
        horizon = f"/{self.horizon}" if self.horizon is not None else ""
        variant = f" {self.variant}" if self.variant else ""
        what = f"{self.model} {mixture_label(self.data, self.size)} {self.setting} {self.schedule}{horizon}"
        seed = "" if self.seed is None else f" seed {self.seed}"
        return f"{what}{seed}{variant} epoch {self.epoch}"

    @property
    def training(self) -> str:
        """What people call the training that the cell is on, or the base model."""
        return str(self).removesuffix(f" epoch {self.epoch}")

    @classmethod
    def describe(cls, names: Mapping[str, Any]) -> str:
        """Return what people call a cell of these names, as a record has them; another version may have had others."""
        if names.keys() == set(cls._fields):
            return str(cls(**names))
        return ", ".join(f"{name}={value}" for name, value in names.items())

    def by_shown_name(self) -> dict[str, str | int | None]:
        """Return them under the sweep file's words: records call the mixture ``data``, everything shown does not."""
        return {"mixture" if name == "data" else name: value for name, value in self._asdict().items()}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is trained: one model on one mixture with one setting and schedule. Shared by the cells along the way.

    Attributes:
        id: the trajectory's id, of ``content``.
        condition: the id without the seed.
        parts: the content, each part as canonical JSON.
    """

    id: str
    condition: str
    parts: Mapping[str, str]
    model_name: str
    model: Model
    mixture: Mixture
    setting_name: str
    setting: Setting
    schedule: Schedule
    horizon: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the results table.

    Attributes:
        id: of ``content``.
        blocks: the blocks of the sweep that ask for it.
        base: the base model's content, canonical JSON.
        recipe: None for a base model's row.
    """

    id: str
    coordinates: Coordinates
    blocks: tuple[str, ...]
    model: Model
    base: str
    recipe: Recipe | None

    @property
    def epoch(self) -> int:
        return self.coordinates.epoch

    @property
    def content(self) -> dict[str, Any]:
        """What the id is the hash of, as JSON values."""
        parts = self.recipe.parts if self.recipe else {"base": self.base, "method": '"none"'}
        return {key: json.loads(text) for key, text in parts.items()} | {"epoch": self.epoch}

    @property
    def before(self) -> tuple[str, ...]:
        """Ids of the cells that lie before it on its way: earlier epochs, the last one first, and the base model."""
        if self.recipe is None:
            return ()
        earlier = (_trained_id(self.recipe.parts, epoch) for epoch in range(self.epoch - 1, 0, -1))
        return (*earlier, _base_id(self.base))

    @property
    def condition(self) -> str:
        """The unit of comparison: the cell without its seed."""
        if self.recipe is None:
            return self.id
        return digest(
            join_canonical({"condition": canonical_json(self.recipe.condition), "epoch": canonical_json(self.epoch)})
        )


@dataclass(frozen=True)
class Cells:
    """All cells of a sweep, each once, and what is worth saying about how they came about."""

    cells: tuple[Cell, ...]
    warnings: tuple[Problem, ...]


def make_cells(sweep: Sweep, contents: Contents) -> Cells:
    """Enumerate a sweep's cells: every block a full cross less its excludes, the union of the blocks, base rows last.

    Raises:
        InvalidInput: when one name (the same coordinates) would stand for two contents, or no cell is left.
    """
    maker = CellMaker(sweep, contents)
    unique: dict[str, Cell] = {}
    named: dict[Coordinates, Cell] = {}
    twice: dict[tuple[str, str], None] = {}
    problems: dict[Coordinates, Problem] = {}
    for cell in itertools.chain(maker.trained(), maker.base()):
        first = named.setdefault(cell.coordinates, cell)
        if first.id != cell.id:
            rule = f"blocks {', '.join(sorted({*first.blocks, *cell.blocks}))} give one name to two contents"
            problems.setdefault(cell.coordinates, Problem(str(sweep.path), rule, str(cell.coordinates)))
        known = unique.get(cell.id)
        if known is None:
            unique[cell.id] = cell
        elif known.coordinates != cell.coordinates:
            twice[cell.coordinates.training, known.coordinates.training] = None
        if known is not None and known.blocks != cell.blocks:
            unique[cell.id] = _in_blocks(known, cell.blocks)
    if not any(cell.recipe for cell in unique.values()) and not sweep.file.search:
        problems[Coordinates("", "", "", "", None, "", None, 0, None, "")] = Problem(
            str(sweep.path), "the blocks yield no cell"
        )
    if problems or maker.problems:
        raise InvalidInput([*maker.problems.values(), *problems.values()])
    warnings = (
        Problem(sweep.place(name), f"is the same training as {known}: its cells go under the earlier name")
        for name, known in twice
    )
    return Cells(tuple(unique.values()), (*maker.unused_excludes(), *warnings))


def _trained_id(parts: Mapping[str, str], epoch: int) -> str:
    return digest(join_canonical({**parts, "epoch": canonical_json(epoch)}))


def _base_id(content: str) -> str:
    return digest(join_canonical({"base": content, "epoch": "0", "method": '"none"'}))


def _in_blocks(cell: Cell, blocks: tuple[str, ...]) -> Cell:
    both = tuple(dict.fromkeys((*cell.blocks, *blocks)))
    return replace(cell, blocks=both)


class CellMaker:
    """Serialises each model, dataset, mixture and setting once, however many cells they are part of."""

    def __init__(self, sweep: Sweep, contents: Contents):
        self.sweep, self.contents = sweep, contents
        self.models: dict[str, tuple[Model, str]] = {}
        self.datasets: dict[str, tuple[Dataset, dict[str, Any]]] = {}
        self.mixtures: dict[tuple[str, int | None], tuple[Mixture, str]] = {}
        self.used_excludes: set[tuple[int, int]] = set()
        self.problems: dict[str, Problem] = {}

    def trained(self) -> Iterator[Cell]:
        for index, block in enumerate(self.sweep.file.blocks):
            if block.name not in self.sweep.searched_blocks:
                yield from self.of_block(index)
        for point in self.sweep.points:
            yield from self.of_point(point)

    def of_block(self, index: int) -> Iterator[Cell]:
        """Yield the cells of a block, by its place in the file."""
        block, variants = self.sweep.file.blocks[index], self.sweep.variants[index]
        models, mixtures = self.sweep.models_of(block.model), self.sweep.mixtures_of(block.mixture)
        for model, mixture, variant, schedule in itertools.product(models, mixtures, variants, block.schedule):
            excludes = [
                (number, exclude)
                for number, exclude in enumerate(self.sweep.excludes[index])
                if exclude.matches(model, mixture, variant, schedule)
            ]
            epochs = [epoch for epoch in sorted(set(block.snapshots)) if not self._excluded(index, excludes, epoch)]
            if epochs:
                recipe = self._recipe(model, mixture, variant, schedule, block.horizon)
                yield from self._cells(recipe, variant, block.name, epochs)

    def of_point(self, point: Point) -> Iterator[Cell]:
        """Yield the cells of what a search chose."""
        recipe = self._recipe(point.model, point.mixture, point.variant, point.schedule, point.horizon)
        yield from self._cells(recipe, point.variant, point.search, point.snapshots)

    def base(self) -> Iterator[Cell]:
        """Base rows: one for every model that a block trains, or a search may."""
        if not self.sweep.file.evaluation.base:
            return
        yield from map(self.base_cell, self.sweep.trained_models)

    def base_cell(self, name: str) -> Cell:
        """Return the cell of a base model."""
        model, content = self._model(name)
        coordinates = Coordinates(name, "none", "none", "none", 0, "none", None, 0, None, "")
        return Cell(_base_id(content), coordinates, ("base",), model, content, None)

    def unused_excludes(self) -> Iterator[Problem]:
        for index, block in enumerate(self.sweep.file.blocks):
            for number, exclude in enumerate(block.exclude):
                if (index, number) not in self.used_excludes and block.name not in self.sweep.searched_blocks:
                    yield Problem(
                        self.sweep.place(f"blocks[{index}].exclude[{number}]"), "matches nothing", dict(exclude)
                    )

    def _model(self, name: str) -> tuple[Model, str]:
        if name not in self.models:
            declared, place = self.sweep.file.models[name], f"models.{name}"
            content = canonical_json(self.contents.model(declared, place))
            self.models[name] = (self.contents.resolve_model(declared, place), content)
        return self.models[name]

    def _dataset(self, part: Part) -> tuple[Dataset, dict[str, Any]]:
        """Return the dataset of a part resolved, and its content."""
        if part.name not in self.datasets:
            place = f"datasets.{part.name}"
            rows = self.contents.dataset(part.dataset, place)
            self.datasets[part.name] = (self.contents.resolve_dataset(part.dataset, place), rows)
        return self.datasets[part.name]

    def _mixture(self, mixture: Mixture) -> tuple[Mixture, str]:
        """Return the mixture resolved, its parts in canonical order, and its content."""
        if mixture.key not in self.mixtures:
            keyed: list[tuple[str, Part]] = []
            named: dict[str, str] = {}
            for part in mixture.parts:
                dataset, rows = self._dataset(part)
                if (earlier := named.setdefault(canonical_json(rows), part.name)) != part.name:
                    self._refuse_equal_rows(mixture, part.name, earlier)
                content = rows | {"count": part.count}
                keyed.append((canonical_json(content), part.model_copy(update={"dataset": dataset})))
            keyed.sort(key=lambda item: item[0])
            resolved_mixture = mixture.model_copy(update={"parts": tuple(part for _, part in keyed)})
            text = join_canonical(
                {
                    "parts": "[" + ",".join(text for text, _ in keyed) + "]",
                    "sample_seed": canonical_json(mixture.sample_seed),
                }
            )
            self.mixtures[mixture.key] = (resolved_mixture, text)
        return self.mixtures[mixture.key]

    def _refuse_equal_rows(self, mixture: Mixture, part: str, earlier: str) -> None:
        """Two names of one dataset would put the same rows into a mixture twice, past ``max_repeats``."""
        place = self.sweep.place(declared_at(mixture, self.sweep.mixtures))
        rule = f"takes the same rows twice, as {earlier} and as {part}; use weights with max_repeats for that"
        self.problems.setdefault(f"{place} {earlier} {part}", Problem(place, rule))

    def _recipe(self, model: str, mixture: Mixture, variant: Variant, schedule: Schedule, horizon: int) -> Recipe:
        base, base_content = self._model(model)
        resolved, data_content = self._mixture(mixture)
        parts = {
            "base": base_content,
            "data": data_content,
            "setting": canonical_json(setting_content(variant.setting)),
            "schedule": canonical_json(schedule_content(schedule, horizon)),
            "train_semantics": canonical_json(TRAIN_SEMANTICS),
        }
        condition = digest(join_canonical(parts))
        parts["seed"] = canonical_json(variant.setting.seed)
        identity = digest(join_canonical(parts))
        return Recipe(
            identity, condition, parts, model, base, resolved, variant.name, variant.setting, schedule, horizon
        )

    def _cells(self, recipe: Recipe, variant: Variant, block: str, epochs: Iterable[int]) -> Iterator[Cell]:
        """Yield the cells along a recipe, which differ in their epoch alone."""
        named = Coordinates(
            model=recipe.model_name,
            data=recipe.mixture.name,
            setting=variant.name,
            method=recipe.setting.method,
            size=recipe.mixture.size,
            schedule=recipe.schedule.label,
            horizon=recipe.horizon if recipe.schedule.has_horizon else None,
            epoch=0,
            seed=recipe.setting.seed,
            variant=variant.label,
        )
        for epoch in epochs:
            identity = _trained_id(recipe.parts, epoch)
            yield Cell(identity, named._replace(epoch=epoch), (block,), recipe.model, recipe.parts["base"], recipe)

    def _excluded(self, index: int, excludes: list[tuple[int, Exclude]], epoch: int) -> bool:
        hits = [number for number, exclude in excludes if exclude.has_epoch(epoch)]
        self.used_excludes.update((index, number) for number in hits)
        return bool(hits)
