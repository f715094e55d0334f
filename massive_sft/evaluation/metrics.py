"""Metrics of lm-eval's tasks: which can be computed from what a task asks a model for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lm_eval.api.registry import aggregation_registry, metric_registry
from lm_eval.api.task import ConfigurableTask, Task

from massive_sft.evaluation.task_errors import did_you_mean

# What lm-eval 0.4.13 computes by itself (``ConfigurableTask.process_results``). Of likelihoods it drops any other
# metric without a word; of an answer it hands on the pair of texts, which only these combine. ``bypass`` is no score.
COMPUTED: dict[str, tuple[str, ...]] = {
    "loglikelihood": ("acc", "perplexity"),
    "loglikelihood_rolling": ("bits_per_byte", "byte_perplexity", "word_perplexity"),
    "multiple_choice": (
        "acc", "acc_bytes", "acc_mutual_info", "acc_norm", "brier_score", "exact_match", "f1", "likelihood", "mcc",
    ),
    "generate_until": ("bleu", "chrf", "chrf++", "exact_match", "mcc", "ter"),
}  # fmt: skip


def reasons(task: Task) -> Iterator[str]:
    """Yield why a loaded task's metrics cannot be computed: each with what could be.

    Of a task that computes them by code of its own only the aggregations are known.
    """
    functions: dict[str, Any] = getattr(task, "_metric_fn_list", {})
    aggregations: dict[str, Any] = getattr(task, "_aggregation_list", {})
    own = not isinstance(task, ConfigurableTask) or type(task).process_results is not ConfigurableTask.process_results
    own = own or task.get_config("process_results") is not None
    for name, function in functions.items():
        if not own and function is None:
            yield f"names metrics that lm-eval does not know: {name}{did_you_mean(name, metric_registry)}"
        elif not own and not _is_computed(str(task.OUTPUT_TYPE), name, function, aggregations.get(name)):
            valid = ", ".join(COMPUTED[str(task.OUTPUT_TYPE)])
            more = ", one of the package evaluate, or a function" if task.OUTPUT_TYPE == "generate_until" else ""
            yield f"metric {name} cannot be computed from output_type {task.OUTPUT_TYPE}; valid: {valid}{more}"
        elif name in aggregations and aggregations[name] is None:
            valid = ", ".join(aggregation_registry)
            yield f"metric {name} has an aggregation that lm-eval does not know; valid: {valid}"


def is_own(aggregation: Callable[..., Any]) -> bool:
    """Return whether an aggregation is a task's own function, and none of lm-eval's."""
    return all(aggregation is not known for known in map(aggregation_registry.get, aggregation_registry))


def _is_computed(output: str, name: str, function: Any, aggregation: Any) -> bool:
    if name in COMPUTED[output]:
        return True
    # Of an answer anything is called; lm-eval's for other outputs give the pair, to an aggregation of the task's own.
    known = metric_registry.get(name) if name in metric_registry else None
    pairs = function is known and (aggregation is None or not is_own(aggregation))
    return output == "generate_until" and not pairs
