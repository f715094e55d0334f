"""The output layer at chosen positions only, which is most of a small model's or a small batch's cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class ChosenPositions:
    """Gathers hidden states in front of a causal model's output layer.

    The model's own forward runs unchanged, so whatever its family does behind that layer (scales, soft caps) is done.

    Args:
        model: whose output layer gets a hook; ``release`` takes it away.

    Attributes:
        gathered: whether the output layer was called since ``at`` was entered; some families do without it.
        hidden: what was gathered within ``at``, shape (1, positions, hidden): ``before``, and all of its positions.
    """

    def __init__(self, model: Any):
        self.gathered = False
        self.hidden: torch.Tensor | None = None
        self._positions: torch.Tensor | None = None
        self._computed: int | None = None
        self._before: Sequence[torch.Tensor] = ()
        self._hook = model.get_output_embeddings().register_forward_pre_hook(self._gather)

    @contextmanager
    def at(
        self, positions: torch.Tensor, computed: int | None = None, before: Sequence[torch.Tensor] = ()
    ) -> Iterator[None]:
        """Within it the model's logits are those of ``positions`` alone, shape (1, positions, vocabulary).

        Args:
            positions: int64, shape (positions,), in the input with its rows one after another.
            computed: of the first so many alone, where the hidden states of the others are all that is wanted.
            before: hidden states of other passes, shapes (1, positions, hidden), whose logits come first.
        """
        self.gathered, self.hidden, self._positions, self._computed = False, None, positions, computed
        self._before = before
        try:
            yield
        finally:
            self._positions = self.hidden = None
            self._before = ()

    def _gather(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._positions is None:
            return None
        self.gathered = True
        hidden = inputs[0]
        own = hidden.reshape(1, -1, hidden.shape[-1]).index_select(1, self._positions)
        self.hidden = torch.cat([*self._before, own], dim=1) if self._before else own
        return (self.hidden if self._computed is None else self.hidden[:, : self._computed], *inputs[1:])

    def release(self) -> None:
        """Give the model back as it was."""
        self._hook.remove()
