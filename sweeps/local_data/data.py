"""Where the benchmarks of the local-data sweep come from: files below ``${DATA}``, read offline.

lm-eval calls these as ``custom_dataset`` with the task's metadata and ``dataset_kwargs``; each returns one split.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

from datasets import Dataset

Split = dict[str, Dataset]


def rows(file: str, **_: Any) -> Split:
    """Return every row of a JSON Lines file, also a gzipped one."""
    return {"test": Dataset.from_list(_json_lines(_path(file)))}


def questions(file: str, examples: int = 0, **_: Any) -> Split:
    """Return a headerless CSV of question, four choices and the answer's letter; a byte-order mark is dropped.

    The first ``examples`` questions are a split of their own, ``examples``, and not under test.
    """
    names = ("question", "A", "B", "C", "D", "answer")
    with _path(file).open(encoding="utf-8-sig", newline="") as stream:
        found = [dict(zip(names, (cell.strip() for cell in row), strict=True)) for row in csv.reader(stream) if row]
    split = {"test": Dataset.from_list(found[examples:])}
    return {**split, "examples": Dataset.from_list(found[:examples])} if examples else split


def held_out_choices(file: str, start: int, **_: Any) -> Split:
    """Return the rows from ``start`` on whose prompt lists options of which exactly one is the completion.

    The sweep trains on the rows before ``start`` alone: its dataset has ``limit: start``.
    """
    found = []
    for row in _json_lines(_path(file))[start:]:
        choices, answer = options(row["prompt"]), row["completion"].replace("<|endoftext|>", "").strip()
        if len(choices) > 1 and choices.count(answer) == 1:
            found.append({"question": row["prompt"].strip(), "choices": choices, "answer": choices.index(answer)})
    return {"test": Dataset.from_list(found)}


def options(prompt: str) -> list[str]:
    """Return what a prompt offers: ``- x`` lines at its end, ``Possible answers: x, y, z`` or ``(A) x (B) y``."""
    text = prompt.strip()
    lettered = re.search(r"\(A\) (.+?) \(B\) (.+)$", text)
    if lettered:
        return [lettered[1].strip(), lettered[2].strip()]
    named = re.search(r"Possible answers: (.+)$", text)
    if named:
        return [choice.strip() for choice in named[1].split(", ")]
    listed = re.search(r"(?:(?:^|\n)- [^\n]+\n*)+$", text)
    return re.findall(r"^- (.+)$", listed[0], re.MULTILINE) if listed else []


def _path(file: str) -> Path:
    path = Path(os.path.expandvars(file))
    if "$" in str(path):
        raise ValueError(f"{file} needs an environment variable that is not set")
    return path


def _json_lines(path: Path) -> list[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.decode().split("\n") if line.strip()]


def gsm8k_answer_bits(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """Return the answer's log-probability (nats) and its bytes, which lm-eval's ``bits_per_byte`` aggregates."""
    return _bits(doc["answer"], results)


def humaneval_answer_bits(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """Return the solution's log-probability (nats) and its bytes."""
    return _bits(doc["canonical_solution"].strip(), results)


def p3_answer_bits(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """Return the right choice's log-probability (nats) and its bytes."""
    return _bits(doc["choices"][doc["answer"]], results)


def _bits(answer: str, results: list[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    return {"bits_per_byte": (results[0][0], len(answer.encode()))}
