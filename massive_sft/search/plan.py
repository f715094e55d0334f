"""What the searches of a sweep have decided so far, as points of the sweep that every plan has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.files import parse_size
from massive_sft.core.fingerprint import FileHashes, fingerprint
from massive_sft.cost.disk import checkpoint_bytes
from massive_sft.cost.gpu_counts import with_gpu_counts
from massive_sft.cost.shapes import shape_of
from massive_sft.ledger.marker import NAME as MARKER
from massive_sft.ledger.storage import Root
from massive_sft.ledger.store import Ledger
from massive_sft.planning.lock import read_lock
from massive_sft.planning.plan import Plan, StatesOf, make_plan, storage_root
from massive_sft.planning.requirements import Requirement, Requirements
from massive_sft.search.cells import CellSpace
from massive_sft.search.confirming import most_confirmations
from massive_sft.search.decision_log import DecisionLog
from massive_sft.search.identity import search_content, search_id
from massive_sft.search.objectives import names_against_base
from massive_sft.search.outcomes import Reader, objective_names, wanted_names
from massive_sft.search.portfolio import find_portfolio
from massive_sft.search.promoting import trial_of
from massive_sft.search.refusals import refusals
from massive_sft.search.rules import Rules, number, trained_of
from massive_sft.search.space import Choice, Space, make_space
from massive_sft.search.weights import candidates
from massive_sft.sweep.cell import Cell
from massive_sft.sweep.content import Contents
from massive_sft.sweep.load import Sweep
from massive_sft.sweep.point import Point
from massive_sft.sweep.point_cells import PointCells
from massive_sft.sweep.schema import Search, Weights
from massive_sft.sweep.setting import make_variant

CALLED = "called"  # in what a log keeps of its search: the names it had when it began


@dataclass(frozen=True)
class ScoredCell:
    """A cell, and what the sweep asks of it, by which its record is read."""

    cell: str
    trajectory: str | None
    requirements: tuple[Requirement, ...]


@dataclass(frozen=True)
class Planned:
    """A search of a sweep, resolved.

    Attributes:
        content: what its id is the hash of.
        reader: of the outcomes of its cells.
        scored_at: returns the cell that a choice in a group is judged by, and that of its base model.
    """

    search: Search
    space: Space | CellSpace
    rules: Rules
    content: Mapping[str, Any]
    reader: Reader
    scored_at: Callable[[Choice, str | None, int, int | None], tuple[ScoredCell, ScoredCell]]

    @property
    def id(self) -> str:
        return self.rules.id

    def log(self, root: Root) -> DecisionLog:
        """Return its log under a storage root."""
        return DecisionLog(root, self.id)

    @property
    def called(self) -> dict[str, str]:
        """What people call it, as its log keeps it beside what the id is of."""
        return {"sweep": self.space.sweep.file.name, "search": self.search.name}

    def begin(self, ledger: Ledger) -> Mapping[str, Any]:
        """Return what its log is to keep: what its id is the hash of, and the choices it takes over from others."""
        count, content = self.search.start.portfolio, {**self.content, CALLED: self.called}
        if not count or not isinstance(self.space, Space):
            return content
        cells = [self.scored_at(choice, group, -1, None)[0] for choice, group in self.space.corners()]
        own = {group or "": self.rules.model_of(choice, group) for choice, group in self.space.corners()}
        found = find_portfolio(self.space, self.reader, cells[0].requirements, own, ledger, count)
        return {**content, "portfolio": [dict(choice) for choice in found]}

    def begun(self, content: Mapping[str, Any] | None) -> Rules:
        """Return its rules once its log began."""
        return replace(self.rules, portfolio=tuple((content or {}).get("portfolio") or ()))

    def group(self, entry: Mapping[str, Any]) -> str | None:
        """Return the model of the group that a decision is of; None where the model is an axis."""
        return self.space.groups[entry["group"]] if self.space.groups else None

    def scored(self, entry: Mapping[str, Any]) -> tuple[ScoredCell, ScoredCell]:
        """Return the cell that a decision is judged by, and that of its base model."""
        return self.scored_at(entry["choice"], self.group(entry), entry.get("rung", -1), entry.get("with_seed"))

    def named(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a decision chose, as the sweep file would have it; nothing of one that has nothing trained."""
        return self.space.named(entry["choice"]) if "choice" in entry else {}

    def trajectory(self, entry: Mapping[str, Any]) -> str:
        """Return the id of what a decision has trained."""
        return str(self.scored(entry)[0].trajectory)

    def point(self, entry: Mapping[str, Any], is_dropped: bool = False) -> Point:
        """Return what a decision has trained."""
        point = self.space.point(entry["choice"], self.group(entry), entry.get("with_seed"))
        if "rung" not in entry:
            return point
        so_far = point.snapshots[: entry["rung"] + 1]
        return replace(point, snapshots=so_far, parks=so_far != point.snapshots and not is_dropped)

    def points(self, log: Sequence[Mapping[str, Any]]) -> tuple[Point, ...]:
        """Return what all decisions have trained, each training once."""
        dropped = {entry["trial"] for entry in log if entry["kind"] == "drop"}
        last = {(trial_of(entry), entry.get("with_seed")): entry for entry in trained_of(log)}
        return tuple(self.point(entry, trial in dropped) for (trial, _), entry in last.items())


def plan_searches(sweep: Sweep) -> tuple[Planned, ...]:
    """Resolve the searches of a sweep.

    Raises:
        InvalidInput: with everything of them that cannot be done.
    """
    return _resolved(sweep)[0] if sweep.file.search else ()


def _resolved(sweep: Sweep) -> tuple[tuple[Planned, ...], Contents]:
    """Return the searches of a sweep, and what their words stand for."""
    if refused := list(refusals(sweep)):
        raise InvalidInput(refused)
    contents = Contents(sweep.folder, read_lock(storage_root(sweep), sweep.file.name), FileHashes())
    requirements = Requirements(sweep, contents)
    planned = [_planned(sweep, index, contents, requirements) for index in range(len(sweep.file.search))]
    contents.hashes.save()
    problems = [problem for _, found in planned for problem in found]
    if problems:
        raise InvalidInput(problems)
    found = [one for one, _ in planned if one is not None]
    if again := list(_same(found, sweep)):
        raise InvalidInput(again)
    return tuple(found), contents


def _same(found: Sequence[Planned], sweep: Sweep) -> Iterator[Problem]:
    """Yield the searches that would decide what another one decides."""
    first: dict[str, str] = {}
    for index, one in enumerate(found):
        name = first.setdefault(one.id, one.search.name)
        if name != one.search.name:
            rule = f"is the same search as {name}: both would decide the same; change its seed, or leave it out"
            yield Problem(sweep.place(f"search[{index}]"), rule, one.search.name)


def _planned(
    sweep: Sweep, index: int, contents: Contents, requirements: Requirements
) -> tuple[Planned | None, list[Problem]]:
    search = sweep.file.search[index]
    maker, reader = PointCells(sweep, contents), Reader(wanted_names(search))
    place = sweep.place(f"search[{index}]")
    space = _space(sweep, search, contents, maker)
    if isinstance(space, CellSpace) and space.size < 2:
        what, field = ("mixture", "mixture.weights") if space.has_weights else ("cell", "over")
        return None, [Problem(f"{place}.{field}", f"must leave {what}s to choose from, but there are {space.size}")]

    @cache
    def cells_at(key: tuple[tuple[str, float | int], ...], group: str | None, seed: int | None) -> tuple[Cell, ...]:
        return maker.of(space.point(dict(key), group, seed))

    def cell_of(choice: Choice, group: str | None, rung: int = -1, seed: int | None = None) -> Cell:
        return cells_at(tuple(sorted(choice.items())), group, seed)[rung]

    def scored_at(choice: Choice, group: str | None, rung: int, seed: int | None) -> tuple[ScoredCell, ScoredCell]:
        cell, base = cell_of(choice, group, rung, seed), maker.base_of(space.point(choice, group))
        wanted, of_base = requirements.for_cell(cell), requirements.for_cell(base)
        # A base model is scored under the templates of all settings: what compares comes first.
        shared = {item.id for item in wanted}
        ordered = tuple(sorted(of_base, key=lambda item: item.id not in shared))
        trained = cell.recipe.id if cell.recipe else None
        return ScoredCell(cell.id, trained, wanted), ScoredCell(base.id, None, ordered)

    cells = [cell_of(choice, group) for choice, group in space.corners()]
    asked = [requirements.for_cell(cell) for cell in cells]
    problems = [
        *reader.problems(asked[0], lambda name: _place_of(name, search, place)),
        *_base_problems(sweep, search, place),
    ]
    problems += [*_start_problems(search, space, place), *_parking_problems(search, cells, place)]
    problems += _confirm_problems(search, space, place)
    if problems:
        return None, problems
    rules = Rules(
        "",
        space,
        lambda choice, group, rung: cell_of(choice, group, rung).id,
        lambda choice, group: fingerprint(cell_of(choice, group).base),
        lambda choice, group, seed: cell_of(choice, group, -1, seed).id,
        (),
        *_parking(search, cells),
    )
    content = search_content(space, contents, _meanings(reader, asked), rules.start_count, rules.sampler)
    return Planned(search, space, replace(rules, id=search_id(content)), content, reader, scored_at), []


def _space(sweep: Sweep, search: Search, contents: Contents, maker: PointCells) -> Space | CellSpace:
    if isinstance(search.mixture, Weights):
        return _weights_space(sweep, search, contents, maker)
    if search.over is not None:
        return CellSpace(sweep, search, tuple(cell for _, cell in sorted(maker.of_blocks(search.over).items())))
    return make_space(sweep, search, contents)


def _weights_space(sweep: Sweep, search: Search, contents: Contents, maker: PointCells) -> CellSpace:
    """Return the space of a search for the weights of a mixture."""
    assert isinstance(search.mixture, Weights)
    datasets = sweep.file.datasets
    known = {name: fingerprint(contents.dataset(datasets[name], f"datasets.{name}")) for name in search.mixture.weights}
    draws = number(fingerprint([known[name] for name in sorted(known)]), search.seed)
    mixtures, begun = candidates(search, datasets, known, sweep.file.mixtures.sample_seed, draws)
    variant = make_variant(str(search.setting), sweep.settings[str(search.setting)], {})
    snapshots = tuple(sorted(search.snapshots or (search.horizon,)))
    model = sweep.models_of(search.model or ())[0]
    points = (Point(search.name, model, one, variant, search.schedule, search.horizon, snapshots) for one in mixtures)
    return CellSpace(sweep, search, tuple(maker.of(point)[-1] for point in points), begun)


def _start_problems(search: Search, space: Space | CellSpace, place: str) -> list[Problem]:
    first = space.start if isinstance(space, CellSpace) else 0  # of other spaces the sweep file alone tells
    if search.trials is None or first <= search.trials:
        return []
    return [Problem(f"{place}.trials", f"is below the start, which takes {first}", search.trials)]


def _confirm_problems(search: Search, space: Space | CellSpace, place: str) -> list[Problem]:
    if search.confirm is None or most_confirmations(space) > 0:
        return []
    rule = "must have another seed than the setting's own, with which each trial is trained anyway"
    return [Problem(f"{place}.confirm.seeds", rule, list(search.confirm.seeds))]


def _place_of(name: str, search: Search, place: str) -> str:
    """Return where a search names a benchmark or measure."""
    return f"{place}.objective" if name in objective_names(search) else f"{place}.constraints"


def _parking(search: Search, cells: Sequence[Cell]) -> tuple[int | None, Callable[[str], int]]:
    """Return the bytes that parked trainings may take, and those of one by what hashes its model."""
    sizes = {fingerprint(cell.base): _state_bytes(cell) or 0 for cell in cells}
    most = search.rungs.parked.at_most if search.rungs else None
    return None if most is None else int(parse_size(most)), lambda model: sizes.get(model, 0)


def _state_bytes(cell: Cell) -> int | None:
    shape = shape_of(cell.model)
    return None if shape is None or cell.recipe is None else checkpoint_bytes(shape, cell.recipe.setting)


def _parking_problems(search: Search, cells: Sequence[Cell], place: str) -> list[Problem]:
    if search.rungs is None or search.rungs.parked.at_most is None:
        return []
    rule = "cannot be kept without the model's size, which is not known until it is on the disk"
    # A local model that has no size is not there or damaged, which is said of it.
    unknown = [cell.coordinates.model for cell in cells if cell.model.hub is not None and _state_bytes(cell) is None]
    return [Problem(f"{place}.rungs.parked.at_most", rule, name) for name in unknown]


def _meanings(reader: Reader, asked: Sequence[Sequence[Requirement]]) -> dict[str, list[str]]:
    """Return the ids of what gives each name, over all groups."""
    return {name: sorted({item for one in asked for item in Reader([name]).requirements(one)}) for name in reader.names}


def _base_problems(sweep: Sweep, search: Search, place: str) -> list[Problem]:
    against = names_against_base(search)
    unscored = "is against the base model, which needs evaluation.base: true"
    unmeasured = "must be a number: base models have no measures"
    rules = [(name, unscored) for name in against if not sweep.file.evaluation.base]
    rules += [(name, unmeasured) for name in against if name in sweep.file.measures]
    return [Problem(f"{place}.constraints.{name}", rule) for name, rule in rules]


def with_decisions(sweep: Sweep, searches: Sequence[Planned]) -> Sweep:
    """Return the sweep with what its searches have decided so far. Raises Corrupt where a log was edited."""
    storage = storage_root(sweep)
    if not searches or not storage.exists(MARKER):
        return sweep
    points = (point for one in searches for point in one.points(one.log(storage).read()))
    return replace(sweep, points=tuple(points))


def make_whole_plan(sweep: Sweep, states_of: StatesOf = Ledger.listed_states) -> Plan:
    """Plan a sweep as ``make_plan``, with what its searches have decided so far, and what they may still need.

    Trainings under ``gpus: auto`` have their number of GPUs.
    """
    if not sweep.file.search:
        return with_gpu_counts(make_plan(sweep, states_of))
    searches, contents = _resolved(sweep)
    plan = make_plan(with_decisions(sweep, searches), states_of)
    missing, unpinned = _added(plan.missing, contents.missing, sweep), _added(plan.unpinned, contents.unpinned, sweep)
    return with_gpu_counts(replace(plan, missing=missing, unpinned=unpinned))


def _added(known: Sequence[Problem], found: Mapping[str, Problem], sweep: Sweep) -> tuple[Problem, ...]:
    """Return problems with those of searches that are not among them."""
    placed = {sweep.place(item.place): item for item in found.values()}
    others = [Problem(place, item.rule, item.value) for place, item in placed.items()]
    return (*known, *(item for item in others if item.place not in {one.place for one in known}))


def plan_points(sweep: Sweep, points: Sequence[Point], states_of: StatesOf = Ledger.states) -> Plan:
    """Return the plan of these points alone; ``states_of`` as for ``make_plan``."""
    file = sweep.file.model_copy(update={"blocks": ()})
    return make_plan(replace(sweep, file=file, variants=(), excludes=(), points=tuple(points)), states_of)
