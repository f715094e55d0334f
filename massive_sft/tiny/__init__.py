"""The offline world: base models, instruction data, benchmarks and a sweep over them, in one folder.

In: a folder and a seed. Out: what every part of the project can be tried on without a network or a GPU, in minutes.
Never: pretrains; the models are shipped, made by ``python examples/pretrain/pretrain.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.files import write_bytes
from massive_sft.tiny.domains import Domain, Example, all_domains
from massive_sft.tiny.sweep import sweep_text
from massive_sft.tiny.tasks import write_jsonl, write_tasks

WEIGHTS = Path(__file__).parent / "weights"
MODELS = ("tiny-llama", "tiny-neox")
# Characters that a glob (lm-eval's data files) or `${NAME}` (the sweep file) would read as something else.
_SPECIAL = "*?[]{}$"

Row = Callable[[Example], dict[str, Any]]
# One schema a domain, those that published datasets have.
SCHEMAS: dict[str, Row] = {
    "facts": lambda row: {"instruction": row.question, "input": row.context, "output": row.answer},
    "reverse": lambda row: {"question": row.prompt, "answer": row.answer},
    "arith": lambda row: {
        "messages": [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.answer}]
    },
    "sort": lambda row: {"prompt": row.prompt, "completion": row.answer},
}


@dataclass(frozen=True)
class World:
    """Where everything is; all paths absolute.

    Attributes:
        root: the folder.
        models: model folders by name (config, bf16 weights, fast tokenizer).
        datasets: training JSONL files by domain.
        tasks: lm-eval YAML files by task name; their common folder is an ``include_path`` for lm-eval.
        sweep: a sweep file over the world.
        is_edited: whether that was there already with another text, and so was left as it is.
        ledger: the storage root that the sweep names; not made here.
    """

    root: Path
    models: dict[str, Path]
    datasets: dict[str, Path]
    tasks: dict[str, Path]
    sweep: Path
    ledger: Path
    is_edited: bool = False


def build(folder: Path, seed: int = 0) -> World:
    """Write the world under ``folder``, which is made if missing.

    Files of the same names are replaced, but for a sweep file with another text.

    The same folder and seed give the same bytes. The seed changes data and tasks; the models stay.

    Raises:
        InvalidInput: the path cannot be written, or holds a character that is special in patterns.
    """
    root = folder.absolute()
    if any(character in str(root) for character in _SPECIAL):
        raise InvalidInput(Problem("folder", f"its path must hold none of {' '.join(_SPECIAL)}", str(root)))
    try:
        domains = all_domains(seed)
        models = {name: _copy_model(name, root / "models") for name in MODELS}
        datasets = {name: _write_dataset(domain, root / "data") for name, domain in domains.items()}
        tasks = write_tasks(root / "tasks", domains, seed)
        sweep, ledger = root / "sweep.yaml", root / "ledger"
        text = sweep_text(models, datasets, tasks, ledger).encode()
        is_edited = sweep.exists() and sweep.read_bytes() != text
        if not is_edited:
            write_bytes(sweep, text)
    except OSError as error:
        raise InvalidInput(Problem("folder", f"must be writable ({error})", str(root))) from error
    return World(root, models, datasets, tasks, sweep, ledger, is_edited)


def _copy_model(name: str, models: Path) -> Path:
    for source in sorted((WEIGHTS / name).iterdir()):
        write_bytes(models / name / source.name, source.read_bytes())
    return models / name


def _write_dataset(domain: Domain, data: Path) -> Path:
    path = data / f"{domain.name}.jsonl"
    write_jsonl(path, [SCHEMAS[domain.name](row) for row in domain.train])
    return path
