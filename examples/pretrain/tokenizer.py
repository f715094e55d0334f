"""Fast tokenizers that differ where real ones do, and their special tokens.

``tiny-llama``: bytes, no merges; puts ``<s>`` before every text by itself, as Llama's does.
``tiny-neox``: byte-level BPE with a few merges; has no beginning-of-sequence token at all, as Qwen's.
Both have an end token and another one for padding, and cut before every space, so that an answer after ``: ``
begins with a token of its own. Capitals and digits stay single, so that puzzles over letters are learnable.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

MODEL_MAX_LENGTH = 512
# As tokenizer_config.json names them.
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
NEOX = {"bos_token": None, "eos_token": "<|endoftext|>", "pad_token": "<|padding|>"}
_PIECES = r"[a-z]+| |\n|#+|[A-Z]|[0-9]|[^a-zA-Z0-9 \n#]"


def byte_tokenizer() -> Tokenizer:
    """Return the tokenizer of ``tiny-llama``: ``<s>``, ``</s>``, ``<pad>``, then the 256 bytes."""
    special = list(LLAMA.values())
    vocabulary = {token: index for index, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    put_bos_first(tokenizer)
    return tokenizer


def put_bos_first(tokenizer: Tokenizer) -> None:
    """Have a tokenizer with ``<s>`` put it before every text."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )


def merged_tokenizer(texts: Iterable[str], vocabulary: int = 384) -> Tokenizer:
    """Return the tokenizer of ``tiny-neox``: ``<|endoftext|>``, ``<|padding|>``, bytes and merges seen in ``texts``."""
    pieces = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    before = pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return trained_bpe(texts, before, vocabulary, NEOX)


def trained_bpe(
    texts: Iterable[str],
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    vocabulary: int,
    special: Mapping[str, str | None],
) -> Tokenizer:
    """Return a byte-level BPE of ``vocabulary`` entries: the special tokens, bytes and merges seen in ``texts``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[token for token in special.values() if token],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def config(special: Mapping[str, str | None]) -> str:
    """Return the text of ``tokenizer_config.json``; ``special`` maps e.g. ``eos_token`` to its text."""
    value = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MODEL_MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    return json.dumps(value, indent=1) + "\n"
