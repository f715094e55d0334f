"""The searches of a sweep: what was best by decision, each decision with its reason, what objectives trade."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from massive_sft.planning.plan import Plan
from massive_sft.report.chart import Dot, Key, Line, Panel
from massive_sft.report.section import FigureBlock, Section, TableBlock
from massive_sft.report.table import Column, Table
from massive_sft.search.outcomes import Outcome, objective_names
from massive_sft.search.standing import Standing, find_standings
from massive_sft.search.view import as_text, entry_text, outcome_text, reason_of
from massive_sft.study.results import Results

Z95 = 1.96  # standard errors to each side of a 95 % interval
KEYS = (Key("tried, with its 95 % interval", 0, shape=0), Key("best so far", 1))


def searches_section(plan: Plan, results: Results) -> Section | None:
    """Return the section of a sweep's searches; None where it has none, or none has decided anything."""
    if not plan.sweep.file.search or plan.missing:
        return None
    found = [one for one in find_standings(plan.sweep, results.ledger) if one.entries]
    if not found:
        return None
    notes = [note for one in found for note in _notes(one)]
    figures = {one.planned.search.name: [*_curves(one), *_fronts(one)] for one in found}
    tables = [TableBlock(_table(one)) for one in found]
    return Section("searches", "Searches", notes, [FigureBlock(figures, KEYS), *tables])


def _notes(one: Standing) -> Iterator[str]:
    search, counts = one.planned.search, one.counts
    said = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in sorted(counts.items()))
    size = one.planned.space.size
    of = "" if size is None else f" of {size:,} cells"
    yield (
        f"{search.name}: {len(one.asks)} trials{of}: {said}. Only what was tried can be called best; the best of many "
        "is partly luck."
    )
    for entry in one.entries:
        if entry["kind"] == "stop":
            yield f"{search.name}: decision {entry['n']}: {entry_text(entry)}."


def _groups(one: Standing) -> Sequence[str]:
    return [str(group) for group in one.planned.space.groups] or [""]


def _curves(one: Standing) -> Iterator[Panel]:
    """Yield a chart for each objective and group: the scores by decision, and the best so far."""
    low = one.planned.search.objective.minimize is not None
    for position, group in enumerate(_groups(one)):
        for name in objective_names(one.planned.search):
            dots, best = [], list[tuple[float, float]]()
            for entry in one.trained:
                outcome = one.outcomes.get(entry["n"])
                if entry["group"] != position or outcome is None or outcome.kind != "complete":
                    continue
                value, half = outcome.values[name], Z95 * outcome.errors.get(name, math.nan)
                label = f"decision {entry['n']}: {_values(one, entry)}: {outcome_text(outcome)}"
                dots.append(Dot(label, float(entry["n"]), value, 0, 0, value - half, value + half))
                ahead = best[-1][1] if best else value
                best.append((float(entry["n"]), min(ahead, value) if low else max(ahead, value)))
            if dots:
                title = f"{name} {group}".strip()
                yield Panel(title, "decision", name, [Line("best so far", best, 1)], dots, whole_x=True)


def _fronts(one: Standing) -> Iterator[Panel]:
    """Yield a chart of the first two objectives for each group, where there are several."""
    names = objective_names(one.planned.search)
    if len(names) < 2:
        return
    for position, group in enumerate(_groups(one)):
        best = {entry["n"] for entry in one.best(position)}
        known = [entry for entry in one.trained if entry["group"] == position]
        done = [(entry, one.outcomes[entry["n"]]) for entry in known if _is_complete(one.outcomes.get(entry["n"]))]
        dots = [
            Dot(
                f"decision {entry['n']}: {_values(one, entry)}: {outcome_text(outcome)}",
                outcome.values[names[0]],
                outcome.values[names[1]],
                int(entry["n"] in best),
            )
            for entry, outcome in done
        ]
        if dots:
            caption = "in the second colour: no other is better in all objectives"
            yield Panel(f"what is traded {group}".strip(), names[0], names[1], dots=dots, caption=caption)


def _is_complete(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.kind == "complete"


def _values(one: Standing, entry: Any) -> str:
    return ", ".join(f"{name} {as_text(value)}" for name, value in one.planned.named(entry).items())


def _table(one: Standing) -> Table:
    columns = [Column("decision", "number"), Column("what", "facet"), Column("cell"), Column("choice", "long")]
    columns += [Column("outcome", "long"), Column("why", "long"), Column("best", "facet")]
    best = {entry["n"] for position in range(len(_groups(one))) for entry in one.best(position)}
    rows = []
    for entry in one.entries:
        number, kind = str(entry["n"]), str(entry["kind"]).replace("_", " ")
        if "cell" not in entry:
            rows.append([number, kind, "", "", "", entry_text(entry), ""])
            continue
        outcome = outcome_text(one.outcomes.get(entry["n"]))
        is_best = "best" if entry["n"] in best else ""
        rows.append([number, kind, entry["cell"], _values(one, entry), outcome, reason_of(entry), is_best])
    name = one.planned.search.name
    return Table(f"search-{name}", f"decisions of search {name} ({one.planned.id})", columns, rows)
