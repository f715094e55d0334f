"""Make the base models that the package ships: ``python examples/pretrain/pretrain.py [FOLDER]``.

About fifteen minutes on one core. Each model is trained from nothing on ``corpus.documents`` with AdamW and written in
bf16 with its tokenizer files. The weights are shipped because a rerun gives equal quality, not equal bits, on
another machine.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizer import LLAMA, MODEL_MAX_LENGTH, NEOX, byte_tokenizer, config, merged_tokenizer
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PreTrainedConfig, PreTrainedModel

from massive_sft.tiny import WEIGHTS
from massive_sft.tiny.corpus import documents

DOCUMENTS = 60_000
SEED = 0
HIDDEN = 96


@dataclass(frozen=True)
class Round:
    """One rise and fall of the learning rate over ``steps``; ``lr`` is its peak."""

    steps: int
    lr: float


# Two rounds: a warm restart (Loshchilov & Hutter 2017) got copying and sums, which one round of 1,300 steps had not.
ROUNDS = (Round(1300, 3e-3), Round(1200, 2e-3))


@dataclass(frozen=True)
class Base:
    """A model to pretrain: its tokenizer, its shape and its special tokens by role (``bos_token`` may be none)."""

    tokenizer: Tokenizer
    config: PreTrainedConfig
    special: Mapping[str, str | None]

    def untrained(self) -> PreTrainedModel:
        """Return the model with random weights; its config knows the tokenizer's size and special ids."""
        self.config.vocab_size = self.tokenizer.get_vocab_size()
        for role, token in self.special.items():
            setattr(self.config, f"{role}_id", None if token is None else self.tokenizer.token_to_id(token))
        torch.manual_seed(SEED)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(self.config)
        return model


def llama(tokenizer: Tokenizer, hidden: int, positions: int) -> Base:
    """Return the Llama: RMSNorm, gated MLP, tied embeddings; ``hidden`` wide, for ``positions`` tokens."""
    shape = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=8 * math.ceil(hidden / 3),
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
    )
    return Base(tokenizer, shape, LLAMA)


def neox(tokenizer: Tokenizer, hidden: int, positions: int) -> Base:
    """Return the GPT-NeoX: LayerNorm with biases, fused QKV, parallel residual, a head of its own; no BOS."""
    shape = GPTNeoXConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    )
    return Base(tokenizer, shape, NEOX)


def stream(base: Base, texts: list[str]) -> torch.Tensor:
    """Return all texts as one row of token ids (int64), each text begun as its tokenizer wants and ended by EOS."""
    eos = base.tokenizer.token_to_id(base.special["eos_token"])
    return torch.tensor([token for encoding in base.tokenizer.encode_batch(texts) for token in [*encoding.ids, eos]])


def train(
    model: PreTrainedModel, tokens: torch.Tensor, round_: Round, seed: int, batch: int = 12, length: int = 256
) -> None:
    """Train in place on random windows of ``length`` tokens: AdamW, linear warm-up and decay."""
    steps = round_.steps
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=round_.lr, betas=(0.9, 0.99), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 50, 1 - step / steps))
    begun = time.monotonic()
    model.train()
    for step in range(steps):
        starts = torch.randint(len(tokens) - length, (batch, 1), generator=generator)
        window = tokens[starts + torch.arange(length)]
        loss = model(input_ids=window, labels=window, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            seconds = time.monotonic() - begun
            sys.stderr.write(f"step {step} loss {loss.item():.3f} nats/token, {seconds:.0f} s\n")


def save(base: Base, model: PreTrainedModel, folder: Path) -> None:
    """Write config.json, model.safetensors (bf16), generation_config.json and the tokenizer files."""
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(folder)
    base.tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(config(base.special))


def main() -> None:
    """Pretrain both models and write them under the folder given, by default into the package."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=WEIGHTS)
    parser.add_argument("--only", choices=["tiny-llama", "tiny-neox"])
    arguments = parser.parse_args()
    texts = list(documents(SEED, DOCUMENTS))
    random.Random(SEED).shuffle(texts)
    tokenizers = {"tiny-llama": byte_tokenizer, "tiny-neox": lambda: merged_tokenizer(texts[:5000])}
    for name, make in {"tiny-llama": llama, "tiny-neox": neox}.items():
        if arguments.only in (None, name):
            base = make(tokenizers[name](), HIDDEN, MODEL_MAX_LENGTH)
            model = base.untrained()
            sys.stderr.write(f"{name}: {sum(p.numel() for p in model.parameters())} parameters\n")
            tokens = stream(base, texts)
            for number, round_ in enumerate(ROUNDS):
                train(model, tokens, round_, SEED + number)
            save(base, model, arguments.folder / name)


if __name__ == "__main__":
    main()
