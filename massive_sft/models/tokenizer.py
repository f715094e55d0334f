"""Fast tokenizers: loaded, and refused where a sample cannot be made with them."""

from __future__ import annotations

import os
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.models.foreign_code import refuse_foreign_code
from massive_sft.models.load_errors import load_error
from massive_sft.models.location import place_of, source
from massive_sft.sweep.schema import Model


def load_tokenizer(model: Model) -> PreTrainedTokenizerFast:
    """Load a model's fast tokenizer.

    Raises:
        InvalidInput: when there is none, or it has no character offsets (a slow tokenizer), or it has no EOS, or it
            runs code of another repository.
    """
    arguments = source(model)
    if model.tokenizer is not None:
        arguments["pretrained_model_name_or_path"] = model.tokenizer
    place = model.tokenizer or place_of(model)
    # Batches are short and many; the tokenizer's own threads would fight with the workers' for the cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        refuse_foreign_code(model, arguments)
        tokenizer: Any = AutoTokenizer.from_pretrained(**arguments, use_fast=True)
    except (OSError, ValueError, KeyError) as error:
        raise load_error(model, "tokenizer", error) from error
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


def text_head(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Return the tokens that a tokenizer puts before every text by itself: none, a BOS, or others (two of GLM-4's)."""
    bare, dressed = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    starts = (start for start in range(len(dressed)) if dressed[start : start + len(bare)] == bare)
    return tuple(dressed[: next(starts, 0)])


def token_problems(model: Model, rows: int, largest: int) -> list[Problem]:
    """Return the problem of a token id that a model has no embedding for.

    Args:
        rows: of the model's input embeddings, ``model.get_input_embeddings().weight.shape[0]``.
        largest: token id that its tokenizer gave.
    """
    rule = f"must know every token id of its tokenizer, below {rows}"
    return [Problem(place_of(model), rule, largest)] if largest >= rows else []
