"""``check``: everything that a run needs is tried, nothing is trained."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from massive_sft.cli.options import File, Json, Overlays, console, load_plan, print_json
from massive_sft.cli.search_view import trials_left
from massive_sft.cli.views import print_line, warnings_view
from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.imports import heavy_imports
from massive_sft.core.wording import counted
from massive_sft.cost.estimate import runs_to_train
from massive_sft.planning.plan import Plan
from massive_sft.scheduling.named_cluster import named_cluster


def check(file: File, overlay: Overlays = None, as_json: Json = False) -> None:
    """Try everything a run needs (files, models, tokenizers, data, benchmarks, storage, tracker); train nothing."""
    with heavy_imports():
        from massive_sft.running.check import check as find_problems

    out, warnings = console(), list[Problem]()
    plan = load_plan(file, overlay)
    with console(is_error=True).status("checking") as status:
        problems = find_problems(plan, lambda what: status.update(Text(f"checking {what}")), warnings.append)
        unplaced, unused = _layout_problems(plan)
        problems, warnings = problems + unplaced, warnings + unused
    if as_json:
        listed = [("error", problem) for problem in problems] + [("warning", warning) for warning in warnings]
        print_json([{"level": level, "place": p.place, "rule": p.rule, "text": str(p)} for level, p in listed])
    else:
        for warning in warnings:
            warn(warning)
    if problems:
        raise InvalidInput([] if as_json else problems)
    if not as_json:
        out.print(warnings_view(plan))
        left = sum(not cell.is_done for cell in plan.cells)
        cells = f"{counted(len(runs_to_train(plan)), 'training run')} and {counted(left, 'cell')} to do"
        what = ", ".join([cells if left else "nothing left to do", *trials_left(plan)])
        out.print(Text.assemble(("ready", "green"), f": {what}; nothing stands in the way"), soft_wrap=True)


def _layout_problems(plan: Plan) -> tuple[list[Problem], list[Problem]]:
    """Return what of the layouts cannot be where a run would be, and what there would stay unused.

    That is on this machine, or on the cluster that is named.
    """
    if named_cluster():
        from massive_sft.scheduling.capacity import capacity_problems

        return capacity_problems(plan)
    from massive_sft.running.check.machine import machine_problems, machine_warnings

    return list(machine_problems(plan)), list(machine_warnings(plan))


def warn(warning: Problem, to: Console | None = None) -> None:
    """Print what stops nothing, but the user should know.

    Args:
        to: the console that shows a status line meanwhile, which keeps out of the warning's way; stdout without.
    """
    print_line(to or console(), Text(f"warning: {warning}", style="yellow"))
