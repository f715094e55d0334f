"""What lm-eval's benchmarks were first built from is kept, and told when it is no longer so."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from datasets.arrow_writer import ArrowWriter
from evaluation_world import own_datasets_cache

from massive_sft.evaluation import build, tasks, wrapping
from massive_sft.evaluation.build import BenchmarkRequests
from massive_sft.evaluation.protocol import protocol_id
from massive_sft.ledger.storage import Folder
from massive_sft.running.check.benchmark_lock import changed_benchmarks
from massive_sft.sweep import schema
from massive_sft.sweep.content import Lock

__all__ = ["own_datasets_cache"]
HUB = "hf://datasets/openai/gsm8k@{}/main/test.parquet"
TEXT = datasets.Value("string")


def fetched(place: Path, answer: str, commit: str) -> None:
    """Write what the ``datasets`` library keeps of a hub's data set that was fetched at a commit: three rows."""
    place = place / "openai___gsm8k/main/0.0.0" / commit
    place.mkdir(parents=True)
    features, splits = datasets.Features(question=TEXT, answer=TEXT), datasets.SplitDict(dataset_name="gsm8k")
    for split in ("train", "test"):
        with ArrowWriter(features=features, path=str(place / f"gsm8k-{split}.arrow")) as writer:
            for number in range(3):
                writer.write({"question": f"{number}?", "answer": f"#### {answer}"})
            writer.finalize()
        splits.add(datasets.SplitInfo(split, num_examples=3, dataset_name="gsm8k"))
    names = {"builder_name": "parquet", "dataset_name": "gsm8k", "config_name": "main", "version": "0.0.0"}
    checksums = {HUB.format(commit): {"num_bytes": 1, "checksum": None}}
    datasets.DatasetInfo(features=features, splits=splits, download_checksums=checksums, **names).write_to_directory(
        str(place)
    )


def built(folder: Path, answer: str, commit: str) -> BenchmarkRequests:
    """Build gsm8k from the cache of a machine that fetched a commit, and has no network."""
    datasets.config.HF_DATASETS_CACHE = folder / "datasets" / commit  # which `own_datasets_cache` puts back
    fetched(datasets.config.HF_DATASETS_CACHE, answer, commit)
    tasks._load.cache_clear()
    build._build.cache_clear()
    task = schema.Task(name="gsm8k", shots=(1,))
    prepared = build.prepare((task,), schema.Fewshot(), wrapping.NONE, folder / "requests")
    assert prepared.missing == {}
    return prepared.benchmarks[0]


def protocol(benchmark: BenchmarkRequests) -> str:
    return protocol_id(schema.Protocol(), benchmark.requests)


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
    same = built(tmp_path, "1", "b" * 40)
    assert changed_benchmarks(place, [same]) == {}, "another commit with the same questions"
    assert protocol(same) == protocol(first)
    changed = built(tmp_path, "22", "c" * 40)
    for _ in range(2):
        told = changed_benchmarks(place, [changed])
        assert told == {"gsm8k-1shot": "openai/gsm8k is at cccccccccccc, and was at aaaaaaaaaaaa"}
    assert protocol(changed) != protocol(first), "their scores are never one column"
    kept |= {"versions": {"gsm8k": "2.0"}, "leaves": "as an earlier lm-eval had them"}
    (tmp_path / "sweep/lock.json").write_text(json.dumps(lock))
    told = changed_benchmarks(place, [first])
    assert told == {"gsm8k-1shot": "gsm8k is version 3.0, and was 2.0"}
    (tmp_path / "sweep/lock.json").write_text(json.dumps({"schema": 1, "commits": {}, "files": {}}))
    assert changed_benchmarks(place, [changed]) == {}
