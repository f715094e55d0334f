"""The tokens that end a generated answer."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

from massive_sft.models.configuration import load_config
from massive_sft.models.location import source
from massive_sft.sweep.schema import Model


def end_tokens(model: Model, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end an answer of a base model and of what was trained from it.

    They are the tokenizer's EOS and those that the base's ``generation_config.json`` names; where there is no such
    file, its ``config.json``. Read without the weights, for they are part of how scores are made
    (``protocol.protocol_id``).

    Raises:
        InvalidInput: the model has no configuration.
    """
    arguments = source(model)
    arguments["pretrained_model_name"] = arguments.pop("pretrained_model_name_or_path")
    try:
        config: Any = GenerationConfig.from_pretrained(**arguments)
    except OSError:  # there is none; transformers' own generation does the same
        config = GenerationConfig.from_model_config(load_config(model))
    return ends_of(config, tokenizer)


def ends_of(config: Any, tokenizer: Any) -> frozenset[int]:
    """Return the end tokens that a generation configuration names, and the tokenizer's EOS."""
    declared = config.eos_token_id
    ends = declared if isinstance(declared, list) else [declared]
    return frozenset({int(token) for token in (*ends, tokenizer.eos_token_id) if token is not None})
