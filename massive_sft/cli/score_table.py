"""The scores of a sweep as a table in the terminal: a row a cell, a column a benchmark, with the gain over the base."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from massive_sft.cli.cell_names import short_names
from massive_sft.cli.views import make_table
from massive_sft.core.wording import counted
from massive_sft.suites.metrics import EARLY, EARLY_NOTE, LOWER, LOWER_NOTE, full_name, scale, unit

if TYPE_CHECKING:
    from massive_sft.study.results import Results

Column = tuple[str, str, str, bool | None]
"""A benchmark's column, its metric, the filter of that, and whether higher is better."""
MAX_ROWS, MAX_COLUMNS = 30, 6
GAP = "  "  # between columns
UNSCORED = Text("—", style="dim")
GAIN_NOTE = "in brackets the difference to the base model; bold where 0 is outside its 95 % interval"


def score_table(results: Results, cells: Collection[str], width: int) -> Group:
    """Return these cells' scores on the benchmarks, base models first; an empty group where there are none.

    Benchmarks that have no room beside the others in ``width`` characters stand in a table below.
    """
    from massive_sft.study.frames import to_rows

    primary = results.scores.query("primary and value.notna() and cell in @cells")
    order = {benchmark: index for index, benchmark in enumerate(results.asked)}
    firsts = to_rows(primary.drop_duplicates("column"))
    firsts.sort(key=lambda row: order.get(row["benchmark"], len(order)))
    columns: list[Column] = [(row["column"], row["metric"], row["filter"], row["higher_is_better"]) for row in firsts]
    if not columns:
        return Group()
    shown = columns[:MAX_COLUMNS]
    scored = set(primary["cell"])
    records = [record for record in results.records.values() if record.cell in scored]
    records.sort(key=lambda record: record.coordinates["method"] != "none")
    texts = _texts(results)
    names = short_names([record.coordinates for record in records])[:MAX_ROWS]
    rows = [(record.cell, name) for record, name in zip(records, names, strict=False)]
    tables: list[RenderableType] = []
    for part in _parts(rows, shown, texts, width):
        heads = [_head(*column) for column in part]
        table = make_table("cell", "what", *heads, right=heads)
        for cell, name in rows:
            table.add_row(cell, Text(name), *(texts.get((cell, column), UNSCORED) for column, *_ in part))
        tables += [Text(), table] if tables else [table]
    more = [(len(records) - MAX_ROWS, "cell"), (len(columns) - MAX_COLUMNS, "benchmark")]
    left = ", ".join(counted(count, what) for count, what in more if count > 0)
    notes = [Text(f"and {left} more: the report has them all")] if left else []
    has_gains = any("(" in texts[key].plain for key in texts if key[0] in scored)
    legend = [GAIN_NOTE] * has_gains + [LOWER_NOTE] * any(higher_is_better is False for *_, higher_is_better in shown)
    if legend:
        notes.append(Text("; ".join(legend), style="dim"))
    if any(EARLY in texts[key].plain for key in texts if key[0] in scored):
        notes.append(Text(EARLY_NOTE, style="dim"))
    return Group(*tables, *notes)


def _parts(
    rows: Sequence[tuple[str, str]], columns: Sequence[Column], texts: Mapping[tuple[str, str], Text], width: int
) -> Iterator[list[Column]]:
    """Yield the columns that have room beside the cells' ids and names, at least one a table."""
    cells = max(len(cell) + len(name) for cell, name in rows) + len(GAP)
    part, taken = list[Column](), cells
    for column in columns:
        found = [len(texts[cell, column[0]].plain) for cell, _ in rows if (cell, column[0]) in texts]
        needed = len(GAP) + max([*map(len, _head(*column).split("\n")), *found])
        if part and taken + needed > width:
            yield part
            part, taken = [], cells
        part, taken = [*part, column], taken + needed
    yield part


def _head(column: str, metric: str, chosen_by: str, higher_is_better: bool | None) -> str:
    """Return lines such as ``gsm8k-5shot``, ``exact_match %``, the filter if any; an arrow where lower is better."""
    arrow = LOWER if higher_is_better is False else ""
    filtered = full_name("", chosen_by).strip()
    return "\n".join(filter(None, (column, " ".join(filter(None, (metric, unit(metric), arrow))), filtered)))


def _texts(results: Results) -> dict[tuple[str, str], Text]:
    """Return what stands in the table by cell and column."""
    from massive_sft.study.frames import to_rows

    gains = {(row["cell"], row["column"]): row for row in to_rows(results.primary_gains.query("gain.notna()"))}
    texts = {}
    for row in to_rows(results.scores.query("primary and value.notna()")):
        factor, gain = scale(row["metric"]), gains.get((row["cell"], row["column"]))
        text = Text(f"{row['value'] * factor:.4g}" + (f" {EARLY}" if row["early"] else ""))
        if gain is not None:
            sure = gain["gain_low"] > 0 or gain["gain_high"] < 0  # not without an interval
            text.append(f" ({gain['gain'] * factor:+.3g})", style="bold" if sure else "")
        texts[row["cell"], row["column"]] = text
    return texts
