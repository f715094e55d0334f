"""Suites: those that ship, files of one's own, and what the verb prints of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from calling import call
from evaluation_world import own_datasets_cache

from massive_sft.core.errors import InvalidInput
from massive_sft.evaluation import build, tasks, wrapping
from massive_sft.evaluation.requests import Likelihood, read_requests
from massive_sft.study.released import known_columns
from massive_sft.suites import all_tasks
from massive_sft.suites.suite import read_suite, shipped
from massive_sft.sweep import schema

__all__ = ["own_datasets_cache"]
HERE = Path()
OWN = """\
about: What I look at
tasks:
  - {name: gsm8k, shots: 0, column: gsm8k-0shot}
  - {path: mine.yaml, shots: [0, 2], needs: a folder}
differs: {gsm8k: not at all}
"""


@pytest.mark.parametrize("name", shipped())
def test_suite_that_ships_names_benchmarks_that_exist_and_columns_of_the_table(name: str) -> None:
    suite = read_suite(name, HERE, "suites")
    assert not tasks.problems([entry.task for entry in suite.tasks])
    assert {entry.column for entry in suite.tasks} <= set(known_columns())
    assert all(entry.metric and entry.questions for entry in suite.tasks)
    assert set(suite.differs) == {entry.name or Path(str(entry.path)).stem for entry in suite.tasks}


def test_evaluation_joins_suites_and_tasks_and_names_every_unknown_suite(tmp_path: Path) -> None:
    own = schema.Task(name="mmlu", shots=(5,))
    joined = all_tasks(schema.Evaluation(suites=("paper_zero_shot",), tasks=(own, own)), tmp_path)
    assert joined[0] == own
    assert len(joined) == len(read_suite("paper_zero_shot", HERE, "suites").tasks) + 1
    with pytest.raises(InvalidInput, match="paper_few_shot") as raised:
        all_tasks(schema.Evaluation(suites=("a", "b.yaml")), tmp_path)
    assert len(raised.value.problems) == 2


def test_own_task_file_stands_in_for_the_benchmark_of_its_name() -> None:
    own = schema.Task(path="tasks/jmmlu.yaml", shots=(0,))
    joined = all_tasks(schema.Evaluation(suites=("paper_zero_shot",), tasks=(own,)), HERE)
    assert [task.path for task in joined if task.path] == ["tasks/jmmlu.yaml"]


def test_suite_of_ones_own_is_a_file_whose_paths_start_beside_it(tmp_path: Path) -> None:
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "own.yaml").write_text(OWN)
    joined = all_tasks(schema.Evaluation(suites=("suites/own.yaml",)), tmp_path)
    assert joined == (
        schema.Task(name="gsm8k", shots=(0,)),
        schema.Task(path=str(tmp_path / "suites" / "mine.yaml"), shots=(0, 2)),
    )


def test_mistakes_in_a_suite_are_told_with_their_places(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN.replace("shots: 0", "shots: -1").replace("needs", "need"))
    with pytest.raises(InvalidInput) as raised:
        all_tasks(schema.Evaluation(suites=("own.yaml",)), tmp_path)
    first, second = sorted(map(str, raised.value.problems))
    assert "own.yaml: tasks[0].shots" in first and "must be >= 0" in first
    assert "own.yaml: tasks[1]: unknown key" in second and "needs" in second


def test_jmmlu_is_asked_from_the_files_of_its_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two folders or all in one, without a header, one with a byte-order mark."""
    for name, encoding, answer in (
        ("repository/JMMLU/sociology.csv", "utf-8-sig", "B"),
        ("repository/JMMLU_NC_ND/idiom.csv", "utf-8", "D"),
        ("flat/sociology.csv", "utf-8", "A"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        with path.open("w", encoding=encoding, newline="") as file:
            csv.writer(file).writerows([["「質問」は?", "甲", "乙,丙", "丁\n戊", "己", answer]] * 3)
    (entry,) = (entry for entry in read_suite("paper_zero_shot", HERE, "suites").tasks if entry.path)
    monkeypatch.delenv("JMMLU", raising=False)
    prepared = build.prepare((entry.task,), schema.Fewshot(), wrapping.NONE, tmp_path / "requests")
    assert "needs the environment variable JMMLU" in prepared.missing["jmmlu-0shot"]
    monkeypatch.setenv("JMMLU", str(tmp_path / "repository"))
    tasks._loaded.clear()
    prepared = build.prepare((entry.task,), schema.Fewshot(), wrapping.NONE, tmp_path / "requests")
    (benchmark,) = prepared.benchmarks
    asked = read_requests(benchmark.requests, benchmark.requests.leaves[0])
    assert len(asked) == 2 * 3 * 4 and all(isinstance(request, Likelihood) for request in asked)
    assert asked[0].context.endswith("「質問」は?\nA. 甲\nB. 乙,丙\nC. 丁\n戊\nD. 己\n答え:")
    assert [request.continuation for request in asked[:4]] == [" A", " B", " C", " D"]
    monkeypatch.setenv("JMMLU", str(tmp_path / "flat"))
    tasks._loaded.clear()
    build._build.cache_clear()
    (benchmark,) = build.prepare((entry.task,), schema.Fewshot(), wrapping.NONE, tmp_path / "flat_requests").benchmarks
    assert benchmark.requests.leaves[0].documents == 3


def test_suites_are_listed_with_what_they_need_and_how_they_differ(tmp_path: Path) -> None:
    code, text = call("suites")
    assert code == 0
    for said in (
        "paper_zero_shot",
        "paper_few_shot",
        "humaneval",
        "164",
        "code execution",
        "mbpp_4shot",
        "first capital",
        "25 of train",
        "hub: openai/gsm8k",
        "alpaca_eval_v2-total",
    ):
        assert said in text
    (tmp_path / "own.yaml").write_text(OWN)
    code, text = call("suites", tmp_path / "own.yaml", "--json")
    assert code == 0 and [entry["shots"] for entry in json.loads(text)[0]["tasks"]] == [[0], [0, 2]]
    code, text = call("suites", "paper")
    assert code == 2 and "paper_few_shot" in text
