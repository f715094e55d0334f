"""Selective checkpointing: the bits of keeping everything, and no matrix product or attention computed twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_models import small_config
from tiny_training import CONFIGS, VOCABULARY, make_samples
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from massive_sft.sweep.schema import Setting
from massive_sft.sweep.spec import Layout
from massive_sft.training.layout import layout_problems
from massive_sft.training.loss import SummedLoss
from massive_sft.training.packing import collate
from massive_sft.training.recomputing import recompute_activations

PRODUCTS = ("mm", "attention")


class Calls(TorchDispatchMode):
    """Counts what torch computes, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.found[operator.name()] += 1
        return operator(*arguments, **(keywords or {}))

    @property
    def products(self) -> Mapping[str, int]:
        return {name: count for name, count in self.found.items() if any(part in name for part in PRODUCTS)}


def outcome(family: str, way: Any, lora: bool = False, **how: Any) -> tuple[list[torch.Tensor], Calls]:
    """Return the loss and the gradients of packed samples, and what was computed for them."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(small_config(family, VOCABULARY, **CONFIGS[family]), **how).train()
    recompute_activations(model, Layout(gradient_checkpointing=way))
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
        model.get_base_model().enable_input_require_grads()  # as peft does under checkpointing
    with Calls() as calls:
        loss = SummedLoss(model)(collate(make_samples(6), np.arange(6), packing=True))
        loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return [loss.detach(), *gradients], calls


@pytest.mark.parametrize("family", CONFIGS)
def test_selective_checkpointing_has_the_bits_of_none_and_repeats_no_product(family: str) -> None:
    plain, kept = outcome(family, False)
    selective, some = outcome(family, "selective")
    assert all(torch.equal(*pair) for pair in zip(selective, plain, strict=True)) and len(plain) > 2
    assert some.products == kept.products
    assert some.found.total() > kept.found.total()  # the rest is computed again


def test_selective_checkpointing_of_adapters_repeats_their_second_halves_alone() -> None:
    plain, kept = outcome("llama", False, lora=True)
    selective, some = outcome("llama", "selective", lora=True)
    whole, all_of_it = outcome("llama", True, lora=True)
    assert all(torch.equal(*pair) for pair in zip(selective, plain, strict=True))
    assert all(torch.equal(*pair) for pair in zip(whole, plain, strict=True))
    again = some.products["aten::mm"] - kept.products["aten::mm"]
    assert again <= 2 * 7 < all_of_it.products["aten::mm"] - kept.products["aten::mm"]  # of seven in two layers
    assert {**some.products, "aten::mm": 0} == {**kept.products, "aten::mm": 0}


@pytest.mark.parametrize(
    ("layout", "key"), [({"kernels": "compiled"}, "kernels"), ({"zero": 3}, "gradient_checkpointing")]
)
def test_selective_checkpointing_of_what_it_cannot_look_into_is_refused(layout: dict[str, Any], key: str) -> None:
    setting = Setting(method="full", lr=1e-5, batch=4)
    (problem,) = layout_problems(setting, Layout(**layout, gradient_checkpointing="selective"))
    assert problem.place == f"resources.{key}" and "selective" in str(problem)
    assert layout_problems(setting, Layout(**layout, gradient_checkpointing=True)) == []
