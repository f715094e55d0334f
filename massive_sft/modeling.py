"""Base models and tokenizers through transformers, and the refusal of what training cannot handle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# transformers imports DeepSpeed, which looks for a GPU when it is imported and warns when there is none.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from massive_sft import hub
from massive_sft.errors import InvalidInput, Problem
from massive_sft.sweep.schema import Model

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def source(model: Model) -> dict[str, Any]:
    """Return the ``from_pretrained`` arguments of a model: a folder on this node, or a hub id with its revision."""
    folder = model.path or hub.pinned_folder(model)
    if folder is not None:
        return {
            "pretrained_model_name_or_path": str(folder),
            "local_files_only": True,
            "trust_remote_code": model.trust_remote_code,
        }
    return {
        "pretrained_model_name_or_path": model.hub,
        "revision": model.revision,
        "trust_remote_code": model.trust_remote_code,
    }


def best_device() -> str:
    """Return ``cuda`` where there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def place_of(model: Model) -> str:
    return str(model.path or model.hub)


def _refusal(model: Model, what: str, error: Exception) -> InvalidInput:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InvalidInput(Problem(place_of(model), f"is no model that transformers can load: {what}: {first_line}"))


def load_config(model: Model) -> Any:
    """Load a model's configuration. Raises InvalidInput when there is none."""
    if model.path is not None and not (Path(model.path) / "config.json").is_file():
        raise InvalidInput(Problem(model.path, "is no model folder: it has no config.json"))
    try:
        return AutoConfig.from_pretrained(**source(model))
    except (OSError, ValueError, KeyError) as error:
        raise _refusal(model, "configuration", error) from error


def unsupported(model: Model, config: Any) -> list[Problem]:
    """Return why a base model cannot be trained here: encoder-decoder, mixture of experts, quantised weights."""
    place = place_of(model)
    problems = []
    if getattr(config, "is_encoder_decoder", False):
        problems.append(Problem(place, "is an encoder-decoder; only decoder-only models are trained"))
    experts = [
        name
        for name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
        if (getattr(config, name, None) or 0) > 1
    ]
    if experts:
        problems.append(
            Problem(
                place,
                f"is a mixture of experts ({experts[0]}), which is not supported; use a dense model",
                getattr(config, experts[0]),
            )
        )
    if getattr(config, "quantization_config", None):
        problems.append(Problem(place, "has quantised weights, which cannot be tuned; use the unquantised base"))
    return problems


def load_tokenizer(model: Model) -> PreTrainedTokenizerFast:
    """Load a model's fast tokenizer.

    Raises:
        InvalidInput: when there is none, or it has no character offsets (a slow tokenizer), or it has no EOS.
    """
    arguments = source(model)
    if model.tokenizer is not None:
        arguments["pretrained_model_name_or_path"] = model.tokenizer
    place = model.tokenizer or place_of(model)
    # Batches are short and many; the tokenizer's own threads would fight with the workers' for the cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(**arguments, use_fast=True)
    except (OSError, ValueError, KeyError) as error:
        raise _refusal(model, "tokenizer", error) from error
    problems = []
    if not tokenizer.is_fast:
        problems.append(
            Problem(
                place,
                "has a slow tokenizer without character offsets, which the loss mask needs; "
                "convert it to a tokenizer.json",
            )
        )
    if tokenizer.eos_token_id is None:
        problems.append(
            Problem(place, "has a tokenizer without an end-of-sequence token, which a sample must end with")
        )
    if problems:
        raise InvalidInput(problems)
    return tokenizer


def load_model(model: Model, dtype: str, attention: str = "sdpa") -> PreTrainedModel:
    """Load a base model's weights in ``dtype`` (``bf16`` or ``fp32``) on the CPU, in eval mode.

    Raises:
        InvalidInput: when it cannot be loaded, or is of a kind that is not supported.
    """
    problems = unsupported(model, load_config(model))
    if problems:
        raise InvalidInput(problems)
    try:
        with no_progress_bar():
            return AutoModelForCausalLM.from_pretrained(
                **source(model), dtype=DTYPES[dtype], attn_implementation=attention
            )
    except (OSError, ValueError, KeyError) as error:
        raise _refusal(model, "weights", error) from error


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Within it transformers shows no progress bars: a sweep loads and saves thousands of times."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def weights_folder(model: Model) -> Path:
    """Return the local folder of a model's weight files; a hub model's are downloaded when they are not cached.

    Raises:
        InvalidInput: when the hub cannot give them.
    """
    folder = model.path or hub.pinned_folder(model)
    if folder is not None:
        return Path(folder)
    try:
        return Path(snapshot_download(str(model.hub), revision=model.revision, allow_patterns=["*.safetensors"]))
    except (OSError, ValueError) as error:
        raise _refusal(model, "weights", error) from error
