"""Benchmarks: their requests are built, and a made-up answer is scored, as a run does it for a model's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from massive_sft.core.errors import InvalidInput, MassiveSFTError, Problem, Unsupported
from massive_sft.core.wording import counted
from massive_sft.evaluation.aggregate import dry_run, metrics_without_mean
from massive_sft.evaluation.build import BenchmarkRequests
from massive_sft.evaluation.encoding import max_length_of, require_known_tokens
from massive_sft.evaluation.requests import read_requests
from massive_sft.evaluation.task_errors import TaskUnavailable
from massive_sft.evaluation.tasks import problems as task_problems
from massive_sft.evaluation.wrapping import Wrapping, choose_wrapping
from massive_sft.ledger.asked import full_id
from massive_sft.ledger.store import Ledger
from massive_sft.planning.lock import DataCommits, data_commits
from massive_sft.planning.plan import Plan
from massive_sft.planning.requirements import Requirement
from massive_sft.running.check.benchmark_lock import changed_benchmarks
from massive_sft.running.check.models import Models, UsableModel
from massive_sft.running.scoring import prepare_benchmark
from massive_sft.sweep import template


def benchmark_problems(
    plan: Plan, ledger: Ledger, models: Models, say: Callable[[str], None], warn: Callable[[Problem], None]
) -> Iterator[Problem]:
    """Build what is left to score, once for each wrapping, and hold its lengths against each model's context."""
    unknown = task_problems(plan.tasks, plan.sweep.place("evaluation.tasks"))
    yield from unknown
    refused = {problem.place.partition(": ")[2].partition(".name")[0].partition(".path")[0] for problem in unknown}
    built: dict[tuple[str, Wrapping], BenchmarkRequests | None] = {}
    commits = data_commits(ledger.sweep(plan.sweep.file.name))
    for model, item in _wanted(plan, models):
        place = _place(plan, item)
        if item.task is None or item.template is None or place.partition(": ")[2] in refused:
            continue
        protocol = plan.sweep.file.evaluation.protocol
        if model is None and template.CHAT in (protocol.template, item.template):
            continue  # the template is the model's, which has problems of its own
        try:
            wrapping = choose_wrapping(protocol, item.template, model.tokenizer if model else None)
        except InvalidInput as error:
            assert model is not None, "only a chat template is refused, which is a model's"
            at = _template_place(plan)
            yield from (Problem(at, f"{model.name}: {found.rule}", found.value) for found in error.problems)
            continue
        key = (full_id(item.id), wrapping)
        if key not in built:
            say(f"benchmark {item.label}")
            built[key] = None
            try:
                built[key] = _built(plan, ledger, item, wrapping, commits)
                _warn_of_full(plan, built[key], warn)
                _warn_of_given_away(place, built[key], warn)
                _warn_of_no_right_choice(place, built[key], warn)
            except MassiveSFTError as error:
                name, reason = item.label, str(error)
                yield Problem(place, reason if item.name.partition("@")[0] in reason else f"{name}: {reason}")
        benchmark = built[key]
        if benchmark is not None and model is not None:
            yield from _too_long(place, benchmark, model)
            yield from _unknown_tokens(place, benchmark, model)
    _tell_changed(plan, ledger, built.values(), warn)


def _tell_changed(
    plan: Plan, ledger: Ledger, built: Iterable[BenchmarkRequests | None], warn: Callable[[Problem], None]
) -> None:
    place = ledger.sweep(plan.sweep.file.name)
    for name, difference in changed_benchmarks(place, filter(None, built)).items():
        rule = (
            f"{name} changed upstream since this sweep first asked it ({difference}): what is scored now stands apart"
        )
        told = f"{rule} from earlier scores; `massive-sft fetch` takes it as it is"
        warn(Problem(plan.sweep.place("evaluation"), told))


def _wanted(plan: Plan, models: Models) -> Iterator[tuple[UsableModel | None, Requirement]]:
    """Yield each benchmark that is left with each model once; None for a model that is not usable."""
    found = {
        (cell.cell.model, item.id): (models.usable.get(cell.cell.model), item)
        for cell in plan.cells
        for item in cell.unmet
        if item.task is not None
    }
    yield from found.values()


def _built(
    plan: Plan, ledger: Ledger, item: Requirement, wrapping: Wrapping, commits: DataCommits
) -> BenchmarkRequests:
    evaluation = plan.sweep.file.evaluation
    done = prepare_benchmark(item, evaluation, wrapping, ledger, commits)
    for reason in done.missing.values():
        raise TaskUnavailable(reason)
    (benchmark,) = done.benchmarks
    dry_run(benchmark, evaluation.code_sandbox)
    return benchmark


def _warn_of_full(plan: Plan, benchmark: BenchmarkRequests | None, warn: Callable[[Problem], None]) -> None:
    """Tell of a benchmark to which there is no early answer, though the sweep would take one."""
    until = plan.sweep.file.evaluation.until
    if until is None or benchmark is None:
        return
    odd = metrics_without_mean(benchmark, plan.sweep.file.evaluation.code_sandbox)
    if odd:
        rule = f"all questions of {benchmark.requests.label} are asked: {', '.join(odd)} is no mean over its questions"
        warn(Problem(plan.sweep.place("evaluation.until"), rule, until))


def _warn_of_given_away(place: str, benchmark: BenchmarkRequests | None, warn: Callable[[Problem], None]) -> None:
    """Tell of a benchmark whose prompts show questions with their answers that are scored too."""
    count = 0 if benchmark is None else benchmark.requests.provenance["given_away"]
    if benchmark is not None and count:
        rule = (
            f"{benchmark.requests.label}: {counted(count, 'scored question')} may stand in prompts of others, answered"
        )
        warn(Problem(place, f"{rule}; fewshot_split in the task's file names where examples come from"))


def _warn_of_no_right_choice(place: str, benchmark: BenchmarkRequests | None, warn: Callable[[Problem], None]) -> None:
    """Tell of a benchmark with questions of which no choice is right: whatever a model answers is wrong."""
    found = [] if benchmark is None else benchmark.requests.provenance.get("no_right_choice", [])
    if benchmark is not None and found:
        listed = ", ".join(found[:3]) + (f" and {len(found) - 3:,} more" if len(found) > 3 else "")
        rule = f"{benchmark.requests.label}: no choice is right of {counted(len(found), 'question')} ({listed})"
        told = "every answer counts as wrong; doc_to_target gives the text of a choice, or its number from 0"
        warn(Problem(place, f"{rule}: {told}"))


def _place(plan: Plan, item: Requirement) -> str:
    """Return where the sweep file names a benchmark: its own entry, or the suites."""
    own = plan.tasks.index(item.task) if item.task in plan.tasks else len(plan.tasks)
    listed = own < len(plan.sweep.file.evaluation.tasks)
    return plan.sweep.place(f"evaluation.tasks[{own}]" if listed else "evaluation.suites")


def _template_place(plan: Plan) -> str:
    """Return where the sweep file asks for a model's own chat template."""
    if plan.sweep.file.evaluation.protocol.template == template.CHAT:
        return plan.sweep.place("evaluation.protocol.template")
    names = [name for name, setting in plan.sweep.settings.items() if setting.template == template.CHAT]
    return plan.sweep.setting_place(names[0], "template") if names else plan.sweep.place("settings")


def _too_long(place: str, benchmark: BenchmarkRequests, model: UsableModel) -> Iterator[Problem]:
    """Yield what scoring would refuse of a benchmark for one model: answers that leave no room for a question."""
    longest = int(benchmark.requests.provenance["size"]["longest_answer"])
    most = max_length_of(model.config, model.tokenizer)
    if longest >= most:
        rule = f"{benchmark.requests.label} asks for answers of up to {longest} tokens, which leave no room for a "
        yield Problem(place, f"{rule}question in the {most} of {model.name}; lower max_gen_toks in its task file")


def _unknown_tokens(place: str, benchmark: BenchmarkRequests, model: UsableModel) -> Iterator[Problem]:
    """Yield what scoring would refuse of a benchmark for one model: tokens that it has no embedding for."""
    requests = (request for leaf in benchmark.requests.leaves for request in read_requests(benchmark.requests, leaf))
    try:
        require_known_tokens(requests, model.tokenizer, model.rows)
    except Unsupported as error:
        yield Problem(place, f"{benchmark.requests.label} cannot be scored for {model.name}: {error}")
