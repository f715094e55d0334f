"""Intervals whose end, and values that, are too large for a float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from evaluation_world import own_datasets_cache, write_rows

from massive_sft.evaluation.aggregate import entry_of
from massive_sft.evaluation.tasks import load
from massive_sft.measures.perplexity import Likelihoods
from massive_sft.measures.texts import TextLikelihoods
from massive_sft.sweep import schema

__all__ = ["own_datasets_cache"]


def entries(folder: Path, characters: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """Return the scores of texts without spaces, which are one word each, of 3 nats a character."""
    write_rows(folder / "texts.jsonl", [{"text": "あ" * count} for count in characters])
    config = {
        "task": "rolling",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "texts.jsonl"}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    }
    path = folder / "rolling.yaml"
    path.write_text(yaml.safe_dump(config))
    task = load(schema.Task(path=str(path))).tasks["rolling"]
    found = {number: task.process_results(doc, (-3.0 * len(doc["text"]),)) for number, doc in task.doc_iterator()}
    return {
        key: entry_of(task, f"{key},none", {number: values[key] for number, values in found.items()})
        for key in found[0]
    }


@pytest.mark.parametrize(("characters", "finite"), [((230, 200, 250), True), ((500, 600, 700), False)])
def test_perplexity_that_is_too_large_costs_no_other_metric_its_score(
    tmp_path: Path, characters: tuple[int, ...], finite: bool
) -> None:
    found = entries(tmp_path, characters)
    assert (found["word_perplexity"]["value"] is not None) == finite
    assert found["word_perplexity"]["interval"] is None
    assert found["byte_perplexity"]["value"] == pytest.approx(np.exp(1.0))
    assert found["bits_per_byte"]["interval"] is not None


def test_measured_perplexity_whose_interval_is_too_large_has_none() -> None:
    nats, ones, some = np.array([800.0, 10.0, 720.0]), np.ones(3, dtype=np.int64), np.full(3, 3)
    measured = Likelihoods(nats, ones, np.zeros(3), 0 * ones, some).summary()
    assert measured["perplexity_micro"] == pytest.approx(np.exp(510)) and measured["perplexity_micro_interval"] is None
    texts = TextLikelihoods(-nats, ones, some).summary()
    assert texts["perplexity"] == pytest.approx(np.exp(510)) and texts["perplexity_interval"] is None
    assert texts["bits_per_byte_interval"] is not None
