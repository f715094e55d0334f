"""HumanEval and MBPP as lm-eval ships them: programs are run behind walls, without the hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluation_world import own_datasets_cache, write_rows
from lm_eval.tasks.cruxeval import utils as cruxeval
from lm_eval.tasks.longproc import metrics as longproc

from massive_sft.evaluation import build, tasks, wrapping
from massive_sft.evaluation.aggregate import aggregate, table_of
from massive_sft.evaluation.code_eval import CodeEval
from massive_sft.evaluation.own_executors import runs_text
from massive_sft.evaluation.requests import Generation, Request, read_requests
from massive_sft.evaluation.responses import GenerationResponse, answer_requests
from massive_sft.evaluation.task_errors import TaskUnavailable
from massive_sft.evaluation.tasks import load
from massive_sft.ledger.storage import Folder
from massive_sft.sandbox import run as sandbox
from massive_sft.sandbox.run import choose
from massive_sft.sweep import schema

__all__ = ["own_datasets_cache"]
CONFIG = "---\nconfigs:\n- config_name: {0}\n  data_files:\n  - {{split: test, path: test.jsonl}}\n---\n"
HEAD = 'def {0}(x):\n    """Return x plus {1}."""\n'
HUMANEVAL = [
    {"task_id": f"HumanEval/{n}", "prompt": HEAD.format(f"f{n}", n), "canonical_solution": f"    return x + {n}\n"}
    | {"entry_point": f"f{n}", "test": f"def check(candidate):\n    assert candidate(1) == {1 + n}\n"}
    for n in range(4)
]
MBPP = [
    {"task_id": 11 + n, "text": f"Write a function to add {n}.", "code": f"def f(x):\n    return x + {n}"}
    | {"test_list": [f"assert f({x}) == {x + n}" for x in range(3)]}
    for n in range(3)
]
ANSWERS = {
    "humaneval": ["    return x + 0\n", "    return x\n", "    import os\n    os._exit(0)\n", "    return x + 3\n"],
    "mbpp": ["def f(x):\n    return x", "def f(x):\n    return x + 1", "I do not know."],
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay the data where the tasks look for it: a folder of the data's name counts before the hub."""
    for name, config, rows in (
        ("openai/openai_humaneval", "openai_humaneval", HUMANEVAL),
        ("google-research-datasets/mbpp", "full", MBPP),
    ):
        write_rows(tmp_path / name / "test.jsonl", rows)
        (tmp_path / name / "README.md").write_text(CONFIG.format(config))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "metric", "values"),
    [("humaneval", "pass@1,create_test", [1, 0, 0, 1]), ("mbpp", "pass_at_1,none", [1, 1, 0])],
)
def test_answers_pass_or_fail_by_their_tests(
    name: str, metric: str, values: list[int], hub: None, tmp_path: Path
) -> None:
    task = schema.Task(name=name)
    prepared = build.prepare((task,), schema.Fewshot(), wrapping.NONE, tmp_path / "requests", sandbox="rlimits")
    assert prepared.missing == {}
    (benchmark,) = prepared.benchmarks
    if name == "mbpp":
        first = read_requests(benchmark.requests, benchmark.requests.leaves[0])[0]
        assert "def is_not_prime(n)" in first.context and "Write a function to add 1" not in first.context

    def answer(requests: list[Request], _: Path) -> tuple[list[GenerationResponse], dict[str, int]]:
        assert all(isinstance(request, Generation) for request in requests)
        return [GenerationResponse(request.index, ANSWERS[name][request.doc], 9, "eos") for request in requests], {}

    answer_requests(benchmark.requests, Folder(tmp_path / "cell"), "w", answer)
    result = aggregate(benchmark, Folder(tmp_path / "cell"), "w", "rlimits")
    (scores,) = result.table["tasks"].values()
    assert scores[metric]["value"] == sum(values) / len(values)
    assert result.table["provenance"]["sandbox"] == choose("rlimits")
    by_metric = set(result.samples["metric"].to_pylist())
    assert len(by_metric) == 2 and result.samples["value"].to_pylist() == values + values  # by OpenCompass's rules too


def test_several_answers_give_the_chance_that_one_of_k_passes() -> None:
    answers = [["x = 1", "x = 2", "x = 1"], ["x = 2", "x = 2", "x = 2"]]
    scores, results = CodeEval().compute(references=["assert x == 1"] * 2, predictions=answers, k=[1, 2, 5])
    assert scores == {"pass@1": pytest.approx(1 / 3), "pass@2": 0.5}
    assert [found["result"] for _, found in results[0]] == ["passed", "failed: AssertionError: ", "passed"]


def test_machine_without_walls_refuses_such_a_benchmark(hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "STRONG", ())
    tasks._loaded.clear()
    with pytest.raises(TaskUnavailable, match=r"humaneval executes generated code: .*evaluation\.sandbox: rlimits"):
        load(schema.Task(name="humaneval"), "strongest")
    with pytest.raises(TaskUnavailable, match=r"set evaluation\.allow_code_execution"):
        load(schema.Task(name="humaneval"), None)


PASSES = """import evaluate

compute = evaluate.load("code_eval").compute


def passes(items, **_):
    return compute(references=[items[0]], predictions=[[items[1]]], k=[1])[0]["pass@1"]


def passing(doc, results):
    return {"passes": passes([doc["test"], results[0]])}
"""
MEMBER: dict[str, Any] = {"dataset_path": "json", "test_split": "test", "output_type": "generate_until"}
MEMBER |= {"doc_to_text": "{{q}}", "doc_to_target": "{{test}}"}
HOLDERS = {
    "metric": {"metric_list": [{"metric": "code_eval", "aggregation": "mean", "higher_is_better": True}]},
    "function": {"metric_list": [{"metric": "!function rules.passes", "aggregation": "mean"}]},
    "process_results": {
        "process_results": "!function rules.passing",
        "metric_list": [{"metric": "passes", "aggregation": "mean", "higher_is_better": True}],
    },
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_task_that_holds_code_eval_needs_no_word_of_its_own_to_be_refused(holder: str, tmp_path: Path) -> None:
    """In a group, and once its module is loaded, too."""
    write_rows(tmp_path / "own.jsonl", [{"q": "write f", "test": "assert f() == 1"}])
    (tmp_path / "rules.py").write_text(PASSES)
    files = {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "own.jsonl")}}}
    text = json.dumps(MEMBER | files | HOLDERS[holder] | {"task": "own"}, indent=1)
    (tmp_path / "own.yaml").write_text(re.sub(r'"(!function \S+)"', r"\1", text))
    (tmp_path / "both.yaml").write_text("group: both\ntask: [own]\n")
    for file in ("own.yaml", "both.yaml", "own.yaml"):
        with pytest.raises(TaskUnavailable, match=r"own executes generated code; set evaluation\.allow_code_execution"):
            load(schema.Task(path=str(tmp_path / file)))
    assert set(load(schema.Task(path=str(tmp_path / "both.yaml")), "rlimits").tasks) == {"own"}


EXECUTORS = {
    "says so": ("def score(doc, results):\n    return {'passes': 0}\n", "unsafe_code: true\n"),
    "eval": ("def score(doc, results):\n    return {'passes': sum([eval(results[0])])}\n", ""),
    "exec in a helper": (
        "import functools\n\ndef run(text):\n    exec(text)\n\nclosed = functools.partial(run)\n\n"
        "def score(doc, results):\n    return {'passes': [closed(text) for text in results]}\n",
        "",
    ),
}


@pytest.mark.parametrize("kind", EXECUTORS)
def test_task_that_runs_code_by_itself_is_refused_until_no_walls_are_asked_for(kind: str, tmp_path: Path) -> None:
    code, says = EXECUTORS[kind]
    write_rows(tmp_path / "own.jsonl", [{"q": "write f", "test": ""}])
    (tmp_path / "rules.py").write_text(code)
    config = MEMBER | {"task": "own", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "own.jsonl")}}}
    config["metric_list"] = [{"metric": "passes", "aggregation": "mean", "higher_is_better": True}]
    says += "process_results: !function rules.score\n"
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config) + says)
    task = schema.Task(path=str(tmp_path / "own.yaml"))
    with pytest.raises(TaskUnavailable, match=r"own executes generated code; set evaluation\.allow_code_execution"):
        load(task)
    for walls in ("strongest", "rlimits"):
        with pytest.raises(
            TaskUnavailable, match=r"by itself, as you, which nothing walls in; evaluation\.sandbox: none"
        ):
            load(task, walls)
    prepared = build.prepare((task,), schema.Fewshot(), wrapping.NONE, tmp_path / "requests", "none")
    assert table_of(prepared.benchmarks[0], {}, {}, "none")["provenance"]["sandbox"] == "none"


def test_code_of_a_task_that_only_names_such_things_runs_none(tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "/somewhere/rules"}
    code = "def eval(text):\n    return text\n\ndef own(text):\n    return eval(text), text.exec()\n"
    exec(code, names)
    assert not runs_text(names["own"]) and not runs_text(re.sub) and not runs_text(len) and not runs_text("eval")


def test_tasks_of_lm_eval_that_call_eval_or_exec_are_known() -> None:
    """Where a newer lm-eval has others, look at whether they are found."""
    folder = Path(longproc.__file__).parents[1]
    calling = re.compile(r"(?<![\w.])(eval|exec)\(")
    found = {str(file.relative_to(folder)) for file in folder.rglob("*.py") if calling.search(file.read_text())}
    assert found == {"longproc/metrics.py", "cruxeval/utils.py"}
    assert runs_text(longproc.process_results_countdown) and runs_text(cruxeval.pass_at_k)
    assert not runs_text(longproc.process_results_tom_tracking)
