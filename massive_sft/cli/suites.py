"""``suites``: the lists of benchmarks, what each benchmark needs, and how it differs from a published table's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from massive_sft.cli.options import Json, console, print_json
from massive_sft.cli.views import make_table
from massive_sft.suites.declared import title
from massive_sft.suites.suite import Suite, SuiteTask, read_suite, shipped


def suites(
    names: Annotated[
        list[str] | None, typer.Argument(help="Suites by name, or files of one's own; all that ship where left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List suites of benchmarks for `evaluation.suites`: shots, metrics, questions, needs, columns, differences."""
    read = {name: read_suite(name, Path.cwd(), "SUITE") for name in names or shipped()}
    if as_json:
        print_json([_content(name, suite) for name, suite in read.items()])
        return
    for name, suite in read.items():
        _show(name, suite)


def _content(name: str, suite: Suite) -> dict[str, Any]:
    return {"suite": name, **suite.model_dump(mode="json")}


def _show(name: str, suite: Suite) -> None:
    out = console()
    out.print(Text.assemble((name, "bold"), f": {suite.about}"), soft_wrap=True)
    table = make_table("benchmark", "shots", "metric", "questions", "needs", "column", right=("questions",))
    for entry in suite.tasks:
        table.add_row(*_row(entry))
    out.print(table)
    if suite.differs:
        out.print("differs from that column:")
    for benchmark, difference in suite.differs.items():
        out.print(f"  {benchmark}: {difference}", highlight=False, soft_wrap=True)
    out.print()


def _row(entry: SuiteTask) -> tuple[str, ...]:
    shots = "its own" if entry.shots is None else ", ".join(map(str, entry.shots))
    questions = "" if entry.questions is None else f"{entry.questions:,}"
    return title(entry), shots, entry.metric or "", questions, ", ".join(entry.needs), entry.column or ""
