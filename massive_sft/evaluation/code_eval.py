"""The metric ``code_eval`` of the evaluate library, behind the sandbox's walls and without the hub.

lm-eval's humaneval and mbpp fetch that metric from the hub when they are imported; it runs programs as the user.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import evaluate
from lm_eval.api.task import Task

from massive_sft.evaluation.own_executors import runs_text
from massive_sft.evaluation.task_errors import TaskUnavailable
from massive_sft.sandbox.pass_at_k import pass_at_k
from massive_sft.sandbox.run import Choice, NoWall, choose, run_all

NAME = "code_eval"


class CodeEval:
    """Has the interface of ``evaluate.load("code_eval")``. Whether programs may run at all was decided before."""

    def compute(
        self,
        predictions: Sequence[Sequence[str]],
        references: Sequence[str],
        k: Sequence[int] = (1, 10, 100),
        **_: Any,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """Run each question's answers, each followed by the question's tests.

        Args:
            predictions: answers of each question.
            references: tests of each question.
            k: for which numbers of answers to estimate the chance that one passes; those above the number of answers
                are left out, as in the original.

        Returns:
            ``{"pass@k": mean over questions}``, and by question its answers' outcomes.

        Raises:
            NoWall: this machine has no walls any more.
        """
        asked = [(task, number) for task, answers in enumerate(predictions) for number in range(len(answers))]
        programs = [f"{predictions[task][number]}\n{references[task]}" for task, number in asked]
        results: dict[int, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
        for (task, number), outcome in zip(asked, run_all(programs, choose("rlimits")), strict=True):
            told = outcome.ending if outcome.passed else f"{outcome.ending}: {outcome.detail}"
            found = {"task_id": task, "passed": outcome.passed, "result": told, "completion_id": number}
            results[task].append((number, found))
        counts = [(len(answers), sum(found["passed"] for _, found in answers)) for answers in results.values()]
        fewest = min((n for n, _ in counts), default=0)
        return {
            f"pass@{size}": sum(pass_at_k(n, passed, size) for n, passed in counts) / len(counts)
            for size in k
            if size <= fewest
        }, dict(results)


def executes_code(task: Task) -> bool:
    """Return whether scoring a leaf task runs what a model wrote: it says so, its functions do, or have this metric."""
    return bool(getattr(task, "UNSAFE_CODE", False)) or has_code_eval(task) or runs_by_itself(task)


def has_code_eval(task: Task) -> bool:
    """Return whether a leaf task's functions have this metric."""
    return any(map(_holds_it, _functions(task)))


def runs_by_itself(task: Task) -> bool:
    """Return whether a leaf task's functions run a text as a program, in this process."""
    return any(map(runs_text, _functions(task)))


def _functions(task: Task) -> Iterator[Any]:
    """Yield what scores a task's answers, of its configuration or of its class."""
    yield from getattr(task, "_metric_fn_list", {}).values()
    yield from (task.get_config("process_results"), type(task).process_results)


def _holds_it(function: Any) -> bool:
    """Return whether a function is the metric's own, or its module has the metric: it is loaded as a module begins."""
    parts = (function, getattr(function, "__self__", None))  # lm-eval has a task's own metric as its ``__call__``
    module = [value for part in parts for value in getattr(part, "__globals__", {}).values()]
    return any(map(_is_it, (*parts, *module)))


def _is_it(value: Any) -> bool:
    return isinstance(value.__self__ if inspect.ismethod(value) else value, CodeEval)


def require_walls(name: str, sandbox: Choice | None, by_itself: bool = False) -> None:
    """Return where what a model wrote may run.

    Args:
        sandbox: what it must be walled in by at least; None where it may not run.
        by_itself: the task's own code runs it, which nothing walls in.

    Raises:
        TaskUnavailable: it may not run, or not without walls, or this machine has no such walls.
    """
    if sandbox is None:
        raise TaskUnavailable(f"{name} executes generated code; set evaluation.allow_code_execution to allow it")
    if by_itself and sandbox != "none":
        rule = "executes generated code by itself, as you, which nothing walls in"
        raise TaskUnavailable(f"{name} {rule}; evaluation.sandbox: none allows it")
    try:
        choose(sandbox)
    except NoWall as error:
        weaker = "" if sandbox != "strongest" else "; evaluation.sandbox: rlimits takes weaker walls"
        raise TaskUnavailable(f"{name} executes generated code: {error}{weaker}") from error


@contextlib.contextmanager
def in_place_of_the_hub_s() -> Iterator[None]:
    """Within this, ``evaluate.load("code_eval")`` gives ``CodeEval``; other metrics are loaded as ever."""
    load = evaluate.load

    def loaded(path: str, *arguments: Any, **options: Any) -> Any:
        return CodeEval() if path == NAME else load(path, *arguments, **options)

    with mock.patch.object(evaluate, "load", loaded):
        yield
