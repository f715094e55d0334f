"""A second score of the same stored answers, by OpenCompass's rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluation_world import own_datasets_cache, write_rows

from massive_sft.evaluation import build, wrapping
from massive_sft.evaluation.aggregate import aggregate
from massive_sft.evaluation.opencompass import METRIC, OF_DATA, PROGRAMS
from massive_sft.evaluation.opencompass_letters import first_capital, first_option
from massive_sft.evaluation.requests import Request
from massive_sft.evaluation.responses import GenerationResponse, answer_requests
from massive_sft.evaluation.task_errors import TaskUnavailable
from massive_sft.evaluation.task_index import shipped_tasks
from massive_sft.evaluation.tasks import load
from massive_sft.ledger.storage import Folder
from massive_sft.sandbox.run import Choice
from massive_sft.sweep import schema

__all__ = ["own_datasets_cache"]
SOLUTION = "So it is $\\boxed{{{0}}}$."
# Of each benchmark: its data's name and configuration, its rows, and (answer, right for lm-eval, right for OpenCompass).
CASES = {
    "gsm8k": (
        ("openai/gsm8k", "main", ("train", "test")),
        [{"question": "How many?", "answer": "Some.\n#### 1,200"}] * 5,
        [
            ("It is 1200.", 1, 1),
            ("It is 1200 of 3", 0, 0),
            ("1200\nQuestion: and 7?", 0, 1),
            ("1,200", 1, 0),  # 1 and 200
            ("no number", 0, 0),
        ],
    ),
    "nq_open": (
        ("google-research-datasets/nq_open", "nq_open", ("train", "validation")),
        [{"question": "who", "answer": ["Ada Lovelace", "the Countess"]}] * 5,
        [
            ("Ada Lovelace", 1, 1),
            ("It was Ada Lovelace herself", 0, 1),
            ("The answer is a countess", 0, 1),
            ("Byron, and Ada Lovelace", 0, 0),
            ("", 0, 0),
        ],
    ),
    "hendrycks_math_algebra": (
        ("EleutherAI/hendrycks_math", "algebra", ("train", "test")),
        [{"problem": "p", "solution": SOLUTION.format(gold)} for gold in ("\\frac{1}{2}", "7", "7", "12", "7")],
        [
            ("Half. The final answer is $\\frac12$", 1, 1),
            ("The final answer is 7. Done", 0, 1),
            ("It is $7$ for $x$", 0, 0),
            ("$12$", 1, 1),
            ("The answer is 7", 0, 1),
        ],
    ),
    "truthfulqa_gen": (
        ("truthfulqa/truthful_qa", "generation", ("validation",)),
        [
            {
                "question": "q",
                "correct_answers": ["A cat is a small animal"],
                "incorrect_answers": ["A cat is a large fish"],
            }
        ]
        * 4,
        [
            ("A cat is a small animal.", 1, 1),
            ("A cat is large", 0, 0),
            ("One small animal sleeps here", 1, 0),  # no four words in a row
            ("", 0, 0),
        ],
    ),
}
METRICS = {"truthfulqa_gen": "bleu_acc"}


@pytest.mark.parametrize("name", CASES)
def test_answers_have_a_score_by_each_of_two_rules(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder, config, splits), rows, answers = CASES[name]
    parts = "".join(f"  - {{split: {split}, path: {split}.jsonl}}\n" for split in splits)
    for split in splits:
        write_rows(tmp_path / folder / f"{split}.jsonl", rows)
    (tmp_path / folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{parts}---\n")
    monkeypatch.chdir(tmp_path)
    task = schema.Task(name=name, shots=(0,))
    prepared = build.prepare((task,), schema.Fewshot(), wrapping.NONE, tmp_path / "requests")
    assert prepared.missing == {}
    (benchmark,) = prepared.benchmarks

    def answer(requests: list[Request], _: Path) -> tuple[list[GenerationResponse], dict[str, int]]:
        return [GenerationResponse(request.index, answers[request.doc][0], 9, "eos") for request in requests], {}

    answer_requests(benchmark.requests, Folder(tmp_path / "cell"), "w", answer)
    result = aggregate(benchmark, Folder(tmp_path / "cell"), "w")
    values = {
        metric: result.samples.filter([found == metric for found in result.samples["metric"].to_pylist()])
        for metric in (METRICS.get(name, "exact_match"), "opencompass_acc")
    }
    own = values[METRICS.get(name, "exact_match")]
    last = own["filter"].to_pylist()[-1]  # gsm8k's flexible-extract
    lm_eval = [
        value for value, used in zip(own["value"].to_pylist(), own["filter"].to_pylist(), strict=True) if used == last
    ]
    assert lm_eval == [expected for _, expected, _ in answers]
    assert values["opencompass_acc"]["value"].to_pylist() == [expected for _, _, expected in answers]
    entry = result.table["tasks"][name]["opencompass_acc,none"]
    assert entry["value"] == pytest.approx(sum(expected for *_, expected in answers) / len(answers))
    assert entry["higher_is_better"] is True and entry["interval"] is not None


MEMBER = """\
task: {0}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {1}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: exact_match}}]
metadata: {{version: 1, opencompass: gsm8k}}
"""
GROUP = "group: sums\ntask: [one, two]\naggregate_metric_list: [{metric: exact_match, weight_by_size: true}]\n"


def test_own_task_names_its_rule_and_a_group_counts_all_questions_alike(tmp_path: Path) -> None:
    for name, count in (("one", 2), ("two", 4)):
        write_rows(tmp_path / f"{name}.jsonl", [{"question": "q", "answer": f"#### {n}"} for n in range(count)])
        (tmp_path / f"{name}.yaml").write_text(MEMBER.format(name, tmp_path / f"{name}.jsonl"))
    (tmp_path / "sums.yaml").write_text(GROUP)
    task = schema.Task(path=str(tmp_path / "sums.yaml"))
    (benchmark,) = build.prepare((task,), schema.Fewshot(), wrapping.NONE, tmp_path / "requests").benchmarks

    def answer(requests: list[Request], _: Path) -> tuple[list[GenerationResponse], dict[str, int]]:
        return [GenerationResponse(request.index, "It is 0, or 1.", 9, "eos") for request in requests], {}

    answer_requests(benchmark.requests, Folder(tmp_path / "cell"), "w", answer)
    table = aggregate(benchmark, Folder(tmp_path / "cell"), "w").table
    assert [table["tasks"][name]["opencompass_acc,none"]["value"] for name in ("one", "two")] == [0.5, 0.25]
    group = table["groups"]["sums"]["opencompass_acc,none"]
    assert (group["value"], group["n"]) == (pytest.approx(2 / 6), 6) and group["stderr"] > 0


OWN = """\
task: {0}
dataset_path: {1}
dataset_kwargs: {2}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: exact_match}}]
metadata: {3}
"""


def own_task(folder: Path, name: str, **metadata: Any) -> schema.Task:
    """A task file of one's own with one question, which has a test for a program."""
    write_rows(folder / "own.jsonl", [{"q": "write f", "gold": "x", "test_list": ["assert f() == 1"]}])
    files = json.dumps({"data_files": {"test": str(folder / "own.jsonl")}})
    (folder / "own.yaml").write_text(OWN.format(name, "json", files, json.dumps({"version": 1, **metadata})))
    return schema.Task(path=str(folder / "own.yaml"), shots=(0,))


def scores_of(task: schema.Task, folder: Path, text: str, sandbox: Choice | None = None) -> dict[str, float]:
    """The value of each metric where every answer is one text."""
    prepared = build.prepare((task,), schema.Fewshot(), wrapping.NONE, folder / "requests", sandbox)
    assert prepared.missing == {}
    (benchmark,) = prepared.benchmarks

    def answer(requests: list[Request], _: Path) -> tuple[list[GenerationResponse], dict[str, int]]:
        return [GenerationResponse(request.index, text, 9, "eos") for request in requests], {}

    answer_requests(benchmark.requests, Folder(folder / "cell"), "w", answer)
    (entries,) = aggregate(benchmark, Folder(folder / "cell"), "w", sandbox).table["tasks"].values()
    return {key: entry["value"] for key, entry in entries.items()}


def test_own_task_whose_rule_runs_programs_is_refused_until_they_may_run(tmp_path: Path) -> None:
    task = own_task(tmp_path, "own", opencompass="mbpp")
    with pytest.raises(TaskUnavailable, match=r"own executes generated code; set evaluation\.allow_code_execution"):
        load(task)
    passed = scores_of(task, tmp_path, "def f():\n    return 1", "rlimits")
    assert passed == {"exact_match,none": 0, f"{METRIC},none": 1}


def test_own_task_over_the_data_of_mbpp_is_refused_until_programs_may_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "google-research-datasets/mbpp/test.jsonl", [{"q": "q", "gold": "x", "test_list": []}])
    (tmp_path / "own.yaml").write_text(OWN.format("mbpp", "google-research-datasets/mbpp", "{}", "{version: 1}"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskUnavailable, match=r"mbpp executes generated code; set evaluation\.allow_code_execution"):
        load(schema.Task(path=str(tmp_path / "own.yaml")))


@pytest.mark.parametrize(
    "name", ["gsm8k", "mbpp", "humaneval", "nq_open", "truthfulqa_gen", "hendrycks_math_own", "mmlu_own_generative"]
)
def test_own_data_under_a_name_of_lm_eval_s_has_no_rule_that_it_does_not_name(name: str, tmp_path: Path) -> None:
    assert scores_of(own_task(tmp_path, name), tmp_path, "x") == {"exact_match,none": 1}


def test_lm_eval_s_tasks_read_the_data_that_their_rules_are_for() -> None:
    named = {name: name for name in ("gsm8k", "nq_open", "truthfulqa_gen", "mbpp", "humaneval")}
    named |= {"hendrycks_math_geometry": "hendrycks_math", "mmlu_anatomy_generative": "first_option"}
    shipped = shipped_tasks()
    read = {name: (shipped[name].cfg or {})["dataset_path"] for name in named}
    assert {name: OF_DATA.get(data) for name, data in read.items()} == named


def test_own_task_may_name_the_rule_for_math(tmp_path: Path) -> None:
    write_rows(tmp_path / "own.jsonl", [{"q": "half", "gold": "x", "answer": "\\frac{1}{2}"}])
    files = json.dumps({"data_files": {"test": str(tmp_path / "own.jsonl")}})
    (tmp_path / "own.yaml").write_text(OWN.format("own", "json", files, "{version: 1, opencompass: hendrycks_math}"))
    task = schema.Task(path=str(tmp_path / "own.yaml"), shots=(0,))
    assert scores_of(task, tmp_path, "The final answer is $\\frac12$")[f"{METRIC},none"] == 1


def test_rule_that_does_not_fit_the_data_says_so(tmp_path: Path) -> None:
    rule = r"own cannot be scored by OpenCompass's rule nq_open: KeyError: 'answer'"
    with pytest.raises(TaskUnavailable, match=rule):
        scores_of(own_task(tmp_path, "own", opencompass="nq_open"), tmp_path, "x")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("def f():\n  pass\n[DONE] more", "def f():\n  pass"),
        ("[BEGIN]\n'x = 1'\n[DONE]", "x = 1"),
        ("Here:\n```python\nx = 1\n```\nand so on", "x = 1"),
        ("x = 1", "x = 1"),
    ],
)
def test_code_of_mbpp_is_taken_from_between_its_marks(answer: str, code: str) -> None:
    assert PROGRAMS["mbpp"]({"test_list": ["assert 1", "assert 2"]}, answer) == f"{code}\nassert 1\nassert 2"


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        ("    return 1\n", "    return 1\n"),
        ("return 1", "    return 1"),
        (" return 1", "    return 1"),
        ("```python\ndef f():\n    return 1\n```", "    return 1\n"),
        ("import os\ndef f():\n    return 1", "    return 1"),
        ("```never closed", "    ```never closed"),
    ],
)
def test_body_of_humaneval_is_taken_from_what_stands_around_it(answer: str, body: str) -> None:
    doc = {"prompt": "def f():\n", "test": "def check(g): pass", "entry_point": "f"}
    assert PROGRAMS["humaneval"](doc, answer) == f"def f():\n{body}\ndef check(g): pass\ncheck(f)"


@pytest.mark.parametrize(
    ("answer", "option", "capital"),
    [
        ("B", "B", "B"),
        ("The answer is (C).", "C", "T"),
        ("C. Because A is wrong", "C", "C"),
        ("I think it is B", "B", "I"),
        ("Answer: D\nA is wrong", "D", "A"),
        ("答案是：B，因为A不对", "B", "B"),
        ("选C", "C", "C"),
        ("故选A只有选项B对", "A", "A"),  # the two patterns that are one there
        ("1. Bob knows", "B", "B"),
        ("none of them", "", ""),
        ("", "", ""),
    ],
)
def test_letter_of_an_answer_is_the_one_that_opencompass_takes(answer: str, option: str, capital: str) -> None:
    """As its 0.5.4 reads these answers; "Answer" begins with a letter that is an option."""
    assert (first_option(answer), first_capital(answer)) == (option, capital)
