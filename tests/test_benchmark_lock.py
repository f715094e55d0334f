"""What lm-eval's benchmarks were first built from is kept, and told when it is no longer so."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from evaluation_world import own_datasets_cache, write_rows

from massive_sft.evaluation import build, tasks, wrapping
from massive_sft.evaluation.build import BenchmarkRequests
from massive_sft.ledger.storage import Folder
from massive_sft.running.check.benchmark_lock import changed_benchmarks
from massive_sft.sweep import schema
from massive_sft.sweep.content import Lock

__all__ = ["own_datasets_cache"]
CONFIG = "---\nconfigs:\n- config_name: main\n  data_files:\n  - {split: train, path: r.jsonl}\n  - {split: test, path: r.jsonl}\n---\n"
HUB = "hf://datasets/openai/gsm8k@{}/main/test.parquet"


def built(folder: Path, answer: str, commit: str) -> BenchmarkRequests:
    """Build gsm8k from three rows, as if a commit of the hub had held them."""
    write_rows(folder / "openai/gsm8k/r.jsonl", [{"question": f"{n}?", "answer": f"#### {answer}"} for n in range(3)])
    (folder / "openai/gsm8k/README.md").write_text(CONFIG)
    datasets.config.HF_DATASETS_CACHE = folder / "datasets" / commit  # which `own_datasets_cache` puts back
    tasks._load.cache_clear()
    build._build.cache_clear()
    task = schema.Task(name="gsm8k", shots=(1,))
    for split in tasks.load(task).tasks["gsm8k"].dataset.values():
        split.info.download_checksums = {HUB.format(commit): {}}
    return build.prepare((task,), schema.Fewshot(), wrapping.NONE, folder / "requests").benchmarks[0]


def test_benchmark_that_changed_upstream_is_told_until_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Folder(tmp_path / "sweep")
    first = built(tmp_path, "1", "a" * 40)
    assert first.requests.provenance["data"] == {"openai/gsm8k": "a" * 40}
    assert changed_benchmarks(place, [first]) == {}
    lock = json.loads((tmp_path / "sweep/lock.json").read_text())
    Lock.model_validate(lock)
    (kept,) = lock["benchmarks"].values()
    assert kept["versions"] == {"gsm8k": "3.0"} and kept["data"] == {"openai/gsm8k": "a" * 40}
    assert changed_benchmarks(place, [built(tmp_path, "1", "b" * 40)]) == {}, "another commit with the same questions"
    changed = built(tmp_path, "22", "c" * 40)
    for _ in range(2):
        told = changed_benchmarks(place, [changed])
        assert told == {"gsm8k-1shot": "openai/gsm8k is at cccccccccccc, and was at aaaaaaaaaaaa"}
    assert changed.requests.id != first.requests.id
    (tmp_path / "sweep/lock.json").write_text(json.dumps({"schema": 1, "commits": {}, "files": {}}))
    assert changed_benchmarks(place, [changed]) == {}
