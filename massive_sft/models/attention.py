"""Which attention computes a model's family exactly: decided on a model without weights."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.models.configuration import load_config, unsupported
from massive_sft.models.load_errors import load_error
from massive_sft.models.location import place_of, require_weights
from massive_sft.sweep.schema import Model


def meta_model(model: Model, attention: str = "auto", gpu: bool = False, packed: bool = False) -> PreTrainedModel:
    """Make a model without its weights, on the ``meta`` device, with the attention that it is computed with.

    Takes well below a second at any size. ``auto`` takes what computes the family's attention exactly: sdpa; where
    logits are soft-capped, which sdpa ignores, flex_attention on a GPU and eager elsewhere; flex_attention for packed
    samples on a GPU, for which sdpa makes a dense mask, in the square of a row's length; eager for a family without
    these.

    Args:
        model: its ``config.json`` is read, not its weights.
        attention: ``auto``, or transformers' name of an implementation.
        gpu: whether it will train on a GPU. Scores are made without flex_attention, which would be compiled again and
            again while a generation grows.
        packed: whether samples will stand one after another in a row.

    Returns:
        The model; ``attention_of`` tells which implementation it has.

    Raises:
        InvalidInput: it is of a kind that is not supported, or cannot be computed exactly with ``attention``.
    """
    config = load_config(model)
    problems = unsupported(model, config)
    if problems:
        raise InvalidInput(problems)
    if model.hub is not None:  # a local folder's files are read, and refused, when its content is hashed
        require_weights(model)
    capped = bool(getattr(config.get_text_config(), "attn_logit_softcapping", None))
    if capped and attention == "sdpa":
        rule = "soft-caps its attention's logits, which sdpa ignores; use auto, or eager"
        raise InvalidInput(Problem(place_of(model), rule, attention))
    if attention != "auto":
        return _on_meta(model, config, attention)
    candidates = [] if capped else ["sdpa"]
    if gpu and (capped or packed):
        candidates.insert(0, "flex_attention")
    for candidate in candidates:
        try:
            return _on_meta(model, config, candidate)
        except InvalidInput:
            continue
    return _on_meta(model, config, "eager")


def attention_of(model: Any) -> str:
    """Return the attention implementation that a model computes with."""
    return str(model.config._attn_implementation)


def _on_meta(model: Model, config: Any, attention: str) -> PreTrainedModel:
    flash = attention == "flash_attention_2"
    if flash and importlib.util.find_spec("flash_attn") is None:
        rule = "cannot be computed with flash_attention_2: the package flash-attn is not installed; use auto"
        raise InvalidInput(Problem(place_of(model), rule))
    try:
        with torch.device("meta"):
            # FlashAttention asks for a GPU, which the machine that checks need not have.
            made: Any = AutoModelForCausalLM.from_config(
                copy.deepcopy(config),
                attn_implementation="eager" if flash else attention,
                trust_remote_code=model.trust_remote_code,
            )
    except (ImportError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise load_error(model, f"with attention {attention}", error) from error
    if flash and not getattr(made, "_supports_flash_attn", False):
        raise InvalidInput(Problem(place_of(model), "is of a family without flash_attention_2; use auto", attention))
    made.config._attn_implementation = attention
    return made
