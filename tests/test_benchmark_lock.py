"""What lm-eval's benchmarks were first built from is kept, and told when it is no longer so."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import datasets
import pytest
from datasets.arrow_writer import ArrowWriter
from evaluation_world import own_datasets_cache
from local_server import serving

from massive_sft.evaluation import build, tasks, wrapping
from massive_sft.evaluation.build import BenchmarkRequests
from massive_sft.evaluation.protocol import protocol_id
from massive_sft.ledger.storage import Folder
from massive_sft.planning.lock import DataCommits, data_commits
from massive_sft.running.check.benchmark_lock import changed_benchmarks
from massive_sft.sweep import schema
from massive_sft.sweep.content import Lock

__all__ = ["own_datasets_cache"]
HUB = "hf://datasets/openai/gsm8k@{}/main/test.parquet"
TEXT = datasets.Value("string")
GSM8K = schema.Task(name="gsm8k", shots=(1,))


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
    tasks._loaded.clear()
    return prepared(folder)


def prepared(folder: Path, commits: DataCommits = frozenset()) -> BenchmarkRequests:
    done = build.prepare((GSM8K,), schema.Fewshot(), wrapping.NONE, folder / "requests", None, commits)
    assert done.missing == {}
    return done.benchmarks[0]


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


def test_data_of_a_benchmark_stays_at_the_commit_of_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though what the library would take, the newest that it keeps, is another; and a task file of one's own as well."""
    monkeypatch.chdir(tmp_path)
    place = Folder(tmp_path / "sweep")
    assert data_commits(place) == frozenset()
    first = built(tmp_path, "1", "a" * 40)
    changed_benchmarks(place, [first])
    fetched(datasets.config.HF_DATASETS_CACHE, "22", "b" * 40)
    locked = data_commits(place)
    assert locked == {("openai/gsm8k", "a" * 40)}
    assert prepared(tmp_path, locked).requests == first.requests, "loaded before"
    tasks._loaded.clear()
    newest = prepared(tmp_path)
    assert newest.requests.provenance["data"] == {"openai/gsm8k": "b" * 40}
    again = prepared(tmp_path, locked)
    assert again.requests == first.requests and protocol(again) != protocol(newest)
    assert tasks.load(GSM8K, None, locked).commits == {"openai/gsm8k": "a" * 40}
    assert tasks.load(GSM8K).commits == {"openai/gsm8k": "b" * 40}
    task = {"task": "own", "dataset_path": "openai/gsm8k", "dataset_name": "main", "test_split": "test"}
    task |= {"output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}"}
    (tmp_path / "own.yaml").write_text(json.dumps(task))
    own = schema.Task(path=str(tmp_path / "own.yaml"))
    (benchmark,) = build.prepare((own,), schema.Fewshot(), wrapping.NONE, tmp_path / "requests").benchmarks
    assert changed_benchmarks(Folder(tmp_path / "other"), [benchmark]) == {}
    assert data_commits(Folder(tmp_path / "other")) == {("openai/gsm8k", "b" * 40)}


def test_hub_is_asked_for_the_commit_of_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound")
            self.end_headers()

    monkeypatch.chdir(tmp_path)
    for module in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", False)
    tasks._loaded.clear()
    with serving(Hub) as address:
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        done = build.prepare(
            (GSM8K,), schema.Fewshot(), wrapping.NONE, tmp_path, None, frozenset({("openai/gsm8k", "a" * 40)})
        )
    assert "Revision" in done.missing["gsm8k-1shot"] and "a" * 40 in done.missing["gsm8k-1shot"]
    assert f"/datasets/openai/gsm8k/resolve/{'a' * 40}/README.md" in asked
