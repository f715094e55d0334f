"""A benchmark without ``shots`` has its task file's own number, in its label too."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluation_world import own_datasets_cache, write_group, write_tasks
from lm_eval.tasks import TaskManager

from massive_sft.evaluation import build, wrapping
from massive_sft.evaluation import requests as sets
from massive_sft.suites.declared import facts_by_task, own_name, shots_of
from massive_sft.sweep import schema

__all__ = ["own_datasets_cache"]


def asked(task: schema.Task) -> tuple[int | None, ...]:
    return shots_of(task, facts_by_task([task])[task])


def contexts(task: schema.Task, folder: Path) -> dict[str, list[list[str]]]:
    """Return the contexts by label and leaf."""
    prepared = build.prepare((task,), schema.Fewshot(), wrapping.NONE, folder / "requests")
    assert not prepared.missing
    return {
        one.requests.label: [
            [request.context for request in sets.read_requests(one.requests, leaf)] for leaf in one.requests.leaves
        ]
        for one in prepared.benchmarks
    }


def changed(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    return path


@pytest.mark.parametrize("place", ["own", "included", "flow", "none"])
def test_number_of_the_task_file_counts_and_is_in_the_label(tmp_path: Path, place: str) -> None:
    path = write_tasks(tmp_path)["tiny_mc"]
    if place == "included":
        path.rename(tmp_path / "base.yaml")
        changed(tmp_path / "base.yaml", num_fewshot=2)
        path.write_text("include: base.yaml\ntask: tiny_mc\n")
    elif place == "flow":
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"num_fewshot": 2}, default_flow_style=True))
    elif place == "own":
        changed(path, num_fewshot=2)
    task, number = schema.Task(path=str(path)), 0 if place == "none" else 2
    assert asked(task) == (number,)
    found = contexts(task, tmp_path)
    assert list(found) == [f"tiny_mc-{number}shot"]
    assert {context.count("Question:") for context in found[f"tiny_mc-{number}shot"][0]} == {number + 1}


def test_declared_number_wins_over_the_task_file(tmp_path: Path) -> None:
    path = changed(write_tasks(tmp_path)["tiny_mc"], num_fewshot=2)
    found = contexts(schema.Task(path=str(path), shots=(1, 3)), tmp_path)
    assert list(found) == ["tiny_mc-1shot", "tiny_mc-3shot"]


@pytest.mark.parametrize(("other", "shots", "name"), [(1, 1, "group-1shot"), (2, None, "group-ownshot")])
def test_tasks_of_a_group_have_each_their_own_and_the_label_says_so_where_they_differ(
    tmp_path: Path, other: int, shots: int | None, name: str
) -> None:
    path = write_group(tmp_path, weight_by_size=True)
    for leaf, number in (("part_a", 1), ("part_b", other)):
        changed(tmp_path / f"{leaf}.yaml", num_fewshot=number)
    task = schema.Task(path=str(path))
    assert asked(task) == (shots,)
    found = contexts(task, tmp_path)
    assert list(found) == [name]
    assert [leaf[0].count("Question:") for leaf in found[name]] == [2, other + 1]


@pytest.mark.parametrize(
    ("name", "shots", "generates"),
    [
        ("gsm8k", (5,), True),
        ("mmlu", (0,), False),
        ("hellaswag", (0,), False),
        ("nq_open", (0,), True),
        ("openllm", (None,), True),
        ("there_is_no_such_task", (None,), True),
    ],
)
def test_benchmark_that_lm_eval_ships_is_read_off_its_files(
    name: str, shots: tuple[int | None, ...], generates: bool
) -> None:
    task = schema.Task(name=name)
    assert asked(task) == shots
    assert facts_by_task([task])[task].generates == generates


# A group's number, and what lies in it, with what lm-eval makes of the leaf ``tiny_mc``, whose own number is 4.
GROUPS = {
    "group over task": {"num_fewshot": 3, "task": ["tiny_mc"]},
    "no number": {"task": ["tiny_mc"]},
    "group over group": {"num_fewshot": 2, "task": [{"group": "inner", "num_fewshot": 3, "task": ["tiny_mc"]}]},
    "inner alone": {"task": [{"group": "inner", "num_fewshot": 3, "task": ["tiny_mc"]}]},
    "entry over group": {"num_fewshot": 3, "task": [{"task": "tiny_mc", "num_fewshot": 1}]},
    "file over group": {"num_fewshot": 2, "task": ["below"]},
}


@pytest.mark.parametrize("name", GROUPS)
def test_number_of_a_group_counts_as_lm_eval_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)  # where lm-eval looks for the tasks' data
    changed(write_tasks(tmp_path)["tiny_mc"], num_fewshot=4)
    (tmp_path / "below.yaml").write_text(yaml.safe_dump({"group": "below", "num_fewshot": 3, "task": ["tiny_mc"]}))
    path = tmp_path / "outer.yaml"
    path.write_text(yaml.safe_dump({"group": "outer", **GROUPS[name]}))
    leaves = TaskManager(include_path=str(tmp_path), include_defaults=False).load(["outer"])["tasks"]
    assert asked(schema.Task(path=str(path))) == tuple({leaf.get_config("num_fewshot") for leaf in leaves.values()})


@pytest.mark.parametrize(
    "odd",
    [
        {"num_fewshot": "five"},
        {"num_fewshot": [0, 5]},
        {"num_fewshot": 2.5},
        {"num_fewshot": float("inf")},
        {"num_fewshot": date(2024, 5, 1)},
        {"include": 5},
        {"include": {"base": "a.yaml"}},
    ],
    ids=str,
)
def test_number_that_is_none_and_an_include_that_is_no_file_are_left_to_check(
    tmp_path: Path, odd: dict[str, Any]
) -> None:
    task = schema.Task(path=str(changed(write_tasks(tmp_path)["tiny_mc"], **odd)))
    assert asked(task) == ((0,) if "include" in odd else (None,))
    assert own_name(task) == "tiny_mc"


def test_negative_number_of_a_task_file_is_refused(tmp_path: Path) -> None:
    path = changed(write_tasks(tmp_path)["tiny_mc"], num_fewshot=-1)
    prepared = build.prepare((schema.Task(path=str(path)),), schema.Fewshot(), wrapping.NONE, tmp_path / "requests")
    assert list(prepared.missing.values()) == ["tiny_mc has num_fewshot: -1; it must be 0 or more"]
