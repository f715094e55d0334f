"""Check finds what a run would find, each with its place in the sweep file and a rule, all at once."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from evaluation_world import gemma2, llama
from real_tokenizers import real_tokenizer
from safetensors.torch import load_file
from small_sweep import small_sweep
from small_tokenizers import CHAT
from transformers import AutoTokenizer
from typer.testing import CliRunner

from massive_sft.cli.app import app
from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.fingerprint import FileHashes
from massive_sft.evaluation import build
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import Plan, make_plan
from massive_sft.running.check import check
from massive_sft.running.check.disk_space import disk_space_problems
from massive_sft.sweep.load import load_sweep
from massive_sft.sweep.task_content import TaskContent

pytestmark = pytest.mark.timeout(120)

RULES = """class Bad(Exception):
    pass


def text(doc):
    raise Bad("a rule of mine")


def judge(doc, results):
    raise Bad("no answer is good enough")
"""
TASK: dict[str, Any] = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "q.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{a}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}


class Function(str):
    """``!function module.name`` of a task file."""


class Dumper(yaml.SafeDumper):
    pass


Dumper.add_representer(Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))

# Changes of TASK and of its entry in the sweep file, and what check says of it.
BROKEN: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "gone": ({"dataset_kwargs": {"data_files": {"test": "gone.jsonl"}}}, {}, r"gone\.jsonl"),
    "empty": ({"dataset_kwargs": {"data_files": {"test": "empty.jsonl"}}}, {}, r"empty\.jsonl is empty"),
    "latin": (
        {"dataset_path": "csv", "dataset_kwargs": {"data_files": {"test": "latin.csv"}}},
        {},
        r"latin\.csv.*can't decode",
    ),
    "field": ({"doc_to_text": "{{question}}"}, {}, "'question' is undefined"),
    "target": ({"doc_to_target": "{{answer}}"}, {}, "'answer' is undefined"),
    "module": ({"doc_to_text": Function("nomodule.text")}, {}, "nomodule"),
    "raises": ({"doc_to_text": Function("rules.text")}, {}, "Bad: a rule of mine"),
    "judge": ({"process_results": Function("rules.judge")}, {}, "cannot be scored: document 0: Bad: no answer is good"),
    "metric": (
        {"metric_list": [{"metric": "exakt_match", "aggregation": "mean", "higher_is_better": True}]},
        {},
        r"exakt_match \(did you mean exact_match\?\)",
    ),
    "perplexity": (
        {"metric_list": [{"metric": "perplexity", "aggregation": "mean", "higher_is_better": False}]},
        {},
        r"b_perplexity\.yaml: b_perplexity: metric perplexity cannot be computed from output_type generate_until; "
        "valid: bleu, chrf, .*, exact_match, .*, or a function",
    ),
    "dropped": (
        {
            "output_type": "loglikelihood",
            "metric_list": [
                {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
            ],
        },
        {},
        "metric acc_norm cannot be computed from output_type loglikelihood; valid: acc, perplexity$",
    ),
    "combined": (
        {"metric_list": [{"metric": "bleu", "aggregation": "mean", "higher_is_better": True}]},
        {},
        "metric bleu cannot be combined by mean",
    ),
    "aggregation": (
        {"metric_list": [{"metric": "exact_match", "aggregation": "average", "higher_is_better": True}]},
        {},
        "metric exact_match has an aggregation that lm-eval does not know; valid: .*mean",
    ),
    "kind": ({"output_type": "generate_untill"}, {}, "generate_untill"),
    "samples": (
        {"generation_kwargs": {"until": ["\n"], "do_sample": True, "temperature": 0.7, "top_p": 0}},
        {},
        "top_p must be above 0, and 1 at most",
    ),
    "shots": ({}, {"shots": 9}, r"b_shots has 0 examples to show.*: shots must be 0 at most, got 9"),
    "several": (
        {"num_fewshot": [0, 5]},
        {},
        r"\[0, 5\], which must be one whole number: several are for shots in the sweep file",
    ),
    "word": ({"num_fewshot": "five"}, {"shots": 0}, r"has num_fewshot: 'five', which must be one whole number"),
    "half": ({"num_fewshot": 2.5}, {}, "has num_fewshot: 2.5, which must be one whole number"),
    "endless": ({"num_fewshot": float("inf")}, {}, "has num_fewshot: inf, which must be one whole number"),
    "include": ({"include": 5}, {}, "must be a YAML task file: TypeError"),
    "long": ({"generation_kwargs": {"until": ["\n"], "max_gen_toks": 4096, "do_sample": False}}, {}, "no room"),
    "unsafe": ({"unsafe_code": True}, {}, r"set evaluation\.allow_code_execution"),
}


def planned(folder: Path, **changes: Any) -> Plan:
    return make_plan(load_sweep(small_sweep(folder, **changes)))


def found(folder: Path, **changes: Any) -> list[str]:
    return [str(problem) for problem in check(planned(folder, **changes))]


def warned(plan: Plan) -> list[str]:
    """Return what check warns of in a plan that it finds ready."""
    cautions: list[Problem] = []
    assert check(plan, warn=cautions.append) == []
    return list(map(str, cautions))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("check")


def evaluation(*tasks: dict[str, Any], **protocol: Any) -> dict[str, Any]:
    return {"protocol": {"dtype": "fp32", **protocol}, "tasks": list(tasks)}


def write_task(folder: Path, name: str, changes: dict[str, Any]) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.dump({"task": name, **TASK, **changes}, Dumper=Dumper))
    return str(path)


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "q.jsonl").write_text('{"q": "a", "a": "b"}\n')
    (folder / "empty.jsonl").write_text("")
    (folder / "latin.csv").write_bytes("q,a\nnaïve,y\n".encode("latin-1"))
    (folder / "rules.py").write_text(RULES)
    return folder


def test_every_broken_benchmark_is_named_with_its_place_at_once(home: Path, task_folder: Path) -> None:
    entries = [
        {"path": write_task(task_folder, f"b_{name}", changes), **entry} for name, (changes, entry, _) in BROKEN.items()
    ]
    sound = {"path": write_task(task_folder, "sound", {})}
    problems = found(home, evaluation=evaluation(*entries, sound))
    for number, (name, (_, _, rule)) in enumerate(BROKEN.items()):
        place = rf"{home / 'sweep.yaml'}: evaluation.tasks\[{number}\](.path)?: "
        assert any(re.match(place, text) and re.search(rule, text) for text in problems), (name, problems)
    assert len(problems) == len(BROKEN), problems


@pytest.mark.parametrize("place", ["own", "included", "member", "member's"])
@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("metadata: {version: 2}\n", "a key is there a second time in one mapping"),
        ("repeats:\t1\n", "is not valid YAML"),
    ],
)
def test_task_file_of_which_lm_eval_reads_what_yaml_does_not_allow_is_refused(
    home: Path, tmp_path: Path, place: str, text: str, rule: str
) -> None:
    (tmp_path / "q.jsonl").write_text('{"q": "a", "a": "b"}\n')
    broken = Path(write_task(tmp_path, "leaf", {}))
    broken.write_text(broken.read_text() + text)
    (tmp_path / "own.yaml").write_text("include: leaf.yaml\ntask: own\n")
    (tmp_path / "group.yaml").write_text(f"group: g\ntask: [{'leaf' if place == 'member' else 'own'}]\n")
    file = {"own": "leaf.yaml", "included": "own.yaml"}.get(place, "group.yaml")
    (problem,) = found(home, evaluation=evaluation({"path": str(tmp_path / file)}))
    assert f"evaluation.tasks[0].path: {broken}:" in problem and rule in problem


def test_data_of_a_task_file_may_be_named_by_a_variable(
    home: Path, task_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, named = ({"dataset_kwargs": {"data_files": {"test": f"{place}q.jsonl"}}} for place in ("", "${QUESTIONS}/"))
    paths = [write_task(task_folder, "plain", plain), write_task(task_folder, "named", named)]
    monkeypatch.delenv("QUESTIONS", raising=False)
    (problem,) = found(home, evaluation=evaluation({"path": paths[1]}))
    assert "named.yaml needs the environment variable QUESTIONS, which is not set" in problem
    monkeypatch.setenv("QUESTIONS", str(task_folder))
    assert found(home, evaluation=evaluation(*({"path": path} for path in paths))) == []
    same = task_folder / "same.yaml"
    same.write_text(Path(paths[0]).read_text().replace("task: plain", "task: named"))
    assert TaskContent(FileHashes()).of(Path(paths[1])) == TaskContent(FileHashes()).of(same)


def test_more_gpus_and_workers_than_the_machine_has_are_said_by_check_or_that_the_named_cluster_is_not_there(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    workers = (os.cpu_count() or 1) + 1
    rules = [
        {"when": {"setting": "full"}, "gpus": "auto", "gpu": "H1"},
        {"when": {"setting": "lora"}, "workers": workers},
    ]
    small_sweep(home, resources=rules)
    done = CliRunner().invoke(app, ["check", str(home / "sweep.yaml"), "--json"])
    texts = [entry["text"] for entry in json.loads(done.stdout) if entry["level"] == "error"]
    assert isinstance(done.exception, InvalidInput) and len(texts) == 3
    told = "\n".join(texts)
    assert (
        "resources[0].gpus: asks for more GPUs than this machine's 0; check it where it will run, or name its" in told
    )
    assert f"resources[1].workers: asks for more workers than this machine's {workers - 1} CPUs" in told
    assert "resources[0].gpu: is a kind of GPU without a data sheet here, so auto cannot count for it" in told
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    *_, entry = json.loads(CliRunner().invoke(app, ["check", str(home / "sweep.yaml"), "--json"]).stdout)
    assert entry["text"].startswith("RAY_ADDRESS: names no cluster that answers")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"attention": "flex_attention"}, "[0].attention: needs a GPU; use auto, got 'flex_attention'"),
        ({"lora_at_once": 2}, "[0].lora_at_once: is for adapters, not for full tuning; give the rule when: {method"),
    ],
    ids=str,
)
def test_layout_that_cannot_be_had_is_told_by_plan(home: Path, rule: dict[str, Any], said: str) -> None:
    small_sweep(home, resources=[rule])
    done = CliRunner().invoke(app, ["plan", str(home / "sweep.yaml"), "--json"])
    (refused,) = json.loads(done.stdout)["refused"]
    assert f"sweep.yaml: resources{said}" in refused


def copied(home: Path, name: str, source: str = "tiny-llama") -> Path:
    """Copy a model of the world."""
    small_sweep(home)
    folder = home / name
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(home / "world" / "models" / source, folder))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def as_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def with_a_token_too_many(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token="<|eot|>")


def without_eos(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "eos_token"}))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


def quantised(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


@pytest.mark.parametrize(
    ("spoil", "place", "rule"),
    [
        (without_weights, "models.spoilt", "has no weights"),
        (as_pointer, "models.spoilt", "is a Git LFS pointer.*git lfs pull"),
        (cut, "models.spoilt", "bytes where its header says|cut short"),
        (with_a_token_too_many, "models.spoilt", "must know every token id of its tokenizer, below 259, got 259"),
        (without_eos, "models.spoilt", "without an end-of-sequence token"),
        (quantised, "models.spoilt", "quantised weights"),
    ],
)
def test_model_that_cannot_be_used_is_told_once_and_the_others_are_checked(
    home: Path, spoil: Callable[[Path], None], place: str, rule: str
) -> None:
    folder = copied(home, "spoilt")
    spoil(folder)
    models = {"spoilt": {"path": str(folder)}, "sound": {"path": str(home / "world" / "models" / "tiny-neox")}}
    problems = found(home, models=models, measures=["layer_change"])
    assert len(problems) == 1, problems
    assert problems[0].startswith(f"{home / 'sweep.yaml'}: {place}") and re.search(rule, problems[0]), problems


def test_weights_in_pytorch_s_own_format_are_ready_for_layer_change(home: Path) -> None:
    folder = copied(home, "bin")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert found(home, models={"bin": {"path": str(folder)}}, measures=["layer_change"]) == []


def test_adapter_targets_that_the_model_lacks_are_named_with_those_it_has(home: Path) -> None:
    lora = {"method": "lora", "lr": 5e-3, "lora": {"rank": 4, "targets": ["q_proj"]}}
    settings = {"defaults": {"max_length": 128, "precision": "fp32", "batch": 8}, "lora": lora}
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "lora", "schedule": "constant"}
    models = {"neox": {"path": str(home / "world" / "models" / "tiny-neox")}}
    small_sweep(home)
    (problem,) = found(home, models=models, settings=settings, blocks=[block | {"horizon": 1, "snapshots": [1]}])
    assert re.search(r"settings\.lora\.lora\.targets: must name linear modules.*neox, got 'q_proj'", problem)
    assert "query_key_value" in problem


def test_attention_that_cannot_compute_a_model_is_named_where_resources_ask_for_it(home: Path) -> None:
    folder = copied(home, "capped")
    gemma2().save_pretrained(folder)
    models = {"capped": {"path": str(folder)}}
    assert found(home, models=models) == []
    (problem,) = found(home, models=models, resources=[{"attention": "sdpa"}])
    assert "resources" in problem and "capped" in problem and "soft-caps" in problem


def test_protocol_that_asks_for_a_chat_template_that_a_model_lacks_is_named(home: Path) -> None:
    small_sweep(home)
    task = {"path": str(home / "world" / "tasks" / "facts_gen.yaml"), "limit": 2}
    (problem,) = found(home, evaluation=evaluation(task, template="chat"))
    assert re.search(r"evaluation\.protocol\.template: llama: .*chat template", problem)


def test_chat_template_that_raises_is_a_problem_of_the_benchmark(home: Path) -> None:
    folder = copied(home, "chatty")
    edit(folder / "tokenizer_config.json", chat_template="{{ raise_exception('no such turn') }}")
    task = {"path": str(home / "world" / "tasks" / "facts_gen.yaml"), "limit": 2}
    problems = found(home, models={"m": {"path": str(folder)}}, evaluation=evaluation(task, template="chat"))
    assert problems and all("evaluation" in text and "no such turn" in text for text in problems), problems


def test_root_that_cannot_be_written_hides_no_other_problem(home: Path, task_folder: Path) -> None:
    (home / "file").write_text("")
    broken = {"path": write_task(task_folder, "b_gone", BROKEN["gone"][0])}
    problems = found(home, storage={"root": str(home / "file" / "ledger")}, evaluation=evaluation(broken))
    assert len(problems) == 2, problems
    assert any("gone.jsonl" in text for text in problems)


def test_missing_data_of_one_mixture_hides_nothing_of_another(home: Path) -> None:
    small_sweep(home)
    short = home / "short.jsonl"
    short.write_text('{"instruction": "a", "input": ""}\n')
    datasets = {"gone": {"path": "gone.jsonl", "format": "alpaca"}, "short": {"path": str(short), "format": "alpaca"}}
    problems = found(home, datasets=datasets, mixtures={"one": {"each": ["gone", "short"]}})
    assert any("datasets.gone.path" in text for text in problems)
    assert any("datasets.short" in text for text in problems), problems
    assert not any("changed since" in text for text in problems)


def test_token_over_the_border_is_a_warning_with_its_template_model_sample_and_count(home: Path) -> None:
    folder = home / "merging"
    real_tokenizer("smollm2").save_pretrained(folder)
    llama(vocab_size=400).save_pretrained(folder)
    pairs = [("the Pa", "ris"), ("the", "a"), ("the Par", "is"), ("the Pa", "is")]
    (home / "joined.jsonl").write_text("".join(f'{{"question": "{q}", "answer": "{a}"}}\n' for q, a in pairs * 8))
    datasets = {"d": {"path": str(home / "joined.jsonl"), "format": "gsm8k"}}
    defaults = {"max_length": 128, "precision": "fp32", "batch": 4, "template": "plain"}
    changes = {"models": {"m": {"path": str(folder)}}, "datasets": datasets, "mixtures": {"one": {"each": "d"}}}
    settings = {"defaults": defaults, "full": {"method": "full", "lr": 1e-3}, "paper": {"method": "full", "lr": 1e-3}}
    settings["paper"]["template"] = "paper"
    settings["lora"] = {"method": "lora", "lr": 1e-3, "lora": {"rank": 4}}
    block = {"name": "A", "model": "all", "mixture": "one", "setting": list(settings)[1:], "schedule": "constant"}
    plan = planned(home, settings=settings, blocks=[block | {"horizon": 1, "snapshots": [1]}], **changes)
    place = r"sweep\.yaml: settings\.defaults\.template: lets the tokenizer of m make one token of a prompt's end"
    rule = r"in 16 of 32 samples of d \(row \d+: ' Paris'\); let the template end in a space or a new line, got 'plain'"
    for text in (warned(plan), warned(plan)):  # as it is built, and from the cache
        assert len(text) == 1 and re.search(place, text[0]) and re.search(rule, text[0])
    listed = json.loads(CliRunner().invoke(app, ["check", str(home / "sweep.yaml"), "--json"]).stdout)
    assert [(entry["level"], entry["text"]) for entry in listed] == [("warning", text[0])]
    shown = CliRunner().invoke(app, ["inspect", str(home / "sweep.yaml"), "--setting", "full"]).output
    assert "warning: " in shown and "16 of 32 samples of d" in shown
    assert (
        "warning: " not in CliRunner().invoke(app, ["inspect", str(home / "sweep.yaml"), "--setting", "paper"]).output
    )


def test_scored_question_in_a_prompt_is_a_warning(home: Path, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"q": name, "a": name}) + "\n" for name in "abcd"))
    (tmp_path / "shown.jsonl").write_text('{"q": "x", "a": "y"}\n')
    files = {"data_files": {"test": "q.jsonl", "shown": "shown.jsonl"}}
    own, other = write_task(tmp_path, "own", {}), {"dataset_kwargs": files, "fewshot_split": "shown"}
    asked = {"path": own, "shots": [0, 1]}, {"path": write_task(tmp_path, "other", other), "shots": 1}
    (text,) = warned(planned(home, evaluation=evaluation(*asked)))
    assert "evaluation.tasks[0]: own-1shot: 2 scored questions may stand in prompts of others, answered" in text


def test_question_of_which_no_choice_is_right_is_a_warning(home: Path, tmp_path: Path) -> None:
    """As where the right one is counted from 1; lm-eval counts every answer to such a question as wrong."""
    rows = [{"q": "x", "c": ["a", "b"], "r": right} for right in (0, 1, 2, None)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    choice = {"output_type": "multiple_choice", "doc_to_choice": "{{c}}", "doc_to_target": "{{r}}"}
    metrics = {"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}
    (text,) = warned(planned(home, evaluation=evaluation({"path": write_task(tmp_path, "own", choice | metrics)})))
    told = "evaluation.tasks[0]: own-0shot: no choice is right of 2 questions (own question 2, own question 3): every"
    assert told in text


def test_first_question_of_which_the_right_choice_is_beyond_the_last_is_told(home: Path, tmp_path: Path) -> None:
    rows = [{"q": "x", "c": ["a", "b"], "r": right} for right in (2, 1)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    choice = {"output_type": "multiple_choice", "doc_to_choice": "{{c}}", "doc_to_target": "{{r}}"}
    metrics = {"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}
    (problem,) = found(home, evaluation=evaluation({"path": write_task(tmp_path, "own", choice | metrics)}))
    rule = (
        "doc_to_target gives the first question a number that none of its choices has; they count from 0, got '{{r}}'"
    )
    assert f"own cannot be loaded: {rule}" in problem and "IndexError" not in problem


def test_line_of_a_task_file_with_a_tab_is_told(home: Path, tmp_path: Path) -> None:
    path = Path(write_task(tmp_path, "own", {}))
    path.write_text(path.read_text() + 'generation_kwargs:\n\tuntil: ["x"]\n')
    at = len(path.read_text().splitlines())
    (problem,) = found(home, evaluation=evaluation({"path": str(path)}))
    assert f"evaluation.tasks[0].path: {path}:{at}: " in problem


def test_question_without_a_label_costs_its_benchmark_alone(home: Path, tmp_path: Path) -> None:
    """lm-eval cannot score it, wherever it stands among others."""
    rows = [{"q": "x", "c": ["a", "b"], "r": right} for right in (0, 1, None)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    choice = {"output_type": "multiple_choice", "doc_to_choice": "{{c}}", "doc_to_target": "r"}
    metrics = {"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}
    asked = [
        {"path": write_task(tmp_path, name, own | metrics)}
        for name, own in (("own", choice), ("fine", choice | {"doc_to_target": 0}))
    ]
    (problem,) = found(home, evaluation=evaluation(*asked))
    assert "evaluation.tasks[0]: own cannot be scored: document 2: " in problem


def test_much_truncation_is_a_warning_before_anything_is_trained(home: Path) -> None:
    full = {"method": "full", "lr": 1e-3, "precision": "fp32", "batch": 8}
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "all", "schedule": "constant"}
    changes: dict[str, Any] = {"blocks": [block | {"setting": "full", "horizon": 1, "snapshots": [1]}]}
    (text,) = warned(planned(home, settings={"full": full | {"max_length": 64, "truncation": "left"}}, **changes))
    rule = r"settings\.full\.max_length: cuts text off \d+ of 24 samples of facts \(before its answer, and the end of .*, got 64"
    assert re.search(rule, text)
    (text,) = warned(planned(home, settings={"full": full | {"max_length": 64, "truncation": "drop"}}, **changes))
    assert re.search(r"max_length: leaves out \d+ of 24 samples of facts, .* raise it, got 64", text)
    assert warned(planned(home, settings={"full": full | {"max_length": 128}}, **changes)) == []


def chatting(home: Path, name: str, template: str, form: str = "chat") -> dict[str, Any]:
    """Return changes of the sweep: one model with a chat template, one full tuning with ``form``."""
    folder = copied(home, name)
    edit(folder / "tokenizer_config.json", chat_template=template)
    full = {"method": "full", "lr": 1e-3, "max_length": 256, "precision": "fp32", "batch": 32, "template": form}
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "full", "schedule": "constant"}
    return {
        "models": {"m": {"path": str(folder)}},
        "settings": {"full": full},
        "blocks": [block | {"horizon": 1, "snapshots": [1]}],
    }


@pytest.mark.parametrize(("form", "scored"), [("chat", "training"), ("paper", "chat"), ("paper", "training")])
def test_clock_of_a_chat_template_is_a_warning_once_where_the_template_is_used(
    home: Path, form: str, scored: str
) -> None:
    changes = chatting(home, "clock", "{{ strftime_now('%Y') }}" + CHAT, form)
    task = {"path": str(home / "world" / "tasks" / "facts_gen.yaml"), "limit": 2}
    said = warned(planned(home, evaluation=evaluation(task, template=scored), **changes))
    rule = (
        "has a chat template that reads the clock; in training and scoring it is told 26 July 2024, 00:00 on every day"
    )
    assert said == ([f"{home / 'sweep.yaml'}: models.m: {rule}"] if "chat" in (form, scored) else [])


def test_conversation_whose_earlier_answers_have_no_end_is_refused_unless_its_first_turn_is_taken(home: Path) -> None:
    last = "{% if loop.last and m['role'] == 'assistant' %}</s>{% endif %}"
    changes = chatting(home, "endless", CHAT.replace("</s>", last))
    talk = [{"role": role, "content": role[:1]} for role in ("user", "assistant") * 2]
    (home / "talks.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    changes["mixtures"] = {"one": {"each": "d"}}
    dataset = {"path": str(home / "talks.jsonl"), "format": "messages"}
    (problem,) = found(home, datasets={"d": dataset}, **changes)
    assert "talks.jsonl:1: trains answers whose end its chat template (settings: template) does not write" in problem
    assert found(home, datasets={"d": dataset | {"turns": "first"}}, **changes) == []


def test_benchmark_with_a_token_that_the_model_lacks_is_refused_and_every_other_is_not(home: Path) -> None:
    folder = copied(home, "small-vocabulary")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["qzx"])
    tokenizer.save_pretrained(folder)
    asked = {"question": ("a qzx?", "b"), "answer": ("a?", "qzx"), "sound": ("a?", "b")}
    entries = []
    for name, (question, answer) in asked.items():
        (home / f"{name}.jsonl").write_text(json.dumps({"q": question, "a": answer}) + "\n")
        files = {"dataset_kwargs": {"data_files": {"test": str(home / f"{name}.jsonl")}}}
        choices = {"output_type": "multiple_choice", "doc_to_choice": "{{[a, 'c']}}", "doc_to_target": 0}
        choices["metric_list"] = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
        entries.append({"path": write_task(home, f"v_{name}", files | choices)})
    generated = {"dataset_kwargs": {"data_files": {"test": str(home / "question.jsonl")}}}
    entries.append({"path": write_task(home, "v_generated", generated)})
    problems = found(home, models={"m": {"path": str(folder)}}, evaluation=evaluation(*entries))
    for number, text in zip((0, 1, 3), problems, strict=True):
        rule = "cannot be scored for m: the model must know every token id of its tokenizer, below 259, got 259"
        assert f"evaluation.tasks[{number}]: v_" in text and rule in text


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("free", [10**12, 1000])
def test_disk_too_small_for_a_snapshot_is_said_with_numbers(
    home: Path, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(home)
    Ledger.open(plan.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, free))
    problems = [str(problem) for problem in disk_space_problems(plan)]
    assert len(problems) == (free < 10**6)
    for text in problems:
        assert re.search(r"storage\.root: has 1 kB free, but a snapshot of llama full takes about [\d.]+ kB", text)


def test_what_check_built_is_not_built_again(home: Path) -> None:
    plan = planned(home)
    assert check(plan) == []
    before = build._build.cache_info().misses
    assert check(plan) == []
    assert build._build.cache_info().misses == before
    assert len(list((plan.root / "cache" / "requests").glob("*/manifest.json"))) >= 2
