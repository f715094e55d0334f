"""Answers of models that compute positions otherwise beyond a length: each as lm-eval gets it alone."""

from __future__ import annotations

from typing import Any

import evaluation_world as world
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from small_models import small_config, with_varied_picks
from test_generate import asked

from massive_sft.evaluation.encoding import RequestEncoder
from massive_sft.evaluation.generate import Generator
from massive_sft.evaluation.requests import Generation

BORDER, CONTEXT, LIMIT = 48, 128, 20
LONGROPE = {
    "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": BORDER,
    "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
}  # fmt: skip
BELOW = ["seven", "the answer is ", "two cats \n", "z" * 28]
CROSSING = ["z" * 29, "k" * 29, "no " * 15, "x" * 36, "q" * 36, "seven cats and a dog in the road", "z" * 46, "z" * 47]
ABOVE = ["z" * 48, "the long yellow road " * 4, "two cats " * 9]
LAYOUTS = {"below": BELOW, "crossing": CROSSING, "above": ABOVE, "mixed": [*ABOVE, *BELOW, *CROSSING]}


def model_of(family: str, rope: dict[str, Any] = LONGROPE, **changes: Any) -> Any:
    """A random model with such positions, of weights so large that its picks hang on them."""
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "max_position_embeddings": CONTEXT}
    if family == "phi3":  # its own field goes before that of the rope
        changes["original_max_position_embeddings"] = BORDER
    return with_varied_picks(small_config(family, 267, rope_parameters={"rope_theta": 1e4, **rope}, **ends, **changes))


def adapted() -> Any:
    model = get_peft_model(model_of("phi3"), LoraConfig(target_modules=["qkv_proj"], init_lora_weights=False)).eval()
    model.generation_config.eos_token_id = 1
    return model


MODELS = {
    "phi3": lambda: model_of("phi3"),  # computes its keys anew at the border
    "phi3 with an adapter": adapted,
    "llama": lambda: model_of("llama"),  # keeps them
    "dynamic": lambda: model_of("llama", {"rope_type": "dynamic", "factor": 2.0}),
}


def generator(model: Any, token_budget: int) -> Generator:
    tokenizer = world.tokenizer()
    return Generator(model, tokenizer, RequestEncoder(tokenizer), [1], CONTEXT, token_budget)


def one_by_one(model: Any, requests: list[Generation]) -> list[str]:
    """What lm-eval's own backend writes at batch size 1."""
    peer = HFLM(model, tokenizer=world.tokenizer(), batch_size=1, device="cpu", max_length=CONTEXT)
    arguments = [{"until": list(r.until), "max_gen_toks": r.max_tokens, "do_sample": False} for r in requests]
    instances = [
        Instance("generate_until", {}, (request.context, one), i)
        for i, (request, one) in enumerate(zip(requests, arguments, strict=True))
    ]
    return peer.generate_until(instances, disable_tqdm=True)


@pytest.mark.parametrize(
    ("kind", "layout"),
    [*(("phi3", layout) for layout in LAYOUTS), *((kind, "mixed") for kind in MODELS if kind != "phi3")],
)
def test_answers_are_those_of_lm_eval_one_by_one(kind: str, layout: str) -> None:
    model, requests = MODELS[kind](), asked(LAYOUTS[layout], ("never met",), (LIMIT, LIMIT, 12, LIMIT))
    expected = one_by_one(model, requests)
    for budget, drafts in [(4096, []), (200, []), (4096, expected), (4096, [*expected[1:], expected[0]])]:
        found, _ = generator(model, budget).generate(requests, drafts)
        assert [answer.text for answer in found] == expected, budget


def test_context_that_fills_the_model_is_answered_as_by_lm_eval() -> None:
    for kind in ("phi3", "dynamic"):
        model, requests = MODELS[kind](), asked(["y" * 300, *CROSSING[:2]], ("never met",), (LIMIT,))
        found, happened = generator(model, 4096).generate(requests)
        assert [answer.text for answer in found] == one_by_one(model, requests)
        assert happened["contexts_cut"] == 1


def test_answers_that_pass_the_border_go_on_together_where_keys_are_computed_anew() -> None:
    """In two batches, of which each makes as many passes as its longest answer has tokens."""
    passes = []
    model, requests = model_of("phi3"), asked(LAYOUTS["mixed"], ("never met",), (LIMIT,))
    model.register_forward_hook(lambda *_: passes.append(1))
    generator(model, 4096).generate(requests)
    assert len(passes) <= 2 * LIMIT + 2  # and those that find out whether they are, and how the cache is called


def test_memory_that_runs_out_changes_no_answer() -> None:
    model, requests = model_of("phi3"), asked(LAYOUTS["mixed"], ("never met",), (LIMIT,))
    expected, passes = one_by_one(model, requests), []

    def refuse(_module: torch.nn.Module, _inputs: tuple, named: dict) -> None:
        passes.append(1)
        if len(named["input_ids"]) > 3 and len(passes) % 5 == 0:
            raise torch.OutOfMemoryError("too many tokens for this test's device")

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    found, happened = generator(model, 4096).generate(requests)
    assert [answer.text for answer in found] == expected and happened["memory_splits"] > 0
