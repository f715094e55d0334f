"""Which models a token tree can be exact for, and the switch to its attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from massive_sft.core.errors import Unsupported
from massive_sft.models import tree_attention

# Their attention is not called through transformers' interface, or what it sees is in the mask alone: wrong by up to 19
# nats when tried, with transformers 5.23.
_REFUSED = frozenset(
    [
        "bloom",
        "codegen",
        "falcon",
        "falcon_h1",
        "falcon_mamba",
        "gpt_neo",
        "gptj",
        "jamba",
        "llama4",
        "llama4_text",
        "mamba",
        "mamba2",
        "mpt",
        "qwen3_next",
        "recurrent_gemma",
        "rwkv",
        "xlnet",
        "zamba",
        "zamba2",
    ]
)
_LAYERS = {"full_attention", "sliding_attention"}
_LENGTH_DEPENDENT = {"dynamic", "longrope"}


def refusal(config: Any) -> str | None:
    """Return why a model of a configuration cannot be computed as a tree; None where nothing is known against it."""
    text = config.get_text_config()
    if text.model_type in _REFUSED or config.model_type in _REFUSED:
        return f"the family {text.model_type} does not compute a tree"
    others = sorted(set(getattr(text, "layer_types", None) or ()) - _LAYERS)
    if others:
        return f"it has layers of kind {others[0]}"
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    if getattr(text, "alibi", False) or getattr(text, "attention_chunk_size", None):
        return "its attention depends on places in the row"
    if getattr(text, "is_causal", True) is False or getattr(text, "use_bidirectional_attention", False):
        return "its attention is not causal"
    if depends_on_length(config):
        return "its position embeddings depend on the longest sequence of a batch"
    return None


def depends_on_length(config: Any) -> bool:
    """Return whether a model's position embeddings depend on the longest sequence of a batch, or of those before."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = {rope.get("rope_type"), *(one.get("rope_type") for one in rope.values() if isinstance(one, dict))}
    return bool(kinds & _LENGTH_DEPENDENT)


def as_tree(model: Any) -> AbstractContextManager[None]:
    """As ``computing_with``, by ``tree_attention``."""
    return computing_with(model, tree_attention.NAME)


@contextmanager
def computing_with(model: Any, attention: str) -> Iterator[None]:
    """Within it the model computes its attention by a function that is registered with transformers.

    Raises:
        Unsupported: the model's class takes none.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = base.config._attn_implementation
    try:
        base.set_attn_implementation(attention)
    except (ValueError, ImportError) as error:
        raise Unsupported(f"its class takes no attention function: {error}") from error
    try:
        if base.config.get_text_config()._attn_implementation != attention:  # a class may only warn
            raise Unsupported("its class takes no attention function")
        yield
    finally:
        base.set_attn_implementation(before)
