"""``answers CELL [CELL]``: what a benchmark asked, what is right and what cells answered, side by side."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from massive_sft.cli.cell_lookup import CellMatch, locate_cells
from massive_sft.cli.options import CellId, Json, Overlays, Sweep, console, print_json
from massive_sft.cli.views import make_table
from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.wording import counted

SHOWN = 10
KEYS = ["benchmark", "task", "doc", "draw"]
NONE_CHANGED = "the values of all questions that both answered are the same"
NONE_SHARED = "no question that all of them answered"
Rows = list[dict[str, Any]]
NONE = (
    "no answers: they lie with another cell of equal weights, or the requests are gone from the storage root's cache "
    "(`massive-sft check` builds them)"
)


def answers(
    first: CellId,
    second: Annotated[str | None, typer.Argument(help="Another cell's, to compare.", show_default=False)] = None,
    sweep: Sweep = None,
    overlay: Overlays = None,
    benchmark: Annotated[str | None, typer.Option(help="Only this benchmark, with or without shots, or task.")] = None,
    changed: Annotated[bool, typer.Option("--changed", help="Only those of which the values differ.")] = False,
    count: Annotated[int, typer.Option("-n", min=1, help="Questions to show.")] = SHOWN,
    as_json: Json = False,
) -> None:
    """What was asked, what is right and what one or two cells answered, side by side."""
    if changed and second is None:
        raise InvalidInput(Problem("--changed", "compares two cells; name a second one"))
    cells = locate_cells([cell for cell in (first, second) if cell is not None], sweep, overlay)
    whole = read_rows(cells, benchmark)
    rows = [row for row in whole if _differs(row)] if changed else whole
    if as_json:
        print_json(rows)
    else:
        none = NONE_CHANGED if changed else NONE_SHARED
        console().print(answers_view(cells, rows, count, none, len(whole) if changed else None))


def read_rows(cells: Sequence[CellMatch], benchmark: str | None = None) -> list[dict[str, Any]]:
    """Return one object a document (an answer, of sampled ones) that all cells answered: what each said, and its value.

    Raises InvalidInput where no benchmark or task has the name.
    """
    answered_by = [_answers(cell) for cell in cells]
    common = set.intersection(*({row["protocol"] for row in rows} for rows in answered_by))
    tables = [by_document(rows, common) for rows in answered_by]
    shared = [key for key in tables[0] if all(key in answered for answered in tables)]
    rows = [_row([answered[key] for answered in tables]) for key in shared]
    if benchmark is not None:
        names = {name: None for row in rows for name in _names(row)}
        if rows and benchmark not in names:
            raise InvalidInput(Problem("--benchmark", "is none that these cells answered", benchmark, tuple(names)))
        rows = [row for row in rows if benchmark in _names(row)]
    return rows


def _answers(cell: CellMatch) -> Rows:
    """Return a row a document that a cell answered, of what its sweep asks."""
    from massive_sft.study.file_frames import answer_frame
    from massive_sft.study.frames import to_json_rows

    if cell.record is None:
        raise InvalidInput(Problem("cell", "has no record yet", cell.id))
    scores = {protocol: found for protocol, found in cell.record.scores.items() if protocol not in cell.beside}
    return to_json_rows(answer_frame(cell.ledger, [cell.record.model_copy(update={"scores": scores})]))


def by_document(rows: Rows, common: Collection[str]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return answers by what was asked: under the protocols that all cells share, of a benchmark that has any.

    A base model has answers under each template, another cell under its own alone.
    """
    shared = {row["benchmark"] for row in rows if row["protocol"] in common}
    kept = (row for row in rows if row["protocol"] in common or row["benchmark"] not in shared)
    return {(row["protocol"] if row["protocol"] in common else "", *(row[name] for name in KEYS)): row for row in kept}


def _row(answered: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = ("answer", "extracted", "value", "logprob", "finish", "protocol", "prompt")
    said = [{name: row[name] for name in names} for row in answered]
    about = (*KEYS, "protocol", "kind", "prompt", "gold", "metric")
    return {**{name: answered[0][name] for name in about}, "answers": said}


def _names(row: dict[str, Any]) -> tuple[str, ...]:
    label = str(row["benchmark"])
    head, _, tail = label.rpartition("-")
    return (label, head if tail.endswith("shot") else label, str(row["task"]))


def _differs(row: dict[str, Any]) -> bool:
    left, right = row["answers"]
    if left["value"] is None or right["value"] is None:
        return bool(left["answer"] != right["answer"])
    return bool(left["value"] != right["value"])


def answers_view(
    cells: Sequence[CellMatch], rows: Sequence[dict[str, Any]], count: int, none: str, among: int | None = None
) -> Group:
    """Return the first ``count`` documents for people; without any, ``none`` or why there are no answers.

    Args:
        among: so many documents ``rows`` are what differs; None where they are all.
    """
    if not rows:
        reasons = [f"{cell.id}: {cell.error}" for cell in cells if cell.error]
        why = "\n".join(["no answers", *reasons]) if reasons else NONE
        return Group(Text(why if any(not _answers(cell) for cell in cells) else none))
    heads = [f"{cell.id} {cell.coordinates}" for cell in cells]
    parts: list[Any] = []
    for row in rows[:count]:
        parts += _question(cells, row)
        table = make_table("gold", *heads)
        table.add_row(Text(row["gold"] or "—"), *(_said(said, row["metric"]) for said in row["answers"]))
        parts += [table, Text()]
    more = f", {len(rows) - count} more (-n)" if len(rows) > count else ""
    shown = counted(min(count, len(rows)), "question")
    differing = "" if among is None else f"; {len(rows):,} of {among:,} differ{'s' if len(rows) == 1 else ''}"
    return Group(*parts, Text(f"{shown}{more}{differing}", style="dim"))


def _question(cells: Sequence[CellMatch], row: dict[str, Any]) -> list[Text]:
    """Return which question it is, and how it was put: to each cell where two templates put it otherwise."""
    name = cells[0].benchmark_name(row["protocol"])
    prompts = [said["prompt"] for said in row["answers"]]
    put = [Text(row["prompt"], style="dim")]
    if len({*prompts}) > 1:
        templates = [cell.template_name(said["protocol"]) for cell, said in zip(cells, row["answers"], strict=True)]
        name = f"{row['benchmark']} [{' / '.join(templates)}]"
        put = [
            Text.assemble((f"asked of {cell.id}:\n", ""), (prompt, "dim"))
            for cell, prompt in zip(cells, prompts, strict=True)
        ]
    which = f", answer {row['draw'] + 1}" if row["draw"] else ""
    return [Text(f"{name} {row['task']} {row['doc']}{which}", style="bold"), *put]


def _said(said: dict[str, Any], metric: str | None) -> Text:
    value = "" if said["value"] is None else f"  [{metric} {said['value']:.4g}]"
    style = {1.0: "green", 0.0: "red"}.get(said["value"], "") if said["value"] is not None else ""
    text = said["answer"] if said["answer"] is not None else f"{said['logprob']:.4g} nats"
    taken = "" if said["extracted"] in (None, said["answer"]) else f" → {said['extracted'].strip()}"
    shown = (text.strip(), style) if text.strip() else ("(nothing)", "dim")
    return Text.assemble(shown, taken, (value, "dim"))
