"""``check``: everything that a run needs is tried, nothing is trained."""

from __future__ import annotations

from rich.text import Text

from massive_sft.cli.options import File, Json, Overlays, console, print_json
from massive_sft.cli.views import warnings_view
from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.planning.plan import make_plan
from massive_sft.sweep.load import load_sweep


def check(file: File, overlay: Overlays = None, as_json: Json = False) -> None:
    """Try everything a run needs (files, models, tokenizers, data, benchmarks, storage, tracker); train nothing."""
    from massive_sft.running.check import check as find_problems

    out, cautions = console(), list[Problem]()
    made = make_plan(load_sweep(file, overlay or ()))
    with console(is_error=True).status("checking") as status:
        problems = find_problems(made, lambda what: status.update(Text(f"checking {what}")), cautions.append)
    if as_json:
        found = [("error", problem) for problem in problems] + [("warning", caution) for caution in cautions]
        print_json([{"level": level, "place": p.place, "rule": p.rule, "text": str(p)} for level, p in found])
    else:
        for caution in cautions:
            warn(caution)
    if problems:
        raise InvalidInput([] if as_json else problems)
    if not as_json:
        out.print(warnings_view(made))
        amount = f"{len(made.todo)} training runs and {len(made.cells)} cells"
        out.print(Text.assemble(("ready", "green"), f": {amount}, nothing stands in the way"))


def warn(caution: Problem) -> None:
    """Print what stops nothing, but the user should know."""
    console().print(Text(f"warning: {caution}", style="yellow"), soft_wrap=True)
