"""A tiny model, a tokenizer and benchmarks on disk for the evaluation tests."""

from __future__ import annotations

import json
import os
import random
from collections import deque
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import pytest
import torch
import yaml
from small_models import small_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from massive_sft.data.hub_data import environment_kept
from massive_sft.evaluation import tasks

WORDS = ["red", "blue", "green", "a dog", "two cats", "the long yellow road", "ünï", "seven", "no", "yes"]


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep what the datasets library caches inside the test's folder, and the tasks that were loaded from there.

    Where a test itself loads data, the environment stays as it is: an earlier test may have left threads of Ray.
    """
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(tasks, "_loaded", deque(maxlen=tasks._loaded.maxlen))
    datasets.disable_progress_bars()
    with environment_kept():
        yield


def tokenizer(adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a few merges; with or without a BOS of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d"), ("Ġ", "r"), ("Ġ", "b"), ("t", "h"), ("th", "e"), ("Ġ", "the"), ("e", "s")]
    vocabulary = ["<s>", "</s>", "<pad>", *alphabet, *("".join(pair) for pair in merges)]
    raw = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    if adds_bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
        )
    bos = {"bos_token": "<s>"} if adds_bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", pad_token="<pad>", **bos)


def llama(seed: int = 0, positions: int = 256, **config: object) -> LlamaForCausalLM:
    """A random Llama whose picks vary: its weights are larger than a fresh model's."""
    torch.manual_seed(seed)
    settings = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": positions}
    settings |= {"initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    return LlamaForCausalLM(small_config("llama", 267, **(settings | config))).eval()


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=267, n_positions=256, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    config.bos_token_id, config.eos_token_id = None, 1
    return GPT2LMHeadModel(config).eval()


def gemma2() -> Gemma2ForCausalLM:
    """Alternating sliding-window layers and capped logits; the window is shorter than the texts."""
    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=267, hidden_size=32, intermediate_size=64, num_hidden_layers=2, head_dim=8)
    config.num_attention_heads, config.num_key_value_heads, config.sliding_window = 4, 2, 16
    config.max_position_embeddings, config.initializer_range, config.query_pre_attn_scalar = 256, 0.3, 8
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, 2
    return Gemma2ForCausalLM(config).eval()


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_tasks(folder: Path, documents: int = 12) -> dict[str, Path]:
    """Write task files with data beside them: choices, generation, rolling text and a group of two; by name."""
    draw = random.Random(0)
    questions = [" ".join(draw.sample(WORDS, 3)) for _ in range(documents)]
    choices = [draw.sample(WORDS, 4) for _ in range(documents)]
    rows = [{"q": q, "choices": c, "label": draw.randrange(4)} for q, c in zip(questions, choices, strict=True)]
    write_rows(folder / "data" / "mc.jsonl", rows)
    write_rows(folder / "data" / "shots.jsonl", rows[::-1])
    write_rows(folder / "data" / "text.jsonl", [{"text": " ".join(draw.choices(WORDS, k=20 + i))} for i in range(5)])
    files = {"test": "data/mc.jsonl", "train": "data/shots.jsonl"}
    shared = {"dataset_path": "json", "test_split": "test", "metadata": {"version": 1.0}}
    choice = {
        "task": "tiny_mc",
        "dataset_kwargs": {"data_files": files},
        "fewshot_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{q}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
        ],
    }
    generation = {
        "task": "tiny_gen",
        "dataset_kwargs": {"data_files": files},
        "fewshot_split": "train",
        "output_type": "generate_until",
        "doc_to_text": "Q: {{q}}\nA:",
        "doc_to_target": "{{choices[label]}}",
        "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    rolling = {
        "task": "tiny_bpb",
        "dataset_kwargs": {"data_files": {"test": "data/text.jsonl"}},
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [
            {"metric": metric, "higher_is_better": False} | ({"aggregation": aggregation})
            for metric, aggregation in (
                ("bits_per_byte", "bits_per_byte"),
                ("word_perplexity", "weighted_perplexity"),
            )
        ],
    }
    paths = {}
    folder.mkdir(parents=True, exist_ok=True)
    for config in (choice, generation, rolling):
        paths[config["task"]] = folder / f"{config['task']}.yaml"
        paths[config["task"]].write_text(yaml.safe_dump(shared | config))
    return paths


def write_group(folder: Path, weight_by_size: bool) -> Path:
    """Write a group of two choice tasks of different sizes, and return its file."""
    for name, documents in (("part_a", 12), ("part_b", 5)):
        path = write_tasks(folder / name, documents)["tiny_mc"]
        config = yaml.safe_load(path.read_text())
        config["task"] = name
        files = config["dataset_kwargs"]["data_files"]
        config["dataset_kwargs"]["data_files"] = {split: str(path.parent / file) for split, file in files.items()}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    aggregate = [{"metric": "acc", "aggregation": "mean", "weight_by_size": weight_by_size}]
    group = {"group": "both", "task": ["part_a", "part_b"], "aggregate_metric_list": aggregate}
    (folder / "group.yaml").write_text(yaml.safe_dump(group))
    return folder / "group.yaml"
