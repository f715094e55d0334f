"""``best``: the winner of each model on a metric, and what cannot be told apart from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from massive_sft.cli.cell_names import short_conditions
from massive_sft.cli.options import File, Json, Overlays, Where, console, print_json
from massive_sft.cli.views import make_table, with_interval
from massive_sft.core.wording import counted

MAX_TIED = 5  # listed below a winner; one more is listed too, for a line that counts it is no shorter
NOTE = (
    "* cannot be told apart from the best: 0 lies in the 95 % interval of the difference "
    "(? no interval can be had). The best of many is partly luck: score it again on other questions."
)


def best(
    file: File,
    metric: Annotated[
        str | None,
        typer.Option(help="A benchmark, or TASK/METRIC[,FILTER]; every benchmark's own score without."),
    ] = None,
    overlay: Overlays = None,
    where: Where = None,
    as_json: Json = False,
) -> None:
    """The best cell of each model on a benchmark, with its interval, and those that cannot be told apart from it."""
    from massive_sft.study.frames import to_json_rows
    from massive_sft.study.results import load

    results = load(file, overlay or (), where)
    rows = to_json_rows(results.best(metric))
    if as_json:
        print_json(rows)
    else:
        console().print(best_view(rows, len(results.cells), metric))


def best_view(rows: Sequence[dict[str, Any]], cells: int, metric: str | None = None) -> Group:
    """Return a ranking for people: by benchmark and model the best and what ties with it, in the unit people read.

    Args:
        cells: how many there are, those without a score among them.
    """
    from massive_sft.suites.metrics import EARLY_NOTE

    parts: list[Any] = []
    for column in dict.fromkeys(row["column"] for row in rows):
        of_column = [row for row in rows if row["column"] == column]
        parts += [Text() if parts else None, _column_view(of_column, cells)]
    if not rows:
        return Group(Text("no scores yet" if metric is None else f"no cell has a score on {metric} yet"))
    notes = [NOTE, *([EARLY_NOTE] if any(row["early"] for row in rows) else [])]
    return Group(*(part for part in parts if part is not None), Text(), *(Text(note, style="dim") for note in notes))


def _column_view(rows: Sequence[dict[str, Any]], cells: int) -> Group:
    from massive_sft.suites.metrics import unit

    first = rows[0]
    sign = unit(first["metric"])
    better = "higher" if first["higher_is_better"] else "lower"
    head = Text.assemble((first["column"], "bold"), f"  {first['metric']}{sign and f', {sign}'}; {better} is better")
    names = _names(rows)
    models = dict.fromkeys(row["model"] for row in rows)
    tables = (_model_table([row for row in rows if row["model"] == model], names) for model in models)
    lacking = cells - sum(row["seeds"] for row in rows)
    left = [Text(f"{lacking} of {counted(cells, 'cell')} without this score", style="yellow")] if lacking else []
    return Group(head, *tables, *left)


def _model_table(ranked: Sequence[dict[str, Any]], names: Mapping[str, str]) -> Group:
    """Return a model's best cell, those that tie with it, and its base, under the model's name."""
    tied = [row for row in ranked[1:] if row["tied"] is not False]
    base = [row for row in ranked[1:] if row["method"] == "none" and row not in tied[:MAX_TIED]]
    shown = [ranked[0], *tied[:MAX_TIED], *base]
    more = [row for row in tied if row not in shown]
    if len(more) == 1:
        shown, more = [row for row in ranked if row in [*shown, *more]], []
    numbers = ("value [95 %]", "difference [95 %]")
    model, mark = ranked[0]["model"], ""
    table = make_table(model, "what", mark, *numbers, right=numbers, whole=(model, mark, *numbers))
    for row in shown:
        table.add_row(*_cells(row, names[row["cell"]]), style="bold" if row is ranked[0] else "")
    left = [Text(f"and {len(more)} more with * (--json lists them)", style="dim")] if more else []
    return Group(table, *left)


def _names(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return what each candidate is but its model, by its cell."""
    conditions = short_conditions([row | {"data": row["mixture"]} for row in rows])
    seeds = [f" ({row['seeds']} seeds)" if row["seeds"] > 1 else "" for row in rows]
    return {row["cell"]: name + more for row, name, more in zip(rows, conditions, seeds, strict=True)}


def _cells(row: dict[str, Any], name: str) -> list[Text]:
    from massive_sft.suites.metrics import EARLY

    mark = {True: "*", False: "", None: "?"}[row["tied"]] if row["rank"] > 1 else ""
    metric, ends = row["metric"], (row["difference_low"], row["difference_high"])
    value = with_interval(metric, row["value"], (row["low"], row["high"])) + (f" {EARLY}" if row["early"] else "")
    difference = with_interval(metric, row["difference"], ends, "+")
    return [Text(row["cell"]), Text(name), Text(mark), Text(value), Text(difference)]
