"""A forward pass over one row of many sequences: how its layout reaches the attention, and the logits that are read.

transformers calls an attention function with a layer's tensors alone. Who sees whom stands in the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, Protocol, TypeVar

import torch

from massive_sft.core.errors import Unsupported
from massive_sft.models.chosen_positions import ChosenPositions


class Row(Protocol):
    """What is computed in a pass.

    Attributes:
        tokens: int64, shape (tokens,).
        queries: how many of them attend in the layer that comes.
        layers: how often a layer has asked for its attention.
    """

    tokens: torch.Tensor
    layers: int

    @property
    def queries(self) -> int: ...


R = TypeVar("R", bound=Row)


class RowPass(Generic[R]):
    """The passes of one kind of row.

    Args:
        whose: attention it is, for messages.
    """

    def __init__(self, whose: str):
        self._whose = whose
        self._row: ContextVar[R | None] = ContextVar(f"row of {whose}", default=None)

    def enter_layer(self, query: torch.Tensor, attention_mask: Any) -> tuple[R, int]:
        """Return the row, and the number of the layer that asks for its attention; called by the attention function.

        Raises:
            Unsupported: outside of ``logits``, or the layer brings a mask of its own.
        """
        row = self._row.get()
        if row is None or attention_mask is not None or query.shape[0] != 1 or query.shape[2] != row.queries:
            raise Unsupported(f"a layer asks for attention that is not that of {self._whose}")
        row.layers += 1
        return row, row.layers - 1

    def logits(self, model: Any, row: R, positions: torch.Tensor, reads: Sequence[int]) -> torch.Tensor:
        """Return the logits at the row's tokens ``reads``, shape (reads, vocabulary).

        Args:
            model: which computes with this attention.
            positions: int64, shape (tokens,): of each token in its sequences.

        Raises:
            Unsupported: not every layer asked for this attention.
        """
        places = torch.tensor(reads, device=row.tokens.device)
        chosen = ChosenPositions(model)
        try:
            with self._attending(row), chosen.at(places):
                logits: torch.Tensor = model(
                    input_ids=row.tokens[None], position_ids=positions[None], use_cache=False
                ).logits
        finally:
            chosen.release()
        layers = model.config.get_text_config().num_hidden_layers
        if row.layers != layers:
            raise Unsupported(f"{row.layers} of {layers} layers asked for the attention of {self._whose}")
        return logits[0] if chosen.gathered else logits[0, places]

    @contextmanager
    def _attending(self, row: R) -> Iterator[None]:
        token = self._row.set(row)
        try:
            yield
        finally:
            self._row.reset(token)
