"""The searches of a sweep: what is best, each decision with its reason, what matters, what was not tried."""

from __future__ import annotations

from collections.abc import Iterator

from massive_sft.core.wording import counted
from massive_sft.planning.plan import Plan
from massive_sft.report.html_table import Column, Table, without
from massive_sft.report.search_charts import KEYS, choice_text, differing, labels_of, panels, teams
from massive_sft.report.section import FigureBlock, Section, TableBlock
from massive_sft.search.decider import points_of
from massive_sft.search.importance import LEAST, importances
from massive_sft.search.standing import Standing, find_standings
from massive_sft.search.untried import untried
from massive_sft.search.view import entry_text, outcome_text, reason_of, stale_text
from massive_sft.study.results import Results


def searches_section(plan: Plan, results: Results) -> Section | None:
    """Return the section of a sweep's searches; None where it has none, or none has decided anything."""
    if not plan.sweep.file.search or plan.missing:
        return None
    found = [one for one in find_standings(plan.sweep, results.ledger) if one.entries]
    if not found:
        return None
    notes = [note for one in found for note in _notes(one)]
    figures = {one.planned.search.name: panels(one) for one in found}
    tables = [TableBlock(table) for one in found for table in (*_answers(one), *_matters(one), _table(one))]
    return Section("searches", "Searches", notes, [FigureBlock(figures, KEYS), *tables])


def _notes(one: Standing) -> Iterator[str]:
    search, counts = one.planned.search, one.counts
    said = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in sorted(counts.items()))
    points = points_of(one.planned.space)
    of = "" if points is None else f" of {counted(points, 'cell')}"
    confirming = f", and {one.confirmations} trainings with other seeds" if one.confirmations else ""
    yield (
        f"{search.name}: {len(one.asks)} trials{of}{confirming}: {said}. Only what was tried can be "
        "called best; the best of many is partly luck."
    )
    if one.shortage:
        yield f"{search.name}: {one.shortage}."
    for entry in one.entries:
        if entry["kind"] == "stop":
            yield f"{search.name}: decision {entry['n']}: {entry_text(entry)}."
    yield from (f"{search.name}: {sentence}." for sentence in untried(one))
    few = [name for name, entries in teams(one) if len(one.values_of(entries)) < LEAST]
    if few:
        of = f" of {', '.join(few)}" if any(few) else ""
        yield f"{search.name}: how much each axis matters is not told from fewer than {LEAST} complete trials{of}."
    if one.stale:
        yield f"{search.name}: {stale_text(one.stale)}."


def _answers(one: Standing) -> Iterator[Table]:
    """Yield the table of what is best, of each answer that the search is to give."""
    rows = [
        [
            answer.of,
            str(entry["n"]),
            entry["cell"],
            choice_text(one, entry),
            outcome_text(one.outcomes[entry["n"]]),
            "; ".join(map(outcome_text, one.confirmed(entry))),
        ]
        for answer in one.answers
        for entry in answer.entries
    ]
    columns = [Column("of", "facet"), Column("decision", "number"), Column("cell"), Column("choice", "long")]
    columns += [Column("outcome", "long"), Column("with other seeds", "long")]
    for index in (5, 0):  # of several answers, and of confirmations, where there are any
        if not any(row[index] for row in rows):
            columns, rows = without(index, columns), [without(index, row) for row in rows]
    if rows:
        name = one.planned.search.name
        yield Table(f"answers-{name}", f"what search {name} found; several where none is better in all", columns, rows)


def _matters(one: Standing) -> Iterator[Table]:
    """Yield the table of how much each axis matters, where enough was tried to say so."""
    rows = []
    for team, entries in teams(one):
        values = one.values_of(entries)
        known = [entry for entry in entries if entry["n"] in values]
        axes = differing(one, known)
        for position, label in enumerate(labels_of(one)):
            for found in importances(axes, [values[entry["n"]][position] for entry in known]):
                interval = f"{found.low:.0%} to {found.high:.0%}"
                told = "yes" if found.is_sure else "not told from chance"
                rows.append([label, team, found.name, f"{found.share:.0%}", interval, f"{found.by_chance:.0%}", told])
    columns = [Column("objective", "facet"), Column("model", "facet"), Column("axis"), Column("share", "number")]
    columns += [Column("95 % interval"), Column("by chance up to", "number"), Column("matters", "facet")]
    if rows:
        name = one.planned.search.name
        caption = (
            f"how much each axis of search {name} matters: the share of the variance of what was tried that lies "
            "between its values (ranges in three parts), each axis by itself"
        )
        yield Table(f"matters-{name}", caption, columns, rows)


def _table(one: Standing) -> Table:
    columns = [Column("decision", "number"), Column("what", "facet"), Column("cell"), Column("choice", "long")]
    columns += [Column("outcome", "long"), Column("why", "long"), Column("best", "facet")]
    best, ahead = {entry["n"] for entry in one.best}, one.was_ahead
    alike = {other["n"] for entry in one.best for other in one.as_good_as(entry)} if len(best) == 1 else set()
    rows = []
    for entry in one.entries:
        number, kind = str(entry["n"]), str(entry["kind"]).replace("_", " ")
        if "cell" not in entry:
            rows.append([number, kind, "", "", "", entry_text(entry), ""])
            continue
        outcome = outcome_text(one.outcomes.get(entry["n"]))
        is_best = "best" if entry["n"] in best else "as good" if entry["n"] in alike else ""
        is_best = is_best or ("was best" if entry["n"] in ahead else "")
        rows.append([number, kind, entry["cell"], choice_text(one, entry), outcome, reason_of(entry), is_best])
    name = one.planned.search.name
    return Table(f"search-{name}", f"decisions of search {name} ({one.planned.id})", columns, rows)
