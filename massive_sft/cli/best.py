"""``best``: the winner of each model on a metric, and what cannot be told apart from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from massive_sft.cli.options import File, Json, Overlays, Where, console, print_json
from massive_sft.cli.views import make_table, without_noise

MAX_TIED = 5  # listed below a winner
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

    rows = to_json_rows(load(file, overlay or (), where).best(metric))
    if as_json:
        print_json(rows)
    else:
        console().print(best_view(rows, metric))


def best_view(rows: Sequence[dict[str, Any]], metric: str | None = None) -> Group:
    """Return a ranking for people: by benchmark and model the best and what ties with it, in the unit people read."""
    parts: list[Any] = []
    for column in dict.fromkeys(row["column"] for row in rows):
        of_column = [row for row in rows if row["column"] == column]
        parts += [Text() if parts else None, _column_view(of_column)]
    if not rows:
        return Group(Text("no scores yet" if metric is None else f"no cell has a score on {metric} yet"))
    return Group(*(part for part in parts if part is not None), Text(), Text(NOTE, style="dim"))


def _column_view(rows: Sequence[dict[str, Any]]) -> Group:
    from massive_sft.study.metrics import scale, unit

    first = rows[0]
    factor, sign = scale(first["metric"]), unit(first["metric"])
    better = "higher" if first["higher_is_better"] else "lower"
    head = Text.assemble((first["column"], "bold"), f"  {first['metric']}{sign and f', {sign}'}; {better} is better")
    numbers = ("value", "95 % interval", "difference", "its interval")
    table = make_table("model", "cell", "what", *numbers, right=numbers, whole=("model", "cell", "value", "difference"))
    for model in dict.fromkeys(row["model"] for row in rows):
        ranked = [row for row in rows if row["model"] == model]
        tied = [row for row in ranked[1:] if row["tied"] is not False]
        base = [row for row in ranked[1:] if row["method"] == "none" and row not in tied[:MAX_TIED]]
        shown = [ranked[0], *tied[:MAX_TIED], *base]
        for row in shown:
            table.add_row(*_cells(row, factor), style="bold" if row is ranked[0] else "")
        more = sum(row not in shown for row in tied)
        if more:
            table.add_row("", "", f"and {more} more that cannot be told apart", style="dim")
    return Group(head, table)


def _cells(row: dict[str, Any], factor: float) -> list[Text]:
    mark = {True: " *", False: "", None: " ?"}[row["tied"]] if row["rank"] > 1 else ""
    texts = [
        row["model"] if row["rank"] == 1 else "",
        row["cell"],
        describe(row) + mark,
        _number(row["value"], factor),
        _range(row["low"], row["high"], factor),
        _number(row["difference"], factor, "+"),
        _range(row["difference_low"], row["difference_high"], factor, "+"),
    ]
    return list(map(Text, texts))


def describe(row: dict[str, Any]) -> str:
    """Return a candidate's coordinates but its model, for people."""
    if row["method"] == "none":
        return "(base)"
    horizon = "" if row["horizon"] is None else f"/{row['horizon']}"
    size = "all" if row["size"] is None else row["size"]
    seeds = f" ({row['seeds']} seeds)" if row["seeds"] > 1 else ""
    variant = f" {row['variant']}" if row["variant"] else ""
    what = f"{row['mixture']}[{size}] {row['setting']} {row['schedule']}{horizon}"
    return f"{what}{variant} epoch {row['epoch']}{seeds}"


def _number(value: float | None, factor: float, sign: str = "") -> str:
    return "" if value is None else f"{without_noise(value) * factor:{sign}.4g}"


def _range(low: float | None, high: float | None, factor: float, sign: str = "") -> str:
    if low is None or high is None:
        return ""
    return " .. ".join(f"{without_noise(end) * factor:{sign}.4g}" for end in (low, high))
