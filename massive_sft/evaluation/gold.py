"""Gold answers as text, kept beside a benchmark's requests for people to read: ``<task>.gold.jsonl.gz``.

No score rests on them, so they are no part of a request set's identity; sets of earlier versions have none.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from massive_sft.core import files
from massive_sft.core.errors import Corrupt
from massive_sft.evaluation.requests import RequestSet, file_name

SEPARATOR = " | "  # between answers of which each is right


def gold_text(task: Any, doc: Any) -> str | None:
    """Return the right answer to a document of an lm-eval task; None where the task does not say one.

    Several right ones are joined by ``SEPARATOR``.
    """
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return None
    try:
        target = task.doc_to_target(doc)
        if task.OUTPUT_TYPE == "multiple_choice":
            choices = task.doc_to_choice(doc)
            chosen = task.doc_to_text(doc) if getattr(task, "multiple_input", 0) else target
            target = [choices[item] if isinstance(item, int) else item for item in _listed(chosen)]
    except Exception:  # noqa: BLE001 - of a task's own code; nothing but this text rests on it
        return None
    return SEPARATOR.join(str(item).strip() for item in _listed(target))


def lacks_right_choice(task: Any, doc: Any) -> bool:
    """Return whether none of a document's choices is right, so that lm-eval counts every answer as wrong.

    So it is with an index that counts choices from 1, at the last, and with a field that is empty; one that is null
    lm-eval cannot score. Of a task with a function of its own for scores nothing is known.
    """
    if task.OUTPUT_TYPE != "multiple_choice" or callable(task.config.process_results):
        return False
    try:
        choices = task.doc_to_choice(doc)
        right = task.doc_to_text(doc) if getattr(task, "multiple_input", 0) else task.doc_to_target(doc)
    except Exception:  # noqa: BLE001 - of a task's own code, which building and the trial of its scores tell of
        return False
    return not any(_is_choice(item, choices) for item in _listed(right))


def question_of(leaf: str, number: int) -> str:
    """Return what a leaf task's question is called, for people."""
    return f"{leaf} question {number}"


def _is_choice(item: Any, choices: Sequence[str]) -> bool:
    return item in choices if isinstance(item, str) else isinstance(item, Integral) and 0 <= int(item) < len(choices)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def gold_path(requests: RequestSet, leaf: str) -> Path:
    """Return where a leaf task's gold answers lie; they need not be there."""
    return requests.folder / f"{file_name(leaf)}.gold.jsonl.gz"


def write_gold(requests: RequestSet, leaf: str, answers: Mapping[int, str | None]) -> None:
    """Write a leaf task's gold answers by document, unless they are there."""
    path = gold_path(requests, leaf)
    if not path.exists():
        lines = (json.dumps({"doc": doc, "gold": text}, ensure_ascii=False) for doc, text in answers.items())
        files.write_bytes(path, gzip.compress("\n".join(lines).encode(), mtime=0))


def read_gold(requests: RequestSet, leaf: str) -> dict[int, str | None]:
    """Return a leaf task's gold answers by document; none where none are kept, or not soundly."""
    try:
        entries = map(json.loads, filter(None, files.read_compressed_lines(gold_path(requests, leaf))))
        return {entry["doc"]: entry["gold"] for entry in entries}
    except (FileNotFoundError, Corrupt, ValueError, KeyError, TypeError):
        return {}
