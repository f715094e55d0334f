"""The sweep over real data, on stand-in files of the same schemas: it is sound, and its models saw no benchmark."""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
from pathlib import Path

import pytest
from from_text import corpus, pretrain
from overlap import WINDOW, Windows, normalised
from text_files import Source, texts_of

from massive_sft.core.errors import InvalidInput
from massive_sft.evaluation import build as requests
from massive_sft.evaluation import wrapping
from massive_sft.evaluation.requests import read_requests
from massive_sft.evaluation.task_errors import TaskUnavailable
from massive_sft.models.tokenizer import load_tokenizer
from massive_sft.planning.plan import Plan, make_plan
from massive_sft.running.check import check
from massive_sft.sweep.load import load_sweep
from massive_sft.sweep.schema import Fewshot, Model, Task
from massive_sft.sweep.template import PAPER

SWEEP = Path(__file__).parent.parent / "sweeps" / "local_data.yaml"
REAL = SWEEP.with_name("real_model.yaml")
SUBJECTS = (
    "elementary_mathematics",
    "global_facts",
    "high_school_biology",
    "japanese_history",
    "machine_learning",
    "sociology",
)
QUESTIONS = 8  # of each subject
LEAKED = "How many pebbles does the giant of the northern mountains carry home in seven leather bags?"
LIMITS = {"p3_reasoning": 500, "p3_knowledge": 700}
TRAIN = ("gsm8k.jsonl", "code_alpaca_2k.json", "alpaca_seed_tasks.jsonl", "p3_comprehension.jsonl")


def _sentence(rng: random.Random) -> str:
    words = [
        "river",
        "stone",
        "cloud",
        "apple",
        "seven",
        "walks",
        "under",
        "green",
        "house",
        "and",
        "then",
        "finds",
        "nine",
        "boats",
        "near",
        "old",
        "trees",
    ]
    return " ".join(rng.choices(words, k=12)) + "."


def _lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _p3(rng: random.Random, count: int, tail: str) -> list[dict]:
    row = {"prompt": f"{{}}\n\n{tail}\n", "completion": "two boats<|endoftext|>"}
    return [{**row, "prompt": row["prompt"].format(_sentence(rng))} for _ in range(count)]


def _write_data(root: Path) -> None:
    rng = random.Random(0)
    train, bench = root / "train", root / "bench"
    gsm8k = [{"question": _sentence(rng), "answer": f"{_sentence(rng)}\n#### {n}"} for n in range(160)]
    _lines(train / "gsm8k.jsonl", [*gsm8k, {"question": LEAKED.upper().replace(" ", "\n "), "answer": "#### 7"}])
    code = [{"instruction": _sentence(rng), "input": "", "output": f"print({n})"} for n in range(150)]
    (train / "code_alpaca_2k.json").write_text(json.dumps(code, indent=1))
    seeds = [
        {"id": n, "instruction": _sentence(rng), "instances": [{"input": "", "output": _sentence(rng)}]}
        for n in range(150)
    ]
    _lines(train / "alpaca_seed_tasks.jsonl", seeds)
    _lines(train / "p3_comprehension.jsonl", _p3(rng, 150, "Who?"))
    _lines(train / "p3_reasoning.jsonl", _p3(rng, 530, "Possible answers: a tree, two boats, an old stone"))
    _lines(train / "p3_knowledge.jsonl", [*_p3(rng, 720, "- a tree\n- two boats"), *_p3(rng, 5, "No options.")])
    _lines(bench / "gsm8k_test.jsonl", [{"question": LEAKED, "answer": "Many.\n#### 7"}] * 2)
    problem = {"task_id": "0", "prompt": "def f():\n", "canonical_solution": "    return 1\n", "test": ""}
    (bench / "HumanEval.jsonl.gz").write_bytes(gzip.compress((json.dumps(problem) + "\n").encode()))
    (bench / "jmmlu").mkdir()
    for subject in SUBJECTS:
        with (bench / "jmmlu" / f"{subject}.csv").open("w", encoding="utf-8-sig", newline="") as stream:
            csv.writer(stream).writerows(
                [(f"どれか、{{ }}は{n or ''}", "5", " 7", "8", "9", "C") for n in range(QUESTIONS)]
            )


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The data folder and the sources, with models pretrained for two steps beside it."""
    root = tmp_path_factory.mktemp("local")
    _write_data(root / "data")
    train = root / "data" / "train"
    sources = [
        *(Source(train / name) for name in TRAIN),
        *(Source(train / f"{name}.jsonl", rows) for name, rows in LIMITS.items()),
    ]
    pretrain(sources, [root / "data" / "bench"], root / "models", steps=2)
    return root, sources


@pytest.fixture
def plan(local, monkeypatch, tmp_path) -> Plan:
    root, _ = local
    for name, value in {"DATA": root / "data", "MODELS": root / "models", "ROOT": tmp_path}.items():
        monkeypatch.setenv(name, str(value))
    return make_plan(load_sweep(SWEEP))


def _requests(task: Task, root: Path):
    return requests.build(task, 0, Fewshot(), wrapping.training(PAPER), root)


def test_plan_of_the_sweep_has_two_models_two_methods_six_mixtures_at_two_epochs(plan):
    assert not plan.missing
    rows = [cell.cell.coordinates for cell in plan.cells]
    trained = {(row.model, row.data, row.method, row.epoch) for row in rows}
    single = {mixture.name for mixture in plan.sweep.mixtures["single"]}
    assert len(single) == 6
    assert trained >= {
        (model, mixture, method, epoch)
        for model in ("text-llama", "text-neox")
        for mixture in single
        for method in ("full", "lora")
        for epoch in (1, 3)
    }


def test_check_of_the_sweep_on_stand_in_data_finds_nothing(plan):
    assert check(plan) == []


def test_tasks_of_the_sweep_build_requests_of_the_expected_documents(plan, tmp_path):
    documents = {}
    for task in plan.tasks:
        documents |= {leaf.name: leaf.documents for leaf in _requests(task, tmp_path / "requests").leaves}
    assert documents == {
        "gsm8k_bpb": 2,
        "gsm8k_answer_bpb": 2,
        "humaneval_bpb": 1,
        "humaneval_answer_bpb": 1,
        "p3_reasoning_mc": 30,
        "p3_reasoning_answer_bpb": 30,
        "p3_knowledge_mc": 20,
        "p3_knowledge_answer_bpb": 20,
        **{f"jmmlu::{subject}": QUESTIONS for subject in SUBJECTS},
    }


def test_sweep_of_a_real_model_passes_check_and_tests_no_example(local, plan, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELS", str(tmp_path))
    (tmp_path / "smollm2").symlink_to(local[0] / "models" / "text-llama")
    real = make_plan(load_sweep(REAL))
    assert (len(real.runs), len(real.cells), check(real)) == (16, 17, [])
    task = next(task for task in real.tasks if "jmmlu" in str(task.path))
    built = requests.build(task, 5, Fewshot(), wrapping.NONE, tmp_path / "requests")
    asked = [request.context for request in read_requests(built, built.leaves[0])[::4]]
    assert len(asked) == QUESTIONS - 5
    assert [context.count("答え: C") for context in asked] == [5, 5, 5]
    assert all(context.count(f"どれか、{{ }}は{n}\n") == 1 for n, context in zip((5, 6, 7), asked, strict=True))


def test_byte_order_mark_of_a_csv_reaches_no_question(plan, tmp_path):
    jmmlu = next(task for task in plan.tasks if "jmmlu" in str(task.path))
    built = _requests(jmmlu, tmp_path / "requests")
    first = read_requests(built, built.leaves[0])[0]
    assert first.context == "###Question: どれか、{ }は\nA. 5\nB. 7\nC. 8\nD. 9\n###Answer: "


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("kind", ["mc", "answer_bpb"])
def test_held_out_rows_begin_where_the_dataset_ends(plan, name, kind):
    task = (SWEEP.parent / "local_data" / f"{name}_{kind}.yaml").read_text()
    assert int(re.search(r"start: (\d+)", task)[1]) == plan.sweep.file.datasets[name].limit == LIMITS[name]


def test_task_without_the_data_folder_is_unavailable_and_says_why(plan, tmp_path, monkeypatch):
    monkeypatch.delenv("DATA")
    alone = tmp_path / "alone.yaml"  # another file, for tasks are loaded once a process
    folder = SWEEP.parent / "local_data"
    alone.write_text((folder / "gsm8k_bpb.yaml").read_text() + "# alone\n")
    (tmp_path / "data.py").write_bytes((folder / "data.py").read_bytes())
    with pytest.raises(TaskUnavailable, match="needs the environment variable DATA, which is not set"):
        _requests(Task(path=str(alone)), tmp_path / "requests")


def test_corpus_drops_and_counts_a_document_with_a_benchmark_text(local):
    root, sources = local
    made = corpus(sources, [root / "data" / "bench"], seed=0)
    assert made.overlapping == {source.path.name: int(source.path.name == "gsm8k.jsonl") for source in sources}
    without = corpus(sources, [], seed=0)
    assert any("GIANT" in text for text in (*without.train, *without.held_out))


def test_corpus_shares_no_window_with_a_benchmark(local):
    """By comparing characters, unlike the hashes that the corpus is made with."""
    root, sources = local
    made = corpus(sources, [root / "data" / "bench"], seed=0)
    texts = [normalised(text) for row in texts_of(root / "data" / "bench") for text in row]
    windows = {text[at : at + WINDOW] for text in texts for at in range(len(text) - WINDOW + 1)}
    assert windows
    for text in map(normalised, made.train):
        assert not any(text[at : at + WINDOW] in windows for at in range(len(text) - WINDOW + 1))


def test_corpus_takes_only_the_first_rows_of_a_limited_source(local):
    _, sources = local
    made = corpus(sources, [], seed=0)
    held_out = {json.loads(line)["prompt"].strip() for line in sources[-1].path.read_text().splitlines()[700:]}
    assert not any(text.startswith(tuple(held_out)) for text in (*made.train, *made.held_out))


@pytest.mark.parametrize(("shift", "expected"), [(0, True), (1, False)])
def test_overlap_needs_a_whole_window(shift, expected):
    text = "".join(random.Random(1).choices("abcdefgh", k=200))
    assert Windows([text]).overlap("zz" + text[20 : 20 + WINDOW - shift] + "zz") is expected


def test_pretrain_twice_with_one_seed_gives_equal_models(local, tmp_path):
    root, sources = local
    pretrain(sources, [root / "data" / "bench"], tmp_path, steps=2)
    for file in sorted(
        path for path in (root / "models").rglob("*") if path.is_file() and path.parent.name != "models"
    ):
        assert (tmp_path / file.relative_to(root / "models")).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize(("name", "bos"), [("text-llama", "<s>"), ("text-neox", None)])
def test_pretrained_tokenizer_is_fast_and_gives_any_text_back(local, name, bos):
    tokenizer = load_tokenizer(Model(path=str(local[0] / "models" / name)))
    assert tokenizer.is_fast
    assert tokenizer.bos_token == bos
    text = "Seven 77 boats, どれか\n"
    ids = tokenizer(text)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == (1 if bos else 0)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_pretrain_from_files_that_are_missing_or_empty_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InvalidInput, match="leave no documents"):
        pretrain([Source(tmp_path / "empty.txt")], [], tmp_path / "models", steps=1)
    with pytest.raises(InvalidInput, match=r"cannot be read.*gone\.jsonl") as raised:
        pretrain([Source(tmp_path / "gone.jsonl")], [tmp_path / "bench.xls"], tmp_path / "models", steps=1)
    assert len(raised.value.problems) == 2
