"""Two fast tokenizers that differ where real ones do.

``tiny-llama``: bytes, no merges; puts ``<s>`` before every text by itself, as Llama's does.
``tiny-neox``: byte-level BPE with a few merges; has no beginning-of-sequence token at all, as Qwen's.
Both have an end token and another one for padding, and cut before every space, so that an answer after ``: ``
begins with a token of its own. Capitals and digits stay single, so that puzzles over letters are learnable.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

MODEL_MAX_LENGTH = 512
_PIECES = r"[a-z]+| |\n|#+|[A-Z]|[0-9]|[^a-zA-Z0-9 \n#]"


def byte_tokenizer() -> Tokenizer:
    """Return the tokenizer of ``tiny-llama``: ``<s>``, ``</s>``, ``<pad>``, then the 256 bytes."""
    special = ["<s>", "</s>", "<pad>"]
    vocabulary = {token: index for index, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def merged_tokenizer(texts: Iterable[str], vocabulary: int = 384) -> Tokenizer:
    """Return the tokenizer of ``tiny-neox``: ``<|endoftext|>``, ``<|padding|>``, bytes and merges seen in ``texts``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def config(special: dict[str, str | None]) -> str:
    """Return the text of ``tokenizer_config.json``; ``special`` maps e.g. ``eos_token`` to its text."""
    value = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MODEL_MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    return json.dumps(value, indent=1) + "\n"
