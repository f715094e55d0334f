"""lm-eval task files for the domains: multiple choice, generation with exact match, and bits per byte.

Requirements are bare: whoever scores wraps them in a template, so ``target_delimiter`` is empty. The data files are
named by absolute path, because lm-eval reads relative ones from the current directory.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from massive_sft.core.files import write_bytes
from massive_sft.tiny.corpus import story, template
from massive_sft.tiny.domains import Domain

KINDS = ("mc", "gen", "bpb")
GENERAL = "general_bpb"
GENERAL_ROWS = 60

_HEAD = """\
task: {name}
tag: tiny
dataset_path: json
dataset_kwargs:
  data_files:
    test: {test}
"""
_FEWSHOT = """\
    fewshot: {fewshot}
test_split: test
fewshot_split: fewshot
fewshot_config:
  sampler: first_n
  split: fewshot
target_delimiter: ""
"""
_BODY = {
    "mc": """\
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
""",
    "gen": """\
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 16
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
""",
    "bpb": """\
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: bits_per_byte
""",
}
_TAIL = """\
metadata:
  version: 1.0
"""


def write_tasks(folder: Path, domains: Mapping[str, Domain], seed: int) -> dict[str, Path]:
    """Write every task's YAML and rows under ``folder`` (absolute); return the YAML files by task name."""
    tasks = {}
    for name, domain in domains.items():
        choices = [vars(choice) for choice in domain.test_choices]
        shown_choices = [vars(choice) for choice in domain.fewshot_choices]
        answers = [{"question": row.prompt, "answer": row.answer} for row in domain.test]
        shown_answers = [{"question": row.prompt, "answer": row.answer} for row in domain.fewshot]
        texts = [{"text": template(row.prompt, row.answer)} for row in domain.test]
        tasks[f"{name}_mc"] = _write_task(folder, f"{name}_mc", "mc", choices, shown_choices)
        tasks[f"{name}_gen"] = _write_task(folder, f"{name}_gen", "gen", answers, shown_answers)
        tasks[f"{name}_bpb"] = _write_task(folder, f"{name}_bpb", "bpb", texts)
    rng = random.Random(f"general-{seed}")
    stories = [{"text": story(rng)} for _ in range(GENERAL_ROWS)]
    tasks[GENERAL] = _write_task(folder, GENERAL, "bpb", stories)
    return tasks


def _write_task(
    folder: Path, name: str, kind: str, test: list[dict[str, Any]], fewshot: list[dict[str, Any]] | None = None
) -> Path:
    files = {"test": folder / "data" / f"{name}.jsonl"}
    write_jsonl(files["test"], test)
    text = _HEAD
    if fewshot is not None:
        files["fewshot"] = folder / "data" / f"{name}.fewshot.jsonl"
        write_jsonl(files["fewshot"], fewshot)
        text += _FEWSHOT
    text = text.format(name=name, **{split: json.dumps(str(path)) for split, path in files.items()})
    write_bytes(folder / f"{name}.yaml", (text + _BODY[kind] + _TAIL).encode())
    return folder / f"{name}.yaml"


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_bytes(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
