"""Every family of models: trained, scored, measured, exported and loaded again, or refused with the reason."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import evaluation_world as world
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from small_models import SIZES, small_config
from tiny_training import make_samples, make_spec, train
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3Config,
    MixtralConfig,
    PreTrainedConfig,
)
from transformers.pytorch_utils import Conv1D

from massive_sft.core.errors import InvalidInput
from massive_sft.evaluation.requests import Generation, Likelihood
from massive_sft.evaluation.scorer import PlainScorer
from massive_sft.measures import layer_change
from massive_sft.measures.perplexity import perplexity
from massive_sft.models import pretrained
from massive_sft.models.attention import attention_of, meta_model
from massive_sft.models.configuration import load_config, positions_of
from massive_sft.models.device import device_of
from massive_sft.models.snapshots import load_for_scoring
from massive_sft.models.tokenizer import load_tokenizer, token_problems
from massive_sft.sweep.schema import Lora, Model, Setting
from massive_sft.training.lora import add_adapter, target_problems

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": True},
    "gemma2": {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 16},
    "gemma3": {"query_pre_attn_scalar": 16},
    "mistral": {},
    "olmo2": {},
    "neox": {},
    "phi": {},
    "gpt2": {},
    "bloom": {},
    "granite": {"logits_scaling": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
}


def family_config(family: str, **changes: Any) -> PreTrainedConfig:
    """Return a configuration for the tests' tokenizer, with weights large enough that picks vary."""
    ids = {"bos_token_id": 0, "eos_token_id": 1} | ({} if family in ("gpt2", "bloom") else {"pad_token_id": 2})
    return small_config(family, 267, **{"initializer_range": 0.2, **ids, **FAMILIES[family], **changes})


ATTENTION = {"gemma2": "eager", "bloom": "eager"}  # on a CPU; sdpa for the others
TOKENS = torch.arange(3, 33).unsqueeze(0)  # longer than the sliding windows


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param) / request.param
    AutoModelForCausalLM.from_config(family_config(request.param)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["full", "lora"])
def test_family_from_training_to_the_exported_model(base: Path, tmp_path: Path, method: str) -> None:
    samples, model = make_samples(4), Model(path=str(base))
    spec = make_spec(base, method=method, lr=1e-2, lora={"rank": 2, "alpha": 8}, layout={"zero": 1})
    summary, _ = train(spec, samples, tmp_path)
    assert summary.attention == ATTENTION.get(base.name, "sdpa")
    snapshot = summary.snapshots[1]

    start, tuned = load_for_scoring(model, None, "fp32"), load_for_scoring(model, snapshot, "fp32")
    logits = tuned(input_ids=TOKENS).logits
    assert (logits - start(input_ids=TOKENS).logits).abs().max() > 1e-3

    if method == "full":
        whole = AutoModelForCausalLM.from_pretrained(snapshot, attn_implementation="eager").eval()
    else:
        eager = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
        whole = PeftModel.from_pretrained(eager, str(snapshot)).eval()
        merged = load_for_scoring(model, snapshot, "fp32", adapters="merged")
        merged.save_pretrained(tmp_path / "merged")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager").eval()
        assert torch.allclose(again(input_ids=TOKENS).logits, logits, atol=2e-4)
    assert torch.allclose(whole(input_ids=TOKENS).logits, logits, atol=2e-4)

    asked = [Likelihood(0, 0, 0, "", 1, "red", " blue"), Generation(1, 1, 0, "", 1, "seven", (), 6)]
    answers, _ = PlainScorer(tuned, world.tokenizer()).score(asked)
    assert answers[0].logprob < 0 and answers[1].tokens
    assert perplexity(start, samples, np.zeros(267, dtype=bool)).summary()["all"]["perplexity_micro"] > 1

    rows = layer_change.layer_change(model, snapshot).to_pylist()
    weights = {id(weight): weight.numel() for weight in start.parameters()}
    assert sum(row["numel"] for row in rows) == sum(weights.values())
    moved = {row["tensor"] for row in rows if row["delta_norm"]}
    assert moved == {row["tensor"] for row in rows if row["method"] == method} and moved


def test_output_layer_as_a_target_is_taken_where_it_has_its_own_weight(base: Path, tmp_path: Path) -> None:
    """An adapter on a tied one would move the embeddings when it is merged."""
    made: Any = meta_model(Model(path=str(base)))
    (head,) = [name for name, module in made.named_modules() if module is made.get_output_embeddings()]
    lora = {"rank": 2, "alpha": 8, "targets": [head]}
    problems = target_problems(made, Lora(**lora))
    assert bool(problems) == bool(made.config.tie_word_embeddings)
    if problems:
        assert "tied" in problems[0].rule
        return
    spec = make_spec(base, method="lora", lr=1e-2, lora=lora, layout={"zero": 1})
    snapshot = train(spec, make_samples(4), tmp_path)[0].snapshots[1]
    unmerged, merged = (load_for_scoring(spec.model, snapshot, "fp32", how) for how in ("unmerged", "merged"))
    assert torch.allclose(merged(input_ids=TOKENS).logits, unmerged(input_ids=TOKENS).logits, atol=2e-4)
    rows = layer_change.layer_change(spec.model, snapshot).to_pylist()
    assert [row["tensor"] for row in rows if row["delta_norm"]] == [f"{head}.weight"]


def save(config: Any, folder: Path) -> Model:
    config.save_pretrained(folder)
    return Model(path=str(folder))


def targets(folder: Path, *names: str, family: str = "gpt2") -> list[str]:
    made = meta_model(save(family_config(family), folder))
    return [str(problem) for problem in target_problems(made, Lora(targets=names))]


def test_lora_targets_are_what_peft_takes(tmp_path: Path) -> None:
    assert targets(tmp_path / "a", "c_attn", "c_proj", "mlp.c_fc") == []
    found = targets(tmp_path / "b", "c_atn", "wte", "ln_1", "foo.c_attn")
    assert len(found) == 4
    assert "got 'c_atn' (did you mean 'c_attn'?); valid: c_attn, c_fc, c_proj" in found[0]
    assert targets(tmp_path / "c", "layers.0.self_attn.q_proj", "down_proj", family="llama") == []


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_what_is_adapted_is_what_the_targets_name(family: str) -> None:
    """A name, the end of one, all of one module or of the whole model; more than 20 are shortened by peft."""
    config = family_config(family)
    config.num_hidden_layers = 6
    made: Any = AutoModelForCausalLM.from_config(config)
    head = made.get_output_embeddings()
    linear = [name for name, one in made.named_modules() if isinstance(one, nn.Linear | Conv1D) and one is not head]
    full, last = linear[0], linear[0].rpartition(".")[2]
    ends = [".".join(full.split(".")[start:]) for start in range(full.count("."))]
    named = [["all-linear"], [last], [last, linear[-1]], linear[:-1], *([end] for end in ends)]
    for names in named:
        meant = [name for name in linear if any(f".{name}".endswith(f".{one}") for one in names)]
        chosen = "all-linear" if names == ["all-linear"] else tuple(names)
        setting = Setting(method="lora", lr=1e-3, batch=1, lora=Lora(targets=chosen))
        assert target_problems(made, setting.lora) == []
        adapted = add_adapter(copy.deepcopy(made), setting)
        trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
        wrapped = {name.partition(".lora_")[0].removeprefix("base_model.model.") for name in trained}
        assert sorted(wrapped) == sorted(meant or linear)


def test_targets_that_are_no_linear_modules_are_refused_with_close_names(tmp_path: Path) -> None:
    for name in ("embed_tokens", "norm", "layers.0", ".*q_proj", ".q_proj", "q_pro", "all-linears"):
        (problem,) = targets(tmp_path / "m", "k_proj", name, family="llama")
        assert "must name linear modules" in problem and "valid: down_proj, " in problem
    (problem,) = targets(tmp_path / "m", "layers.1.self_attn.qproj", family="llama")
    assert "did you mean 'layers.1.self_attn.q_proj'" in problem


def test_adapter_of_a_tied_output_layer_merges_without_moving_the_embeddings(tmp_path: Path) -> None:
    """As an earlier version trained it."""
    base = world.llama(tie_word_embeddings=True)
    base.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "lm_head"]))
    for name, weight in adapted.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(weight)
    adapted.save_pretrained(tmp_path / "adapter")
    model = Model(path=str(tmp_path / "base"))
    unmerged, merged = (load_for_scoring(model, tmp_path / "adapter", "fp32", how) for how in ("unmerged", "merged"))
    expected = unmerged(input_ids=TOKENS).logits
    merged.save_pretrained(tmp_path / "merged")
    for one in (merged, load_for_scoring(model, tmp_path / "merged", "fp32")):
        assert torch.allclose(one(input_ids=TOKENS).logits, expected, atol=1e-4)
        assert torch.equal(
            one.get_input_embeddings().weight, pretrained.load_model(model, "fp32").model.embed_tokens.weight
        )


def test_attention_that_would_be_another_function_is_refused(tmp_path: Path) -> None:
    capped, bloom = save(family_config("gemma2"), tmp_path / "gemma2"), save(BloomConfig(n_layer=1), tmp_path / "bloom")
    for model, attention, said in (
        (capped, "sdpa", "soft-caps its attention's logits, which sdpa ignores; use auto, or eager"),
        (bloom, "sdpa", "with attention sdpa"),
        (capped, "flash_attention_2", "the package flash-attn is not installed"),
    ):
        with pytest.raises(InvalidInput, match=said):
            meta_model(model, attention)
    assert attention_of(meta_model(bloom)) == "eager"
    assert attention_of(meta_model(capped)) == "eager"
    assert attention_of(meta_model(capped, gpu=True)) == "flex_attention"
    assert attention_of(meta_model(capped, "eager", gpu=True)) == "eager"
    assert attention_of(meta_model(bloom, gpu=True, packed=True)) == "eager"
    assert attention_of(meta_model(capped, packed=True)) == "eager"
    uncapped = save(family_config("gemma2", attn_logit_softcapping=None), tmp_path / "uncapped")
    assert attention_of(meta_model(uncapped)) in ("sdpa", "eager")
    assert attention_of(meta_model(uncapped, packed=True)) == attention_of(meta_model(uncapped))
    assert attention_of(meta_model(uncapped, gpu=True, packed=True)) == "flex_attention"


def test_what_is_no_dense_text_model_is_refused(tmp_path: Path) -> None:
    for config, said in (
        (Gemma3Config(), "is a model of more than text (vision_config)"),
        (MixtralConfig(**SIZES, num_key_value_heads=1), "is a mixture of experts (num_local_experts)"),
    ):
        with pytest.raises(InvalidInput, match=said.split(" (")[0]):
            meta_model(save(config, tmp_path / type(config).__name__))


CODE = """
from transformers import PreTrainedTokenizerFast

class Own(PreTrainedTokenizerFast):
    trusted = True
"""


def tokenizer_of(model: Model, auto_map: Any) -> None:
    """Write a tokenizer into a model's folder whose class is code, ``own.Own``."""
    folder = Path(str(model.path))
    world.tokenizer().save_pretrained(folder)
    read = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(read | {"auto_map": auto_map}))
    (folder / "own.py").write_text(CODE)


@pytest.mark.parametrize(
    "auto_map", [{"AutoTokenizer": [None, "other/repo--own.Own"]}, ["other/repo--own.Own", None]], ids=["map", "list"]
)
def test_code_of_another_repository_is_refused_before_it_runs(tmp_path: Path, auto_map: Any) -> None:
    config = family_config("llama")
    config.auto_map = {
        "AutoModelForCausalLM": "other/repo--pretrained.Model",
        "AutoConfig": "other/repo--modeling.Conf",
    }
    model = save(config, tmp_path / "model")
    trusting = model.model_copy(update={"trust_remote_code": True})
    with pytest.raises(InvalidInput, match=r"code of another repository.*other/repo--modeling\.Conf, other"):
        load_config(trusting)
    own = save(family_config("llama"), tmp_path / "own").model_copy(update={"trust_remote_code": True})
    tokenizer_of(own, auto_map)
    elsewhere = trusting.model_copy(update={"tokenizer": own.path})
    for one in (own, elsewhere):
        with pytest.raises(InvalidInput, match=r"code of another repository.*other/repo--own\.Own"):
            load_tokenizer(one)


def test_code_of_a_tokenizer_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    model = save(family_config("llama"), tmp_path)
    tokenizer_of(model, {"AutoTokenizer": [None, "own.Own"]})
    assert not hasattr(load_tokenizer(model), "trusted")
    assert load_tokenizer(model.model_copy(update={"trust_remote_code": True})).trusted  # type: ignore[attr-defined]
    own = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "own"}
    (tmp_path / "config.json").write_text(json.dumps(own | {"auto_map": {"AutoConfig": "own.Own"}}))
    with pytest.raises(InvalidInput, match=r"needs code of its own .* allow it with trust_remote_code: true"):
        load_config(model)


def test_positions_and_token_ids_that_a_model_has(tmp_path: Path) -> None:
    assert positions_of(family_config("gpt2")) == 64
    assert positions_of(Gemma3Config(text_config=family_config("gemma3"))) == 64
    assert positions_of(BloomConfig()) is None
    model = Model(path="m")
    assert token_problems(model, 259, 258) == []
    assert "below 259" in token_problems(model, 259, 259)[0].rule


def test_device_is_what_resources_give() -> None:
    assert device_of(gpu=False) == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(InvalidInput, match="no GPU that torch can use"):
            device_of(gpu=True)
