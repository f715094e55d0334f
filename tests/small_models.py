"""Configurations of models so small that a test makes them in no time: two layers, 32 wide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

SIZES: Mapping[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
_PLAIN = {**SIZES, "max_position_embeddings": 64}
_GROUPED = {**_PLAIN, "num_key_value_heads": 1}
_FAMILIES: Mapping[str, tuple[type[PreTrainedConfig], Mapping[str, Any]]] = {
    "llama": (LlamaConfig, _GROUPED),
    "qwen2": (Qwen2Config, _GROUPED),
    "qwen3": (Qwen3Config, {**_GROUPED, "head_dim": 16}),
    "gemma2": (Gemma2Config, {**_GROUPED, "head_dim": 16, "sliding_window": 8}),
    "gemma3": (Gemma3TextConfig, {**_GROUPED, "head_dim": 16, "sliding_window": 8}),
    "granite": (GraniteConfig, {**_GROUPED, "logits_scaling": 3.0}),
    "mistral": (MistralConfig, {**_GROUPED, "sliding_window": 8}),
    "olmo2": (Olmo2Config, _GROUPED),
    "neox": (GPTNeoXConfig, _PLAIN),
    "phi": (PhiConfig, _PLAIN),
    "phi3": (Phi3Config, {**_GROUPED, "pad_token_id": 0}),
    "gpt2": (
        GPT2Config,
        {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "bloom": (BloomConfig, {"hidden_size": 32, "n_layer": 2, "n_head": 2}),
}


def small_config(family: str, vocabulary: int, **changes: Any) -> PreTrainedConfig:
    """Return a family's small configuration; ``changes`` go over its own values."""
    kind, values = _FAMILIES[family]
    return kind(**{**values, "vocab_size": vocabulary, **changes})


def with_varied_picks(config: PreTrainedConfig) -> Any:
    """Return a random model of weights so large that its picks vary with what it reads."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0.0, 0.3)
    return model
