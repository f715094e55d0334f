"""The randomly initialised Llamas that the benchmarks train."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def write_llama(folder: Path, vocabulary: int, hidden: int, layers: int, heads: int, **config: int) -> int:
    """Write a randomly initialised Llama with tied embeddings; return its number of parameters.

    Args:
        folder: made if missing.
        vocabulary, hidden, layers, heads: its sizes; the MLP is ``intermediate_size``, by default 2.75 times as wide.
        config: further fields of ``LlamaConfig``.
    """
    torch.manual_seed(0)
    sizes = {"vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    model = LlamaForCausalLM(
        LlamaConfig(**{"intermediate_size": 11 * hidden // 4, **sizes, **config}, tie_word_embeddings=True)
    )
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())
