"""A benchmark's local data is what the files hold now: in its id, and in the requests that are built."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets.download import download_manager
from datasets.utils import file_utils
from evaluation_world import own_datasets_cache, write_tasks

from massive_sft.evaluation import build, wrapping
from massive_sft.evaluation import requests as sets
from massive_sft.sweep import schema
from massive_sft.sweep.content import Contents

__all__ = ["own_datasets_cache"]


def named(folder: Path, how: str) -> dict[str, Any]:
    """Return the keys of a task file that name ``data/text.jsonl`` as a test split."""
    data = str(folder / "data")
    return {
        "file": {"dataset_kwargs": {"data_files": {"test": "data/text.jsonl"}}},
        "pattern": {"dataset_kwargs": {"data_files": {"test": "data/te*.jsonl"}}},
        "absolute pattern": {"dataset_kwargs": {"data_files": {"test": [f"{data}/te*.jsonl"]}}},
        "URL": {"dataset_kwargs": {"data_files": {"test": f"file://{data}/text.jsonl"}}},
        "URL of a pattern": {"dataset_kwargs": {"data_files": [f"file://{data}/te*.jsonl"]}},
        "working folder": {"dataset_kwargs": {"data_files": {"test": "text.jsonl"}}},
        "data_dir": {"dataset_kwargs": {"data_dir": data}},
        "dataset_path": {"dataset_path": data},
    }[how]


def edited_at_the_same_time(file: Path) -> None:
    """Change a word of a file but neither its size nor its time of modification, as ``cp -p`` and ``tar`` may."""
    stat = file.stat()
    text = file.read_text()
    file.write_text(text[:-4] + ("z" if text[-4] != "z" else "y") + text[-3:])
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def texts(task: Path, folder: Path) -> list[str]:
    task.write_text(task.read_text() + "# read again\n")  # what a process has loaded it keeps
    asked = schema.Task(path=str(task))
    prepared = build.prepare((asked,), schema.Fewshot(), wrapping.NONE, folder / "requests")
    assert not prepared.missing
    found = prepared.benchmarks[0].requests
    return [request.text for request in sets.read_requests(found, found.leaves[0])]


@pytest.mark.parametrize(
    "how",
    ["file", "pattern", "absolute pattern", "URL", "URL of a pattern", "working folder", "data_dir", "dataset_path"],
)
def test_data_that_was_edited_at_the_same_time_moves_the_id_and_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    task = write_tasks(tmp_path)["tiny_bpb"]
    for other in ("mc", "shots"):
        (tmp_path / "data" / f"{other}.jsonl").unlink()
    config = yaml.safe_load(task.read_text())
    config["test_split"] = "train" if how in ("URL of a pattern", "data_dir", "dataset_path") else "test"
    del config["dataset_kwargs"]
    task.write_text(yaml.safe_dump(config | named(tmp_path, how)))
    before, id_before = texts(task, tmp_path), Contents(tmp_path).task(task, "place")
    edited_at_the_same_time(tmp_path / "data" / "text.jsonl")
    after = texts(task, tmp_path)
    assert Contents(tmp_path).task(task, "place") != id_before
    assert after[:-1] == before[:-1] and after[-1] != before[-1]


CODE = {
    "map": 'def one(doc):\n    return {"text": WORD + doc["text"]}\n\ndef docs(data):\n    return data.map(one)\n',
    "closure": "def one(text):\n    return WORD + text\n\ndef docs(data):\n"
    '    return data.map(lambda doc: {"text": one(doc["text"])})\n',
    "filter": "def one(doc):\n    return len(WORD) == 5 or len(doc['text']) % 2 == 0\n\ndef docs(data):\n"
    "    return data.filter(one)\n",
}


@pytest.mark.parametrize("kind", CODE)
def test_code_that_makes_documents_is_run_again_once_it_was_edited(tmp_path: Path, kind: str) -> None:
    task = write_tasks(tmp_path)["tiny_bpb"]
    task.write_text(task.read_text() + "process_docs: !function utils.docs\n")
    made = []
    for time, word in enumerate(("first", "second", "first", "first")):
        code = f"WORD = {word!r}\n\n" + CODE[kind]
        (tmp_path / "utils.py").write_text(code + "# another comment\n" * (time == 3))
        os.utime(tmp_path / "utils.py", (time, time))  # by which lm-eval knows in a process that it is another
        made.append(texts(task, tmp_path))
    assert made[0] == made[2] == made[3] != made[1]


@pytest.mark.parametrize(
    "named",
    [
        "beside.jsonl",
        ["beside.jsonl"],
        {"test": ["there/here.jsonl", "beside.jsonl"]},
        "{folder}/beside.jsonl",
        "~/beside.jsonl",
        "${{DATA}}/beside.jsonl",
        "file://{folder}/beside.jsonl",
        "file:{folder}/beside.jsonl",
        "local://{folder}/bes*.jsonl",
        {"test": "file://${{DATA}}/bes*.jsonl"},
        "here.jsonl",
        "h*.jsonl",
        ["file://here.jsonl"],
        "zip://q.jsonl::{folder}/beside.jsonl",
        {"test": "zip://q.jsonl::file://here.jsonl"},
    ],
    ids=str,
)
def test_local_file_is_content_however_it_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: Any
) -> None:
    """``here.jsonl`` is in the working folder, ``beside.jsonl`` beside the task file."""
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(there)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", str(tmp_path))
    task = tmp_path / "task.yaml"
    task.write_text(yaml.safe_dump({"dataset_kwargs": {"data_files": named}}).format(folder=tmp_path))
    ids = set()
    for text in ("one", "two"):
        (tmp_path / "beside.jsonl").write_text(text)
        (there / "here.jsonl").write_text(text)
        ids.add(Contents(tmp_path).task(task, "place"))
    assert len(ids) == 2


def test_member_of_an_archive_is_content_too(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("an archive")
    ids = set()
    for member in ("one", "two"):
        task = tmp_path / f"{member}.yaml"
        task.write_text(yaml.safe_dump({"data_files": f"zip://{member}.jsonl::{tmp_path}/a.zip"}))
        ids.add(Contents(tmp_path).task(task, "place"))
    assert len(ids) == 2


@pytest.mark.parametrize("length", [300, 5000])
def test_text_that_is_too_long_for_a_file_name_is_a_text(tmp_path: Path, length: int) -> None:
    task = tmp_path / "task.yaml"
    task.write_text(yaml.safe_dump({"task": "long", "description": "a" * length}, width=10000))
    assert Contents(tmp_path).task(task, "place").startswith("task:")


def test_environment_stays_as_it_is_while_data_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library writes it anew for its progress bars: a thread of Ray that reads a variable meanwhile may crash."""
    name = "stack_multiprocessing_download_progress_bars"
    monkeypatch.setattr(download_manager, name, getattr(file_utils, name))  # as it is outside of these tests
    task, written = write_tasks(tmp_path)["tiny_mc"], []
    put, unset = os.putenv, os.unsetenv
    monkeypatch.setattr(os, "putenv", lambda name, value: (written.append(name), put(name, value)))
    monkeypatch.setattr(os, "unsetenv", lambda name: (written.append(name), unset(name)))
    asked = schema.Task(path=str(task))
    assert not build.prepare((asked,), schema.Fewshot(), wrapping.NONE, tmp_path / "requests").missing
    assert written == []
