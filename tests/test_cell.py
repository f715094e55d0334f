"""What moves an id and what does not; names, excludes and the union of blocks."""

from __future__ import annotations

import copy
import json
import pkgutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from massive_sft.core.errors import InvalidInput
from massive_sft.core.fingerprint import fingerprint
from massive_sft.sweep import schema
from massive_sft.sweep.cell import Cell, Cells, make_cells
from massive_sft.sweep.content import Commits, Contents
from massive_sft.sweep.identity import HASHED, NEUTRAL, UNHASHED, entry_content
from massive_sft.sweep.load import check_sweep
from massive_sft.sweep.trajectory import count_sharing, make_trajectories

COMMITS = Commits(
    models={"org/m1": {"main": "1" * 40}, "org/m2": {"main": "2" * 40}},
    datasets={"org/d1": {"main": "a" * 40}, "org/d2": {"main": "b" * 40}},
)


def base_file() -> dict[str, Any]:
    return {
        "schema": 1,
        "name": "test",
        "models": {"m1": {"hub": "org/m1"}, "m2": {"hub": "org/m2"}},
        "datasets": {"d1": {"hub": "org/d1", "format": "alpaca"}, "d2": {"hub": "org/d2", "format": "p3"}},
        "mixtures": {"each": {"each": ["d1", "d2"], "samples": 100}, "all": {"concat": "each"}},
        "settings": {
            "full": {"method": "full", "lr": 1e-5, "batch": 32},
            "lora": {"method": "lora", "lr": 2e-6, "batch": 128},
        },
        "blocks": [block()],
        "storage": {"root": "runs"},
    }


def block(**changes: Any) -> dict[str, Any]:
    plain = {"name": "A", "model": "m1", "mixture": "d1", "setting": "full"}
    return plain | {"schedule": "cosine", "horizon": 3, "snapshots": [3]} | changes


def cells_of(file: dict[str, Any], folder: Path = Path("/")) -> Cells:
    return make_cells(check_sweep(file, folder / "x.yaml"), Contents(folder, COMMITS))


def only(file: dict[str, Any]) -> Cell:
    cells = [cell for cell in cells_of(file).cells if cell.recipe]
    assert len(cells) == 1
    return cells[0]


def changed(place: str, value: Any) -> dict[str, Any]:
    file = base_file()
    put(file, place, value)
    return file


def put(file: dict[str, Any], place: str, value: Any) -> None:
    *steps, last = place.split(".")
    target: Any = file
    for step in steps:
        target = target[int(step)] if isinstance(target, list) else target.setdefault(step, {})
    target[last] = copy.deepcopy(value)  # a later edit goes into it


def test_ids_are_golden() -> None:
    """These were given out; they change only with TRAIN_SEMANTICS, never by a refactoring."""
    file = base_file() | {
        "blocks": [block(setting=["full", "lora"], schedule=["cosine", "constant", "wsd"], mixture="all")]
    }
    assert {
        str(cell.coordinates): (cell.id, cell.recipe.id if cell.recipe else None) for cell in cells_of(file).cells
    } == GOLDEN


GOLDEN: dict[str, tuple[str, str | None]] = {
    "m1 all[200] full cosine/3 seed 0 epoch 3": ("92222340fc063298", "a76f3d080281fc7a"),
    "m1 all[200] full constant seed 0 epoch 3": ("73cb8775dee283de", "2f341039cbb01285"),
    "m1 all[200] full wsd/3 seed 0 epoch 3": ("c3caf50b2b6b6535", "8919d05e789544ec"),
    "m1 all[200] lora cosine/3 seed 0 epoch 3": ("a9bebb1b8b851ab5", "2787f90bd80df76d"),
    "m1 all[200] lora constant seed 0 epoch 3": ("18a8412013d20b97", "97e18242f1b9a1b9"),
    "m1 all[200] lora wsd/3 seed 0 epoch 3": ("a8da6ee5aa75bcad", "73307dbca9985518"),
    "m1 (base)": ("3882c34bbc725cb9", None),
}

Edit = tuple[str, Any]
# For every field that identity knows of: edits of the file, of which the last changes the field and those before it
# make a file in which that matters.
LORA: Edit = ("settings.full.method", "lora")
WSD: Edit = ("blocks.0.schedule", {"name": "wsd"})
ALL: Edit = ("blocks.0.mixture", "all")
TALK: Edit = ("datasets.d1.format", "messages")
ONE: Edit = ("mixtures.one", {"weights": {"d1": 1, "d2": 1}, "samples": 10})
WEIGHED: Edit = ("blocks.0.mixture", "one")
COLUMNS = {"hub": "org/d1", "columns": {"prompt": "p", "completion": "c"}}
FEWER = {"each": ["d1", "d2"], "samples": 3}
LEFT: tuple[Edit, ...] = (("mixtures.left", {"leave_one_out": "all"}), ("blocks.0.mixture", "left"))
MOVES: dict[str, list[tuple[Edit, ...]]] = {
    "Model.hub": [(("models.m1.hub", "org/m2"),)],
    "Model.path": [(("models.m1", {"path": "/one"}), ("models.m1.path", "/other"))],
    "Model.revision": [(("models.m1.revision", "2" * 40),)],
    "Model.tokenizer": [(("models.m1.tokenizer", "/tokenizer"),)],
    "Model.trust_remote_code": [(("models.m1.trust_remote_code", True),)],
    "Dataset.hub": [(("datasets.d1.hub", "org/d2"),)],
    "Dataset.path": [(("datasets.d1", {"path": "/one", "format": "alpaca"}), ("datasets.d1.path", "/other"))],
    "Dataset.revision": [(("datasets.d1.revision", "2" * 40),)],
    "Dataset.subset": [(("datasets.d1.subset", "x"),)],
    "Dataset.split": [(("datasets.d1.split", "test"),)],
    "Dataset.files": [(("datasets.d1.files", ["a.json"]),)],
    "Dataset.format": [(("datasets.d1.format", "gsm8k"),)],
    "Dataset.columns": [(TALK, ("datasets.d1.columns", {"messages": "talk"}))],
    "Dataset.turns": [(TALK, ("datasets.d1.turns", "first"))],
    "Dataset.filter": [(("datasets.d1.filter", {"task": ["x"]}),)],
    "Dataset.limit": [(("datasets.d1.limit", 500),)],
    "Dataset.strip": [(("datasets.d1.strip", ["<s>"]),)],
    "Columns.prompt": [(("datasets.d1", COLUMNS), ("datasets.d1.columns.prompt", "x"))],
    "Columns.completion": [(("datasets.d1", COLUMNS), ("datasets.d1.columns.completion", "x"))],
    "Columns.messages": [(TALK, ("datasets.d1.columns", {"messages": "a"}), ("datasets.d1.columns.messages", "b"))],
    "MixtureEntry.each": [(ALL, ("mixtures.each.each", ["d1"]))],
    "MixtureEntry.concat": [(ALL, ("mixtures.few", {"each": ["d2"], "samples": 3}), ("mixtures.all.concat", "few"))],
    "MixtureEntry.leave_one_out": [
        (
            *LEFT,
            ("mixtures.few", {"concat": "each2"}),
            ("mixtures.each2", FEWER),
            ("mixtures.left.leave_one_out", "few"),
        )
    ],
    "MixtureEntry.weights": [(ONE, WEIGHED, ("mixtures.one.weights.d1", 3))],
    "MixtureEntry.samples": [(("mixtures.each.samples", 101),), (ONE, WEIGHED, ("mixtures.one.samples", 20))],
    "Mixtures.sample_seed": [(("mixtures.sample_seed", 1),)],
    "TemplateText.prompt": [
        (("settings.full.template", {"prompt": "a{prompt}"}), ("settings.full.template.prompt", "{prompt}"))
    ],
    "Optimizer.name": [],  # there is one
    "Optimizer.betas": [(("settings.full.optimizer.betas", [0.9, 0.95]),)],
    "Optimizer.eps": [(("settings.full.optimizer.eps", 1e-6),)],
    "Optimizer.weight_decay": [(("settings.full.optimizer.weight_decay", 0.1),)],
    "Optimizer.decay": [(("settings.full.optimizer.weight_decay", 0.1), ("settings.full.optimizer.decay", "all"))],
    "Optimizer.clip": [(("settings.full.optimizer.clip", 0.5),), (("settings.full.optimizer.clip", None),)],
    "Lora.rank": [(LORA, ("settings.full.lora.rank", 8))],
    "Lora.alpha": [(LORA, ("settings.full.lora.alpha", 8))],
    "Lora.dropout": [(LORA, ("settings.full.lora.dropout", 0.1))],
    "Lora.targets": [(LORA, ("settings.full.lora.targets", ["q_proj"]))],
    "Setting.method": [(LORA,)],
    "Setting.lr": [(("settings.full.lr", 2e-5),)],
    "Setting.batch": [(("settings.full.batch", 64),)],
    "Setting.template": [(("settings.full.template", "plain"),), (("settings.full.template", "chat"),)],
    "Setting.loss_on": [(("settings.full.loss_on", "all"),)],
    "Setting.max_length": [(("settings.full.max_length", 1024),)],
    "Setting.truncation": [(("settings.full.truncation", "left"),)],
    "Setting.precision": [(("settings.full.precision", "fp32"),)],
    "Setting.optimizer": [(("settings.full.optimizer", {"eps": 1e-6}),)],
    "Setting.warmup_steps": [(("settings.full.warmup_steps", 10),)],
    "Setting.seed": [(("settings.full.seed", 1),)],
    "Setting.lora": [(LORA, ("settings.full.lora", {"rank": 8}))],
    "Schedule.name": [(("blocks.0.schedule", "linear"),)],
    "Schedule.final": [
        (("blocks.0.schedule", {"name": "cosine", "final": 0.1}),),
        (WSD, ("blocks.0.schedule.final", 0.1)),
    ],
    "Schedule.decay": [(WSD, ("blocks.0.schedule.decay", 0.5))],
    "Block.model": [(("blocks.0.model", "m2"),)],
    "Block.mixture": [(ALL,)],
    "Block.setting": [(("blocks.0.setting", "lora"),)],
    "Block.schedule": [(("blocks.0.schedule", "constant"),)],
    "Block.horizon": [(("blocks.0.horizon", 4),)],
    "Block.snapshots": [(("blocks.0.snapshots", [2]),)],
    "Block.exclude": [(("blocks.0.snapshots", [2, 3]), ("blocks.0.exclude", [{"snapshot": 2}]))],
    "Block.override": [(("blocks.0.override", {"lr": 1e-3}),)],
}
TASK: Edit = ("evaluation.tasks", [{"name": "gsm8k"}])
RATED = {"kind": "mt_bench", "questions": "q"}
JUDGE: dict[str, Any] = {"name": "judge", "endpoint": "http://a", "price": {"input": 1, "output": 1}}
JUDGING = {"judges": [JUDGE], "benchmarks": [{"kind": "win_rate", "questions": "q", "baseline": "q"}, RATED]}
SERVED: Edit = ("evaluation", {"protocol": {"engine": "vllm"}, "vllm": {"servers": "http://here/v1"}})
STAYS: dict[str, list[tuple[Edit, ...]]] = {
    "Model.gated": [(("models.m1.gated", True),)],
    "MixtureEntry.max_repeats": [(("mixtures.each.max_repeats", 3),)],
    "Block.name": [(("blocks.0.name", "renamed"),)],
    "Fewshot.sampler": [(("evaluation.protocol.fewshot.sampler", "default"),)],
    "Fewshot.seed": [(("evaluation.protocol.fewshot.seed", 1),)],
    "Protocol.engine": [(("evaluation.protocol.engine", "trie"),)],
    "Protocol.dtype": [(("evaluation.protocol.dtype", "fp32"),)],
    "Protocol.template": [(("evaluation.protocol.template", "none"),)],
    "Protocol.adapters": [(("evaluation.protocol.adapters", "merged"),)],
    "Protocol.fewshot": [(("evaluation.protocol.fewshot", {"seed": 7}),)],
    "Task.name": [(TASK, ("evaluation.tasks.0.name", "mmlu"))],
    "Task.path": [(("evaluation.tasks", [{"path": "/one.yaml"}]), ("evaluation.tasks.0.path", "/other.yaml"))],
    "Task.shots": [(TASK, ("evaluation.tasks.0.shots", [5]))],
    "Task.limit": [(TASK, ("evaluation.tasks.0.limit", 5))],
    "Evaluation.base": [(("evaluation.base", False),)],
    "Evaluation.protocol": [(("evaluation.protocol", {"dtype": "fp32"}),)],
    "Evaluation.suites": [(("evaluation.suites", ["paper_zero_shot"]),)],
    "Evaluation.tasks": [(TASK,)],
    "Evaluation.allow_code_execution": [(("evaluation.allow_code_execution", True),)],
    "Evaluation.until": [(("evaluation.until", 2),)],
    "Evaluation.sandbox": [(("evaluation.sandbox", "rlimits"),)],
    "Evaluation.judging": [(("evaluation.judging", JUDGING),)],
    "Evaluation.vllm": [(SERVED,)],
    "Vllm.servers": [(SERVED, ("evaluation.vllm.servers", ["http://elsewhere/v1"]))],
    "Vllm.at_once": [(SERVED, ("evaluation.vllm.at_once", 2))],
    "Vllm.timeout": [(SERVED, ("evaluation.vllm.timeout", 2))],
    **{
        f"{kind}.{field}": [(("evaluation.judging", JUDGING), (f"evaluation.judging.{place}{field}", value))]
        for kind, place, fields in (
            ("Judging", "", {"judges": [JUDGE | {"name": "j"}], "benchmarks": [RATED], "budget": 5, "max_failures": 0}),
            ("Judge", "judges.0.", {"name": "j", "endpoint": "http://b", "key": "KEY", "max_tokens": 9, "timeout": 9}),
            ("Judge", "judges.0.", {"concurrency": 2, "per_minute": 9, "price": {"input": 9, "output": 9}}),
            ("Price", "judges.0.price.", {"input": 9, "output": 9}),
            ("JudgedBenchmark", "benchmarks.0.", {"name": "b", "questions": "r", "baseline": "r", "gamed": "r"}),
            ("JudgedBenchmark", "benchmarks.0.", {"prompts": "r", "logprobs": True, "max_tokens": 9, "limit": 9}),
            ("JudgedBenchmark", "benchmarks.1.", {"references": "r"}),
        )
        for field, value in fields.items()
    },
    "JudgedBenchmark.kind": [(("evaluation.judging", JUDGING), ("evaluation.judging.benchmarks", [RATED]))],
    "Storage.root": [(("storage.root", "elsewhere"),)],
    "Storage.snapshots": [(("storage.snapshots", "s3://bucket/prefix"),)],
    "Storage.keep_state": [(("storage.keep_state", "last"),)],
    "Storage.max_waiting": [(("storage.max_waiting", "1TB"),)],
    "Storage.resume_every": [(("storage.resume_every", 60),)],
    "Storage.keep_snapshots": [(("storage.keep_snapshots", {"full": "all"}),)],
    "KeepSnapshots.full": [(("storage.keep_snapshots.full", "last"),)],
    "KeepSnapshots.lora": [(("storage.keep_snapshots.lora", "last"),)],
    "Tracking.mlflow": [(("tracking.mlflow", "http://localhost:5000"),)],
    "Cluster.wait": [(("cluster.wait", 60),)],
    "Budget.gpu_hours": [(("budget.gpu_hours", 1),)],
    "Budget.price_per_gpu_hour": [(("budget.price_per_gpu_hour", 1),)],
    **{
        f"Resource.{field}": [(("resources", [{"gpus": 1}]), (f"resources.0.{field}", value))]
        for field, value in {
            "when": {"model": "all"}, "gpus": 2, "workers": 1, "zero": 3, "offload": "optimizer", "micro_batch": 4,
            "packing": True, "gradient_checkpointing": True, "attention": "eager", "kernels": "plain", "gpu": "H100",
            "gpus_per_replica": 1, "replicas": 1, "lora_at_once": 2,
        }.items()
    },
    **{
        f"TextSet.{field}": [(("measures", [{"texts": "a.jsonl"}]), (f"measures.0.{field}", value))]
        for field, value in {"texts": "b.jsonl", "name": "other", "column": "content", "limit": 3}.items()
    },
    **{
        f"When.{field}": [(("resources", [{"gpus": 1, "when": {}}]), (f"resources.0.when.{field}", value))]
        for field, value in {
            "model": "all", "mixture": "d1", "setting": "full", "method": "full", "phase": "train"
        }.items()
    },
}  # fmt: skip


def edited(edits: tuple[Edit, ...]) -> tuple[set[str], set[str]]:
    """Return the ids of the trained cells before and after the last edit."""
    file = base_file()
    found = []
    for place, value in edits[:-1]:
        put(file, place, value)
    for place, value in (("name", "test"), edits[-1]):
        put(file, place, value)
        found.append({cell.id for cell in cells_of(file).cells if cell.recipe})
    return found[0], found[1]


def cases(table: dict[str, list[tuple[Edit, ...]]]) -> list[Any]:
    return [pytest.param(edits, id=field) for field, every in table.items() for edits in every]


@pytest.mark.parametrize("edits", cases(MOVES))
def test_hashed_field_moves_the_id(edits: tuple[Edit, ...]) -> None:
    before, after = edited(edits)
    assert before != after


@pytest.mark.parametrize("edits", cases(STAYS))
def test_field_that_is_not_hashed_leaves_the_id(edits: tuple[Edit, ...]) -> None:
    before, after = edited(edits)
    assert before == after


def test_every_field_of_the_two_lists_is_tried() -> None:
    for table, listed in ((MOVES, HASHED), (STAYS, UNHASHED)):
        fields = {f"{kind}.{field}" for kind, names in listed.items() for field in names if kind not in OF_SEARCHES}
        assert set(table) == fields, f"edit each of {sorted(fields - set(table))}; drop {sorted(set(table) - fields)}"


# Of a search, which changes no cell of a block and has an id of its own (test_search.py).
OF_SEARCHES = {"Search", "Range", "Mean", "Objective", "Bound", "Start", "Parked", "Rungs", "Weights", "Stop"} | {
    "SearchBudget", "SearchEvaluation", "Proxy", "Confirm",
}  # fmt: skip
SEARCH = {"name": "s", "model": "m1", "mixture": "d1", "setting": "full", "space": {"batch": [1, 2]}, "trials": 2}
LIKE: list[Edit] = [
    ("search", [SEARCH | {"objective": {"maximize": "mmlu"}}]),
    ("name", "renamed"),
    ("measures", ["perplexity"]),
    ("settings.full.template", {"prompt": "###Question: {prompt}\n###Answer: "}),  # the built-in one, written out
]


@pytest.mark.parametrize("edit", LIKE, ids=[place for place, _ in LIKE])
def test_what_is_no_content_leaves_the_id(edit: Edit) -> None:
    before, after = edited((edit,))
    assert before == after


def test_named_format_is_the_columns_that_it_stands_for() -> None:
    columns = {"prompt": ["instruction", "input"], "completion": "output"}
    assert only(changed("datasets.d1", {"hub": "org/d1", "columns": columns})).id == only(base_file()).id


def test_names_and_key_order_do_not_move_the_id() -> None:
    file = base_file()
    file["models"] = {"renamed": file["models"]["m1"]}
    file["settings"] = {"other": dict(reversed(file["settings"]["full"].items()))}
    file["blocks"] = [block(model="renamed", setting="other")]
    assert only(file).id == only(base_file()).id


def test_order_of_a_mixture_does_not_move_the_id() -> None:
    file, turned = base_file(), base_file()
    file["blocks"] = turned["blocks"] = [block(mixture="all")]
    turned["mixtures"]["each"]["each"] = ["d2", "d1"]
    assert only(file).id == only(turned).id


def test_local_data_is_known_by_content_not_by_path(tmp_path: Path) -> None:
    def identity(path: Path, text: str) -> str:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        file = base_file()
        file["datasets"]["d1"] = {"path": str(path), "format": "alpaca"}
        return only(file).id

    first = identity(tmp_path / "a" / "x.jsonl", "one")
    assert identity(tmp_path / "b" / "y.jsonl", "one") == first
    assert identity(tmp_path / "a" / "x.jsonl", "two") != first


def local(folder: Path, **fields: Any) -> str:
    file = base_file()
    file["datasets"]["d1"] = {"path": str(folder), "format": "alpaca"} | fields
    contents = Contents(folder, COMMITS)
    cells = make_cells(check_sweep(file, Path("/x.yaml")), contents).cells
    assert not contents.missing
    return cells[0].id


def test_local_file_alone_or_in_a_folder_under_any_name_is_one_content(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "a.json", "A.JSONL", "other*.jsonl"):
        (tmp_path / name).write_text("one" if name.lower()[0] == "a" else name)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.json")
    alone = local(tmp_path / "a.jsonl")
    assert local(tmp_path, files=["a.jsonl"]) == local(tmp_path, files=["A.JSONL"]) == alone
    assert local(tmp_path / "link.jsonl") == alone  # read by its own name, not by what it links to
    assert local(tmp_path / "a.json") != alone  # another extension is another reader
    assert local(tmp_path, files=["a.jsonl", "b.jsonl"]) != local(tmp_path, files=["b.jsonl", "a.jsonl"])
    assert local(tmp_path, files=["other*.jsonl"]) != alone  # a name, not a pattern


@pytest.mark.parametrize("name", ["a*.jsonl", "none.jsonl"])
def test_local_file_that_the_reader_will_not_find_is_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    file = base_file()
    file["datasets"]["d1"] = {"path": str(tmp_path), "format": "alpaca", "files": name}
    contents = Contents(tmp_path, COMMITS)
    make_cells(check_sweep(file, tmp_path / "x.yaml"), contents)
    assert list(contents.missing) == ["datasets.d1.path"]


def test_local_model_is_its_weights_its_tokenizer_and_the_code_that_may_run(tmp_path: Path) -> None:
    def identity(**fields: Any) -> str:
        return only(changed("models.m1", {"path": str(tmp_path)} | fields)).id

    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    first, trusting = identity(), identity(trust_remote_code=True)
    assert first == trusting
    for name in ("tokenizer_notes.txt", "vocab_notes.md", "README.md"):
        (tmp_path / name).write_text("notes")
    (tmp_path / "modeling.py").write_text("1")
    assert identity() == first
    seen = {first, identity(trust_remote_code=True)}
    for place in ("custom_generate", "code"):
        (tmp_path / place).mkdir()
        (tmp_path / "modeling.py").rename(tmp_path / place / "modeling.py")  # executed otherwise, and by another name
        seen.add(identity(trust_remote_code=True))
        (tmp_path / place / "modeling.py").rename(tmp_path / "modeling.py")
    assert len(seen) == 4
    assert identity() == first
    (tmp_path / "tokenizer.json").write_text("{ }")
    assert identity() != first


SAME = [
    ({"filter": {"c": 1}}, {"filter": {"c": ["1"]}}),
    ({"filter": {"c": True}}, {"filter": {"c": ["true", "true"]}}),
    ({"filter": {"c": "1", "not": {}}}, {"filter": {"c": 1}}),
    ({"filter": {"not": {}}}, {}),
    ({"filter": {"c": ["a", None]}}, {"filter": {"c": [None, "a"]}}),
    ({"format": "messages"}, {"columns": {"messages": "messages"}}),
    (
        {"format": "messages", "filter": {"source": "a"}},
        {"format": "messages", "columns": {"messages": "messages"}, "filter": {"source": "a"}},
    ),
    ({"strip": ["ab", "abc"]}, {"strip": ["abc", "ab", "ab"]}),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_two_spellings_of_one_dataset_are_one_content(one: dict[str, Any], other: dict[str, Any]) -> None:
    plain = base_file()["datasets"]["d1"]
    if "format" in one:
        del plain["format"]
    assert only(changed("datasets.d1", plain | one)).id == only(changed("datasets.d1", plain | other)).id


@pytest.mark.parametrize("rules", [{"prompt": ["a", "b"]}, {"not": {"completion": "x"}}])
def test_format_and_column_of_messages_are_two_contents_where_a_filter_leaves_out_what_one_cannot_read(
    rules: dict[str, Any],
) -> None:
    plain = {key: value for key, value in base_file()["datasets"]["d1"].items() if key != "format"} | {"filter": rules}
    named = only(changed("datasets.d1", plain | {"columns": {"messages": "messages"}})).id
    assert only(changed("datasets.d1", plain | {"format": "messages"})).id != named
    assert only(changed("datasets.d1", plain | {"format": "messages", "columns": {"messages": "messages"}})).id == named


def test_null_is_not_the_text_null_in_a_filter() -> None:
    assert only(changed("datasets.d1.filter", {"c": None})).id != only(changed("datasets.d1.filter", {"c": "None"})).id


def test_model_and_dataset_of_one_hub_id_have_their_own_commits() -> None:
    commits = Commits(models={"org/x": {"main": "1" * 40}}, datasets={"org/x": {"main": "2" * 40}})
    file = base_file()
    file["models"]["m1"]["hub"] = file["datasets"]["d1"]["hub"] = "org/x"
    recipe = make_cells(check_sweep(file, Path("/x.yaml")), Contents(Path("/"), commits)).cells[0].recipe
    assert recipe is not None
    assert (recipe.model.revision, recipe.mixture.parts[0].dataset.revision) == ("1" * 40, "2" * 40)


def test_excludes_have_the_types_of_their_fields() -> None:
    def left(*excludes: dict[str, Any], **changes: Any) -> int:
        file = base_file()
        file["blocks"] = [block(setting=["full", "lora"], snapshots="1..3", exclude=list(excludes), **changes)]
        return len([cell for cell in cells_of(file).cells if cell.recipe])

    assert left({"snapshot": "1..2"}) == 2
    assert left({"optimizer.betas": [0.9, 0.999], "snapshot": 3}) == 4
    assert left({"lr": [1e-5, 3]}) == 3
    assert left({"size": 100, "setting": "lora"}) == 3
    assert left({"lora.rank": 16}) == 3  # full tuning has no rank
    assert left({"optimizer.clip": "none"}, override={"optimizer.clip": [None, 1.0]}) == 6


def test_variant_is_named_by_the_validated_value() -> None:
    file = base_file()
    file["blocks"] = [block(override={"lr": [1, 2e-5], "optimizer": {"betas": [0.9, 0.95]}})]
    assert sorted(cell.coordinates.variant for cell in cells_of(file).cells if cell.recipe) == [
        "lr=1.0,optimizer.betas=[0.9,0.95]",
        "lr=2e-05,optimizer.betas=[0.9,0.95]",
    ]


def test_relative_path_starts_at_the_sweep_file(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("{}")
    file = base_file()
    file["datasets"]["d1"] = {"path": "d.jsonl", "format": "alpaca"}
    recipe = make_cells(check_sweep(file, tmp_path / "x.yaml"), Contents(tmp_path, COMMITS)).cells[0].recipe
    assert recipe and recipe.mixture.parts[0].dataset.path == str(tmp_path / "d.jsonl")


def test_every_unset_variable_in_a_path_is_named(tmp_path: Path) -> None:
    file = base_file()
    file["models"]["m1"] = {"path": "${NO_SUCH_VARIABLE}/m"}
    file["datasets"]["d1"] = {"path": "${NOR_THIS_ONE}/d.jsonl", "format": "alpaca"}
    contents = Contents(tmp_path, COMMITS)
    make_cells(check_sweep(file, tmp_path / "x.yaml"), contents)
    assert [str(problem) for problem in contents.missing.values()] == [
        "models.m1.path: needs the environment variable NO_SUCH_VARIABLE, which is not set, got '${NO_SUCH_VARIABLE}/m'",
        "datasets.d1.path: needs the environment variable NOR_THIS_ONE, which is not set, got '${NOR_THIS_ONE}/d.jsonl'",
    ]


def test_path_that_expands_to_nothing_is_missing_not_the_folder(tmp_path: Path) -> None:
    file = base_file()
    file["models"]["m1"] = {"path": "${NO_SUCH_VARIABLE:-}"}
    file["datasets"]["d1"] = {"path": "~nobody-of-this-name/d.jsonl", "format": "alpaca"}
    contents = Contents(tmp_path, COMMITS)
    make_cells(check_sweep(file, tmp_path / "x.yaml"), contents)
    assert "is empty once its variables are replaced" in str(contents.missing["models.m1.path"])
    assert "names a home folder that is not known here" in str(contents.missing["datasets.d1.path"])


def test_unpinned_revision_and_missing_file_are_told_apart(tmp_path: Path) -> None:
    file = base_file()
    file["datasets"]["d1"] = {"path": "none.jsonl", "format": "alpaca"}
    file["models"]["m1"]["revision"] = "v2"
    contents = Contents(tmp_path, COMMITS)
    make_cells(check_sweep(file, tmp_path / "x.yaml"), contents)
    assert list(contents.unpinned) == ["models.m1.hub"]
    assert list(contents.missing) == ["datasets.d1.path"]


def test_every_schema_field_is_classified_once() -> None:
    modules = [import_module(f"{schema.__name__}.{found.name}") for found in pkgutil.iter_modules(schema.__path__)]
    entries: set[type[BaseModel]] = {
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, schema.StrictModel | schema.Mixtures)
    } - {schema.StrictModel, schema.SweepFile}
    for kind in entries:
        name, fields = kind.__name__, set(kind.model_fields)
        hashed, unhashed = HASHED.get(name, frozenset()), UNHASHED.get(name, frozenset())
        assert not hashed & unhashed, name
        assert hashed | unhashed == fields, f"{name}: {sorted(fields ^ (hashed | unhashed))} is in neither list"
    assert {kind.__name__ for kind in entries} == set(HASHED) | set(UNHASHED)


class Deep(schema.StrictModel):
    """A class of the file, as it was and with fields that were added to it."""

    lr: float
    later: str = "on"
    unused: int = 1

    @property
    def unused_fields(self) -> frozenset[str]:
        return frozenset({"unused"}) if self.lr == 0 else frozenset()


class Whole(schema.StrictModel):
    deep: Deep


def test_later_field_within_a_field_is_hashed_unless_it_is_neutral_or_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HASHED, "Whole", frozenset({"deep"}))
    monkeypatch.setitem(HASHED, "Deep", frozenset({"lr", "later", "unused"}))
    monkeypatch.setitem(NEUTRAL, "Deep", {"later": "off", "unused": 0})
    assert entry_content(Whole(deep=Deep(lr=1.0, later="off", unused=0))) == {"deep": {"lr": 1.0}}
    assert entry_content(Whole(deep=Deep(lr=1.0))) == {"deep": {"lr": 1.0, "later": "on", "unused": 1}}
    assert entry_content(Whole(deep=Deep(lr=0.0))) == {"deep": {"lr": 0.0, "later": "on"}}


def test_neutral_values_are_of_hashed_fields() -> None:
    for kind, values in NEUTRAL.items():
        assert values.keys() <= HASHED[kind]


def with_optimizer(method: str = "full", **optimizer: Any) -> Cell:
    file = base_file()
    put(file, "settings.full.method", method)
    put(file, "settings.full.optimizer", optimizer)
    return only(file)


def test_decay_of_all_weights_keeps_the_earlier_id_and_that_of_matrices_has_its_own() -> None:
    assert with_optimizer(weight_decay=0.1, decay="all").id == "7e18472e42c03f1f"
    assert with_optimizer(weight_decay=0.1).id != "7e18472e42c03f1f"
    with pytest.raises(InvalidInput, match="decay: has no effect in a setting of method full and weight_decay 0"):
        with_optimizer(decay="all")


def test_decay_of_an_adapter_is_that_of_its_matrices_whatever_the_field_says() -> None:
    found = {with_optimizer("lora", weight_decay=0.1, decay=decay).id for decay in ("matrices", "all")}
    assert len(found) == 1


def test_id_is_the_hash_of_the_content() -> None:
    file = base_file()
    file["blocks"] = [block(setting=["full", "lora"])]
    for cell in cells_of(file).cells:
        assert cell.id == fingerprint(cell.content)


def test_content_is_canonical_json_of_the_resolved_cell() -> None:
    recipe = only(base_file()).recipe
    assert recipe is not None
    content = {key: json.loads(text) for key, text in recipe.parts.items()}
    assert content["base"] == {"weights": f"hub:org/m1@{'1' * 40}", "tokenizer": f"hub:org/m1@{'1' * 40}"}
    assert content["schedule"] == {"name": "cosine", "horizon": 3, "final": 0.0}
    assert content["setting"]["optimizer"]["weight_decay"] == 0.0
    assert "lora" not in content["setting"]


def test_excludes_match_any_coordinate_and_unused_ones_are_told() -> None:
    file = base_file()
    everything = {"model": "all", "mixture": "each", "setting": ["full", "lora"], "snapshots": "1..3"}
    excludes = [
        {"model": "m1", "mixture": "d1", "setting": "full"},
        {"mixture": "d2", "snapshot": 3},
        {"method": "lora", "snapshot": [1, 2]},
        {"lr": 7.0},
    ]
    file["blocks"] = [block(**everything, exclude=excludes)]
    made = cells_of(file)
    found = {(c.coordinates.model, c.coordinates.data, c.coordinates.setting, c.epoch) for c in made.cells if c.recipe}
    assert found == {
        ("m1", "d1", "lora", 3), ("m2", "d1", "full", 1), ("m2", "d1", "full", 2), ("m2", "d1", "full", 3),
        ("m2", "d1", "lora", 3), ("m1", "d2", "full", 1), ("m1", "d2", "full", 2),
        ("m2", "d2", "full", 1), ("m2", "d2", "full", 2),
    }  # fmt: skip
    assert [str(warning) for warning in made.warnings] == [
        "/x.yaml: blocks[0].exclude[3]: matches nothing, got {'lr': 7.0}"
    ]


def test_blocks_share_cells() -> None:
    file = base_file()
    file["blocks"] = [block(), block(name="B", snapshots="1..3")]
    made = [cell for cell in cells_of(file).cells if cell.recipe]
    assert sorted((cell.epoch, cell.blocks) for cell in made) == [(1, ("B",)), (2, ("B",)), (3, ("A", "B"))]


def test_cells_before_one_are_its_earlier_epochs_and_the_base() -> None:
    made = cells_of(changed("blocks.0.snapshots", [1, 2, 3])).cells
    (base,) = (cell for cell in made if cell.recipe is None and cell.model == made[0].model)
    trained = {cell.epoch: cell for cell in made if cell.recipe and cell.base == base.base}
    assert trained[3].before == (trained[2].id, trained[1].id, base.id)
    assert trained[1].before == (base.id,) and base.before == ()


def test_cell_under_two_names_is_in_the_blocks_of_both() -> None:
    file = base_file()
    file["settings"]["again"] = file["settings"]["full"]
    file["blocks"] = [block(), block(name="B", setting="again")]
    made = cells_of(file)
    assert [cell.blocks for cell in made.cells if cell.recipe] == [("A", "B")]
    assert "is the same training as m1 d1[100] full" in str(made.warnings[0])


def test_mixture_of_two_names_of_one_dataset_is_refused() -> None:
    file = base_file()
    file["datasets"]["same"] = file["datasets"]["d1"] | {"split": "train"}
    file["datasets"]["other"] = file["datasets"]["d1"] | {"limit": 5}
    for parts, refused in ((["d1", "other"], False), (["d1", "same"], True)):
        file["mixtures"] = {"one": {"weights": dict.fromkeys(parts, 1), "samples": 10}}
        file["blocks"] = [block(mixture="one")]
        if refused:
            with pytest.raises(InvalidInput, match="takes the same rows twice, as d1 and as same"):
                cells_of(file)
        else:
            assert cells_of(file)


def test_base_rows_are_one_a_model_in_use() -> None:
    file = base_file()
    file["blocks"] = [block(model="all", setting=["full", "lora"])]
    assert sorted(str(cell.coordinates) for cell in cells_of(file).cells if not cell.recipe) == [
        "m1 (base)",
        "m2 (base)",
    ]
    file["evaluation"] = {"base": False}
    assert all(cell.recipe for cell in cells_of(file).cells)


def test_one_name_for_two_contents_is_refused() -> None:
    """Names spell out what tells contents apart, so a file cannot get here: the check guards the naming itself."""
    sweep = check_sweep(base_file(), Path("/x.yaml"))
    ((variant,),) = sweep.variants
    other = replace(variant, setting=variant.setting.model_copy(update={"batch": 64}))
    with pytest.raises(InvalidInput, match="blocks A give one name to two contents"):
        make_cells(replace(sweep, variants=((variant, other),)), Contents(Path("/"), COMMITS))


def test_schedules_that_differ_in_an_end_are_two_names() -> None:
    file = base_file()
    schedules = ["cosine", {"name": "cosine", "final": 0.1}, {"name": "wsd", "decay": 0.5, "final": 0.1}]
    file["blocks"] = [block(schedule=[*schedules, "constant"])]
    names = [cell.coordinates.schedule for cell in cells_of(file).cells if cell.recipe]
    assert names == ["cosine", "cosine(final=0.1)", "wsd(decay=0.5,final=0.1)", "constant"]
    file["blocks"][0]["exclude"] = [{"schedule": "cosine(final=0.1)"}, {"schedule": "wsd"}]
    names = [cell.coordinates.schedule for cell in cells_of(file).cells if cell.recipe]
    assert names == ["cosine", "constant"]


def test_two_names_for_one_content_are_one_cell_and_told() -> None:
    file = base_file()
    file["models"]["m3"] = file["models"]["m1"]
    file["blocks"] = [block(model=["m1", "m3"], snapshots="1..3")]
    made = cells_of(file)
    assert len([cell for cell in made.cells if cell.recipe]) == 3
    training, base = map(str, made.warnings)
    assert training.endswith(
        "is the same training as m1 d1[100] full cosine/3 seed 0: its cells go under the earlier name"
    )
    assert "m3 (base): is the same training as m1 (base)" in base


def test_blocks_that_yield_nothing_are_refused() -> None:
    file = base_file()
    file["blocks"] = [block(exclude=[{"model": "m1"}])]
    with pytest.raises(InvalidInput, match="yield no cell"):
        cells_of(file)


def test_condition_leaves_out_the_seed_only() -> None:
    file = base_file()
    file["blocks"] = [block(override={"seed": [0, 1], "lr": [1e-5, 2e-5]})]
    made = [cell for cell in cells_of(file).cells if cell.recipe]
    assert len({cell.id for cell in made}) == 4
    assert len({cell.condition for cell in made}) == 2
    assert sorted({cell.coordinates.variant for cell in made}) == ["lr=1e-05", "lr=2e-05"]


def test_constant_schedule_shares_whatever_the_horizon() -> None:
    file = base_file()
    blocks = [
        block(schedule="constant", horizon=horizon, snapshots=[horizon], name=str(horizon)) for horizon in (2, 3, 5)
    ]
    file["blocks"] = blocks
    made = make_trajectories(cells_of(file).cells)
    assert [run.snapshots for run in made] == [(2, 3, 5)]


def test_decaying_schedule_shares_only_within_one_horizon() -> None:
    file = base_file()
    file["blocks"] = [block(horizon=3, snapshots=[1, 3]), block(name="B", horizon=5, snapshots=[5, 3])]
    made = make_trajectories(cells_of(file).cells)
    assert [(run.recipe.horizon, run.snapshots) for run in made] == [(3, (1, 3)), (5, (3, 5))]
    assert count_sharing(made).split_by_horizon == 2
    file["blocks"] = [block(schedule=["cosine", {"name": "cosine", "final": 0.1}])]
    assert count_sharing(make_trajectories(cells_of(file).cells)).split_by_horizon == 0


def test_run_trains_to_its_last_snapshot_not_to_the_horizon() -> None:
    file = base_file()
    file["blocks"] = [block(horizon=10, snapshots=[1, 4])]
    (run,) = make_trajectories(cells_of(file).cells)
    assert run.epochs == 4
    saved = count_sharing([run])
    assert (saved.cell_epochs, saved.run_epochs, saved.cell_samples, saved.run_samples) == (5, 4, 500, 400)


BIG = """
import re, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_cell import base_file, block, cells_of
from massive_sft.sweep.trajectory import make_trajectories
file = base_file()
file["models"] = {{f"m{{i}}": {{"hub": f"org/m{{i}}"}} for i in range(100)}}
file["blocks"] = [block(model="all", mixture="each", setting=["full", "lora"], override={{"seed": list(range(25))}},
                        horizon=10, snapshots="1..10")]
start = time.perf_counter()
cells = cells_of(file).cells
runs = make_trajectories(cells)
took = time.perf_counter() - start
# ru_maxrss would be that of the process that started this one, where it held more: it outlives exec.
(peak,) = re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(len(cells), len(runs), took, int(peak) // 1024)
"""


def test_hundred_thousand_cells_fit_in_a_gibibyte() -> None:
    code = BIG.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    cells, runs, _seconds, mebibytes = done.stdout.split()
    assert (int(cells), int(runs)) == (100_100, 10_000)
    assert int(mebibytes) < 1024
    print(done.stdout)  # noqa: T201 - the time is for the reader, not asserted
