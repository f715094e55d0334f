"""The output layer by chunks: the loss and gradients of all logits at once, whatever the family does behind it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_models import small_config
from tiny_training import CONFIGS, VOCABULARY, make_base, make_samples, make_spec, train
from torch import nn
from transformers import AutoModelForCausalLM, CohereConfig, LlamaForCausalLM

from massive_sft.training.loss import SummedLoss
from massive_sft.training.packing import collate

SAMPLES = make_samples(30)
CHUNK = 64  # of 201 targets, so that the last chunk is short
COHERE = CohereConfig(**small_config("llama", VOCABULARY).to_dict() | {"model_type": "cohere", "logit_scale": 0.3})
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}  # of each gradient's norm; bf16 rounds to 0.004


def model_of(family: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = COHERE if family == "cohere" else small_config(family, VOCABULARY, **CONFIGS[family])
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)  # or losses would hardly hang on what is behind the output layer
    return model


def outcome(model: Any, chunk: int | None) -> tuple[float, Mapping[str, torch.Tensor], str]:
    """Return the loss, the gradients of its mean, and how the output layer was computed."""
    loss, batch = SummedLoss(model, chunk), collate(SAMPLES, np.arange(len(SAMPLES)), packing=False)
    model.zero_grad()
    value = loss(batch)
    (value / len(batch.keep)).backward()
    loss.release()
    gradients = {name: w.grad.float() for name, w in model.named_parameters() if w.grad is not None}
    return float(value.detach()), gradients, loss.head


def assert_equal(model: Any, dtype: torch.dtype) -> None:
    loss, gradients, _ = outcome(model, None)
    chunked, others, head = outcome(model, CHUNK)
    assert head == "chunks of 64 targets"
    assert chunked == pytest.approx(loss, rel=1e-6)
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (others[name] - gradient).norm() <= TOLERANCE[dtype] * gradient.norm(), name


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("family", [*CONFIGS, "cohere"])
def test_chunks_give_the_loss_and_the_gradients_of_all_logits_at_once(family: str, dtype: torch.dtype) -> None:
    assert_equal(model_of(family, dtype), dtype)


@pytest.mark.parametrize("target", ["lm_head", "q_proj"])
def test_adapter_on_the_output_layer_is_part_of_it(target: str) -> None:
    model = get_peft_model(
        model_of("llama", torch.float32), LoraConfig(r=4, target_modules=[target], init_lora_weights=False)
    )
    assert_equal(model, torch.float32)


class OddLlama(LlamaForCausalLM):
    """Does to its logits what no configuration tells."""

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        output = super().forward(*arguments, **keywords)
        output.logits = output.logits.abs()
        return output


def test_model_that_does_something_else_to_its_logits_computes_all_at_once() -> None:
    torch.manual_seed(0)
    model = OddLlama(small_config("llama", VOCABULARY))
    assert outcome(model, CHUNK)[2] == "whole"
    assert outcome(model, CHUNK)[0] == outcome(model, None)[0]


def test_logits_in_memory_are_never_more_than_a_chunks() -> None:
    model, seen = model_of("llama", torch.float32), list[int]()
    head: nn.Module = model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    outcome(model, CHUNK)
    assert max(seen) == CHUNK and sum(seen) >= 200
    seen.clear()
    outcome(model, 195)  # with the gradient of the layer, 16 targets' worth, that would be more than all logits
    assert seen == [208]


@pytest.mark.parametrize("layout", [{"zero": "auto"}, {"zero": 1}, {"zero": 2}, {"packing": True}], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_training_by_chunks_goes_as_without_and_says_so(
    layout: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(tmp_path / "base")
    spec = make_spec(base, layout=layout)
    whole, expected = train(spec, SAMPLES, tmp_path / "whole")
    monkeypatch.setattr("massive_sft.cost.memory.CPU_LOGITS", 4 * VOCABULARY)
    chunked, steps = train(spec, SAMPLES, tmp_path / "chunked")
    assert (whole.head, chunked.head) == ("whole", "chunks of 4 targets")
    assert [step.loss for step in steps] == pytest.approx([step.loss for step in expected], rel=1e-5)
    assert [step.grad_norm for step in steps] == pytest.approx([step.grad_norm for step in expected], rel=1e-4)
