"""Read a sweep file: YAML, overlays, schema, names. Every problem is reported at once, none as a traceback."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.sweep.exclude import Exclude, parse_exclude
from massive_sft.sweep.mixture import Groups, expand_mixtures
from massive_sft.sweep.places import Overlay, place_in
from massive_sft.sweep.point import Point
from massive_sft.sweep.schema import SCHEDULES, Block, Search, Setting, SweepFile
from massive_sft.sweep.search_checks import SearchChecks, inherit
from massive_sft.sweep.set_aside import EMPTY_SECTIONS, broken_names, left, texts_of, without
from massive_sft.sweep.setting import Settings, Variant, written_in
from massive_sft.sweep.spec import Mixture
from massive_sft.sweep.text_checks import find_text_problems
from massive_sft.sweep.unused_fields import find_unused
from massive_sft.sweep.yaml_errors import Location, as_written, format_location, independent_errors, to_problems
from massive_sft.sweep.yaml_file import merge_overlay, read_yaml, with_text_keys

ALL_MODELS = "all"
TABLE = "table.json"  # what stands for a sweep file where a table was imported (study.imported)
MAX_CELLS = 200_000  # that a sweep's blocks may cross to: planning takes about 10 kB and 0.2 ms for each


@dataclass(frozen=True)
class Sweep:
    """A valid sweep: the file, and what its names stand for.

    For every block, ``variants`` holds its settings crossed with its overrides, ``excludes`` what is left out.
    ``overlays`` are the files that were merged over it. ``points`` are what searches have chosen so far
    (``search.plan``): a file alone tells of none.
    """

    path: Path
    file: SweepFile
    mixtures: Groups
    settings: Mapping[str, Setting]
    variants: tuple[tuple[Variant, ...], ...]
    excludes: tuple[tuple[Exclude, ...], ...]
    points: tuple[Point, ...] = ()
    overlays: tuple[Overlay, ...] = ()

    @property
    def folder(self) -> Path:
        """Where relative paths start."""
        return self.path.resolve().parent

    @property
    def searched_blocks(self) -> frozenset[str]:
        """Blocks that are the space of a search (``over``), and not run in full."""
        return frozenset(name for search in self.file.search for name in search.over or ())

    @property
    def trained_models(self) -> list[str]:
        """Names of the models that a block trains or a search may, each once."""
        named = [name for block in self.file.blocks for name in block.model]
        for search in self.file.search:
            axis = search.space.get("model", ())
            named += [*(search.model or ()), *(map(str, axis) if isinstance(axis, tuple) else ())]
        return self.models_of(named)

    def place(self, where: str) -> str:
        """Return a place with the file that has it, for people: ``x.yaml: blocks[2].snapshots``."""
        return place_in(self.path, self.overlays, where)

    def setting_place(self, name: str, field: str) -> str:
        """Return where a setting's field is, for people: ``x.yaml: settings.defaults.max_length``."""
        entry = written_in(self.file.settings, name, tuple(field.split("."))) if name in self.file.settings else name
        return self.place(f"settings.{entry}.{field}")

    def models_of(self, names: Sequence[str]) -> list[str]:
        """Return model names with sets expanded, each once, in the order given."""
        return find_models(names, self.file)

    def mixtures_of(self, names: Sequence[str]) -> list[Mixture]:
        """Return mixtures with groups expanded, each once, in the order given."""
        return list({item.key: item for name in names for item in find_mixtures(name, self.mixtures)}.values())


def load_sweep(path: Path, overlays: Iterable[Path] = ()) -> Sweep:
    """Read and check a sweep file.

    Args:
        path: the YAML file.
        overlays: files merged over it in order: mappings merge, all else replaces, a null removes the key.

    Raises:
        InvalidInput: with every problem found.
    """
    if path.name == TABLE:
        rule = "is an imported table and no sweep: status, show, report, ui, mirror and export-table take it"
        raise InvalidInput(Problem(str(path), rule))
    try:
        raw = read_yaml(path)
        merged = []
        for overlay in overlays:
            above = read_yaml(overlay)
            raw = merge_overlay(raw, above)
            merged.append(Overlay.of(overlay, above))
        return check_sweep(raw, path, merged)
    except RecursionError:
        raise InvalidInput(Problem(str(path), "is nested too deeply, or an anchor in it holds itself")) from None


def check_sweep(raw: Mapping[str, Any], path: Path, overlays: Sequence[Overlay] = ()) -> Sweep:
    """Validate a parsed sweep file, ``overlays`` merged over it. Raises InvalidInput with every problem found.

    Entries that break the schema are set aside for the second look, so that wrong names elsewhere are found too.
    """

    def to_place(location: Location) -> str:
        return place_in(path, overlays, format_location(as_written(location, raw)))

    raw, odd_keys = with_text_keys(raw)
    problems = [Problem(to_place(place), "keys must be text (quote them)", str(key)) for place, key in odd_keys]
    raw, unfounded = inherit(raw, to_place)
    problems += unfounded
    if unfit := find_text_problems(raw, to_place):
        raise InvalidInput([*problems, *unfit])  # they would break what is said of all else
    broken: set[Location] = set()
    try:
        file = SweepFile.model_validate(raw)
    except ValidationError as error:
        problems += to_problems(error, SweepFile, to_place)
        broken = {item["loc"][:2] for item in independent_errors(error)}
        try:
            file = SweepFile.model_validate(without(raw, broken))
        except ValidationError:
            raise InvalidInput(problems) from None
    names = _NameChecks(file, raw, broken, to_place)
    if problems or names.problems:
        raise InvalidInput([*problems, *names.problems])
    settings = names.settings.valid
    return Sweep(path, file, names.groups, settings, names.variants, names.excludes, overlays=tuple(overlays))


# The sections that a kind of name is defined in.
NAMED_IN = {
    "model": ("models", "model_sets"),
    "mixture": ("mixtures", "datasets"),
    "dataset": ("datasets",),
    "setting": ("settings",),
    "schedule": (),
}


def find_models(names: Iterable[str], file: SweepFile) -> list[str]:
    """Return model names with sets expanded, each once, in the order given."""
    sets = {ALL_MODELS: tuple(file.models), **file.model_sets}
    return list(dict.fromkeys(model for name in names for model in sets.get(name, (name,))))


def find_mixtures(name: str, groups: Groups) -> tuple[Mixture, ...]:
    """Return what a mixture name stands for: an entry's mixtures, or those of that name among all entries'."""
    if name in groups:
        return groups[name]
    members = (mixture for group in groups.values() for mixture in group if mixture.name == name)
    return tuple({mixture.key: mixture for mixture in members}.values())


class _NameChecks:
    """The second look: names, counts and horizons that span several entries."""

    def __init__(self, file: SweepFile, raw: Mapping[str, Any], broken: set[Location], where: Any):
        self.file, self.raw, self.where = file, raw, where
        self.problems: list[Problem] = []
        self.broken_sections = {str(place[0]) for place in broken if len(place) == 1}
        aside = broken_names(broken)
        self.groups, problems = expand_mixtures(file.mixtures, file.datasets, where(("mixtures",)), aside)
        # An entry that breaks the schema has its own problem; what refers to it is not unknown as well.
        self.suspect = {name for names in aside.values() for name in names}
        if "datasets" not in self.broken_sections:
            self.problems += [item for item in problems if item.value not in self.suspect]
        if problems or self.suspect:
            self.suspect.update(self._written("datasets"))
        self.settings = Settings(file.settings, lambda location: where(("settings", *location)))
        mixtures = [*file.mixtures.entries, *aside.get("mixtures", ())]
        mixtures += [item.name for group in self.groups.values() for item in group]
        self.valid = {
            "model": [*self._written("models"), *self._written("model_sets"), ALL_MODELS],
            "mixture": list(dict.fromkeys(mixtures)),
            "dataset": self._written("datasets"),
            "setting": self.settings.names,
            "schedule": [*SCHEDULES, *{schedule.label: None for block in file.blocks for schedule in block.schedule}],
        }
        self._sections()
        self._model_sets()
        self.is_small = self._count_cells()
        written = dict(zip(left("blocks", raw, broken), file.blocks, strict=True))
        self.variants = tuple(self._block(index, block) for index, block in written.items())
        self.excludes = tuple(self._excludes(("blocks", at), enumerate(block.exclude)) for at, block in written.items())
        for section in ("blocks", "search"):
            for index in sorted(int(at) for at in aside.get(section, ())):
                self._names_of_broken((section, index), raw[section][index])
        for name in aside.get("mixtures", ()):
            self._names_of_broken_mixture(name, raw["mixtures"][name])
        if "settings" not in self.broken_sections:
            self.problems += self.settings.problems
        self._names()
        blocks = dict(zip(written, zip(file.blocks, self.variants, strict=True), strict=True))
        rules = dict(zip(left("resources", raw, broken), file.resources, strict=True))
        self.problems += find_unused(file, self.settings.valid, blocks, rules, where)
        for index, rule in rules.items():
            for what in ("model", "mixture", "setting"):
                self._known(what, getattr(rule.when, what) or (), ("resources", index, "when", what))
        self._searches(dict(zip(left("search", raw, broken), file.search, strict=True)))

    def _written(self, section: str) -> list[str]:
        """Names as written in the file, so that an entry with another mistake is not called unknown as well."""
        value = self.raw.get(section)
        return [str(name) for name in value] if isinstance(value, Mapping) else []

    def _known(self, what: str, names: Iterable[Any], location: Location) -> None:
        valid = self.valid[what]
        if self.broken_sections.intersection(NAMED_IN[what]):
            return  # the section's own problem says why its names are unknown
        unknown = [name for name in names if name not in valid and name not in self.suspect]
        self.problems += [Problem(self.where(location), f"unknown {what}", name, valid) for name in unknown]

    def _sections(self) -> None:
        for section in ("models", "datasets", "blocks"):
            is_there = self.raw.get(section) or (section == "blocks" and self.raw.get("search"))
            if section not in self.broken_sections and not is_there:
                self.problems.append(Problem(self.where((section,)), "must not be empty"))

    def _model_sets(self) -> None:
        models = self._written("models")
        if ALL_MODELS in models:
            rule = "is taken: it stands for all models; give the model another name"
            self.problems.append(Problem(self.where(("models",)), rule, ALL_MODELS))
        for name, members in self.file.model_sets.items():
            place = self.where(("model_sets", name))
            if name == ALL_MODELS or name in models:
                self.problems.append(Problem(place, "is taken: 'all' is built in, a model's name is a model", name))
            unknown = [item for item in members if item not in models]
            if "models" not in self.broken_sections:
                self.problems += [Problem(place, "unknown model", item, models) for item in unknown]

    def _count_cells(self) -> bool:
        """Whether the blocks cross to as many cells as can be planned; counted, for making them would take too long."""
        counts = {block.name: self._crossed(block) for block in self.file.blocks}
        total = sum(counts.values())
        if total > MAX_CELLS:
            most = sorted(counts, key=lambda name: -counts[name])[:5]
            largest = ", ".join(f"{name} {counts[name]:,}" for name in most)
            rule = f"cross to {total:,} cells before excludes ({largest}), more than {MAX_CELLS:,}; split the sweep"
            self.problems.append(Problem(self.where(("blocks",)), rule))
        return total <= MAX_CELLS

    def _crossed(self, block: Block) -> int:
        mixtures = {item.key for name in block.mixture for item in find_mixtures(name, self.groups)}
        runs = len(find_models(block.model, self.file)) * len(mixtures) * len(block.schedule)
        return runs * self.settings.count(block.setting, block.override) * len(set(block.snapshots))

    def _block(self, index: int, block: Block) -> tuple[Variant, ...]:
        at: Location = ("blocks", index)
        self._known("model", block.model, (*at, "model"))
        self._known("mixture", block.mixture, (*at, "mixture"))
        self._known("setting", block.setting, (*at, "setting"))
        for name in block.mixture:
            sizes = {mixture.size for mixture in find_mixtures(name, self.groups)}
            if name not in self.groups and len(sizes) > 1:
                listed = ", ".join(sorted(map(str, sizes)))
                rule = f"is ambiguous, it comes in sizes {listed}: name the entry of mixtures"
                self.problems.append(Problem(self.where((*at, "mixture")), rule, name))
        beyond = [str(epoch) for epoch in block.snapshots if epoch > block.horizon]
        if beyond:
            rule = f"{', '.join(beyond)} is beyond horizon {block.horizon}"
            self.problems.append(Problem(self.where((*at, "snapshots")), rule))
        if not self.is_small:
            return ()
        return tuple(
            self.settings.variants(block.setting, block.override, lambda loc: self.where((*at, "override", *loc)))
        )

    def _names_of_broken(self, at: Location, entry: Any) -> None:
        """Look up what a block or a search names that has another mistake, as far as it is text."""
        if not isinstance(entry, Mapping):
            return
        for what in ("model", "mixture", "setting"):
            self._known(what, texts_of(entry.get(what)), (*at, what))
        if at[0] != "blocks":
            return
        if isinstance(override := entry.get("override"), Mapping):
            self.settings.check(texts_of(entry.get("setting")), override, partial(self._below, (*at, "override")))
        if isinstance(excludes := entry.get("exclude"), list):
            self._excludes(at, ((index, one) for index, one in enumerate(excludes) if isinstance(one, Mapping)))

    def _names_of_broken_mixture(self, name: str, entry: Any) -> None:
        if not isinstance(entry, Mapping):
            return
        weights = entry.get("weights")
        named = {"each": texts_of(entry.get("each")), "weights": list(weights) if isinstance(weights, Mapping) else []}
        for rule, names in named.items():
            self._known("dataset", names, ("mixtures", name, rule))
        for rule in ("concat", "leave_one_out"):
            self._known("mixture", texts_of(entry.get(rule)), ("mixtures", name, rule))

    def _excludes(self, at: Location, block: Iterable[tuple[int, Mapping[str, Any]]]) -> tuple[Exclude, ...]:
        excludes = []
        for number, written in block:
            here: Location = (*at, "exclude", number)
            exclude, problems = parse_exclude(written, partial(self._below, here))
            self.problems += problems
            named = exclude.coordinates
            for what in ("model", "mixture", "setting", "schedule"):
                self._known(what, getattr(named, what) or (), (*here, what))
            models = None if named.model is None else frozenset(find_models(named.model, self.file))
            mixtures = (item for name in named.mixture or () for item in find_mixtures(name, self.groups))
            keys = None if named.mixture is None else frozenset(item.key for item in mixtures)
            excludes.append(replace(exclude, models=models, mixtures=keys))
        return tuple(excludes)

    def _below(self, at: Location, location: Location) -> str:
        return str(self.where((*at, *location)))

    def _names(self) -> None:
        """Blocks and searches are told apart by name, in messages and tables."""
        blocks, searches = [block.name for block in self.file.blocks], [search.name for search in self.file.search]
        for section, names in (("blocks", blocks), ("search", searches)):
            what = "blocks" if section == "blocks" else "searches"
            twice = [name for index, name in enumerate(names) if name in names[:index]]
            self.problems += [Problem(self.where((section,)), f"two {what} have one name", name) for name in twice]
        both = [name for name in searches if name in blocks]
        self.problems += [Problem(self.where(("search",)), "a block has this name", name) for name in both]

    def _searches(self, searches: Mapping[int, Search]) -> None:
        if self.broken_sections.intersection((*EMPTY_SECTIONS, "search")):
            return  # its own problem says why names of it are unknown
        blocks = [str(block.get("name")) for block in self.raw.get("blocks") or () if isinstance(block, Mapping)]
        valid = {**self.valid, "block": blocks}
        checks = SearchChecks(valid, self.settings.valid, self._count_members)
        for index, entry in enumerate(self.raw.get("search") or ()):
            at: Location = ("search", index)
            if index in searches:
                found = checks.problems(searches[index], at, self.where)
            else:
                found = checks.problems_of_space(entry, at, self.where)
            self.problems += [item for item in found if item.value not in self.suspect]

    def _count_members(self, what: str, name: str) -> int:
        return len(find_models([name], self.file) if what == "model" else find_mixtures(name, self.groups))
