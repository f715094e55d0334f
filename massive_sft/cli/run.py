"""``run``: what is missing is trained, scored and measured. Rerunning is resuming."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Annotated

import typer
from rich.console import Group
from rich.text import Text

from massive_sft.api import plan
from massive_sft.cli.budget import BudgetHours, apply_budget
from massive_sft.cli.check import warn
from massive_sft.cli.options import File, Overlays, Where, console, load_sound_plan
from massive_sft.cli.plan import plan_view
from massive_sft.cli.progress import RunProgress, survive_lost_output
from massive_sft.cli.score_table import score_table
from massive_sft.cli.search_view import searches_view
from massive_sft.cli.views import budget_view, changes_view
from massive_sft.core.errors import ExitCode
from massive_sft.core.imports import heavy_imports
from massive_sft.core.stop import StopSignal
from massive_sft.core.wording import counted
from massive_sft.ledger.record import Status
from massive_sft.planning.changes import find_changes
from massive_sft.planning.plan import CellPlan, Plan
from massive_sft.planning.retention import count_gone
from massive_sft.planning.selection import parse_where, select_cells
from massive_sft.running.left import Left, find_left, note_plan
from massive_sft.running.search_work import with_first_decisions

Inline = Annotated[
    bool | None,
    typer.Option(
        "--inline/--ray",
        help="In this process, one after another, or on Ray; else on Ray unless what is left takes less than a minute.",
        show_default=False,
    ),
]
Retrain = Annotated[bool, typer.Option(help="Train again where a snapshot that is needed was removed.")]


def run(
    file: File,
    overlay: Overlays = None,
    where: Where = None,
    budget: BudgetHours = None,
    inline: Inline = None,
    retrain: Retrain = False,
) -> None:
    """Train, score and measure what is missing. Rerunning is resuming."""
    out = console()
    whole = pin_revisions(load_sound_plan(file, overlay))
    decides = where is None and budget is None
    if decides:
        whole = with_first_decisions(whole, partial(out.print, soft_wrap=True))
    selected = select_cells(whole, parse_where(where))
    budgeted = apply_budget(selected, budget)
    selected = budgeted.plan if budgeted else selected
    out.print(budget_view(budgeted))
    out.print(changes_view(find_changes(whole)))
    searches = searches_view(whole) if decides else Group()
    match find_left(selected, whole):
        case Left.NOTHING:
            none = "no such cell" if budgeted is None else "the budget pays for no cell"
            out.print(f"nothing to do: {_counts(selected.cells) if selected.cells else none}", searches)
            note_plan(selected, whole)
            return
        case Left.REPORT:
            inline = True
            out.print(f"nothing is left but the report: {_counts(selected.cells)}", searches)
        case Left.CELLS:
            out.print(plan_view(selected, retrain))
            out.print(searches)
    execute_plan(selected, whole, inline, retrain, decides)


def pin_revisions(whole: Plan) -> Plan:
    """Return the plan with hub revisions as commits, each said."""
    with console(is_error=True).status("asking the hub") if whole.unpinned else nullcontext():
        return plan.pin_revisions(whole, lambda text: console().print(text, soft_wrap=True))


def execute_plan(selected: Plan, whole: Plan, inline: bool | None, retrain: bool, decides: bool) -> None:
    """Do what a plan leaves to do. Exits with INCOMPLETE when something of it is still missing afterwards.

    One that was stopped exits with INTERRUPTED when a person wished it, else with TRY_AGAIN.
    """
    out, err, stop = console(), console(is_error=True), StopSignal()
    with err.status("loading torch, transformers and lm-eval"), heavy_imports():
        from massive_sft.api.run import choose_runner
        from massive_sft.running.execute import checked, execute

    wanted = {cell.cell.id for cell in selected.cells}
    status = err.status("checking")

    def tell(what: str) -> None:
        # With a spinner it is drawn at once: a warning beside its first drawing would stand on its line.
        status.update(Text(f"checking {what}"), spinner="dots")

    with survive_lost_output(), status, checked(selected, whole, tell, lambda found: warn(found, err)) as registered:
        status.stop()
        with RunProgress(selected, out, retrain) as progress:
            runner = choose_runner(inline, retrain, stop, progress.say)
            ended = execute(selected, whole, registered, runner, progress, stop, decides)
    done = ended.plan
    if decides:
        wanted |= {cell.cell.id for run in done.runs for cell in run.cells}  # what searches decided meanwhile
    after = [cell for cell in done.cells if cell.cell.id in wanted]
    if ended.results is not None:
        out.print(score_table(ended.results, wanted, out.width))
    for line in _gone_lines(done, {cell.cell.id for cell in selected.cells if not cell.is_done}):
        out.print(line, soft_wrap=True)
    of = "" if len(after) == len(done.cells) else f"{len(after)} of the sweep's {counted(len(done.cells), 'cell')}: "
    out.print(f"{of}{_counts(after)}; results in {selected.storage}", soft_wrap=True)
    if decides:
        out.print(searches_view(done))
    if len(after) < len(wanted):
        lost = len(wanted) - len(after)
        others = "1 cell is another" if lost == 1 else f"{lost:,} cells are others"
        why = "for files that the sweep names changed: run the same command again"
        out.print(f"{others} now, {why}", soft_wrap=True)
    elif all(cell.is_done for cell in after):
        return
    gone = sum(run.needs_retraining and any(cell.cell.id in wanted for cell in run.cells) for run in done.runs)
    if gone:
        needed = "1 training is" if gone == 1 else f"{gone:,} trainings are"
        out.print(f"{needed} needed again, for snapshots were removed: run with --retrain", soft_wrap=True)
    if stop():
        out.print(f"stopped by {stop.reason}; run the same command to go on", soft_wrap=True)
    raise typer.Exit(stop.exit_code if stop() else ExitCode.INCOMPLETE)


def _gone_lines(plan: Plan, made: Collection[str]) -> Iterator[str]:
    """Yield what became of the snapshots of cells that were made, where some are gone."""
    for method, (gone, complete) in count_gone(plan, made).items():
        what = f"{gone} of {complete} snapshots" if gone < complete else counted(gone, "snapshot")
        yield f"{what} of {method} tuning {'was' if gone == 1 else 'were'} removed once scored (storage.keep_snapshots)"


def _counts(cells: Sequence[CellPlan]) -> str:
    counts = Counter(cell.status for cell in cells)
    return ", ".join(f"{counts[status]} {status}" for status in Status if counts[status])
