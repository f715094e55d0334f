"""What spans several entries of a search: names, ends of ranges, bounds that cannot be kept. All of it at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from massive_sft.core.errors import Problem
from massive_sft.sweep.schema import Range, Search, Setting, Weights
from massive_sft.sweep.schema.field_types import MAX_COUNT
from massive_sft.sweep.schema.search import Rungs
from massive_sft.sweep.setting import FIELDS, field_value, field_values, takes_numbers, takes_whole_numbers
from massive_sft.sweep.yaml_errors import Location, ToPlace

NAMES = ("model", "mixture")  # axes of a space that are no fields of a setting
OF_ITS_OWN = ("model", "mixture", "setting", "schedule", "horizon", "snapshots", "space", "rungs")
"""Fields that say what the space of a search is, in place of ``over``."""
MAX_SPREAD = 1000  # points of a start: beyond, a search is a sample


def inherit(raw: Mapping[str, Any], to_place: ToPlace) -> tuple[dict[str, Any], list[Problem]]:
    """Return a raw sweep file in which searches ``from`` another have what they do not say themselves."""
    written = raw.get("search")
    if not isinstance(written, list):
        return dict(raw), []
    named = [entry for entry in written if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
    by_name = {entry["name"]: entry for entry in named}
    problems: list[Problem] = []
    return {
        **raw,
        "search": [_whole(entry, by_name, i, problems, to_place) for i, entry in enumerate(written)],
    }, problems


def _whole(entry: Any, by_name: Mapping[str, Any], index: int, problems: list[Problem], to_place: ToPlace) -> Any:
    """Return an entry with all that it inherits."""
    chain, seen = [entry], set[str]()
    while isinstance(chain[-1], dict) and isinstance(name := chain[-1].get("from"), str):
        place = to_place(("search", index, "from"))
        if name in seen or by_name.get(name) is entry:
            problems.append(Problem(place, "leads back to itself", name))
            break
        if name not in by_name:
            problems.append(Problem(place, "unknown search", name, list(by_name)))
            break
        seen.add(name)
        chain.append(by_name[name])
    if not all(isinstance(one, dict) for one in chain) or len(chain) == 1:
        return entry
    merged: dict[str, Any] = {}
    for one in reversed(chain):
        merged |= one
    return merged


def _valid_part(entry: Mapping[str, Any]) -> Search | None:
    """Return a raw search without the fields that break the schema; none where they are what its axes are judged by."""
    broken: set[Any] = set()
    try:
        Search.model_validate(entry)
    except ValidationError as error:
        broken = {item["loc"][0] for item in error.errors() if item["loc"]}
    if broken & {"space", "mixture", "setting"}:
        return None
    kept = {key: value for key, value in entry.items() if key not in broken}
    try:
        return Search.model_validate({"name": "unnamed", "objective": {"maximize": "score"}, **kept})
    except ValidationError:
        return None


class SearchChecks:
    """The second look at the searches of a file.

    Args:
        valid: the names that there are, by kind (``model``, ``mixture``, ``block``, ``setting``, ``dataset``).
        settings: without overrides, by name.
        members: returns how many a name of a kind stands for.
    """

    def __init__(self, valid: Mapping[str, Sequence[str]], settings: Mapping[str, Setting], members: Any):
        self._valid, self._settings, self._members = valid, settings, members

    def problems(self, search: Search, at: Location, to_place: ToPlace) -> Iterator[Problem]:
        """Yield what is wrong with a search that pydantic cannot see."""

        def place(*steps: str | int) -> str:
            return to_place((*at, *steps))

        if search.over is not None:
            yield from self._over(search, place)
        else:
            yield from self._own_space(search, place)
        yield from _objective(search, place)
        yield from _ends(search, place)
        for name, bound in search.constraints.items():
            if bound.at_least is None and bound.at_most is None:
                yield Problem(place("constraints", name), "must have at_least or at_most")
            least, most = bound.at_least, bound.at_most
            if isinstance(least, float) and isinstance(most, float) and least > most:
                rule = f"cannot be kept: at_least {least:g} is above at_most {most:g}"
                yield Problem(place("constraints", name), rule)

    def problems_of_space(self, entry: Any, at: Location, to_place: ToPlace) -> Iterator[Problem]:
        """Yield what is wrong with the axes of a raw search that breaks the schema elsewhere."""
        search = _valid_part(entry) if isinstance(entry, dict) and entry.get("over") is None else None
        if search is not None and search.space:
            yield from self._axes(search, lambda *steps: to_place((*at, *steps)))

    def _over(self, search: Search, place: Any) -> Iterator[Problem]:
        yield from self._known("block", search.over or (), place("over"))
        for field in OF_ITS_OWN:
            if field in search.model_fields_set:
                yield Problem(place(field), "has no effect beside over, whose cells are the space; leave it out")
        if search.trials is None and search.stop is None and search.budget.gpu_hours is None:
            yield Problem(place(), "needs trials, stop or budget.gpu_hours: else it would try everything")

    def _own_space(self, search: Search, place: Any) -> Iterator[Problem]:
        if search.trials is None:
            yield Problem(place("trials"), "is required")
        for field in ("model", "setting"):
            if getattr(search, field) is None and field not in search.space:
                yield Problem(place(field), "is required")
        if search.mixture is None and "mixture" not in search.space:
            yield Problem(place("mixture"), "is required")
        yield from self._known("setting", [search.setting] if search.setting else [], place("setting"))
        yield from self._several("model", search.model or (), search, place)
        if isinstance(search.mixture, Weights):
            yield from self._weights(search.mixture, search, lambda *steps: place("mixture", *steps))
        else:
            yield from self._several("mixture", search.mixture or (), search, place)
        yield from self._axes(search, place)
        yield from _said_twice(search, place)
        if search.rungs is not None:
            yield from _rungs(search, search.rungs, place)
        else:
            beyond = [str(epoch) for epoch in search.snapshots or () if epoch > search.horizon]
            if beyond:
                yield Problem(place("snapshots"), f"{', '.join(beyond)} is beyond horizon {search.horizon}")

    def _known(self, what: str, names: Sequence[Any], place: str) -> Iterator[Problem]:
        for name in names:
            if name not in self._valid[what]:
                yield Problem(place, f"unknown {what}", name, list(self._valid[what]))

    def _several(self, what: str, names: Sequence[str], search: Search, place: Any) -> Iterator[Problem]:
        yield from self._known(what, names, place(what))
        count = sum(self._members(what, name) for name in names)
        if count > 1 and what not in search.space and not (what == "model" and search.objective.for_each):
            also = " or objective.for_each: model" if what == "model" else ""
            rule = f"stands for {count} {what}s, but a search tries one at a time: put {what} into space{also}"
            yield Problem(place(what), rule, ", ".join(names))

    def _axes(self, search: Search, place: Any) -> Iterator[Problem]:
        if not search.space and not isinstance(search.mixture, Weights):
            yield Problem(place("space"), "must not be empty: there is nothing to search", choices=(*NAMES, *FIELDS))
            return
        sizes = []
        for field, axis in search.space.items():
            at = place("space", field)
            if field in NAMES:
                if isinstance(axis, Range):
                    yield Problem(at, f"must be a list of {field}s, not a range")
                    continue
                yield from self._known(field, axis, at)
                sizes.append(sum(self._members(field, str(name)) for name in axis))
            elif field not in FIELDS:
                yield Problem(place("space"), "unknown axis", field, (*NAMES, *FIELDS))
            else:
                yield from self._field(field, axis, search, at)
                sizes.append(_size(axis))
        if sizes and math.prod(sizes) == 1 and not isinstance(search.mixture, Weights):
            yield Problem(place("space"), "has one point, which needs no search: make it a block")

    def _field(self, field: str, axis: Any, search: Search, at: str) -> Iterator[Problem]:
        setting = self._settings.get(search.setting or "")
        if field.startswith("lora.") and setting is not None and setting.method != "lora":
            yield Problem(at, f"has no effect in a setting of method {setting.method}; leave it out")
        if not isinstance(axis, Range):
            yield from (problem for value in axis for problem in field_values(field, value, at)[1])
            return
        if not takes_numbers(field):
            yield Problem(at, "must be a list of values, not a range: they are no numbers")
            return
        kinds = [name for name in ("log", "linear", "powers_of_2", "times") if getattr(axis, name) is not None]
        if len(kinds) != 1:
            yield Problem(at, "must have exactly one of: log, linear, powers_of_2, times")
            return
        if (axis.by is None) == (axis.times is not None):
            yield Problem(at, "times and by go together")
            return
        ends = getattr(axis, kinds[0])
        if axis.times is not None:
            yield from self._multiples(field, axis, search, at)
            return
        if axis.powers_of_2 and any(end & (end - 1) for end in axis.powers_of_2):
            yield Problem(f"{at}.powers_of_2", "must be two powers of 2", str(list(ends)))
        elif ends[0] >= ends[1]:
            yield Problem(f"{at}.{kinds[0]}", "must end above its beginning", str(list(ends)))
        else:
            whole = takes_whole_numbers(field) and all(float(end).is_integer() for end in ends)
            yield from field_values(field, [int(end) if whole else end for end in ends], at)[1]

    def _multiples(self, field: str, axis: Range, search: Search, at: str) -> Iterator[Problem]:
        """Yield what is wrong with an axis of multiples of another field, at all its values or the ends of a range."""
        times, setting = str(axis.times), self._settings.get(search.setting or "")
        base = search.space.get(times)
        if isinstance(base, Range) and base.times is not None:
            yield Problem(f"{at}.times", "must be a field that is no multiple itself", times)
            return
        bases = _numbers(base) if base is not None else ()
        if base is None and setting is not None and times in FIELDS:
            bases = (field_value(setting, times),)
        if not bases or times in NAMES or not all(_is_number(value) for value in bases):
            numeric = [name for name in FIELDS if takes_numbers(name) and name != field]
            yield Problem(f"{at}.times", "must be a numeric field of the setting", times, numeric)
            return
        bases = tuple(value for value in bases if abs(value) <= MAX_COUNT)  # a greater one is told where it is written
        is_open = isinstance(base, Range) and base.powers_of_2 is None
        broken = [by for by in axis.by or () if not float(by).is_integer()] if is_open else []
        if takes_whole_numbers(field) and is_open and (broken or not takes_whole_numbers(times)):
            rule = f"must give whole numbers: {times} must take whole numbers, and by be some"
            yield Problem(at, rule, ", ".join(f"{by:g}" for by in axis.by or ()))
            return
        products = dict.fromkeys(value * by for value in bases for by in axis.by or ())
        for product in products:
            whole = int(product) if float(product).is_integer() else float(product)
            if found := field_values(field, whole, at)[1]:
                yield found[0]
                return

    def _weights(self, mixture: Weights, search: Search, place: Any) -> Iterator[Problem]:
        yield from self._known("dataset", list(mixture.weights), place("weights"))
        if "mixture" in search.space:
            yield Problem(place(), "are weights to be searched already: leave mixture out of space")
        low, high = (math.fsum(ends[i] for ends in mixture.weights.values()) for i in (0, 1))
        for name, (least, most) in mixture.weights.items():
            if not 0 <= least <= most <= 1:
                yield Problem(
                    place("weights", name), "must be two numbers with 0 <= least <= most <= 1", f"[{least:g}, {most:g}]"
                )
        if low > 1 + 1e-9:
            yield Problem(place("weights"), f"must be able to add up to 1, but the least shares already make {low:g}")
        if high < 1 - 1e-9:
            yield Problem(place("weights"), f"must be able to add up to 1, but the greatest shares make only {high:g}")
        if mixture.at_most is not None:
            needed = sum(least > 0 for least, _ in mixture.weights.values())
            reach = math.fsum(sorted((most for _, most in mixture.weights.values()), reverse=True)[: mixture.at_most])
            if needed > mixture.at_most or reach < 1 - 1e-9 <= high:
                rule = f"must leave room: {needed} datasets have a least share above 0, and the {mixture.at_most} "
                yield Problem(place("at_most"), f"{rule}with the greatest make at most {reach:g}", mixture.at_most)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(axis: Any) -> tuple[Any, ...]:
    """Return the values of an axis that is no multiple: all of a list, the ends of a range."""
    return tuple(axis.log or axis.linear or axis.powers_of_2 or ()) if isinstance(axis, Range) else tuple(axis)


def _said_twice(search: Search, place: Any) -> Iterator[Problem]:
    """Yield the keys that have no effect beside others of a search with a space of its own."""
    for name in () if isinstance(search.mixture, Weights) else NAMES:
        axis, own = search.space.get(name), getattr(search, name)
        if own is not None and isinstance(axis, tuple) and set(own) != set(axis):
            yield Problem(
                place(name), f"is another than space.{name}, which is what is tried; leave out one", ", ".join(own)
            )
    if "model" in search.space and search.objective.for_each:
        rule = "has no effect on models in space, of which one is best; put them into model instead"
        yield Problem(place("objective", "for_each"), rule)
    if "seed" in search.space and search.confirm is not None:
        yield Problem(place("confirm"), "has no effect beside space.seed, by which seeds are searched; leave out one")


def _size(axis: Any) -> float:
    """Return how many values an axis has; infinity for a range of fractions."""
    if not isinstance(axis, Range):
        return float(len(axis))
    if axis.powers_of_2:
        return float(axis.powers_of_2[1].bit_length() - axis.powers_of_2[0].bit_length() + 1)
    return float(len(axis.by)) if axis.by else math.inf


def _objective(search: Search, place: Any) -> Iterator[Problem]:
    if (search.objective.maximize is None) == (search.objective.minimize is None):
        yield Problem(place("objective"), "must have exactly one of: maximize, minimize")


def _rungs(search: Search, rungs: Rungs, place: Any) -> Iterator[Problem]:
    if search.schedule.has_horizon:
        rule = "must be constant with rungs: an early snapshot of a schedule that decays is another model than a "
        yield Problem(
            place("schedule"), f"{rule}shorter training's last, and says little of the later one", search.schedule.label
        )
    if list(rungs.at) != sorted(rungs.at) or len(rungs.at) < 2:
        yield Problem(place("rungs", "at"), "must be two epochs or more, ascending", str(list(rungs.at)))
    beyond = [str(epoch) for epoch in rungs.at if epoch > search.horizon]
    if beyond:
        yield Problem(place("rungs", "at"), f"{', '.join(beyond)} is beyond horizon {search.horizon}")
    if search.snapshots is not None:
        yield Problem(place("snapshots"), "are those of rungs.at; leave it out")


def _ends(search: Search, place: Any) -> Iterator[Problem]:
    """Yield what is wrong with when a search begins and ends."""
    start = search.start
    first = (start.qmc or 0) + start.portfolio + start.pairs
    if search.trials is not None and first > search.trials:
        yield Problem(place("trials"), f"is below the start, which takes {first}", search.trials)
    if first > MAX_SPREAD:
        yield Problem(place("start"), f"takes {first} cells, more than {MAX_SPREAD}")
    of_weights = [name for name in ("singles", "all", "leave_one_out") if getattr(start, name)]
    of_weights += ["pairs"] if start.pairs else []
    if not isinstance(search.mixture, Weights):
        for name in of_weights:
            yield Problem(place("start", name), "has no effect without weights that are searched; leave it out")
        if search.proxy is not None:
            yield Problem(place("proxy"), "has no effect without weights that are searched; leave it out")
