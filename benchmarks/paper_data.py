"""Small files in the shapes of the hub's data sets that the paper's suites read, with content of our own.

Names of repositories, configurations, splits and fields are the hub's, so that ``datasets`` finds them from the folder
they are written into by the very names that lm-eval's tasks have. GSM8K, HumanEval, MBPP, JMMLU and MT-Bench come from
the folder of local data; the rest is made of twenty-six capitals.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks

Rows = Sequence[Mapping[str, Any]]
ROWS = 20
GENERATED = 8  # rows of benchmarks whose answers are long
CAPITALS = (
    ("France", "Paris", "法国", "巴黎"), ("Japan", "Tokyo", "日本", "东京"), ("Kenya", "Nairobi", "肯尼亚", "内罗毕"),
    ("Italy", "Rome", "意大利", "罗马"), ("Peru", "Lima", "秘鲁", "利马"), ("Egypt", "Cairo", "埃及", "开罗"),
    ("Norway", "Oslo", "挪威", "奥斯陆"), ("Cuba", "Havana", "古巴", "哈瓦那"), ("Spain", "Madrid", "西班牙", "马德里"),
    ("Iraq", "Baghdad", "伊拉克", "巴格达"), ("Chile", "Santiago", "智利", "圣地亚哥"), ("Ghana", "Accra", "加纳", "阿克拉"),
    ("Greece", "Athens", "希腊", "雅典"), ("Iran", "Tehran", "伊朗", "德黑兰"), ("Nepal", "Kathmandu", "尼泊尔", "加德满都"),
    ("Poland", "Warsaw", "波兰", "华沙"), ("Qatar", "Doha", "卡塔尔", "多哈"), ("Russia", "Moscow", "俄罗斯", "莫斯科"),
    ("Sweden", "Stockholm", "瑞典", "斯德哥尔摩"), ("Austria", "Vienna", "奥地利", "维也纳"), ("China", "Beijing", "中国", "北京"),
    ("Germany", "Berlin", "德国", "柏林"), ("Ireland", "Dublin", "爱尔兰", "都柏林"), ("Hungary", "Budapest", "匈牙利", "布达佩斯"),
    ("Finland", "Helsinki", "芬兰", "赫尔辛基"), ("Portugal", "Lisbon", "葡萄牙", "里斯本"),
)  # fmt: skip
MATH = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip


def write_hub(folder: Path, data: Path) -> None:
    """Write every data set below ``folder``, as ``<owner>/<name>``; ``data``: the folder of local data, with bench/."""
    bench = data / "bench"
    gsm8k = _lines(bench / "gsm8k_test.jsonl")
    _repository(folder / "openai/gsm8k", {"main": {"train": gsm8k[ROWS : 2 * ROWS], "test": gsm8k[:GENERATED]}})
    humaneval = _lines(bench / "HumanEval.jsonl.gz")[:GENERATED]
    _repository(folder / "openai/openai_humaneval", {"openai_humaneval": {"test": humaneval}})
    problems = [row for row in _lines(bench / "mbpp.jsonl") if 11 <= int(row["task_id"]) <= 510]
    _repository(folder / "google-research-datasets/mbpp", {"full": {"test": problems[:GENERATED]}})
    _repository(folder / "EleutherAI/hendrycks_math", {name: _mathematics(number) for number, name in enumerate(MATH)})
    _repository(folder / "aps/super_glue", {"boolq": {"train": _boolq(3), "validation": _boolq(0)}})
    _repository(folder / "google-research-datasets/nq_open", {"nq_open": {"train": _nq(26), "validation": _nq(ROWS)}})
    _repository(folder / "truthfulqa/truthful_qa", {"generation": {"validation": _truthfulqa()}})
    _repository(
        folder / "Rowan/hellaswag", {"default": {"train": _hellaswag("train"), "validation": _hellaswag("val")}}
    )
    _repository(
        folder / "cais/mmlu", {name: _mmlu(name, number) for number, name in enumerate(_subjects("mmlu/default"))}
    )
    _repository(folder / "haonan-li/cmmlu", {name: _cmmlu(number) for number, name in enumerate(_subjects("cmmlu"))})
    _jmmlu(folder / "JMMLU", bench / "jmmlu")


def _repository(folder: Path, configs: Mapping[str, Mapping[str, Rows]]) -> None:
    """Write a data set as the hub keeps one: a card that says which files each configuration has."""
    card = ["---", "configs:"]
    for config, splits in configs.items():
        card += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            name = f"{config}/{split}.jsonl"
            card.append(f"  - {{split: {split}, path: {name}}}")
            _write(folder / name, rows)
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))


def _write(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _lines(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return [json.loads(line) for line in text.split("\n") if line]


def _subjects(folder: str) -> list[str]:
    """Return the configurations that the task files in a folder of lm-eval's read."""
    files = sorted((Path(lm_eval.tasks.__file__).parent / folder).glob("*.yaml"))
    return [match[1] for file in files if (match := re.search(r'"dataset_name": "(\w+)"', file.read_text()))]


def _four(number: int, language: int) -> tuple[list[str], int]:
    """Return four capitals, and which of them is that of country ``number``; ``language``: 1 English, 3 Chinese."""
    right = number % 4
    names = [CAPITALS[(number + 5 * step) % len(CAPITALS)][language] for step in range(4)]
    names[0], names[right] = names[right], names[0]
    return names, right


def _mathematics(number: int) -> dict[str, Rows]:
    def row(n: int) -> dict[str, Any]:
        a, b = n + 2 + number, 2 * n + 3
        solution = f"Multiplying gives ${a} \\cdot {b} = {a * b}$, so the answer is $\\boxed{{{a * b}}}$."
        return {"problem": f"What is ${a} \\cdot {b}$?", "level": "Level 1", "type": MATH[number], "solution": solution}

    return {"train": [row(n) for n in range(5, 9)], "test": [row(n) for n in range(2)]}


def _boolq(first: int) -> Rows:
    rows = []
    for n in range(ROWS):
        country, capital, *_ = CAPITALS[(n + first) % len(CAPITALS)]
        other = CAPITALS[(n + first + 7) % len(CAPITALS)][0]
        asked = country if n % 2 == 0 else other
        passage = f"{capital} is the capital of {country}, and its largest city. Its government sits there."
        question = f"is {capital.lower()} the capital of {asked.lower()}"
        rows.append({"question": question, "passage": passage, "idx": n, "label": int(asked == country)})
    return rows


def _nq(count: int) -> Rows:
    countries = CAPITALS if count > ROWS else CAPITALS[:count]
    return [
        {"question": f"what is the capital city of {country.lower()}", "answer": [capital, f"{capital}, {country}"]}
        for country, capital, *_ in countries
    ]


def _truthfulqa() -> Rows:
    rows = []
    for n, (country, capital, *_) in enumerate(CAPITALS[:GENERATED]):
        wrong = CAPITALS[(n + 9) % len(CAPITALS)][1]
        best = f"The capital of {country} is {capital}"
        rows.append(
            {
                "type": "Adversarial",
                "category": "Geography",
                "question": f"What is the capital of {country}, where {wrong} lies?",
                "best_answer": best,
                "correct_answers": [best, f"{capital} is the capital of {country}", f"{wrong} does not lie there"],
                "incorrect_answers": [f"The capital of {country} is {wrong}", f"{wrong} is the capital"],
                "source": "of our own",
            }
        )
    return rows


def _hellaswag(split: str) -> Rows:
    rows = []
    for n, (country, capital, *_) in enumerate(CAPITALS[:ROWS]):
        names, right = _four(n + (3 if split == "train" else 0), 1)
        before, after = f"A guide shows a map of {country} and points at {capital}.", "she"
        endings = [f"says that the capital is {name} [title] and folds the map." for name in names]
        rows.append(
            {
                "ind": n,
                "activity_label": "Reading a map",
                "ctx_a": before,
                "ctx_b": after,
                "ctx": f"{before} {after}",
                "endings": endings,
                "source_id": f"own~{n}",
                "split": split,
                "split_type": "indomain",
                "label": str(right),
            }
        )
    return rows


def _mmlu(subject: str, number: int) -> dict[str, Rows]:
    def row(n: int) -> dict[str, Any]:
        names, right = _four(n, 1)
        question = f"What is the capital of {CAPITALS[n % len(CAPITALS)][0]}?"
        return {"question": question, "subject": subject, "choices": names, "answer": right}

    return {"test": [row(number), row(number + 1)], "validation": [row(2)], "dev": [row(n) for n in range(3, 8)]}


def _cmmlu(number: int) -> dict[str, Rows]:
    def row(n: int) -> dict[str, Any]:
        names, right = _four(n, 3)
        question = f"{CAPITALS[n % len(CAPITALS)][2]}的首都是哪座城市？"
        return {"Question": question, **dict(zip("ABCD", names, strict=True)), "Answer": "ABCD"[right]}

    return {"test": [row(number)], "dev": [row(n) for n in range(3, 8)]}


def _jmmlu(folder: Path, source: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.glob("*.csv")):
        lines = file.read_text(encoding="utf-8-sig").splitlines(keepends=True)
        plain = [line for line in lines if line.count('"') == 0]  # whole rows, whatever stands in quotes elsewhere
        (folder / file.name).write_text("".join(itertools.islice(plain, 4)), encoding="utf-8-sig")
