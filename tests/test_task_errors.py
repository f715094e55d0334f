"""A benchmark whose own code or data fails is missing with the place and the reason; the others are scored."""

from __future__ import annotations

import re
from pathlib import Path

import evaluation_world as world
import pytest
import yaml
from evaluation_world import own_datasets_cache, write_tasks

from massive_sft.evaluation import wrapping
from massive_sft.evaluation.build import prepare
from massive_sft.evaluation.evaluate import EvaluationResult, evaluate
from massive_sft.evaluation.protocol import ScoreCache
from massive_sft.evaluation.scorer import PlainScorer
from massive_sft.evaluation.task_errors import TaskUnavailable, as_task_unavailable
from massive_sft.ledger.storage import Folder
from massive_sft.sweep import schema

__all__ = ["own_datasets_cache"]
PROTOCOL = schema.Protocol(dtype="fp32")
OWN = """
import sys

class Bad(Exception):
    pass

class Silent(Exception):
    pass

def own(*_args, **_kwargs):
    raise Bad("a rule of mine")

def silent(*_args, **_kwargs):
    raise Silent

def ends(*_args, **_kwargs):
    sys.exit(3)

def forever(*args, **kwargs):
    return forever(*args, **kwargs)

def nothing(*_args, **_kwargs):
    return None
"""
DATA = {
    "empty.jsonl": (b"", "empty.jsonl is empty"),
    "blank.jsonl": (b"\n\n", "blank.jsonl is empty"),
    "broken.jsonl": (b'{"q": "a", "choices": ["b"\n', "broken.jsonl: .*JSON"),
    "latin.csv": ("q,choices,label\nna\xefve,b,0\n".encode("latin-1"), "latin.csv: .*UnicodeDecodeError"),
    "ragged.csv": (b"q,label\na,0\nb,1,2\n", "ragged.csv: .*Expected 2 fields in line 3, saw 3"),
    "header.csv": (b"q,choices,label\n", "header.csv: .*corresponds to no data"),
}


def scored(folder: Path, bad: Path) -> EvaluationResult:
    """Prepare and score a benchmark that fails beside one that does not."""
    tasks = (schema.Task(path=str(bad)), schema.Task(path=str(write_tasks(folder)["tiny_mc"]), limit=2))
    prepared = prepare(tasks, schema.Fewshot(), wrapping.NONE, folder / "requests")

    def scorer() -> PlainScorer:
        return PlainScorer(world.llama(), world.tokenizer())

    return evaluate(
        prepared, PROTOCOL, "weights", scorer, Folder(folder / "cell"), ScoreCache(Folder(folder / "cache"))
    )


def written(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "bad.yaml").write_text(text)
    return folder / "bad.yaml"


@pytest.mark.parametrize("name", DATA)
def test_data_file_that_cannot_be_read_is_named_with_the_cause(tmp_path: Path, name: str) -> None:
    content, reason = DATA[name]
    config = yaml.safe_load(write_tasks(tmp_path)["tiny_gen"].read_text())
    kind = "json" if name.endswith("jsonl") else "csv"
    config |= {"task": "bad", "dataset_path": kind, "dataset_kwargs": {"data_files": {"test": name}}}
    path = written(tmp_path / "bad", yaml.safe_dump({**config, "fewshot_split": None}))
    (path.parent / name).write_bytes(content)
    evaluated = scored(tmp_path, path)
    assert list(evaluated.scores) == ["tiny_mc-0shot"]
    assert re.search(reason, evaluated.missing["bad-0shot"])


@pytest.mark.parametrize("place", ["doc_to_text", "process_docs", "process_results", "aggregation", "filter"])
@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("own", "Bad: a rule of mine"),
        ("silent", "Silent without a message, raised in silent of .*own.py"),
        ("ends", "SystemExit: 3"),
        ("forever", "RecursionError: maximum recursion"),
    ],
)
def test_code_of_a_benchmark_may_raise_anything_anywhere(
    tmp_path: Path, place: str, function: str, reason: str
) -> None:
    config = yaml.safe_load(write_tasks(tmp_path)["tiny_gen"].read_text())
    config |= {"task": "bad", "dataset_kwargs": {"data_files": {"test": "../data/mc.jsonl"}}, "fewshot_split": None}
    call = f"!function own.{function}"
    if place == "aggregation":
        config["metric_list"][0]["aggregation"] = call
    elif place == "filter":
        config["filter_list"] = [{"name": "f", "filter": [{"function": "custom", "filter_fn": call}]}]
    else:
        config[place] = call
    text = yaml.safe_dump(config).replace(f"'{call}'", call)
    path = written(tmp_path / "bad", text)
    (path.parent / "own.py").write_text(OWN)
    evaluated = scored(tmp_path, path)
    assert list(evaluated.scores) == ["tiny_mc-0shot"]
    assert re.search(reason, evaluated.missing["bad-0shot"])
    if place == "process_results":
        assert "cannot be scored: document 0: " in evaluated.missing["bad-0shot"]
        assert [type(error) for error in evaluated.errors] == [TaskUnavailable], "its traceback is kept"


def test_result_of_another_type_is_a_reason_too(tmp_path: Path) -> None:
    config = yaml.safe_load(write_tasks(tmp_path)["tiny_gen"].read_text())
    config |= {"task": "bad", "dataset_kwargs": {"data_files": {"test": "../data/mc.jsonl"}}, "fewshot_split": None}
    text = yaml.safe_dump({**config, "process_results": "CALL"}).replace("CALL", "!function own.nothing")
    path = written(tmp_path / "bad", text)
    (path.parent / "own.py").write_text(OWN)
    assert "cannot be scored: AttributeError: 'NoneType'" in scored(tmp_path, path).missing["bad-0shot"]


def test_person_who_stops_the_run_is_not_taken_for_a_benchmark_that_fails() -> None:
    with pytest.raises(KeyboardInterrupt), as_task_unavailable("it cannot be loaded"):
        raise KeyboardInterrupt
