"""A forward pass over one row of many sequences: how its layout reaches the attention, and the logits that are read.

transformers calls an attention function with a layer's tensors alone. Who sees whom stands in the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Asked(Generic[R]):
    """What is asked of a row.

    Attributes:
        positions: int64, shape (tokens,): of each token in its sequences.
        reads: the tokens whose logits are asked for, in order.
        within: what the pass runs in.
    """

    row: R
    positions: torch.Tensor
    reads: Sequence[int]
    within: AbstractContextManager[Any] = field(default_factory=nullcontext)


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
        """As ``logits_of`` a single row."""
        return self.logits_of(model, [Asked(row, positions, reads)])

    def logits_of(self, model: Any, asked: Sequence[Asked[R]]) -> torch.Tensor:
        """Return the logits that are asked for, row after row, shape (reads, vocabulary).

        A row is a forward pass; the output layer, whose weights take long to read, is computed once, in the last.

        Args:
            model: which computes with this attention.

        Raises:
            Unsupported: not every layer asked for this attention.
        """
        chosen = ChosenPositions(model)
        hidden: list[torch.Tensor] = []
        found = []
        try:
            for one in asked:
                places = torch.tensor(one.reads, device=one.row.tokens.device)
                computed = None if one is asked[-1] else 0
                with one.within, self._attending(one.row), chosen.at(places, computed, hidden):
                    logits = self._pass(model, one)
                    hidden = [] if chosen.hidden is None else [chosen.hidden]
                found.append(logits[0] if chosen.gathered else logits[0, places])
        finally:
            chosen.release()
        return found[-1] if chosen.gathered else torch.cat(found)

    def _pass(self, model: Any, asked: Asked[R]) -> torch.Tensor:
        row = asked.row
        logits: torch.Tensor = model(
            input_ids=row.tokens[None], position_ids=asked.positions[None], use_cache=False
        ).logits
        layers = model.config.get_text_config().num_hidden_layers
        if row.layers != layers:
            raise Unsupported(f"{row.layers} of {layers} layers asked for the attention of {self._whose}")
        return logits

    @contextmanager
    def _attending(self, row: R) -> Iterator[None]:
        token = self._row.set(row)
        try:
            yield
        finally:
            self._row.reset(token)
