"""tests/data/example.yaml, which shows every section, passes ``check`` where its models and data are there."""

from __future__ import annotations

import json
import re
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from massive_sft import tiny
from massive_sft.planning.plan import Plan, make_plan
from massive_sft.running.check import check
from massive_sft.running.revision_pinning import pin
from massive_sft.sweep.load import load_sweep

pytestmark = pytest.mark.timeout(240)

EXAMPLE = Path(__file__).parent / "data" / "example.yaml"
COMMIT = "1" * 40
ROOM = namedtuple("Usage", "total used free")(10**14, 0, 10**14)  # bytes, for models of the sizes that the names have
ROWS = 1100  # the sweep draws 1000 of each
MODELS = ("Qwen/Qwen2.5-7B", "allenai/OLMo-7B-hf", "google/gemma-2-9b")
# Rows in the shape of each published dataset, and the file that they are in.
HUB: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "yahma/alpaca-cleaned": ("train.json", lambda i: {"instruction": f"Add 1 to {i}.", "input": "", "output": str(i + 1)}),
    "GAIR/lima": ("train.jsonl", lambda i: {"messages": talk(f"Say {i}.", f"It is {i}.")}),
    "ise-uiuc/Magicoder-Evol-Instruct-110K": ("data.jsonl", lambda i: {"instruction": f"Print {i}.", "response": f"print({i})"}),
    "Open-Orca/FLAN": (
        "flan2021_zsnoopt_submix_data.json",
        lambda i: {"inputs": f"Is {i} even?", "targets": ("no", "yes")[i % 2], "task": ("bool_q", "trivia_qa")[i % 2]},
    ),
}  # fmt: skip
LOCAL: dict[str, Callable[[int], dict[str, Any]]] = {
    "alpaca_seed_tasks.jsonl": lambda i: {"instruction": f"Do {i}.", "instances": [{"input": "", "output": "Done."}]},
    "p3_knowledge.jsonl": lambda i: {"prompt": f"What is {i}?", "completion": f"A number.<|endoftext|>{i}"},
}
JMMLU = """\
task: jmmlu
dataset_path: json
dataset_kwargs: {data_files: {test: jmmlu.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write_rows(path: Path, make: Callable[[int], dict[str, Any]], count: int = ROWS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(make(index)) + "\n" for index in range(count)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example file with all that it names: a hub cache of small stand-ins, local models, data and a task file."""
    folder = tmp_path_factory.mktemp("example")
    model = tiny.build(folder / "world").models["tiny-llama"]
    for name in MODELS:
        shutil.copytree(model, cached(folder, "models", name))
    for name, (file, make) in HUB.items():
        write_rows(cached(folder, "datasets", name) / file, make)
    for file, make in LOCAL.items():
        write_rows(folder / "data" / "train" / file, make)
    shutil.copytree(model, folder / "models" / "my-base")
    write_rows(folder / "tasks" / "jmmlu.jsonl", lambda i: {"question": f"{i}?", "choices": ["a", "b"], "answer": 0}, 9)
    (folder / "tasks" / "jmmlu.yaml").write_text(JMMLU)
    shutil.copy(EXAMPLE, folder / "example.yaml")
    return folder


def cached(folder: Path, kind: str, name: str) -> Path:
    """Return where the hub's cache has the only commit of a repository."""
    home = folder / "hub" / f"{kind}--{name.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    return home / "snapshots" / COMMIT


def fetched(folder: Path, monkeypatch: pytest.MonkeyPatch, overlay: str) -> Plan:
    """Return the plan after ``fetch``."""
    monkeypatch.setattr("massive_sft.models.hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr("massive_sft.models.hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))  # for the processes that tokenise, on a busy machine
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("shutil.disk_usage", lambda _: ROOM)
    for name in ("MODELS", "DATA", "ROOT"):
        monkeypatch.setenv(name, str(folder / name.lower()))
    (folder / "overlay.yaml").write_text(overlay)
    return pin(make_plan(load_sweep(folder / "example.yaml", [folder / "overlay.yaml"])), lambda _: None)


def test_example_passes_check_with_its_models_data_and_own_benchmark(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = "evaluation: {suites: [], tasks: [{path: tasks/jmmlu.yaml, shots: 0, limit: 500}]}"
    plan = fetched(folder, monkeypatch, own)
    assert (len(plan.missing), len(plan.unpinned)) == (0, 0)
    assert list(map(str, check(plan))) == []


def test_example_s_other_benchmarks_lack_nothing_but_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = list(map(str, check(fetched(folder, monkeypatch, "name: massive-sft"))))
    hub = re.compile(r"evaluation\.(suites|tasks\[0\]): .*(cannot be loaded|Couldn't)")
    assert problems and [text for text in problems if not hub.search(text)] == []
