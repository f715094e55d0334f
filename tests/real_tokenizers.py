"""Small tokenizers that behave as real ones do at the borders: how they split, what they add, how chats are written."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = "apple Paris answer Answer Question user assistant system model the name of a city is What Hello there friend"
CORPUS = [f" {word}" for word in WORDS.split()] * 3 + WORDS.split() * 2 + ["###", ":\n", "\n\n", ".\n"] * 3
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN_SPLIT = LLAMA3_SPLIT.replace("{1,3}", "")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
NAMED: dict[str, dict[str, str]] = {
    "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "smollm2": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
    "qwen": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    "llama2": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
}
"""gpt2: nothing is added, BOS = EOS. smollm2: EOS = pad, digits alone, no BOS is added. qwen: no BOS. llama3: BOS, `:` and
a newline are one token. llama2: BOS, a space before the text, bytes. gemma: BOS, no space before the text, bytes."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA3 = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
    " + '<|eot_id|>' }}{% endfor %}"
)
_HEADER = "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
_MISTRAL = (
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}"
)
CHATS: dict[str, str] = {
    "chatml": CHATML,
    "llama3_first": "{{ bos_token }}" + _LLAMA3 + _HEADER,
    "llama31": (
        "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
        "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
        "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + system"
        " + '<|eot_id|>' }}" + _LLAMA3 + "{% if add_generation_prompt %}" + _HEADER + "{% endif %}"
    ),
    "qwen3": (
        "{% set ns = namespace(last=0) %}"
        "{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% set content = m['content'] %}"
        "{% if m['role'] == 'assistant' %}{% set thought = '' %}{% if '</think>' in content %}"
        "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
        "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{% if loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}"
        "{% set content = content.lstrip('\n') %}{% endif %}{% endif %}"
        "{{ content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role'])"
        " + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% set system = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' %}"
        "{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}"
        "{% for m in messages if m['role'] != 'system' %}"
        + _MISTRAL.replace("' + m", "' + (system if m == asked[-1] else '') + m", 1)
        + "{% endfor %}"
    ),
    "drops_system": "{{ bos_token }}{% for m in messages if m['role'] != 'system' %}" + _MISTRAL + "{% endfor %}",
    "clock": "{{ strftime_now('%d %b %Y') + '\n' }}" + CHATML,
    "raises": "{{ raise_exception('this model does not chat') }}",
}
"""llama3_first writes the next header whether asked or not. llama31 and clock read the date. qwen3 writes a think block
before the last answer and takes thoughts out of earlier ones. gemma refuses a system message, mistral puts it into the
last question, drops_system leaves it out. The template of mistral and gemma trims what is said."""

_CHAT_TOKENS = (
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]"),
)


def real_tokenizer(kind: str, chat: str | None = None) -> PreTrainedTokenizerFast:
    """Return a new fast tokenizer of a kind in ``NAMED``, with a chat template of ``CHATS``, or none."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_backend(kind)), **NAMED[kind])
    if chat is not None:
        used = [token for token in _CHAT_TOKENS if token in CHATS[chat]]
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in used])
        if "<think>" in CHATS[chat]:  # Qwen3's are added tokens, but no special ones
            tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>")])
        tokenizer.chat_template = CHATS[chat]
    return tokenizer


@cache
def _backend(kind: str) -> str:
    special = list(dict.fromkeys(NAMED[kind].values()))
    return _sentencepiece(kind, special) if kind in ("llama2", "gemma") else _byte_level(kind, special)


def _byte_level(kind: str, special: list[str]) -> str:
    """Bytes, merged within the pieces of a regular expression; most words take the space before them."""
    split = {"llama3": LLAMA3_SPLIT, "qwen": QWEN_SPLIT}.get(kind)
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if kind == "smollm2" else []
    steps += [pre_tokenizers.Split(Regex(split), "isolated")] if split else []
    backend = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    backend.normalizer = normalizers.NFC() if kind == "qwen" else None
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = _begins(backend, "<|begin_of_text|>") if kind == "llama3" else _bytes_again(kind)
    return str(backend.to_str())


def _bytes_again(kind: str) -> Any:
    return processors.ByteLevel(trim_offsets=kind in ("gpt2", "smollm2"))  # offsets without the space


def _begins(backend: Tokenizer, token: str) -> Any:
    return processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, backend.token_to_id(token))])


def _sentencepiece(kind: str, special: list[str]) -> str:
    """Pieces with ``▁`` for a space, and bytes for what no piece holds."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, show_progress=False, min_frequency=2))
    model = json.loads(trained.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    vocabulary = list(dict.fromkeys([*special, *BYTES, *pieces, "\n", "▁"]))
    merges = [tuple(merge) for merge in model["merges"]]
    backend = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(vocabulary)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", "▁")
    plain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "llama2":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        backend.decoder = decoders.Sequence([*plain, decoders.Strip(" ", 1, 0)])
    else:
        backend.normalizer = spaces
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        backend.decoder = decoders.Sequence(plain)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    backend.post_processor = _begins(backend, NAMED[kind]["bos_token"])
    return str(backend.to_str())
