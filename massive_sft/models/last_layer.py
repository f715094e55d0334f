"""A model's last layer at the tokens that are read alone: of the others it takes keys and values only.

The layer's own forward runs twice, so that no family needs code: over all tokens until it asks for its attention, where
it is left, and over those that are read from beginning to end, attending to the keys and values of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from massive_sft.core.errors import Unsupported
from massive_sft.models.lse_attention import KeysValues
from massive_sft.models.tree_row import TreeRow


class KeysKnown(Exception):
    """Leaves a layer whose keys and values are known."""


def keys_values(row: TreeRow, key: torch.Tensor, value: torch.Tensor) -> KeysValues:
    """Return what a layer's queries attend to; called by the attention function with the layer's own.

    Raises:
        KeysKnown: they are those of all tokens, and the layer goes on with a part of them.
    """
    if row.known is None:
        return key, value
    if row.read is None:
        row.known.append((key, value))
        row.layers -= 1
        raise KeysKnown
    return row.known[0]


@contextmanager
def at_reads(model: Any, row: TreeRow, reads: Sequence[int]) -> Iterator[None]:
    """Within it a pass over the row has zeros behind the last layer but for the tokens ``reads``.

    Args:
        reads: places in the row, in order.

    Raises:
        Unsupported: it is not clear which layer is the last, or it asks for no attention.
    """
    layer = _last_layer(model)
    whole = layer.forward
    places = torch.tensor(reads, device=row.tokens.device)

    def forward(*given: Any, **named: Any) -> Any:
        row.known = []
        try:
            whole(*given, **named)
        except KeysKnown:
            row.read = row.every.at(places)
            picked = _picked((given, named), places, len(row.tokens))
            return _spread(whole(*picked[0], **picked[1]), places, len(row.tokens))
        raise Unsupported("its last layer asks for no attention")

    vars(layer)["forward"] = forward
    try:
        yield
    finally:
        del vars(layer)["forward"]
        row.known = row.read = None


def _last_layer(model: Any) -> nn.Module:
    count = model.config.get_text_config().num_hidden_layers
    named = ((name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList))
    stacks = {name: part for name, part in named if len(part) == count}
    outer = [part for name, part in stacks.items() if not any(name.startswith(f"{other}.") for other in stacks)]
    if len(outer) != 1:
        raise Unsupported(f"{len(outer)} of its parts have {count} layers")
    return outer[0][-1]


def _picked(given: Any, places: torch.Tensor, tokens: int) -> Any:
    """Return a layer's arguments with what is of all tokens, shape (1, tokens, ...), at some places."""
    if isinstance(given, torch.Tensor):
        return given.index_select(1, places) if given.dim() > 1 and given.shape[1] == tokens else given
    if isinstance(given, (tuple, list)):
        return tuple(_picked(part, places, tokens) for part in given)
    if isinstance(given, dict):
        return {name: _picked(part, places, tokens) for name, part in given.items()}
    return given


def _spread(made: Any, places: torch.Tensor, tokens: int) -> Any:
    """Return what a layer made of some places as that of all tokens."""
    if isinstance(made, tuple):
        return tuple(_spread(part, places, tokens) for part in made)
    if not isinstance(made, torch.Tensor):
        return made
    return made.new_zeros((1, tokens, *made.shape[2:])).index_copy_(1, places, made)
