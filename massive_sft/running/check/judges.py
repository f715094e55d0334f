"""Judges: their keys are there, they answer by the name that was asked for, and what they judge can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from massive_sft.core.errors import InvalidInput, MassiveSFTError, Problem
from massive_sft.evaluation.encoding import max_length_of
from massive_sft.judging.endpoint import Endpoint, missing_key
from massive_sft.judging.judged import Prepared, prepare
from massive_sft.judging.questions import NEED_REFERENCES
from massive_sft.judging.spending import SPENT, Spending
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import Plan
from massive_sft.running.check.models import Models
from massive_sft.sweep.schema import Judge, JudgedBenchmark, Judging

TRIES = 3  # so that an endpoint that is down is told within seconds
PROBE = [{"role": "user", "content": "Say: ready"}]
PROBE_TOKENS = 16


def judge_problems(
    plan: Plan, ledger: Ledger, models: Models, say: Callable[[str], None], warn: Callable[[Problem], None]
) -> Iterator[Problem]:
    """Read the files of what is left to judge, and ask each judge one word; warn of references that are wrong."""
    judging = plan.sweep.file.evaluation.judging
    left = {item.judged.title: item.judged for cell in plan.cells for item in cell.unmet if item.judged is not None}
    if judging is None or not left:
        return
    for number, declared in enumerate(judging.benchmarks):
        benchmark = left.get(declared.title)
        place = plan.sweep.place(f"evaluation.judging.benchmarks[{number}]")
        if benchmark is None or any(problem.place.startswith(f"{place}.") for problem in plan.missing):
            continue
        say(f"benchmark {benchmark.title}")
        try:
            _warn_of_references(prepare(benchmark, place), place, warn)
        except InvalidInput as error:
            yield from error.problems
        yield from _too_long(benchmark, place, models)
    for number, judge in enumerate(judging.judges):
        say(f"judge {judge.name}")
        yield from _unusable(judge, judging, plan.sweep.place(f"evaluation.judging.judges[{number}]"), ledger)


def _unusable(judge: Judge, judging: Judging, place: str, ledger: Ledger) -> Iterator[Problem]:
    if missing_key(judge):
        yield Problem(f"{place}.key", "must name an environment variable that is set to the key", judge.key)
        return
    spending = Spending(ledger.storage.at(f"cache/{SPENT}"), judging.budget)
    try:
        reserved = spending.reserve(judge, PROBE, PROBE_TOKENS)
        reply = Endpoint(judge, tries=TRIES).ask(PROBE, PROBE_TOKENS)
        spending.settle(judge, reserved, PROBE, reply)
    except MassiveSFTError as error:
        yield Problem(place, str(error))


def _warn_of_references(prepared: Prepared, place: str, warn: Callable[[Problem], None]) -> None:
    if prepared.benchmark.references is not None and prepared.doubtful:
        listed = ", ".join(map(str, prepared.doubtful))
        rule = f"the published references to questions {listed} are wrong in a turn or both; the score is given with "
        rule += "and without them"
        warn(Problem(f"{place}.references", rule, prepared.benchmark.references))
    bare = [item.number for item in prepared.questions if item.category in NEED_REFERENCES and not item.references]
    if bare:
        rule = f"{len(bare)} questions of {', '.join(sorted(NEED_REFERENCES))} have no reference, and are rated without"
        warn(Problem(f"{place}.questions", rule, prepared.benchmark.questions))


def _too_long(benchmark: JudgedBenchmark, place: str, models: Models) -> Iterator[Problem]:
    for model in models.usable.values():
        most = max_length_of(model.config, model.tokenizer)
        if benchmark.max_tokens >= most:
            rule = f"leaves no room for a question in the {most} tokens of {model.name}"
            yield Problem(f"{place}.max_tokens", rule, benchmark.max_tokens)
