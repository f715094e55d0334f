"""Step 1: benchmarks become request sets, by lm-eval's own task code."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.samplers import FirstNSampler
from lm_eval.api.task import Task

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.evaluation import requests as sets
from massive_sft.evaluation.fewshot import set_shots
from massive_sft.evaluation.gold import gold_text, lacks_right_choice, question_of, write_gold
from massive_sft.evaluation.request_size import size_of
from massive_sft.evaluation.requests import Generation, Leaf, Likelihood, Request, RequestSet, Rolling
from massive_sft.evaluation.sampling import Sampling, seed_of
from massive_sft.evaluation.task_errors import TaskUnavailable, as_task_unavailable
from massive_sft.evaluation.task_identity import config_hash, group_content
from massive_sft.evaluation.tasks import LoadedTasks, load, seeded
from massive_sft.evaluation.wrapping import Wrapping
from massive_sft.planning.lock import DataCommits
from massive_sft.sandbox.run import Choice
from massive_sft.suites.declared import facts_by_task, label, shots_of
from massive_sft.sweep import schema

DEFAULT_MAX_TOKENS = 256  # lm-eval's, for a task that names no length
_MAX_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_KNOWN = {"until", "do_sample", "temperature", "top_p", "top_k", "seed", *_MAX_TOKENS}


@dataclass(frozen=True)
class BenchmarkRequests:
    """A declared benchmark at one number of shots, with its requests, and the commits that its data stays at."""

    task: schema.Task
    requests: RequestSet
    commits: DataCommits = frozenset()


@dataclass(frozen=True)
class PreparedBenchmarks:
    """All benchmarks of an evaluation, and the reason for each one that is missing, by label."""

    benchmarks: tuple[BenchmarkRequests, ...]
    missing: dict[str, str]


def prepare(
    tasks: tuple[schema.Task, ...],
    fewshot: schema.Fewshot,
    wrapping: Wrapping,
    root: Path,
    sandbox: Choice | None = None,
    commits: DataCommits = frozenset(),
) -> PreparedBenchmarks:
    """Build the requests of every benchmark at every number of shots under ``root``.

    What cannot be built is reported in ``missing``; the rest goes on.

    Args:
        sandbox, commits: as of ``tasks.load``.

    Raises:
        InvalidInput: two different benchmarks have one label.
    """
    benchmarks, missing = [], {}
    for task, shots in expand(tasks):
        try:
            built = build(task, shots, fewshot, wrapping, root, sandbox, commits)
        except TaskUnavailable as error:
            missing[label(task, shots)] = str(error)
        else:
            benchmarks.append(BenchmarkRequests(task, built, commits))
    return PreparedBenchmarks(tuple(benchmarks), missing)


def expand(tasks: tuple[schema.Task, ...]) -> list[tuple[schema.Task, int | None]]:
    """Return each benchmark with each number of shots, equal ones once.

    Raises:
        InvalidInput: two different benchmarks have one label.
    """
    labelled: dict[str, tuple[schema.Task, int | None]] = {}
    facts = facts_by_task(tasks)
    problems = []
    for task in tasks:
        for shots in shots_of(task, facts[task]):
            single = task.model_copy(update={"shots": None if shots is None else (shots,)})
            name = label(task, shots)
            if labelled.setdefault(name, (single, shots)) != (single, shots):
                problems.append(Problem("evaluation.tasks", "two different benchmarks have one name", name))
    if problems:
        raise InvalidInput(problems)
    return list(labelled.values())


def build(
    task: schema.Task,
    shots: int | None,
    fewshot: schema.Fewshot,
    wrapping: Wrapping,
    root: Path,
    sandbox: Choice | None = None,
    commits: DataCommits = frozenset(),
) -> RequestSet:
    """Build one benchmark's requests and write them under ``root/<id>``; a set that is there already is read.

    Built once per process and of what ``tasks.load`` loads. ``shots``: None for each of its tasks' own.

    Raises:
        TaskUnavailable: the benchmark cannot be loaded, takes no shots, samples, or has fewer examples than shots.
    """
    return _build(task, load(task, sandbox, commits), shots, fewshot, wrapping, root)


@functools.lru_cache(maxsize=256)
def _build(
    task: schema.Task,
    loaded: LoadedTasks,
    shots: int | None,
    fewshot: schema.Fewshot,
    wrapping: Wrapping,
    root: Path,
) -> RequestSet:
    own = {name: (default.shots or 0) if shots is None else shots for name, default in loaded.defaults.items()}
    shots = next(iter(own.values())) if len(set(own.values())) == 1 else None
    leaves, lists, golds, given_away, no_choice = [], {}, {}, 0, []
    for name in sorted(loaded.tasks):
        with seeded(), as_task_unavailable(f"{name}: requests cannot be built"):
            listed = _requests_of(loaded, name, own[name], task.limit, fewshot, wrapping)
            config, version = config_hash(loaded.tasks[name]), str(loaded.tasks[name].VERSION)
            given_away += _given_away(loaded.tasks[name], own[name], listed)
            golds[name] = _golds(loaded.tasks[name])
            no_choice += [question_of(name, number) for number in _without_right_choice(loaded.tasks[name])]
        lines = [sets.to_line(request) for request in listed]
        documents = len({request.doc for request in listed})
        leaves.append(Leaf(name, version, config, len(listed), documents, sets.checksum(lines)))
        lists[name] = listed
    generates = any(isinstance(request, Generation) for listed in lists.values() for request in listed)
    described = RequestSet(
        folder=root,
        label=label(task, shots),
        shots=shots,
        limit=task.limit,
        sampler=fewshot.sampler if any(own.values()) else None,
        sampler_seed=fewshot.seed if any(own.values()) and fewshot.sampler == "default" else None,
        template_kind=wrapping.kind,
        template_text=wrapping.text,
        leaves=tuple(leaves),
        provenance={
            "lm_eval": metadata.version("lm_eval"),
            "datasets": metadata.version("datasets"),
            "size": size_of([request for listed in lists.values() for request in listed]),
            "data": loaded.commits,
            "given_away": given_away,
            **({"no_right_choice": no_choice} if no_choice else {}),
        },
        generates=generates,
        marked_lead=generates and wrapping.marked,
        groups={name: group_content(group) for name, group in loaded.groups.items() if group.has_aggregation},
    )
    built = sets.write_set(root, described, lists)
    for name, texts in golds.items():
        write_gold(built, name, texts)
    return built


def _golds(task: Task) -> dict[int, str | None]:
    return {number: gold_text(task, doc) for number, doc in _documents(task).items()}


def _without_right_choice(task: Task) -> list[int]:
    """Return the questions of which no choice is right."""
    return [number for number, doc in _documents(task).items() if lacks_right_choice(task, doc)]


def _documents(task: Task) -> dict[int, Any]:
    return {int(instance.doc_id): instance.doc for instance in task.instances}


def _given_away(task: Task, shots: int, requests: list[Request]) -> int:
    """Return how many scored questions prompts of other questions may show, answered."""
    sampler = getattr(task, "sampler", None)
    if not shots or sampler is None:
        return 0
    shown = sampler.df[: shots + 1] if isinstance(sampler, FirstNSampler) else sampler.df  # one gives way to the next
    return len({doc_hash(doc) for doc in shown} & {request.doc_hash for request in requests})


def _requests_of(
    loaded: LoadedTasks, name: str, shots: int, limit: int | None, fewshot: schema.Fewshot, wrapping: Wrapping
) -> list[Request]:
    task = loaded.tasks[name]
    if shots < 0:
        raise TaskUnavailable(f"{name} has num_fewshot: {shots}; it must be 0 or more")
    if shots > 0 and (loaded.defaults[name].shots == 0 or task.OUTPUT_TYPE == "loglikelihood_rolling"):
        raise TaskUnavailable(f"{name} takes no few-shot examples; ask for it with shots: 0")
    set_shots(task, loaded.defaults[name], shots, fewshot)
    with contextlib.redirect_stderr(io.StringIO()):  # lm-eval's progress bars
        task.build_all_requests(
            limit=limit,
            apply_chat_template=wrapping.kind != "none",
            # A training template holds one prompt: the examples are part of it. A chat has turns.
            fewshot_as_multiturn=wrapping.kind == "chat",
            chat_template=wrapping.render,
        )
    made = itertools.chain.from_iterable(
        _requests(instance, _going_on(wrapping, task, instance.doc)) for instance in task.instances
    )
    return [replace(request, index=index) for index, request in enumerate(made)]


def _going_on(wrapping: Wrapping, task: Task, doc: Any) -> Wrapping:
    """Return what wraps a question; where its prompt begins the answer (``gen_prefix``), the lead stands in it."""
    return replace(wrapping, lead="") if wrapping.lead and task.doc_to_prefix(doc) else wrapping


def doc_hash(doc: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of a document's JSON."""
    text = json.dumps(doc, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _requests(instance: Instance, wrapping: Wrapping) -> Iterator[Request]:
    """Yield what one of a task's requests asks a model: several answers where they are sampled. All with index 0."""
    common: Callable[..., dict[str, Any]] = functools.partial(
        dict,
        index=0,
        doc=int(instance.doc_id),
        choice=int(instance.idx),
        doc_hash=doc_hash(instance.doc),
        repeats=int(instance.repeats or 1),
    )
    if instance.request_type == "loglikelihood_rolling":
        yield Rolling(**common(text=instance.args[0]))
        return
    if instance.request_type == "generate_until":
        yield from _generations(common, instance, wrapping)
        return
    context, continuation = instance.args[0] + wrapping.lead, instance.args[1]
    if wrapping.kind == "training" and context[-1:].isspace() and continuation[:1] == " ":
        # The template ends in the space that the task would put before its answer; training has it once.
        continuation = continuation[1:]
    border = context[len(context.rstrip()) :]
    joined = wrapping.kind != "none" and bool(border.strip(" "))
    yield Likelihood(**common(context=context, continuation=continuation, joined=joined))


def _generations(common: Callable[..., dict[str, Any]], instance: Instance, wrapping: Wrapping) -> Iterator[Generation]:
    """As training wrote it: white space between a training template and its answer belongs to the answer."""
    context, arguments = instance.args[:2]
    prompt = context.rstrip() if wrapping.kind == "training" else context
    lead = context[len(prompt) :] + wrapping.lead
    asked = common(context=prompt, lead=lead, **generation(arguments, wrapping.stops))
    sampled = sampling(arguments)
    if sampled is None:
        yield Generation(**asked)
        return
    for number in range(asked["repeats"]):
        seed = seed_of(sampled.seed, asked["doc_hash"], asked["choice"], number)
        yield Generation(**asked | {"repeats": 1, "sampling": replace(sampled, seed=seed)})


def generation(arguments: dict[str, Any], template_stops: Sequence[str]) -> dict[str, Any]:
    """Return ``until`` and ``max_tokens`` of a task's generation arguments.

    ``template_stops`` (see ``Wrapping.stops``) are added to the task's. EOS always stops, and is no text.

    Raises:
        TaskUnavailable: for beams, penalties and anything else that would be ignored, and for answers without a token.
    """
    unknown = sorted(set(arguments) - _KNOWN)
    if unknown:
        raise TaskUnavailable(f"the task asks for generation arguments that are not supported: {', '.join(unknown)}")
    until = arguments.get("until") or []
    stops = [until] if isinstance(until, str) else list(until)
    stops += template_stops
    lengths = [arguments[key] for key in _MAX_TOKENS if arguments.get(key) is not None]
    most = int(lengths[0]) if lengths else DEFAULT_MAX_TOKENS
    if most < 1:
        raise TaskUnavailable(f"the task asks for answers of up to {most} tokens (max_gen_toks); 1 is the least")
    return {"until": tuple(dict.fromkeys(stop for stop in stops if stop)), "max_tokens": most}


def sampling(arguments: dict[str, Any]) -> Sampling | None:
    """Return how a task's generation arguments have tokens drawn, with the task's seed; None: not at all.

    Tokens are drawn where there is a temperature above 0 and ``do_sample`` is not false, lm-eval's rule. ``top_k`` and
    ``top_p`` that are not named leave all tokens; ``seed`` is 0.

    Raises:
        TaskUnavailable: one is out of range, or there is no temperature.
    """
    if arguments.get("do_sample") and arguments.get("temperature") is None:
        raise TaskUnavailable("the task samples its answers (do_sample) and names no temperature; 0 is greedy")
    try:
        temperature = float(arguments.get("temperature") or 0.0)
        top_k = int(arguments.get("top_k") or 0)
        top_p = 1.0 if arguments.get("top_p") is None else float(arguments["top_p"])
        seed = int(arguments.get("seed") or 0)
    except (TypeError, ValueError) as error:
        raise TaskUnavailable(f"the task's generation arguments are no numbers ({error})") from error
    ranges = {
        "temperature must be 0 or more": math.isfinite(temperature) and temperature >= 0.0,
        "top_k must be 0 (all) or more": top_k >= 0,
        "top_p must be above 0, and 1 at most": 0.0 < top_p <= 1.0,
    }
    if wrong := [rule for rule, holds in ranges.items() if not holds]:
        raise TaskUnavailable(f"the task's generation arguments: {'; '.join(wrong)}")
    if arguments.get("do_sample") is False or temperature == 0.0:
        return None
    return Sampling(temperature, seed, top_k, top_p)
