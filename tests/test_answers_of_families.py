"""Answers of families that keep states or no cache at all: lm-eval's texts, also once others of the batch have ended."""

from __future__ import annotations

from typing import Any

import evaluation_world as world
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from small_models import SIZES, small_config, with_varied_picks
from transformers import CONFIG_MAPPING

from massive_sft.evaluation import recomputed, slots
from massive_sft.evaluation.encoding import RequestEncoder
from massive_sft.evaluation.generate import Generator
from massive_sft.evaluation.requests import Generation
from massive_sft.evaluation.sampling import Sampling
from massive_sft.evaluation.slots import Room
from massive_sft.evaluation.writing import Endings, Prompt

CONTEXTS = ["Question: red?\nAnswer:", "the answer is ", "two cats", "seven", "no " * 20, "x" * 9, "y", "long " * 9]
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
WITH_A_CACHE: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"], "head_dim": 16, **LINEAR},
    "falcon_h1": {"head_dim": 16, "mamba_d_ssm": 64, **MAMBA},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "num_local_experts": 0, **MAMBA}
    | {"shared_intermediate_size": 32},
}
WITHOUT: dict[str, dict[str, Any]] = {
    "rwkv": {"context_length": 400, "attention_hidden_size": 32},
    "recurrent_gemma": {"attention_window_size": 16, "lru_width": 32, "head_dim": 16, "num_hidden_layers": 3},
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 400},
    # Its linear attention takes padding for tokens.
    "minimax": {"layer_types": ["linear_attention", "full_attention"], "head_dim": 16, "block_size": 16}
    | {"num_local_experts": 2, "num_experts_per_tok": 1},
}


def asked(stops: list[str]) -> list[Generation]:
    return [Generation(i, i, 0, "", 1, text, (stops[i],), 30) for i, text in enumerate(CONTEXTS)]


def stops_for(writer: Generator) -> list[str]:
    """Stops that answers meet after a few letters, but for every third one: most of a batch ends before the rest."""
    answers, _ = writer.generate(asked(["never met"] * len(CONTEXTS)))
    seen = [[letter for letter in answer.text[i:] if letter.isascii()] for i, answer in enumerate(answers)]
    return [letters[0] if i % 3 and letters else "never met" for i, letters in enumerate(seen)]


def of_lm_eval(model: Any, requests: list[Generation]) -> list[str]:
    peer = HFLM(model, tokenizer=world.tokenizer(), batch_size=1, device="cpu", max_length=400)
    instances = [
        Instance(
            "generate_until", {}, (one.context, {"until": [*one.until], "max_gen_toks": 30, "do_sample": False}), i
        )
        for i, one in enumerate(requests)
    ]
    return peer.generate_until(instances, disable_tqdm=True)


@pytest.mark.parametrize("name", [*WITH_A_CACHE, *WITHOUT])
def test_answers_of_a_family_of_states_are_those_of_lm_eval(name: str, caplog: pytest.LogCaptureFixture) -> None:
    ids = {"vocab_size": 267, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    own = (WITH_A_CACHE | WITHOUT)[name]
    heads = {"num_key_value_heads": 1, "max_position_embeddings": 400}
    model = with_varied_picks(CONFIG_MAPPING[name](**{**SIZES, **heads, **ids, **own}))
    tokenizer = world.tokenizer()
    writer = Generator(model, tokenizer, RequestEncoder(tokenizer), [1], 400, 600)
    requests = asked(stops_for(writer))
    found, _ = writer.generate(requests)
    assert [answer.text for answer in found] == of_lm_eval(model, requests)
    assert sum(answer.finish == "length" for answer in found) < 6 and len({answer.tokens for answer in found}) > 2
    assert writer.generate(requests) == (found, {"memory_splits": 0})
    assert caplog.text.count("in padded batches") == 1
    assert caplog.text.count("by plain passes") == (name in WITHOUT)


def test_plain_passes_write_what_slots_write() -> None:
    model, endings = (
        with_varied_picks(small_config("llama", 267, max_position_embeddings=400)),
        Endings(world.tokenizer(), [1]),
    )
    prompts = [
        Prompt(world.tokenizer().encode(text), "", ("e", "\n"), most, sampling=sampling)
        for text in CONTEXTS
        for most, sampling in ((30, None), (7, Sampling(1.0, 5)), (0, None))
    ]
    expected, _ = slots.write(model, prompts, [[] for _ in prompts], endings, Room(64, 2**30, 600))
    for budget in (60, 10_000):
        found, happened = recomputed.write(model, prompts, endings, budget)
        assert [one.made for one in found] == [one.made for one in expected] and happened == {"memory_splits": 0}
        assert [one.answer() for one in found] == [one.answer() for one in expected]
