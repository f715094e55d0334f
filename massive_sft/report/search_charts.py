"""Charts of a search: scores by decision, how far the best so far was from the best, what is traded, what is good."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from massive_sft.report.chart import Dot, Key, Line, Panel
from massive_sft.search.cells import CellSpace
from massive_sft.search.coordinates import Coordinate, coordinates
from massive_sft.search.outcomes import Outcome, objective_names
from massive_sft.search.rules import Decision, is_confirmation
from massive_sft.search.standing import Standing
from massive_sft.search.view import as_text, outcome_text
from massive_sft.sweep.schema import Mean

Z95 = 1.96  # standard errors to each side of a 95 % interval
BETTER = 4  # one of so many trials is drawn as one of the better
KEYS = (
    Key("tried, with 1.96 standard errors to each side", 0, shape=0),
    Key("best so far; of what was tried, the better quarter", 1),
)


def panels(one: Standing) -> list[Panel]:
    """Return the charts of a search that has decided something."""
    found: list[Panel] = []
    for name, entries in teams(one):
        found += [*_curves(one, name, entries), *_regrets(one, name, entries)]
        found += [*_fronts(one, name, entries), *_parallel(one, name, entries)]
    return found


def teams(one: Standing) -> list[tuple[str, list[Decision]]]:
    """Return the models that have an answer each, with what was trained of them; all under no name where one has."""
    space = one.planned.space
    if isinstance(space, CellSpace):
        if not space.target.for_each:
            return [("", one.trained)]
        models = [space.cell(entry["choice"]).coordinates.model for entry in one.trained]
        return [
            (model, [entry for entry, of in zip(one.trained, models, strict=True) if of == model])
            for model in sorted(set(models))
        ]
    groups = [str(group) for group in space.groups] or [""]
    own = ([entry for entry in one.trained if entry["group"] == place] for place in range(len(groups)))
    return [(group if len(groups) > 1 else "", entries) for group, entries in zip(groups, own, strict=True)]


def differing(one: Standing, entries: Sequence[Decision]) -> list[Coordinate]:
    """Return the axes on which decisions of one team differ: each model's own have that in common."""
    return [axis for axis in coordinates(one.planned.space, entries) if len(set(axis.levels)) > 1]


def story(one: Standing, entry: Decision) -> str:
    """Return what a decision chose and what came of it."""
    return f"decision {entry['n']}: {choice_text(one, entry)}: {outcome_text(one.outcomes.get(entry['n']))}"


def choice_text(one: Standing, entry: Decision) -> str:
    """Return what a decision chose."""
    return ", ".join(f"{name} {as_text(value)}" for name, value in one.planned.named(entry).items())


def labels_of(one: Standing) -> tuple[str, ...]:
    """Return the names of a search's objectives."""
    written = one.planned.search.objective.maximize or one.planned.search.objective.minimize
    return (f"mean of {', '.join(written.mean)}",) if isinstance(written, Mean) else objective_names(one.planned.search)


def _complete(one: Standing, entries: Sequence[Decision]) -> list[tuple[Decision, Outcome]]:
    known = [(entry, one.outcomes.get(entry["n"])) for entry in entries]
    return [(entry, outcome) for entry, outcome in known if outcome is not None and outcome.kind == "complete"]


def _curves(one: Standing, team: str, entries: Sequence[Decision]) -> Iterator[Panel]:
    """Yield a chart for each benchmark of the objective: the scores by decision, and the best so far."""
    low = one.planned.search.objective.minimize is not None
    for name in objective_names(one.planned.search):
        dots, best = [], list[tuple[float, float]]()
        for entry, outcome in _complete(one, entries):
            value, half = outcome.values[name], Z95 * outcome.errors.get(name, math.nan)
            dots.append(Dot(story(one, entry), float(entry["n"]), value, 0, 0, value - half, value + half))
            if not is_confirmation(entry):
                ahead = best[-1][1] if best else value
                best += [(float(entry["n"]), ahead)] if best else []
                best.append((float(entry["n"]), min(ahead, value) if low else max(ahead, value)))
        if dots:
            yield Panel(_titled(name, team), "decision", name, [Line("best so far", best, 1)], dots, whole_x=True)


def _regrets(one: Standing, team: str, entries: Sequence[Decision]) -> Iterator[Panel]:
    """Yield a chart for each objective: by how much the best so far was worse than the best of all that were tried.

    Its interval is of the difference of the two scores.
    """
    labels, names = labels_of(one), objective_names(one.planned.search)
    for position, label in enumerate(labels):
        name = names[position] if len(labels) == len(names) and label == names[position] else None
        values = _values(one, entries, position)
        if not values:
            continue
        best = max(values, key=lambda number: (values[number], -number))
        line, dots, ahead = list[tuple[float, float]](), [], None
        for number in sorted(values):
            regret = values[best] - values[number]
            if ahead is None or values[number] > values[ahead]:
                ahead = number
                half = 0.0 if number == best else Z95 * _error(one, name, best, number)
                text = f"from decision {number} on: {regret:.4g}" + (f" ± {half:.2g}" if half else "")
                dots.append(Dot(text, float(number), regret, 1, 0, regret - half, regret + half))
            line += [(float(number), line[-1][1])] if line else []
            line.append((float(number), values[best] - values[ahead]))
        title = _titled(f"regret in {label}", team)
        caption = "how much worse the best so far was than the best that was tried in the end"
        yield Panel(title, "decision", "regret", [Line(title, line, 1)], dots, caption, zero=True, whole_x=True)


def _values(one: Standing, entries: Sequence[Decision], position: int) -> dict[int, float]:
    """Return an objective of complete decisions of one team, better when larger, by their numbers."""
    return {number: values[position] for number, values in one.values_of(entries).items()}


def _error(one: Standing, name: str | None, *numbers: int) -> float:
    """Return the standard error of a difference; NaN where one is not known."""
    errors = [one.outcomes[number].errors.get(name or "", math.nan) for number in numbers]
    return math.sqrt(math.fsum(error**2 for error in errors))


def _fronts(one: Standing, team: str, entries: Sequence[Decision]) -> Iterator[Panel]:
    """Yield a chart of the first two objectives, where there are several that are traded."""
    names = labels_of(one)
    if len(names) < 2:
        return
    best = {entry["n"] for entry in one.best}
    dots = [
        Dot(story(one, entry), outcome.values[names[0]], outcome.values[names[1]], int(entry["n"] in best))
        for entry, outcome in _complete(one, entries)
        if not is_confirmation(entry)
    ]
    if dots:
        over = isinstance(one.planned.space, CellSpace)
        caption = "the best of a benchmark" if over else "no other is better in all objectives"
        yield Panel(
            _titled("what is traded", team), names[0], names[1], dots=dots, caption=f"in the second colour: {caption}"
        )


def _parallel(one: Standing, team: str, entries: Sequence[Decision]) -> Iterator[Panel]:
    """Yield a chart of where trials lie on every axis of the space, the better quarter in a colour of its own."""
    for position, label in enumerate(labels_of(one)):
        values = _values(one, entries, position)
        known = [entry for entry in entries if entry["n"] in values]
        axes = differing(one, known)
        if len(axes) < 2 or len(known) < 2:
            continue
        order = sorted(values, key=lambda number: -values[number])
        better = set(order[: max(1, len(order) // BETTER)])
        lines = [
            Line(
                story(one, entry),
                [(float(place), float(axis.shares[row])) for place, axis in enumerate(axes)],
                int(entry["n"] in better),
                faint=() if entry["n"] in better else [True] * len(axes),
            )
            for row, entry in sorted(enumerate(known), key=lambda pair: pair[1]["n"] in better)
        ]
        ends = "; ".join(f"{axis.name}: {axis.ends[0]} to {axis.ends[1]}" for axis in axes)
        places = [axis.name.replace("lora.", "") for axis in axes]
        title = _titled(f"what is good in {label}", team)
        yield Panel(title, "", "from the first to the last value", lines, caption=ends, places=places)


def _titled(text: str, team: str) -> str:
    return f"{text}, {team}" if team else text
