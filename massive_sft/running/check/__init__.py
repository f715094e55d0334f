"""The check: everything a run needs is tried before anything is trained, and every problem is reported at once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import Plan
from massive_sft.running.check.benchmarks import benchmark_problems
from massive_sft.running.check.data import clock_cautions, data_problems, distinct_sets, text_problems
from massive_sft.running.check.disk_space import disk_space_problems
from massive_sft.running.check.judges import judge_problems
from massive_sft.running.check.models import Models, unreachable
from massive_sft.running.check.servers import server_problems
from massive_sft.running.check.snapshot_store import snapshot_store_problems
from massive_sft.running.check.training_sets import TrainingSets
from massive_sft.sweep.load import TABLE
from massive_sft.tracking import tracking_problem
from massive_sft.training.layout import refused_layouts

Say = Callable[[str], None]
Warn = Callable[[Problem], None]


def check(plan: Plan, say: Say = lambda _: None, warn: Warn = lambda _: None) -> list[Problem]:
    """Try a plan's storage, tracker, layouts, models, tokenizers, benchmarks and data.

    What is left to do is tried as a run does it: requests of benchmarks are built and a made-up answer is scored, data
    is tokenised, models are made without their weights. Requests and tokens go into the ledger's cache, and what was
    built stays in this process, so that the run that follows builds none of it again.

    Args:
        plan: of the sweep.
        say: called with what is being checked, for a progress display.
        warn: called with what stops no run, but the user should know.

    Returns:
        Every problem found, each once; empty when a run can start.
    """
    say("storage")
    problems: list[Problem] = [*plan.missing, *plan.undecided]
    with ExitStack() as stack:
        ledger = None
        try:
            if plan.storage.exists() or not plan.missing:  # what is refused anyway makes no storage root
                ledger = plan.open_ledger()
                problems += [*_name_problems(plan, ledger), *disk_space_problems(plan)]
        except InvalidInput as error:
            problems += error.problems
        ledger = ledger or Ledger.open(stack.enter_context(tempfile.TemporaryDirectory()))
        problems += _all_but_storage(plan, ledger, say, warn)
    return list({str(problem): problem for problem in problems}.values())


def require_runnable(plan: Plan, say: Say = lambda _: None, warn: Warn = lambda _: None) -> None:
    """Raise InvalidInput with every problem that ``check`` finds."""
    problems = check(plan, say, warn)
    if problems:
        raise InvalidInput(problems)


def _name_problems(plan: Plan, ledger: Ledger) -> list[Problem]:
    name = plan.sweep.file.name
    if not (ledger.sweep_dir(name) / TABLE).exists():
        return []
    rule = "is the name of an imported table of this storage root; choose another one"
    return [Problem(plan.sweep.place("name"), rule, name)]


def _all_but_storage(plan: Plan, ledger: Ledger, say: Say, warn: Warn) -> list[Problem]:
    file = plan.sweep.file
    problems: list[Problem] = []
    say("snapshot store")
    problems += snapshot_store_problems(plan)
    say("tracker")
    found = tracking_problem(file.tracking.mlflow, plan.sweep.place("tracking.mlflow"), ledger.root, file.name)
    problems += [found] if found else []
    say("layouts")
    problems += refused_layouts(plan)
    problems += text_problems(plan)
    say("hub")
    lost = unreachable(plan)
    problems += (problem for found in lost.values() for problem in found)
    models = Models(plan, lost)
    problems += models.problems(say)
    for caution in clock_cautions(plan, models):
        warn(caution)
    with TrainingSets(distinct_sets(plan, models, lost), ledger) as sets:
        sets.begin(say)
        of_benchmarks = list(benchmark_problems(plan, ledger, models, say, warn))  # while others tokenise
        of_benchmarks += judge_problems(plan, ledger, models, say, warn)
        of_benchmarks += server_problems(plan, say)
        problems += data_problems(plan, models, sets.outcomes(say), warn)
    return problems + of_benchmarks
