"""What to write instead of an entry that breaks the schema in a common way: a short form, or another tool's word."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

TASK_FILE = re.compile(r"[/\\]|\.ya?ml$")
HUB_ID = re.compile(r"^[\w-][\w.-]*/[\w.-]+$")
DATA_FILE = re.compile(r"\.(jsonl?|csv|parquet)$")

# By the class of the schema that has no such key.
EPOCHS = "a block says it: horizon and snapshots"
SCHEDULE = "a block says it: schedule"
PROMPT, COMPLETION = "did you mean 'prompt'?", "did you mean 'completion'?"
WORDS: dict[str, dict[str, str]] = {
    "Setting": {
        "learning_rate": "did you mean 'lr'?",
        "per_device_train_batch_size": "did you mean 'batch'? It counts the samples of a step, over all workers",
        "gradient_accumulation_steps": "what fits in memory is found; 'micro_batch' under resources sets it",
        "dtype": "did you mean 'precision'?",
        "epochs": EPOCHS,
        "num_epochs": EPOCHS,
        "num_train_epochs": EPOCHS,
        "schedule": SCHEDULE,
        "lr_scheduler_type": SCHEDULE,
        "weight_decay": "did you mean optimizer: {weight_decay: ...}?",
        "rank": "did you mean lora: {rank: ...}?",
        "lora_rank": "did you mean lora: {rank: ...}?",
        "lora_alpha": "did you mean lora: {alpha: ...}?",
    },
    "Lora": {"r": "did you mean 'rank'?", "target_modules": "did you mean 'targets'?"},
    "Block": {
        "epochs": "did you mean horizon and snapshots?",
        "dataset": "did you mean 'mixture'?",
        "lr": "did you mean override: {lr: ...}?",
        "seed": "did you mean override: {seed: ...}?",
        "learning_rate": "did you mean override: {lr: ...}?",
    },
    "Columns": {
        **dict.fromkeys(("input", "instruction", "question"), PROMPT),
        **dict.fromkeys(("output", "response", "answer"), COMPLETION),
    },
    "Evaluation": {"benchmarks": "did you mean 'tasks'?"},
    "Task": {"num_fewshot": "did you mean 'shots'?", "task": "did you mean 'name'?"},
}


def hint_of_key(key: str | int, value: Any, owner: type[BaseModel] | None) -> str:
    """Return what to write instead of a key that a class of the schema does not have."""
    name = owner.__name__ if owner is not None else ""
    if name == "MixtureEntry" and isinstance(value, float):
        return "shares of datasets stand under weights"
    return WORDS.get(name, {}).get(str(key).lower(), "")


def hint_of_mapping(kind: str, value: Any) -> str:
    """Return the mapping that a text, number or list stands for; an empty text where the schema takes none with it.

    Args:
        kind: the class of the schema that is asked for.
        value: what stands there instead.
    """
    write, usual = SHORT_FORMS.get(kind), isinstance(value, NUMBERS.get(kind, str)) and not isinstance(value, bool)
    if kind == "MixtureEntry" and isinstance(value, list):
        usual = all(isinstance(item, str) for item in value)
    return f"did you mean {write(value)}?" if write is not None and usual and value else ""


def hint_of_list(kind: str, value: Any) -> str:
    """Return the list that its only entry stands for; ``kind`` as above, empty where entries may be texts."""
    if isinstance(value, Mapping):
        return "each entry begins with -"
    if not isinstance(value, str):
        return ""
    entry = SHORT_FORMS[kind](value) if kind in SHORT_FORMS else "" if kind else _yaml(value)
    return f"did you mean [{entry}]?" if entry else ""


def hint_of_several(field: str, values: list[Any]) -> str:
    """Return how a block takes several values of a setting's field, such as ``lora.rank``."""
    return f"a block takes several: override: {{{field}: {_yaml(values)}}}"


def _task(value: Any) -> str:
    return f"{{{'path' if TASK_FILE.search(str(value)) else 'name'}: {_yaml(value)}}}"


def _source(value: Any, more: str = "") -> str:
    is_hub = HUB_ID.match(str(value)) and not DATA_FILE.search(str(value))
    return f"{{{'hub' if is_hub else 'path'}: {_yaml(value)}{more}}}"


SHORT_FORMS: dict[str, Callable[[Any], str]] = {
    "Task": _task,
    "Model": _source,
    "Dataset": lambda value: _source(value, ", format: alpaca"),
    "MixtureEntry": lambda value: f"{{each: {_yaml(value)}}}",
    "Storage": lambda value: f"{{root: {_yaml(value)}}}",
    "Tracking": lambda value: f"{{mlflow: {_yaml(value)}}}",
    "Lora": lambda value: f"{{rank: {_yaml(value)}}}",
    "Budget": lambda value: f"{{gpu_hours: {_yaml(value)}}}",
    "Protocol": lambda value: f"{{engine: {_yaml(value)}}}",
}
# Those that a number stands for; the others are written short as a text.
NUMBERS: dict[str, Any] = {"Lora": int, "Budget": int | float}


def _yaml(value: Any) -> str:
    """Return a value as it is written within one line of a file."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return value if isinstance(value, str) and re.fullmatch(r"[\w./~-]+", value) else json.dumps(value, default=str)
