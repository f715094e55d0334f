"""A sweep file is accepted whole or refused with every problem named."""

from __future__ import annotations

import copy
import datetime
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from massive_sft.core.errors import InvalidInput
from massive_sft.sweep.load import check_sweep, load_sweep
from massive_sft.sweep.schema import MixtureEntry, Setting, SweepFile
from massive_sft.sweep.schema.field_types import PATTERN_RULES
from massive_sft.sweep.yaml_file import merge_overlay, read_tagged, read_yaml

EXAMPLE = Path(__file__).parent / "data" / "example.yaml"
NAME = Path("sweeps/x.yaml")


@pytest.fixture
def raw() -> dict[str, Any]:
    return copy.deepcopy(read_yaml(EXAMPLE))


def put(raw: Any, place: str, value: Any) -> None:
    """Set ``value`` at a slash-separated place; a number is a list index."""
    *steps, last = [int(step) if step.isdigit() else step for step in place.split("|")]
    for step in steps:
        raw = raw[step] if isinstance(step, int) else raw.setdefault(step, {})
    raw[last] = value


def problems(raw: dict[str, Any]) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        check_sweep(raw, NAME)
    assert caught.value.exit_code == 2
    return [str(problem) for problem in caught.value.problems]


def test_example_file_is_accepted() -> None:
    sweep = load_sweep(EXAMPLE)
    assert [mixture.name for mixture in sweep.mixtures["w/o"]] == [
        f"w/o-{name}" for name in ("alpaca_cleaned", "lima", "magicoder", "flan_knowledge")
    ]
    assert sweep.mixtures["all"][0].size == 4000
    assert sweep.settings["lora"].lora.rank == 16
    assert [variant.setting.seed for variant in sweep.variants[3]] == [0, 1, 2, 0, 1, 2]


BAD = [
    ("typo", 1, "sweeps/x.yaml: unknown key, got 'typo'"),
    ("blocks[0]", [], "sweeps/x.yaml: unknown key, got 'blocks[0]' (did you mean 'blocks'?)"),
    ("models|my-base|int", 8, "sweeps/x.yaml: models.my-base: unknown key, got 'int'; valid: hub, path"),
    ("schema", 2, "schema: must be one of the valid values, got 2; valid: 1"),
    ("name", "a/b", "name: must be of the letters a to z and A to Z, digits"),
    ("models|my-base|hub", "a/b", "models.my-base: must have exactly one of: hub, path"),
    ("models|Gemma2-9B|gatd", True, "models.Gemma2-9B: unknown key, got 'gatd' (did you mean 'gated'?)"),
    ("model_sets|M3", ["Qwen"], "model_sets.M3: unknown model, got 'Qwen'"),
    ("model_sets|all", ["my-base"], "model_sets.all: is taken"),
    ("datasets|lima|format", "mesages", "datasets.lima.format: must be one of the valid values, got 'mesages' (did you mean 'messages'?)"),
    ("datasets|lima|limit", 0, "datasets.lima.limit: must be > 0, got 0"),
    ("datasets|magicoder|columns|completion", None, "datasets.magicoder.columns: must have prompt and completion"),
    ("mixtures|chatty|weights|lima", 0, "mixtures.chatty.weights.lima: must be > 0"),
    ("mixtures|chatty|weights|lima", -0.3, "mixtures.chatty.weights.lima: must be > 0"),
    ("mixtures|chatty|weights|limma", 0.1, "mixtures.chatty.weights: unknown dataset, got 'limma' (did you mean 'lima'?)"),
    ("mixtures|each-1k|concat", "all", "mixtures.each-1k: must have exactly one of"),
    ("mixtures|each-1k|samples", 1001, "mixtures.each-1k.each: takes 1001 samples of lima, whose limit is 1000"),
    ("mixtures|all|concat", "al", "mixtures.all.concat: unknown mixture, got 'al'"),
    ("mixtures|all|concat", ["each-1k", "each-20k"], "mixtures.all.concat: takes a dataset twice"),
    ("mixtures|all|concat", "all", "mixtures.all: refers to itself, got 'all -> all'"),
    ("mixtures|w/o|leave_one_out", "chaty", "mixtures.w/o.leave_one_out: unknown mixture, got 'chaty' (did you mean 'chatty'?)"),
    ("mixtures|w/o|leave_one_out", "each-1k", "must name one mixture of at least two datasets"),
    ("mixtures|chatty|samples", 1, "leaves no sample of lima"),
    ("settings|lora|lr", -1, "settings.lora.lr: must be >= 1e-30, got -1"),
    ("settings|lora|lora|rnk", 2, "settings.lora.lora: unknown key, got 'rnk' (did you mean 'rank'?)"),
    ("settings|defaults|precision", "fp16", "settings.defaults.precision: must be one of the valid values, got 'fp16'"),
    ("settings|defaults|optimizer|betas", [0.9, 1.2], "settings.defaults.optimizer.betas[1]: must be < 1.0, got 1.2"),
    ("settings|defaults|template", {"prompt": "no field"}, "settings.defaults.template"),
    ("blocks|2|snapshots", 12, "blocks[2].snapshots: 12 is beyond horizon 10"),
    ("blocks|2|snapshots", "3..1", "blocks[2].snapshots: must be an epoch, a list of epochs or a range"),
    ("blocks|2|snapshots", [0], "blocks[2].snapshots[0]: must be > 0, got 0"),
    ("blocks|2|schedule", "cosin", "blocks[2].schedule: must be one of the valid values, got 'cosin' (did you mean 'cosine'?)"),
    ("settings|full|optimizer", {"betas": [0.9]}, "settings.full.optimizer.betas[1]: is required"),
    ("settings|full|optimizer", [0.9], "settings.full.optimizer: must be a mapping (key: value), not a list"),
    ("blocks|2|horizon", [10], "blocks[2].horizon: must be a valid integer"),
    ("blocks|2|schedule", ["constant", {"name": "cosin"}], "blocks[2].schedule[1].name: must be one of the valid values, got 'cosin'"),
    ("blocks|0|model", "Qwen2.5-8B", "blocks[0].model: unknown model, got 'Qwen2.5-8B' (did you mean 'Qwen2.5-7B'?)"),
    ("blocks|0|mixture", "each", "blocks[0].mixture: unknown mixture, got 'each'"),
    ("blocks|0|mixture", "alpaca_cleaned", "blocks[0].mixture: is ambiguous, it comes in sizes 1000, 20000"),
    ("blocks|0|setting", "fully", "blocks[0].setting: unknown setting, got 'fully'"),
    ("blocks|0|exclude|0|modl", "x", "blocks[0].exclude[0]: unknown coordinate, got 'modl' (did you mean 'model'?)"),
    ("blocks|0|exclude|0|model", "x", "blocks[0].exclude[0].model: unknown model, got 'x'"),
    ("blocks|3|override|lrr", 3, "blocks[3].override: unknown setting field, got 'lrr' (did you mean 'lr'?)"),
    ("blocks|3|override|seed", [0, "a"], "blocks[3].override.seed[1]: must be a valid integer"),
    ("blocks|3|override|lora", {"rank": [1, -2]}, "blocks[3].override.lora.rank[1]: must be > 0, got -2"),
    ("blocks|3|name", "A", "blocks: two blocks have one name, got 'A'"),
    ("evaluation|tasks|0|shots", [0, -5], "evaluation.tasks[0].shots[1]: must be >= 0, got -5"),
    ("evaluation|protocol|engine", "hf", "evaluation.protocol.engine: must be one of the valid values, got 'hf'; valid: plain, trie, vllm"),
    ("evaluation|protocol|engine", "vllm", "evaluation: must have vllm, with its servers, where protocol.engine is vllm"),
    ("resources|0|zero", 4, "resources[0].zero: must be one of the valid values, got 4; valid: auto, 0, 1, 2, 3"),
    ("resources|0|when|setting", "fll", "resources[0].when.setting: unknown setting, got 'fll' (did you mean 'full'?)"),
    ("schema", "1", "schema: must be an integer, got '1'"),
    ("schema", True, "schema: must be an integer, got True"),
    ("models", {}, "models: must not be empty"),
    ("models|all", {"hub": "a/b"}, "models: is taken: it stands for all models"),
    ("models|my-base|revision", "v2", "models.my-base: revision goes with hub, not with path"),
    ("models|Gemma2-9B|gated", "yes", "models.Gemma2-9B.gated: must be a valid boolean, got 'yes'"),
    ("models|Gemma2-9B|hub", "", "models.Gemma2-9B.hub: must not be empty"),
    ("models", {datetime.date(2024, 1, 1): {"hub": "a/b"}}, "models: keys must be text (quote them), got '2024-01-01'"),
    ("datasets|p3|split", "test", "datasets.p3: split goes with hub, not with path"),
    ("datasets|p3|subset", "x", "datasets.p3: subset goes with hub, not with path"),
    ("datasets|p3|strip", [""], "datasets.p3.strip[0]: must not be empty"),
    ("datasets|p3|columns", {"prompt": True, "completion": 1}, "datasets.p3"),
    ("datasets|lima|files", ["a", "b", "a"], "datasets.lima.files: must name each once, but a is there twice"),
    ("datasets|lima|filter", {"c": {"a": "b"}}, "datasets.lima.filter: c must be text, a number"),
    ("datasets|lima|filter", {"not": "b"}, "datasets.lima.filter: not must map columns"),
    ("datasets|lima|filter", {"c": datetime.date(2024, 1, 1)}, "datasets.lima.filter: c must be text, a number"),
    ("datasets|lima|filter", {"c": float("nan")}, "datasets.lima.filter: c must be text, a number"),
    ("datasets|lima|filter", {0: "b"}, "datasets.lima.filter: keys must be text (quote them), got '0'"),
    ("mixtures|sample_seed", 10**30, "mixtures.sample_seed: must be < 4294967296"),
    ("mixtures|chatty|weights|lima", 1e308, "mixtures.chatty.weights.lima: must be <= 1000000000000.0, got 1e+308"),
    ("mixtures|chatty|samples", 10**400, "mixtures.chatty.samples: must be <= 1000000000000"),
    ("settings|full|seed", True, "settings.full.seed: must be a valid integer, got True"),
    ("settings|full|seed", -1, "settings.full.seed: must be >= 0, got -1"),
    ("settings|full|batch", "32", "settings.full.batch: must be a valid integer, got '32'"),
    ("settings|full|lr", "1e-5", "settings.full.lr: must be a valid number, got '1e-5'"),
    ("settings|full|lr", True, "settings.full.lr: must be a valid number, got True"),
    ("settings|full|lr", None, "settings.full.lr: must be a valid number, got None"),
    ("settings|lora|lora|targets", [], "settings.lora.lora.targets: must"),
    ("blocks|2|snapshots", "1..900000000", "blocks[2].snapshots: must end by epoch 10000"),
    ("blocks|2|snapshots", True, "blocks[2].snapshots: must be a valid integer, got True"),
    ("blocks|2|horizon", 10_001, "blocks[2].horizon: must be <= 10000"),
    ("blocks|2|exclude", [{"snapshot": [[1]]}], "blocks[2].exclude[0].snapshot[0]: must be a valid integer"),
    ("blocks|2|exclude", [{"snapshot": {"a": 1}}], "blocks[2].exclude[0].snapshot: must be a valid integer"),
    ("blocks|2|exclude", [{"snapshot": None}], "blocks[2].exclude[0].snapshot: must be a valid integer"),
    ("blocks|2|exclude", [{"model": [["a"]]}], "blocks[2].exclude[0].model[0]: must be a valid string"),
    ("blocks|2|exclude", [{"seed": "0"}], "blocks[2].exclude[0].seed: must be a valid integer, got '0'"),
    ("blocks|2|exclude", [{"lr": ["5e-4"]}], "blocks[2].exclude[0].lr: must be a valid number, got '5e-4'"),
    ("blocks|2|exclude", [{"lr": []}], "blocks[2].exclude[0].lr: must not be empty"),
    ("blocks|2|exclude", [{"schedule": "cosin"}], "blocks[2].exclude[0].schedule: unknown schedule, got 'cosin' (did you mean 'cosine'?)"),
    ("blocks|2|exclude", [{"method": "lorra"}], "blocks[2].exclude[0].method: must be one of the valid values, got 'lorra' (did you mean 'lora'?)"),
    ("blocks|3|override", {"lora": {"rank": 8}, "lora.rank": 4}, "blocks[3].override: a field is given twice, got 'lora.rank'"),
    ("evaluation|tasks|0|shots", [], "evaluation.tasks[0].shots: must not be empty"),
    ("evaluation|base", 1, "evaluation.base: must be a valid boolean, got 1"),
    ("resources|0|zero", True, "resources[0].zero: must be an integer or a text, got True"),
    ("resources|0|micro_batch", "4", "resources[0].micro_batch: must be one of the valid values, or a valid integer, got '4'; valid: auto"),
    ("storage|resume_every", -1, "storage.resume_every: must be one of the valid values, or >= 0.0, got -1; valid: auto"),
    ("settings|lora|lora|targets", [], "settings.lora.lora.targets: must be one of the valid values, or not be empty; valid: all-linear"),
    ("mixtures|every", {"weights": {}, "samples": 5}, "mixtures.every.weights: must not be empty"),
    ("blocks|0|mixture", "lma", "blocks[0].mixture: unknown mixture, got 'lma' (did you mean 'lima'?); valid: "),
    ("storage|root", "", "storage.root: must not be empty"),
    ("storage|max_waiting", "lots", "storage.max_waiting: must be a size such as 500GB, got 'lots'"),
    ("name", "a" * 201, "name: must have at most 200 characters"),
    ("models|" + "ü" * 101, {"hub": "a/b"}, "models: a name must have at most 200 characters (bytes of UTF-8), not 202"),
    ("blocks|0|name", "a\nb", "blocks[0].name: must be one line of characters"),
    ("settings| ", {"method": "full"}, "settings: a name must not be empty, got ' '"),
    ("datasets|p3|path", "a\0b", "datasets.p3.path: holds a NUL character"),
    ("settings|full|template", {"prompt": "\ud800{prompt}"}, "settings.full.template.prompt: holds half of a character"),
    ("datasets|\ud800", {"path": "x"}, "datasets: holds half of a character"),
    ("settings|lora|lr", 1e300, "settings.lora.lr: must be <= 1000.0, got 1e+300"),
    ("settings|lora|lr", 1e-300, "settings.lora.lr: must be >= 1e-30, got 1e-300"),
    ("settings|full|optimizer", {"eps": 1e-50}, "settings.full.optimizer.eps: must be >= 1e-30"),
    ("settings|lora|lora|rank", 10**9, "settings.lora.lora.rank: must be <= 65536"),
    ("settings|full|lora", {"rank": 8}, "settings.full.lora.rank: has no effect in a setting of method full; leave it out"),
    ("blocks|2|schedule", {"name": "constant", "final": 0.1}, "blocks[2].schedule.final: has no effect in a constant schedule"),
    ("blocks|1|schedule", [{"name": "cosine", "decay": 0.2}], "blocks[1].schedule[0].decay: has no effect in a cosine schedule"),
    ("blocks|2|override", {"lora": {"rank": [4, 8]}}, "blocks[2].override.lora.rank: has no effect in any setting of the block"),
    ("blocks|2|schedule", ["constant", "constant"], "blocks[2].schedule: must name each once, but constant is there twice"),
    ("blocks|2|snapshots", [3, 3], "blocks[2].snapshots: must name each once, but 3 is there twice"),
    ("blocks|0|setting", ["full", "full"], "blocks[0].setting: must name each once, but full is there twice"),
    ("blocks|3|override|seed", [0, 1, 0], "blocks[3].override.seed: must hold each value once, but one is there twice, got '0'"),
    ("mixtures|each-1k|each", ["lima", "lima"], "mixtures.each-1k.each: must name each once, but lima is there twice"),
    ("mixtures|all|max_repeats", 2, "mixtures.all: max_repeats goes with samples"),
    ("mixtures|every", {"each": ["lima"], "max_repeats": 2}, "mixtures.every: max_repeats goes with samples"),
    ("datasets|p3|turns", "all", "datasets.p3.turns: has no effect in a dataset without messages"),
    ("models|my-base|gated", True, "models.my-base.gated: has no effect in a model at a path"),
    ("models|other", {"hub": "../../etc"}, "models.other.hub: must be an id of the hub"),
    ("models|other", {"hub": "a/b", "revision": "../x"}, "models.other.revision: must be a branch, a tag or a commit"),
    ("datasets|lima|files", ["a", "../b"], "datasets.lima.files[1]: must lie within the folder"),
    ("datasets|lima|files", ["/etc/passwd"], "datasets.lima.files[0]: must lie within the folder"),
    ("settings|full|template", {"prompt": "{prompt}}"}, "settings.full.template: must contain {prompt} exactly once and no other brace"),
    ("evaluation|tasks|0|shots", [5, 5], "evaluation.tasks[0].shots: must name each once"),
    ("models|other", {"hub": "qwen/qwen2.5-7b"}, "models.other.hub: is Qwen/Qwen2.5-7B in other letters"),
    ("resources|0|workers", 1, "resources[0]: each worker trains on one GPU: with gpus 8 leave workers out"),
    ("resources|0|gpus", 10**9, "resources[0].gpus: must be one of the valid values, or <= 100000, got 1000000000; valid: auto"),
    ("resources|2|zero", 1, "resources[2].zero: has no effect in a rule of phase evaluate"),
    ("resources|0", {"when": {"phase": "train"}, "replicas": 2}, "resources[0].replicas: has no effect in a rule of phase train"),
    ("resources|0", {"gpu": "H100"}, "resources[0].gpu: names a kind of GPU, but gpus is 0"),
    ("evaluation|suites", ["paper_zero_shot", "paper_zero_shot"], "evaluation.suites: must name each once"),
    ("evaluation|tasks|1", {"name": "mmlu", "shots": [0, 5]}, "evaluation.tasks[1]: is there twice, got 'mmlu'"),
    ("measures", ["perplexity", "perplexity"], "measures: must name each once, but perplexity is there twice"),
    ("measures", ["perplexty"], "must be one of the valid values, or a mapping (key: value), got 'perplexty' (did you mean"),
    ("measures", [{"texts": "a/b.jsonl"}, {"texts": "b.txt"}], "measures: two sets of texts are named b: give one"),
    ("evaluation|tasks", ["gsm8k"], "evaluation.tasks[0]: must be a mapping (key: value), got 'gsm8k' (did you mean {name: gsm8k}?)"),
    ("evaluation|tasks", ["tasks/own.yaml"], "(did you mean {path: tasks/own.yaml}?)"),
    ("evaluation|tasks", "gsm8k", "evaluation.tasks: must be a list, got 'gsm8k' (did you mean [{name: gsm8k}]?)"),
    ("evaluation|tasks", {"name": "gsm8k"}, "evaluation.tasks: must be a list, not a mapping (each entry begins with -)"),
    ("evaluation|suites", "paper_zero_shot", "evaluation.suites: must be a list, got 'paper_zero_shot' (did you mean [paper_zero_shot]?)"),
    ("measures", "perplexity", "measures: must be a list, got 'perplexity' (did you mean [perplexity]?)"),
    ("models|my-base", "../base", "models.my-base: must be a mapping (key: value), got '../base' (did you mean {path: ../base}?)"),
    ("models|my-base", "a/b", "(did you mean {hub: a/b}?)"),
    ("models", ["a/b"], "models: must be a mapping (key: value), not a list"),
    ("datasets|lima", "lima.jsonl", "(did you mean {path: lima.jsonl, format: alpaca}?)"),
    ("mixtures|all", ["lima", "p3"], "mixtures.all: must be a mapping (key: value), not a list (did you mean {each: [lima, p3]}?)"),
    ("mixtures|all", {"lima": 0.5}, "mixtures.all: unknown key, got 'lima' (shares of datasets stand under weights); valid: "),
    ("mixtures|all|concat", ["lima"], "unknown mixture, got 'lima' (is a dataset: {each: [lima]} makes a mixture of it); valid: "),
    ("settings|full|learning_rate", 1e-5, "settings.full: unknown key, got 'learning_rate' (did you mean 'lr'?); valid: "),
    ("settings|full|epochs", 3, "got 'epochs' (a block says it: horizon and snapshots); valid: "),
    ("settings|full|lr", [1e-5, 2e-5], "settings.full.lr: must be a valid number (a block takes several: override: {lr: [1e-05, 2e-05]})"),
    ("settings|lora|method", "LoRA", "settings.lora.method: must be one of the valid values, got 'LoRA' (did you mean 'lora'?)"),
    ("settings|defaults|optimizer|betas", [0.9, 0.9, 0.9], "optimizer.betas: must have at most 2 entries, not 3"),
    ("storage", "runs", "storage: must be a mapping (key: value), got 'runs' (did you mean {root: runs}?)"),
    ("measures", [{"texts": "a b.jsonl"}], "needs a name of letters, digits, dots, - and _"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value", "message"), BAD, ids=[f"{place}={value}" for place, value, _ in BAD])
def test_bad_value_is_refused_with_its_place(raw: dict[str, Any], place: str, value: Any, message: str) -> None:
    put(raw, place, value)
    found = problems(raw)
    assert any(message in problem for problem in found), found
    assert all(problem.startswith("sweeps/x.yaml: ") for problem in found)


@pytest.mark.parametrize(
    ("place", "value", "hint"),
    [
        ("mixtures|chatty", ["lima", "p3"], "{each: [lima, p3]}"),
        ("mixtures|chatty", [{"each": "lima"}], None),
        ("settings|lora|lora", 8, "{rank: 8}"),
        ("settings|lora|lora", "8", None),
        ("budget", 600.5, "{gpu_hours: 600.5}"),
        ("models|my-base", ["a/b", "c/d"], None),
        ("models|my-base", 7, None),
        ("datasets|lima", [{"path": "a.jsonl"}], None),
        ("settings|lora|optimizer|betas", "0.9", None),
        ("blocks|0|exclude", "lima", None),
        ("evaluation|tasks", 7, None),
        ("storage", ["runs"], None),
        ("tracking", True, None),
    ],
)
def test_only_what_would_be_accepted_is_hinted_at(
    raw: dict[str, Any], place: str, value: Any, hint: str | None
) -> None:
    put(raw, place, value)
    (found,) = problems(raw)
    assert found.endswith(f" (did you mean {hint}?)") if hint else "did you mean" not in found
    if hint is not None:
        put(raw, place, YAML(typ="safe").load(hint))
        check_sweep(raw, NAME)


def test_key_in_place_of_its_variable_is_not_repeated(raw: dict[str, Any]) -> None:
    judge = {"name": "judge", "endpoint": "http://a", "key": "sk-abcdef"}
    rated = {"kind": "mt_bench", "questions": "q.jsonl"}
    put(raw, "evaluation|judging", {"judges": [judge], "benchmarks": [rated]})
    (problem,) = problems(raw)
    assert problem.endswith("evaluation.judging.judges[0].key: must be the name of an environment variable")


def test_every_pattern_of_the_schema_has_a_rule_for_people() -> None:
    def patterns(schema: Any) -> set[str]:
        parts = list(schema.values()) if isinstance(schema, dict) else schema if isinstance(schema, list) else []
        own = schema.get("pattern") if isinstance(schema, dict) else None
        return {own for own in [own] if isinstance(own, str)}.union(*map(patterns, parts))

    found = patterns([SweepFile.model_json_schema(), Setting.model_json_schema(), MixtureEntry.model_json_schema()])
    assert found == PATTERN_RULES.keys()


def test_problems_of_all_sections_are_reported_at_once(raw: dict[str, Any]) -> None:
    put(raw, "models|my-base|hub", "a/b")
    put(raw, "blocks|1|schedule", "cosin")
    put(raw, "blocks|2|snapshots", 12)
    put(raw, "settings|lora|lr", -1)
    found = "\n".join(problems(raw))
    for place in ("models.my-base", "blocks[1].schedule", "blocks[2].snapshots", "settings.lora.lr"):
        assert f"sweeps/x.yaml: {place}: " in found


def test_names_in_a_block_are_looked_up_beside_its_other_mistakes(raw: dict[str, Any]) -> None:
    put(raw, "blocks|2|epochs", [1, 2])
    put(raw, "blocks|2|model", ["Qwen2.5-8B", 7])
    put(raw, "blocks|2|setting", "fully")
    found = "\n".join(problems(raw))
    for told in (
        "]: unknown key, got 'epochs'",
        "].model: unknown model, got 'Qwen2.5-8B'",
        "].setting: unknown setting",
    ):
        assert f"sweeps/x.yaml: blocks[2{told}" in found


def test_names_and_fields_are_looked_up_beside_misspelt_keys(raw: dict[str, Any]) -> None:
    put(raw, "mixtures|chatty", {"weights": {"lima": 1, "limma": 2}, "sample": 24})
    put(raw, "mixtures|all", {"concat": "each1k", "sample": 24})
    raw["blocks"][3] |= {
        "schedul": "cosin",
        "override": {"seeds": [0, 1], "lr": [1e-5, -1]},
        "exclude": ["lima", {"modl": "x"}],
    }
    found = problems(raw)
    for told in (
        "mixtures.chatty: unknown key, got 'sample'",
        "mixtures.chatty.weights: unknown dataset, got 'limma'",
        "mixtures.all: unknown key, got 'sample'",
        "mixtures.all.concat: unknown mixture, got 'each1k'",
        "blocks[3]: unknown key, got 'schedul'",
        "blocks[3].override: unknown setting field, got 'seeds'",
        "blocks[3].override.lr[1]: must be >= 1e-30, got -1",
        "blocks[3].exclude[0]: must be a mapping",
        "blocks[3].exclude[1]: unknown coordinate, got 'modl'",
    ):
        assert [problem for problem in found if problem.startswith(f"sweeps/x.yaml: {told}")], (told, found)
    assert len(found) == 9, found


def test_broken_entry_is_not_called_unknown_elsewhere(raw: dict[str, Any]) -> None:
    put(raw, "datasets|lima|format", "mesages")
    put(raw, "models|my-base|hub", "a/b")
    found = problems(raw)
    assert len(found) == 2, found


def test_broken_entries_are_among_the_valid_names(raw: dict[str, Any]) -> None:
    put(raw, "datasets|lima|format", "mesages")
    put(raw, "mixtures|each-1k|samples", 0)
    put(raw, "mixtures|chatty|weights", {"limma": 1.0})
    put(raw, "mixtures|all|concat", "each1k")
    put(raw, "blocks|0|mixture", "each_1k")
    found = "\n".join(problems(raw))
    assert "mixtures.chatty.weights: unknown dataset, got 'limma' (did you mean 'lima'?)" in found
    assert "mixtures.all.concat: unknown mixture, got 'each1k' (did you mean 'each-1k'?)" in found
    assert "blocks[0].mixture: unknown mixture, got 'each_1k' (did you mean 'each-1k'?)" in found


def test_mistake_in_the_defaults_is_reported_once(raw: dict[str, Any]) -> None:
    put(raw, "settings|defaults|precision", "fp16")
    put(raw, "settings|defaults|max_lenght", 8)
    value, typo = problems(raw)
    assert typo.startswith(
        "sweeps/x.yaml: settings.defaults: unknown key, got 'max_lenght' (did you mean 'max_length'?)"
    )
    assert value.startswith("sweeps/x.yaml: settings.defaults.precision: ")


def test_template_of_ones_own_is_judged_as_one(raw: dict[str, Any]) -> None:
    put(raw, "settings|full|template", {"prompt": "{prompt}", "systm": "x", "promt": "y"})
    with pytest.raises(InvalidInput) as caught:
        check_sweep(raw, NAME)
    first, second = caught.value.lines()  # what is valid is listed once
    assert first == "sweeps/x.yaml: settings.full.template: unknown key, got 'systm'; valid: prompt"
    assert second == "sweeps/x.yaml: settings.full.template: unknown key, got 'promt' (did you mean 'prompt'?)"
    put(raw, "settings|full|template", {"prompt": "{prompt}", "system": "x"})
    assert problems(raw) == ["sweeps/x.yaml: settings.full.template: unknown key, got 'system'; valid: prompt"]
    put(raw, "settings|full|template", {})
    assert problems(raw) == ["sweeps/x.yaml: settings.full.template.prompt: is required"]


def test_missing_required_key_is_named(raw: dict[str, Any]) -> None:
    del raw["settings"]["full"]["lr"], raw["storage"]["root"]
    found = problems(raw)
    assert "sweeps/x.yaml: settings.full.lr: is required" in found
    assert "sweeps/x.yaml: storage.root: is required" in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "x.yaml:1: is not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3: a key is there a second time in one mapping, got 'a'"),
        ("- a\n", "x.yaml: must be a mapping"),
        ("", "x.yaml: must be a mapping"),
    ],
)
def test_broken_yaml_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=r".*") as caught:
        load_sweep(path)
    assert message in str(caught.value)


def test_file_that_is_not_there_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").touch()
    with pytest.raises(InvalidInput, match=r"stdy.yaml: there is no such file \(did you mean study.yaml\?\)$"):
        read_yaml(tmp_path / "stdy.yaml")
    with pytest.raises(InvalidInput, match=r"there is no such file$"):
        read_yaml(tmp_path / "nowhere" / "other.yaml")


def test_overlay_merges_mappings_replaces_lists_and_removes_nulls(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("settings: {full: {lr: 3e-5}}\nblocks: [{name: X, model: all, mixture: all, setting: full, "
                       "schedule: constant, horizon: 2, snapshots: 1..2}]\nbudget: null\n")  # fmt: skip
    sweep = load_sweep(EXAMPLE, [overlay])
    assert sweep.settings["full"].lr == 3e-5
    assert [block.name for block in sweep.file.blocks] == ["X"]
    assert sweep.file.budget.gpu_hours is None


OVERLAID = [
    ("setings: {}", "more.yaml: unknown key, got 'setings'"),
    ("settings: {lora: {rank: 8}}", "more.yaml: settings.lora: unknown key, got 'rank'"),
    ("settings: {lora: {lr: high}}", "more.yaml: settings.lora.lr: "),
    ("evaluation: {tasks: [{nam: gsm8k}]}", "more.yaml: evaluation.tasks[0]: unknown key, got 'nam'"),
    ('models: {"x.y": {hub: a/b, pth: c}}', 'more.yaml: models."x.y": unknown key'),
]


@pytest.mark.parametrize(("text", "told"), OVERLAID)
def test_problem_names_the_overlay_that_has_it(tmp_path: Path, text: str, told: str) -> None:
    overlays = [tmp_path / "more.yaml", tmp_path / "last.yaml"]
    for path, content in zip(overlays, (text, "name: other"), strict=True):
        path.write_text(content)
    with pytest.raises(InvalidInput) as caught:
        load_sweep(EXAMPLE, overlays)
    assert any(str(problem).startswith(f"{tmp_path}/{told}") for problem in caught.value.problems)


def test_place_is_in_the_file_that_writes_it(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("settings: {lora: {lr: 1.0e-3}}\nmeasures: [perplexity]")
    sweep = load_sweep(EXAMPLE, [tmp_path / "more.yaml"])
    of_overlay = ("settings.lora.lr", "measures[0]", "settings.lora")
    assert [sweep.place(place) for place in of_overlay] == [f"{tmp_path}/more.yaml: {place}" for place in of_overlay]
    assert sweep.place("settings.lora.batch") == f"{EXAMPLE}: settings.lora.batch"
    assert sweep.place("settings.lora.lr_end") == f"{EXAMPLE}: settings.lora.lr_end"


def test_overlay_removes_what_the_file_lacks_as_well() -> None:
    assert merge_overlay({}, {"budget": {"gpu_hours": None}}) == {"budget": {}}


def test_broken_only_block_says_what_is_broken_and_nothing_else(raw: dict[str, Any]) -> None:
    put(raw, "blocks", [raw["blocks"][0] | {"horizon": 0}])
    put(raw, "settings|full|lr", -1)
    assert problems(raw) == [
        "sweeps/x.yaml: blocks[0].horizon: must be > 0, got 0",
        "sweeps/x.yaml: settings.full.lr: must be >= 1e-30, got -1",
    ]


@pytest.mark.parametrize("section", ["models", "datasets", "mixtures", "settings", "blocks"])
def test_broken_section_does_not_make_its_names_unknown(raw: dict[str, Any], section: str) -> None:
    put(raw, section, "text")
    found = problems(raw)
    assert len(found) == 1 and f"{section}: must be a" in found[0], found
    del raw[section]
    rule = "must not be empty" if section == "blocks" else "is required"  # a sweep may have searches alone
    assert problems(raw) == [f"sweeps/x.yaml: {section}: {rule}"]


def test_file_without_schema_is_told_to_be_an_overlay(raw: dict[str, Any]) -> None:
    del raw["schema"]
    rule = "is required; a file that only changes another one goes with it, as --overlay"
    assert problems(raw) == [f"sweeps/x.yaml: schema: {rule}"]


def test_clip_of_a_setting_may_be_none_over_defaults(raw: dict[str, Any]) -> None:
    for spelling in (None, "none"):
        put(raw, "settings|full|optimizer", {"clip": spelling})
        put(raw, "settings|defaults|optimizer|clip", 0.5)
        settings = check_sweep(raw, NAME).settings
        assert (settings["full"].optimizer.clip, settings["lora"].optimizer.clip) == (None, 0.5)


def test_override_of_lora_leaves_full_tuning_one_variant(raw: dict[str, Any]) -> None:
    put(raw, "blocks|3|override", {"lora": {"rank": [4, 8]}, "optimizer.clip": ["none"], "lr": [1]})
    labels = [(variant.name, variant.label) for variant in check_sweep(raw, NAME).variants[3]]
    assert labels == [
        ("full", "lr=1.0,optimizer.clip=none"),
        ("lora", "lora.rank=4,lr=1.0,optimizer.clip=none"),
        ("lora", "lora.rank=8,lr=1.0,optimizer.clip=none"),
    ]


def test_what_some_cells_use_is_accepted(raw: dict[str, Any]) -> None:
    """An axis over both methods, and a field that only an override puts to use."""
    put(raw, "settings|full|lora", {"rank": 8})
    put(raw, "blocks|3|override", {"lora.alpha": [8, 16]})
    for index in range(4):
        put(raw, f"blocks|{index}|override", {"method": ["full", "lora"], "lora.dropout": 0.1})
    put(raw, "settings|defaults|lora", {"targets": ["q_proj"]})
    assert {variant.setting.lora.rank for variant in check_sweep(raw, NAME).variants[0] if variant.name == "full"} == {
        8
    }


def test_too_many_cells_are_counted_and_refused_at_once(raw: dict[str, Any]) -> None:
    block = {"name": "X", "model": "my-base", "mixture": "all", "setting": "full", "schedule": "constant"}
    axes = {"seed": list(range(500)), "lr": [1e-6 * lr for lr in range(1, 101)], "warmup_steps": list(range(1000))}
    raw["blocks"] = [block | {"horizon": 10_000, "snapshots": "1..10000", "override": axes}]
    assert problems(raw) == [
        "sweeps/x.yaml: blocks: cross to 500,000,000,000 cells before excludes (X 500,000,000,000), "
        "more than 200,000; split the sweep"
    ]
    raw["blocks"] = [block | {"horizon": 10, "snapshots": "1..10", "override": {"lora.rank": list(range(1, 30_000))}}]
    assert problems(raw) == [
        "sweeps/x.yaml: blocks[0].override.lora.rank: has no effect in any setting of the block; leave it out"
    ], "full tuning has no rank: it is one variant, not 29,999"


@pytest.mark.parametrize(
    "text", ["a: 2024-13-45\n", f"a: {'9' * 5000}\n", "a: &a [*a]\nb: {c: 1}\n", "a: " + "[" * 3000]
)
def test_strange_yaml_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InvalidInput):
        load_sweep(tmp_path / "x.yaml")


@pytest.mark.timeout(20)
def test_anchors_that_multiply_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (tmp_path / "x.yaml").write_text("\n".join(lines))
    with pytest.raises(InvalidInput, match="values once its anchors are replaced"):
        load_sweep(tmp_path / "x.yaml")


def test_merge_leaves_its_arguments_alone() -> None:
    below = {"a": {"b": 1}}
    assert merge_overlay(below, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    assert below == {"a": {"b": 1}}


def test_file_that_is_read_again_is_not_what_a_reader_changed(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: {b: [1]}\n")
    for read in (read_yaml, read_tagged):
        read(path)["a"]["b"].append(2)
        assert read(path) == {"a": {"b": [1]}}
    path.write_text("a: {b: [3]}\n")
    assert read_yaml(path) == read_tagged(path) == {"a": {"b": [3]}}
