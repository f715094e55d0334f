"""Which metrics a task's output type can have: as lm-eval itself computes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluation_world import own_datasets_cache, write_tasks
from lm_eval.api.registry import get_metric_aggregation, metric_registry
from lm_eval.api.task import ConfigurableTask

from massive_sft.evaluation import metrics

__all__ = ["own_datasets_cache"]
# One document's answer, or answers, as a model gives them.
ANSWERS: dict[str, list[Any]] = {
    "loglikelihood": [(-1.0, True)],
    "loglikelihood_rolling": [-1.0],
    "multiple_choice": [(-1.0, True), (-2.0, False), (-3.0, False), (-4.0, False)] * 2,
    "generate_until": ["a"],
}


def task(folder: Path, output: str, names: list[str]) -> ConfigurableTask:
    config = yaml.safe_load(write_tasks(folder)["tiny_mc"].read_text()) | {"output_type": output, "fewshot_split": None}
    if output != "multiple_choice":
        config |= {"doc_to_target": "{{choices[label]}}", "doc_to_choice": None}
    config["dataset_kwargs"] = {"data_files": {"test": str(folder / "data" / "mc.jsonl")}}
    config["metric_list"] = [{"metric": name, "higher_is_better": True} for name in names]
    return ConfigurableTask(config=config)


@pytest.mark.parametrize("output", ANSWERS)
def test_metrics_are_those_that_lm_eval_computes_from_an_answer(tmp_path: Path, output: str) -> None:
    computed = set()
    for name in set(metric_registry) - {"bypass"}:
        built = task(tmp_path, output, [name])
        answers = ANSWERS[output] if name == "acc_mutual_info" else ANSWERS[output][:4]
        try:
            value = built.process_results(next(iter(built.test_docs())), answers)[name]
            if (
                output == "generate_until"
            ):  # anything is called with an answer; its aggregation tells what it makes of it
                get_metric_aggregation(name)([value])  # type: ignore[misc]
        except (KeyError, TypeError, ValueError, IndexError):
            continue
        computed.add(name)
    assert set(metrics.COMPUTED[output]) == computed
    built = task(tmp_path, output, list(metric_registry))
    assert len(list(metrics.reasons(built))) == len(list(metric_registry)) - len(computed)
