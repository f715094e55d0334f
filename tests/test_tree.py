"""The tree engine against the plain forward pass and lm-eval, family by family."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import evaluation_world as world
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from small_models import SIZES
from transformers import AutoConfig, AutoModelForCausalLM

from massive_sft.core.errors import Unsupported
from massive_sft.evaluation.beginnings import common
from massive_sft.evaluation.requests import Likelihood, Request, Rolling
from massive_sft.evaluation.scorer import PlainScorer, Span
from massive_sft.evaluation.token_tree import plan_rows, tree_row
from massive_sft.evaluation.tree import TreeScorer, find_difference, proof_rows
from massive_sft.models.tree_support import refusal

HEAD = "Question: two cats? Answer: the long yellow road. " * 8  # more than one block
WINDOW = {"sliding_window": 16}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT: dict[str, Any] = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32,
    "first_k_dense_replace": 1, "num_key_value_heads": 4,
}  # fmt: skip
EXACT: dict[str, dict[str, Any]] = {
    "apertus": {}, "arcee": {}, "cohere": {}, "cohere2": WINDOW, "deepseek_v3": LATENT, "ernie4_5": {}, "exaone4": WINDOW,
    "gemma": {}, "gemma2": WINDOW, "gemma3_text": WINDOW, "glm": {}, "glm4": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024}, "gpt_bigcode": {"n_embd": 32, "n_layer": 2,
    "n_head": 4, "n_positions": 1024}, "gpt_neox": {}, "gpt_oss": WINDOW | EXPERTS, "granite": {"logits_scaling": 3.0},
    "granitemoe": EXPERTS, "helium": {}, "hunyuan_v1_dense": {}, "llama": {}, "mistral": WINDOW, "ministral": WINDOW,
    "mixtral": EXPERTS, "nemotron": {}, "olmo": {}, "olmo2": {}, "olmo3": WINDOW,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}, "persimmon": {}, "phi": {}, "phi3": WINDOW, "qwen2": {},
    "qwen2_moe": EXPERTS, "qwen3": {}, "qwen3_moe": EXPERTS, "seed_oss": {}, "smollm3": {}, "stablelm": {},
    "starcoder2": WINDOW,
}  # fmt: skip
REFUSED = ["bloom", "codegen", "falcon", "gpt_neo", "gptj", "llama4_text", "mamba", "mpt", "qwen3_next"]


def small(family: str, **changes: Any) -> Any:
    values = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 267}
    values |= {"max_position_embeddings": 1024, "initializer_range": 0.3, "attention_dropout": 0.0}
    config = AutoConfig.for_model(family, **values | changes)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 2, 0, 1
    return config


def asked() -> list[Request]:
    texts = [
        (HEAD + question, continuation)
        for question in ("Question: red?\nAnswer:", "the answer is")
        for continuation in (" blue", " the long yellow road", " the long green road", " y")
    ]
    return [Likelihood(i, i // 4, i % 4, "", 1, *text) for i, text in enumerate(texts)]


@pytest.mark.parametrize("family", EXACT)
def test_family_s_tree_scores_equal_those_of_its_own_forward_pass(family: str) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(small(family, **EXACT[family])).eval()
    tree = TreeScorer(model, world.tokenizer())
    found, happened = tree.score(asked())
    assert tree.fallback is None and "plain_requests" not in happened and tree.last_layer_refused is None
    expected, _ = PlainScorer(model, world.tokenizer()).score(asked())
    assert [r.logprob for r in found] == pytest.approx([r.logprob for r in expected], abs=1e-4)
    assert max(abs(a.logprob - b.logprob) / b.tokens for a, b in zip(found, expected, strict=True)) < 1e-5
    assert [r.greedy for r in found] == [r.greedy for r in expected]
    assert found == tree.score(asked())[0]
    in_small_rows = TreeScorer(
        model, world.tokenizer(), token_budget=64
    )  # each goes on from the head's keys and values
    found, _ = in_small_rows.score(asked())
    assert in_small_rows.fallback is None and in_small_rows.last_layer_refused is None
    assert [r.logprob for r in found] == pytest.approx([r.logprob for r in expected], abs=1e-4)


def test_last_layer_that_is_wrong_for_a_part_of_the_tokens_is_computed_for_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = world.llama(positions=1024)
    computed = []

    def louder(_module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        computed.append(output.shape[1])
        return output * 2 if output.shape[1] < 100 else output

    model.model.layers[-1].mlp.register_forward_hook(louder)
    tree = TreeScorer(model, world.tokenizer())
    with caplog.at_level("INFO"):
        found, _ = tree.score(asked())
    assert min(computed) < 100 and tree.fallback is None and "the last layer is computed for all tokens" in caplog.text
    expected = [r.logprob for r in PlainScorer(model, world.tokenizer()).score(asked())[0]]
    assert [r.logprob for r in found] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", REFUSED)
def test_family_that_a_tree_is_wrong_for_is_refused_by_its_configuration(family: str) -> None:
    assert refusal(AutoConfig.for_model(family))


def test_layers_that_a_tree_is_wrong_for_are_refused_whatever_the_family() -> None:
    for changes, said in (
        ({"layer_types": ["full_attention", "linear_attention"]}, "layers of kind linear_attention"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "longest sequence"),
        ({"is_causal": False}, "not causal"),
    ):
        assert said in str(refusal(AutoConfig.for_model("llama", **SIZES, **changes)))
    assert refusal(AutoConfig.for_model("llama", **SIZES)) is None


def test_model_whose_tree_is_wrong_is_scored_plainly_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    """Here one that takes no positions: it counts them along the row."""
    model = world.llama(positions=1024)

    def drop(_module: torch.nn.Module, inputs: tuple, named: dict) -> tuple[tuple, dict]:
        return inputs, {**named, "position_ids": None}

    model.register_forward_pre_hook(drop, with_kwargs=True)
    scorer = TreeScorer(model, world.tokenizer())
    found, happened = scorer.score(asked())
    assert found == PlainScorer(model, world.tokenizer()).score(asked())[0]
    assert happened["plain_requests"] == len(found)
    assert "where the plain engine gives" in str(scorer.fallback) and str(scorer.fallback) in caplog.text
    assert model.config._attn_implementation == "sdpa"


def test_longer_sequences_than_those_that_proved_the_tree_are_looked_at_again() -> None:
    """Here a model that is right for short sequences only, as one whose window were forgotten."""
    model = world.llama(positions=1024)

    def drop(_module: torch.nn.Module, inputs: tuple, named: dict) -> tuple[tuple, dict]:
        positions = named.get("position_ids")
        return inputs, {**named, "position_ids": None} if positions is not None and positions.max() > 100 else named

    model.register_forward_pre_hook(drop, with_kwargs=True)
    scorer = TreeScorer(model, world.tokenizer())
    short = [replace(request, context=request.context[-40:]) for request in asked() if isinstance(request, Likelihood)]
    _, happened = scorer.score(short)
    assert scorer.fallback is None and "plain_requests" not in happened
    found, happened = scorer.score(asked())
    assert "where the plain engine gives" in str(scorer.fallback) and happened["plain_requests"] == len(found)
    assert found == PlainScorer(model, world.tokenizer()).score(asked())[0]


def test_rows_that_prove_the_tree_are_the_longest_and_others_of_all_parts() -> None:
    def rows(lengths: list[int]) -> list[list[Span]]:
        return [[Span(i, (i,) * length, (1,))] for i, length in enumerate(lengths)]

    assert proof_rows(rows([3])) == [0]
    assert proof_rows(rows([3, 9, 3])) == [1, 0]
    many = proof_rows(rows([5] * 500 + [6] + [5] * 499))
    assert many[0] == 500 and len(many) == 8 and many[1] == 0 and many[-1] > 800


def test_log_probabilities_may_differ_by_their_rounding_alone() -> None:
    nan = float("nan")
    assert find_difference([(1, -3.0, -3.0001), (64, -90.0, -90.0007), (1, nan, nan)], torch.float32) is None
    assert find_difference([(1, -30.0, -30.0003)], torch.float32) is None
    assert "-3 where the plain engine gives -3.001" in str(find_difference([(1, -3.0, -3.001)], torch.float32))
    assert find_difference([(1, nan, -3.0)], torch.float32) and find_difference([(1, nan, -3.0)], torch.bfloat16)
    assert find_difference([(25, -60.0, -60.9), (25, -60.0, -60.0)], torch.bfloat16) is None
    assert "where the plain engine gives" in str(find_difference([(25, -60.0, -61.1)], torch.bfloat16))
    assert "in the mean" in str(find_difference([(25, -60.0, -60.9)] * 8, torch.bfloat16))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "qwen3"])
def test_family_s_tree_in_bf16_is_proven_and_within_rounding(family: str) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(small(family, **EXACT[family])).eval().to(torch.bfloat16)
    tree = TreeScorer(model, world.tokenizer())
    found, _ = tree.score(asked())
    assert tree.fallback is None and "forward" not in vars(model.get_output_embeddings())
    expected, _ = PlainScorer(model, world.tokenizer()).score(asked())
    logprobs = [(b.tokens, a.logprob, b.logprob) for a, b in zip(found, expected, strict=True)]
    assert find_difference(logprobs, torch.bfloat16) is None and found != expected


@pytest.mark.parametrize("is_wrong", [False, True])
def test_tree_beyond_the_limits_of_bf16_is_judged_by_fp32(is_wrong: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Large logits: plain passes are half a nat off fp32 themselves."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(small("llama")).eval().to(torch.bfloat16)
    model.get_output_embeddings().weight.data.mul_(16)
    if is_wrong:
        model.register_forward_pre_hook(
            lambda _module, inputs, named: (inputs, {**named, "position_ids": None}), with_kwargs=True
        )
    tree = TreeScorer(model, world.tokenizer())
    with caplog.at_level("INFO"):
        found, happened = tree.score(asked())
    assert ("in the mean trees are off fp32" in caplog.text) == (not is_wrong) == (tree.fallback is None)
    assert model.dtype == torch.bfloat16 and ("plain_requests" in happened) == is_wrong
    plain, _ = PlainScorer(model, world.tokenizer()).score(asked())
    assert (found == plain) == is_wrong


def test_head_of_all_sequences_and_the_output_layer_are_computed_once_for_several_rows() -> None:
    model = world.llama(positions=1024)
    computed: list[int] = []
    model.register_forward_pre_hook(
        lambda _module, _inputs, named: computed.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    scorer = TreeScorer(model, world.tokenizer(), token_budget=64)
    found, _ = scorer.score(asked())
    head = len(scorer._encoder.encode(HEAD)) - 1
    together = TreeScorer(model, world.tokenizer())
    expected, _ = together.score(asked())
    assert scorer.fallback is None and together.fallback is None
    assert [r.logprob for r in found] == pytest.approx([r.logprob for r in expected], abs=1e-4)
    rows = [tokens for tokens in computed if tokens <= 64]
    assert len(rows) > 1 and computed[0] >= head and found == scorer.score(asked())[0]
    read: list[int] = []
    model.lm_head.register_forward_hook(lambda _module, _inputs, logits: read.append(logits.shape[1]))
    scorer.score(asked())
    assert len(read) == 1 + len(rows) and len([count for count in read if count > 1]) == 1  # of all rows, in the last


def test_model_that_calls_no_attention_function_is_scored_plainly() -> None:
    """Some classes only warn when they are told to use one."""
    model = world.llama(positions=1024)
    model.set_attn_implementation = lambda _name: None
    scorer = TreeScorer(model, world.tokenizer())
    found, _ = scorer.score(asked())
    assert "takes no attention function" in str(scorer.fallback)
    assert found == PlainScorer(model, world.tokenizer()).score(asked())[0]


def test_scores_that_are_no_numbers_are_given_as_such() -> None:
    model = world.llama(positions=1024)
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    found, _ = TreeScorer(model, world.tokenizer()).score(asked())
    assert all(r.logprob != r.logprob for r in found)


def test_rows_hold_every_sequence_once_within_the_budget_behind_their_beginning_whatever_the_order() -> None:
    sequences = [(1, 2, 3, 4), (1, 2, 5), (9,), (1, 2), (1, 2, 3, 6, 7), (8,) * 20, (1, 2, 3, 4, 4)]
    reads = [1] * len(sequences)
    rows = plan_rows(sequences, 8, reads, 100)
    assert sorted(i for row in rows for i in row) == list(range(len(sequences)))
    again = plan_rows(sequences[::-1], 8, reads, 100)
    assert [[sequences[i] for i in row] for row in rows] == [[sequences[::-1][i] for i in row] for row in again]
    for row in rows:
        laid, paths = tree_row([sequences[i] for i in row])
        head = common(sequences[row[0]], sequences[row[-1]])
        assert len(laid.tokens) - head <= 8
        assert [tuple(laid.tokens[path].tolist()) for path in paths] == [sequences[i] for i in row]
        assert all(laid.depths[path].tolist() == list(range(len(path))) for path in paths)
        parents = {(a, b) for path in paths for a, b in itertools.pairwise(path)}
        assert all(a < b < laid.ends[a] for a, b in parents)
    assert max(map(len, plan_rows(sequences, 100, [2] * len(sequences), 5))) == 2
    choices_of_a_long_text = [(*range(20), choice) for choice in range(9)]
    assert [len(row) for row in plan_rows(choices_of_a_long_text, 8, [1] * 9, 100)] == [8, 1]


def test_chain_of_sequences_that_each_go_on_is_no_recursion() -> None:
    tokens = tuple(range(3000))
    laid, paths = tree_row([tokens[:length] for length in range(1, 3001)])
    assert laid.tokens.tolist() == list(tokens) and len(paths[-1]) == 3000


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt_neox"])
def test_continuations_of_up_to_64_tokens_equal_lm_eval(family: str) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(small(family, **EXACT[family])).eval()
    texts = [
        (context, continuation)
        for context in ("the road", HEAD + "Question: red?\nAnswer:", HEAD + "two cats \n", "x" * 1100)
        for continuation in (" blue", " the long yellow road" + " a dog seven" * 3)
    ]  # the last context is longer than the model: cut from the left
    peer = HFLM(model, tokenizer=world.tokenizer(), batch_size=4, device="cpu", logits_cache=False)
    expected = peer.loglikelihood([Instance("loglikelihood", {}, text, i) for i, text in enumerate(texts)], True)
    tree = TreeScorer(model, world.tokenizer())
    found, _ = tree.score([Likelihood(i, i, 0, "", 1, *text) for i, text in enumerate(texts)])
    assert tree.fallback is None and 45 < max(r.tokens for r in found) <= 64
    for one, (logprob, greedy) in zip(found, expected, strict=True):
        assert one.logprob == pytest.approx(logprob, abs=min(1e-4, 1e-5 * one.tokens + 1e-5))
        assert one.greedy == greedy


def test_odd_requests_are_answered_as_the_plain_engine_does() -> None:
    model, tokenizer = world.llama(), world.tokenizer()
    texts = [("", " blue"), ("a", ""), ("a", "b"), ("x" * 300, " blue"), ("re", "d"), ("a", "b"), ("a", "bc")]
    odd: list[Request] = [Likelihood(i, i, 0, "", 1, *text) for i, text in enumerate(texts)]
    odd += [Rolling(len(odd), 99, 0, "", 1, "the long yellow road " * 40), Rolling(len(odd) + 1, 100, 0, "", 1, "")]
    tree = TreeScorer(model, tokenizer)
    found, happened = tree.score(odd)
    assert happened == {"memory_splits": 0, "contexts_cut": 1}
    expected, _ = PlainScorer(model, tokenizer).score(odd)
    assert tree.fallback is None
    assert [r.logprob for r in found] == pytest.approx([r.logprob for r in expected], rel=1e-6, abs=1e-4)
    assert [(r.greedy, r.tokens) for r in found] == [(r.greedy, r.tokens) for r in expected]
    with pytest.raises(Unsupported, match="longer than the model's 256"):
        TreeScorer(model, tokenizer).score([Likelihood(0, 0, 0, "", 1, "a", "b" * 300)])
