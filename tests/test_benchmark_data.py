"""A benchmark's local data is what the files hold now: in its id, and in the requests that are built."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluation_world import own_datasets_cache, write_tasks

from massive_sft.evaluate import build, wrapping
from massive_sft.evaluate import requests as sets
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


@pytest.mark.parametrize("how", ["file", "pattern", "absolute pattern", "data_dir", "dataset_path"])
def test_data_that_was_edited_at_the_same_time_moves_the_id_and_is_read(tmp_path: Path, how: str) -> None:
    task = write_tasks(tmp_path)["tiny_bpb"]
    for other in ("mc", "shots"):
        (tmp_path / "data" / f"{other}.jsonl").unlink()
    config = yaml.safe_load(task.read_text())
    config["test_split"] = "train" if how in ("data_dir", "dataset_path") else "test"
    del config["dataset_kwargs"]
    task.write_text(yaml.safe_dump(config | named(tmp_path, how)))
    before, id_before = texts(task, tmp_path), Contents(tmp_path).task(task, "place")
    edited_at_the_same_time(tmp_path / "data" / "text.jsonl")
    after = texts(task, tmp_path)
    assert Contents(tmp_path).task(task, "place") != id_before
    assert after[:-1] == before[:-1] and after[-1] != before[-1]
