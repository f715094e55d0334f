"""What several verbs show of a plan: colours of statuses, totals, warnings, what a budget takes, what changed."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from massive_sft.core.wording import counted
from massive_sft.cost.budget import BudgetedPlan
from massive_sft.cost.formatting import budget_lines
from massive_sft.evaluation.interim_looks import SHARES
from massive_sft.ledger.record import Score, Status
from massive_sft.planning.plan import Plan
from massive_sft.planning.retention import count_removed
from massive_sft.planning.snapshot_address import snapshot_address
from massive_sft.suites.metrics import EARLY, full_name, scale, split, unit, visible_digits, without_noise
from massive_sft.sweep.resources import describe_layouts
from massive_sft.sweep.semantics import GENERATION_SEMANTICS, SCORE_SEMANTICS, TRAIN_SEMANTICS
from massive_sft.training.layout import refused_layouts

STYLES = {
    Status.COMPLETE: "green",
    Status.PARTIAL: "yellow",
    Status.DIVERGED: "magenta",
    Status.FAILED: "red",
    Status.RUNNING: "cyan",
    Status.WAITING: "dim",
    Status.PRUNED: "dim",
}
NOTES = 10  # warnings shown before "and N more"


def make_table(*columns: str, right: Collection[str] = (), whole: Collection[str] = ()) -> Table:
    """Return an empty table without borders.

    Args:
        columns: the headers.
        right: the columns that are aligned right.
        whole: the columns that stay on one line, so that others give way: their long cells go on in the next line.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        align: JustifyMethod = "right" if column in right else "left"
        table.add_column(column, justify=align, overflow="fold", no_wrap=column in whole)
    return table


def indented(line: str, style: str = "") -> RenderableType:
    """Return a line that goes on, where it is wrapped, below its own first word."""
    text = line.lstrip(" ")
    indent = len(line) - len(text)
    return Padding(Text(text, style), (0, 0, 0, indent), expand=False) if indent else Text(text, style)


def print_line(to: Console, line: Text) -> None:
    """Print a sentence, which goes on indented where a terminal is too narrow for it; elsewhere on one line."""
    shown = Text("\n  ").join(line.wrap(to, to.width - 2)) if to.is_terminal else line
    to.print(shown, highlight=False, soft_wrap=True)


def score_texts(key: str, score: Score, is_early: bool) -> dict[str, str]:
    """Return a score as people read it: its ``metric`` with the unit, ``value``, ``interval`` and ``n``; or no text.

    Args:
        key: the metric and filter in the record, such as ``exact_match,none``.
    """
    metric, chosen = split(key)
    ends = [f"{without_noise(end) * scale(metric):.4g}" for end in score.interval or ()]
    value = "missing" if score.value is None else f"{without_noise(score.value) * scale(metric):.4g}"
    return {
        "metric": f"{full_name(metric, chosen)} {unit(metric)}".rstrip(),
        "value": value + (f" {EARLY}" if is_early and score.value is not None else ""),
        "interval": " .. ".join(ends),
        "n": "" if score.n is None else f"{score.n:,}",
    }


def with_interval(metric: str, value: float | None, ends: Sequence[float | None] = (), sign: str = "") -> str:
    """Return a score or a difference with its interval, in the unit people read; empty where there is none.

    Args:
        metric: without its filter.
        value: in the metric's own unit.
        ends: of its interval; none or None where it has none.
        sign: ``+`` for differences.
    """
    shown, *bounds = ("" if number is None else _shown(metric, number, sign) for number in (value, *ends))
    return f"{shown} [{', '.join(bounds)}]" if bounds and all(bounds) else shown


def _shown(metric: str, number: float, sign: str) -> str:
    shown = without_noise(number) * scale(metric)
    if not unit(metric):
        return format(shown, f"{sign}z.3g" if sign else "z.4g")
    return format(shown, f"{sign}z.{visible_digits(shown, 1)}f" if abs(shown) < 99.95 else f"{sign}.0f")


def budget_view(portion: BudgetedPlan | None) -> Group:
    """Return what a budget takes and leaves out; an empty group without a budget."""
    return Group(*(indented(line, "yellow") for line in (budget_lines(portion) if portion else ())))


def _early_lines(plan: Plan) -> list[str]:
    """Return what early answers may save, as far as that can be said before; nothing where none is asked for."""
    until = plan.sweep.file.evaluation.until
    left = sum(item.until is not None for cell in plan.cells for item in cell.unmet)
    if until is None or not left:
        return []
    most = f"{1 - SHARES[0]:.0%}"
    return [
        f"early answers to within ±{until:g} points: what is saved is not known before, at most {most} of the "
        f"questions of {counted(left, 'score')} left; the cost is of all questions where no early answer was measured"
    ]


def _sharing_lines(plan: Plan) -> list[str]:
    """Return what trainings a plan has, and what they save by giving several cells each."""
    saved = plan.sharing
    samples = ""
    if saved.run_samples is not None and saved.cell_samples is not None and saved.cell_samples > saved.run_samples:
        samples = f" ({saved.run_samples:,} samples instead of {saved.cell_samples:,})"
    chosen = sum(len(run.cells) for run in plan.runs)
    part = f", {chosen:,} of them chosen: a training is done whole" if chosen < saved.cells else ""
    alone = f", which one by one would take {counted(saved.cell_epochs, 'epoch')}{samples}"
    lines = [
        f"{counted(saved.runs, 'training run')}, {counted(saved.run_epochs, 'epoch')} in all, "
        f"give{'s' if saved.runs == 1 else ''} {counted(saved.cells, 'trained cell')}{part}"
        + (alone if saved.cell_epochs > saved.run_epochs and not part else "")
    ]
    if saved.split_by_horizon:
        lines.append(
            f"{saved.split_by_horizon} training runs differ only in the horizon of a decaying schedule: "
            "the shorter is no prefix of the longer, so they are not shared"
        )
    return lines


def plan_totals(plan: Plan, retrain: bool = False, none: str = "no such cell") -> list[Text]:
    """Return what a plan comes to, a line a fact.

    Args:
        none: what is said of a plan without cells.
        retrain: whether trainings whose snapshots were removed are done again.
    """
    counts = plan.statuses
    statuses = ", ".join(f"{counts[status]} {status}" for status in Status if counts[status])
    to_do = sum(not cell.is_done for cell in plan.cells)
    lines = [f"{counted(len(plan.cells), 'cell')}: {statuses}; {to_do} to do" if plan.cells else none]
    if plan.runs:
        lines += _sharing_lines(plan)
    lines += _early_lines(plan)
    if plan.runs:
        lines.append(f"training runs: {describe_layouts(run.layout for run in plan.runs)}")
    gone = sum(run.needs_retraining for run in plan.runs)
    if gone:
        then = "trained again" if retrain else "their cells stay PARTIAL unless you run with --retrain"
        lines.append(
            f"snapshots that {counted(gone, 'training run')} would need for what is lacking were removed: {then}"
        )
    for method, count in count_removed(plan, retrain).items():
        be = "is" if count == 1 else "are"
        lines.append(
            f"snapshots of {method} tuning: {count:,} {be} removed once scored, and cannot be exported or scored on "
            f"new benchmarks then; storage.keep_snapshots.{method}: {keep_more(plan, method)} keeps them"
        )
    lines.append(
        f"versions in the ids: training {TRAIN_SEMANTICS}, scoring {SCORE_SEMANTICS}, generation {GENERATION_SEMANTICS}"
    )
    store = snapshot_address(plan.sweep)
    lines.append(f"storage: {plan.storage}" + (f", snapshots in {store}" if store else ""))
    return [Text(line) for line in lines]


def keep_more(plan: Plan, method: str) -> str:
    """Return what ``storage.keep_snapshots`` would have to say of a method for more of its snapshots to stay."""
    policy = plan.sweep.file.storage.keep_snapshots
    return "all" if (policy.full if method == "full" else policy.lora) == "last" else "last or all"


def warnings_view(plan: Plan) -> Group:
    """Return what the user should know about a plan; an empty group when there is nothing."""
    notes = [
        *(("missing", "red", item) for item in plan.missing),
        *(("undecided", "red", item) for item in plan.undecided),
        *(("refused", "red", item) for item in refused_layouts(plan)),
        *(("warning", "yellow", item) for item in plan.warnings),
        *(("provisional", "yellow", item) for item in plan.unpinned),
    ]
    lines = [Text.assemble((f"{kind}: ", style), str(item)) for kind, style, item in notes[:NOTES]]
    if len(notes) > NOTES:
        lines.append(Text(f"and {len(notes) - NOTES} more"))
    return Group(*lines)


def changes_view(lines: Sequence[str]) -> Group:
    """Return what ``planning.changes.find_changes`` found; an empty group when nothing changed."""
    head = [Text("changed since the sweep's last run:", style="yellow")] if lines else []
    # What it comes to stands in the last line.
    shown = [*lines[: NOTES - 1], f"and {len(lines) - NOTES} more", lines[-1]] if len(lines) > NOTES else lines
    return Group(*head, *(indented(f"  {line}") for line in shown))
