"""``suites``: the lists of benchmarks, what each benchmark needs, and how it differs from a published table's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from massive_sft.cli.options import Json, console, print_json
from massive_sft.cli.views import make_table, print_line
from massive_sft.suites.declared import title
from massive_sft.suites.suite import Suite, SuiteTask, read_suite, shipped

COLUMNS = ("benchmark", "shots", "metric", "questions", "column")
JUDGED = (
    ("mt_bench", "0", "judge_rating", "80", "mtbench-total, mtbench-CATEGORY"),
    ("win_rate", "0", "win_rate, lc_win_rate", "805", "alpaca_eval_v2-total"),
)
JUDGED_NEED = {"mt_bench": "a judge, FastChat's files", "win_rate": "a judge, AlpacaEval's files"}
JUDGED_DIFFER = {
    "mt_bench": "the study's judge was gpt-4o-2024-08-06; answers are greedy here, where FastChat samples writing and "
    "roleplay at 0.7, STEM and humanities at 0.1; of the 30 references 13 are wrong, and the score of the others "
    "stands beside it (judge_rating_without_wrong_references)",
    "win_rate": "OpenCompass has the judge compare in one order, takes the first letter, and leaves out what it cannot "
    "read; here both orders are asked, and what holds no verdict is counted; lc_win_rate takes the lengths out",
}


def suites(
    names: Annotated[
        list[str] | None, typer.Argument(help="Suites by name, or files of one's own; all that ship where left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List suites of benchmarks for `evaluation.suites`: shots, metrics, questions, needs, columns, differences."""
    read = {name: read_suite(name, Path.cwd(), "names") for name in names or shipped()}
    if as_json:
        print_json([_content(name, suite) for name, suite in read.items()])
        return
    for name, suite in read.items():
        _show(name, suite)
    if not names:
        _show_judged()


def _content(name: str, suite: Suite) -> dict[str, Any]:
    return {"suite": name, **suite.model_dump(mode="json")}


def _show(name: str, suite: Suite) -> None:
    out = console()
    out.print(Text.assemble((name, "bold"), f": {suite.about}"), soft_wrap=True)
    needs = {title(entry): ", ".join(entry.needs) for entry in suite.tasks if entry.needs}
    _print_table(map(_row, suite.tasks), needs, suite.differs)


def _show_judged() -> None:
    """Say the same of what is no suite, for the sweep file names its questions and judges."""
    about = "benchmarks that need a judge, whose questions are files of yours"
    console().print(Text.assemble(("evaluation.judging", "bold"), f": {about}"), soft_wrap=True)
    _print_table(JUDGED, JUDGED_NEED, JUDGED_DIFFER)


def _print_table(rows: Iterable[tuple[str, ...]], needs: Mapping[str, str], differs: Mapping[str, str]) -> None:
    out = console()
    table = make_table(*COLUMNS, right=("questions",), whole=("benchmark", "questions"))
    for row in rows:
        table.add_row(*row)
    out.print(table)
    for head, told in (("needs:", needs), ("differs from that column:", differs)):
        if told:
            out.print(head)
        for benchmark, what in told.items():
            print_line(out, Text(f"  {benchmark}: {what}"))
    out.print()


def _row(entry: SuiteTask) -> tuple[str, ...]:
    shots = "its own" if entry.shots is None else ", ".join(map(str, entry.shots))
    shots += f" of {entry.examples}" if entry.examples else ""
    questions = "" if entry.questions is None else f"{entry.questions:,}"
    return title(entry), shots, entry.metric or "", questions, entry.column or ""
